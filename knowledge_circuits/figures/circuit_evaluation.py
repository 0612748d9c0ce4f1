"""Figures of circuit evaluation: faithfulness, and Hit@10 of the circuits run alone on test items.

Each function takes `results` or `circuit_predictions` of `circuit_tables` and the run's name and returns a Matplotlib
`Figure`. For an empty table the figure says what is missing and which program writes it. Beside the circuits stand
random circuits of the same size and the chance level of Hit@10, where circuit_eval.py measured them (`--floors`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from knowledge_circuits.analysis import circuit_tables
from knowledge_circuits.analysis.circuit_settings import NO_CIRCUITS
from knowledge_circuits.engine.options import Metric
from knowledge_circuits.figures import style
from knowledge_circuits.figures.panels import (
    Arrangement,
    By,
    arrange,
    draw_curve,
    draw_lines,
    fact_group_looks,
    fact_names,
    group_grid,
    label_axes,
    line_panels,
    mark_beyond,
    share_axis,
    type_panels,
    within,
    wrapped_grid,
)
from knowledge_circuits.figures.style import BANDS, BLACK, GREY, NOT_OF_FACTS, TYPES, Look

_NO_HITS = "No circuit of this run was evaluated alone on test items yet: circuit_eval.py --test_data_file does it."
#: The y axis of every figure of faithfulness; values beyond it are marked on its edge.
FAITHFULNESS_LIMITS = (-0.25, 1.5)


@style.styled
def faithfulness(results: pd.DataFrame, run: str) -> Figure:
    """Draw the faithfulness of each checkpoint's own circuits, what it is a share of, and the edges needed for 0.9.

    A column per band, a line per type, or a line per group of one's own facts. Faithfulness is the tasks' median; where
    the 95% interval of clean minus corrupted contains 0 the ratio is noise and drawn as a grey cross. The second row
    (of facts: panel) has clean minus corrupted itself.
    """
    table = circuit_tables.own_circuits(results)
    title, unit = _measured(table)
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *circuit_tables.RESULT_NUMBERS])))
    if table.empty or table["faithfulness"].isna().all():
        return style.missing(title, NO_CIRCUITS, run)
    table = table.assign(gap=table["clean_baseline_performance"] - table["corrupted_baseline_performance"])
    table["sure"] = circuit_tables.is_certain(table)
    sized = bool(table["edges_for_90"].notna().any())
    arranged = arrange(table, "medians of the tasks")
    note = style.joined(arranged.note, f"open triangles lie beyond the axis{_saturation(table)}")
    figure, axes = group_grid(title, run, 3 if sized else 2, arranged, 7.4 if sized else 5.4, note)
    by, looks = arranged.lines
    for column, (look, part) in zip(axes.T, arranged.parts(), strict=True):
        _draw_faithfulness(column[0], part, arranged.lines)
        column[0].set_title(style.joined(look.label, _prompts(part), by=": "))
        _draw_gap(column[1], part, arranged.lines)
        if sized:
            draw_lines(column[2], _medians(part[part["sure"]], "edges_for_90", by), "edges_for_90", by, looks)
            column[2].axhline(part["edges_num"].median(), **_REFERENCE)
            column[2].set_ylim(0, max(table["edges_num"].max(), table["edges_for_90"].max()) * 1.05)
    for ax in axes.flat:  # epochs without a certain ratio included
        ax.set_xlim(axes[1, 0].get_xlim())
    label_axes(axes, ["faithfulness (1 = whole model)", f"clean - corrupted ({unit})", "edges needed for 0.9"])
    further = [Line2D([], [], label="clean - corrupted may be 0", **_UNSURE)]
    if table["random_faithfulness"].notna().any():
        further.append(_RANDOM.handle)
    if sized:
        further.append(Line2D([], [], label="size of the circuit", **_REFERENCE))
    return style.legend(figure, looks, further=further)


#: Each metric's name, what a faithful circuit does to it, and its unit.
_METRICS = {
    Metric.LOGIT_DIFFERENCE: ("logit difference", "restores", "logits"),
    Metric.PROBABILITY_DIFFERENCE: ("probability difference", "restores", "probability"),
    Metric.KL_DIVERGENCE: ("KL divergence", "removes", "nats"),
    Metric.JS_DIVERGENCE: ("JS divergence", "removes", "nats"),
    Metric.ANSWER_LOG_PROBABILITY: ("log probability of the answer", "restores", "nats per token"),
}


def _measured(table: pd.DataFrame) -> tuple[str, str]:
    """Return the title of a figure of faithfulness and the unit of clean minus corrupted, by the rows' metrics."""
    metrics = [_METRICS[Metric(name)] for name in table["metric"].unique()]
    if len(metrics) == 1:
        name, does, unit = metrics[0]
        return f"Faithfulness: the share of the {name} that the circuit {does}", unit
    names = ", ".join(name for name, _, _ in metrics)
    return style.joined("Faithfulness", names and f"several metrics ({names})", by=": "), "each metric's own unit"


