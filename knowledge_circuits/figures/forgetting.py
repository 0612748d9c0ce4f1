"""Figures of a forgetting experiment, in the look of `style`: a line or a column for each replay ratio.

Each takes the tables of `forgetting` that its arguments are named for and the experiment's name and returns a
Matplotlib `Figure`; an empty table gives a figure that says which program fills it. Steps stand on a square-root axis,
on which the exponential save schedule is about even. Lines join the measured points as they are: the gaps between
checkpoints are too unlike to smooth over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from knowledge_circuits.analysis import circuit_tables
from knowledge_circuits.analysis.forgetting import CircuitKind
from knowledge_circuits.figures import style
from knowledge_circuits.figures.circuit_evaluation import FAITHFULNESS_LIMITS
from knowledge_circuits.figures.panels import (
    label_axes,
    layer_maps,
    mark_beyond,
    rank_scale,
    share_axis,
    share_scale,
    type_panels,
    within,
)
from knowledge_circuits.figures.style import BANDS, TYPES, Look

_PREDICT = "No query predictions in these runs yet: predict.py writes them."
_DISCOVER = "No circuits in these runs yet: circuit_discovery.py and circuit_eval.py write them."
_STEPS = "optimizer steps"
_TICKS = [0, 1, 5, 10, 25, 50, 100, 200, 350, 500, 1000, 2000, 5000, 10000]
_KINDS: Mapping[str, str] = {
    CircuitKind.REDISCOVERED: "rediscovered circuits",
    CircuitKind.TRANSFERRED: "transferred circuits",
}


def ratio_looks(ratios: Iterable[float]) -> dict[float, Look]:
    """Return how each of these replay ratios is drawn, alike in all figures."""
    rising = sorted(set(ratios))
    return style.looks_of({ratio: f"{ratio:g}" for ratio in rising}, style.ordered_colors(np.sqrt(rising)))


# --- what is left of the old facts ------------------------------------------------------------------------------------


@style.styled
def old_facts(predictions: pd.DataFrame, name: str) -> Figure:
    """Draw the share of queries about the original people that are answered: a row per type, a column per band."""
    title = "Query accuracy on the original people during further training"
    if predictions.empty:
        return style.missing(title, _PREDICT, name)
    looks = ratio_looks(predictions["ratio"])
    figure, axes = style.grid(title, name, len(TYPES), len(BANDS), height=4.8, note="test people, all attributes")
    for ax, part in type_panels(axes, predictions):
        _draw_lines(ax, part, "correct", looks)
        share_axis(ax)
    return _finish(figure, axes, "share of queries answered", looks)


@style.styled
def first_token(accuracy: pd.DataFrame, evaluations: pd.DataFrame, name: str) -> Figure:
    """First-token accuracy by type and loss on the original's validation biographies, at every evaluation."""
    title = "First-token accuracy and loss on the original biographies"
    if accuracy.empty and evaluations.empty:
        return style.missing(title, "No evaluations.jsonl in these runs yet: train.py writes it.", name)
    looks = ratio_looks(evaluations["ratio"])
    figure, axes = style.grid(title, name, 1, len(TYPES) + 1, share_y=False)
    for ax, (knowledge, look) in zip(axes[0], TYPES.items(), strict=False):
        _draw_lines(ax, accuracy[accuracy["type"] == knowledge], "accuracy", looks, markers=False)
        share_axis(ax)
        ax.set_title(look.label, color=look.color)
    _draw_lines(axes[0, -1], evaluations, "loss", looks, markers=False)
    axes[0, -1].set(title="loss", ylabel="cross-entropy (nats per token)")
    return _finish(figure, axes, "first-token accuracy", looks)


# --- what becomes of the circuits -------------------------------------------------------------------------------------


@style.styled
def faithfulness(results: pd.DataFrame, name: str) -> Figure:
    """Draw faithfulness: a row per type, rediscovered circuits at the left and transferred ones at the right.

    Points beyond the axis sit on its edge as open triangles.
    """
    title = "Faithfulness during further training"
    if results.empty or results["faithfulness"].isna().all():
        return style.missing(title, _DISCOVER, name)
    looks = ratio_looks(results["ratio"])
    certain = circuit_tables.is_certain(results)
    medians = results[certain].groupby(["ratio", "type", "kind", "step"], as_index=False)["faithfulness"].median()
    note = "1 = the whole model; median of the groups; open triangles lie beyond the axis"
    if not certain.all():
        note += f"; left out: {(~certain).sum()} circuits whose clean - corrupted may be 0"
    figure, axes = style.grid(title, name, len(TYPES), len(CircuitKind), width=8.8, height=4.8, note=note)
    for ax, part in type_panels(axes, medians, "kind", _KINDS):
        ax.axhline(1, color=style.GREY, linewidth=0.8, linestyle=":")
        shown = part.assign(faithfulness=within(part["faithfulness"], FAITHFULNESS_LIMITS))
        _draw_lines(ax, shown, "faithfulness", looks)
        for ratio, rows in part.groupby("ratio"):
            mark_beyond(ax, rows["step"], rows["faithfulness"], FAITHFULNESS_LIMITS, looks[float(ratio)].color)
    return _finish(figure, axes, "faithfulness", looks)


