"""Do the paper's three findings hold in a run? A statistic, its 95% bootstrap interval, and a verdict for each.

    relevance        K_rel is learned better than K_compl: difference of the mean level over training (area under the
                     curve / epochs) of Hit@10 and of query accuracy, by band; bootstrap over the people of each group
    phase shift      circuit entropy falls fast, then slowly: two segments against one line by BIC and the ratio of the
                     slopes; the same for edge Jaccard with the last circuit; bootstrap over the groups' curves
    deep to shallow  deep layers change first: rank correlation (Spearman) of a layer's depth with the epoch at which
                     its edge activation ratio has made half of its change; bootstrap over the groups' curves

Each statistic has a verdict of its own from its interval: "holds" where all of it lies on the claim's side,
"does not hold" where all of it lies on the other side or, where a size that does not matter can be named
(`NEGLIGIBLE`), within that size of nothing; "undecided" otherwise. How statistics combine is written at each finding.
Intervals are percentiles of seeded resamples: the same files and seed give the same page. (Ou et al. 2025, section 4.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from knowledge_circuits.analysis import curves
from knowledge_circuits.analysis.tables import GROUP_COLUMNS, Circuits, own_circuit_hits
from knowledge_circuits.study import Band, KnowledgeType

Floats = NDArray[np.float64]

RESAMPLES = 2000
#: A difference of accuracies or hit rates smaller than this is taken as none.
NEGLIGIBLE = 0.02
#: A BIC advantage that counts as positive evidence (Kass and Raftery 1995).
POSITIVE_EVIDENCE = 2.0
#: Fewer layers that change at all do not make an order.
FEWEST_LAYERS = 4


class Verdict(StrEnum):
    """What the run says about a finding."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    NOT_TESTABLE = "cannot be tested"
    ONE_RUN = "one run cannot decide"


@dataclass(frozen=True)
class Statistic:
    """A number with its 95% bootstrap interval and what it says by itself.

    Attributes:
        name: what is measured.
        where: the part of the run it is about ("high", "all bands", "mean of the groups").
        estimate, low, high: NaN where the run cannot tell.
        claim: what the finding says of it, in words.
        verdict: of this statistic alone; None for one that is only reported.
        p, adjusted: two-sided p, and corrected for the number of tests; NaN without a test.
        by_seed: in a study, each seed's number.
    """

    name: str
    where: str
    estimate: float
    low: float
    high: float
    claim: str
    verdict: Verdict | None = None
    p: float = float("nan")
    adjusted: float = float("nan")
    by_seed: Mapping[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}, {self.where}: {self.interval}{self.tested}"

    @property
    def tested(self) -> str:
        """The test as text, "" without one."""
        if not np.isfinite(self.p):
            return ""
        corrected = f", corrected {self.adjusted:.2g}" if np.isfinite(self.adjusted) else ""
        return f" (p = {self.p:.2g}{corrected})"

    @property
    def interval(self) -> str:
        """The numbers as text: estimate [low, high]."""
        if not np.isfinite(self.estimate):
            return "not measurable"
        if not np.isfinite([self.low, self.high]).all():
            return f"{self.estimate:.3g}, no interval"
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Finding:
    """One of the paper's findings, judged on a run.

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
        """The statistics as a table for a page or a notebook."""
        return pd.DataFrame(
            {
                "statistic": [s.name for s in self.statistics],
                "where": [s.where for s in self.statistics],
                "estimate": [s.estimate for s in self.statistics],
                "low": [s.low for s in self.statistics],
                "high": [s.high for s in self.statistics],
                "the finding says": [s.claim for s in self.statistics],
                "verdict": [str(s.verdict or "") for s in self.statistics],
            }
        )


def judge(
    predictions: pd.DataFrame,
    circuit_predictions: pd.DataFrame,
    circuits: Circuits | None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Finding, Finding, Finding]:
    """All three findings from a run's tables (see `tables`); one whose files are missing is undecided and says so."""
    return (
        relevance(predictions, circuit_predictions, seed, resamples),
        phase_shift(circuits, seed, resamples),
        deep_to_shallow(circuits, seed, resamples),
    )


# --- 1. relevance -----------------------------------------------------------------------------------------------------