#: How lines of reference and points that say little are drawn.
_REFERENCE: dict[str, Any] = {"color": GREY, "linewidth": 1.0, "linestyle": ":"}
_UNSURE: dict[str, Any] = {"color": GREY, "marker": "x", "markersize": 4, "linestyle": "none"}


@dataclass(frozen=True)
class _Level:
    """A level that a circuit is compared with: the column of `circuit_tables.results` and the line's look."""

    column: str
    label: str
    linestyle: str

    @property
    def handle(self) -> Line2D:
        """The line in a legend."""
        return Line2D([], [], color=GREY, linewidth=1.2, linestyle=self.linestyle, label=self.label)

    def draw(self, ax: Axes, table: pd.DataFrame) -> None:
        """Draw the mean over the rows of each epoch; nothing where it was not measured."""
        mean = table.groupby("epoch")[self.column].mean().dropna()
        ax.plot(mean.index, mean, color=GREY, linewidth=1.2, linestyle=self.linestyle)


_RANDOM = _Level("random_faithfulness", "random circuits of the same size (mean of 5)", "--")
_RANDOM_HITS = _Level("random_hit10", "random circuits of the same size (mean of 5)", "--")
_CHANCE = _Level("chance_hit10", "chance: the ten commonest answers", ":")


def _medians(table: pd.DataFrame, column: str, by: str) -> pd.DataFrame:
    return table.groupby([by, "epoch"], as_index=False)[column].median()


def _draw_faithfulness(ax: Axes, table: pd.DataFrame, lines: By) -> None:
    """Draw one panel's faithfulness: lines through the certain ratios, grey crosses for the others."""
    by, looks = lines
    ax.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    medians = _medians(table[table["sure"]], "faithfulness", by)
    if len(medians) or table.empty:  # else there are crosses alone
        draw_lines(ax, medians.assign(shown=within(medians["faithfulness"], FAITHFULNESS_LIMITS)), "shown", by, looks)
    for name, look in looks.items():
        rows = medians[medians[by] == name]
        mark_beyond(ax, rows["epoch"], rows["faithfulness"], FAITHFULNESS_LIMITS, look.color)
    unsure = _medians(table[~table["sure"]], "faithfulness", by)
    ax.plot(unsure["epoch"], unsure["faithfulness"].clip(*FAITHFULNESS_LIMITS), **_UNSURE)
    _RANDOM.draw(ax, table)


def _draw_gap(ax: Axes, table: pd.DataFrame, lines: By) -> None:
    """Draw one panel's clean minus corrupted, mean of the tasks, with the mean of its 95% intervals."""
    (by, looks), low, high = lines, "clean_minus_corrupted_low", "clean_minus_corrupted_high"
    ax.axhline(0, color=GREY, linewidth=0.8)
    for name, look in looks.items():
        mean = table[table[by] == name].groupby("epoch")[["gap", low, high]].mean()
        ax.fill_between(mean.index, mean[low], mean[high], color=look.color, alpha=0.15, linewidth=0)
        ax.plot(mean.index, mean["gap"], color=look.color, marker=look.marker, markersize=3, linewidth=1.5)


def _saturation(table: pd.DataFrame) -> str:
    """Return one clause where the faithfulness that is certain hardly moves, else ""."""
    later = table[table["sure"] & (table["epoch"] > 0)]["faithfulness"].dropna()
    if len(later) and later.quantile(0.05) >= 0.9:
        return f"; saturated: 90% of the circuits lie between {later.quantile(0.05):.2f} and {later.quantile(0.95):.2f}"
    return ""


def _prompts(table: pd.DataFrame) -> str:
    """Return how many prompts a circuit of these rows has, as a part of a title; "" if unknown."""
    counts = table["prompts"].dropna()
    return "" if counts.empty else f"{_least_to_most(counts)} prompts a group"


def _least_to_most(counts: pd.Series) -> str:
    least, most = int(counts.min()), int(counts.max())
    return str(least) if least == most else f"{least} to {most}"


