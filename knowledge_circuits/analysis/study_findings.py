"""The verdicts of a designed study: several seeds, one rule per finding, all tests counted.

    relevance        per person the mean level over training (area under the curve / epochs) when the person was known
                     minus when not, in mirrored runs; mean over people, then over seeds. First the manipulation check:
                     the past's facts are still known at every checkpoint
    phase shift      two segments against smooth curves (`curves.compare_shapes`) for circuit entropy, for the turnover
                     of edges above its noise floor, and for the edges needed for a faithfulness of 0.9
    deep to shallow  the centroid of the circuits' edges over layers: deeper up to the bend, shallower after it; and the
                     order in which layers make half of their change

The findings are the paper's three claims, each judged at 5%. Within a finding the deciding tests are corrected by Holm
and so, in a second family, are all others that have a p. Effect sizes come with t intervals over seeds; the p follows.
A study of one seed reports its numbers and decides nothing. docs/statistics.md has the rules' false verdicts and power.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knowledge_circuits.analysis import curves
from knowledge_circuits.analysis.findings import EDGE, FEWEST_LAYERS, NEGLIGIBLE, Finding, Statistic, Verdict
from knowledge_circuits.analysis.statistics import (
    LEVEL,
    RESAMPLES,
    Estimate,
    depth_correlation,
    holm,
    label_swap_p,
    over_runs,
    partial_conjunction,
    permuted_layers_p,
)
from knowledge_circuits.analysis.study_tables import People, Study, StudyKind, Told
from knowledge_circuits.study import Band

Floats = NDArray[np.float64]

#: Prior facts known at every checkpoint, at least; below it the treatment is gone and the run cannot test relevance.
STILL_KNOWN = 0.4
#: Seeds that a study needs for a verdict; the studies are planned with at least as many.
FEWEST_SEEDS = 3
#: A BIC advantage that counts as positive evidence (Kass and Raftery 1995).
POSITIVE_EVIDENCE = 2.0
#: Of how many of the three curves the bend has to be there.
BENDS_WANTED = 2
#: Share of a seed's groups that a checkpoint needs to be in a curve.
_GROUPS_NEEDED = 0.5
_GROUP = ["task", "type", "band"]
_MEASURES = {"accuracy": "first-token accuracy", "hit10": "Hit@10"}


def judge_study(study: Study, seed: int = 0, resamples: int = RESAMPLES) -> tuple[Finding, ...]:
    """Return the findings of a study, each with its verdict.

    Args:
        study: all its finished runs.
    """
    if study.kind == StudyKind.RELEVANCE:
        return (decide_relevance(study.table, seed, resamples),)
    shift = decide_phase_shift(study.table)
    return shift, decide_deep_to_shallow(study.table, shift, seed, resamples)


# --- rules on arrays, for studies [...] of r runs ---------------------------------------------------------------------


@dataclass(frozen=True)
class Bends:
    """What the three curves of each run say of a bend; fields [..., r].

    Attributes:
        gain: BIC of the best smooth shape minus that of two segments.
        break_point: epoch.
        at_edge: whether the break lies at the edge of the search (`curves.at_edge`).
        slope_before, slope_after: per epoch.
        comparison: every shape's BIC.
    """

    gain: Floats
    break_point: Floats
    at_edge: NDArray[np.bool_]
    slope_before: Floats
    slope_after: Floats
    comparison: curves.ShapeComparison

    @property
    def wins(self) -> NDArray[np.bool_]:
        """Whether the bend wins over all smooth shapes, by runs [...]: a mean BIC advantage of positive evidence whose
        interval lies above 0, and a change that slows down."""
        effect = over_runs(self.gain)
        slows = np.abs(self.slope_after).mean(axis=-1) < np.abs(self.slope_before).mean(axis=-1)
        return (effect.mean > POSITIVE_EVIDENCE) & (effect.low > 0) & slows

    @property
    def loses(self) -> NDArray[np.bool_]:
        """Whether a smooth shape wins, by the same rule, [...]."""
        effect = over_runs(self.gain)
        return (effect.mean < -POSITIVE_EVIDENCE) & (effect.high < 0)

    @property
    def p(self) -> Floats:
        """One-sided p of an advantage of the bend, [...]."""
        effect = over_runs(self.gain)
        return np.where(effect.mean > 0, effect.p / 2, 1 - effect.p / 2)


def bends(x: Floats, y: Floats) -> Bends:
    """Compare shapes of curves y [..., r, n] over epochs x [n]."""
    comparison, fit = curves.compare_shapes(x, y), curves.two_segment_fit(x, y)
    return Bends(comparison.bend_gain, fit.break_point, fit.at_edge, fit.slope_before, fit.slope_after, comparison)


def same_epoch(first: Bends, second: Bends, span: float) -> NDArray[np.bool_]:
    """Return whether two curves bend at the same epoch, [...].

    The interval over runs of the difference of their break points reaches to within an epoch of 0 (checkpoints are an
    epoch apart) and no further than an eighth of training to either side of its middle: a vague difference is no
    agreement. Nor is a break at the edge of the search in any run: it need not be where the curve bends.
    """
    difference = over_runs(first.break_point - second.break_point)
    tight = (difference.high - difference.low) / 2 <= span / 8
    tight &= ~(first.at_edge | second.at_edge).any(axis=-1)
    return tight & (difference.low <= 1) & (difference.high >= -1) & (np.abs(difference.mean) <= span / 8)


def is_phase_shift(bends_of_curves: list[Bends], span: float) -> NDArray[np.bool_]:
    """Return whether at least two of the curves bend, and at the same epoch, [...]."""
    shapes = [
        first.wins & second.wins & same_epoch(first, second, span)
        for index, first in enumerate(bends_of_curves)
        for second in bends_of_curves[index + 1 :]
    ]
    return np.any(shapes, axis=0) if shapes else np.zeros(bends_of_curves[0].wins.shape, dtype=bool)


def slopes(x: Floats, y: Floats, split: float) -> tuple[Floats, Floats]:
    """Least-squares slopes of curves y [..., n] up to an epoch and from it on, [...] each."""
    slopes_of_halves = []
    for part in (x <= split, x >= split):
        time = x[part] - x[part].mean()
        slopes_of_halves.append((y[..., part] * time).sum(axis=-1) / (time**2).sum())
    return slopes_of_halves[0], slopes_of_halves[1]


@dataclass(frozen=True)
class Depth:
    """The deciding tests of deep to shallow in one study.

    Attributes:
        before, after: the centroid's slopes, over runs.
        order: the mean rank correlation of half-change epoch with depth; None where a run has too few layers.
        p: of the centroid's turn (the larger of both slopes') and of the order (the larger of t test and permutation).
        adjusted: by Holm over both.
    """

    before: Estimate
    after: Estimate
    order: Estimate | None
    p: tuple[float, float]
    adjusted: tuple[float, float]

    @property
    def verdict(self) -> Verdict:
        """By the rule of `deep_to_shallow`, whatever the number of seeds."""
        centroid = int(np.sign(self.before.mean)) if self.adjusted[0] < LEVEL else 0
        order = -int(np.sign(self.order.mean)) if self.order is not None and self.adjusted[1] < LEVEL else 0
        sides = {centroid, order}
        if 1 in sides and -1 not in sides:
            return Verdict.HOLDS
        return Verdict.FAILS if -1 in sides and 1 not in sides else Verdict.UNDECIDED


def judge_depth(
    before: Floats, after: Floats, half_changes: Floats, seed: int = 0, resamples: int = RESAMPLES
) -> Depth:
    """Test the centroid's turn and the layers' order.

    Args:
        before, after: [r] slopes of the centroid in layers per epoch.
        half_changes: [r, l] half-change epochs, NaN where a layer does not change.
    """
    first, second = over_runs(before), over_runs(after)
    turns = np.sign(first.mean) * np.sign(second.mean) < 0
    p_turn, p_order, order = float(max(first.p, second.p)) if turns else 1.0, 1.0, None
    if (np.isfinite(half_changes).sum(axis=1) >= FEWEST_LAYERS).all():
        order = over_runs(depth_correlation(half_changes))
        p_order = max(float(order.p), permuted_layers_p(half_changes, seed, resamples))
    adjusted = holm([p_turn, p_order])
    return Depth(first, second, order, (p_turn, p_order), (float(adjusted[0]), float(adjusted[1])))


# --- 1. relevance -----------------------------------------------------------------------------------------------------


def decide_relevance(table: pd.DataFrame, seed: int = 0, resamples: int = RESAMPLES) -> Finding:
    """Are new facts learned better about people whom the model knew before?

    Rule: the manipulation check first. Then the finding holds if, for first-token accuracy or Hit@10 and after Holm
    over the two, the advantage is above 0 by the t test over seeds and by the permutation test that swaps the labels
    within pairs, and neither is below 0; it does not hold if one is below 0 and none above, or if both intervals lie
    within 0.01 of 0. The bands, the other doses and the trend over doses are reported, with a Holm correction of their
    own.

    Args:
        table: a relevance study's table (`study_tables.read_study`).
    """
    title, claim = "Relevance", "New facts are learned better about people who were known before (K_rel)."
    main = main_dose(table)
    check = manipulation_check(table, main)
    differences = person_differences(table)
    at_main = differences[differences["dose"] == main]
    if at_main.empty:
        return Finding(title, claim, Verdict.ONE_RUN, "No seed has both of its mirrored runs yet.", (check,))
    deciding = advantages(at_main, seed, resamples)
    secondary = [
        _advantage(at_main[at_main["band"] == band], measure, seed, resamples, f"{band} band")
        for measure in _MEASURES
        for band in Band
        if (at_main["band"] == band).any()
    ]
    secondary += [
        _advantage(of_dose, measure, seed, resamples, f"{dose:g} texts in the past")
        for dose, of_dose in differences[differences["dose"] != main].groupby("dose")
        for measure in _MEASURES
    ]
    secondary += [trend for measure in _MEASURES if (trend := _dose_trend(differences, measure)) is not None]
    verdict = of_seeds(advantage_verdict(deciding), at_main["seed"].nunique())
    if check.estimate < STILL_KNOWN:
        verdict = Verdict.NOT_TESTABLE
    reason = "Mean level over training, known minus unknown: " + "; ".join(str(s) for s in deciding)
    if verdict == Verdict.NOT_TESTABLE:
        reason = f"The study cannot test it: the past's facts were known to {check.estimate:.2f} only. {reason}"
    if not (differences["dose"] == 0).any():
        reason += ". Known people's names also stand in replayed texts; without dose 0 that is not controlled"
    return Finding(title, claim, verdict, f"{reason}.", (*deciding, check, *corrected(secondary)))


def of_seeds(verdict: Verdict, seeds: int) -> Verdict:
    """Return the verdict if the study has `FEWEST_SEEDS` seeds, else that it cannot decide.

    A study that is judged while its runs come in decides more often than its level says.
    """
    if seeds < 2:
        return Verdict.ONE_RUN
    return verdict if seeds >= FEWEST_SEEDS else Verdict.FEW_SEEDS


def advantages(differences: pd.DataFrame, seed: int = 0, resamples: int = RESAMPLES) -> list[Statistic]:
    """Return the deciding statistics of relevance, corrected by Holm.

    Args:
        differences: `person_differences` at one dose.
    """
    return corrected([_advantage(differences, measure, seed, resamples) for measure in _MEASURES])


def advantage_verdict(deciding: list[Statistic]) -> Verdict:
    """Return the verdict of relevance from its deciding statistics, once the manipulation check is passed."""
    sides = [int(np.sign(s.estimate)) if s.adjusted < LEVEL else 0 for s in deciding]
    if 1 in sides and -1 not in sides:
        return Verdict.HOLDS
    if -1 in sides and 1 not in sides:
        return Verdict.FAILS
    nothing = all(s.low > -NEGLIGIBLE and s.high < NEGLIGIBLE for s in deciding)
    return Verdict.FAILS if nothing else Verdict.UNDECIDED


def main_dose(table: pd.DataFrame) -> float:
    """Return the dose above 0 that most runs have (the largest of equals); 0 where there is no other."""
    runs = table[["seed", "mirror", "dose"]].drop_duplicates()
    counts = runs[runs["dose"] > 0].groupby("dose").size()
    return 0.0 if counts.empty else float(max(counts.index, key=lambda dose: (counts[dose], dose)))


def manipulation_check(table: pd.DataFrame, dose: float) -> Statistic:
    """Return the lowest first-token accuracy of the past's facts at any checkpoint of any run of a dose."""
    past = table[(table["told"] == Told.PAST) & table["known"].astype(bool) & (table["dose"] == dose)]
    levels = past.groupby(["seed", "mirror", "epoch"])["accuracy"].mean()
    by_seed = {int(seed): float(level) for seed, level in levels.groupby("seed").min().items()}
    lowest = float(levels.min()) if len(levels) else 0.0
    wanted = f"at least {STILL_KNOWN:g} at every checkpoint"
    return Statistic("the past's facts known, lowest checkpoint", "all runs", lowest, np.nan, np.nan, wanted,
                     by_seed=by_seed)  # fmt: skip