def relevance(
    predictions: pd.DataFrame, circuit_predictions: pd.DataFrame, seed: int = 0, resamples: int = RESAMPLES
) -> Finding:
    """Is knowledge about people whom the model knew learned better than about people it did not know?

    Each person has one number, the mean level over training of the share of their facts that are answered (or hit);
    the statistic is the mean over K_rel people minus the mean over K_compl people of a band, and over all bands the
    mean of the bands' differences. People are resampled within their type and band. A difference within 0.02 of zero
    (the whole interval) counts as none.

    Rule: the finding holds if, over all bands, every measure that the run has holds and no single band contradicts it;
    it does not hold if, over all bands, every measure does not; otherwise it is undecided.

    Args:
        predictions: the table of that name, for query accuracy.
        circuit_predictions: the table of that name, for Hit@10 of each checkpoint's own circuits.
    """
    claim = "Relevant new knowledge (K_rel) is acquired better than completely new knowledge (K_compl)."
    hits = own_circuit_hits(circuit_predictions) if len(circuit_predictions) else circuit_predictions
    statistics: list[Statistic] = []
    for name, table, column in (("query accuracy", predictions, "correct"), ("Hit@10", hits, "hit")):
        statistics += _relevance_of(name, table, column, np.random.default_rng(seed), resamples)
    pooled = [s for s in statistics if s.where == "all bands"]
    verdicts = {s.verdict for s in pooled}
    contradicted = any(s.high < 0 for s in statistics)
    if not pooled:
        return Finding(
            "Relevance",
            claim,
            Verdict.UNDECIDED,
            "The run has neither predictions nor circuits' hits over two checkpoints.",
            (),
        )
    if verdicts == {Verdict.HOLDS} and not contradicted:
        verdict = Verdict.HOLDS
    elif verdicts == {Verdict.FAILS}:
        verdict = Verdict.FAILS
    else:
        verdict = Verdict.UNDECIDED
    reason = "Mean over training, K_rel minus K_compl, all bands: " + "; ".join(
        f"{s.name} {s.interval}" for s in pooled
    )
    if len(pooled) == 1:
        reason += f" (the run has {pooled[0].name} only)"
    return Finding("Relevance", claim, verdict, reason + ".", tuple(statistics))


def _relevance_of(
    name: str, table: pd.DataFrame, column: str, generator: np.random.Generator, resamples: int
) -> list[Statistic]:
    """The difference in each band that has both types, and their mean."""
    found: list[Statistic] = []
    differences, samples = [], []
    for band in Band:
        levels = [_levels(table, column, knowledge, band) for knowledge in (KnowledgeType.REVISED, KnowledgeType.NEW)]
        if min(map(len, levels)) == 0:
            continue
        known, unknown = levels
        sampled = _resampled_means(known, generator, resamples) - _resampled_means(unknown, generator, resamples)
        differences.append(float(known.mean() - unknown.mean()))
        samples.append(sampled)
        found.append(_difference(name, str(band), differences[-1], sampled))
    if found:
        found.append(_difference(name, "all bands", float(np.mean(differences)), np.mean(samples, axis=0)))
    return found


def _levels(table: pd.DataFrame, column: str, knowledge: KnowledgeType, band: Band) -> Floats:
    """Each person's mean level over training, [people]; empty for fewer than two checkpoints."""
    rows = table[(table["type"] == knowledge) & (table["band"] == band)] if len(table) else table
    if len(rows) == 0 or rows["epoch"].nunique() < 2:
        return np.empty(0)
    wide = rows.pivot_table(index="full_name", columns="epoch", values=column, aggfunc="mean").dropna()
    return curves.area_under_curve(wide.columns.to_numpy(dtype=float), wide.to_numpy(dtype=float))


def _resampled_means(values: Floats, generator: np.random.Generator, resamples: int) -> Floats:
    """Means of resamples with replacement, [resamples]."""
    return values[generator.integers(len(values), size=(resamples, len(values)))].mean(axis=1)


def _difference(name: str, where: str, estimate: float, samples: Floats) -> Statistic:
    low, high = _interval(samples)
    verdict = Verdict.UNDECIDED
    if low > 0:
        verdict = Verdict.HOLDS
    elif high < 0 or (low > -NEGLIGIBLE and high < NEGLIGIBLE):
        verdict = Verdict.FAILS
    return Statistic(f"{name}, K_rel - K_compl", where, estimate, low, high, "above 0", verdict)


