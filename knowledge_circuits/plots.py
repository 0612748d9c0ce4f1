"""The study's figures. Each function takes tables (see `tables`) and the run's name and returns a Matplotlib `Figure`.

One look for all: K_rel is vermilion, K_compl blue, frequency bands go from light to dark (Okabe and Ito's
colour-blind-safe palette), points are checkpoints, the line is their moving average over 3 and the band 1.96 standard
deviations of the residuals. A table that is empty gives a figure that says what is missing and which program makes it.
Figures are made without pyplot: nothing global changes, nothing has to be closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from knowledge_circuits import curves, findings, tables
from knowledge_circuits.files import atomic_write
from knowledge_circuits.graph import Graph
from knowledge_circuits.study import Attribute, Band, KnowledgeType

Parameters = ParamSpec("Parameters")

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#6E6E6E"

_STYLE = {
    "figure.dpi": 88,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9A9A9A",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
    "mathtext.default": "regular",
}


@dataclass(frozen=True)
class Look:
    """How one line of a figure is drawn and called."""

    label: str
    color: str
    marker: str


TYPES: Mapping[str, Look] = {
    KnowledgeType.REVISED: Look("$K_{rel}$ (known before)", VERMILION, "o"),
    KnowledgeType.NEW: Look("$K_{compl}$ (new people)", BLUE, "s"),
}
BANDS: Mapping[str, Look] = {
    Band.LOW: Look("low (1×)", SKY, "^"),
    Band.MEDIUM: Look("medium (2–5×)", GREEN, "D"),
    Band.HIGH: Look("high (> 5×)", BLACK, "o"),
}
ATTRIBUTES: Mapping[str, Look] = {
    Attribute.BIRTHDAY: Look("birthday", BLACK, "o"),
    Attribute.CITY: Look("city", ORANGE, "s"),
    Attribute.MAJOR: Look("major", GREEN, "^"),
    Attribute.UNIVERSITY: Look("university", SKY, "D"),
    Attribute.COMPANY: Look("company", PURPLE, "v"),
}
_INPUTS: Mapping[str, Look] = {
    "q": Look("into a query", BLUE, ""),
    "k": Look("into a key", GREEN, ""),
    "v": Look("into a value", ORANGE, ""),
    "": Look("into an MLP or the logits", GREY, ""),
}
#: Heights in inches: the title, the legend's row under it, the footer that names the run.
_TITLE, _ROW, _FOOTER = 0.32, 0.24, 0.22
_SYMBOLS = {KnowledgeType.REVISED: "$K_{rel}$", KnowledgeType.NEW: "$K_{compl}$"}

_PREDICT = "No query predictions in this run yet: predict.py writes them."
_DISCOVER = "No circuits in this run yet: circuit_discovery.py and circuit_eval.py write them."


class NotebookFigure(Figure):
    """A figure that a notebook shows as a PNG of at most 128 colours: a third of the size, the same picture."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: Figure, dpi: int = 96, colors: int = 128) -> bytes:
    """A figure as a small PNG (a palette of `colors` instead of full colour), for notebooks and pages."""
    full, small = BytesIO(), BytesIO()
    figure.savefig(full, format="png", dpi=dpi, facecolor="white")
    image = Image.open(full).convert("RGB").quantize(colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Draw with the study's look, leaving the caller's Matplotlib settings alone."""

    @wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def keep(figure: Figure, folder: Path, name: str) -> Figure:
    """Save a figure as `<folder>/<name>.png` and return it, so that a notebook's cell shows it too."""
    save(figure, folder / f"{name}.png")
    return figure


def save(figure: Figure, path: Path, dpi: int = 150) -> Path:
    """Write a figure as PNG, whole or not at all; returns the path."""
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=dpi, facecolor="white")
    return path


# --- what was learned -------------------------------------------------------------------------------------------------


@styled
def first_token_and_query_accuracy(
    first_token: pd.DataFrame, predictions: pd.DataFrame, run: str, published: pd.DataFrame | None = None
) -> Figure:
    """First-token accuracy on the biographies and query accuracy, by type over epochs, with the paper's curves beside.

    Args:
        first_token, predictions: the tables of those names.
        published: `tables.published_first_token_accuracy`, for one of the paper's models.
    """
    columns = [
        ("First token in the biographies", first_token, "accuracy"),
        ("Whole answer to the query prompts", predictions, "correct"),
    ]
    if published is not None and len(published):
        columns.insert(1, ("First token, published (Ou et al. 2025)", published, "accuracy"))
    if all(table.empty for _, table, _ in columns):
        return missing("Accuracy by knowledge type", "No evaluations.jsonl and no predictions in this run yet.", run)
    figure, axes = grid("Facts learned over training, by knowledge type", run, 1, len(columns))
    for ax, (title, table, value) in zip(axes[0], columns, strict=True):
        ax.set_title(title)
        draw_lines(ax, table, value, "type", TYPES)
        share_axis(ax)
    label_axes(axes, "accuracy")
    return legend(figure, TYPES)


