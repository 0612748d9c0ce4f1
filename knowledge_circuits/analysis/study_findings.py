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

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knowledge_circuits.analysis import curves
from knowledge_circuits.analysis.circuit_settings import GROUP_COLUMNS
from knowledge_circuits.analysis.findings import (
    BEND_GAIN,
    DEEP_TO_SHALLOW,
    EDGE,
    FEWEST_LAYERS,
    NEGLIGIBLE,
    PHASE_SHIFT,
    Finding,
    Statistic,
    Verdict,
)
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
_MEASURES = {"accuracy": "first-token accuracy", "hit10": "Hit@10"}


def judge_study(study: Study) -> tuple[Finding, ...]:
    """Return the findings of a study, each with its verdict."""
    if study.kind == StudyKind.RELEVANCE:
        return (decide_relevance(study.table),)
    shift = decide_phase_shift(study.table)
    return shift, decide_deep_to_shallow(study.table, shift)


# --- rules on arrays, for studies [...] of r runs ---------------------------------------------------------------------


@dataclass(frozen=True)
class Bends(curves.TwoSegmentFit):
    """What curves of each run say of a bend: two segments, and how they compare with smooth shapes; fields [..., r]."""

    comparison: curves.ShapeComparison

    @cached_property
    def gain(self) -> Estimate:
        """BIC of the best smooth shape minus that of two segments, over runs [...]."""
        return over_runs(self.comparison.bend_gain)

    @property
    def wins(self) -> NDArray[np.bool_]:
        """Whether the bend wins over all smooth shapes, by runs [...]: a mean BIC advantage of positive evidence whose
        interval lies above 0, and a change that slows down."""
        slows = np.abs(self.slope_after).mean(axis=-1) < np.abs(self.slope_before).mean(axis=-1)
        return (self.gain.mean > POSITIVE_EVIDENCE) & (self.gain.low > 0) & slows

    @property
    def loses(self) -> NDArray[np.bool_]:
        """Whether a smooth shape wins, by the same rule, [...]. Not where a run's break lies at the edge of the search:
        a bend before the edge leaves a smooth curve behind it."""
        smooth = (self.gain.mean < -POSITIVE_EVIDENCE) & (self.gain.high < 0)
        return smooth & ~self.at_edge.any(axis=-1)

    @property
    def one_sided_p(self) -> Floats:
        """One-sided p of an advantage of the bend, [...]."""
        return np.where(self.gain.mean > 0, self.gain.p / 2, 1 - self.gain.p / 2)


def bends(x: Floats, y: Floats) -> Bends:
    """Compare shapes of curves y [..., r, n] over epochs x [n]."""
    return Bends(**vars(curves.two_segment_fit(x, y)), comparison=curves.compare_shapes(x, y))


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
    """Return whether at least two of the curves (two or more) bend, and at the same epoch, [...]."""
    together = [
        first.wins & second.wins & same_epoch(first, second, span) for first, second in combinations(bends_of_curves, 2)
    ]
    return np.any(together, axis=0)


def turn(x: Floats, y: Floats, split: float) -> tuple[Floats, Floats, Floats]:
    """Return how curves y [..., n] go up to an epoch and from it on, [...] each.

    Returns:
        The least-squares slope up to the split and from it on, and the change from the first checkpoint to the one
        nearest to the split.
    """

    def slope(part: NDArray[np.bool_]) -> Floats:
        time = x[part] - x[part].mean()
        return (y[..., part] * time).sum(axis=-1) / (time**2).sum()

    return slope(x <= split), slope(x >= split), y[..., np.abs(x - split).argmin()] - y[..., 0]


def verdict_of_sides(sides: Collection[int]) -> Verdict:
    """Return the verdict of deciding numbers on the claim's side (1), on the other (-1) or on neither (0)."""
    if 1 in sides and -1 not in sides:
        return Verdict.HOLDS
    return Verdict.FAILS if -1 in sides and 1 not in sides else Verdict.UNDECIDED


