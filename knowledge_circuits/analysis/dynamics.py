"""What the probes' records say: when facts are learned and whether they stay.

The central object is `known`, a matrix [facts, probes] of booleans: was the fact answered correctly at that probe. The
first probe is the model before training. From it:

    acquisition      the epoch of the first probe that finds the fact known
    known to the end the epoch from which it is known at every probe to the end, which may be the last probe alone;
                     only facts that are *held* (`acquisition.HOLD` probes in a row) are known to stay
    forgetting event a probe that finds a fact unknown that was known at the probe before
    non-monotonic    a fact with at least one forgetting event
    window           the epochs by which 10% and 90% of all acquisitions have been made

after "What Does Loss Optimization Actually Teach, If Anything? Knowledge Dynamics in Continual Pre-training of LLMs"
(2026). In: the run's knowledge_dynamics.jsonl (`read_dynamics`). Out: arrays and tidy tables. Of a run whose probes are
questions (question_probes.jsonl) only skills and texts are read here; its facts are `learning_tables.fact_predictions`.

Shapes: `known` [facts, probes], `epochs` [probes].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from knowledge_circuits.analysis.acquisition import HOLD, held_epochs, known_in_a_row, share_of_ever_known
from knowledge_circuits.files import InputError
from knowledge_circuits.records import PROBE_RECORD, QuestionProbeRecord, shape
from knowledge_circuits.run_config import read_run_config, taught_attributes
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Attribute, Band, KnowledgeType
from knowledge_circuits.training.stopping import Known

FACT_COLUMNS = [
    *("step", "epoch", "full_name", "attribute", "type", "band", "frequency"),
    *("correct", "token_prob", "token_rank", "answer_log_prob"),
]
SKILL_COLUMNS = ["step", "epoch", "skill", "accuracy", "examples"]
TEXT_COLUMNS = ["step", "epoch", "text", "perplexity"]


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dynamics:
    """A run's probe records in the order of the file: a row per probe and fact, skill or text (columns above)."""

    facts: pd.DataFrame
    skills: pd.DataFrame
    texts: pd.DataFrame


@dataclass(frozen=True)
class FactHistory:
    """Which fact was known at which probe.

    Attributes:
        facts: one row per fact: full_name, attribute, type, band, frequency, base_prob (the first probe's probability
            of the target's first token).
        steps: [probes] optimizer steps, ascending.
        epochs: [probes].
        known: [facts, probes] bool.
    """

    facts: pd.DataFrame
    steps: NDArray[np.int64]
    epochs: NDArray[np.float64]
    known: Known


def read_dynamics(path: str | Path) -> Dynamics:
    """Read knowledge_dynamics.jsonl and check every line of it.

    Raises:
        InputError: with file, line and reason; also for a fact that is probed twice at a step, and for probes that do
            not all ask for the same facts.
    """
    tables: dict[str, list[dict[str, Any]]] = {"fact": [], "skill": [], "text": []}
    seen: dict[tuple[Any, ...], int] = {}
    for number, row in shape(PROBE_RECORD).numbered(path):
        key = (row["kind"], row["step"], *(row.get(name) for name in ("full_name", "attribute", "skill", "text")))
        if key in seen:
            raise InputError(
                f"{path}, line {number}: the same probe at the same step already stands on line {seen[key]}"
            )
        seen[key] = number
        tables[row["kind"]].append(row)
    facts = pd.DataFrame(tables["fact"], columns=FACT_COLUMNS)
    facts["band"] = [str(Band.of(frequency)) for frequency in facts["frequency"]]
    counts = facts.groupby("step").size()
    if counts.nunique() > 1 or len(facts) != counts.size * len(facts[["full_name", "attribute"]].drop_duplicates()):
        raise InputError(f"{path}: the probes do not all ask for the same facts ({counts.to_dict()} facts by step)")
    return Dynamics(
        facts,
        pd.DataFrame(tables["skill"], columns=SKILL_COLUMNS),
        pd.DataFrame(tables["text"], columns=TEXT_COLUMNS),
    )


def run_dynamics(run: Run) -> Dynamics:
    """Return a run's probe records of facts that training tells; empty tables where it was trained without probes.

    Probes of questions have skills and texts, and no facts about people.
    """
    if run.knowledge_dynamics.exists():
        dynamics, taught = read_dynamics(run.knowledge_dynamics), taught_attributes(read_run_config(run))
        facts = dynamics.facts[dynamics.facts["attribute"].isin(taught)]
        return replace(dynamics, facts=facts.reset_index(drop=True))
    probes = shape(QuestionProbeRecord).optional_lines(run.question_probes)
    skills, texts = (
        [(probe["step"], probe["epoch"], name, value) for probe in probes for name, value in probe[kind].items()]
        for kind in ("skills", "texts")
    )
    return Dynamics(
        pd.DataFrame(columns=FACT_COLUMNS),
        pd.DataFrame(skills, columns=SKILL_COLUMNS[:4]).reindex(columns=SKILL_COLUMNS),
        pd.DataFrame(texts, columns=TEXT_COLUMNS),
    )


