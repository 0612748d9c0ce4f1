"""Figures of head kinds, the logit lens and one prompt, in the look of `style`.

Each takes the tables of `components` (or a `PromptView`) and the run's name and returns a Matplotlib `Figure`; where
something is missing the figure says what. In heat maps brighter is better known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from knowledge_circuits.analysis import components as analysis
from knowledge_circuits.analysis.circuit_settings import NO_CIRCUITS
from knowledge_circuits.analysis.components import Components
from knowledge_circuits.analysis.head_kinds import DOMINANCE, HeadKind
from knowledge_circuits.analysis.prompt_view import PromptView
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.figures import style
from knowledge_circuits.figures.panels import (
    BAND_LABELS,
    draw_lines,
    label_axes,
    layer_maps,
    rank_scale,
    share_scale,
    type_panels,
)
from knowledge_circuits.figures.style import BANDS, TYPES, Look

KINDS: Mapping[str, Look] = {
    HeadKind.MOVER: Look("mover (from the subject)", style.ORANGE, "o"),
    HeadKind.MIXTURE: Look("mixture", style.GREY, "^"),
    HeadKind.RELATION: Look("relation (from the relation)", style.PURPLE, "s"),
}
_NO_PROMPT = "One prompt's view needs circuits of the study's groups, the circuit data and the checkpoint's weights."
#: Measures of the logit lens: the figure's title and the colour bar's label.
_LENS = {
    "rank": ("Logit lens: rank of the answer at the last position", "mean of rank + 1 (1 is best)"),
    "prob": ("Logit lens: probability of the answer at the last position", "mean probability"),
    "subject_rank": ("Logit lens: best rank of the answer at the subject's positions", "mean of best rank + 1"),
}


# --- heads ------------------------------------------------------------------------------------------------------------


@style.styled
def head_proportions(components: Components, circuits: Circuits | None, run: str, kind: str = "kind") -> Figure:
    """Draw the circuit's heads of each kind over its nodes, over epochs: a row per type, a column per band.

    `kind` is the column that tells kinds: `kind`, or `original_kind` for the original's ratios.
    """
    by_original = kind == "original_kind"
    title = "Mover, relation and mixture heads in the circuit" + (", by the original's ratios" if by_original else "")
    table = analysis.kind_proportions(components.heads, circuits, kind)
    if table.empty:
        return style.missing(title, components.missing or NO_CIRCUITS, run)
    agreement = analysis.halves_agreement(components.heads, circuits)
    note = "heads of the kind over circuit nodes, mean of the tasks"
    if not by_original and len(agreement):
        last = agreement.iloc[-1]
        note += (
            f"; two halves of the prompts agree on the kind of {last['agreement']:.0%} of the heads at the end "
            f"({last['chance']:.0%} by chance)"
        )
    figure, axes = style.grid(title, run, len(TYPES), len(BANDS), height=4.8, note=note)
    for ax, part in type_panels(axes, table):
        draw_lines(ax, part, "proportion", "kind", KINDS)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    axes[0, 0].set_ylim(bottom=0)
    label_axes(axes, "share of the circuit's nodes")
    return style.legend(figure, KINDS)


@style.styled
def head_layers(components: Components, circuits: Circuits | None, run: str) -> Figure:
    """Draw in which layers the circuits' heads of each kind lie, over epochs: a row per type, a column per kind."""
    title = "Where the heads of each kind lie: share of a layer's heads, by layer and epoch"
    table = analysis.kind_layers(components.heads, circuits)
    if table.empty:
        return style.missing(title, components.missing or NO_CIRCUITS, run)
    shares = table.set_index(["type", "kind", "layer", "epoch"])["share"]
    columns = {name: look.label for name, look in KINDS.items()}
    note = "heads in the circuit and of the kind; mean of the groups"
    labels = ("layer", "of the layer's heads")
    return layer_maps(title, run, shares, columns, share_scale(shares), labels, note, PercentFormatter(1))


