"""A figure as an SVG element of a page, sharp at every size, in the colours of the reader's light or dark mode.

Text stays text. Colours become CSS variables (`--c-d55e00`), which `color_rules` defines for both modes: in the dark,
greys change places with their opposites and other colours are lightened until they stand out from the background.
Heat maps keep their colours, for their colour bars.
"""

from __future__ import annotations

import re
from io import StringIO

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

#: Background and text of a page in the dark.
DARK_PAPER, DARK_INK = "#15181e", "#e3e6eb"
#: The contrast of text and lines with the background that WCAG asks for.
_CONTRAST = 4.5
_TAG = re.compile(r"<[^>]+>")
_COLOR = re.compile(r"(fill|stroke): #([0-9a-f]{6})")


def svg_element(figure: Figure, label: str) -> Markup:
    """Return a figure as an `svg` element of class `drawing`.

    Args:
        label: what the figure shows, for readers who do not see it; different for each figure of a page.
    """
    buffer = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        # One pass, where `savefig` draws twice: for the layout, then for the file.
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    body = text[text.index(">", text.index("<svg")) + 1 :]
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    box = " ".join(f"{72 * inches:g}" for inches in figure.get_size_inches())
    start = f'<svg class="drawing" role="img" viewBox="0 0 {box}" width="{width}" height="{height}"'
    small = re.sub(r">\s*\n\s*<", "><", _TAG.sub(lambda tag: _smaller(tag[0]), body))
    return Markup(f'{start} aria-label="{escape(label)}">{small.strip()}')


def _smaller(tag: str) -> str:
    """Return a tag without what a page does not need: the names of groups, fonts, more than two decimals."""
    tag = re.sub(r"^<g id=\"[^\"]*\"", "<g", tag.replace("xlink:href", "href"))
    tag = re.sub(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-?0 [^\"]*\"", "", tag)
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    return re.sub(r"\s*\n\s*", " ", _COLOR.sub(r"\1: var(--c-\2)", tag))


def color_rules(page: str) -> str:
    """Return the CSS that defines the colours of all figures of a page, for light and for dark mode."""
    colors = sorted({"000000", *re.findall(r"var\(--c-([0-9a-f]{6})\)", page)})
    light = "".join(f"--c-{color}:#{color};" for color in colors)
    dark = "".join(f"--c-{color}:{dark_color('#' + color)};" for color in colors)
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark) {{ :root{{{dark}}} }}"


def dark_color(color: str) -> str:
    """Return the colour that plays the part of `color` on a dark background."""
    rgb, paper, ink = (np.array(mpl.colors.to_rgb(one)) for one in (color, DARK_PAPER, DARK_INK))
    if np.ptp(rgb) < 0.1:
        return mpl.colors.to_hex(ink + (paper - ink) * rgb.mean())
    steps = (rgb + (1 - rgb) * share for share in np.linspace(0, 1, 21))
    return mpl.colors.to_hex(next(one for one in steps if contrast(one, paper) >= _CONTRAST))


def contrast(first: np.ndarray, second: np.ndarray) -> float:
    """Return the contrast ratio of two colours (RGB from 0 to 1) by WCAG 2, from 1 to 21."""
    linear = (np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) for rgb in (first, second))
    low, high = sorted(float(one @ [0.2126, 0.7152, 0.0722]) for one in linear)
    return (high + 0.05) / (low + 0.05)
