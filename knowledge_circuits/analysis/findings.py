"""What one run shows of the paper's three findings. One run cannot decide them: `study_findings` judges several.

    relevance        K_rel minus K_compl: difference of the mean level over training (area under the curve / epochs) of
                     Hit@10 and of query accuracy, by band; bootstrap over the people of each group
    phase shift      circuit entropy, and edge Jaccard with the last circuit: two segments against smooth curves by BIC,
                     break point and ratio of the slopes; bootstrap over the groups' curves
    deep to shallow  rank correlation (Spearman) of a layer's depth with the epoch at which its edge activation ratio
                     has made half of its change; bootstrap over the groups' curves

These intervals tell how exactly the run's own numbers are known. They say nothing of another seed, and of the last two
even less: groups of one run share its weights. Intervals are percentiles of seeded resamples: the same files and seed
give the same page. (Ou et al. 2025, section 4.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knowledge_circuits.analysis import curves
from knowledge_circuits.analysis.circuit_tables import own_circuit_hits
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.analysis.statistics import depth_correlation, permuted_layers_p
from knowledge_circuits.study import Band, KnowledgeType

Floats = NDArray[np.float64]

RESAMPLES = 2000
#: A difference of mean levels over training smaller than this is taken as none.
NEGLIGIBLE = 0.01
#: What is said of a two-segment fit whose break need not be where the curve bends (`TwoSegmentFit.at_edge`).
EDGE = "break at the edge of the search"
BEND_GAIN = "BIC, best smooth shape - two segments"
#: Fewer layers that change at all do not make an order.
FEWEST_LAYERS = 4
#: Title and claim of findings, of one run and of a study.
PHASE_SHIFT = "Phase shift", "Circuits form fast, then are optimized slowly, with a bend between the two phases."
DEEP_TO_SHALLOW = "Deep to shallow", "Circuits change in deep layers first, later in shallow layers."
NO_BEND = f"A bend needs {curves.FEWEST_POINTS} checkpoints or more, and groups with circuits at all of them."
NO_ORDER = "An order needs 3 checkpoints or more, and groups with circuits at all of them."


class Verdict(StrEnum):
    """What a study says about a finding; one run says none of the first three."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    NOT_TESTABLE = "cannot be tested"
    ONE_RUN = "one run cannot decide"
    FEW_SEEDS = "fewer than three seeds cannot decide"
    HOLDS_HERE = "holds for this seed"
    FAILS_HERE = "does not hold for this seed"


@dataclass(frozen=True)
class Statistic:
    """A number with its 95% interval and, in a study, its test.

    Attributes:
        name: what is measured.
        where: the part of the run or study it is about ("high", "all bands", "mean of the groups").
        estimate, low, high: NaN where it cannot be told.
        claim: what the finding says of it, in words; "" for one that is only reported.
        p, adjusted: two-sided p, and corrected for the number of tests; NaN without a test.
        by_seed: in a study, each seed's number.
        edge_seeds: in a study, the seeds whose break of two segments lies at the edge of the search.
        note: what one must know to read the number; "" for nothing.
    """

    name: str
    where: str
    estimate: float
    low: float = float("nan")
    high: float = float("nan")
    claim: str = ""
    p: float = float("nan")
    adjusted: float = float("nan")
    by_seed: Mapping[int, float] = field(default_factory=dict)
    edge_seeds: tuple[int, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.where}: {self.interval}{self.tested}"

    @property
    def place(self) -> str:
        """The part of the run or study, with the note."""
        return "; ".join(filter(None, (self.where, self.note)))

    @property
    def interval(self) -> str:
        """The numbers as text: estimate [low, high]."""
        if not np.isfinite(self.estimate):
            return "not measurable"
        if not np.isfinite([self.low, self.high]).all():
            return f"{self.estimate:.3g}, no interval"
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"

    @property
    def line(self) -> float:
        """The number above or below which the claim puts the estimate; NaN without one."""
        side, _, line = self.claim.partition(" ")
        return float(line) if side in ("above", "below") else np.nan

    @property
    def tested(self) -> str:
        """The test as text, "" without one."""
        if not np.isfinite(self.p):
            return ""
        corrected = f", corrected {self.adjusted:.2g}" if np.isfinite(self.adjusted) else ""
        return f" (p = {self.p:.2g}{corrected})"


