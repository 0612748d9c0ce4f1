"""The look that all figures share: colours, names, and the parts from which figures are made.

One look for all: K_rel is vermilion, K_compl blue, frequency bands go from light to dark (Okabe and Ito's
colour-blind-safe palette), points are checkpoints, the line is their moving average over 3. `grid` opens a figure with
a title and a footer that names the run; `missing` makes one that says what the run does not have yet. Figures are made
without pyplot: nothing global changes, nothing has to be closed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from io import BytesIO
from itertools import cycle, product
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import ArrayLike
from PIL import Image

from knowledge_circuits.analysis.timeline import RunName
from knowledge_circuits.files import atomic_write
from knowledge_circuits.study import Attribute, Band, KnowledgeType

Parameters = ParamSpec("Parameters")
Key = TypeVar("Key")

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#6E6E6E"

_STYLE = {
    "figure.dpi": 88,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # always: Matplotlib's search for a free height takes a seventh of the time
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
    """How one line of a figure is drawn and called; only the knowledge types have a `symbol`, a name for headings."""

    label: str
    color: str
    marker: str
    symbol: str = ""


TYPES: Mapping[str, Look] = {
    KnowledgeType.REVISED: Look("$K_{rel}$ (known before)", VERMILION, "o", "$K_{rel}$"),
    KnowledgeType.NEW: Look("$K_{compl}$ (not known before)", BLUE, "s", "$K_{compl}$"),
}
BANDS: Mapping[str, Look] = {
    Band.LOW: Look(f"low ({Band.LOW.limits})", SKY, "^"),
    Band.MEDIUM: Look(f"medium ({Band.MEDIUM.limits})", GREEN, "D"),
    Band.HIGH: Look(f"high ({Band.HIGH.limits})", BLACK, "o"),
}
ATTRIBUTES: Mapping[str, Look] = {
    Attribute.BIRTHDAY: Look("birthday", BLACK, "o"),
    Attribute.CITY: Look("city", ORANGE, "s"),
    Attribute.MAJOR: Look("major", GREEN, "^"),
    Attribute.UNIVERSITY: Look("university", SKY, "D"),
    Attribute.COMPANY: Look("company", PURPLE, "v"),
}
#: Said of facts of one's own where a figure is of the study's groups.
NOT_OF_FACTS = "This run's facts are one's own: they have no knowledge types, frequency bands or attributes."
#: Pixels of a page for an inch of a figure.
_PAGE_DPI = 96
#: Heights in inches: the title, the legend's row under it, the footer that names the run.
_TITLE, _ROW, _FOOTER = 0.32, 0.24, 0.22


# --- a figure as a file -----------------------------------------------------------------------------------------------


class NotebookFigure(Figure):
    """A figure that a notebook shows as a PNG of at most 128 colours: a third of the size, the same picture.

    It has twice as many pixels as it is wide on the page, for sharp text on today's screens.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = (round(_PAGE_DPI * inches) for inches in self.get_size_inches())
        return png(self), {"width": width, "height": height}


def png(figure: Figure) -> bytes:
    """Return a figure as a small PNG (a palette of 128 colours instead of full colour), for notebooks."""
    full, small = BytesIO(), BytesIO()
    _draw_png(figure, full, 2 * _PAGE_DPI)
    image = Image.open(full).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Draw with the study's look, leaving the caller's Matplotlib settings alone.

    Where the run's learning rate changes, all panels over epochs are shaded. A public training history's are over
    optimizer steps, on a logarithmic axis.
    """

    @wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
            for name in (*args, *kwargs.values()):
                if isinstance(name, RunName) and name.is_history:
                    _count_steps(figure)
                elif isinstance(name, RunName) and name.changing_rate:
                    _shade(figure, name.changing_rate)
            return figure

    return drawn


def _shade(figure: Figure, spans: list[tuple[float, float]]) -> None:
    """Shade spans of epochs in every panel over epochs; over a heat map they are a bar."""
    over_epochs = _over_epochs(figure)
    for ax, span in product(over_epochs, spans):
        if ax.images:
            epochs = [float(label.get_text()) for label in ax.get_xticklabels()]
            bar = {"color": ORANGE, "linewidth": 3, "clip_on": False, "solid_capstyle": "butt"}
            ends = np.interp(span, epochs, ax.get_xticks())
            ax.plot(ends, [1.02, 1.02], transform=ax.get_xaxis_transform(), **bar)
        else:
            limits = ax.get_xlim()
            ax.axvspan(*span, color=ORANGE, alpha=0.12, linewidth=0, zorder=0)
            ax.set_xlim(limits)
    if over_epochs:
        said = "orange: the learning rate changes"
        figure.text(0.992, 0.05 / figure.get_figheight(), said, fontsize=7.5, color=GREY, va="bottom", ha="right")


def _count_steps(figure: Figure) -> None:
    """Call epochs steps, and make the axes of panels over them logarithmic beyond the first step after 0."""
    for ax in _over_epochs(figure):
        drawn = [np.asarray(line.get_xdata(), dtype=float) for line in ax.lines]
        positive = np.concatenate([values[values > 0] for values in drawn]) if drawn else np.empty(0)
        if len(positive) and not ax.images:
            ax.set_xscale("symlog", linthresh=positive.min())
    for text in figure.findobj(Text):
        if "epoch" in text.get_text():
            text.set_text(re.sub(r"\bepoch(s?)\b", r"optimizer step\1", text.get_text()))


def _over_epochs(figure: Figure) -> list[Axes]:
    """Return the panels whose x axis, which the lowest panel of their column names, is of epochs."""
    panels = [(ax, spec.colspan) for ax in figure.axes if (spec := ax.get_subplotspec()) is not None]
    columns = {column for ax, column in panels if ax.get_xlabel().startswith("epoch")}
    return [ax for ax, column in panels if ax.axison and column in columns]


def keep(figure: Figure, folder: Path, name: str) -> Figure:
    """Save a figure as `<folder>/<name>.png` and return it, so that a notebook's cell shows it too."""
    with atomic_write(folder / f"{name}.png", "wb") as file:
        _draw_png(figure, file, 150)
    return figure