@style.styled
def hits(circuit_predictions: pd.DataFrame, name: str) -> Figure:
    """Hit@10 of circuits alone on the original's test items: a row per type; rediscovered left, transferred right."""
    title = "Hit@10 of the circuits alone during further training"
    if circuit_predictions.empty:
        return style.missing(title, _DISCOVER, name)
    looks = ratio_looks(circuit_predictions["ratio"])
    figure, axes = style.grid(
        title, name, len(TYPES), len(CircuitKind), width=8.8, height=4.8, note="mean of the groups"
    )
    for ax, part in type_panels(axes, circuit_predictions, "kind", _KINDS):
        _draw_lines(ax, part, "hit", looks)
        share_axis(ax)
    return _finish(figure, axes, "Hit@10", looks)


@style.styled
def shapes(shapes: pd.DataFrame, name: str) -> Figure:
    """Draw the rediscovered circuits' similarity with the original ones (edges, nodes) and entropy; a row per type."""
    title = "Rediscovered circuits: similarity with the original circuits, and entropy"
    if shapes.empty:
        return style.missing(title, _DISCOVER, name)
    looks = ratio_looks(shapes["ratio"])
    measures = {
        "edge_jaccard": "edge Jaccard with the original",
        "node_jaccard": "node Jaccard with the original",
        "entropy": "circuit entropy (nats)",
    }
    figure, axes = style.grid(
        title, name, len(TYPES), len(measures), height=4.8, share_y=False, note="mean of the groups"
    )
    for row, (knowledge, look) in zip(axes, TYPES.items(), strict=True):
        for ax, (column, label) in zip(row, measures.items(), strict=True):
            _draw_lines(ax, shapes[shapes["type"] == knowledge], column, looks)
            ax.set_title(f"{look.symbol}: {label}", color=look.color)
    for column, measure in zip(axes.T, measures, strict=True):
        bounds = [ax.get_ylim() for ax in column if ax.axison]
        low, high = min((end[0] for end in bounds), default=0), max((end[1] for end in bounds), default=1)
        for ax in column:
            ax.set_ylim(*((low, high) if measure == "entropy" else (0, 1.03)))
    return _finish(figure, axes, "", looks)


@style.styled
def activation_change(activation: pd.DataFrame, name: str) -> Figure:
    """Change of the edge activation ratio since step 0 by layer and step: a row per type, a column per ratio."""
    title = "Change of the edge activation ratio since step 0"
    if activation.empty or activation["change"].isna().all():
        return style.missing(title, _DISCOVER, name)
    layers = max(int(activation["layer"].max()), 1)
    table = activation[activation["layer"] < layers]
    means = table.groupby(["type", "ratio", "layer", "step"])["change"].mean()
    widest = max(float(means.abs().max()), 1e-9)
    note = "mean of the groups; last layer left out; orange: more of the layer's edges than at step 0"
    labels = ("layer of the edge's source", "change since step 0")
    scale = ("PuOr_r", TwoSlopeNorm(0, -widest, widest))
    return layer_maps(title, name, means, _columns(means), scale, labels, note, PercentFormatter(1), below=_STEPS)


@style.styled
def lens(lens: pd.DataFrame, missing: str, name: str, measure: str = "rank") -> Figure:
    """Draw the logit lens at the last position by layer and step: a row per type, a column per ratio.

    `lens` and `missing` are what `forgetting.logit_lens` returns; `measure` is `rank`, `prob` or `subject_rank`.
    """
    what, where = {
        "rank": ("rank + 1", ""),
        "prob": ("probability", ""),
        "subject_rank": ("best rank + 1", " at the subject"),
    }[measure]
    title = f"Logit lens during further training: {what} of the original answer{where}"
    if lens.empty:
        return style.missing(title, missing, name)
    means = lens.groupby(["type", "ratio", "layer", "step"])[measure].mean()
    scale = share_scale(means) if measure == "prob" else rank_scale(means)
    labels = ("after layer", "mean probability" if measure == "prob" else f"mean of {what} (1 is best)")
    note = "mean of the groups; layer 0 = embeddings"
    return layer_maps(title, name, means, _columns(means), scale, labels, note, below=_STEPS)


# --- parts ------------------------------------------------------------------------------------------------------------


def _columns(means: pd.Series) -> dict[float, str]:
    """Return the replay ratios of layer maps and their titles."""
    return {ratio: f"ratio {ratio:g}" for ratio in sorted(means.index.get_level_values("ratio").unique())}


def _draw_lines(ax: Axes, table: pd.DataFrame, value: str, looks: Mapping[float, Look], markers: bool = True) -> None:
    """Draw a line per ratio: the mean over the rows of each step."""
    if table.empty:
        style.blank(ax, "no data")
        return
    for ratio, rows in table.groupby("ratio"):
        mean, look = rows.groupby("step")[value].mean().dropna(), looks[float(ratio)]
        marker = look.marker if markers else ""
        ax.plot(mean.index, mean, marker=marker, color=look.color, markersize=3.2, linewidth=1.5, alpha=0.9)
    _step_axis(ax)


def _step_axis(ax: Axes) -> None:
    root_and_square = (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * np.square(x))
    ax.set_xscale("function", functions=root_and_square)
    ax.xaxis.set_major_locator(FixedLocator(_TICKS))
    ax.xaxis.set_minor_locator(FixedLocator([]))


def _finish(figure: Figure, axes: Any, label: str, looks: Mapping[float, Look]) -> Figure:
    label_axes(axes, label, f"{_STEPS} (square-root axis)")
    return style.legend(figure, looks, "replay ratio")