# --- 2. phase shift ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhaseShift:
    """The two-segment fit to the mean curve of the groups, with the resampled break points.

    Attributes:
        epochs, mean: the fitted points, [n].
        fit: of the mean curve.
        break_low, break_high: 95% interval of the break point (epoch).
    """

    epochs: Floats
    mean: Floats
    fit: curves.TwoSegmentFit
    break_low: float
    break_high: float


def fit_phase_shift(
    circuits: Circuits, column: str = "entropy", seed: int = 0, resamples: int = RESAMPLES
) -> PhaseShift | None:
    """The break of a topology curve, averaged over the groups; None with fewer checkpoints than the fit needs.

    Args:
        column: "entropy", or "edge_jaccard" (whose last point, 1 by definition, is left out).
    """
    x, y = _group_curves(circuits, column)
    if len(x) < curves.FEWEST_POINTS:
        return None
    samples = _resampled_fit(x, y, seed, resamples).break_point
    low, high = _interval(samples)
    return PhaseShift(x, y.mean(axis=0), curves.two_segment_fit(x, y.mean(axis=0)), low, high)


def phase_shift(circuits: Circuits | None, seed: int = 0, resamples: int = RESAMPLES) -> Finding:
    """Does the circuit's evolution turn from a fast to a slow phase?

    For the mean curve of the groups: the BIC of one line minus that of two segments (above 2: the bend is there), and
    the slope after the break over the slope before it (between -1 and 1: the change slows down). Groups are resampled
    with replacement, the same for every checkpoint. BIC takes residuals as independent; a gradual bend passes for a
    sharp one, so the advantage over a smooth exponential decay is given beside it and does not enter the rule.

    Rule: the finding holds if for circuit entropy both statistics hold and entropy falls before the break; it does not
    hold if either does not hold or entropy rises before it; otherwise it is undecided. Edge Jaccard with the last
    circuit and the break in each band alone (rare facts may come later) are reported beside it and do not decide.
    """
    title, claim = (
        "Phase shift",
        "Circuits form fast, then are optimized slowly: entropy bends from a steep to a flat fall.",
    )
    if circuits is None or len(circuits.steps) < curves.FEWEST_POINTS:
        reason = f"A bend needs circuits at {curves.FEWEST_POINTS} checkpoints or more."
        return Finding(title, claim, Verdict.UNDECIDED, reason, ())
    entropy = _shift_statistics(circuits, "entropy", "circuit entropy", -1, seed, resamples)
    jaccard = _shift_statistics(circuits, "edge_jaccard", "edge Jaccard with the last", 1, seed, resamples)
    deciding = {s.verdict for s in entropy if s.verdict}
    if not entropy:
        return Finding(title, claim, Verdict.UNDECIDED, "Too few groups have circuits at every checkpoint.", ())
    if deciding == {Verdict.HOLDS}:
        verdict = Verdict.HOLDS
    else:
        verdict = Verdict.FAILS if Verdict.FAILS in deciding else Verdict.UNDECIDED
    gain, ratio, _, break_point, _ = entropy
    reason = (
        f"Two segments against one line: BIC better by {gain.interval}; break at epoch {break_point.interval}; "
        f"slope after over slope before {ratio.interval}."
    )
    return Finding(title, claim, verdict, reason, (*entropy, *jaccard, *_shift_by_band(circuits, seed, resamples)))


def _shift_statistics(
    circuits: Circuits, column: str, name: str, direction: int, seed: int, resamples: int
) -> list[Statistic]:
    """BIC advantage, slope ratio, slope before, break point, advantage over a smooth decay; empty if not measurable."""
    x, y = _group_curves(circuits, column)
    if len(x) < curves.FEWEST_POINTS or len(y) == 0:
        return []
    fit, samples = curves.two_segment_fit(x, y.mean(axis=0)), _resampled_fit(x, y, seed, resamples)
    enough = len(y) > 1

    def statistic(label: str, estimate: Floats, sampled: Floats, claim: str, above: float, below: float) -> Statistic:
        low, high = _interval(sampled) if enough else (np.nan, np.nan)
        verdict = Verdict.UNDECIDED
        if low > above and high < below:
            verdict = Verdict.HOLDS
        elif high < above or low > below:
            verdict = Verdict.FAILS
        return Statistic(f"{name}: {label}", "mean of the groups", float(estimate), low, high, claim, verdict)

    rising = direction > 0
    return [
        statistic("BIC, line - two segments", fit.gain, samples.gain, "above 2", POSITIVE_EVIDENCE, np.inf),
        statistic("slope after / before", fit.slope_ratio, samples.slope_ratio, "between -1 and 1", -1, 1),
        statistic(
            "slope before the break (per epoch)",
            fit.slope_before,
            samples.slope_before,
            "above 0" if rising else "below 0",
            0 if rising else -np.inf,
            np.inf if rising else 0,
        ),
        _reported(f"{name}: break point (epoch)", fit.break_point, samples.break_point, enough),
        _reported(f"{name}: BIC, smooth decay - two segments", fit.gain_over_decay, samples.gain_over_decay, enough),
    ]


