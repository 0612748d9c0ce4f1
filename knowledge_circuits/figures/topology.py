"""Figures of the circuits' topology over training: entropy, similarity between checkpoints, edges by layer.

Each function takes `Circuits` (None where the run has none: the figure then says which program writes them) and
the run's name and returns a Matplotlib `Figure`.
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
from knowledge_circuits.figures.panels import (
    checkpoint_ticks,
    draw_lines,
    draw_map,
    label_axes,
    layer_maps,
    line_panels,
    share_scale,
)
from knowledge_circuits.figures.style import (
    BANDS,
    GREY,
    TYPES,
    grid,
    handles_of,
    legend,
    legend_row,
    missing,
    styled,
)


@styled
def circuit_entropy(circuits: Circuits | None, run: str) -> Figure:
    """Draw circuit entropy over epochs: a panel per band, a line per type, mean over the tasks."""
    title = "Circuit entropy: over how many edges the circuit's effect is spread"
    if circuits is None:
        return missing(title, NO_CIRCUITS, run)
    panels, lines, note = ("band", BANDS), ("type", TYPES), "mean of the tasks"
    return line_panels(title, circuits.table, "entropy", panels, lines, "entropy (nats)", run, False, note)


@styled
def three_entropies(circuits: Circuits | None, run: str) -> Figure:
    """Draw circuit entropy beside the original's layer-weighted and random-walk entropies, by type."""
    title = "Three entropies: of the circuit's edges, weighted by layer, of a random walk"
    if circuits is None:
        return missing(title, NO_CIRCUITS, run)
    measures = {
        "entropy": "circuit entropy",
        "weighted_entropy": "layer-weighted (all edges)",
        "random_walk_entropy": "random walk (all edges, summed over nodes)",
    }
    figure, axes = grid(title, run, 1, len(measures), share_y=False, note="mean of the groups")
    for ax, (column, name) in zip(axes[0], measures.items(), strict=True):
        draw_lines(ax, circuits.table, column, "type", TYPES)
        ax.set_title(name)
    label_axes(axes, "entropy (nats)")
    return legend(figure, TYPES)


@styled
def similarity_to_last(circuits: Circuits | None, run: str) -> Figure:
    """Draw edge and node Jaccard similarity with the last checkpoint's circuit, on the whole range from 0 to 1."""
    title = "Similarity with the last checkpoint's circuit"
    if circuits is None:
        return missing(title, NO_CIRCUITS, run)
    kinds = {"edge_jaccard": "edges", "node_jaccard": "nodes"}
    note = f"mean of the tasks{circuits.saturation and '; '}{circuits.saturation}"
    figure, axes = grid(title, run, len(kinds), len(BANDS), height=4.8, note=note)
    table = circuits.table[circuits.table["step"] < circuits.steps[-1]]
    floor = circuits.table["split_half_jaccard"].notna().any()
    halves: dict[str, Any] = {"color": GREY, "linewidth": 1.2, "linestyle": "--"}
    for row, (column, name) in zip(axes, kinds.items(), strict=True):
        for ax, (band, look) in zip(row, BANDS.items(), strict=True):
            draw_lines(ax, table[table["band"] == band], column, "type", TYPES)
            if floor and name == "edges":
                mean = circuits.table[circuits.table["band"] == band].groupby("epoch")["split_half_jaccard"].mean()
                ax.plot(mean.index, mean, **halves)
            ax.set_title(f"{name}, {look.label}" + (" (saturated)" if name == "nodes" and circuits.saturation else ""))
            ax.set_ylim(0, 1.03)
    for ax in axes.flat:
        ax.set_xlim(axes[0, 0].get_xlim())
    label_axes(axes, "")
    for row, name in zip(axes, kinds.values(), strict=True):
        row[0].set_ylabel(f"Jaccard similarity of {name}")
    if not floor:
        return legend(figure, TYPES)
    said = "two halves of the prompts at one checkpoint: no change, only their noise"
    return legend_row(figure, [*handles_of(TYPES), Line2D([], [], label=said, **halves)])


@styled
def similarity_map(circuits: Circuits | None, run: str) -> Figure:
    """Draw the edge Jaccard similarity between the circuits of all pairs of checkpoints, mean over the groups."""
    title = "Circuit similarity between all pairs of checkpoints"
    if circuits is None:
        return missing(title, NO_CIRCUITS, run)
    matrix = circuits.similarity()
    figure, axes = grid(title, run, 1, 1, width=6.0, height=5.2, note="edge Jaccard, mean of the groups")
    ax = axes[0, 0]
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    norm = Normalize(np.nanmin(matrix), np.nanmax(off) if off.size else 1.0)
    image = draw_map(ax, matrix, "cividis", norm, aspect="equal")
    checkpoint_ticks(ax, circuits.epochs)
    checkpoint_ticks(ax, circuits.epochs, vertical=True)
    ax.set(xlabel="epoch", ylabel="epoch")
    figure.colorbar(image, ax=ax, shrink=0.85, extend="max").set_label("edge Jaccard similarity (diagonal = 1)")
    return figure


@styled
def activation_ratio(circuits: Circuits | None, run: str) -> Figure:
    """Draw the edge activation ratio by layer and epoch, a heat map per type and band; the last layer is left out."""
    title = "Edge activation ratio: the share of a layer's outgoing edges that is in the circuit"
    if circuits is None:
        return missing(title, NO_CIRCUITS, run)
    table = circuits.activation_table()
    table = table[table["layer"] < max(circuits.layout.n_layers - 1, 1)]
    means = table.groupby(["type", "band", "layer", "epoch"])["ratio"].mean()
    columns = {band: look.label for band, look in BANDS.items()}
    labels = ("layer of the edge's source", "edges in the circuit")
    note = "mean of the tasks; last layer left out"
    return layer_maps(title, run, means, columns, share_scale(means), labels, note, PercentFormatter(1))
