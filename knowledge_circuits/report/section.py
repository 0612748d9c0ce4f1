"""A section of the report: a heading, an opening sentence, and figures with captions.

A section whose data a run lacks is replaced by one sentence that says which program writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from tqdm import tqdm

from knowledge_circuits.figures.style import keep
from knowledge_circuits.figures.vector import svg_element
from knowledge_circuits.report.material import Material


@dataclass(frozen=True)
class Drawing:
    """A figure of the report: the function that draws it, its caption, and the runs on whose page it stands."""

    draw: Callable[[Material], Figure]
    caption: str
    belongs: Callable[[Material], bool] = lambda material: True


@dataclass(frozen=True)
class Section:
    """Figures that belong together.

    Attributes:
        key: its anchor in the page.
        title, text: heading and opening sentence.
        lacking: returns why the section cannot be drawn from a run, or "".
    """

    key: str
    title: str
    text: str
    lacking: Callable[[Material], str]
    drawings: tuple[Drawing, ...]


@dataclass(frozen=True)
class DrawnFigure:
    """A figure as a page shows it: an SVG element and its caption."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class TextTable:
    """A table as a page shows it; `words` columns at the left hold words rather than numbers."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    words: int = 1


def number(value: float, form: str) -> str:
    """Return a number as a page shows it; a dash for one that is missing."""
    return "–" if pd.isna(value) else format(value, form)


def draw_sections(
    material: Material, sections: tuple[Section, ...]
) -> Iterator[tuple[Section, str, list[DrawnFigure]]]:
    """Yield each section, why it cannot be drawn (or ""), and the figures that the run has data for."""
    lacking = [section.lacking(material) for section in sections]
    chosen = [
        [] if why else [drawing for drawing in section.drawings if drawing.belongs(material)]
        for section, why in zip(sections, lacking, strict=True)
    ]
    with tqdm(total=sum(map(len, chosen)), desc="drawing", unit="figure", leave=False, delay=2) as progress:
        for section, why, drawings in zip(sections, lacking, chosen, strict=True):
            drawn = []
            for drawing in drawings:
                drawn.append(embed(drawing.draw(material), drawing.caption))
                progress.update()
            yield section, why, drawn


def embed(figure: Figure, caption: str) -> DrawnFigure:
    """Return a figure as a part of a page."""
    return DrawnFigure(svg_element(figure, caption), caption)


def save_and_embed(figures: Iterable[tuple[str, Figure, str]], folder: Path) -> dict[str, DrawnFigure]:
    """Save figures (name, figure, caption) in a folder; return them as parts of a page, by name."""
    return {name: embed(keep(figure, folder, name), caption) for name, figure, caption in figures}