def _shift_by_band(circuits: Circuits, seed: int, resamples: int) -> list[Statistic]:
    """The entropy's BIC advantage and break point of each band's groups alone, reported and not judged."""
    found = []
    for band in Band:
        x, y = _group_curves(circuits, "entropy", band)
        if len(x) >= curves.FEWEST_POINTS and len(y):
            fit, samples = curves.two_segment_fit(x, y.mean(axis=0)), _resampled_fit(x, y, seed, resamples)
            parts = (
                ("BIC, line - two segments", fit.gain, samples.gain),
                ("break point (epoch)", fit.break_point, samples.break_point),
            )
            for label, estimate, sampled in parts:
                found.append(_reported(f"circuit entropy: {label}", estimate, sampled, len(y) > 1, str(band)))
    return found


def _reported(
    name: str, estimate: Floats, samples: Floats, enough: bool, where: str = "mean of the groups"
) -> Statistic:
    """A statistic that no rule judges."""
    low, high = _interval(samples) if enough else (np.nan, np.nan)
    return Statistic(name, where, float(estimate), low, high, "", None)


def _group_curves(circuits: Circuits, column: str, band: Band | None = None) -> tuple[Floats, Floats]:
    """Epochs [n] and the groups' curves [groups, n] (of one band if named) that have a number at every checkpoint."""
    rows = circuits.table if band is None else circuits.table[circuits.table["band"] == band]
    wide = rows.pivot_table(index=GROUP_COLUMNS, columns="epoch", values=column).dropna()
    if column.endswith("jaccard"):
        wide = wide.iloc[:, :-1]
    return wide.columns.to_numpy(dtype=float), wide.to_numpy(dtype=float)


def _resampled_fit(x: Floats, y: Floats, seed: int, resamples: int) -> curves.TwoSegmentFit:
    return curves.two_segment_fit(x, _resampled_groups(len(y), seed, resamples) @ y)


