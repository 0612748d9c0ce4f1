"""The report's section on the probes inside training: what was acquired, what stayed, what stopping would have cost.

Numbers come from `dynamics`; here they become sentences and tables of text, beside the figures of `figures.dynamics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from knowledge_circuits.analysis import dynamics, relations
from knowledge_circuits.analysis.acquisition import HOLD, hold_table, loss_correlations
from knowledge_circuits.analysis.dynamics import Dynamics, FactHistory
from knowledge_circuits.figures import dynamics as figures
from knowledge_circuits.figures.dynamics import correlation_text
from knowledge_circuits.report.material import Material
from knowledge_circuits.report.section import DrawnFigure, TextTable, embed, number
from knowledge_circuits.study import KnowledgeType

LACKING = "This run was trained without probes; train.py --probe_file writes knowledge_dynamics.jsonl."


@dataclass(frozen=True)
class DynamicsSection:
    """What the page says of the probes; `lacking` says why there is nothing."""

    lacking: str
    sentences: tuple[str, ...] = ()
    tables: tuple[TextTable, ...] = ()
    figures: tuple[DrawnFigure, ...] = ()


def dynamics_section(material: Material) -> DynamicsSection:
    """Sentences, tables and figures on a run's probes."""
    records = material.dynamics
    if records is None or records.facts.empty:
        return DynamicsSection(LACKING)
    history = dynamics.fact_history(records.facts)
    losses = material.evaluations if "loss" in material.evaluations else None
    probes = relations.probe_table(records, losses)
    saved = [checkpoint.step for checkpoint in material.run.checkpoints() if checkpoint.step is not None]
    changes = relations.reconfiguration_table(material.circuits)
    return DynamicsSection(
        lacking="",
        sentences=(_acquired(history), *_relations(history, probes, changes)),
        tables=(_group_table(history), _hold_table(history), _rule_table(probes, saved)),
        figures=tuple(_figures(material.name, records, history, probes, saved, changes)),
    )


def _figures(
    name: str, records: Dynamics, history: FactHistory, probes: pd.DataFrame, saved: list[int], changes: pd.DataFrame
) -> Iterator[DrawnFigure]:
    """Yield the figures of `figures.dynamics`, with what to look for in each."""
    yield embed(
        figures.knowledge_and_loss(probes, name),
        "Left, facts known at each probe and those that stayed known at two probes in a row, beside the loss. Right, "
        "facts gained and lost from probe to probe: what a smooth loss hides.",
    )
    yield embed(
        figures.known_facts(history, name),
        "What the probes find known, by knowledge type within each frequency band.",
    )
    yield embed(
        figures.acquisition_epochs(history, name),
        "When facts are first known. A short window says that a group is learned in a few epochs.",
    )
    yield embed(
        figures.acquired_and_known_to_end(history, name),
        "The gap between a solid and a dashed line is what was learned and lost again before it settled.",
    )
    yield embed(
        figures.forgetting(history, name),
        "How often facts were lost again, and which share of those ever known stayed.",
    )
    yield embed(
        figures.prior_exposure(history, name),
        "Rising lines say that what the base model found likelier, or the corpus tells more often, is learned more. "
        "Correlations are over facts, their p over people.",
    )
    yield embed(
        figures.loss_and_knowledge(probes, name),
        "If the loss told when facts are learned, points would fall from the upper left to the lower right; so they do "
        "where both curves flatten out.",
    )
    yield embed(
        figures.skills_text_and_circuits(records.skills, records.texts, changes, name),
        "What training costs (general skill, text outside the domain) and how much it moves the circuits.",
    )
    yield embed(
        figures.selected_checkpoints(probes, name, saved),
        "The checkpoint that each rule would take. Rules that pick neighbouring probes may differ by chance.",
    )


# --- sentences --------------------------------------------------------------------------------------------------------


def _acquired(history: FactHistory) -> str:
    """Acquisition, holding and forgetting of all facts together."""
    row = dynamics.describe_groups(history, by=()).iloc[0]
    events = int(dynamics.forgetting_events(history.known).sum())
    text = (
        f"{len(history.known):,} facts were probed {len(history.steps)} times. {row['ever_known']:.0%} were known at "
        f"some probe, {row['known_at_end']:.0%} at the last one."
    )
    if row["ever_known"] == 0:
        return text
    return (
        f"{text} Of those ever known, {row['known_to_end']:.0%} were known at the last probe, {row['held']:.0%} at "
        f"each of the last {HOLD}, and {row['non_monotonic']:.0%} were forgotten at least once, {events:,} forgetting "
        f"events in all. The middle 80% of all acquisitions fell between epochs {row['window_start']:.3g} and "
        f"{row['window_end']:.3g}."
    )


