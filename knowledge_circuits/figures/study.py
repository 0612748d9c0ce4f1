"""Figures of a designed study: every seed's numbers beside their mean, and the curves that they are taken from.

Each function takes a study's table or a `findings.Finding` and the study's name and returns a Matplotlib `Figure`.
"""

from __future__ import annotations

from textwrap import wrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from knowledge_circuits.analysis.findings import EDGE, Finding, Statistic
from knowledge_circuits.analysis.study_findings import CURVES, STILL_KNOWN, main_dose, study_curves
from knowledge_circuits.analysis.study_tables import People, Told
from knowledge_circuits.figures import style
from knowledge_circuits.figures.style import BLACK, BLUE, GREY, ORANGE, VERMILION, Look

#: Statistics in a row of a forest plot.
_COLUMNS = 3


@style.styled
def forest(finding: Finding, name: str) -> Figure:
    """Draw each seed's number and the mean over seeds with its 95% t interval, one panel per statistic of the claim."""
    shown = [s for s in finding.statistics if s.by_seed and s.claim and np.isfinite(s.low)]
    if not shown:
        return style.missing(finding.title, "An interval needs two seeds.", name)
    rows, seeds = -(-len(shown) // _COLUMNS), max(len(s.by_seed) for s in shown)
    figure, axes = style.grid(
        f"{finding.title}: {finding.verdict}", "", rows, min(_COLUMNS, len(shown)),
        height=0.6 + rows * (1.1 + 0.2 * seeds), share_y=False,
        note=f"{style.plain(name)}: grey, the seeds; "
        "below them the mean and its 95% t interval over seeds, not corrected",
    )  # fmt: skip
    for ax, statistic in zip(axes.flat, shown, strict=False):
        _draw_forest(ax, statistic)
        parts = [s for s in shown if s.name == statistic.name]  # the parts of one quantity have one scale
        reach = [0.0, statistic.line, *(limit for s in parts for limit in (s.low, s.high, *s.by_seed.values()))]
        margin = 0.04 * (max(reach) - min(reach))
        ax.set_xlim(min(reach) - margin, max(reach) + margin)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    return style.legend_row(figure, _break_handles(GREY, "o")) if any(s.edge_seeds for s in shown) else figure


def _break_handles(color: str, marker: str) -> list[Line2D]:
    """Return what tells seeds whose two segments break within the search from those that break at its edge."""
    return [
        Line2D([], [], linestyle="none", color=color, marker=marker, markersize=5, mfc=face, label=f"a seed: {label}")
        for face, label in ((color, "break within the search"), ("white", EDGE))
    ]


def _draw_forest(ax: Axes, statistic: Statistic) -> None:
    """Draw one statistic: seeds from the top, the mean at the bottom; open where a seed's break is at the edge."""
    seeds = list(statistic.by_seed)
    for row, (seed, value) in enumerate(statistic.by_seed.items()):
        face = "white" if seed in statistic.edge_seeds else GREY
        ax.plot(value, row, "o", color=GREY, markerfacecolor=face, markersize=4.5)
    ax.plot([statistic.low, statistic.high], [len(seeds)] * 2, color=BLUE, linewidth=2.2)
    ax.plot(statistic.estimate, len(seeds), "D", color=BLUE, markersize=6)
    ax.axvline(0, color=BLACK, linewidth=0.9)
    if statistic.line:
        ax.axvline(statistic.line, color=BLACK, linewidth=0.9, linestyle="--")
    ax.set_yticks(range(len(seeds) + 1), [*(f"seed {seed}" for seed in seeds), "mean"])
    ax.set_ylim(len(seeds) + 0.6, -0.6)
    ax.locator_params(axis="x", nbins=5)
    ax.set_title("\n".join(wrap(f"{statistic.name} ({statistic.where}; claim: {statistic.claim})", 48)), fontsize=8)


@style.styled
def learning(table: pd.DataFrame, name: str) -> Figure:
    """New facts of known and of unknown people, and the past's facts, over the epochs of the main dose's runs."""
    dose = main_dose(table)
    at_dose = table[table["dose"] == dose]
    new, past = at_dose[at_dose["told"] == Told.NEW], at_dose[(at_dose["told"] == Told.PAST) & at_dose["known"]]
    looks = {True: Look("known before", VERMILION, "o"), False: Look("unknown", BLUE, "s")}
    note = f"{style.plain(name)}, dose {dose:g}: thin, seeds; points, their mean"
    figure, axes = style.grid("What was learned", "", 1, 3, height=3.2, note=note)
    for ax, column, label in zip(axes[0], ("accuracy", "hit10"), ("first-token accuracy", "Hit@10"), strict=False):
        for known, look in looks.items():
            _draw_seeds(ax, new[new["known"] == known], column, look)
        ax.set_title(f"new facts: {label}")
    _draw_seeds(axes[0, 2], past, "accuracy", Look("past", BLACK, "D"))
    axes[0, 2].axhline(STILL_KNOWN, color=ORANGE, linestyle="--", linewidth=1.2)
    axes[0, 2].set_title("past facts: first-token accuracy")
    for ax in axes[0]:
        ax.set(xlabel="epoch", ylim=(0, 1.02))
    axes[0, 0].set_ylabel("share of facts")
    return style.legend(figure, looks)


def _draw_seeds(ax: Axes, rows: pd.DataFrame, column: str, look: Look) -> None:
    """Draw a line per seed and the points of their mean."""
    means = rows.groupby(["seed", "epoch"])[column].mean().unstack("seed")
    if means.empty:
        return
    ax.plot(means.index, means.to_numpy(), color=look.color, linewidth=0.7, alpha=0.5)
    ax.plot(means.index, means.mean(axis=1), look.marker, color=look.color, markersize=4)


@style.styled
def evolution(table: pd.DataFrame, finding: Finding, name: str) -> Figure:
    """Draw the three curves that may bend, and the centroid, seed by seed, with each seed's break and its interval."""
    names = {**CURVES, "centroid": "centroid of the edges (layers)"}
    figure, axes = style.grid(
        "How the circuits change", "", 2, 2, height=5.4, share_y=False,
        note=f"{style.plain(name)}: mean of the groups of taught people; "
        "shaded, 95% interval of the break of two segments",
    )  # fmt: skip
    breaks = {s.name: s for s in finding.statistics if s.name.endswith("break point (epoch)")}
    for ax, (column, label) in zip(axes.flat, names.items(), strict=True):
        x, y, _ = study_curves(table, column)
        ax.set(title=label, xlabel="epoch")
        if not len(x):
            style.blank(ax, "no checkpoint that all seeds have")
            continue
        ax.plot(x, y.T, color=BLUE, linewidth=0.7, alpha=0.6)
        ax.plot(x, y.mean(axis=0), "o", color=BLACK, markersize=4)
        interval = breaks.get(f"{label}: break point (epoch)")
        if interval is not None:
            _draw_breaks(ax, interval, x)
        if column == "turnover":
            ax.axhline(0, color=GREY, linewidth=0.9)
    return style.legend_row(figure, _break_handles(ORANGE, "D")) if breaks else figure


def _draw_breaks(ax: Axes, breaks: Statistic, x: NDArray[np.float64]) -> None:
    """Mark the seeds' breaks along the axis of epochs x [n], and shade the interval of their mean."""
    if np.isfinite(breaks.low):
        ax.axvspan(max(breaks.low, x[0]), min(breaks.high, x[-1]), color=ORANGE, alpha=0.2, linewidth=0)
    for row, (seed, epoch) in enumerate(breaks.by_seed.items()):
        look = {"color": ORANGE, "markersize": 5, "markerfacecolor": "white" if seed in breaks.edge_seeds else ORANGE}
        ax.plot(epoch, 0.94 - 0.06 * row, "D", transform=ax.get_xaxis_transform(), **look)


@style.styled
def floors(table: pd.DataFrame, name: str) -> Figure:
    """Circuits of taught people beside what shows where nothing is: random circuits, people never taught, halves."""
    taught, control = (table[table["people"] == people] for people in (People.TAUGHT, People.CONTROL))
    looks = {
        "taught": Look("taught", BLUE, "o"),
        "control": Look("never taught", GREY, "s"),
        "floor": Look("random circuits, or halves of the prompts", ORANGE, "^"),
    }
    figure, axes = style.grid(
        "Circuits and their floors", "", 1, 4, width=12.4, height=3.2, share_y=False,
        note=f"{style.plain(name)}: thin, seeds; points, their mean; "
        "faithfulness where clean minus corrupted is above 0",
    )  # fmt: skip
    panels = (
        ("clean_minus_corrupted", "clean - corrupted (logits)", ""),
        ("faithfulness", "faithfulness", "random_faithfulness"),
        ("hit10", "Hit@10 of the circuit alone", "random_hit10"),
        ("turnover", "turnover in an epoch (1 - Jaccard)", "turnover_floor"),
    )
    for ax, (measure, title, floor) in zip(axes[0], panels, strict=True):
        lines = (("taught", taught, measure), ("control", control, measure), ("floor", taught, floor))
        for key, rows, column in lines if floor else lines[:2]:
            told = rows[rows["cmc_low"] > 0] if measure == "faithfulness" else rows
            _draw_seeds(ax, told.dropna(subset=[column]), column, looks[key])
        if floor:  # on the whole range: a quantity that hardly moves shall look so
            ax.set_ylim(min(0, ax.get_ylim()[0]), max(1, ax.get_ylim()[1]))
        ax.set(title=title, xlabel="epoch")
    return style.legend(figure, looks)