def fact_history(facts: pd.DataFrame) -> FactHistory:
    """Arrange a table of fact probes, which all ask for the same facts, as a matrix; without rows it is empty."""
    wide = facts.pivot(index=["full_name", "attribute"], columns="step", values="correct")
    first = facts[facts["step"] == facts["step"].min()].set_index(["full_name", "attribute"]).loc[wide.index]
    described = first[["type", "band", "frequency", "token_prob"]].rename(columns={"token_prob": "base_prob"})
    epochs = facts.groupby("step")["epoch"].first().loc[wide.columns]
    return FactHistory(
        described.reset_index(),
        wide.columns.to_numpy(dtype=np.int64),
        epochs.to_numpy(dtype=np.float64),
        wide.to_numpy(dtype=bool),
    )


# --- measures of single facts ---------------------------------------------------------------------------------------


def acquisition_epochs(known: Known, epochs: ArrayLike) -> NDArray[np.float64]:
    """Return the epoch [facts] of the first probe that finds each fact known; NaN for facts that are never known.

    What the model knew before training has the first probe's epoch.
    """
    return held_epochs(known, epochs, hold=1)


def known_to_end_epochs(known: Known, epochs: ArrayLike) -> NDArray[np.float64]:
    """Return the epoch [facts] from which each fact is known at every probe to the end; NaN if not at the last one."""
    times, in_a_row = np.asarray(epochs, dtype=np.float64), known_in_a_row(known)
    return np.where(in_a_row > 0, times[np.minimum(known.shape[1] - in_a_row, known.shape[1] - 1)], np.nan)


def forgetting_events(known: Known) -> NDArray[np.int64]:
    """Return how often each fact [facts] was known at one probe and unknown at the next."""
    return (known[:, :-1] & ~known[:, 1:]).sum(axis=1)


def acquisition_window(known: Known, epochs: ArrayLike) -> tuple[float, float]:
    """Return the epochs by which 10% and 90% of all acquisitions have been made; NaN twice where nothing was acquired.

    Facts that the first probe finds known were not acquired in training and do not count.
    """
    acquired = acquisition_epochs(known, epochs)[known.any(axis=1) & ~known[:, 0]]
    if not len(acquired):
        return math.nan, math.nan
    start, end = np.quantile(acquired, (0.1, 0.9), method="inverted_cdf")
    return float(start), float(end)


# --- tables ---------------------------------------------------------------------------------------------------------


def describe_facts(history: FactHistory) -> pd.DataFrame:
    """Return one row per fact: who, what, and its measures (acquisition, known to the end, forgetting, final state)."""
    known = history.known
    return history.facts.assign(
        ever_known=known.any(axis=1),
        known_at_end=known[:, -1],
        acquisition=acquisition_epochs(known, history.epochs),
        known_to_end=known_to_end_epochs(known, history.epochs),
        forgetting_events=forgetting_events(known),
    )


def describe_groups(history: FactHistory, by: Sequence[str] = ("type", "band")) -> pd.DataFrame:
    """Return the measures of each group of facts, one row per group that has facts.

    Args:
        by: columns of `history.facts`; none of them means one row of everything.

    Returns:
        The group's columns, then facts, ever_known (share), known_at_end (share), known_to_end and held (shares of
        ever-known: at the last probe, at the last 5), forgetting_events (per ever-known fact), non_monotonic (share of
        ever-known), acquisition (median epoch), window_start, window_end (epochs), base_prob (mean).
    """
    rows = []
    for names, rows_of_group in _groups(history.facts, by):
        known = history.known[rows_of_group]
        forgotten = forgetting_events(known)
        start, end = acquisition_window(known, history.epochs)
        acquired = acquisition_epochs(known, history.epochs)
        rows.append(
            dict(zip(by, names, strict=True))
            | {
                "facts": len(known),
                "ever_known": float(known.any(axis=1).mean()),
                "known_at_end": float(known[:, -1].mean()),
                "known_to_end": share_of_ever_known(known, known[:, -1]),
                "held": share_of_ever_known(known, known_in_a_row(known) >= HOLD),
                "forgetting_events": share_of_ever_known(known, forgotten),
                "non_monotonic": share_of_ever_known(known, forgotten > 0),
                "acquisition": float(np.nanmedian(acquired)) if known.any() else math.nan,
                "window_start": start,
                "window_end": end,
                "base_prob": float(history.facts["base_prob"].to_numpy()[rows_of_group].mean()),
            }
        )
    return pd.DataFrame(rows)


#: The study's order, where alphabetical order would say high, low, medium.
_ORDER = {name: index for kind in (KnowledgeType, Band, Attribute) for index, name in enumerate(map(str, kind))}


def _groups(facts: pd.DataFrame, by: Sequence[str]) -> list[tuple[tuple[Any, ...], NDArray[np.int64]]]:
    """Return the groups' names and their facts' row numbers, in the study's order."""
    if not by:
        return [((), np.arange(len(facts)))] if len(facts) else []
    groups = [(names, rows.index.to_numpy()) for names, rows in facts.reset_index(drop=True).groupby(list(by))]
    return sorted(groups, key=lambda group: [(_ORDER.get(name, -1), str(name)) for name in group[0]])
