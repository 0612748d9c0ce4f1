"""The report's section on the probes inside training: what was acquired, what stayed, what stopping would have cost.

Numbers come from `dynamics`; here they become sentences, tables of text and three figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from knowledge_circuits import dynamics, plots
from knowledge_circuits.dynamics import Correlation, FactHistory
from knowledge_circuits.plots import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, Look
from knowledge_circuits.report_figures import DrawnFigure, embed
from knowledge_circuits.report_material import Material
from knowledge_circuits.study import KnowledgeType

LACKING = "This run was trained without probes; train.py --probe_file writes knowledge_dynamics.jsonl."


@dataclass(frozen=True)
class TextTable:
    """A table as a page shows it.

    Attributes:
        caption: what it is.
        header: the columns' names.
        rows: [rows][columns] of text.
        words: how many columns at the left hold words rather than numbers.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    words: int = 1


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
    probes = dynamics.probe_table(records, losses)
    rates = _reconfiguration(material)
    return DynamicsSection(
        lacking="",
        sentences=(_acquired(history), *_relations(history, probes, rates)),
        tables=(_group_table(history), _rule_table(probes)),
        figures=(
            embed(
                _knowledge_figure(probes, material.name),
                "Left, facts known at each probe and those that stayed known at two probes in a row, beside the loss. "
                "Right, facts gained and lost from probe to probe: what a smooth loss hides.",
            ),
            embed(
                _timing_figure(history, material.name),
                "The share of facts acquired by each epoch (solid) and known from that epoch to the end (dashed). "
                "The gap between the two is what was learned and lost before it settled.",
            ),
            embed(
                _cost_figure(probes, rates, material.name),
                "What training costs and moves: general skill, perplexity of held-out text, and the share of the "
                "circuits' edges that changes between consecutive checkpoints.",
            ),
        ),
    )


# --- sentences --------------------------------------------------------------------------------------------------------


def _acquired(history: FactHistory) -> str:
    """Acquisition, consolidation and forgetting of all facts together."""
    row = dynamics.describe_groups(history, by=()).iloc[0]
    events = int(dynamics.forgetting_events(history.known).sum())
    text = (
        f"{len(history.known):,} facts were probed {len(history.steps)} times. {row['ever_known']:.0%} were known at "
        f"some probe, {row['known_at_end']:.0%} at the last one."
    )
    if row["ever_known"] == 0:
        return text
    return (
        f"{text} Of those ever known, {row['consolidated']:.0%} were consolidated (known from some epoch to the end) "
        f"and {row['non_monotonic']:.0%} were forgotten at least once, {events:,} forgetting events in all. The middle "
        f"80% of all acquisitions fell between epochs {row['window_start']:.3g} and {row['window_end']:.3g}."
    )


def _relations(history: FactHistory, probes: pd.DataFrame, rates: pd.Series) -> list[str]:
    """Loss and knowledge, prior exposure, reconfiguration."""
    loss = dynamics.loss_knowledge_correlation(probes["loss"], probes["known"])
    prior = dynamics.prior_exposure(history)
    parts = [
        f"The change of validation loss and the change of known facts: Pearson's correlation {_correlation(loss)} "
        "(near -1 the loss tells when facts are learned, near 0 it does not).",
        "Epoch of acquisition against the base model's probability of the answer: Spearman's correlation "
        f"{_correlation(prior['acquisition ~ base_prob'])}; against the frequency of the biography: "
        f"{_correlation(prior['acquisition ~ frequency'])} (below 0: learned earlier).",
    ]
    if len(rates):
        parts.append(
            f"From one checkpoint to the next {rates.iloc[0]:.0%} of the circuits' edges changed at first and "
            f"{rates.iloc[-1]:.0%} at last (1 - edge Jaccard, mean of the groups)."
        )
    return parts


def _correlation(found: Correlation) -> str:
    if not math.isfinite(found.value):
        return "not defined"
    return f"{found.value:+.2f} (p = {found.p_value:.2g}, n = {found.pairs:,})"


def _reconfiguration(material: Material) -> pd.Series:
    """1 - edge Jaccard of consecutive checkpoints, mean over the groups, by the epoch of the later one."""
    if material.circuits is None or len(material.circuits.steps) < 2:
        return pd.Series(dtype=float)
    alike: NDArray[Any] = np.diag(material.circuits.similarity(), 1)
    return pd.Series(dynamics.reconfiguration_rate(alike), index=material.circuits.epochs[1:]).dropna()


# --- tables -----------------------------------------------------------------------------------------------------------


def _group_table(history: FactHistory) -> TextTable:
    table = dynamics.describe_groups(history)
    rows = [
        [
            KnowledgeType(row.type).symbol,
            str(row.band),
            f"{row.facts:,}",
            *(_share(value) for value in (row.ever_known, row.known_at_end, row.consolidated, row.non_monotonic)),
            _number(row.forgetting_events, ".2f"),
            _number(row.acquisition, ".3g"),
            "–" if math.isnan(row.window_start) else f"{row.window_start:.3g} to {row.window_end:.3g}",
            _number(row.base_prob, ".2g"),
        ]
        for row in table.itertuples()
    ]
    header = ["type", "band", "facts", "ever known", "known at end", "consolidated", "non-monotonic"]
    header += ["forgetting events a fact", "median acquisition (epoch)", "10% to 90% window", "base probability"]
    caption = "Acquisition, consolidation and forgetting by group (consolidated and non-monotonic: of those ever known)"
    return TextTable(caption, header, rows, words=2)