@style.styled
def head_scatter(components: Components, circuits: Circuits | None, run: str) -> Figure:
    """Draw each circuit head's subject part against its relation part: first and last epoch, and the original's.

    Sizes on logarithmic axes, so that the two diagonals are where one kind ends and the next begins; a point is one
    head in one group's circuit, filled where its two parts together raise the answer.
    """
    title = "From where heads take the answer's logit: subject against relation"
    inside = analysis.circuit_heads(components.heads, circuits)
    if inside.empty:
        return style.missing(title, components.missing or NO_CIRCUITS, run)
    epochs = sorted(inside["epoch"].unique())
    panels = [(epochs[0], "", "logits"), (epochs[-1], "", "logits"), (epochs[-1], "original_", "the original's ratio")]
    note = "a point is one head in one group's circuit; the smallest hundredth at the edge"
    figure, axes = style.grid(title, run, 1, len(panels), height=4.4, share_y=False, note=note)
    for ax, (epoch, prefix, unit) in zip(axes[0], panels, strict=True):
        shown = inside[inside["epoch"].isin([at for at, of, _ in panels if of == prefix])]
        _scatter(ax, inside[inside["epoch"] == epoch], prefix, _limits(shown, prefix))
        ax.set(xlabel=f"|relation part| ({unit})", ylabel=f"|subject part| ({unit})")
        ax.set_title(f"epoch {epoch:g}, " + ("the original's ratios" if prefix else "exact split"))
    raises, lowers = (Look(label, style.BLACK, "o") for label in ("raises the answer", "lowers it"))
    handles = [
        Line2D([], [], linestyle="none", color=look.color, marker=look.marker, markersize=5, label=look.label)
        for look in (*KINDS.values(), raises, lowers)
    ]
    handles[-1].set_markerfacecolor("none")
    return style.legend_row(figure, handles)


def _limits(heads: pd.DataFrame, prefix: str) -> tuple[float, float]:
    """Return the sizes that both axes of a scatter span; the smallest hundredth is drawn at the edge."""
    sizes = np.abs(heads[[f"{prefix}subject", f"{prefix}relation"]].to_numpy())
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    low, high = np.quantile(sizes, [0.01, 1]) if sizes.size else (0.1, 1.0)
    return float(low) / 1.5, float(high) * 1.5


def _scatter(ax: Axes, heads: pd.DataFrame, prefix: str, limits: tuple[float, float]) -> None:
    """Sizes of the two parts of each head, log-log, with the borders between kinds."""
    x, y = heads[f"{prefix}relation"].to_numpy(), heads[f"{prefix}subject"].to_numpy()
    ax.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
    ends = np.array(limits)
    for factor in (DOMINANCE, 1 / DOMINANCE):
        ax.plot(ends, ends * factor, color=style.BLACK, linewidth=0.8, linestyle=":", zorder=1)
    for kind, look in KINDS.items():
        for raises in (True, False):
            chosen = (heads[f"{prefix}kind"] == kind).to_numpy() & ((x + y > 0) == raises)
            points = np.abs([x[chosen], y[chosen]]).clip(limits[0])
            drawn = {"color": look.color, "mfc": look.color if raises else "none", "alpha": 0.6, "zorder": 2}
            ax.plot(*points, look.marker, markersize=3.6, markeredgewidth=0.7, **drawn)


# --- the logit lens ---------------------------------------------------------------------------------------------------


@style.styled
def lens(components: Components, measure: str, run: str) -> Figure:
    """Draw one measure (`rank`, `prob` or `subject_rank`) by layer and epoch, a heat map per type and band."""
    title, label = _LENS[measure]
    if components.lens.empty:
        return style.missing(title, components.missing, run)
    means = components.lens.groupby(["type", "band", "layer", "epoch"])[measure].mean()
    scale = share_scale(means) if measure == "prob" else rank_scale(means)
    note = "mean of the tasks; layer 0 = embeddings"
    return layer_maps(title, run, means, BAND_LABELS, scale, ("after layer", label), note)


# --- one prompt -------------------------------------------------------------------------------------------------------


@style.styled
def attention_pattern(views: Mapping[str, PromptView | None], head: tuple[int, int], run: str) -> Figure:
    """Draw where a head (layer, head) looks in one prompt, a panel per heading: queries are rows, keys columns."""
    title = f"Attention of head a{head[0]}.h{head[1]}"
    shown = {heading: view for heading, view in views.items() if view is not None}
    if not shown:
        return style.missing(title, _NO_PROMPT, run)
    longest = max(len(view.tokens) for view in shown.values())
    side = min(2.6 + 0.2 * longest, 7)
    width, note = side * len(shown) + 0.9, "the subject's tokens in vermilion"
    figure, axes = style.grid(title, run, 1, len(shown), width=width, height=side + 0.4, share_y=False, note=note)
    for ax, (heading, view) in zip(axes[0], shown.items(), strict=True):
        pattern = view.patterns[head]
        future = np.triu(np.ones_like(pattern, dtype=bool), 1)
        image = ax.imshow(np.ma.masked_where(future, pattern), cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        ax.grid(False)
        _token_ticks(ax, view)
        ax.set(title=heading, xlabel="looked at (key)")
    axes[0, 0].set_ylabel("from (query)")
    figure.colorbar(image, ax=axes, shrink=0.7, pad=0.015).set_label("attention")
    return figure


def _token_ticks(ax: Axes, view: PromptView) -> None:
    texts = [_shown(token) for token in view.tokens]
    ax.set_xticks(range(len(texts)), texts, rotation=90)
    ax.set_yticks(range(len(texts)), texts)
    for position in view.subject:
        for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
            labels[position].set_color(style.VERMILION)


def _shown(token: str, longest: int = 20) -> str:
    """Return a token as a label: cut, its spaces visible, what no font draws spelled out, dollar signs no formula."""
    visible = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token)
    cut = visible if len(visible) <= longest else f"{visible[: longest - 1]}…"
    return cut.replace(" ", "·").replace("$", r"\$")


