"""The parts from which figures are made: line panels, heat maps over layers, markers for values beyond an axis.

A line shows the mean over the rows of each epoch: points are checkpoints, the line is their moving average over 3. A
layer map has a row of panels for each knowledge type; in each panel layers go upward and checkpoints to the right. A
panel without data says so. `arrange` says what panels and lines stand for: the study's groups have a panel per band and
a line per type, groups of one's own facts share one panel with a line each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter

from knowledge_circuits.analysis import curves
from knowledge_circuits.figures import style
from knowledge_circuits.figures.style import BANDS, BLACK, TYPES, Look

#: What lines or panels stand for: the table's column and the look of each of its values.
By = tuple[str, Mapping[Any, Look]]
BAND_LABELS: Mapping[str, str] = {band: look.label for band, look in BANDS.items()}


# --- lines ------------------------------------------------------------------------------------------------------------

#: What the line of `draw_curve` is, for a figure's footer.
LINE_NOTE = "points: checkpoints; lines: their moving average over 3"


def line_panels(
    title: str,
    table: pd.DataFrame,
    value: str,
    panels: By,
    lines: By,
    label: str,
    run: str,
    share: bool = True,
    note: str = "",
) -> Figure:
    """Draw a panel for each value of one column, in it a line for each value of another.

    Args:
        table: one row per observation, with `epoch` and the columns of `value`, `panels` and `lines`.
        label: the y axis.
        share: whether values are shares: an axis from 0% to 100%.
    """
    column, looks = panels
    note = style.joined(note, LINE_NOTE, by="  ·  ")
    figure, axes = wrapped_grid(title, run, len(looks), note=note)
    for ax, (key, look) in zip(figure.axes, looks.items(), strict=True):
        draw_lines(ax, table[table[column] == key], value, *lines)
        ax.set_title(look.label, color=look.color if looks is TYPES else BLACK)
        if share:
            share_axis(ax)
    label_axes(axes, label)
    return style.legend(figure, lines[1])


def wrapped_grid(title: str, run: str, count: int, note: str = "") -> tuple[Figure, Any]:
    """Open a grid of `count` panels over epochs, MOST_COLUMNS in a row; `figure.axes` has the panels in order."""
    columns = max(1, min(count, MOST_COLUMNS))
    rows = -(-count // columns)
    height = 3.4 if rows == 1 else 0.8 + 2.2 * rows
    figure, axes = style.grid(title, run, rows, columns, width=10.6 if columns > 2 else 8.6, height=height, note=note)
    for ax in axes.flat[count:]:
        ax.remove()
    for ax in axes.flat[max(count - columns, 0) : count]:  # the lowest of each column
        ax.set_xlabel("epoch")
    return figure, axes


def type_panels(
    axes: Any, table: pd.DataFrame, column: str = "band", labels: Mapping[str, str] = BAND_LABELS, prefix: str = ""
) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """Yield each of axes [types, values of a column] with its rows of the table; titles are set.

    Args:
        labels: value of the column -> its name in titles.
        prefix: "target_" where the panels stand for the test items' group rather than the circuit's.
    """
    for row, (knowledge, look) in zip(axes, TYPES.items(), strict=True):
        for ax, (value, label) in zip(row, labels.items(), strict=True):
            ax.set_title(f"{look.symbol}, {label}", color=look.color)
            yield ax, table[(table[f"{prefix}type"] == knowledge) & (table[f"{prefix}{column}"] == value)]


def draw_lines(ax: Axes, table: pd.DataFrame, value: str, column: str, looks: Mapping[Any, Look]) -> None:
    """Draw a line for each value of `column`: the mean over the rows of each epoch."""
    present = [key for key in looks if len(table) and (table[column] == key).any()]
    for key in present:
        mean = table[table[column] == key].groupby("epoch")[value].mean()
        draw_curve(ax, mean.index, mean, looks[key])
    if not present:
        style.blank(ax, "no data")


def draw_curve(ax: Axes, epochs: Any, values: Any, look: Look) -> None:
    """Draw points and their moving average."""
    x, y = np.asarray(epochs, dtype=float), np.asarray(values, dtype=float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) == 0:
        return
    ax.plot(x, y, look.marker, color=look.color, markersize=3.2, alpha=0.55, markeredgewidth=0.8)
    ax.plot(x, curves.smooth(y), color=look.color, linewidth=1.7, label=look.label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def within(values: pd.Series, limits: tuple[float, float]) -> pd.Series:
    """Values that lie within the limits; NaN for the others, which `mark_beyond` draws."""
    return values.where(values.between(*limits))


def mark_beyond(ax: Axes, x: Any, values: Any, limits: tuple[float, float], color: str) -> None:
    """Draw values beyond the limits as open triangles on the axis' edge that point away from it."""
    at, y = np.asarray(x, dtype=float), np.asarray(values, dtype=float)
    for beyond, edge, marker in ((y < limits[0], limits[0], "v"), (y > limits[1], limits[1], "^")):
        if beyond.any():
            ax.plot(at[beyond], np.full(beyond.sum(), edge), marker, mfc="none", color=color, clip_on=False)
    ax.set_ylim(*limits)


def share_axis(ax: Axes) -> None:
    """Let the y axis go from 0% to 100%."""
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1))


def label_axes(axes: Any, label: str | Sequence[str], below: str = "epoch") -> None:
    """Put the y label (or one for each row) beside axes [rows, columns] and the x label under the last row."""
    labels = [label] * len(axes) if isinstance(label, str) else label
    for ax, beside in zip(axes[:, 0], labels, strict=False):
        ax.set_ylabel(beside)
    for ax in axes[-1]:
        ax.set_xlabel(below)