@dataclass(frozen=True)
class Depth:
    """The deciding tests of deep to shallow in one study.

    Attributes:
        before: the centroid's slope up to the split, over runs.
        order: the mean rank correlation of half-change epoch with depth; None where a run has too few layers.
        p: of the centroid's turn (the largest of `turn`'s three) and of the order (the larger of t test and
            permutation).
        adjusted: by Holm over both.
    """

    before: Estimate
    order: Estimate | None
    p: tuple[float, float]
    adjusted: tuple[float, float]

    @property
    def verdict(self) -> Verdict:
        """By the rule of `decide_deep_to_shallow`, whatever the number of seeds."""
        centroid = int(np.sign(self.before.mean)) if self.adjusted[0] < LEVEL else 0
        order = -int(np.sign(self.order.mean)) if self.order is not None and self.adjusted[1] < LEVEL else 0
        return verdict_of_sides({centroid, order})


def judge_depth(
    centroid: tuple[Floats, Floats, Floats], half_changes: Floats, seed: int = 0, resamples: int = RESAMPLES
) -> Depth:
    """Test the centroid's turn and the layers' order.

    Args:
        centroid: `turn` of the centroid over layers, [r] each.
        half_changes: [r, l] half-change epochs, NaN where a layer does not change.
    """
    before, after, gained = map(over_runs, centroid)
    turns = np.sign(before.mean) == np.sign(gained.mean) == -np.sign(after.mean) != 0
    p_turn, p_order, order = float(max(before.p, after.p, gained.p)) if turns else 1.0, 1.0, None
    correlations = depth_correlation(half_changes)
    if (np.isfinite(half_changes).sum(axis=1) >= FEWEST_LAYERS).all() and np.isfinite(correlations).all():
        order = over_runs(correlations)
        p_order = max(float(order.p), permuted_layers_p(half_changes, seed, resamples))
    adjusted = holm([p_turn, p_order])
    return Depth(before, order, (p_turn, p_order), (float(adjusted[0]), float(adjusted[1])))


# --- 1. relevance -----------------------------------------------------------------------------------------------------


def decide_relevance(table: pd.DataFrame) -> Finding:
    """Are new facts learned better about people whom the model knew before?

    Rule: the manipulation check first. Then the finding holds if, for first-token accuracy or Hit@10 and after Holm
    over the two, the advantage is above 0 by the t test over seeds and by the permutation test that swaps the labels
    within pairs, and neither is below 0; it does not hold if one is below 0 and none above, or if both intervals lie
    within 0.01 of 0. The bands, the other doses, the main dose minus dose 0 and the trend over doses are reported, with
    a Holm correction of their own.
    """
    title, claim = "Relevance", "New facts are learned better about people who were known before (K_rel)."
    main = main_dose(table)
    check = manipulation_check(table, main)
    differences = person_differences(table)
    at_main = differences[differences["dose"] == main]
    if at_main.empty:
        return Finding(title, claim, Verdict.ONE_RUN, "No seed has both of its mirrored runs yet.", (check,))
    deciding = corrected([_advantage(at_main, measure) for measure in _MEASURES])
    secondary = [
        _advantage(at_main[at_main["band"] == band], measure, f"{band} band")
        for measure in _MEASURES
        for band in Band
        if (at_main["band"] == band).any()
    ]
    secondary += [
        _advantage(of_dose, measure, f"{dose:g} texts in the past")
        for dose, of_dose in differences[differences["dose"] != main].groupby("dose")
        for measure in _MEASURES
    ]
    for measure in _MEASURES:
        secondary += _dose_statistics(differences, main, measure)
    verdict = of_seeds(advantage_verdict(deciding), at_main["seed"].nunique())
    reason = "Mean level over training, known minus unknown: " + "; ".join(map(str, deciding))
    if check.estimate < STILL_KNOWN:
        verdict = Verdict.NOT_TESTABLE
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


