"""Whether the claims of a paper about training on documents hold in a study (`documents`).

The claims are those of Mousavi et al. (2026), arXiv 2601.03858. Each has one deciding number, averaged over strategies:

    loss         the gain in recall in the second half of training, in which the loss falls
    monotony     the share of the entities that were ever learned that are forgotten at least once
    consolidation  the share of them that the last two probes find learned
    exposure     the gain in recall of entities with many documents minus that of entities with few
    skills       the change of skill accuracy in the first epoch
    circuits     the turnover of edges between probes minus its split-half floor

A number of entities takes each with its mean over strategies; with several seeds it is the mean of theirs. Intervals
over entities take each with its mean over strategies and seeds: Student's for a mean, Welch's for a difference, and
Clopper and Pearson's for a share, which is conservative where an entity's part of it is a fraction. With several seeds
a second interval is Student's over seeds, and the wider bound on each side counts, for seeds share their entities
(where each has documents of its own, that over seeds alone). With one seed the interval holds for that
seed alone; a number that is not of entities has none then, and its claim no verdict. Each of the six claims is judged
at 5%; numbers of single strategies decide nothing.

Shape letters: e entities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from knowledge_circuits.analysis.document_tables import CONSOLIDATED
from knowledge_circuits.analysis.documents import FULL, DocumentRun, DocumentStudy, Floats
from knowledge_circuits.analysis.dynamics import forgetting_events
from knowledge_circuits.analysis.findings import Finding, Statistic, Verdict
from knowledge_circuits.analysis.statistics import LEVEL, mean_of, over_runs
from knowledge_circuits.analysis.study_findings import of_seeds
from knowledge_circuits.corpus.questions import HIGH, LOW

ALL = "mean of the strategies"
#: A gain in recall, and a turnover of edges beyond the noise, that are more than little.
SMALL_GAIN, SMALL_TURNOVER = 0.05, 0.05
#: A share of forgotten entities that counts, and a share of consolidated ones that is no longer rare.
NOTABLE, RARE = 0.1, 0.5
#: Values that lie closer together than this agree exactly.
_ROUNDING = 1e-9


class Kind(Enum):
    """What a number's values are of; see the module's text for the intervals."""

    RUN = auto()
    ENTITIES = auto()  # their mean
    FREQUENCIES = auto()  # the mean of entities with many documents minus that of entities with few
    SHARE = auto()  # of the entities that have a value; values from 0 to 1


@dataclass(frozen=True)
class Number:
    """A number of a claim.

    Attributes:
        name: what is measured.
        measure: of one run: [e], NaN for entities that it is not about, or one number where `kind` is RUN.
        kind: what the values are of.
    """

    name: str
    measure: Callable[[DocumentRun], Floats | float]
    kind: Kind = Kind.ENTITIES


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        title, text: the claim in a word and in a sentence.
        line: with what the first number is compared.
        above: whether it lies above the line if the claim holds.
        numbers: the deciding one first; the others are only reported.
    """

    title: str
    text: str
    line: float
    above: bool
    numbers: tuple[Number, ...]


def judge_claims(study: DocumentStudy) -> tuple[Finding, ...]:
    """Return the claims one by one, each with its numbers by strategy and a verdict."""
    return tuple(_judge(study, claim) for claim in CLAIMS)


def _judge(study: DocumentStudy, claim: Claim) -> Finding:
    first, *others = claim.numbers
    decisive = _statistics(study, first, f"{'above' if claim.above else 'below'} {claim.line}")
    deciding = decisive[0]
    verdict = _verdict(deciding, claim)
    shown = [deciding, *(s for s in decisive if s.where == FULL)]
    reason = f"{deciding.name}: {'; '.join(f'{s.where}: {s.interval}' for s in shown)}."
    reported = (s for number in others for s in _statistics(study, number))
    return Finding(claim.title, claim.text, verdict, reason, (*decisive, *reported))


def _late_gain(run: DocumentRun) -> Floats:
    """Return the gains [e] from the middle of training to its end; NaN where the loss does not fall meanwhile."""
    middle = len(run.loss) // 2
    return np.where(run.loss[-1] < run.loss[middle], run.recall[:, -1] - run.recall[:, middle], np.nan)