@dataclass(frozen=True)
class Finding:
    """One of the paper's findings, as a run shows it or a study judges it.

    Attributes:
        title, claim: the finding in a word and in a sentence.
        verdict: by the rule that the function's docstring gives.
        reason: one sentence with the deciding numbers.
        statistics: everything that was measured.
    """

    title: str
    claim: str
    verdict: Verdict
    reason: str
    statistics: tuple[Statistic, ...]

    @property
    def tests(self) -> int:
        """How many of the statistics were tested."""
        return sum(bool(np.isfinite(s.p)) for s in self.statistics)

    def table(self) -> pd.DataFrame:
        """Return the statistics as a table for a page or a notebook."""
        columns = ["statistic", "where", "estimate", "low", "high", "the finding says", "p", "corrected p"]
        rows = [(s.name, s.place, s.estimate, s.low, s.high, s.claim, s.p, s.adjusted) for s in self.statistics]
        return pd.DataFrame(rows, columns=columns)


def describe(
    predictions: pd.DataFrame,
    circuit_predictions: pd.DataFrame,
    circuits: Circuits | None,
    past_predictions: pd.DataFrame | None = None,
) -> tuple[Finding, Finding, Finding]:
    """Return all three findings as one run shows them; one whose tables are empty says so."""
    of_people = relevance(predictions, circuit_predictions, past_predictions)
    return of_people, phase_shift(circuits), deep_to_shallow(circuits)


# --- 1. relevance -----------------------------------------------------------------------------------------------------


def relevance(
    predictions: pd.DataFrame,
    circuit_predictions: pd.DataFrame,
    past_predictions: pd.DataFrame | None = None,
    seed: int = 0,
) -> Finding:
    """Return how much better knowledge about people whom the model knew is learned than about people it did not know.

    Each person has one number, the mean level over training of the share of their facts that are answered (or hit);
    the statistic is the mean over K_rel people minus the mean over K_compl people of a band, and over all bands the
    mean of the bands' differences. People are resampled within their type and band. Between types, names, facts and
    frequencies differ too; only mirrored runs (`study_findings.decide_relevance`) separate them from prior knowledge.

    Args:
        predictions: the table of that name, for query accuracy.
        circuit_predictions: the table of that name, for Hit@10 of each checkpoint's own circuits.
        past_predictions: the table of that name; whether K_rel people are known at all checkpoints.
    """
    title = "Relevance"
    claim = "Relevant new knowledge (K_rel) is acquired better than completely new knowledge (K_compl)."
    hits = own_circuit_hits(circuit_predictions)
    statistics: list[Statistic] = []
    for name, table, column in (("query accuracy", predictions, "correct"), ("Hit@10", hits, "hit")):
        statistics += _relevance_of(name, table, column, np.random.default_rng(seed))
    pooled = [s for s in statistics if s.where == "all bands"]
    if not pooled:
        reason = "The run has neither predictions nor circuits' hits over two checkpoints."
        return Finding(title, claim, Verdict.ONE_RUN, reason, ())
    measured = "; ".join(f"{s.name} {s.interval}" for s in pooled)
    reason = f"Mean over training, K_rel minus K_compl, all bands: {measured}"
    said = "Whether the model still knows the past of K_rel people was not asked."
    if past_predictions is not None and len(past_predictions):
        least = float(past_predictions.groupby("step")["first_token_correct"].mean().min())
        said = f"First-token accuracy of the past facts of K_rel people is {least:.2f} or more at every epoch."
        statistics.append(Statistic("past facts known (first token), least of all epochs", "K_rel", least))
    return Finding(title, claim, Verdict.ONE_RUN, f"{reason}. {said}", tuple(statistics))


