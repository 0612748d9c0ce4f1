"""What knowledge has to do with loss, skill, prior exposure and circuits, and which checkpoint to take.

In: a run's probe records and fact history (`dynamics`), its evaluations and its circuits (`run_circuits`). Out: one row
per probe (`probe_table`), correlations over facts and probes, how much circuits change between checkpoints, and the
checkpoint that each stopping rule picks with what that costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from knowledge_circuits.analysis.dynamics import Dynamics, FactHistory, acquisition_epochs, fact_history
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.engine import topology
from knowledge_circuits.training.stopping import known_in_a_row_counts, skill_lost

#: Of the study's groups; those of one's own facts have `group` in place of `type` and `band`.
RECONFIGURATION_COLUMNS = ["step", "epoch", "task", "type", "band", "rate"]


def probe_table(dynamics: Dynamics, evaluations: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one row per probe: what is known, gained and lost there, beside loss and skill.

    Args:
        dynamics: the run's probe records.
        evaluations: the run's evaluations, with columns step and loss.

    Returns:
        Columns step, epoch, known, known_share, known_twice (in a row, see `known_in_a_row_counts`), gained and lost
        (facts since the probe before), answer_log_prob (mean), skill (mean accuracy), perplexity (mean), loss. NaN
        where something was not measured at that step.
    """
    history = fact_history(dynamics.facts)
    known = history.known
    before, after = known[:, :-1], known[:, 1:]
    table = pd.DataFrame(
        {
            "step": history.steps,
            "epoch": history.epochs,
            "known": known.sum(axis=0),
            "known_share": known.sum(axis=0) / max(len(known), 1),
            "known_twice": known_in_a_row_counts(known),
            "gained": np.concatenate([[0], (~before & after).sum(axis=0)])[: len(history.steps)],
            "lost": np.concatenate([[0], (before & ~after).sum(axis=0)])[: len(history.steps)],
        }
    )
    for name, frame, column in (
        ("answer_log_prob", dynamics.facts, "answer_log_prob"),
        ("skill", dynamics.skills, "accuracy"),
        ("perplexity", dynamics.texts, "perplexity"),
        ("loss", evaluations, "loss"),
    ):
        means = frame.groupby("step")[column].mean() if frame is not None and len(frame) else pd.Series(dtype=float)
        table[name] = table["step"].map(means).astype(float)
    return table


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient (-1 to 1), its two-sided p-value or NaN, and the number of pairs; NaN if undefined."""

    value: float
    p_value: float
    pairs: int


def _correlate(kind: Any, first: ArrayLike, second: ArrayLike) -> Correlation:
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    usable = ~(np.isnan(a) | np.isnan(b))
    a, b = a[usable], b[usable]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Correlation(math.nan, math.nan, len(a))
    result = kind(a, b)
    return Correlation(float(result.statistic), float(result.pvalue), len(a))


def prior_exposure(history: FactHistory) -> dict[str, Correlation]:
    """Return Spearman's correlations of learning with what the model was exposed to before and during training.

    Returns:
        "acquisition ~ base_prob", "acquisition ~ frequency": a negative value means that facts to which the base
        model gave a higher probability (or which occur in the corpus more often) are learned earlier; never-known
        facts rank last.
        "known_at_end ~ base_prob", "known_at_end ~ frequency": the same for being known at the last probe.
        The p values are of the people's means: facts of one person share its frequency.
    """
    acquired = acquisition_epochs(history.known, history.epochs)
    outcomes = {
        "acquisition": np.where(np.isnan(acquired), history.epochs[-1] + 1, acquired),
        "known_at_end": history.known[:, -1].astype(float),
    }
    table = history.facts[["full_name", "base_prob", "frequency"]].assign(**outcomes)
    people = table.groupby("full_name", sort=False).mean()
    return {
        f"{outcome} ~ {cause}": replace(
            _correlate(stats.spearmanr, table[outcome], table[cause].astype(float)),
            p_value=_correlate(stats.spearmanr, people[outcome], people[cause]).p_value,
        )
        for outcome in outcomes
        for cause in ("base_prob", "frequency")
    }


def relation_table(history: FactHistory, probes: pd.DataFrame) -> pd.DataFrame:
    """Return all correlations on one run, for a page or a notebook.

    Args:
        history: of the run's facts.
        probes: see `probe_table`.

    Returns:
        Columns relation, coefficient (whose), value, p_value, pairs; no rows without probes.
    """
    rows = []
    if len(history.steps):
        loss = loss_knowledge_correlation(probes["loss"], probes["known"])
        rows = [("change of loss ~ change of known facts", "Pearson", *astuple(loss))]
        rows += [(name, "Spearman", *astuple(correlation)) for name, correlation in prior_exposure(history).items()]
    return pd.DataFrame(rows, columns=["relation", "coefficient", "value", "p_value", "pairs"])


def loss_knowledge_correlation(loss: ArrayLike, known: ArrayLike) -> Correlation:
    """Pearson correlation of the change of loss with the change of the number of known facts, probe to probe.

    Near -1: whenever the loss falls much, many facts are gained. Near 0: the loss does not tell. It has no p value
    (`acquisition.loss_correlations`). Both are [probes], with NaN where the loss was not measured.
    """
    changes = np.diff(np.asarray(loss, float)), np.diff(np.asarray(known, float))
    return replace(_correlate(stats.pearsonr, *changes), p_value=math.nan)


def reconfiguration_table(circuits: Circuits | None) -> pd.DataFrame:
    """Return how much of each group's circuit changed from one checkpoint to the next; see RECONFIGURATION_COLUMNS.

    Returns:
        One row per group and pair of consecutive checkpoints, with the step and epoch of the later one; the rate is
        1 - edge Jaccard, 0 where no edge changed.
    """
    if circuits is None:
        return pd.DataFrame(columns=RECONFIGURATION_COLUMNS)
    table, edges, parts = circuits.table.reset_index(drop=True), circuits.edges, []
    for _, rows in table.groupby(circuits.group_columns, sort=False):
        order = rows.sort_values("step").index.to_numpy()
        parts.append(table.loc[order[1:]].assign(rate=1 - topology.jaccard(edges[order[:-1]], edges[order[1:]])))
    return pd.concat(parts, ignore_index=True)[["step", "epoch", *circuits.group_columns, "rate"]]


class SelectionRule(StrEnum):
    """How a checkpoint may be chosen from a run."""

    LOSS = "lowest validation loss"
    KNOWLEDGE = "most facts known twice in a row"
    BALANCE = "knowledge minus skill lost"


def select_checkpoints(probes: pd.DataFrame, saved_steps: Sequence[int] | None = None) -> pd.DataFrame:
    """Return which checkpoint each rule picks, and what that costs; ties go to the earliest.

    Args:
        probes: see `probe_table`; the first row is the model before training.
        saved_steps: choose among these steps only.

    Returns:
        One row per rule that can be applied: rule, step, epoch, loss, known_share, known_twice, skill_lost, and the
        costs loss_excess (over the lowest loss), facts_forgone (facts known twice in a row: the most minus these),
        skill_forgone (share of the base skill lost beyond the least that any checkpoint lost).
    """
    table = probes.assign(skill_lost=skill_lost(probes["skill"]))
    table["balance"] = table["known_share"] - table["skill_lost"]
    chosen = table["step"] > 0
    if saved_steps is not None:
        chosen &= table["step"].isin(list(saved_steps))
    table = table[chosen].reset_index(drop=True)
    table["loss_excess"] = table["loss"] - table["loss"].min()
    table["facts_forgone"] = table["known_twice"].max() - table["known_twice"]
    table["skill_forgone"] = table["skill_lost"] - table["skill_lost"].min()
    scores = {
        SelectionRule.LOSS: -table["loss"],
        SelectionRule.KNOWLEDGE: table["known_twice"].astype(float),
        SelectionRule.BALANCE: table["balance"],
    }
    picks = {
        rule: int(score.idxmax()) for rule, score in scores.items() if score.max() > score.min() or len(table) == 1
    }
    columns = ["step", "epoch", "loss", "known_share", "known_twice", "skill_lost"]
    columns += ["loss_excess", "facts_forgone", "skill_forgone"]
    rows = table.loc[list(picks.values()), columns].reset_index(drop=True)
    rows.insert(0, "rule", [str(rule) for rule in picks])
    return rows
