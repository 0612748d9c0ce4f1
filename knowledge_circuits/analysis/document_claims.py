"""Whether the claims of a paper about training on documents hold in a study (`documents`).

The claims are those of Mousavi et al. (2026), arXiv 2601.03858. Each has one deciding number, averaged over strategies:

    loss         the share of the epochs with falling loss in which mean recall does not rise
    monotony     the share of the entities that were ever learned that are forgotten at least once
    consolidation  the share of them that the last two probes find learned
    exposure     the gain in recall of entities with many documents minus that of entities with few
    skills       the change of skill accuracy in the first epoch
    circuits     the turnover of edges between probes minus its split-half floor

With several seeds intervals are Student's over seeds. With one seed they are percentiles of a bootstrap over entities
(within each frequency, the same entities in all strategies); numbers that are not of entities get a t interval over the
strategies, and only their mean has one. Such intervals hold for the one seed. Shape letters: r resamples, e entities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knowledge_circuits.analysis.document_tables import CONSOLIDATED
from knowledge_circuits.analysis.documents import FULL, DocumentRun, DocumentStudy, Floats, Knowledge
from knowledge_circuits.analysis.dynamics import non_monotonic_share
from knowledge_circuits.analysis.findings import Finding, Statistic, Verdict
from knowledge_circuits.analysis.statistics import mean_of, over_runs
from knowledge_circuits.analysis.study_findings import of_seeds
from knowledge_circuits.corpus.questions import HIGH, LOW
from knowledge_circuits.engine.floors import mean_interval
from knowledge_circuits.training.stopping import known_in_a_row_counts

ALL = "mean of the strategies"
RESAMPLES = 2000
#: A share of forgotten entities that counts, and the share of consolidated ones below which that is rare.
NOTABLE, RARE = 0.1, 0.5

Measure = Callable[[DocumentRun, Knowledge], float]


@dataclass(frozen=True)
class Number:
    """A number of a claim.

    Attributes:
        name: what is measured.
        measure: of one run.
        claim: what the claim says of it; "" for one that is only reported.
        entities: whether it is of entities, which can be resampled.
    """

    name: str
    measure: Measure
    claim: str = ""
    entities: bool = True


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        title, text: the claim in a word and in a sentence.
        line: with what the first number is compared.
        above: whether it lies above the line if the claim holds.
        numbers: the deciding one first.
    """

    title: str
    text: str
    line: float
    above: bool
    numbers: tuple[Number, ...]


def judge_claims(study: DocumentStudy, resamples: int = RESAMPLES) -> tuple[Finding, ...]:
    """Return the claims one by one, each with its numbers by strategy and a verdict."""
    draws = _draws(study, resamples)
    return tuple(_judge(study, claim, draws) for claim in CLAIMS)


def _judge(study: DocumentStudy, claim: Claim, draws: Mapping[int, NDArray[np.int64]]) -> Finding:
    by_number = [_statistics(study, number, draws if number.entities else {}) for number in claim.numbers]
    deciding = by_number[0][0]
    verdict = _verdict(deciding, claim.line, claim.above, len(study.seeds))
    shown = [deciding, *(s for s in by_number[0] if s.where == FULL)]
    reason = f"{deciding.name}: {'; '.join(f'{s.where}: {s.interval}' for s in shown)}."
    return Finding(claim.title, claim.text, verdict, reason, tuple(s for part in by_number for s in part))


def _loss_without_knowledge(knowledge: Knowledge) -> float:
    falls = np.diff(knowledge.loss) < 0
    rises = np.diff(knowledge.recall.mean(axis=0)) > 1e-12
    return float((~rises[falls]).mean()) if falls.any() else math.nan


def _gain(knowledge: Knowledge) -> float:
    return float((knowledge.recall[:, -1] - knowledge.recall[:, 0]).mean())


def _consolidated(knowledge: Knowledge) -> float:
    known = knowledge.known
    ever = int(known.any(axis=1).sum())
    return float(known_in_a_row_counts(known, CONSOLIDATED)[-1] / ever) if ever else math.nan