def _relations(history: FactHistory, probes: pd.DataFrame, changes: pd.DataFrame) -> list[str]:
    """Loss and knowledge, prior exposure, reconfiguration."""
    loss = loss_correlations(probes["epoch"], probes["loss"], probes["known"])
    correlations = "; ".join(
        f"{row.of} {number(row.correlation, '+.2f')}" + (f" (p = {row.p:.2g})" if np.isfinite(row.p) else "")
        for row in loss.itertuples()
    )
    prior = relations.prior_exposure(history)
    parts = [
        f"Validation loss and known facts, Pearson's correlations: {correlations}. If the loss told when facts are "
        "learned, changes would correlate near -1. Both follow training time, and two unrelated curves that flatten "
        "out correlate nearly as strongly. Only changes beyond the trends (each series' best smooth curve) have a p, "
        "by circular shifts.",
        "Epoch of acquisition against the base model's probability of the answer: Spearman's correlation "
        f"{correlation_text(prior['acquisition ~ base_prob'])}; against the frequency of the biography: "
        f"{correlation_text(prior['acquisition ~ frequency'])} (below 0: learned earlier; p over people).",
    ]
    rates = changes.groupby("epoch")["rate"].mean()
    if len(rates):
        parts.append(
            f"1 - edge Jaccard of the circuits of consecutive checkpoints is {rates.iloc[0]:.2f} at first and "
            f"{rates.iloc[-1]:.2f} at last (mean of the groups). Two halves of the prompts differ in the same weights, "
            "too: see the split-half floor under Stability."
        )
    return parts


# --- tables -----------------------------------------------------------------------------------------------------------


def _group_table(history: FactHistory) -> TextTable:
    table = dynamics.describe_groups(history)
    rows = [
        [
            KnowledgeType(row.type).symbol,
            str(row.band),
            f"{row.facts:,}",
            *(_share(value) for value in (row.ever_known, row.known_at_end, row.held, row.non_monotonic)),
            number(row.forgetting_events, ".2f"),
            number(row.acquisition, ".3g"),
            "–" if pd.isna(row.window_start) else f"{row.window_start:.3g} to {row.window_end:.3g}",
            number(row.base_prob, ".2g"),
        ]
        for row in table.itertuples()
    ]
    header = ["type", "band", "facts", "ever known", "known at end", f"held {HOLD} probes", "non-monotonic"]
    header += ["forgetting events a fact", "median acquisition (epoch)", "10% to 90% window", "base probability"]
    caption = "Acquisition, holding and forgetting by group (held at the end and non-monotonic: of those ever known)"
    return TextTable(caption, header, rows, words=2)


def _hold_table(history: FactHistory) -> TextTable:
    """Return how many facts count as held, by the number of probes in a row that it takes."""
    table = hold_table(history.known)
    rows = [[str(row.hold), *map(_share, (row.held, row.held_at_end, row.lost, row.censored))]
            for row in table.itertuples()]  # fmt: skip
    caption = (
        "Held facts by the number of probes in a row (shares of those ever known). Censored: known at the last probe, "
        "but not for so many"
    )
    return TextTable(caption, ["probes in a row", "held at some time", "held at the end", "lost", "censored"], rows)


def _rule_table(probes: pd.DataFrame, saved: list[int]) -> TextTable:
    table = relations.select_checkpoints(probes, saved)
    rows = [
        [
            str(row.rule),
            f"{row.epoch:.3g}",
            f"{row.step:,}",
            number(row.loss, ".3f"),
            number(row.loss_excess, "+.3f"),
            _share(row.known_share),
            f"{row.known_twice:,}",
            f"{row.facts_forgone:,}",
            _share(row.skill_lost),
            _share(row.skill_forgone),
        ]
        for row in table.itertuples()
    ]
    header = ["rule", "epoch", "step", "loss", "over the lowest", "known", "twice in a row", "facts forgone"]
    header += ["skill lost", "more than need be"]
    return TextTable("Which checkpoint each stopping rule would pick, and what that costs", header, rows)


def _share(value: float) -> str:
    return number(value, ".0%")