@styled
def loss(evaluations: pd.DataFrame, run: str, training: pd.DataFrame | None = None) -> Figure:
    """Validation loss at each evaluation and, where the Trainer logged it, the training loss."""
    if evaluations.empty or evaluations["loss"].isna().all():
        return missing("Loss", "No evaluations.jsonl in this run yet: train.py writes it.", run)
    figure, axes = grid("Loss over training", run, 1, 1, width=6.4)
    ax = axes[0, 0]
    if training is not None and len(training):
        ax.plot(training["epoch"], training["loss"], color=GREY, linewidth=0.9, alpha=0.7, label="training")
    ax.plot(evaluations["epoch"], evaluations["loss"], "o-", color=BLACK, markersize=3.5, label="validation")
    ax.set_ylabel("cross-entropy (nats per token)")
    ax.set_xlabel("epoch")
    ax.legend()
    return figure


@styled
def query_accuracy(predictions: pd.DataFrame, run: str) -> Figure:
    """Query accuracy over epochs: a panel per frequency band, a line per type."""
    title = "Query accuracy by knowledge type within each frequency band"
    if predictions.empty:
        return missing(title, _PREDICT, run)
    return panels(title, predictions, "correct", ("band", BANDS), ("type", TYPES), "share of queries answered", run)


@styled
def accuracy_by_attribute(predictions: pd.DataFrame, run: str) -> Figure:
    """Query accuracy over epochs: a panel per type, a line per attribute."""
    title = "Query accuracy by attribute"
    if predictions.empty:
        return missing(title, _PREDICT, run)
    rows, lines = ("type", TYPES), ("attribute", ATTRIBUTES)
    return panels(title, predictions, "correct", rows, lines, "share of queries answered", run)


@styled
def knowledge_heatmap(predictions: pd.DataFrame, run: str) -> Figure:
    """People (most frequent on top) by epochs, coloured by how many of the five attributes the model knows."""
    title = "What is known of whom, and when"
    table = tables.attributes_known(predictions)
    if table.empty:
        return missing(title, _PREDICT, run)
    epochs = [column for column in table.columns if not isinstance(column, str)]
    most = len(Attribute)
    colors = ListedColormap(mpl.colormaps["cividis"](np.linspace(0, 1, most + 1)))
    note = "within a frequency the people of whom more is known sooner stand higher"
    figure, axes = grid(title, run, 1, 2, width=9.5, height=5.2, share_y=False, note=note)
    for ax, (knowledge, look) in zip(axes[0], TYPES.items(), strict=True):
        rows = table[table["type"] == knowledge]
        total = rows[epochs].sum(axis=1)
        rows = rows.assign(total=total).sort_values(["frequency", "total"], ascending=[False, False])
        norm = BoundaryNorm(np.arange(-0.5, most + 1), most + 1)
        image = ax.imshow(rows[epochs].to_numpy(), aspect="auto", cmap=colors, norm=norm, interpolation="nearest")
        _band_rows(ax, rows["band"].tolist())
        epoch_ticks(ax, epochs)
        ax.set_title(f"{look.label} ({len(rows)} people)", color=look.color)
    axes[0, 0].set_ylabel("people, by frequency of their biography")
    bar = figure.colorbar(image, ax=axes, ticks=range(most + 1), shrink=0.7, pad=0.015)
    bar.set_label("attributes known (of 5)")
    return figure


def _band_rows(ax: Axes, bands: Sequence[str]) -> None:
    """Mark where a heat map's rows change from one frequency band to the next, and name the bands."""
    ax.grid(False)
    starts = [index for index, band in enumerate(bands) if index == 0 or bands[index - 1] != band]
    ends = [*starts[1:], len(bands)]
    for start in starts[1:]:
        ax.axhline(start - 0.5, color="white", linewidth=2)
    ax.set_yticks([(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)])
    ax.set_yticklabels([bands[start] for start in starts], rotation=90, va="center")
    ax.tick_params(axis="y", length=0)


# --- the circuits' own answers ----------------------------------------------------------------------------------------


@styled
def hits_by_type(circuit_predictions: pd.DataFrame, run: str) -> Figure:
    """Hit@10 of each checkpoint's own circuits on their own group: a panel per band, a line per type."""
    title = "Hit@10 of the circuits alone, by knowledge type within each band"
    table = _own(circuit_predictions)
    if table.empty:
        return missing(title, _DISCOVER, run)
    return panels(title, table, "hit", ("band", BANDS), ("type", TYPES), "Hit@10", run)