def _resampled_groups(count: int, seed: int, resamples: int) -> Floats:
    """Weights [resamples, groups] of each resample's mean: how often each group was drawn, over the draws."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples) / count


# --- 3. deep to shallow -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerOrder:
    """When each layer's edge activation ratio has made half of its change.

    Attributes:
        layers: the layers looked at (all but the last, whose few edges mostly lead to `logits`), [l].
        epochs: half-change epoch of the mean curve of the groups; NaN where the layer changes less than its noise, [l].
        low, high: 95% intervals of the epochs over resampled groups, [l].
        correlation: Spearman's of epoch with depth; below 0 where deep layers change first.
        samples: the correlation in each resample.
    """

    layers: NDArray[np.int64]
    epochs: Floats
    low: Floats
    high: Floats
    correlation: float
    samples: Floats


def layer_order(circuits: Circuits, seed: int = 0, resamples: int = RESAMPLES) -> LayerOrder | None:
    """Half-change epochs by layer, of the curves smoothed over 3 checkpoints; None with fewer than 3 checkpoints.

    A layer whose ratio ends within 1.96 standard deviations of its smoothing residuals of where it began has no
    half-change epoch.
    """
    x, y = _activation_curves(circuits)
    if len(x) < 3 or len(y) == 0:
        return None
    mean, sampled = y.mean(axis=0), np.tensordot(_resampled_groups(len(y), seed, resamples), y, axes=1)
    epochs, resampled = _half_changes(x, mean), _half_changes(x, sampled)
    moved = np.isfinite(epochs)
    low, high = np.full((2, len(epochs)), np.nan)
    for layer in np.flatnonzero(moved):
        low[layer], high[layer] = _interval(resampled[:, layer])
    correlations = _rank_correlations(resampled)
    return LayerOrder(
        np.arange(len(epochs)), epochs, low, high, float(_rank_correlations(epochs[None])[0]), correlations
    )


def deep_to_shallow(circuits: Circuits | None, seed: int = 0, resamples: int = RESAMPLES) -> Finding:
    """Do deep layers change before shallow ones?

    Rule: the finding holds if the interval of the rank correlation of half-change epoch with depth lies below 0, does
    not hold if it lies above 0, and is undecided otherwise, or where fewer than 4 layers change more than their noise.
    """
    title, claim = "Deep to shallow", "Circuits change in deep layers first and in shallow layers later."
    order = layer_order(circuits, seed, resamples) if circuits is not None else None
    if order is None:
        return Finding(title, claim, Verdict.UNDECIDED, "An order needs circuits at 3 checkpoints or more.", ())
    moved = int(np.isfinite(order.epochs).sum())
    usable = order.samples[np.isfinite(order.samples)]
    low, high = (
        _interval(usable) if len(usable) > len(order.samples) / 2 and moved >= FEWEST_LAYERS else (np.nan, np.nan)
    )
    verdict = Verdict.HOLDS if high < 0 else Verdict.FAILS if low > 0 else Verdict.UNDECIDED
    name = "rank correlation of half-change epoch with depth"
    statistics = [Statistic(name, f"{moved} layers", order.correlation, low, high, "below 0", verdict)]
    for layer, epoch, early, late in zip(order.layers, order.epochs, order.low, order.high, strict=True):
        statistics.append(Statistic("half-change epoch", f"layer {layer}", float(epoch), early, late, "", None))
    if moved < FEWEST_LAYERS:
        reason = f"Only {moved} layers change more than their noise; an order needs {FEWEST_LAYERS}."
    else:
        reason = (
            f"Spearman's correlation of the half-change epoch with depth over {moved} layers: {statistics[0].interval}."
        )
    return Finding(title, claim, verdict, reason, tuple(statistics))


def _activation_curves(circuits: Circuits) -> tuple[Floats, Floats]:
    """Epochs [n] and edge activation ratios [groups, l - 1, n], of the groups that have every checkpoint."""
    table, epochs = circuits.table, np.array(circuits.epochs)
    position = {step: index for index, step in enumerate(circuits.steps)}
    layers = max(circuits.layout.n_layers - 1, 1)
    found = []
    for _, rows in table.groupby(GROUP_COLUMNS, sort=True):
        if len(rows) == len(position):
            order = rows.index[np.argsort([position[step] for step in rows["step"]])]
            found.append(circuits.activation[order, :layers].T)
    return epochs, np.array(found).reshape(-1, layers, len(epochs))


def _half_changes(x: Floats, y: Floats) -> Floats:
    """Half-change epochs of curves [..., n] smoothed over 3 points; NaN where the change is within the noise, [...]."""
    smooth = curves.moving_average(y)
    noise = curves.BAND * (y - smooth).std(axis=-1, ddof=1)
    change = np.abs(smooth[..., -1] - smooth[..., 0])
    return np.where(change > noise, curves.half_change(x, smooth), np.nan)


def _rank_correlations(epochs: Floats) -> Floats:
    """Spearman's correlation of each row [m, l] with depth over its finite entries; NaN for fewer than 3, [m]."""
    found = np.isfinite(epochs)
    times = stats.rankdata(epochs, axis=1, nan_policy="omit")
    depths = stats.rankdata(np.where(found, np.arange(epochs.shape[1]), np.nan), axis=1, nan_policy="omit")
    count = found.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        times = np.where(found, times - (np.nansum(times, axis=1) / count)[:, None], 0)
        depths = np.where(found, depths - (np.nansum(depths, axis=1) / count)[:, None], 0)
        correlation = (times * depths).sum(axis=1) / np.sqrt((times**2).sum(axis=1) * (depths**2).sum(axis=1))
    return np.where(count >= 3, correlation, np.nan)


def _interval(samples: Floats | Sequence[float]) -> tuple[float, float]:
    """The middle 95% of the finite samples; NaN without any."""
    finite = np.asarray(samples)[np.isfinite(samples)]
    if len(finite) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
