"""Figures of a study of documents: strategies side by side, the references as lines.

Each function takes a `documents.DocumentStudy` (or a finding of it) and returns a Matplotlib `Figure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from knowledge_circuits.analysis.document_claims import ALL
from knowledge_circuits.analysis.document_tables import circuit_tables, group_table, probe_tables, reference_table
from knowledge_circuits.analysis.documents import FULL, STRATEGIES, DocumentStudy
from knowledge_circuits.analysis.findings import Finding, Statistic
from knowledge_circuits.corpus.questions import HIGH, LOW
from knowledge_circuits.figures import style
from knowledge_circuits.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Look

_COLORS = (BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = "os^DvPX"
#: Panels in a row.
_COLUMNS = 4


def looks(study: DocumentStudy) -> Mapping[str, Look]:
    """Return how each strategy is drawn; the named ones look alike in every study."""
    named = {name: style.plain(name) for name in (FULL, *STRATEGIES.values())}
    others = {name: style.plain(name) for name in study.strategies if name not in named}
    drawn = style.looks_of(named, _COLORS, _MARKERS) | style.looks_of(others, [GREY], _MARKERS)
    return {name: drawn[name] for name in study.strategies}


@style.styled
def over_epochs(study: DocumentStudy) -> Figure:
    """Knowledge, loss and skill over epochs by strategy; the references are lines in the panels of knowledge."""
    table, references = probe_tables(study), reference_table(study)
    panels = {
        "recall": "mean recall of the answers",
        "known_share": "learned entities, share",
        "loss": "loss of the documents (nats per token)",
        "skill": "skill accuracy",
        "text_perplexity": "perplexity of held-out text",
        "agreement": "paraphrases that agree, share",
        "invented": "unmentioned entities: invented answers",
        "borrowed": "unmentioned entities: borrowed answers",
    }
    figure, axes = style.grid(
        "Knowledge, loss and skill over epochs", "", 2, 4, width=13.0, height=6.2, share_y=False,
        note=f"{style.plain(study.name)}: mean over seeds; dashed, answers without training; dotted, floor of recall: "
        "the same answers scored as answers about other entities (mean of the strategies)",
    )  # fmt: skip
    for ax, (column, title) in zip(axes.flat, panels.items(), strict=True):
        _draw_strategies(ax, table, column, study)
        ax.set(title=title, xlabel="epoch")
        if column in references:
            _draw_references(ax, references, column)
        if column == "recall":
            floor = table.groupby("epoch")["recall_floor"].mean()
            ax.plot(floor.index, floor, color=BLACK, linestyle=":", linewidth=1.8)
        if column not in ("loss", "text_perplexity"):
            ax.set_ylim(-0.02, 1.02)
    return style.legend(figure, looks(study))


def _draw_strategies(ax: Axes, table: pd.DataFrame, column: str, study: DocumentStudy) -> None:
    values = table.dropna(subset=[column])
    if values.empty:
        style.blank(ax, "not measured")
        return
    for name, look in looks(study).items():
        means = values[values["strategy"] == name].groupby("epoch")[column].mean()
        ax.plot(means.index, means, color=look.color, marker=look.marker, markersize=4, linewidth=1.4)


def _draw_references(ax: Axes, references: pd.DataFrame, column: str) -> None:
    """Draw a line for each reference, named at the left, where curves are low; close ones share a label."""
    near: list[list[tuple[float, str]]] = []
    for row in references.sort_values(column).to_dict("records"):
        ax.axhline(row[column], color=GREY, linestyle="--", linewidth=0.9)
        if not near or row[column] - near[-1][-1][0] >= 0.06:
            near.append([])
        near[-1].append((row[column], style.plain(row["reference"])))
    for lines in near:
        below = lines is near[0] and lines[0][0] > 0.05
        label, end = ",\n".join(name for _, name in lines), lines[0 if below else -1][0]
        where = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "top" if below else "bottom"}
        ax.annotate(label, (0.01, end), fontsize=6.5, color=GREY, **where)


def _strategy_panels(title: str, table: pd.DataFrame, label: str, note: str) -> tuple[Figure, list[tuple[Axes, Any]]]:
    """Open a figure with a panel for each strategy of a table; return it, and the panels with their rows by epoch."""
    parts = list(table.groupby("strategy", sort=False))
    rows = -(-len(parts) // _COLUMNS)
    figure, axes = style.grid(title, "", rows, _COLUMNS, width=12.4, height=0.8 + 2.5 * rows, note=note)
    panels = []
    for ax, (name, part) in zip(axes.flat, parts, strict=False):
        ax.set(title=style.plain(name), xlabel="epoch")
        panels.append((ax, part.groupby("epoch")))
    for ax in axes.flat[len(parts) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    return figure, panels


@style.styled
def learned_and_forgotten(study: DocumentStudy) -> Figure:
    """Kept and newly learned entities at each probe as stacked bars, forgotten ones below the axis."""
    table = probe_tables(study)
    note = f"{style.plain(study.name)}: mean over seeds; against the probe before; dotted, all mentioned entities"
    figure, panels = _strategy_panels("Learned, kept and forgotten entities", table, "entities", note)
    for ax, by_epoch in panels:
        means = by_epoch[["kept", "newly_learned", "forgotten"]].mean()
        at = np.arange(len(means))
        ax.bar(at, means["kept"], color=BLUE, width=0.75)
        ax.bar(at, means["newly_learned"], bottom=means["kept"], color=SKY, width=0.75)
        ax.bar(at, -means["forgotten"], color=VERMILION, width=0.75)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.axhline(0, color=BLACK, linewidth=0.8)
        ax.axhline(table["entities"].max(), color=GREY, linestyle=":", linewidth=1)
        ax.set_xticks(at, [f"{epoch:g}" for epoch in means.index])
    labels = {BLUE: "kept", SKY: "newly learned", VERMILION: "forgotten"}
    return style.legend_row(figure, [Patch(color=color, label=label) for color, label in labels.items()])


@style.styled
def cost(study: DocumentStudy) -> Figure:
    """Mean recall against what training cost: documents seen, and minutes."""
    table = probe_tables(study)
    figure, axes = style.grid(
        "Knowledge and its cost", "", 1, 2, height=3.4,
        note=f"{style.plain(study.name)}: a line for each run; minutes of training without the probes",
    )  # fmt: skip
    for ax, column in zip(axes[0], ("documents_seen", "minutes"), strict=True):
        for name, look in looks(study).items():
            for _, run in table[table["strategy"] == name].groupby("seed"):
                ax.plot(run[column], run["recall"], color=look.color, marker=look.marker, markersize=4, linewidth=1.2)
        ax.set_xlabel(column.replace("_", " "))
    axes[0, 0].set_ylabel("mean recall")
    return style.legend(figure, looks(study))


@style.styled
def exposure(study: DocumentStudy) -> Figure:
    """Recall before and after training of entities with few and with many documents, by kind of question."""
    table = group_table(study)
    table = table[table["frequency"].isin([LOW, HIGH])]
    if table.empty:
        return style.missing("Exposure", "The questions tell no entities of low and high frequency apart.", study.name)
    kinds = list(dict.fromkeys(table["kind"]))
    figure, axes = style.grid(
        "Exposure: recall before and after training", "", 1, len(kinds), width=3.4 * len(kinds) + 1.4, height=3.6,
        note=f"{style.plain(study.name)}: mean over seeds; grey, before training; light, low frequency; dark, high",
    )  # fmt: skip
    names = study.strategies
    for ax, kind in zip(axes[0], kinds, strict=True):
        for offset, frequency, color in ((-0.2, LOW, SKY), (0.2, HIGH, BLUE)):
            rows = table[(table["kind"] == kind) & (table["frequency"] == frequency)]
            means = rows.groupby("strategy")[["recall_start", "recall_end"]].mean().reindex(names)
            at = np.arange(len(names)) + offset
            ax.bar(at, means["recall_end"], width=0.36, color=color)
            ax.plot(at, means["recall_start"], "_", color=GREY, markersize=11, markeredgewidth=2)
        ax.set_xticks(range(len(names)), [style.plain(name) for name in names], rotation=40, ha="right", fontsize=7.5)
        ax.set_title(f"questions: {style.plain(kind)}")
    axes[0, 0].set_ylabel("mean recall")
    return figure


@style.styled
def reconfiguration(study: DocumentStudy) -> Figure:
    """Turnover of the circuits' edges from probe to probe and its split-half floor, by strategy."""
    table = circuit_tables(study).dropna(subset=["turnover"])
    if table.empty:
        message = "No circuits yet: python -m knowledge_circuits.analysis facts measures them."
        return style.missing("Circuits over epochs", message, study.name)
    title, note = "How much circuits change from checkpoint to checkpoint", "mean over groups of prompts and seeds"
    figure, panels = _strategy_panels(title, table, "1 - edge Jaccard", f"{style.plain(study.name)}: {note}")
    for ax, by_epoch in panels:
        means = by_epoch[["turnover", "turnover_floor"]].mean()
        ax.plot(means.index, means["turnover"], "o-", color=BLUE, markersize=4)
        ax.plot(means.index, means["turnover_floor"], "^--", color=ORANGE, markersize=4)
        ax.set_ylim(0, 1)
    handles = [
        Line2D([], [], color=BLUE, marker="o", label="turnover between halves before and after"),
        Line2D([], [], color=ORANGE, marker="^", linestyle="--", label="floor: halves at one checkpoint"),
    ]
    return style.legend_row(figure, handles)