def _exposure(knowledge: Knowledge) -> float:
    gain = knowledge.recall[:, -1] - knowledge.recall[:, 0]
    high, low = knowledge.frequency == HIGH, knowledge.frequency == LOW
    return float(gain[high].mean() - gain[low].mean()) if high.any() and low.any() else math.nan


def _prior(knowledge: Knowledge) -> float:
    before, after = knowledge.recall[:, 0], knowledge.recall[:, -1]
    if np.ptp(before) == 0 or np.ptp(after) == 0:
        return math.nan
    return float(np.corrcoef(before, after)[0, 1])


def _skill_change(run: DocumentRun, epochs: float | None) -> float:
    record = _record_at(run, epochs)
    return mean_of(record["skills"].values()) - mean_of(run.records[0]["skills"].values())


def _text_ratio(run: DocumentRun, epochs: float | None) -> float:
    record = _record_at(run, epochs)
    return mean_of(record["texts"].values()) / mean_of(run.records[0]["texts"].values())


def _record_at(run: DocumentRun, epochs: float | None) -> Mapping[str, Any]:
    """Return the first probe after so many epochs, or the last one (None)."""
    later = [record for record in run.records[1:] if epochs is not None and record["epoch"] >= epochs - 1e-6]
    return later[0] if later else run.records[-1]


def _turnover(run: DocumentRun) -> float:
    return mean_of(run.circuits["turnover"] - run.circuits["turnover_floor"])


CLAIMS = (
    Claim(
        "Loss and knowledge",
        "The loss falls while knowledge does not grow.",
        0,
        True,
        (
            Number("share of the epochs with falling loss in which recall does not rise",
                   lambda run, k: _loss_without_knowledge(k), "above 0"),
            Number("loss at the end / at the start", lambda run, k: float(k.loss[-1] / k.loss[0]), entities=False),
            Number("recall at the end minus at the start", lambda run, k: _gain(k)),
        ),
    ),
    Claim(
        "Non-monotonic learning",
        "Learned entities are forgotten again while training goes on.",
        NOTABLE,
        True,
        (
            Number("share of the learned entities that are forgotten at least once",
                   lambda run, k: non_monotonic_share(k.known), f"above {NOTABLE}"),
        ),
    ),
    Claim(
        "Consolidation",
        "What is learned is rarely consolidated.",
        RARE,
        False,
        (
            Number(f"share of the learned entities that are known at the last {CONSOLIDATED} probes",
                   lambda run, k: _consolidated(k), f"below {RARE}"),
        ),
    ),
    Claim(
        "Exposure",
        "Learning depends on exposure: entities with many documents gain more than those with few.",
        0,
        True,
        (
            Number("gain in recall, high minus low frequency", lambda run, k: _exposure(k), "above 0"),
            Number("correlation of an entity's recall before and after training", lambda run, k: _prior(k)),
        ),
    ),
    Claim(
        "Skills",
        "General skills go early: in the first epoch.",
        0,
        False,
        (
            Number("change of skill accuracy in the first epoch",
                   lambda run, k: _skill_change(run, 1), "below 0", False),
            Number("change of skill accuracy at the end", lambda run, k: _skill_change(run, None), entities=False),
            Number("perplexity of held-out text, after the first epoch / at the start",
                   lambda run, k: _text_ratio(run, 1), entities=False),
            Number("perplexity of held-out text, at the end / at the start",
                   lambda run, k: _text_ratio(run, None), entities=False),
        ),
    ),
    Claim(
        "Circuits",
        "Circuits reconfigure between epochs, by more than the noise of the prompts.",
        0,
        True,
        (
            Number("turnover of edges minus its split-half floor", lambda run, k: _turnover(run), "above 0", False),
            Number("reconfiguration rate (1 - edge Jaccard of consecutive checkpoints)",
                   lambda run, k: mean_of(run.circuits["reconfiguration"]), entities=False),
        ),
    ),
)  # fmt: skip