def advantage_verdict(deciding: list[Statistic]) -> Verdict:
    """Return the verdict of relevance from its deciding statistics, once the manipulation check is passed."""
    verdict = verdict_of_sides([int(np.sign(s.estimate)) if s.adjusted < LEVEL else 0 for s in deciding])
    nothing = all(s.low > -NEGLIGIBLE and s.high < NEGLIGIBLE for s in deciding)
    return Verdict.FAILS if verdict is Verdict.UNDECIDED and nothing else verdict


def main_dose(table: pd.DataFrame) -> float:
    """Return the dose above 0 that most runs have (the largest of equals); 0 where there is no other."""
    runs = table[["seed", "mirror", "dose"]].drop_duplicates()
    commonest = runs.loc[runs["dose"] > 0, "dose"].mode()
    return 0.0 if commonest.empty else float(commonest.max())


def manipulation_check(table: pd.DataFrame, dose: float) -> Statistic:
    """Return the lowest first-token accuracy of the past's facts at any checkpoint of any run of a dose."""
    past = table[(table["told"] == Told.PAST) & table["known"].astype(bool) & (table["dose"] == dose)]
    levels = past.groupby(["seed", "mirror", "epoch"])["accuracy"].mean()
    by_seed = {int(seed): float(level) for seed, level in levels.groupby("seed").min().items()}
    lowest = min(by_seed.values(), default=0.0)
    wanted = f"at least {STILL_KNOWN:g} at every checkpoint"
    return Statistic("the past's facts known, lowest checkpoint", "all runs", lowest, claim=wanted, by_seed=by_seed)


def person_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean level over training when known minus when unknown, of each person with both mirrored runs.

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


def _advantage(differences: pd.DataFrame, measure: str, where: str = "all bands") -> Statistic:
    """Return the advantage of known people in one measure: t interval over seeds, p the larger of t and label swaps.

    A seed's effect is the mean over its two halves of people, so that a run's own level cancels.
    """
    effects = differences.groupby(["seed", "half"])[measure].mean().groupby("seed").mean()
    sizes = differences.groupby(["seed", "half"])[measure].transform("size")
    halves = differences.groupby("seed")["half"].transform("nunique")
    weights = (1 / (sizes * halves * len(effects))).to_numpy()
    swapped = label_swap_p(differences[measure].to_numpy(dtype=float), weights)
    p = float(max(over_runs(effects.to_numpy()).p, swapped))
    return _statistic(f"{_MEASURES[measure]}, known - unknown", where, effects, "above 0", p)