def person_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Mean level over training when known minus when unknown, of each person with both mirrored runs.

    Args:
        table: a relevance study's table.

    Returns:
        Columns seed, dose, half (the mirror in which the person is known), person, band, and one column
        per measure: the difference.
    """
    new = table[table["told"] == Told.NEW]
    keys = ["seed", "dose", "mirror", "person", "band", "known"]
    levels = []
    for measure in _MEASURES:
        wide = new.pivot_table(index=keys, columns="epoch", values=measure, aggfunc="mean").dropna()
        level = curves.area_under_curve(wide.columns.to_numpy(dtype=float), wide.to_numpy(dtype=float))
        levels.append(pd.Series(level, index=wide.index, name=measure))
    level = pd.concat(levels, axis=1).reset_index()
    pair = ["seed", "dose", "person", "band"]
    known, unknown = (level[level["known"].astype(bool) == side] for side in (True, False))
    both = known.merge(unknown, on=pair, suffixes=("", "_unknown"))
    for measure in _MEASURES:
        both[measure] -= both[f"{measure}_unknown"]
    return both.rename(columns={"mirror": "half"})[["seed", "dose", "half", "person", "band", *_MEASURES]]


def seed_effects(differences: pd.DataFrame, measure: str) -> pd.Series:
    """Return each seed's effect: the mean over its two halves of people, so that a run's own level cancels."""
    return differences.groupby(["seed", "half"])[measure].mean().groupby("seed").mean()


def _advantage(
    differences: pd.DataFrame, measure: str, seed: int, resamples: int, where: str = "all bands"
) -> Statistic:
    """Return the advantage of known people in one measure: t interval over seeds, p the larger of t and label swaps."""
    effects = seed_effects(differences, measure)
    effect = over_runs(effects.to_numpy())
    sizes = differences.groupby(["seed", "half"])[measure].transform("size")
    halves = differences.groupby("seed")["half"].transform("nunique")
    weights = (1 / (sizes * halves * len(effects))).to_numpy()
    swapped = label_swap_p(differences[measure].to_numpy(dtype=float), weights, seed, resamples)
    p = float(max(effect.p, swapped))
    return _statistic(f"{_MEASURES[measure]}, known - unknown", where, effect, "above 0", p, effects)


def _dose_trend(differences: pd.DataFrame, measure: str) -> Statistic | None:
    """Return the slope of the advantage over the dose, per seed; None where no seed has two doses."""
    effects = differences.groupby(["seed", "dose", "half"])[measure].mean().groupby(["seed", "dose"]).mean()
    slopes_of: dict[int, float] = {}
    for seed, row in effects.groupby("seed"):
        doses = row.index.get_level_values("dose").to_numpy(dtype=float)
        if len(doses) > 1:
            slopes_of[int(seed)] = float(np.polyfit(doses, row.to_numpy(), 1)[0])
    if not slopes_of:
        return None
    by_seed = pd.Series(slopes_of)
    effect = over_runs(by_seed.to_numpy())
    return _statistic(f"{_MEASURES[measure]}: advantage per text in the past", "all doses", effect, "above 0",
                      float(effect.p), by_seed)  # fmt: skip


# --- 2. phase shift ---------------------------------------------------------------------------------------------------

#: The curves that may bend: what they are called, and by column of the circuits' table.
CURVES = {
    "entropy": "circuit entropy",
    "turnover": "turnover above its floor",
    "edges_for_90": "edges for a faithfulness of 0.9",
}


def study_curves(table: pd.DataFrame, column: str) -> tuple[Floats, Floats, list[int]]:
    """Return one curve a seed: the mean of the taught groups at the epochs that every seed has.

    Turnover is above its floor, in the middle of the epoch that it spans. Edges for a faithfulness count only where
    clean minus corrupted is above 0 by its interval: before, there is nothing to be faithful to. A group's absence at
    some epochs does not move the mean: groups and epochs are fitted additively.

    Args:
        table: a depth study's table.
        column: of `CURVES`, or another numeric one.

    Returns:
        epochs [n], curves [r, n], seeds [r].
    """
    taught = table[table["people"] == People.TAUGHT].copy()
    taught["value"] = taught[column]
    if column == "turnover":
        taught["value"], taught["epoch"] = taught["turnover"] - taught["turnover_floor"], taught["epoch"] - 0.5
    if column == "edges_for_90":
        taught.loc[~(taught["cmc_low"] > 0), "value"] = np.nan
    seeds = sorted(taught["seed"].unique().tolist())
    by_seed = []
    for seed in seeds:
        wide = taught[taught["seed"] == seed].set_index([*_GROUP, "epoch"])["value"].unstack("epoch")
        wide = wide.loc[:, wide.notna().mean() >= _GROUPS_NEEDED]
        by_seed.append(pd.Series(_epoch_means(wide.to_numpy(dtype=float)), index=wide.columns))
    joined = pd.concat(by_seed, axis=1, join="inner").sort_index() if by_seed else pd.DataFrame()
    return joined.index.to_numpy(dtype=float), joined.to_numpy(dtype=float).T, seeds


def _epoch_means(values: Floats) -> Floats:
    """Means of columns [n] of values [groups, n] with gaps, as an additive fit of groups and columns has them."""
    if np.isfinite(values).all():
        return values.mean(axis=0)
    groups, columns = np.nonzero(np.isfinite(values))
    design = np.zeros((len(groups), sum(values.shape)))
    design[np.arange(len(groups)), groups] = design[np.arange(len(groups)), values.shape[0] + columns] = 1
    fitted = np.linalg.lstsq(design, values[groups, columns])[0]
    used = np.unique(groups)
    return fitted[used].mean() + fitted[values.shape[0] :]


def decide_phase_shift(table: pd.DataFrame) -> Finding:
    """Do the circuits form fast and then change slowly, with a bend that smooth curves do not have?

    For each of the three curves and each seed: BIC of the best of a line, exponential decay (alone and with a drift),
    power law and logistic curve, minus BIC of two segments, all with autocorrelated residuals. The bend wins a curve if
    this is above 2 in the mean, above 0 by its t interval over seeds, and the change is slower after it.

    Rule: the finding holds if the bend wins at least two curves at the same epoch (`same_epoch`); it does not hold if a
    smooth shape wins at least two; otherwise it is undecided. The reason says what the curves are instead.
    """
    title = "Phase shift"
    claim = "Circuits form fast, then are optimized slowly, with a bend between the two phases."
    bends_of, spans, statistics = {}, [], []
    for column, name in CURVES.items():
        x, y, seeds = study_curves(table, column)
        if len(x) >= curves.FEWEST_FOR_SHAPES:
            bends_of[column] = bends(x, y)
            spans.append(x[-1] - x[0])
            statistics += _bend_statistics(name, bends_of[column], seeds)
    if len(bends_of) < BENDS_WANTED:
        reason = (
            f"It needs two curves of {curves.FEWEST_FOR_SHAPES} checkpoints or more; the study has {len(bends_of)}."
        )
        return Finding(title, claim, Verdict.UNDECIDED, reason, tuple(statistics))
    shapes = "; ".join(f"{CURVES[column]} is {best_shape(bend)}" for column, bend in bends_of.items())
    if bool(is_phase_shift(list(bends_of.values()), max(spans))):
        verdict = Verdict.HOLDS
    else:
        smooth = sum(bool(bend.loses) for bend in bends_of.values())
        verdict = Verdict.FAILS if smooth >= BENDS_WANTED else Verdict.UNDECIDED
    verdict = of_seeds(verdict, table["seed"].nunique())
    p = float(partial_conjunction([float(bend.p) for bend in bends_of.values()], BENDS_WANTED))
    wins = sum(bool(bend.wins) for bend in bends_of.values())
    count = Statistic("curves that bend", f"of {len(bends_of)}", wins, np.nan, np.nan, f"at least {BENDS_WANTED}", p=p)
    return Finding(title, claim, verdict, f"{shapes[:1].upper()}{shapes[1:]}.", (count, *statistics))


def best_shape(bend: Bends) -> str:
    """Return a curve's likely shapes in words: those of a mean BIC over runs within 2 of the lowest, best first."""
    means = {shape: float(np.mean(bic)) for shape, bic in bend.comparison.bic.items()}
    lowest = min(means.values())
    close = sorted((shape for shape in means if means[shape] <= lowest + POSITIVE_EVIDENCE), key=means.__getitem__)
    return " or ".join(close)