def _relevance_of(name: str, table: pd.DataFrame, column: str, generator: np.random.Generator) -> list[Statistic]:
    """Return the difference in each band that has both types, and their mean."""
    parts: dict[str, tuple[float, Floats]] = {}
    for band in Band:
        known, unknown = (_levels(table, column, kind, band) for kind in (KnowledgeType.REVISED, KnowledgeType.NEW))
        if len(known) and len(unknown):
            samples = _resampled_means(known, generator) - _resampled_means(unknown, generator)
            parts[str(band)] = float(known.mean() - unknown.mean()), samples
    if parts:
        differences, resampled = zip(*parts.values(), strict=True)
        parts["all bands"] = float(np.mean(differences)), np.mean(resampled, axis=0)
    return [
        Statistic(f"{name}, K_rel - K_compl", where, difference, *_interval(samples), "above 0")
        for where, (difference, samples) in parts.items()
    ]


def _levels(table: pd.DataFrame, column: str, knowledge: KnowledgeType, band: Band) -> Floats:
    """Return each person's mean level over training, [people]; empty for fewer than two checkpoints."""
    rows = table[(table["type"] == knowledge) & (table["band"] == band)]
    if rows["epoch"].nunique() < 2:
        return np.empty(0)
    wide = rows.pivot_table(index="full_name", columns="epoch", values=column, aggfunc="mean").dropna()
    return curves.area_under_curve(wide.columns.to_numpy(dtype=float), wide.to_numpy(dtype=float))


def _resampled_means(values: Floats, generator: np.random.Generator) -> Floats:
    """Means of resamples with replacement, [RESAMPLES]; NaN for one person, whose resamples are all alike."""
    if len(values) < 2:
        return np.full(RESAMPLES, np.nan)
    return values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)


# --- 2. phase shift ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhaseShift:
    """The two-segment fit to the mean curve of the groups, and to those of resampled groups.

    Attributes:
        epochs, mean: the fitted points, [n].
        fit: of the mean curve.
        resampled: the mean curves of resampled groups, [r, n]; none of one group.
        resampled_fit: of these.
        break_low, break_high: 95% interval of the break point (epoch); NaN for one group.
        comparison: of the shapes of the mean curve; None with too few checkpoints for one.
        smooth: the best smooth shape of the mean curve at the epochs, [n]; None without a comparison.
    """

    epochs: Floats
    mean: Floats
    fit: curves.TwoSegmentFit
    resampled: Floats
    resampled_fit: curves.TwoSegmentFit
    break_low: float
    break_high: float
    comparison: curves.ShapeComparison | None
    smooth: Floats | None


def fit_phase_shift(
    circuits: Circuits, column: str = "entropy", seed: int = 0, resamples: int = RESAMPLES
) -> PhaseShift | None:
    """Return the break of a topology curve, averaged over the groups that have every checkpoint.

    None without such a group, and with fewer checkpoints than the fit needs. A break point is where two segments fit
    best. Whether there is a bend at all, `comparison` tells.

    Args:
        column: "entropy", or "edge_jaccard" (whose last point, 1 by definition, is left out).
    """
    x, y = _group_curves(circuits, column)
    if len(x) < curves.FEWEST_POINTS or len(y) == 0:
        return None
    mean, resampled = y.mean(axis=0), _resampled_groups(len(y), seed, resamples) @ y
    fit, resampled_fit = curves.two_segment_fit(x, mean), curves.two_segment_fit(x, resampled)
    comparison = curves.compare_shapes(x, mean) if len(x) >= curves.FEWEST_FOR_SHAPES else None
    smooth = curves.fitted(x, mean, comparison.best_smooth) if comparison is not None else None
    return PhaseShift(x, mean, fit, resampled, resampled_fit, *_interval(resampled_fit.break_point), comparison, smooth)


