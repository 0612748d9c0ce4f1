"""Figures of the paper's findings: what one run shows of each.

Each function takes circuits or a `findings.Finding` and the run's name and returns a Matplotlib `Figure`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from knowledge_circuits.analysis import findings
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.figures import style
from knowledge_circuits.figures.panels import draw_curve
from knowledge_circuits.figures.style import BLACK, BLUE, GREY, ORANGE, VERMILION


@style.styled
def phase_shift(circuits: Circuits | None, run: str) -> Figure:
    """Mean circuit entropy and edge Jaccard with the two-segment fit, its break point and the point's 95% interval."""
    title = "Phase shift: a bend, or a smooth curve?"
    labels = {"entropy": "circuit entropy (nats)", "edge_jaccard": "edge Jaccard with the last circuit"}
    if circuits is not None:
        fits = {label: findings.fit_phase_shift(circuits, column) for column, label in labels.items()}
    if circuits is None or not any(fits.values()):
        return style.missing(title, findings.NO_BEND, run)
    note = "mean of the groups; 95% interval by bootstrap over groups"
    figure, axes = style.grid(title, run, 1, len(fits), width=9.0, share_y=False, note=note)
    for ax, (label, shift) in zip(axes[0], fits.items(), strict=True):
        ax.set(xlabel="epoch", ylabel=label)
        if shift is None:
            style.blank(ax, "too few checkpoints")
        else:
            _draw_shift(ax, shift)
    shown = {text: handle for ax in axes[0] for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    return style.legend_row(figure, list(shown.values()))


def _draw_shift(ax: Axes, shift: findings.PhaseShift) -> None:
    """Draw a mean curve, the two segments with their break, and the best smooth curve; the title compares them."""
    fit = shift.fit
    ax.plot(shift.epochs, shift.mean, "o", color=BLACK, markersize=4, label="checkpoints")
    x = np.array([shift.epochs[0], float(fit.break_point), shift.epochs[-1]])
    ax.plot(x, fit.line(x), color=BLUE, linewidth=1.8, label="two segments")
    if shift.smooth is not None:
        ax.plot(shift.epochs, shift.smooth, color=VERMILION, linewidth=1.5, linestyle="--", label="best smooth curve")
    line, face, label = (":", "white", findings.EDGE) if fit.at_edge else ("-", ORANGE, "break")
    ax.axvline(float(fit.break_point), color=ORANGE, linewidth=1.2, linestyle=line)
    ax.plot(fit.break_point, fit.level, "D", color=ORANGE, markerfacecolor=face, markersize=7, label=label)
    if np.isfinite(shift.break_low):
        span = {"color": ORANGE, "alpha": 0.2, "linewidth": 0, "label": "95% interval of the break"}
        ax.axvspan(shift.break_low, shift.break_high, **span)
    best = "too few checkpoints to compare shapes"
    if shift.comparison is not None:
        gain = float(shift.comparison.bend_gain)
        best = f"best smooth curve: {shift.comparison.best_smooth};\nBIC {abs(gain):.1f} "
        best += "better than two segments" if gain < 0 else "worse than two segments"
    ax.set_title(best)


@style.styled
def layer_order(circuits: Circuits | None, run: str) -> Figure:
    """Draw the epoch at which each layer's edge activation ratio has made half of its change, with 95% intervals."""
    title = "Deep to shallow: when each layer has made half of its change"
    order = findings.layer_order(circuits) if circuits is not None else None
    if circuits is None or order is None:
        return style.missing(title, findings.NO_ORDER, run)
    note = "mean of the groups; 95% intervals by bootstrap over groups"
    figure, axes = style.grid(title, run, 1, 2, width=9.0, share_y=False, note=note)
    curve, when = axes[0]
    colors = style.ordered_colors(np.linspace(0, 1, len(order.layers)))
    looks = style.looks_of({int(layer): f"layer {layer}" for layer in order.layers}, colors, "osD^vP")
    means = circuits.activation_table().groupby(["layer", "epoch"])["ratio"].mean()
    for layer, look in looks.items():
        draw_curve(curve, means[layer].index, means[layer], look)
    curve.set(xlabel="epoch", ylabel="edge activation ratio")
    _draw_order(when, order, colors)
    named = order.layers[:: -(-len(order.layers) // 8)]  # eight names at most; the colours tell the rest
    return style.legend(figure, {int(layer): looks[int(layer)] for layer in named})


def _draw_order(ax: Axes, order: findings.LayerOrder, colors: Sequence[str]) -> None:
    """Half-change epochs with their intervals, layers upward."""
    moved = np.isfinite(order.epochs)
    if not moved.any():
        style.blank(ax, "no layer changes more than it scatters")
        return
    layers, epochs = order.layers[moved], order.epochs[moved]
    sides = np.abs(np.stack([epochs - order.low[moved], order.high[moved] - epochs]))
    ax.errorbar(epochs, layers, xerr=sides, fmt="none", ecolor=GREY, elinewidth=1.2, capsize=3)
    ax.scatter(epochs, layers, c=[colors[index] for index in np.flatnonzero(moved).tolist()], s=45, zorder=3)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(-0.5, len(order.layers) - 0.5)
    ax.set_xlabel("epoch of half of the change (none: change within its scatter)")
    ax.set_ylabel("layer")
    correlation = f"{order.correlation:+.2f}" if np.isfinite(order.correlation) else "not defined"
    ax.set_title(f"rank correlation with depth: {correlation}")


@style.styled
def intervals(finding: findings.Finding, run: str) -> Figure:
    """Draw a finding's main statistics of one unit as points with 95% intervals (the relevance differences)."""
    shown = [s for s in finding.statistics if s.claim and np.isfinite(s.estimate)]
    if not shown:
        return style.missing(finding.title, finding.reason, run)
    title, height = f"{finding.title}: {finding.verdict}", 0.34 * len(shown) + 1.5
    figure, axes = style.grid(title, run, 1, 1, width=7.4, height=height)
    ax = axes[0, 0]
    ax.axvline(0, color=BLACK, linewidth=0.9)
    for row, statistic in enumerate(reversed(shown)):
        ax.plot([statistic.low, statistic.high], [row, row], color=BLUE, linewidth=2.4)
        ax.plot(statistic.estimate, row, "o", color=BLUE, markersize=6)
    ax.set_yticks(range(len(shown)), [re.sub(r"K_(\w+)", r"$K_{\1}$", f"{s.name}, {s.where}") for s in reversed(shown)])
    ax.set_ylim(-0.6, len(shown) - 0.4)
    ax.set_xlabel("difference of the mean level over training, 95% interval over people")
    ax.set_ylabel("measure, frequency band")
    return figure