def _dose_statistics(differences: pd.DataFrame, main: float, measure: str) -> Iterator[Statistic]:
    """Yield two statistics of the advantage, each over the seeds that have two doses for it.

    The first is the main dose less dose 0, which is what replay alone does not give; the second is the slope over the
    dose.
    """
    means = differences.groupby(["seed", "dose", "half"])[measure].mean().groupby(["seed", "dose"]).mean()
    by_dose = means.unstack("dose")
    if main > 0 and 0 in by_dose:
        contrast, where = (by_dose[main] - by_dose[0]).dropna(), f"{main:g} texts in the past minus 0"
        if len(contrast):
            yield _statistic(f"{_MEASURES[measure]}, known - unknown", where, contrast, "above 0")
    slopes = {
        seed: np.polyfit(of_seed.index.get_level_values("dose").to_numpy(dtype=float), of_seed.to_numpy(), 1)[0]
        for seed, of_seed in means.groupby("seed")
        if len(of_seed) > 1
    }
    if slopes:
        name = f"{_MEASURES[measure]}: advantage per text in the past"
        yield _statistic(name, "all doses", pd.Series(slopes), "above 0")


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
    by_seed = {}
    for seed, of_seed in taught.groupby("seed"):
        wide = of_seed.set_index([*GROUP_COLUMNS, "epoch"])["value"].unstack("epoch")
        wide = wide.loc[:, wide.notna().mean() >= _GROUPS_NEEDED]
        by_seed[int(seed)] = pd.Series(_epoch_means(wide.to_numpy(dtype=float)), index=wide.columns)
    joined = pd.concat(by_seed, axis=1, join="inner").sort_index() if by_seed else pd.DataFrame()
    return joined.index.to_numpy(dtype=float), joined.to_numpy(dtype=float).T, list(by_seed)


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
    smooth shape wins at least two whose breaks do not lie at the edge of the search; otherwise it is undecided. The
    reason says what the curves are instead.
    """
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
        return Finding(*PHASE_SHIFT, Verdict.UNDECIDED, reason, tuple(statistics))
    shapes = "; ".join(f"{CURVES[column]} is {best_shape(bend)}" for column, bend in bends_of.items())
    holds = bool(is_phase_shift(list(bends_of.values()), max(spans)))
    fails = sum(bool(bend.loses) for bend in bends_of.values()) >= BENDS_WANTED
    verdict = Verdict.HOLDS if holds else Verdict.FAILS if fails else Verdict.UNDECIDED
    verdict = of_seeds(verdict, table["seed"].nunique())
    p = float(partial_conjunction([float(bend.one_sided_p) for bend in bends_of.values()], BENDS_WANTED))
    wins = sum(bool(bend.wins) for bend in bends_of.values())
    count = Statistic("curves that bend", f"of {len(bends_of)}", wins, claim=f"at least {BENDS_WANTED}", p=p,
                      note="one-sided p")  # fmt: skip
    return Finding(*PHASE_SHIFT, verdict, f"{shapes[:1].upper()}{shapes[1:]}.", (count, *statistics))


def best_shape(bend: Bends) -> str:
    """Return a curve's likely shapes in words: those of a mean BIC over runs within 2 of the lowest, best first."""
    means = {shape: float(np.mean(bic)) for shape, bic in bend.comparison.bic.items()}
    lowest = min(means.values())
    close = sorted((shape for shape in means if means[shape] <= lowest + POSITIVE_EVIDENCE), key=means.__getitem__)
    return " or ".join(close)


def _bend_statistics(name: str, bend: Bends, seeds: list[int]) -> list[Statistic]:
    """Return a curve's advantage, break point and slopes over seeds, and the weights of the shapes, which have no
    interval: a t interval would leave 0 to 1."""
    parts = (
        (BEND_GAIN, bend.comparison.bend_gain, "above 2"),
        ("break point (epoch)", bend.break_point, ""),
        ("slope before the break (per epoch)", bend.slope_before, ""),
        ("slope after the break (per epoch)", bend.slope_after, ""),
    )
    edge = tuple(seed for seed, there in zip(seeds, bend.at_edge, strict=True) if there)
    note = f"{EDGE}: seed {', '.join(map(str, edge))}" if edge else ""
    rows = [
        _statistic(f"{name}: {label}", "mean of the groups", pd.Series(values, index=seeds), claim,
                   edge_seeds=edge, note=note)
        for label, values, claim in parts
    ]  # fmt: skip
    for shape, weights in bend.comparison.weights().items():
        weight = _statistic(f"{name}: BIC weight", str(shape), pd.Series(weights, index=seeds))
        rows.append(replace(weight, low=np.nan, high=np.nan))
    return rows


# --- 3. deep to shallow -----------------------------------------------------------------------------------------------