@styled
def hits_by_band(circuit_predictions: pd.DataFrame, run: str) -> Figure:
    """Hit@10 of each checkpoint's own circuits on their own group: a panel per type, a line per band."""
    title = "Hit@10 of the circuits alone, by frequency band within each type"
    table = _own(circuit_predictions)
    if table.empty:
        return missing(title, _DISCOVER, run)
    return panels(title, table, "hit", ("type", TYPES), ("band", BANDS), "Hit@10", run)


@styled
def hits_across_bands(circuit_predictions: pd.DataFrame, run: str) -> Figure:
    """Circuits of one band on test items of another: a row per type, a column per tested band."""
    title = "Do circuits carry over to facts of another frequency? Hit@10 across bands"
    table = _unmoved(circuit_predictions)
    table = table[table["type"] == table["target_type"]] if len(table) else table
    if table.empty or (table["band"] == table["target_band"]).all():
        return missing(
            title, "No circuit was run on another band's test items (circuit_eval.py --target_frequency).", run
        )
    figure, axes = grid(title, run, len(TYPES), len(BANDS), height=2.1 * len(TYPES) + 0.8)
    for row, (knowledge, look) in zip(axes, TYPES.items(), strict=True):
        for ax, (band, tested) in zip(row, BANDS.items(), strict=True):
            part = table[(table["type"] == knowledge) & (table["target_band"] == band)]
            draw_lines(ax, part, "hit", "band", BANDS)
            share_axis(ax)
            ax.set_title(f"{_SYMBOLS[KnowledgeType(knowledge)]}, tested on {tested.label}", color=look.color)
    label_axes(axes, "Hit@10")
    return legend(figure, BANDS, "circuit found on")


@styled
def hits_across_types(circuit_predictions: pd.DataFrame, run: str) -> Figure:
    """Circuits of one type on test items of the other: a row per tested type, a column per band."""
    title = "Do circuits carry over to the other knowledge type? Hit@10 across types"
    table = _unmoved(circuit_predictions)
    table = table[table["band"] == table["target_band"]] if len(table) else table
    if table.empty or (table["type"] == table["target_type"]).all():
        return missing(title, "No circuit was run on the other type's test items (circuit_eval.py --target_type).", run)
    figure, axes = grid(title, run, len(TYPES), len(BANDS), height=2.1 * len(TYPES) + 0.8)
    for row, knowledge in zip(axes, TYPES, strict=True):
        for ax, (band, look) in zip(row, BANDS.items(), strict=True):
            part = table[(table["target_type"] == knowledge) & (table["target_band"] == band)]
            draw_lines(ax, part, "hit", "type", TYPES)
            share_axis(ax)
            ax.set_title(f"tested on {_SYMBOLS[KnowledgeType(knowledge)]}, {look.label}")
    label_axes(axes, "Hit@10")
    return legend(figure, TYPES, "circuit found on")