@style.styled
def prompt_layers(view: PromptView | None, run: str) -> Figure:
    """Draw one prompt by layer: the leading tokens, and the rank and probability of the answer."""
    title = "One prompt by layer"
    if view is None:
        return style.missing(title, _NO_PROMPT, run)
    heading = f"{title}: {_prompt(view)}"
    note = "layer 0 = embeddings; left: colour = probability, framed = the answer"
    figure, axes = style.grid(heading, run, 1, 3, height=min(2.2 + 0.3 * len(view.layers), 12), note=note)
    table, ranks, probabilities = axes[0]
    _leading_tokens(table, view)
    layers = np.arange(len(view.layers))
    answer = Look("the answer, last position", style.BLACK, "o")
    at_subject = Look("the answer, best of the subject's positions", style.VERMILION, "s")
    leader = Look("the leading token", style.GREY, "^")
    leading = [tokens.scores[0] for tokens in view.layers]
    for ax, values, look in (
        (ranks, view.rank + 1, answer),
        (ranks, view.subject_rank + 1, at_subject),
        (probabilities, leading, leader),
        (probabilities, view.prob, answer),
    ):
        ax.plot(values, layers, f"{look.marker}-", color=look.color, markersize=3.5)
    ranks.set(xscale="log", title="rank of the answer", xlabel="rank + 1 (1 is best)")
    probabilities.set(title="probability", xlabel="probability", xlim=(-0.03, 1.03))
    table.yaxis.set_major_locator(MaxNLocator(integer=True))
    return style.legend(figure, {look.label: look for look in (answer, at_subject, leader)})


def _prompt(view: PromptView) -> str:
    return f'"{style.plain(view.text)}" → "{style.plain(view.answer)}", {view.where}'


def _leading_tokens(ax: Axes, view: PromptView) -> None:
    """Draw a table of the tokens that lead after each layer, coloured by probability, the answer framed."""
    scores = np.array([tokens.scores for tokens in view.layers])
    ax.imshow(scores, origin="lower", aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for layer, tokens in enumerate(view.layers):
        for column, (text, score) in enumerate(zip(tokens.texts, tokens.scores, strict=True)):
            color = "white" if score > 0.6 else style.BLACK
            ax.text(column, layer, _shown(text, 9), ha="center", va="center", fontsize=7.5, color=color)
            if text == view.answer:
                corner = (column - 0.48, layer - 0.48)
                ax.add_patch(Rectangle(corner, 0.96, 0.96, fill=False, color=style.VERMILION, linewidth=1.4))
    ax.grid(False)
    ax.set_xticks(range(scores.shape[1]), [str(column + 1) for column in range(scores.shape[1])])
    ax.set(title="tokens that lead (· is a space)", xlabel="rank", ylabel="after layer")


@style.styled
def prompt_components(view: PromptView | None, run: str, count: int = 14) -> Figure:
    """Draw one prompt by component: the largest shares of the answer's logit and the tokens that each raises most."""
    title = "One prompt by component"
    if view is None:
        return style.missing(title, _NO_PROMPT, run)
    shown = view.components[:count]
    heading = f"{title}: {_prompt(view)}"
    note = "direct logit attribution with the final norm's scale frozen"
    figure, axes = style.grid(heading, run, 1, 2, height=1.4 + 0.26 * len(shown), note=note)
    bars, words = axes[0]
    values = [component.answer for component in shown]
    rows = np.arange(len(shown))
    bars.barh(rows, values, color=[style.BLUE if value > 0 else style.ORANGE for value in values])
    bars.axvline(0, color=style.BLACK, linewidth=0.8)
    bars.set_yticks(rows, [component.name for component in shown])
    bars.invert_yaxis()
    bars.grid(axis="y", visible=False)
    bars.set(title="share of the answer's logit", xlabel="logits")
    words.set_title("tokens that the component raises most (· is a space)")
    words.set_axis_off()
    for row, component in zip(rows, shown, strict=True):
        for column, text in enumerate(component.raised.texts):
            answer = text == view.answer
            words.text(
                column / len(component.raised.texts),
                row,
                _shown(text, 14),
                transform=words.get_yaxis_transform(),
                va="center",
                fontsize=8,
                color=style.VERMILION if answer else style.BLACK,
                fontweight="bold" if answer else "normal",
            )
    return figure