def phase_shift(circuits: Circuits | None, resamples: int = RESAMPLES) -> Finding:
    """Return whether the curves of the circuits' evolution bend, or are as well described by a smooth curve.

    For the mean curve of the groups: the BIC of each shape (`curves.compare_shapes`), and the break point and slopes of
    two segments with intervals over resampled groups. Two segments always have a break point; it is one only where they
    beat every smooth shape, and where it does not lie at the edge of the search.
    """
    if circuits is None:
        return Finding(*PHASE_SHIFT, Verdict.ONE_RUN, NO_BEND, ())
    names = {"entropy": "circuit entropy", "edge_jaccard": "edge Jaccard with the last"}
    statistics, shapes = [], []
    for column, name in names.items():
        shift = fit_phase_shift(circuits, column, resamples=resamples)
        if shift is not None:
            measured = _shift_statistics(name, shift)
            statistics += measured
            shapes += [f"{name}: {_best(shift.comparison, measured)}"] if shift.comparison else []
    if not statistics:
        return Finding(*PHASE_SHIFT, Verdict.ONE_RUN, NO_BEND, ())
    reason = "; ".join(shapes) or f"A comparison of shapes needs {curves.FEWEST_FOR_SHAPES} checkpoints"
    return Finding(*PHASE_SHIFT, Verdict.ONE_RUN, f"{reason[:1].upper()}{reason[1:]}.", tuple(statistics))


def _best(comparison: curves.ShapeComparison, measured: Sequence[Statistic]) -> str:
    """Return the shape of lowest BIC, and what two segments gain over the best smooth curve, with its interval."""
    shape = min(comparison.bic, key=lambda name: float(comparison.bic[name]))
    gain = next(statistic for statistic in measured if statistic.name.endswith(BEND_GAIN))
    return f"the BIC is lowest for the shape {shape}; two segments gain {gain.interval} over the best smooth curve"


def _shift_statistics(name: str, shift: PhaseShift) -> list[Statistic]:
    """Return the bend's advantage over smooth shapes, its break point and slopes."""
    fit, resampled, where = shift.fit, shift.resampled_fit, "mean of the groups"

    def statistic(label: str, estimate: Floats, samples: Floats, claim: str = "") -> Statistic:
        return Statistic(f"{name}: {label}", where, float(estimate), *_interval(samples), claim)

    statistics = []
    if shift.comparison is not None:
        bic = shift.comparison.bic
        for shape in (curves.Shape.BEND, curves.Shape.DECAY):
            above = float(bic[shape] - min(float(value) for value in bic.values()))
            statistics.append(Statistic(f"{name}: BIC of {shape}, above the best shape's", where, above))
        gains = curves.compare_shapes(shift.epochs, shift.resampled[:500]).bend_gain  # all of them take long
        statistics.append(statistic(BEND_GAIN, shift.comparison.bend_gain, gains, "above 2"))
    bend = statistic("break point (epoch)", fit.break_point, resampled.break_point)
    return [
        *statistics,
        replace(bend, note=EDGE.removeprefix("break ") if fit.at_edge else ""),
        statistic("slope before the break (per epoch)", fit.slope_before, resampled.slope_before),
        statistic("slope after / before", fit.slope_ratio, resampled.slope_ratio),
    ]


def _group_curves(circuits: Circuits, column: str) -> tuple[Floats, Floats]:
    """Epochs [n] and the groups' curves [groups, n] that have a number at every checkpoint."""
    wide = circuits.table.pivot_table(index=circuits.group_columns, columns="epoch", values=column).dropna()
    if column.endswith("jaccard"):
        wide = wide.iloc[:, :-1]
    return wide.columns.to_numpy(dtype=float), wide.to_numpy(dtype=float)