# --- intervals and verdicts -------------------------------------------------------------------------------------------


def _draws(study: DocumentStudy, resamples: int) -> dict[int, NDArray[np.int64]]:
    """Return, for each seed, entities drawn with replacement within each frequency: [r, e]."""
    draws = {}
    for seed in study.seeds:
        frequency = next(run for run in study.runs if run.seed == seed).knowledge.frequency
        generator, columns = np.random.default_rng(seed), []
        for label in dict.fromkeys(frequency.tolist()):
            members = np.flatnonzero(frequency == label)
            columns.append(generator.choice(members, (resamples, len(members))))
        draws[seed] = np.concatenate(columns, axis=1)
    return draws


def _statistics(study: DocumentStudy, number: Number, draws: Mapping[int, NDArray[np.int64]]) -> list[Statistic]:
    """Return a number's mean over strategies and then that of each strategy, with intervals (module text).

    Args:
        draws: resamples of entities, by seed; none where the number is not of entities.
    """
    name, claim, measure = number.name, number.claim, number.measure
    values = pd.DataFrame(
        {
            strategy: {run.seed: measure(run, run.knowledge) for run in study.runs if run.strategy == strategy}
            for strategy in study.strategies
        }
    )  # [seeds, strategies]
    if len(study.seeds) > 1:
        overall = _over_seeds(name, ALL, claim, values.dropna(axis=1, how="all").mean(axis=1, skipna=False))
        return [overall, *(_over_seeds(name, strategy, claim, values[strategy]) for strategy in values)]
    seed = study.seeds[0]
    samples = {
        run.strategy: np.array([measure(run, run.knowledge.of(entities)) for entities in draws[seed]])
        for run in study.runs
        if draws
    }
    row = values.loc[seed].dropna()
    mean, low, high = float(row.mean()) if len(row) else math.nan, math.nan, math.nan
    if samples and len(row):
        low, high = _percentiles(np.mean([samples[strategy] for strategy in row.index], axis=0))
    elif len(row) > 1:
        mean, low, high = mean_interval(row.to_numpy())
    statistics = [Statistic(name, ALL, mean, low, high, claim, by_seed={seed: mean})]
    for strategy, value in values.loc[seed].items():
        low, high = _percentiles(samples[strategy]) if samples else (math.nan, math.nan)
        statistics.append(Statistic(name, str(strategy), float(value), low, high, claim, by_seed={seed: float(value)}))
    return statistics


def _over_seeds(name: str, where: str, claim: str, values: pd.Series) -> Statistic:
    finite = values.dropna()
    if finite.empty:
        return Statistic(name, where, math.nan, math.nan, math.nan, claim)
    effect = over_runs(finite.to_numpy())
    by_seed = {int(seed): float(value) for seed, value in finite.items()}
    return Statistic(name, where, float(effect.mean), float(effect.low), float(effect.high), claim, by_seed=by_seed)


def _percentiles(sample: Floats) -> tuple[float, float]:
    """Return the ends of a 95% interval; resamples in which there is nothing to measure are left out."""
    finite = sample[np.isfinite(sample)]
    if len(finite) < len(sample) / 2:
        return math.nan, math.nan
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def _verdict(deciding: Statistic, line: float, above: bool, seeds: int) -> Verdict:
    """Return whether the interval lies on the claim's side of a line; with one seed this is said of that seed alone."""
    if not math.isfinite(deciding.estimate):
        return Verdict.NOT_TESTABLE
    if seeds == 2:
        return of_seeds(Verdict.UNDECIDED, seeds)
    one = seeds == 1
    holds, fails = (
        (deciding.low > line, deciding.high <= line) if above else (deciding.high < line, deciding.low >= line)
    )
    if holds:
        return Verdict.HOLDS_HERE if one else Verdict.HOLDS
    if fails:
        return Verdict.FAILS_HERE if one else Verdict.FAILS
    return Verdict.UNDECIDED