def _late_loss(run: DocumentRun) -> float:
    return float(run.loss[-1] / run.loss[len(run.loss) // 2])


def _flat_epochs(run: DocumentRun) -> float:
    falls = np.diff(run.loss) < 0
    rises = np.diff(run.recall.mean(axis=0)) > 1e-12
    return float((~rises[falls]).mean()) if falls.any() else math.nan


def _gain(run: DocumentRun) -> Floats:
    return run.recall[:, -1] - run.recall[:, 0]


def _gain_above_floor(run: DocumentRun) -> Floats:
    """Return the gains [e] less what the floor of recall has gained; NaN where the floor is not known."""
    above = run.recall - run.recall_floor
    return above[:, -1] - above[:, 0]


def _forgotten(run: DocumentRun) -> Floats:
    """Whether [e] was forgotten; NaN for entities never known, or first at the last probe."""
    return np.where(run.known[:, :-1].any(axis=1), forgetting_events(run.known) > 0, np.nan)


def _consolidated(run: DocumentRun) -> Floats:
    """Whether [e] is known at the last probes; NaN for entities never known, or first after the first of these."""
    could = run.known[:, : len(run.records) - CONSOLIDATED + 1].any(axis=1)
    return np.where(could, run.known[:, -CONSOLIDATED:].all(axis=1), np.nan)


def _prior(run: DocumentRun) -> float:
    before, after = run.recall[:, 0], run.recall[:, -1]
    if np.ptp(before) == 0 or np.ptp(after) == 0:
        return math.nan
    return float(np.corrcoef(before, after)[0, 1])


def _skill_change(run: DocumentRun, epochs: float) -> float:
    before, after = _since_start(run, "skills", epochs)
    return after - before


def _text_ratio(run: DocumentRun, epochs: float) -> float:
    before, after = _since_start(run, "texts", epochs)
    return after / before


def _since_start(run: DocumentRun, key: str, epochs: float) -> tuple[float, float]:
    """Return the mean of the skills or texts at the first probe, and at the first one after so many epochs (else the
    last one)."""
    after = next((record for record in run.records[1:] if record["epoch"] >= epochs - 1e-6), run.records[-1])
    return mean_of(run.records[0][key].values()), mean_of(after[key].values())


def _turnover(run: DocumentRun) -> float:
    return mean_of(run.circuits["turnover"] - run.circuits["turnover_floor"])


CLAIMS = (
    Claim(
        "Loss and knowledge",
        f"In the second half of training the loss falls while recall grows by less than {SMALL_GAIN}.",
        line=SMALL_GAIN, above=False, numbers=(
            Number("gain in recall in the second half of training", _late_gain),
            Number("loss at the end / in the middle", _late_loss, Kind.RUN),
            Number("gain in recall since the start", _gain),
            Number("gain in recall above its floor since the start", _gain_above_floor),
            Number("share of the epochs with falling loss in which recall does not rise", _flat_epochs, Kind.RUN),
        ),
    ),
    Claim(
        "Non-monotonic learning",
        "Learned entities are forgotten again while training goes on.",
        line=NOTABLE, above=True, numbers=(
            Number("share of the learned entities that are forgotten at least once", _forgotten, Kind.SHARE),
        ),
    ),
    Claim(
        "Consolidation",
        "What is learned is rarely consolidated.",
        line=RARE, above=False, numbers=(
            Number(f"share of the learned entities that are known at the last {CONSOLIDATED} probes", _consolidated,
                   Kind.SHARE),
        ),
    ),
    Claim(
        "Exposure",
        "Learning depends on exposure: entities with many documents gain more than those with few.",
        line=0, above=True, numbers=(
            Number("gain in recall, high minus low frequency", _gain, Kind.FREQUENCIES),
            Number("correlation of an entity's recall before and after training", _prior, Kind.RUN),
        ),
    ),
    Claim(
        "Skills",
        "General skills go early: in the first epoch.",
        line=0, above=False, numbers=(
            Number("change of skill accuracy in the first epoch", lambda run: _skill_change(run, 1), Kind.RUN),
            Number("change of skill accuracy at the end", lambda run: _skill_change(run, math.inf), Kind.RUN),
            Number("perplexity of held-out text, after the first epoch / at the start",
                   lambda run: _text_ratio(run, 1), Kind.RUN),
            Number("perplexity of held-out text, at the end / at the start",
                   lambda run: _text_ratio(run, math.inf), Kind.RUN),
        ),
    ),
    Claim(
        "Circuits",
        f"Circuits reconfigure between epochs: {SMALL_TURNOVER} of the edges beyond the noise of the prompts.",
        line=SMALL_TURNOVER, above=True, numbers=(
            Number("turnover of edges minus its split-half floor", _turnover, Kind.RUN),
            Number("reconfiguration rate (1 - edge Jaccard of consecutive checkpoints)",
                   lambda run: mean_of(run.circuits["reconfiguration"]), Kind.RUN),
        ),
    ),
)  # fmt: skip


# --- intervals and verdicts -------------------------------------------------------------------------------------------


def interval(values: Floats, frequency: NDArray[np.str_], kind: Kind) -> tuple[float, float, float]:
    """Return a number of one run, or of the mean over strategies, with its 95% interval over entities.

    Args:
        values: [e], NaN for entities that it is not about; [1] of the kind RUN.
        frequency: [e] labels.

    Returns:
        Estimate, low, high; NaN where there are no entities, or for the interval too few (for RUN always). Entities
        that agree exactly have no mean's or difference's interval, for they tell no spread.
    """
    if kind is Kind.RUN:
        return float(values[0]), math.nan, math.nan
    there = np.isfinite(values)
    sample = values[there]
    if kind is Kind.SHARE:
        hits, count = float(sample.sum()), len(sample)
        if not count:
            return math.nan, math.nan, math.nan
        low = stats.beta.ppf(LEVEL / 2, hits, count - hits + 1) if hits > 0 else 0.0
        high = stats.beta.ppf(1 - LEVEL / 2, hits + 1, count - hits) if hits < count else 1.0
        return hits / count, float(low), float(high)
    if kind is Kind.ENTITIES:
        if len(sample) < 2 or np.ptp(sample) < _ROUNDING:
            return mean_of(sample), math.nan, math.nan
        mean = over_runs(sample)
        return float(mean.mean), float(mean.low), float(mean.high)
    high, low = (values[there & (frequency == label)] for label in (HIGH, LOW))
    difference = mean_of(high) - mean_of(low)
    if min(len(high), len(low)) < 2 or max(np.ptp(high), np.ptp(low)) < _ROUNDING:
        return difference, math.nan, math.nan
    bounds = stats.ttest_ind(high, low, equal_var=False).confidence_interval(1 - LEVEL)
    return difference, float(bounds.low), float(bounds.high)


def _statistics(study: DocumentStudy, number: Number, wanted: str = "") -> list[Statistic]:
    """Return a number's mean over strategies and then that of each strategy, with intervals (module text)."""
    asked = {tuple(row["id"] for row in run.records[0]["questions"]) for run in study.runs}
    frequency = {run.seed: run.frequency for run in study.runs}
    statistics = []
    for where, by_seed in _values(study, number).items():
        told = {seed: interval(values, frequency[seed], number.kind)[0] for seed, values in by_seed.items()}
        seeds = {seed: value for seed, value in told.items() if math.isfinite(value)}
        over = over_runs(list(seeds.values())) if seeds else None
        estimate, low, high = (float(over.mean), float(over.low), float(over.high)) if over else (math.nan,) * 3
        if len(seeds) > 1 and len(set(seeds.values())) == 1:  # seeds that agree exactly tell no spread
            low, high = math.nan, math.nan
        note = ""
        if seeds and number.kind is not Kind.RUN and len(asked) == 1:
            entities = pd.DataFrame(list(by_seed.values())).mean().to_numpy()
            _, lowest, highest = interval(entities, study.runs[0].frequency, number.kind)
            low, high = float(np.fmin(low, lowest)), float(np.fmax(high, highest))
            count = int(np.isfinite(entities).sum())
            note = f"{count} entit{'y' if count == 1 else 'ies'}"
        statistics.append(Statistic(number.name, where, estimate, low, high, wanted, by_seed=seeds, note=note))
    return statistics


def _values(study: DocumentStudy, number: Number) -> dict[str, dict[int, Floats]]:
    """Return a number's values, [e] or [1], by seed: their mean over the strategies, and those of each strategy.

    A seed that lacks a strategy has no mean.
    """
    values: dict[str, dict[int, Floats]] = {strategy: {} for strategy in study.strategies}
    for run in study.runs:
        values[run.strategy][run.seed] = np.atleast_1d(np.asarray(number.measure(run), dtype=float))
    measured = [by_seed for by_seed in values.values() if any(np.isfinite(v).any() for v in by_seed.values())]
    means = {
        seed: pd.DataFrame([by_seed[seed] for by_seed in measured]).mean(skipna=number.kind is not Kind.RUN).to_numpy()
        for seed in study.seeds
        if measured and all(seed in by_seed for by_seed in measured)
    }
    return {ALL: means, **values}


def _verdict(deciding: Statistic, claim: Claim) -> Verdict:
    """Return whether the interval lies on the claim's side of a line; with one seed this is said of that seed alone."""
    line, seeds = claim.line, len(deciding.by_seed)
    if not math.isfinite(deciding.estimate):
        return Verdict.NOT_TESTABLE
    if seeds == 2 or not math.isfinite(deciding.low):
        return of_seeds(Verdict.UNDECIDED, seeds)
    holds = deciding.low > line if claim.above else deciding.high < line
    fails = deciding.high <= line if claim.above else deciding.low >= line
    if holds:
        return Verdict.HOLDS_HERE if seeds == 1 else Verdict.HOLDS
    if fails:
        return Verdict.FAILS_HERE if seeds == 1 else Verdict.FAILS
    return Verdict.UNDECIDED