def decide_deep_to_shallow(table: pd.DataFrame, shift: Finding | None = None) -> Finding:
    """Do circuits grow in deep layers first and in shallow layers later?

    Two ways to say it, both directional, both with seeds as the unit. The centroid of the circuits' edges over layers
    goes deeper up to the split, ends there deeper than it began, and goes shallower after it (t tests of both slopes
    and of the change; the largest p counts). And the deeper a layer, the earlier it has made half of its change (mean
    rank correlation over seeds below 0, by t test and by permuting the layers within each run; the larger p counts).
    The split is the mean break of circuit entropy where there is a phase shift, otherwise a third of training.

    Rule: the finding holds if at least one of the two lies on the claim's side after Holm over both, and the other not
    against it; it does not hold if one lies against the claim and none with it; otherwise it is undecided.
    """
    x, y, seeds = study_curves(table, "centroid")
    if len(x) < curves.FEWEST_POINTS:
        reason = f"It needs circuits at {curves.FEWEST_POINTS} checkpoints or more that every seed has."
        return Finding(*DEEP_TO_SHALLOW, Verdict.UNDECIDED, reason, ())
    split = _split(shift, x)
    before, after, gained = centroid = turn(x, y, split)
    halves = half_change_epochs(table)
    depth = judge_depth(centroid, halves)
    slope = "slope of the centroid (layers per epoch)"
    parts = [
        (slope, f"up to epoch {split:.3g}", before, "above 0", 0),
        ("change of the centroid (layers)", f"from the first checkpoint to epoch {split:.3g}", gained, "above 0", 0),
        (slope, f"from epoch {split:.3g}", after, "below 0", 0),
    ]
    if depth.order is not None:
        name = "rank correlation of half-change epoch with depth"
        parts.append((name, f"{halves.shape[1]} layers", depth_correlation(halves), "below 0", 1))
    statistics = [
        _statistic(name, where, pd.Series(values, index=seeds), claim, depth.p[test], adjusted=depth.adjusted[test],
                   note="" if test else "p of all three")
        for name, where, values, claim, test in parts
    ]  # fmt: skip
    turns = statistics[:3]  # three numbers, one test
    reason = "; ".join(f"{s.name}, {s.where}: {s.interval}" for s in turns) + f"; all three together{turns[0].tested}"
    reason += "".join(f"; {s}" for s in statistics[3:])
    if depth.order is None:
        reason += f"; fewer than {FEWEST_LAYERS} layers of a seed change more than they scatter, so there is no order"
    verdict = of_seeds(depth.verdict, len(seeds))
    return Finding(*DEEP_TO_SHALLOW, verdict, f"{reason}.", tuple(statistics))


def _split(shift: Finding | None, x: Floats) -> float:
    """Return the epoch before and after which slopes are taken, with at least three checkpoints on either side."""
    split = x[0] + (x[-1] - x[0]) / 3
    if shift is not None and shift.verdict == Verdict.HOLDS:
        wanted = f"{CURVES['entropy']}: break point (epoch)"
        split = next(s.estimate for s in shift.statistics if s.name == wanted)
    return float(np.clip(split, x[2], x[-3]))


def half_change_epochs(table: pd.DataFrame) -> Floats:
    """Return when each layer's edge activation ratio has made half of its change, [r, l - 1].

    Of the mean of the taught groups, smoothed over 3 checkpoints; NaN for a layer whose ratio ends within
    its scatter of where it began. The last layer is left out: its few edges mostly lead to `logits`.
    """
    layers = sorted((c for c in table if c.startswith("layer_")), key=lambda c: int(c.removeprefix("layer_")))[:-1]
    taught = table[table["people"] == People.TAUGHT]
    rows = []
    for _, of_seed in taught.groupby("seed", sort=True):
        means = of_seed.groupby("epoch")[layers].mean()
        rows.append(curves.half_change_above_scatter(means.index.to_numpy(dtype=float), means.to_numpy(dtype=float).T))
    return np.array(rows).reshape(-1, len(layers))


# --- shared -----------------------------------------------------------------------------------------------------------


def corrected(statistics: list[Statistic]) -> list[Statistic]:
    """Return the same statistics with p values adjusted by Holm over those that have one."""
    adjusted = iter(holm([s.p for s in statistics if np.isfinite(s.p)]))
    return [replace(s, adjusted=float(next(adjusted))) if np.isfinite(s.p) else s for s in statistics]


def _statistic(
    name: str, where: str, by_seed: pd.Series, claim: str = "", p: float | None = None, **others: Any
) -> Statistic:
    """Return the mean of the seeds' numbers with its t interval; a claim has the t test's p unless one is given."""
    effect, seeds = over_runs(by_seed.to_numpy()), {int(seed): float(value) for seed, value in by_seed.items()}
    if p is None:
        p = float(effect.p) if claim else np.nan
    ends = float(effect.low), float(effect.high)
    return Statistic(name, where, float(effect.mean), *ends, claim, p, by_seed=seeds, **others)