def _rule_table(probes: pd.DataFrame) -> TextTable:
    table = dynamics.select_checkpoints(probes)
    rows = [
        [
            str(row.rule),
            f"{row.epoch:.3g}",
            f"{row.step:,}",
            _number(row.loss, ".3f"),
            _number(row.loss_excess, "+.3f"),
            _share(row.known_share),
            f"{row.consolidated:,}",
            f"{row.facts_forgone:,}",
            _share(row.skill_lost),
            _share(row.skill_forgone),
        ]
        for row in table.itertuples()
    ]
    header = ["rule", "epoch", "step", "loss", "over the lowest", "known", "consolidated", "facts forgone"]
    header += ["skill lost", "more than need be"]
    return TextTable("Which probe's checkpoint each stopping rule would pick, and what that costs", header, rows)


def _number(value: float, form: str) -> str:
    return "–" if pd.isna(value) else format(value, form)


def _share(value: float) -> str:
    return _number(value, ".0%")


# --- figures ----------------------------------------------------------------------------------------------------------


@plots.styled
def _knowledge_figure(probes: pd.DataFrame, run: str) -> Figure:
    figure, axes = plots.grid("Facts known, gained and lost", run, 1, 2, share_y=False)
    known, moved = axes[0]
    known.plot(probes["epoch"], probes["known"], "o-", color=BLACK, markersize=3.5, label="known")
    known.plot(probes["epoch"], probes["consolidated"], "s-", color=GREEN, markersize=3.5, label="known twice in a row")
    known.set(xlabel="epoch", ylabel="facts", title="Knowledge and loss")
    if probes["loss"].notna().any():
        beside = known.twinx()
        measured = probes.dropna(subset=["loss"])
        beside.plot(measured["epoch"], measured["loss"], "--", color=GREY, linewidth=1.2)
        beside.set_ylabel("validation loss (nats, dashed)")
        beside.grid(False)
        beside.spines["right"].set_visible(True)
    known.legend(loc="upper left")
    known.set_ylim(top=1.2 * max(float(probes["known"].max()), 1))
    width = 0.8 * float(np.diff(probes["epoch"]).min()) if len(probes) > 1 else 0.8
    moved.bar(probes["epoch"], probes["gained"], width, color=BLUE, label="gained")
    moved.bar(probes["epoch"], -probes["lost"], width, color=VERMILION, label="lost")
    moved.axhline(0, color=BLACK, linewidth=0.8)
    moved.set(xlabel="epoch", ylabel="facts since the probe before", title="Gained and lost")
    moved.legend()
    for ax in (known, moved):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@plots.styled
def _timing_figure(history: FactHistory, run: str) -> Figure:
    note = "mean of a group's facts; solid: acquired by then, dashed: known from then to the end"
    figure, axes = plots.grid("Acquisition and consolidation", run, 1, len(plots.BANDS), note=note)
    facts = dynamics.describe_facts(history)
    for ax, (band, look) in zip(axes[0], plots.BANDS.items(), strict=True):
        for knowledge, line in plots.TYPES.items():
            part = facts[(facts["type"] == knowledge) & (facts["band"] == band)]
            if len(part):
                for column, style in (("acquisition", "-"), ("consolidation", "--")):
                    reached = [(part[column] <= epoch).mean() for epoch in history.epochs]
                    ax.plot(history.epochs, reached, style, color=line.color, linewidth=1.7)
        plots.share_axis(ax)
        ax.set_title(look.label)
    plots.label_axes(axes, "share of facts")
    return plots.legend(figure, {key: Look(line.label, line.color, "") for key, line in plots.TYPES.items()})


@plots.styled
def _cost_figure(probes: pd.DataFrame, rates: pd.Series, run: str) -> Figure:
    figure, axes = plots.grid(
        "General skill, held-out text and the circuits' reconfiguration", run, 1, 3, share_y=False
    )
    lines = (
        ("General skill", "accuracy", probes["epoch"], probes["skill"], ORANGE, "no skills probed"),
        ("Held-out text", "perplexity", probes["epoch"], probes["perplexity"], BLUE, "no text probed"),
        ("Reconfiguration", "1 - edge Jaccard", rates.index, rates, GREEN, "no circuits at two checkpoints"),
    )
    for ax, (title, label, x, y, color, lacking) in zip(axes[0], lines, strict=True):
        values = np.asarray(y, dtype=float)
        if not np.isfinite(values).any():
            plots.blank(ax, lacking)
            continue
        plots.draw_curve(ax, x, values, Look(label, color, "o"), band=False)
        ax.set(title=title, xlabel="epoch", ylabel=label)
    return figure