@style.styled
def by_strategy(finding: Finding, name: str) -> Figure:
    """Draw a finding's numbers with their 95% intervals: each strategy, and the mean, one panel per statistic."""
    measured = [s for s in finding.statistics if np.isfinite(s.estimate)]
    parts = {name: [s for s in measured if s.name == name] for name in dict.fromkeys(s.name for s in measured)}
    if not parts:
        return style.missing(finding.title, "Nothing was measured.", name)
    most = max(map(len, parts.values()))
    columns = min(2, len(parts))
    rows = -(-len(parts) // columns)
    figure, axes = style.grid(
        f"{finding.title}: {finding.verdict}", "", rows, columns, width=5.4 * columns,
        height=0.7 + rows * (0.8 + 0.24 * most), share_y=False,
        note=f"{style.plain(name)}: 95% intervals, where there are any; dashed, the claim's line",
    )  # fmt: skip
    for ax, (title, statistics) in zip(axes.flat, parts.items(), strict=False):
        _draw_intervals(ax, title, statistics)
    for ax in axes.flat[len(parts) :]:
        ax.set_axis_off()
    return figure


def _draw_intervals(ax: Axes, title: str, statistics: Sequence[Statistic]) -> None:
    for row, statistic in enumerate(statistics):
        color, marker = (BLACK, "D") if statistic.where == ALL else (BLUE, "o")
        ax.plot([statistic.low, statistic.high], [row, row], color=color, linewidth=2)
        ax.plot(statistic.estimate, row, marker, color=color, markersize=5)
    claim = f" (claim: {statistics[0].claim})" if statistics[0].claim else ""
    if claim:
        ax.axvline(statistics[0].line, color=BLACK, linewidth=0.9, linestyle="--")
    ax.set_yticks(range(len(statistics)), [style.plain(statistic.where) for statistic in statistics])
    ax.set_ylim(len(statistics) - 0.4, -0.6)
    ax.set_title("\n".join(wrap(f"{title}{claim}", 62)), fontsize=8)