#: Groups of facts with a line of their own; further ones are counted in a figure's footer.
MOST_GROUPS = 12
#: Panels of groups of facts in a row.
MOST_COLUMNS = 4


@dataclass(frozen=True)
class Arrangement:
    """How the groups of a table are drawn, and a note for the footer; tables of facts have columns `name` and `all`."""

    table: pd.DataFrame
    panels: By
    lines: By
    note: str

    def parts(self) -> Iterator[tuple[Look, pd.DataFrame]]:
        """Yield each panel's look and rows."""
        column, looks = self.panels
        return ((look, self.table[self.table[column] == key]) for key, look in looks.items())


def arrange(table: pd.DataFrame, note: str = "mean of the tasks") -> Arrangement:
    """Return how a table's groups are drawn: the study's, with `note` in the footer, or those of one's own facts."""
    if "group" not in table:
        return Arrangement(table, ("band", BANDS), ("type", TYPES), note)
    named, looks, left_out = fact_group_looks(table)
    return Arrangement(named.assign(all=""), ("all", {"": Look("", BLACK, "")}), ("name", looks), left_out)


def group_grid(title: str, run: str, rows: int, arranged: Arrangement, height: float, note: str) -> tuple[Figure, Any]:
    """Open a grid [rows, panels of the groups]; rows of one panel alone stand side by side."""
    count = len(arranged.panels[1])
    if count > 1:
        return style.grid(title, run, rows, count, height=height, share_y="row", note=note)
    figure, axes = style.grid(title, run, 1, rows, share_y=False, note=note)
    for ax in axes.flat:
        ax.set_xlabel("epoch")
    return figure, axes.T


def fact_names(table: pd.DataFrame, column: str = "group") -> pd.Series:
    """Return the name of each row's group of facts; tasks are named where there are several."""
    return table["task"] + " / " + table[column] if table["task"].nunique() > 1 else table[column]


def fact_group_looks(table: pd.DataFrame) -> tuple[pd.DataFrame, Mapping[str, Look], str]:
    """Return a table of groups of facts with the column `name`, the look of each name, and a note on those left out."""
    names = fact_names(table)
    shown = names.unique()
    note = f"{len(shown) - MOST_GROUPS} further groups are not drawn" if len(shown) > MOST_GROUPS else ""
    shown = shown[:MOST_GROUPS]
    palette = style.ordered_colors(np.linspace(0, 1, len(shown)))
    looks = style.looks_of({name: style.plain(name) for name in shown}, palette, "os^DvP*X<>ph")
    return table.assign(name=names), looks, note


# --- heat maps --------------------------------------------------------------------------------------------------------


def draw_map(ax: Axes, values: Any, colors: Any, norm: Normalize, aspect: str = "auto") -> AxesImage:
    """Draw a matrix [rows, columns] as a heat map, its first row at the bottom."""
    ax.grid(False)
    return ax.imshow(np.asarray(values), origin="lower", aspect=aspect, cmap=colors, norm=norm, interpolation="none")


def layer_maps(
    title: str,
    run: str,
    means: pd.Series,
    columns: Mapping[Any, str],
    scale: tuple[Any, Normalize],
    labels: tuple[str, str],
    note: str,
    bar_format: Any = None,
    below: str = "epoch",
) -> Figure:
    """Draw heat maps of layers (upward) over checkpoints: a row per knowledge type and a column per value of a level.

    Args:
        means: indexed by type, the columns' level, layer, and epoch or step; of one's own facts by name, layer, epoch.
        columns: value of the second level (of facts: name) -> the panel's title.
        scale: colour map and norm. A logarithmic one is of ranks: the bar has the best rank on top.
        labels: of the y axis and of the colour bar.
        below: the x axis.
    """
    panels: dict[Any, tuple[str, str]] = {key: (heading, BLACK) for key, heading in columns.items()}
    if means.index.names[0] == "name":
        figure, axes = wrapped_grid(title, run, len(panels), note)
    else:
        figure, axes = style.grid(title, run, len(TYPES), len(columns), height=5.0, note=note)
        panels = {
            (knowledge, key): (f"{look.symbol}, {heading}", look.color)
            for knowledge, look in TYPES.items()
            for key, heading in columns.items()
        }
    image, present = None, set(means.index.droplevel([-2, -1]))
    for ax, (key, (heading, color)) in zip(figure.axes, panels.items(), strict=True):
        if key not in present:
            style.blank(ax, "no data")
            continue
        wide = means[key].unstack()
        image = draw_map(ax, wide, *scale)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        checkpoint_ticks(ax, wide.columns)
        ax.set_title(heading, color=color)
    label_axes(axes, labels[0], below)
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, pad=0.015, format=bar_format)
    bar.set_label(labels[1])
    if isinstance(scale[1], LogNorm):
        bar.ax.invert_yaxis()
        bar.ax.yaxis.set_major_formatter(LogFormatter())
        bar.ax.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
    return figure


def rank_scale(means: pd.Series) -> tuple[str, Normalize]:
    """Colours of mean ranks (1 is best and brightest), on a logarithmic scale."""
    return "cividis_r", LogNorm(max(float(means.min()), 1), max(float(means.max()), 2))


def share_scale(means: pd.Series) -> tuple[str, Normalize]:
    """Colours of shares or probabilities, from 0 to the largest."""
    return "cividis", Normalize(0, max(float(means.max()), 1e-9))


def checkpoint_ticks(ax: Axes, values: Sequence[float], vertical: bool = False, most: int = 7) -> None:
    """Label a heat map's columns (or rows), which are checkpoints, with at most `most` of their epochs or steps."""
    at = list(range(0, len(values), max(1, -(-len(values) // most))))
    label: Callable[..., Any] = ax.set_yticks if vertical else ax.set_xticks
    label(at, [f"{values[index]:.4g}" for index in at])
