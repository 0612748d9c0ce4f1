"""The look that all figures share: colours, names, and the parts from which figures are made.

One look for all: K_rel is vermilion, K_compl blue, frequency bands go from light to dark (Okabe and Ito's
colour-blind-safe palette), points are checkpoints, the line is their moving average over 3 and the band 1.96 standard
deviations of the residuals. `grid` opens a figure with a title and a footer that names the run; `missing` makes one
that says what the run does not have yet. Figures are made without pyplot: nothing global changes, nothing has to be
closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from knowledge_circuits.files import atomic_write
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
    """How one line of a figure is drawn and called.

    Attributes:
        label: in legends.
        color, marker: Matplotlib's.
        symbol: its short name, for headings; only the knowledge types have one.
    """

    label: str
    color: str
    marker: str
    symbol: str = ""


TYPES: Mapping[str, Look] = {
    KnowledgeType.REVISED: Look("$K_{rel}$ (known before)", VERMILION, "o", "$K_{rel}$"),
    KnowledgeType.NEW: Look("$K_{compl}$ (new people)", BLUE, "s", "$K_{compl}$"),
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
#: Heights in inches: the title, the legend's row under it, the footer that names the run.
_TITLE, _ROW, _FOOTER = 0.32, 0.24, 0.22


# --- a figure as a file -----------------------------------------------------------------------------------------------


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


# --- parts of figures -------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Return text from outside as Matplotlib shows it as it is: on one line, a dollar sign no mathematics."""
    return " ".join(text.split()).replace("$", r"\$")


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
    footer = "  ·  ".join(part for part in (f"run {plain(run)}" if run else "", note) if part)
    figure.text(0.008, 0.05 / height, footer, fontsize=7.5, color=GREY, va="bottom")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share_y)


def _reserve(figure: Figure, top: float) -> None:
    """Keep `top` inches for the heading and the footer's strip clear of the axes."""
    height = figure.get_figheight()
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, _FOOTER / height, 1, 1 - (top + _FOOTER) / height))


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


def blank(ax: Axes, message: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, message, ha="center", va="center", transform=ax.transAxes, color=GREY, wrap=True)
