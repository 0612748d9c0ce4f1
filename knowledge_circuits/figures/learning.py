"""Figures of what a run learned: accuracy and loss over training, and which facts are known of whom.

Each function takes `learning_tables` and the run's name and returns a Matplotlib `Figure`. For an empty table the
figure says what is missing and which program writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from knowledge_circuits.analysis import learning_tables
from knowledge_circuits.figures import style
from knowledge_circuits.figures.panels import (
    LINE_NOTE,
    By,
    checkpoint_ticks,
    draw_lines,
    draw_map,
    fact_group_looks,
    fact_names,
    label_axes,
    line_panels,
    share_axis,
)
from knowledge_circuits.figures.style import ATTRIBUTES, BANDS, BLACK, GREY, NOT_OF_FACTS, TYPES

_PREDICT = "No query predictions in this run yet: predict.py writes them."


@style.styled
def first_token_and_query_accuracy(
    first_token: pd.DataFrame,
    predictions: pd.DataFrame,
    run: str,
    published: pd.DataFrame | None = None,
    past_predictions: pd.DataFrame | None = None,
) -> Figure:
    """Draw first-token accuracy on the biographies and query accuracy by type, with the paper's curves beside them.

    Args:
        first_token, predictions, past_predictions: the tables of those names; predictions about one's own facts are
            drawn by `fact_accuracy`.
        published: `learning_tables.published_first_token_accuracy`, for one of the paper's models.
    """
    if "group" in predictions:
        return fact_accuracy(predictions, run)
    columns = [
        ("First token in the biographies", first_token, "accuracy"),
        ("Whole answer to the query prompts", predictions, "correct"),
    ]
    if published is not None and len(published):
        columns.insert(1, ("First token, published (Ou et al. 2025)", published, "accuracy"))
    if past_predictions is not None and len(past_predictions):
        columns.append(("First token of past facts (queries)", past_predictions, "first_token_correct"))
    if all(table.empty for _, table, _ in columns):
        message = "No evaluations.jsonl and no predictions in this run yet."
        return style.missing("Accuracy by knowledge type", message, run)
    figure, axes = style.grid("Facts learned over training, by knowledge type", run, 1, len(columns), note=LINE_NOTE)
    for ax, (title, table, value) in zip(axes[0], columns, strict=True):
        ax.set_title(title)
        draw_lines(ax, table, value, "type", TYPES)
        share_axis(ax)
    label_axes(axes, "accuracy")
    return style.legend(figure, TYPES)


@style.styled
def loss(evaluations: pd.DataFrame, run: str, training: pd.DataFrame | None = None) -> Figure:
    """Draw the validation loss at each evaluation and the training loss that the Trainer logged, whichever there is."""
    evaluated = not evaluations.empty and not evaluations["loss"].isna().all()
    trained = training is not None and not training.empty
    if not evaluated and not trained:
        message = "No loss in this run yet: train.py writes evaluations.jsonl and logs the loss."
        return style.missing("Loss", message, run)
    figure, axes = style.grid("Loss over training", run, 1, 1, width=6.4)
    ax = axes[0, 0]
    if training is not None and trained:
        ax.plot(training["epoch"], training["loss"], color=GREY, linewidth=0.9, alpha=0.7, label="training")
    if evaluated:
        ax.plot(evaluations["epoch"], evaluations["loss"], "o-", color=BLACK, markersize=3.5, label="validation")
    label_axes(axes, "cross-entropy (nats per token)")
    ax.legend()
    return figure


@style.styled
def query_accuracy(predictions: pd.DataFrame, run: str) -> Figure:
    """Draw query accuracy over epochs: a panel per frequency band, a line per type."""
    title = "Query accuracy by knowledge type within each frequency band"
    return _accuracy(title, predictions, ("band", BANDS), ("type", TYPES), run)


@style.styled
def accuracy_by_attribute(predictions: pd.DataFrame, run: str) -> Figure:
    """Draw query accuracy over epochs: a panel per type, a line per attribute that training tells."""
    present = set(predictions.get("attribute", ()))
    looks = {attribute: look for attribute, look in ATTRIBUTES.items() if attribute in present}
    return _accuracy("Query accuracy by attribute", predictions, ("type", TYPES), ("attribute", looks), run)


def _accuracy(title: str, predictions: pd.DataFrame, panels: By, lines: By, run: str) -> Figure:
    if predictions.empty or "group" in predictions:
        return style.missing(title, _PREDICT if predictions.empty else NOT_OF_FACTS, run)
    return line_panels(title, predictions, "correct", panels, lines, "share of queries answered", run)


@style.styled
def fact_accuracy(fact_predictions: pd.DataFrame, run: str) -> Figure:
    """Draw how one's own facts are answered, a line per group: first token, whole answer, recall of the questions."""
    title = "Facts learned over training, by group of facts"
    if fact_predictions.empty:
        return style.missing(title, _PREDICT, run)
    table, looks, note = fact_group_looks(fact_predictions)
    headings = {"first_token_correct": "First token", "correct": "Whole answer", "recall": "Questions: ROUGE-1 recall"}
    panels = {value: heading for value, heading in headings.items() if table[value].notna().any()}
    note = style.joined(note, LINE_NOTE, by="  ·  ")
    figure, axes = style.grid(title, run, 1, len(panels), width=8.6 if len(panels) < 3 else 10.6, note=note)
    for ax, (value, heading) in zip(axes[0], panels.items(), strict=True):
        draw_lines(ax, table.dropna(subset=[value]), value, "name", looks)
        ax.set_title(heading)
        share_axis(ax)
    label_axes(axes, "mean of the group")
    return style.legend(figure, looks)


