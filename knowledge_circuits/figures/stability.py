"""Figures of what circuits owe to their prompts: stability under resampling, token spans, transfer between groups.

Each takes `Circuits` or `transferred_circuits.CrossGroups` (None where the run has none: the figure then says
which program writes them) and the run's name and returns a Matplotlib `Figure`.
"""

from __future__ import annotations

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from knowledge_circuits.analysis.circuit_settings import NO_CIRCUITS
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.analysis.transferred_circuits import NO_CROSS_GROUPS, CrossGroups
from knowledge_circuits.figures import style
from knowledge_circuits.figures.panels import arrange, draw_lines, draw_map, label_axes, line_panels
from knowledge_circuits.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, TYPES, VERMILION

NO_STABILITY = "No stability was measured: circuit_discovery.py --stability with circuit_eval.py's --topn does it."
NO_SPANS = "No scores by token span: circuit_discovery.py --spans keeps them."
_COLORS = (GREY, SKY, BLUE, GREEN, VERMILION, ORANGE, PURPLE, BLACK)


@style.styled
def stability(circuits: Circuits | None, run: str) -> Figure:
    """Draw how alike circuits of other prompts are, over epochs, by type (or group of one's own facts)."""
    title = "Stability: how much of a circuit depends on which prompts were drawn"
    if circuits is None or circuits.table["inclusion"].isna().all():
        return style.missing(title, NO_STABILITY if circuits is not None else NO_CIRCUITS, run)
    measures = {
        "split_half_jaccard": "edge Jaccard of two halves",
        "rank_correlation": "rank correlation of two halves",
        "inclusion": "mean inclusion of the circuit's edges",
    }
    arranged = arrange(circuits.table, "mean of the groups")
    note = style.joined(arranged.note, "halves and resamples of the prompts")
    figure, axes = style.grid(title, run, 1, len(measures), note=note)
    for ax, (column, name) in zip(axes[0], measures.items(), strict=True):
        draw_lines(ax, arranged.table.dropna(subset=[column]), column, *arranged.lines)
        ax.set_title(name)
        ax.set_ylim(0, 1.03)
    label_axes(axes, "")
    return style.legend(figure, arranged.lines[1])


@style.styled
def span_shares(circuits: Circuits | None, run: str) -> Figure:
    """Draw each token span's share of the circuits' scores over epochs, a panel per type or group of own facts."""
    title = "Token spans: where in the prompt the circuits' effect lies"
    if circuits is None or circuits.spans.empty:
        return style.missing(title, NO_SPANS if circuits is not None else NO_CIRCUITS, run)
    looks = style.looks_of({name: style.plain(name) for name in circuits.spans["span"].unique()}, _COLORS, "osD^vPX*")
    arranged = arrange(circuits.spans, "mean of tasks and bands")
    panels = ("type", TYPES) if "type" in circuits.spans else arranged.lines
    notes = ("share of the sum of |score by span|", arranged.note, "keys and values count at the source's position")
    note, label = style.joined(*notes), "share of the circuit's scores"
    return line_panels(title, arranged.table, "share", panels, ("span", looks), label, run, True, note)


@style.styled
def cross_groups(matrix: CrossGroups | None, run: str) -> Figure:
    """Draw the faithfulness of each group's circuit, and of the shared core, on each group's prompts."""
    title = "One circuit or many? Each group's circuit on the prompts of all groups"
    if matrix is None:
        return style.missing(title, NO_CROSS_GROUPS, run)
    names = style.group_names(matrix.groups)
    rows = [*names, f"shared core ({matrix.core_edges:,} edges)", "own strongest, as many"]
    values = np.vstack([matrix.faithfulness, matrix.core, matrix.same_size])
    size = 2.4 + 0.34 * len(names)
    note = f"epoch {matrix.epoch:g}; faithfulness under patching; colours end at 0 and 1"
    figure, axes = style.grid(title, run, 1, 1, width=size + 2.6, height=size + 0.8, note=note)
    ax = axes[0, 0]
    image = draw_map(ax, values[::-1], "cividis", Normalize(0, 1), aspect="equal")
    ax.axhline(1.5, color="white", linewidth=3)
    ax.set_yticks(range(len(rows)), rows[::-1], fontsize=7)
    ax.set_xticks(range(len(names)), names, fontsize=7, rotation=90)
    ax.set(xlabel="prompts of", ylabel="circuit of")
    figure.colorbar(image, ax=ax, shrink=0.7, extend="both").set_label("faithfulness")
    return figure