@style.styled
def fact_groups(fact_circuits: pd.DataFrame, run: str) -> Figure:
    """Draw faithfulness, Hit@10, entropy and similarity to the last circuit: a line per group of one's own facts."""
    title = "Circuits of one's own groups of facts"
    if fact_circuits.empty:
        return style.missing(title, NO_CIRCUITS, run)
    table, looks, left_out = fact_group_looks(fact_circuits)
    note = style.joined("open triangles lie beyond the axis", left_out)
    figure, axes = style.grid(title, run, 1, 4, width=12.6, share_y=False, note=note)
    table["shown"] = within(table["faithfulness"], FAITHFULNESS_LIMITS)
    panels = {
        "shown": "faithfulness",
        "hit": "Hit@10",
        "edge_entropy": "entropy (nats)",
        "edge_jaccard": "edge similarity to the last circuit",
    }
    for ax, (value, label) in zip(axes[0], panels.items(), strict=True):
        draw_lines(ax, table.dropna(subset=[value]), value, "name", looks)
        ax.set(title=label, xlabel="epoch")
        if value in ("hit", "edge_jaccard"):
            share_axis(ax)
    for name, look in looks.items():
        rows = table[table["name"] == name]
        mark_beyond(axes[0, 0], rows["epoch"], rows["faithfulness"], FAITHFULNESS_LIMITS, look.color)
    return style.legend(figure, looks)


@style.styled
def hits_by_type(circuit_predictions: pd.DataFrame, results: pd.DataFrame, run: str) -> Figure:
    """Draw Hit@10 of each checkpoint's own circuits on their own group: a panel per band, a line per type.

    Groups of one's own facts share a panel.
    """
    hits = arrange(circuit_tables.own_circuit_hits(circuit_predictions), "")
    by = "group of facts" if "group" in circuit_predictions else "knowledge type within each band"
    return _own_hits(f"Hit@10 of the circuits alone, by {by}", hits, results, run)


@style.styled
def hits_by_band(circuit_predictions: pd.DataFrame, results: pd.DataFrame, run: str) -> Figure:
    """Draw Hit@10 of each checkpoint's own circuits on their own group: a panel per type, a line per band."""
    title = "Hit@10 of the circuits alone, by frequency band within each type"
    if "group" in circuit_predictions:
        return style.missing(title, NOT_OF_FACTS, run)
    hits = Arrangement(circuit_tables.own_circuit_hits(circuit_predictions), ("type", TYPES), ("band", BANDS), "")
    return _own_hits(title, hits, results, run)


def _own_hits(title: str, hits: Arrangement, results: pd.DataFrame, run: str) -> Figure:
    if hits.table.empty:
        return style.missing(title, NO_CIRCUITS if results.empty else _NO_HITS, run)
    (column, looks), (by, of_lines), own = hits.panels, hits.lines, circuit_tables.own_circuits(results)
    figure = line_panels(title, hits.table, "hit", hits.panels, hits.lines, "Hit@10", run, note=hits.note)
    of_facts = "group" in hits.table
    for ax, (look, part) in zip(figure.axes, hits.parts(), strict=True):
        items = part.groupby(by)["full_name"].nunique()
        counts = " + ".join(str(items.get(one, 0)) for one in of_lines)
        ax.set_title(f"{_least_to_most(items)} test items a group" if of_facts else f"{look.label}: {counts} people")
    parts = [own] if of_facts else [own[own[column] == key] for key in looks]
    return _with_levels(figure, parts, (_RANDOM_HITS, _CHANCE), of_lines)


def _with_levels(
    figure: Figure, parts: list[pd.DataFrame], wanted: tuple[_Level, ...], looks: Mapping[Any, Look], title: str = ""
) -> Figure:
    """Draw the measured levels of each panel's rows of `results`, and the legend of lines and levels."""
    levels = [level for level in wanted if any(part[level.column].notna().any() for part in parts)]
    for ax, part in zip(figure.axes, parts, strict=True):
        for level in levels:
            level.draw(ax, part)
    return style.legend(figure, looks, title, [level.handle for level in levels])


@style.styled
def hits_across_bands(circuit_predictions: pd.DataFrame, results: pd.DataFrame, run: str) -> Figure:
    """Draw Hit@10 of circuits of one band on test items of another: a row per type, a column per tested band.

    Groups of one's own facts have a panel per tested group.
    """
    if "group" in circuit_predictions:
        return _hits_across_facts(circuit_predictions, results, run)
    title = "Generalization of circuits across frequency bands"
    return _hits_across(title, circuit_predictions, results, ("band", BANDS), ("type", "--target_frequency"), run)


@style.styled
def hits_across_types(circuit_predictions: pd.DataFrame, results: pd.DataFrame, run: str) -> Figure:
    """Draw Hit@10 of circuits of one type on test items of the other: a row per tested type, a column per band."""
    title = "Generalization of circuits across knowledge types"
    if "group" in circuit_predictions:
        return style.missing(title, NOT_OF_FACTS, run)
    return _hits_across(title, circuit_predictions, results, ("type", TYPES), ("band", "--target_type"), run)