@styled
def hits_of_moved_circuits(circuit_predictions: pd.DataFrame, run: str) -> Figure:
    """Circuits of chosen checkpoints in the weights of all of them, beside each checkpoint's own; a panel per type.

    Only the tasks and bands whose circuits were moved count, for every line, or the lines could not be compared.
    """
    title = "Does an earlier circuit suffice later? Hit@10 with the circuit's checkpoint fixed"
    table = circuit_predictions
    if table.empty or (table["circuit_step"] == table["step"]).all():
        return missing(
            title, "No circuit was run in another checkpoint's weights (circuit_eval.py --circuit_from).", run
        )
    table = table[(table["type"] == table["target_type"]) & (table["band"] == table["target_band"])]
    epoch_of = table.drop_duplicates("step").set_index("step")["epoch"]
    moved = table[table["circuit_step"] != table["step"]]
    fixed = sorted(set(moved["circuit_step"]))
    places = moved[["task", "band"]].drop_duplicates()
    table = table.merge(places)
    tasks, bands = (sorted(set(places[name])) for name in ("task", "band"))
    note = f"circuits of {', '.join(tasks)} ({', '.join(bands)})"
    figure, axes = grid(title, run, 1, len(TYPES), width=8.6, note=note)
    palette = mpl.colormaps["cividis"](np.linspace(0.05, 0.9, len(fixed)))
    looks = {
        step: Look(f"epoch {epoch_of.get(step, np.nan):g}", mpl.colors.to_hex(color), marker)
        for step, color, marker in zip(fixed, palette, "osD^vP*X" * (len(fixed) // 8 + 1), strict=False)
    }
    for ax, (knowledge, look) in zip(axes[0], TYPES.items(), strict=True):
        part = table[table["type"] == knowledge]
        own = part[part["circuit_step"] == part["step"]].groupby("epoch")["hit"].mean()
        draw_curve(ax, own.index, own, Look("each epoch's own", VERMILION, "x"))
        for step, line in looks.items():
            mean = part[part["circuit_step"] == step].groupby("epoch")["hit"].mean()
            draw_curve(ax, mean.index, mean, line)
        share_axis(ax)
        ax.set_title(look.label, color=look.color)
    label_axes(axes, "Hit@10")
    return legend(figure, {"own": Look("each epoch's own", VERMILION, "x"), **looks}, "circuit of")


# --- the circuits' shape ----------------------------------------------------------------------------------------------


@styled
def faithfulness(results: pd.DataFrame, run: str) -> Figure:
    """Faithfulness of each checkpoint's own circuits: the tasks' median, a panel per band, a line per type.

    Where a model does not yet tell clean from corrupted prompts the ratio is noise; points beyond the axis sit on its
    edge as open triangles.
    """
    title = "Faithfulness: how much of the logit difference the circuit restores"
    table = _unmoved(results)
    if table.empty or table["faithfulness"].isna().all():
        return missing(title, _DISCOVER, run)
    bottom, top = -0.25, 1.5
    medians = table.groupby(["band", "type", "epoch"], as_index=False)["faithfulness"].median()
    medians["shown"] = medians["faithfulness"].where(medians["faithfulness"].between(bottom, top))
    figure, axes = grid(title, run, 1, len(BANDS), note="median of the tasks; open triangles lie beyond the axis")
    for ax, (band, look) in zip(axes[0], BANDS.items(), strict=True):
        part = medians[medians["band"] == band]
        ax.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
        draw_lines(ax, part, "shown", "type", TYPES)
        for knowledge, line in TYPES.items():
            beyond = part[(part["type"] == knowledge) & part["shown"].isna() & part["faithfulness"].notna()]
            for above, marker in ((True, "^"), (False, "v")):
                away = beyond[(beyond["faithfulness"] > top) == above]
                edge = np.full(len(away), top if above else bottom)
                if len(away):
                    ax.plot(away["epoch"], edge, marker, mfc="none", color=line.color, clip_on=False)
        ax.set_ylim(bottom, top)
        ax.set_title(look.label)
    label_axes(axes, "faithfulness (1 = whole model)")
    return legend(figure, TYPES)


@styled
def circuit_entropy(circuits: tables.Circuits | None, run: str) -> Figure:
    """Circuit entropy over epochs: a panel per band, a line per type, mean over the tasks."""
    title = "Circuit entropy: over how many edges the circuit's effect is spread"
    if circuits is None:
        return missing(title, _DISCOVER, run)
    table = circuits.table
    return panels(
        title,
        table,
        "entropy",
        ("band", BANDS),
        ("type", TYPES),
        "entropy (nats)",
        run,
        share=False,
        note="mean of the tasks",
    )


@styled
def three_entropies(circuits: tables.Circuits | None, run: str) -> Figure:
    """Circuit entropy beside the original's layer-weighted and random-walk entropies, by type, mean over the groups."""
    title = "Three entropies: of the circuit's edges, weighted by layer, of a random walk"
    if circuits is None:
        return missing(title, _DISCOVER, run)
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
def similarity_to_last(circuits: tables.Circuits | None, run: str) -> Figure:
    """Edge and node Jaccard similarity with the last checkpoint's circuit: rows edges and nodes, a column per band."""
    title = "Similarity with the last checkpoint's circuit"
    if circuits is None:
        return missing(title, _DISCOVER, run)
    kinds = {"edge_jaccard": "edges", "node_jaccard": "nodes"}
    figure, axes = grid(title, run, len(kinds), len(BANDS), height=4.8, share_y="row")
    table = circuits.table[circuits.table["step"] < circuits.steps[-1]]
    for row, (column, name) in zip(axes, kinds.items(), strict=True):
        for ax, (band, look) in zip(row, BANDS.items(), strict=True):
            draw_lines(ax, table[table["band"] == band], column, "type", TYPES)
            ax.set_title(f"{name}, {look.label}")
        row[0].set_ylabel(f"Jaccard similarity of {name}")
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    return legend(figure, TYPES)


@styled
def activation_ratio(circuits: tables.Circuits | None, run: str) -> Figure:
    """Edge activation ratio by layer and epoch, a heat map per type and band (the last layer left out)."""
    title = "Edge activation ratio: the share of a layer's outgoing edges that is in the circuit"
    if circuits is None:
        return missing(title, _DISCOVER, run)
    layers = max(circuits.layout.n_layers - 1, 1)
    table = circuits.activation_table()
    means = table[table["layer"] < layers].groupby(["type", "band", "layer", "epoch"])["ratio"].mean()
    figure, axes = grid(title, run, len(TYPES), len(BANDS), height=5.0, note="mean of the tasks; last layer left out")
    for row, (knowledge, look) in zip(axes, TYPES.items(), strict=True):
        for ax, (band, tested) in zip(row, BANDS.items(), strict=True):
            if (knowledge, band) not in means.index.droplevel(["layer", "epoch"]):
                blank(ax, "no circuits")
                continue
            wide = means[knowledge, band].unstack("epoch")
            image = ax.imshow(
                wide.to_numpy(),
                origin="lower",
                aspect="auto",
                cmap="cividis",
                vmin=0,
                vmax=means.max(),
                interpolation="nearest",
            )
            ax.grid(False)
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
            epoch_ticks(ax, wide.columns)
            ax.set_title(f"{_SYMBOLS[KnowledgeType(knowledge)]}, {tested.label}", color=look.color)
    for ax in axes[:, 0]:
        ax.set_ylabel("layer of the edge's parent")
    for ax in axes[0]:
        ax.set_xlabel("")
    figure.colorbar(image, ax=axes, shrink=0.8, pad=0.015, format=PercentFormatter(1)).set_label("edges in the circuit")
    return figure


@styled
def similarity_map(circuits: tables.Circuits | None, run: str) -> Figure:
    """Edge Jaccard similarity between the circuits of all pairs of checkpoints, mean over the groups."""
    title = "Circuit similarity between all pairs of checkpoints"
    if circuits is None:
        return missing(title, _DISCOVER, run)
    matrix = circuits.similarity()
    figure, axes = grid(title, run, 1, 1, width=6.0, height=5.2, note="edge Jaccard, mean of the groups")
    ax = axes[0, 0]
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    top = np.nanmax(off) if off.size else 1.0
    image = ax.imshow(matrix, origin="lower", cmap="cividis", vmin=np.nanmin(matrix), vmax=top, interpolation="nearest")
    ax.grid(False)
    epoch_ticks(ax, circuits.epochs)
    epoch_ticks(ax, circuits.epochs, vertical=True)
    figure.colorbar(image, ax=ax, shrink=0.85, extend="max").set_label("edge Jaccard similarity (diagonal = 1)")
    return figure


# --- the verdicts -----------------------------------------------------------------------------------------------------


@styled
def phase_shift(circuits: tables.Circuits | None, run: str, seed: int = 0) -> Figure:
    """Mean circuit entropy and edge Jaccard with the two-segment fit, its break point and the point's 95% interval."""
    title = "Phase shift: one line or two?"
    fits = {}
    if circuits is not None:
        for column, label in (
            ("entropy", "circuit entropy (nats)"),
            ("edge_jaccard", "edge Jaccard with the last circuit"),
        ):
            fits[label] = findings.fit_phase_shift(circuits, column, seed)
    if not any(fits.values()):
        return missing(title, f"A bend needs circuits at {curves.FEWEST_POINTS} checkpoints or more.", run)
    figure, axes = grid(
        title,
        run,
        1,
        len(fits),
        width=9.0,
        share_y=False,
        note="mean of the groups; 95% interval by bootstrap over groups",
    )
    for ax, (label, shift) in zip(axes[0], fits.items(), strict=True):
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        if shift is None:
            blank(ax, "too few checkpoints")
            continue
        ax.axvspan(
            shift.break_low, shift.break_high, color=ORANGE, alpha=0.2, linewidth=0, label="95% interval of the break"
        )
        ax.axvline(float(shift.fit.break_point), color=ORANGE, linewidth=1.2)
        ax.plot(shift.epochs, shift.mean, "o", color=BLACK, markersize=4, label="checkpoints")
        x = np.array([shift.epochs[0], float(shift.fit.break_point), shift.epochs[-1]])
        ax.plot(x, shift.fit.line(x), color=BLUE, linewidth=1.8, label="two segments")
        straight = np.poly1d(np.polyfit(shift.epochs, shift.mean, 1))
        ax.plot(x[[0, -1]], straight(x[[0, -1]]), color=GREY, linestyle="--", linewidth=1.1, label="one line")
        gain = float(shift.fit.gain)
        verdict = f"two segments: BIC {'better' if gain > 0 else 'worse'} by {abs(gain):.1f}"
        ax.set_title(f"break at epoch {float(shift.fit.break_point):.1f}; {verdict}")
    axes[0, 0].legend()
    return figure


@styled
def layer_order(circuits: tables.Circuits | None, run: str, seed: int = 0) -> Figure:
    """The epoch at which each layer's edge activation ratio has made half of its change, with 95% intervals."""
    title = "Deep to shallow: when each layer has made half of its change"
    order = findings.layer_order(circuits, seed) if circuits is not None else None
    if order is None:
        return missing(title, "An order needs circuits at 3 checkpoints or more.", run)
    figure, axes = grid(
        title, run, 1, 2, width=9.0, share_y=False, note="mean of the groups; 95% intervals by bootstrap over groups"
    )
    curve, when = axes[0]
    colors = mpl.colormaps["cividis"](np.linspace(0, 0.92, len(order.layers)))
    looks = {int(n): Look(f"layer {n}", mpl.colors.to_hex(c), "o") for n, c in zip(order.layers, colors, strict=True)}
    table = circuits.activation_table() if circuits is not None else pd.DataFrame()
    means = table.groupby(["layer", "epoch"])["ratio"].mean()
    for layer, look in looks.items():
        draw_curve(curve, means[layer].index, means[layer], look, band=False)
    curve.set_ylabel("edge activation ratio")
    curve.set_xlabel("epoch")
    _draw_order(when, order, colors)
    named = order.layers[:: -(-len(order.layers) // 8)]  # eight names at most; the colours tell the rest
    return legend(figure, {int(layer): looks[int(layer)] for layer in named})


def _draw_order(ax: Axes, order: findings.LayerOrder, colors: np.ndarray) -> None:
    """Half-change epochs with their intervals, layers upward."""
    moved = np.isfinite(order.epochs)
    if not moved.any():
        blank(ax, "no layer changes more than its noise")
        return
    layers, epochs = order.layers[moved], order.epochs[moved]
    sides = np.abs(np.stack([epochs - order.low[moved], order.high[moved] - epochs]))
    ax.errorbar(epochs, layers, xerr=sides, fmt="none", ecolor=GREY, elinewidth=1.2, capsize=3)
    ax.scatter(epochs, layers, c=colors[moved], s=45, zorder=3)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(-0.5, len(order.layers) - 0.5)
    ax.set_xlabel("epoch of half of the change (none: change within the noise)")
    ax.set_ylabel("layer")
    correlation = f"{order.correlation:+.2f}" if np.isfinite(order.correlation) else "not defined"
    ax.set_title(f"rank correlation with depth: {correlation}")


@styled
def intervals(finding: findings.Finding, run: str) -> Figure:
    """A finding's judged statistics of one unit as points with 95% intervals (used for the relevance differences)."""
    judged = [s for s in finding.statistics if s.verdict is not None and np.isfinite(s.estimate)]
    if not judged:
        return missing(finding.title, finding.reason, run)
    colors = {findings.Verdict.HOLDS: GREEN, findings.Verdict.FAILS: VERMILION, findings.Verdict.UNDECIDED: GREY}
    figure, axes = grid(f"{finding.title}: {finding.verdict}", run, 1, 1, width=7.4, height=0.34 * len(judged) + 1.5)
    ax = axes[0, 0]
    ax.axvline(0, color=BLACK, linewidth=0.9)
    for row, statistic in enumerate(reversed(judged)):
        color = colors[findings.Verdict(str(statistic.verdict))]
        ax.plot([statistic.low, statistic.high], [row, row], color=color, linewidth=2.4)
        ax.plot(statistic.estimate, row, "o", color=color, markersize=6)
        ax.annotate(str(statistic.verdict), (1.01, row), xycoords=("axes fraction", "data"), va="center", color=color)
    ax.set_yticks(range(len(judged)), [f"{s.name}, {s.where}" for s in reversed(judged)])
    ax.set_ylim(-0.6, len(judged) - 0.4)
    ax.set_xlabel("difference of the mean level over training, 95% interval")
    ax.set_ylabel("measure, frequency band")
    return figure


# --- one circuit as a graph -------------------------------------------------------------------------------------------


@styled
def circuit_graph(circuits: Mapping[str, Graph], run: str, title: str = "The circuit", edges: int = 150) -> Figure:
    """Circuits drawn side by side: layers upward, heads in a row, each layer's MLP at the right and half a step higher.

    Colour tells what the edge feeds, width the root of its |score| beside its circuit's largest; solid edges
    have a positive score (corrupting them costs the right answer), dashed ones a negative.

    Args:
        circuits: heading -> circuit; drawn from left to right.
        edges: how many of each circuit's strongest edges are drawn.
    """
    if not circuits:
        return missing(title, _DISCOVER, run)
    layout = next(iter(circuits.values())).layout
    width = max(4.9, 0.42 * layout.n_heads + 1.6) * len(circuits)
    height = min(max(5.0, 0.85 * layout.n_layers + 1.6), 16)
    note = f"the {edges} strongest edges of each circuit at most; width grows with the square root of |score|"
    figure, axes = grid(title, run, 1, len(circuits), width=max(width, 8.0), height=height, note=note)
    for ax, (heading, graph) in zip(axes[0], circuits.items(), strict=True):
        _draw_circuit(ax, graph, edges)
        count = int(graph.in_graph.sum())
        ax.set_title(f"{heading}: {count:,} edges, {graph.n_nodes} nodes")
    axes[0, 0].set_ylabel("layer")
    handles = [Line2D([], [], color=look.color, linewidth=2, label=look.label) for look in _INPUTS.values()]
    handles += [
        Line2D([], [], color=BLACK, linewidth=1.5, label="positive score"),
        Line2D([], [], color=BLACK, linewidth=1.5, linestyle=(0, (2, 1.5)), label="negative score"),
    ]
    return legend_row(figure, handles)


def _draw_circuit(ax: Axes, graph: Graph, edges: int) -> None:
    """One circuit's nodes and its strongest edges."""
    layout = graph.layout
    scores, members = graph.scores.numpy(), graph.in_graph.numpy()
    rows, columns = np.nonzero(members)
    strongest = np.argsort(-np.abs(scores[rows, columns]), kind="stable")[:edges][::-1]
    rows, columns = rows[strongest], columns[strongest]
    strength = np.abs(scores[rows, columns])
    share = np.sqrt(strength / strength.max()) if strength.size and strength.max() > 0 else strength

    x, y = _node_places(layout.n_layers, layout.n_heads)
    nodes, kinds = (
        layout.target_nodes.numpy()[columns],
        np.array([_input_kind(name) for name in layout.targets])[columns],
    )
    shift = np.select([kinds == "q", kinds == "k", kinds == "v"], [-0.22, 0.0, 0.22], 0.0)
    ends = np.stack([x[nodes] + shift, y[nodes] - 0.16], axis=-1)
    starts = np.stack([x[rows], y[rows] + 0.16], axis=-1)
    ax.add_collection(
        LineCollection(
            list(_bezier(starts, ends)),
            colors=[
                (*mpl.colors.to_rgb(_INPUTS[kind].color), alpha)
                for kind, alpha in zip(kinds, 0.25 + 0.6 * share, strict=True)
            ],
            linewidths=0.4 + 3.2 * share,
            linestyles=["solid" if positive else (0, (2, 1.5)) for positive in scores[rows, columns] >= 0],
            zorder=1,
        )
    )
    _draw_nodes(ax, graph, x, y)


def _draw_nodes(ax: Axes, graph: Graph, x: np.ndarray, y: np.ndarray) -> None:
    layout, present = graph.layout, graph.nodes_in_graph.numpy()
    size = 6.5 if layout.n_heads <= 16 else 4.5
    for name, column, height, inside in zip(layout.nodes, x, y, present, strict=True):
        look: dict[str, Any] = {"boxstyle": "round,pad=0.28", "linewidth": 0.8}
        look |= (
            {"facecolor": "white", "edgecolor": "#333333"}
            if inside
            else {"facecolor": "#F4F4F4", "edgecolor": "#DDDDDD"}
        )
        label = name.split(".")[-1] if "." in name else name
        ax.text(
            column,
            height,
            label,
            fontsize=size,
            ha="center",
            va="center",
            bbox=look,
            color="#222222" if inside else "#BBBBBB",
        )
    ax.set_xlim(x.min() - 0.7, x.max() + 0.7)
    ax.set_ylim(y.min() - 0.5, y.max() + 0.5)
    ax.set_yticks(range(layout.n_layers))
    ax.set_xticks([])
    ax.grid(False)
    ax.spines["bottom"].set_visible(False)


def _node_places(layers: int, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the nodes stand, in the order of `layout.nodes`: x and y, [N] each."""
    columns = np.append(np.arange(heads), heads + 0.4)
    x = np.concatenate([[heads / 2], np.tile(columns, layers), [heads / 2]])
    rise = np.append(np.zeros(heads), 0.45)
    y = np.concatenate([[-1.0], (np.arange(layers)[:, None] + rise).reshape(-1), [layers + 0.3]])
    return x, y


def _bezier(starts: np.ndarray, ends: np.ndarray, points: int = 20) -> np.ndarray:
    """Curves that leave and arrive vertically, [m, points, 2], from and to points [m, 2]."""
    t = np.linspace(0, 1, points)[None, :, None]
    bend = np.zeros_like(starts)
    bend[:, 1] = 0.45 * (ends[:, 1] - starts[:, 1])
    corners = [point[:, None, :] for point in (starts, starts + bend, ends - bend, ends)]
    weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    return np.add.reduce([weight * corner for weight, corner in zip(weights, corners, strict=True)])


def _input_kind(target: str) -> str:
    """Which input of a head a target is (q, k or v); "" for an MLP or the logits."""
    return target[-2] if target.endswith(">") else ""


# --- parts that all figures share ------------------------------------------------------------------------------------


@styled
def missing(title: str, message: str, run: str) -> Figure:
    """A small figure that says what the run does not have yet."""
    figure, axes = grid(title, run, 1, 1, width=8.0, height=1.4)
    blank(axes[0, 0], message)
    return figure


def grid(
    title: str,
    run: str,
    rows: int,
    columns: int,
    width: float = 10.6,
    height: float = 3.4,
    share_y: bool | str = True,
    note: str = "",
) -> tuple[Figure, Any]:
    """A titled figure with a grid of axes [rows, columns] and a footer that names the run."""
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    _reserve(figure, _TITLE)
    figure.text(0.008, 1 - 0.06 / height, title, va="top", fontsize=11.5, fontweight="bold")
    footer = f"run {run}" + (f"  ·  {note}" if note else "")
    figure.text(0.008, 0.05 / height, footer, fontsize=7.5, color=GREY, va="bottom")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share_y)


def _reserve(figure: Figure, top: float) -> None:
    """Keep `top` inches for the heading and the footer's strip clear of the axes."""
    height = figure.get_figheight()
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, _FOOTER / height, 1, 1 - (top + _FOOTER) / height))


def panels(
    title: str,
    table: pd.DataFrame,
    value: str,
    panels: tuple[str, Mapping[str, Look]],
    lines: tuple[str, Mapping[str, Look]],
    label: str,
    run: str,
    share: bool = True,
    note: str = "",
) -> Figure:
    """Small multiples: a panel for each value of one column, in it a line for each value of another."""
    column, looks = panels
    figure, axes = grid(title, run, 1, len(looks), width=10.6 if len(looks) > 2 else 8.6, note=note)
    for ax, (key, look) in zip(axes[0], looks.items(), strict=True):
        draw_lines(ax, table[table[column] == key], value, *lines)
        ax.set_title(look.label, color=look.color if looks is TYPES else BLACK)
        if share:
            share_axis(ax)
    label_axes(axes, label)
    return legend(figure, lines[1])


def draw_lines(ax: Axes, table: pd.DataFrame, value: str, column: str, looks: Mapping[str, Look]) -> None:
    """A line per value of `column`: the mean over the rows of each epoch."""
    drawn = False
    for key, look in looks.items():
        rows = table[table[column] == key] if len(table) else table
        if len(rows):
            mean = rows.groupby("epoch")[value].mean()
            draw_curve(ax, mean.index, mean, look)
            drawn = True
    if not drawn:
        blank(ax, "no data")


def draw_curve(ax: Axes, epochs: Any, values: Any, look: Look, band: bool = True) -> None:
    """Points, their moving average and, if asked for, the band of the residuals."""
    x, y = np.asarray(epochs, dtype=float), np.asarray(values, dtype=float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) == 0:
        return
    smoothed = curves.smooth(y)
    if band and smoothed.half_width > 0:
        ax.fill_between(x, smoothed.low, smoothed.high, color=look.color, alpha=0.13, linewidth=0)
    ax.plot(x, y, look.marker, color=look.color, markersize=3.2, alpha=0.55, markeredgewidth=0.8)
    ax.plot(x, smoothed.center, color=look.color, linewidth=1.7, label=look.label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def share_axis(ax: Axes) -> None:
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1))


def label_axes(axes: Any, label: str) -> None:
    """The y label on the first column, `epoch` under the last row."""
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")


def legend(figure: Figure, looks: Mapping[Any, Look], title: str = "") -> Figure:
    """One legend for all panels, in a row under the title."""
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, markersize=4, linewidth=1.7, label=look.label)
        for look in looks.values()
    ]
    if title:
        handles.insert(0, Line2D([], [], linestyle="none", label=f"{title}:"))
    return legend_row(figure, handles)