@style.styled
def knowledge_heatmap(predictions: pd.DataFrame, run: str) -> Figure:
    """Draw people (most frequent on top) by epochs, coloured by how many of the taught attributes the model knows.

    One's own facts have a row for each fact, by group.
    """
    if "group" in predictions and len(predictions):
        return _fact_heatmap(predictions, run)
    title = "Known attributes of each person over training"
    table = learning_tables.attributes_known(predictions)
    if table.empty:
        return style.missing(title, _PREDICT, run)
    epochs = [column for column in table.columns if not isinstance(column, str)]
    most = predictions["attribute"].nunique()
    colors = ListedColormap(mpl.colormaps["cividis"](np.linspace(0, 1, most + 1)))
    norm = BoundaryNorm(np.arange(-0.5, most + 1), most + 1)
    note = "within a frequency, people whose facts are known sooner are higher"
    figure, axes = style.grid(title, run, 1, len(TYPES), width=9.5, height=5.2, share_y=False, note=note)
    for ax, (knowledge, look) in zip(axes[0], TYPES.items(), strict=True):
        rows = table[table["type"] == knowledge]
        rows = rows.assign(total=rows[epochs].sum(axis=1)).sort_values(["frequency", "total"], ascending=False)
        if rows.empty:
            style.blank(ax, "no predictions")
            continue
        image = _draw_rows(ax, rows[epochs], colors, norm, rows["band"].tolist())
        ax.set_title(f"{look.label}: {len(rows)} people", color=look.color)
    axes[0, 0].set_ylabel("people, by frequency of their biography")
    bar = figure.colorbar(image, ax=axes, ticks=range(most + 1), shrink=0.7, pad=0.015)
    bar.solids.set_rasterized(True)  # a page in the dark changes colours, but not those of images
    bar.set_label(f"attributes known (of {most})")
    return figure


def _fact_heatmap(fact_predictions: pd.DataFrame, run: str) -> Figure:
    """Draw one's own facts by epochs, coloured by how well they are answered: a panel per file, groups one by one."""
    tasks = list(dict.fromkeys(fact_predictions["task"]))
    figure, axes = style.grid(
        "Each fact over training", run, 1, len(tasks), width=9.5, height=5.2, share_y=False,
        note="1 for a right whole answer to a prompt; a question's recall; facts learned sooner are higher",
    )  # fmt: skip
    for ax, task in zip(axes[0], tasks, strict=True):
        rows = learning_tables.facts_known(fact_predictions[fact_predictions["task"] == task])
        epochs = [column for column in rows.columns if not isinstance(column, str)]
        rows = rows.assign(total=rows[epochs].sum(axis=1)).sort_values(["group", "total"], ascending=[True, False])
        groups = [style.plain(name) for name in fact_names(rows)]
        image = _draw_rows(ax, rows[epochs], "cividis", Normalize(0, 1), groups, rotation=0)
        ax.set_title(f"{style.plain(task)}: {len(rows)} facts")
    axes[0, 0].set_ylabel("facts, by group")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.015)
    bar.solids.set_rasterized(True)  # a page in the dark changes colours, but not those of images
    bar.set_label("answered")
    return figure


def _draw_rows(
    ax: Axes, known: pd.DataFrame, colors: Any, norm: Normalize, bands: Sequence[str], rotation: float = 90
) -> AxesImage:
    """Draw a heat map of rows by epochs, the first row on top; name the rows' frequency bands (or groups)."""
    image = draw_map(ax, known, colors, norm)
    ax.invert_yaxis()
    ax.set_xlabel("epoch")
    checkpoint_ticks(ax, known.columns)
    starts = [index for index, band in enumerate(bands) if index == 0 or bands[index - 1] != band]
    ends = [*starts[1:], len(bands)]
    for start in starts[1:]:
        ax.axhline(start - 0.5, color="white", linewidth=2)
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    ax.set_yticks(middles, [bands[start] for start in starts], rotation=rotation, va="center")
    ax.tick_params(axis="y", length=0)
    return image