def _bend_statistics(name: str, bend: Bends, seeds: list[int]) -> list[Statistic]:
    """Return a curve's advantage, break point and slopes over seeds, and the weights of the shapes."""
    parts = (
        ("BIC, best smooth shape - two segments", bend.gain, "above 2"),
        ("break point (epoch)", bend.break_point, ""),
        ("slope before the break (per epoch)", bend.slope_before, ""),
        ("slope after the break (per epoch)", bend.slope_after, ""),
    )
    rows = []
    edge = tuple(seed for seed, there in zip(seeds, bend.at_edge, strict=True) if there)
    for label, values, wanted in parts:
        p = float(bend.p) if wanted else np.nan
        series = pd.Series(values, index=seeds)
        row = _statistic(f"{name}: {label}", "mean of the groups", over_runs(values), wanted, p, series)
        rows.append(replace(row, edge_seeds=edge, note=f"{EDGE}: seed {', '.join(map(str, edge))}" if edge else ""))
    for shape, weights in bend.comparison.weights().items():
        series = pd.Series(weights, index=seeds)
        rows.append(_statistic(f"{name}: BIC weight", str(shape), over_runs(weights), "", np.nan, series))
    return rows


# --- 3. deep to shallow -----------------------------------------------------------------------------------------------


def decide_deep_to_shallow(
    table: pd.DataFrame, shift: Finding | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> Finding:
    """Do circuits grow in deep layers first and in shallow layers later?

    Two ways to say it, both directional, both with seeds as the unit. The centroid of the circuits' edges over layers
    goes deeper up to the split and shallower after it (t tests of both slopes; the larger p counts). And the deeper a
    layer, the earlier it has made half of its change (mean rank correlation over seeds below 0, by t test and by
    permuting the layers within each run; the larger p counts). The split is the mean break of circuit entropy where
    there is a phase shift, otherwise a third of training.

    Rule: the finding holds if at least one of the two lies on the claim's side after Holm over both, and the other not
    against it; it does not hold if one lies against the claim and none with it; otherwise it is undecided.
    """
    title, claim = "Deep to shallow", "Circuits change in deep layers first, later in shallow layers."
    x, y, seeds = study_curves(table, "centroid")
    if len(x) < curves.FEWEST_POINTS:
        reason = f"It needs circuits at {curves.FEWEST_POINTS} checkpoints or more that every seed has."
        return Finding(title, claim, Verdict.UNDECIDED, reason, ())
    split = _split(shift, x)
    before, after = slopes(x, y, split)
    halves = half_change_epochs(table)
    depth = judge_depth(before, after, halves, seed, resamples)
    slope = "slope of the centroid (layers per epoch)"
    parts = [
        (slope, f"up to epoch {split:.3g}", depth.before, "above 0", 0),
        (slope, f"from epoch {split:.3g}", depth.after, "below 0", 0),
    ]
    numbers = [before, after]
    if depth.order is not None:
        name = "rank correlation of half-change epoch with depth"
        parts.append((name, f"{halves.shape[1]} layers", depth.order, "below 0", 1))
        numbers.append(depth_correlation(halves))
    statistics = [
        _statistic(name, where, effect, wanted, depth.p[test], pd.Series(values, index=seeds), depth.adjusted[test])
        for (name, where, effect, wanted, test), values in zip(parts, numbers, strict=True)
    ]
    reason = "; ".join(str(s) for s in statistics)
    if depth.order is None:
        reason += f"; fewer than {FEWEST_LAYERS} layers of a seed change more than their noise, so there is no order"
    verdict = of_seeds(depth.verdict, len(seeds))
    return Finding(title, claim, verdict, f"{reason}.", tuple(statistics))


def _split(shift: Finding | None, x: Floats) -> float:
    """Return the epoch before and after which slopes are taken, with at least three checkpoints on either side."""
    split = x[0] + (x[-1] - x[0]) / 3
    if shift is not None and shift.verdict == Verdict.HOLDS:
        wanted = f"{CURVES['entropy']}: break point (epoch)"
        split = next(s.estimate for s in shift.statistics if s.name == wanted)
    return float(np.clip(split, x[2], x[-3]))


def half_change_epochs(table: pd.DataFrame) -> Floats:
    """Return when each layer's edge activation ratio has made half of its change, [r, l - 1].

    Of the mean of the taught groups, smoothed over 3 checkpoints; NaN for a layer whose ratio ends within the noise of
    where it began. The last layer is left out: its few edges mostly lead to `logits`.
    """
    layers = sorted((c for c in table if c.startswith("layer_")), key=lambda c: int(c.removeprefix("layer_")))[:-1]
    taught = table[table["people"] == People.TAUGHT]
    rows = []
    for _, of_seed in taught.groupby("seed", sort=True):
        means = of_seed.groupby("epoch")[layers].mean()
        rows.append(curves.half_change_above_noise(means.index.to_numpy(dtype=float), means.to_numpy(dtype=float).T))
    return np.array(rows).reshape(-1, len(layers))


# --- shared -----------------------------------------------------------------------------------------------------------


def corrected(statistics: list[Statistic]) -> list[Statistic]:
    """Return the same statistics with p values adjusted by Holm over those that have one."""
    tested = [s for s in statistics if np.isfinite(s.p)]
    adjusted = iter(holm([s.p for s in tested]))
    return [replace(s, adjusted=float(next(adjusted))) if np.isfinite(s.p) else s for s in statistics]


def _statistic(
    name: str, where: str, effect: Estimate, claim: str, p: float, by_seed: pd.Series, adjusted: float = float("nan")
) -> Statistic:
    seeds = {int(seed): float(value) for seed, value in by_seed.items()}
    return Statistic(name, where, float(effect.mean), float(effect.low), float(effect.high), claim,
                     p=p, adjusted=adjusted, by_seed=seeds)  # fmt: skip