def _hits_across(
    title: str, circuit_predictions: pd.DataFrame, results: pd.DataFrame, lines: By, same: tuple[str, str], run: str
) -> Figure:
    """Draw Hit@10 on each test group, a line for each value of one column of the circuit's group.

    Args:
        lines: the column that differs between a circuit's group and the tested one.
        same: the column that is the same in both, and the flag of circuit_eval.py that runs circuits on other groups.
    """
    (column, looks), (fixed, flag) = lines, same
    table = circuit_tables.own_circuits(circuit_predictions)
    table = table[table[fixed] == table[f"target_{fixed}"]]
    if table.empty or (table[column] == table[f"target_{column}"]).all():
        message = f"No circuit was run on the test items of another {column} (circuit_eval.py {flag})."
        return style.missing(title, message, run)
    note = "titles: the tested group; lines: the group on which the circuit was found"
    figure, axes = style.grid(title, run, len(TYPES), len(BANDS), height=5.0, note=note)
    chance = circuit_tables.own_circuits(results)  # of the tested group: its own circuits' files tell it
    of_groups = type_panels(axes, chance)
    for (ax, part), (_, tested) in zip(type_panels(axes, table, prefix="target_"), of_groups, strict=True):
        draw_lines(ax, part, "hit", column, looks)
        _CHANCE.draw(ax, tested)
        share_axis(ax)
    label_axes(axes, "Hit@10")
    drawn = [_CHANCE.handle] if chance["chance_hit10"].notna().any() else []
    return style.legend(figure, looks, "circuit of", drawn)


def _hits_across_facts(circuit_predictions: pd.DataFrame, results: pd.DataFrame, run: str) -> Figure:
    """Draw Hit@10 on each group's test items, a line for each group on which the circuit was found."""
    title = "Generalization of circuits across groups of facts"
    table, looks, left_out = fact_group_looks(circuit_tables.own_circuits(circuit_predictions))
    table["tested"] = fact_names(table, "target_group")
    if (table["name"] == table["tested"]).all():
        flag = "circuit_eval.py --test_data_file, --target_group"
        return style.missing(title, f"No circuit was run on the test items of another group ({flag}).", run)
    note = style.joined("lines: the group on which the circuit was found", left_out)
    panels = {name: replace(look, label=f"tested: {look.label}") for name, look in looks.items()}
    figure = line_panels(title, table, "hit", ("tested", panels), ("name", looks), "Hit@10", run, note=note)
    own = circuit_tables.own_circuits(results)
    names = fact_names(own)
    return _with_levels(figure, [own[names == name] for name in looks], (_CHANCE,), looks, "circuit of")


@style.styled
def hits_of_transferred_circuits(circuit_predictions: pd.DataFrame, run: str) -> Figure:
    """Draw Hit@10 of a few checkpoints' circuits in the weights of all, beside each checkpoint's own; a panel per type.

    Groups of one's own facts have a panel each. Every line counts only the tasks and bands (or groups) of which
    circuits were transferred, so that lines can be compared.
    """
    title = "Transferred circuits: one checkpoint's circuit in the weights of all others"
    table = circuit_predictions
    if table.empty or (table["circuit_step"] == table["step"]).all():
        flag = "circuit_eval.py --circuit_from"
        return style.missing(title, f"No circuit was evaluated in another checkpoint's weights ({flag}).", run)
    table = circuit_tables.on_own_group(table)
    epoch_of = table.drop_duplicates("step").set_index("step")["epoch"]
    transferred = table[table["circuit_step"] != table["step"]]
    names = ["task", "group" if "group" in table else "band"]
    compared = transferred[names].drop_duplicates()
    table = table.merge(compared)
    tasks, others = (sorted(set(compared[name])) for name in names)
    origins = sorted(set(transferred["circuit_step"]))
    palette = style.ordered_colors(np.linspace(0, 1, len(origins)))
    own = Look("each epoch's own", BLACK, "x")
    looks = style.looks_of({step: f"epoch {epoch_of.get(step, np.nan):g}" for step in origins}, palette)
    arranged = arrange(table, f"circuits of {', '.join(tasks)} ({', '.join(others)})")
    column, kinds = ("type", TYPES) if "type" in table else arranged.lines
    figure, axes = wrapped_grid(title, run, len(kinds), arranged.note)
    for ax, (kind, look) in zip(figure.axes, kinds.items(), strict=True):
        part = arranged.table[arranged.table[column] == kind]
        lines = [(part[part["circuit_step"] == step], line) for step, line in looks.items()]
        for rows, line in ((circuit_tables.own_circuits(part), own), *lines):
            mean = rows.groupby("epoch")["hit"].mean()
            draw_curve(ax, mean.index, mean, line)
        share_axis(ax)
        ax.set_title(look.label, color=look.color if kinds is TYPES else BLACK)
    label_axes(axes, "Hit@10")
    return style.legend(figure, {"own": own, **looks}, "circuit of")