def _draw_png(figure: Figure, file: IO[bytes], dpi: float) -> None:
    """Write a figure as PNG in one pass, where `savefig` draws twice: for the layout, then for the file."""
    usual, figure.dpi = figure.dpi, dpi
    FigureCanvasAgg(figure).print_png(file)
    figure.dpi = usual


def ordered_colors(positions: ArrayLike) -> list[str]:
    """Return the colours of lines (layers, checkpoints, ratios) by their position from 0 (first) to 1 (last).

    Hues differ in the dark too.
    """
    return [mpl.colors.to_hex(color) for color in mpl.colormaps["plasma"](0.85 * np.asarray(positions, dtype=float))]


def looks_of(labels: Mapping[Key, str], colors: Sequence[str], markers: str = "osD^vP*X") -> dict[Key, Look]:
    """Return looks by key, from labels by key; colours and marks are taken in turn, and again from the first."""
    looks = zip(labels.items(), cycle(colors), cycle(markers), strict=False)
    return {key: Look(label, color, marker) for (key, label), color, marker in looks}


# --- parts of figures -------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Return text from outside as Matplotlib shows it as it is: on one line, a dollar sign no mathematics."""
    return " ".join(text.split()).replace("$", r"\$")


def joined(*texts: str, by: str = "; ") -> str:
    """Return the texts that are not empty in one."""
    return by.join(text for text in texts if text)


def group_names(groups: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names of groups, given by column, for the axis of a heat map."""
    return [
        ", ".join(TYPES[value].symbol if value in TYPES else plain(value) for value in group.values())
        for group in groups
    ]


@styled
def missing(title: str, message: str, run: str) -> Figure:
    """Draw a small figure that says what the run does not have yet."""
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
    """Open a titled figure with a grid of axes [rows, columns] and a footer that names the run.

    Args:
        title: with `$...$` for symbols; a name from outside goes through `plain` first.
        run: the run's name as it is; empty where a figure is of no run.
        width, height: inches.
        note: what the reader must know to read the figure, in the footer.
    """
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    _reserve(figure, _TITLE)
    figure.text(0.008, 1 - 0.06 / height, title, va="top", fontsize=11.5, fontweight="bold")
    footer = joined(f"run {plain(run)}" if run else "", note, by="  ·  ")
    figure.text(0.008, 0.05 / height, footer, fontsize=7.5, color=GREY, va="bottom")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share_y)


def _reserve(figure: Figure, top: float) -> None:
    """Keep `top` inches for the heading and the footer's strip clear of the axes."""
    height = figure.get_figheight()
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, _FOOTER / height, 1, 1 - (top + _FOOTER) / height))


def legend(figure: Figure, looks: Mapping[Any, Look], title: str = "", further: Sequence[Line2D] = ()) -> Figure:
    """Draw one legend for all panels, in a row under the title: the looks, then further lines."""
    handles = [Line2D([], [], linestyle="none", label=f"{title}:")] if title else []
    handles += [
        Line2D([], [], color=look.color, marker=look.marker, markersize=4, linewidth=1.7, label=look.label)
        for look in looks.values()
    ]
    return legend_row(figure, [*handles, *further])


def legend_row(figure: Figure, handles: list[Line2D]) -> Figure:
    """Draw a legend in a row under the title, in several rows where one is wider than the figure."""
    height, columns, usual = figure.get_figheight(), len(handles), figure.dpi
    figure.dpi = 2 * _PAGE_DPI  # hinted text is narrower on fewer pixels
    while True:
        for former in list(figure.legends):
            former.remove()
        box = figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.005, 1 - _TITLE / height),
            ncols=columns,
            borderaxespad=0,
            borderpad=0.2,
            columnspacing=1.4,
            handlelength=1.8,
        )
        if columns < 2 or box.get_window_extent().x1 <= figure.bbox.x1:
            break
        columns -= 1
    figure.dpi = usual
    _reserve(figure, _TITLE + _ROW * -(-len(handles) // columns))
    return figure


def blank(ax: Axes, message: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, message, ha="center", va="center", transform=ax.transAxes, color=GREY, wrap=True)
