"""Figures of the circuits' topology over training: entropy, similarity between checkpoints, edges by layer.

Each function takes `Circuits` (None where the run has none: the figure then says which program writes them) and
the run's name and returns a Matplotlib `Figure`. Circuits of one's own facts have a line (or panel) per group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from knowledge_circuits.analysis.circuit_settings import NO_CIRCUITS
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.figures import style
from knowledge_circuits.figures.panels import (
    arrange,
    checkpoint_ticks,
    draw_lines,
    draw_map,
    group_grid,
    label_axes,
    layer_maps,
    line_panels,
    share_scale,
)
from knowledge_circuits.figures.style import BANDS, GREY


@style.styled
def circuit_entropy(circuits: Circuits | None, run: str) -> Figure:
    """Draw circuit entropy over epochs: a panel per band, a line per type, mean over the tasks."""
    title = "Circuit entropy: over how many edges the circuit's effect is spread"
    if circuits is None:
        return style.missing(title, NO_CIRCUITS, run)
    one = arrange(circuits.table)
    return line_panels(title, one.table, "entropy", one.panels, one.lines, "entropy (nats)", run, False, one.note)


@style.styled
def three_entropies(circuits: Circuits | None, run: str) -> Figure:
    """Draw circuit entropy beside the original's layer-weighted and random-walk entropies, by type."""
    title = "Three entropies: of the circuit's edges, weighted by layer, of a random walk"
    if circuits is None:
        return style.missing(title, NO_CIRCUITS, run)
    measures = {
        "entropy": "circuit entropy",
        "weighted_entropy": "layer-weighted (all edges)",
        "random_walk_entropy": "random walk (all edges, summed over nodes)",
    }
    arranged = arrange(circuits.table, "mean of the groups")
    figure, axes = style.grid(title, run, 1, len(measures), share_y=False, note=arranged.note)
    for ax, (column, name) in zip(axes[0], measures.items(), strict=True):
        draw_lines(ax, arranged.table, column, *arranged.lines)
        ax.set_title(name)
    label_axes(axes, "entropy (nats)")
    return style.legend(figure, arranged.lines[1])


@style.styled
def similarity_to_last(circuits: Circuits | None, run: str) -> Figure:
    """Draw edge and node Jaccard similarity with the last checkpoint's circuit, on the whole range from 0 to 1."""
    title = "Similarity with the last checkpoint's circuit"
    if circuits is None:
        return style.missing(title, NO_CIRCUITS, run)
    kinds = {"edge_jaccard": "edges", "node_jaccard": "nodes"}
    arranged, last = arrange(circuits.table), circuits.steps[-1]
    note = style.joined(arranged.note, circuits.saturation)
    figure, axes = group_grid(title, run, len(kinds), arranged, 4.8, note)
    floor = circuits.table["split_half_jaccard"].notna().any()
    halves: dict[str, Any] = {"color": GREY, "linewidth": 1.2, "linestyle": "--"}
    for row, (column, name) in zip(axes, kinds.items(), strict=True):
        for ax, (look, part) in zip(row, arranged.parts(), strict=True):
            draw_lines(ax, part[part["step"] < last], column, *arranged.lines)
            if floor and name == "edges":
                mean = part.groupby("epoch")["split_half_jaccard"].mean()
                ax.plot(mean.index, mean, **halves)
            heading = style.joined(name, look.label, by=", ")
            ax.set_title(heading + (" (saturated)" if name == "nodes" and circuits.saturation else ""))
            ax.set_ylim(0, 1.03)
    for ax in axes.flat:
        ax.set_xlim(axes[0, 0].get_xlim())
    label_axes(axes, [f"Jaccard similarity of {name}" for name in kinds.values()])
    said = "two halves of the prompts at one checkpoint: no change, only their noise"
    return style.legend(figure, arranged.lines[1], further=[Line2D([], [], label=said, **halves)] if floor else [])


@style.styled
def similarity_map(circuits: Circuits | None, run: str) -> Figure:
    """Draw the edge Jaccard similarity between the circuits of all pairs of checkpoints, mean over the groups."""
    title = "Circuit similarity between all pairs of checkpoints"
    if circuits is None:
        return style.missing(title, NO_CIRCUITS, run)
    matrix = circuits.similarity()
    figure, axes = style.grid(title, run, 1, 1, width=6.0, height=5.2, note="edge Jaccard, mean of the groups")
    ax = axes[0, 0]
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    norm = Normalize(np.nanmin(matrix), np.nanmax(off) if off.size else 1.0)
    image = draw_map(ax, matrix, "cividis", norm, aspect="equal")
    checkpoint_ticks(ax, circuits.epochs)
    checkpoint_ticks(ax, circuits.epochs, vertical=True)
    ax.set(xlabel="epoch", ylabel="epoch")
    figure.colorbar(image, ax=ax, shrink=0.85, extend="max").set_label("edge Jaccard similarity (diagonal = 1)")
    return figure


@style.styled
def group_similarity(circuits: Circuits | None, run: str) -> Figure:
    """Draw the edge Jaccard similarity between the circuits of all pairs of groups at the last checkpoint.

    The footer has the similarity of two halves of one group's prompts, where it was measured.
    """
    title = "Circuit similarity between all pairs of groups"
    if circuits is None:
        return style.missing(title, NO_CIRCUITS, run)
    groups, matrix = circuits.group_similarity()
    names = style.group_names(groups)
    size = 2.4 + max(0.3 * len(names), 1.2)
    halves = circuits.table[circuits.table["step"] == circuits.steps[-1]]["split_half_jaccard"].mean()
    note = f"epoch {circuits.epochs[-1]:g}"
    note += f"; two halves of one group's prompts: {halves:.2f} (mean of the groups)" if np.isfinite(halves) else ""
    figure, axes = style.grid(title, run, 1, 1, width=size + 2.6, height=size + 0.6, note=note)
    ax = axes[0, 0]
    image = draw_map(ax, matrix[::-1], "cividis", Normalize(0, 1), aspect="equal")
    ax.set_yticks(range(len(names)), names[::-1], fontsize=7)
    ax.set_xticks(range(len(names)), names, fontsize=7, rotation=90)
    ax.set(xlabel="circuit of", ylabel="circuit of")
    figure.colorbar(image, ax=ax, shrink=0.7).set_label("edge Jaccard similarity")
    return figure


@style.styled
def activation_ratio(circuits: Circuits | None, run: str) -> Figure:
    """Draw the edge activation ratio by layer and epoch, a heat map per type and band; the last layer is left out.

    Groups of one's own facts have a heat map each.
    """
    title = "Edge activation ratio: the share of a layer's outgoing edges that is in the circuit"
    if circuits is None:
        return style.missing(title, NO_CIRCUITS, run)
    table = circuits.activation_table()
    table = table[table["layer"] < max(circuits.layout.n_layers - 1, 1)]
    arranged, labels = arrange(table), ("layer of the edge's source", "edges in the circuit")
    by, looks = (["type", "band"], BANDS) if "type" in table else (["name"], arranged.lines[1])
    means = arranged.table.groupby([*by, "layer", "epoch"])["ratio"].mean()
    columns = {name: look.label for name, look in looks.items()}
    note = style.joined(arranged.note, "last layer left out")
    return layer_maps(title, run, means, columns, share_scale(means), labels, note, PercentFormatter(1))