def _resampled_groups(count: int, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Weights [r, groups] of each resample's mean: how often each group was drawn, over the draws; none of one group,
    whose resamples are all alike."""
    size = resamples if count > 1 else 0
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=size) / count


# --- 3. deep to shallow -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerOrder:
    """When each layer's edge activation ratio has made half of its change.

    Attributes:
        layers: the layers looked at (all but the last, whose few edges mostly lead to `logits`), [l].
        epochs: half-change epoch of the mean curve of the groups, [l]; NaN where the layer changes less than it
            scatters.
        low, high: 95% intervals of the epochs over resampled groups, [l]; NaN for one group.
        correlation: Spearman's of epoch with depth; below 0 where deep layers change first.
        samples: the correlation in each resample; none of one group.
    """

    layers: NDArray[np.int64]
    epochs: Floats
    low: Floats
    high: Floats
    correlation: float
    samples: Floats


def layer_order(circuits: Circuits) -> LayerOrder | None:
    """Return half-change epochs by layer (`curves.half_change_above_scatter`).

    None with fewer than 3 checkpoints or without a group that has all of them.
    """
    x, y = _activation_curves(circuits)
    if len(x) < 3 or len(y) == 0:
        return None
    epochs = curves.half_change_above_scatter(x, y.mean(axis=0))
    resampled = curves.half_change_above_scatter(x, np.tensordot(_resampled_groups(len(y)), y, axes=1))
    low, high = np.full((2, len(epochs)), np.nan)
    for layer in np.flatnonzero(np.isfinite(epochs)):
        low[layer], high[layer] = _interval(resampled[:, layer])
    correlation = float(depth_correlation(epochs))
    return LayerOrder(np.arange(len(epochs)), epochs, low, high, correlation, depth_correlation(resampled))


def deep_to_shallow(circuits: Circuits | None) -> Finding:
    """Return whether deep layers change first: Spearman's correlation of half-change epoch with depth, below 0.

    Its p permutes the layers. Groups are resampled for the interval; they share the run's weights, so it is narrower
    than the spread over seeds.
    """
    order = layer_order(circuits) if circuits is not None else None
    if order is None:
        return Finding(*DEEP_TO_SHALLOW, Verdict.ONE_RUN, NO_ORDER, ())
    moved = int(np.isfinite(order.epochs).sum())
    usable = order.samples[np.isfinite(order.samples)]
    enough = moved >= FEWEST_LAYERS
    low, high = _interval(usable) if enough and len(usable) > len(order.samples) / 2 else (np.nan, np.nan)
    p = permuted_layers_p(order.epochs[None]) if enough else np.nan
    name = "rank correlation of half-change epoch with depth"
    statistics = [Statistic(name, f"{moved} layer{'s' * (moved != 1)}", order.correlation, low, high, "below 0", p=p)]
    for layer, epoch, early, late in zip(order.layers, order.epochs, order.low, order.high, strict=True):
        statistics.append(Statistic("half-change epoch", f"layer {layer}", float(epoch), early, late))
    reason = f"Over {moved} layers the {name} is {statistics[0].interval}{statistics[0].tested}."
    if not enough:
        reason = f"Layers that change more than they scatter: {moved}; an order needs {FEWEST_LAYERS}."
    return Finding(*DEEP_TO_SHALLOW, Verdict.ONE_RUN, reason, tuple(statistics))


def _activation_curves(circuits: Circuits) -> tuple[Floats, Floats]:
    """Epochs [n] and edge activation ratios [groups, l - 1, n], of the groups that have every checkpoint."""
    epochs, layers = np.array(circuits.epochs), max(circuits.layout.n_layers - 1, 1)
    ratios = [
        circuits.activation[rows.sort_values("step").index, :layers].T
        for _, rows in circuits.table.groupby(circuits.group_columns)
        if len(rows) == len(epochs)
    ]
    return epochs, np.array(ratios).reshape(-1, layers, len(epochs))


def _interval(samples: Floats | Sequence[float]) -> tuple[float, float]:
    """Return the middle 95% of the finite samples; NaN without any."""
    finite = np.asarray(samples)[np.isfinite(samples)]
    if len(finite) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
