"""The run's figures. Each function takes tables (see `tables`) and the run's name and returns a Matplotlib `Figure`.

They follow the study's questions: what was learned, what the circuits answer alone, what shape the circuits have, and
the verdicts. The look is that of `figure_style`. A table that is empty gives a figure that says what is missing and
which program makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from knowledge_circuits.analysis import curves, findings, tables
from knowledge_circuits.figures.style import (
    ATTRIBUTES,
    BANDS,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    TYPES,
    VERMILION,
    Look,
    blank,
    draw_curve,
    draw_lines,
    epoch_ticks,
    grid,
    label_axes,
    legend,
    missing,
    panels,
    share_axis,
    styled,
)
from knowledge_circuits.study import Attribute

#: How verdicts are coloured, in every figure that shows them.
VERDICT_COLORS: Mapping[findings.Verdict, str] = {
    findings.Verdict.HOLDS: GREEN,
    findings.Verdict.FAILS: VERMILION,
    findings.Verdict.UNDECIDED: GREY,
}
_PREDICT = "No query predictions in this run yet: predict.py writes them."


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
        return missing(title, tables.NO_CIRCUITS, run)
    return panels(title, table, "hit", ("band", BANDS), ("type", TYPES), "Hit@10", run)


@styled
def hits_by_band(circuit_predictions: pd.DataFrame, run: str) -> Figure:
    """Hit@10 of each checkpoint's own circuits on their own group: a panel per type, a line per band."""
    title = "Hit@10 of the circuits alone, by frequency band within each type"
    table = _own(circuit_predictions)
    if table.empty:
        return missing(title, tables.NO_CIRCUITS, run)
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
            ax.set_title(f"{look.symbol}, tested on {tested.label}", color=look.color)
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
    for row, (knowledge, look) in zip(axes, TYPES.items(), strict=True):
        for ax, (band, tested) in zip(row, BANDS.items(), strict=True):
            part = table[(table["target_type"] == knowledge) & (table["target_band"] == band)]
            draw_lines(ax, part, "hit", "type", TYPES)
            share_axis(ax)
            ax.set_title(f"tested on {look.symbol}, {tested.label}")
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
        return missing(title, tables.NO_CIRCUITS, run)
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
        return missing(title, tables.NO_CIRCUITS, run)
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
        return missing(title, tables.NO_CIRCUITS, run)
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
        return missing(title, tables.NO_CIRCUITS, run)
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
        return missing(title, tables.NO_CIRCUITS, run)
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
            ax.set_title(f"{look.symbol}, {tested.label}", color=look.color)
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
        return missing(title, tables.NO_CIRCUITS, run)
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
    figure, axes = grid(f"{finding.title}: {finding.verdict}", run, 1, 1, width=7.4, height=0.34 * len(judged) + 1.5)
    ax = axes[0, 0]
    ax.axvline(0, color=BLACK, linewidth=0.9)
    for row, statistic in enumerate(reversed(judged)):
        color = VERDICT_COLORS[findings.Verdict(str(statistic.verdict))]
        ax.plot([statistic.low, statistic.high], [row, row], color=color, linewidth=2.4)
        ax.plot(statistic.estimate, row, "o", color=color, markersize=6)
        ax.annotate(str(statistic.verdict), (1.01, row), xycoords=("axes fraction", "data"), va="center", color=color)
    ax.set_yticks(range(len(judged)), [f"{s.name}, {s.where}" for s in reversed(judged)])
    ax.set_ylim(-0.6, len(judged) - 0.4)
    ax.set_xlabel("difference of the mean level over training, 95% interval")
    ax.set_ylabel("measure, frequency band")
    return figure


# --- rows of tables ---------------------------------------------------------------------------------------------------


def _unmoved(table: pd.DataFrame) -> pd.DataFrame:
    """The rows about a checkpoint's own circuits."""
    return table[table["circuit_step"] == table["step"]] if len(table) else table


def _own(table: pd.DataFrame) -> pd.DataFrame:
    return tables.own_circuit_hits(table) if len(table) else table