def legend_row(figure: Figure, handles: list[Line2D]) -> Figure:
    height = figure.get_figheight()
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - _TITLE / height),
        ncols=len(handles),
        borderaxespad=0,
        borderpad=0.2,
        columnspacing=1.4,
        handlelength=1.8,
    )
    _reserve(figure, _TITLE + _ROW)
    return figure


def epoch_ticks(ax: Axes, epochs: Any, vertical: bool = False) -> None:
    """Ticks of a heat map whose columns (or rows) are checkpoints: at most ten, labelled with their epochs."""
    values = list(epochs)
    at = list(range(0, len(values), max(1, -(-len(values) // 10))))
    labels = [f"{values[index]:.3g}" for index in at]
    if vertical:
        ax.set_yticks(at, labels)
        ax.set_ylabel("epoch")
    else:
        ax.set_xticks(at, labels)
        ax.set_xlabel("epoch")


def blank(ax: Axes, message: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, message, ha="center", va="center", transform=ax.transAxes, color=GREY, wrap=True)


def _unmoved(table: pd.DataFrame) -> pd.DataFrame:
    """The rows about a checkpoint's own circuits."""
    return table[table["circuit_step"] == table["step"]] if len(table) else table


def _own(table: pd.DataFrame) -> pd.DataFrame:
    return tables.own_circuit_hits(table) if len(table) else table
