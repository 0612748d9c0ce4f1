"""Figures of what circuits owe to their prompts: stability under resampling, token spans, transfer between groups.

Each takes `Circuits` or `transferred_circuits.CrossGroups` (None where the run has none: the figure then says
which program writes them), or the table `circuit_tables.fact_circuits`, and the run's name and returns a Matplotlib
`Figure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from knowledge_circuits.analysis.circuit_settings import NO_CIRCUITS
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.analysis.transferred_circuits import NO_CROSS_GROUPS, CrossGroups
from knowledge_circuits.figures.panels import draw_lines, draw_map, fact_group_looks, label_axes, line_panels
from knowledge_circuits.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    TYPES,
    VERMILION,
    Look,
    grid,
    legend,
    missing,
    plain,
    styled,
)

NO_STABILITY = "No stability was measured: circuit_discovery.py --stability with circuit_eval.py's --topn does it."
NO_SPANS = "No scores by token span: circuit_discovery.py --spans keeps them."
_MARKS = zip((GREY, SKY, BLUE, GREEN, VERMILION, ORANGE, PURPLE, BLACK), "osD^vPX*", strict=True)
_LOOKS = tuple(_MARKS)


@styled
def stability(circuits: Circuits | None, run: str) -> Figure:
    """Draw how alike circuits of other prompts are, over epochs, by type."""
    title = "Stability: how much of a circuit depends on which prompts were drawn"
    if circuits is None or circuits.table["inclusion"].isna().all():
        return missing(title, NO_STABILITY if circuits is not None else NO_CIRCUITS, run)
    note = "mean of the groups; halves and resamples of the prompts"
    return _lines(title, circuits.table, "type", TYPES, run, note)


@styled
def fact_stability(fact_circuits: pd.DataFrame, run: str) -> Figure:
    """Draw the same of groups of one's own facts, a line per group."""
    title = "Stability: how much of a circuit of one's own facts depends on which prompts were drawn"
    if fact_circuits["inclusion"].isna().all():
        return missing(title, NO_STABILITY, run)
    table, looks, left_out = fact_group_looks(fact_circuits)
    note = "; ".join(part for part in ("halves and resamples of the prompts", left_out) if part)
    return _lines(title, table, "name", looks, run, note)


def _lines(title: str, table: pd.DataFrame, by: str, looks: Mapping[Any, Look], run: str, note: str) -> Figure:
    """Draw the three measures of stability over epochs, a panel each."""
    measures = {
        "split_half_jaccard": "edge Jaccard of two halves",
        "rank_correlation": "rank correlation of two halves",
        "inclusion": "mean inclusion of the circuit's edges",
    }
    figure, axes = grid(title, run, 1, len(measures), note=note)
    for ax, (column, name) in zip(axes[0], measures.items(), strict=True):
        draw_lines(ax, table.dropna(subset=[column]), column, by, looks)
        ax.set_title(name)
        ax.set_ylim(0, 1.03)
    label_axes(axes, "")
    return legend(figure, looks)


@styled
def span_shares(circuits: Circuits | None, run: str) -> Figure:
    """Draw each token span's share of the circuits' scores over epochs, a panel per type."""
    title = "Token spans: where in the prompt the circuits' effect lies"
    if circuits is None or circuits.spans.empty:
        return missing(title, NO_SPANS if circuits is not None else NO_CIRCUITS, run)
    names = list(dict.fromkeys(circuits.spans["span"]))
    looks = {name: Look(name, *_LOOKS[number % len(_LOOKS)]) for number, name in enumerate(names)}
    note = (
        "share of the sum of |score by span|; mean of tasks and bands; keys and values count at the source's position"
    )
    label = "share of the circuit's scores"
    return line_panels(title, circuits.spans, "share", ("type", TYPES), ("span", looks), label, run, True, note)


@styled
def cross_groups(matrix: CrossGroups | None, run: str) -> Figure:
    """Draw the faithfulness of each group's circuit, and of the shared core, on each group's prompts."""
    title = "One circuit or many? Each group's circuit on the prompts of all groups"
    if matrix is None:
        return missing(title, NO_CROSS_GROUPS, run)
    names = [
        ", ".join(TYPES[value].symbol if value in TYPES else plain(value) for value in group.values())
        for group in matrix.groups
    ]
    rows = [*names, f"shared core ({matrix.core_edges:,} edges)", "own strongest, as many"]
    values = np.vstack([matrix.faithfulness, matrix.core, matrix.same_size])
    size = 2.4 + 0.34 * len(names)
    note = f"epoch {matrix.epoch:g}; faithfulness under patching; colours end at 0 and 1"
    figure, axes = grid(title, run, 1, 1, width=size + 2.6, height=size + 0.8, note=note)
    ax = axes[0, 0]
    image = draw_map(ax, values[::-1], "cividis", Normalize(0, 1), aspect="equal")
    ax.axhline(1.5, color="white", linewidth=3)
    ax.set_yticks(range(len(rows)), rows[::-1], fontsize=7)
    ax.set_xticks(range(len(names)), names, fontsize=7, rotation=90)
    ax.set(xlabel="prompts of", ylabel="circuit of")
    figure.colorbar(image, ax=ax, shrink=0.7, extend="both").set_label("faithfulness")
    return figure
