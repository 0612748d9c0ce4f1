"""Figures show the numbers they are given, name their run, and say so where there is nothing to show."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from synthetic_run import CHANCE, Truth, write_run

from knowledge_circuits.analysis import circuit_tables, findings, learning_tables, run_circuits, timeline
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.figures import circuit_evaluation, learning, style, topology
from knowledge_circuits.figures import dynamics as dynamics_figures
from knowledge_circuits.figures import findings as findings_figures
from knowledge_circuits.figures.circuit_graph import circuit_graph
from knowledge_circuits.figures.vector import DARK_PAPER, color_rules, contrast, dark_color, svg_element
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Attribute, Band, Group, KnowledgeType

SPLIT_HALF = 0.6
GROUP = Group(Attribute.CITY, KnowledgeType.REVISED, Band.HIGH)


@pytest.fixture(scope="module")
def circuits(synthetic_run: Run) -> Circuits:
    found = run_circuits.read_circuits(synthetic_run)
    assert found is not None
    return replace(found, table=found.table.assign(split_half_jaccard=SPLIT_HALF))


@pytest.fixture(scope="module")
def figures(synthetic_run: Run, circuits: Circuits) -> dict[str, Figure]:
    """Every figure of the run."""
    run, name = synthetic_run, timeline.run_name(synthetic_run)
    answers, hits = learning_tables.predictions(run), circuit_tables.circuit_predictions(run)
    results = circuit_tables.results(run)
    return {
        "accuracy": learning.first_token_and_query_accuracy(learning_tables.first_token_accuracy(run), answers, name),
        "loss": learning.loss(learning_tables.evaluations(run), name),
        "query_accuracy": learning.query_accuracy(answers, name),
        "accuracy_by_attribute": learning.accuracy_by_attribute(answers, name),
        "knowledge_heatmap": learning.knowledge_heatmap(answers, name),
        "hits_by_type": circuit_evaluation.hits_by_type(hits, results, name),
        "hits_by_band": circuit_evaluation.hits_by_band(hits, results, name),
        "hits_across_bands": circuit_evaluation.hits_across_bands(hits, results, name),
        "hits_across_types": circuit_evaluation.hits_across_types(hits, results, name),
        "faithfulness": circuit_evaluation.faithfulness(results, name),
        "circuit_entropy": topology.circuit_entropy(circuits, name),
        "three_entropies": topology.three_entropies(circuits, name),
        "similarity_to_last": topology.similarity_to_last(circuits, name),
        "similarity_map": topology.similarity_map(circuits, name),
        "activation_ratio": topology.activation_ratio(circuits, name),
        "phase_shift": findings_figures.phase_shift(circuits, name),
        "layer_order": findings_figures.layer_order(circuits, name),
        "intervals": findings_figures.intervals(findings.relevance(answers, hits), name),
        "circuit": circuit_graph(run_circuits.circuits_at(run, GROUP, [0, 8]), name),
    }


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def drawn_points(figure: Figure, panel: int, color: str) -> np.ndarray:
    """The checkpoints' points of one colour in a panel, [n, 2]."""
    lines = [line for line in figure.axes[panel].lines if line.get_color() == color and line.get_linestyle() == "None"]
    return np.asarray(lines[0].get_xydata())


def test_every_figure_has_a_title_and_names_its_run(figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        assert len(texts(figure)[0]) > 3, name
        assert any("run nano/default" in text for text in texts(figure)), name


def test_every_drawn_axis_is_labelled(figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        assert any(ax.get_ylabel() for ax in figure.axes), name
        if name not in ("circuit",):
            assert any(ax.get_xlabel() for ax in figure.axes), name


def test_query_accuracy_shows_the_mean_over_people_and_attributes(
    synthetic_run: Run, figures: dict[str, Figure]
) -> None:
    table = learning_tables.predictions(synthetic_run)
    part = table[(table["band"] == "high") & (table["type"] == "revised")]
    points = drawn_points(figures["query_accuracy"], panel=2, color=style.VERMILION)
    assert points[:, 1] == pytest.approx(part.groupby("epoch")["correct"].mean().to_numpy())


def test_circuit_entropy_shows_the_mean_over_tasks(circuits: Circuits, figures: dict[str, Figure]) -> None:
    table = circuits.table
    part = table[(table["band"] == "low") & (table["type"] == "new")]
    points = drawn_points(figures["circuit_entropy"], panel=0, color=style.BLUE)
    assert points[:, 1] == pytest.approx(part.groupby("epoch")["entropy"].mean().to_numpy())


def test_the_heat_map_has_a_row_for_each_person_with_frequent_ones_on_top(
    synthetic_run: Run, figures: dict[str, Figure]
) -> None:
    image = figures["knowledge_heatmap"].axes[0].images[0].get_array()
    people = learning_tables.attributes_known(learning_tables.predictions(synthetic_run))
    revised = people[people["type"] == "revised"]
    epochs = [column for column in revised if not isinstance(column, str)]
    assert image.shape == (len(revised), len(epochs))
    assert image.sum() == revised[epochs].to_numpy().sum()
    high = revised[revised["band"] == "high"]
    assert image[: len(high)].sum() == high[epochs].to_numpy().sum()


def test_faithfulness_beyond_the_axis_is_marked_on_its_edge() -> None:
    rows = [
        {"step": epoch, "circuit_step": epoch, "epoch": float(epoch), "task": "city", "type": "new", "band": "low"}
        for epoch in range(4)
    ]
    table = pd.DataFrame(rows).assign(faithfulness=[30.0, -8.0, 0.5, 0.9], metric="logit_difference")
    ax = circuit_evaluation.faithfulness(table, "run").axes[0]
    marked = {line.get_marker(): line.get_ydata().tolist() for line in ax.lines if line.get_marker() in "^v"}
    assert marked == {"^": [ax.get_ylim()[1]], "v": [ax.get_ylim()[0]]}


def level(figure: Figure, panel: int, linestyle: str) -> list[float]:
    """The values of a panel's grey line of a style."""
    (line,) = (
        line
        for line in figure.axes[panel].lines
        if (line.get_color(), line.get_linestyle()) == (style.GREY, linestyle) and line.get_linewidth() > 0.9
    )
    return np.asarray(line.get_ydata()).tolist()


def test_random_circuits_and_chance_stand_beside_hits(figures: dict[str, Figure]) -> None:
    for name in ("hits_by_type", "hits_by_band"):
        assert level(figures[name], 0, "--") == pytest.approx([0.02] * 9)
        assert level(figures[name], 0, ":") == pytest.approx([CHANCE] * 9)
        said = [text.get_text() for text in figures[name].legends[0].get_texts()]
        assert len(figures[name].legends) == 1 and any("random" in text for text in said)
    assert "6 + 6 people" in figures["hits_by_type"].axes[0].get_title(loc="left")
    assert level(figures["hits_across_bands"], 0, ":") == pytest.approx([CHANCE] * 9)


def test_two_halves_of_the_prompts_stand_beside_the_similarity_of_checkpoints(figures: dict[str, Figure]) -> None:
    assert level(figures["similarity_to_last"], 0, "--") == pytest.approx([SPLIT_HALF] * 9)


def test_faithfulness_of_nothing_is_greyed_and_stands_with_n_and_the_edges_it_takes(
    synthetic_run: Run, figures: dict[str, Figure]
) -> None:
    table = circuit_tables.results(synthetic_run)
    figure = figures["faithfulness"]
    assert "30 prompts" in figure.axes[0].get_title(loc="left")
    assert level(figure, 0, "--") == pytest.approx([0.01] * 9)
    assert level(figure, 6, ":") and figure.axes[6].get_ylim()[0] == 0  # edges for 0.9 on their whole range
    assert figure.axes[6].get_ylim()[1] > table["edges_num"].max()

    def crosses(shown: Figure) -> int:
        lines = [line for line in shown.axes[0].lines if line.get_marker() == "x"]
        return int(sum(np.isfinite(np.asarray(line.get_ydata(), dtype=float)).sum() for line in lines))

    unsure = table.assign(clean_minus_corrupted_low=-1.0, clean_minus_corrupted_high=1.0)
    assert crosses(figure) == 0
    assert crosses(circuit_evaluation.faithfulness(unsure, "r")) == 2 * (table["epoch"].nunique() - 1)


@pytest.mark.parametrize(
    ("metrics", "title", "axis"),
    [
        (["logit_difference"], "the share of the logit difference that the circuit restores", "(logits)"),
        (["kl_divergence"], "the share of the KL divergence that the circuit removes", "(nats)"),
        (["js_divergence"], "the share of the JS divergence that the circuit removes", "(nats)"),
        (["probability_difference"], "the probability difference that the circuit restores", "(probability)"),
        (["answer_log_probability"], "the log probability of the answer that the circuit restores", "(nats per token)"),
        (
            ["kl_divergence", "logit_difference"],
            "Faithfulness: several metrics (KL divergence, logit difference)",
            "(each metric's own unit)",
        ),
    ],
)
def test_a_figure_of_faithfulness_names_the_metric_that_was_evaluated(
    synthetic_run: Run, metrics: list[str], title: str, axis: str
) -> None:
    table = circuit_tables.results(synthetic_run)
    assert set(table["metric"]) == {"logit_difference"}
    parts = [table.assign(metric=metric) for metric in metrics]
    figure = circuit_evaluation.faithfulness(pd.concat(parts), "r")
    assert any(title in text for text in texts(figure))
    assert f"clean - corrupted {axis}" in [ax.get_ylabel() for ax in figure.axes]


def test_a_faithfulness_that_hardly_moves_is_said_to_be_saturated(synthetic_run: Run) -> None:
    table = circuit_tables.results(synthetic_run)
    assert not any("saturated" in text for text in texts(circuit_evaluation.faithfulness(table, "r")))
    full = circuit_evaluation.faithfulness(table.assign(faithfulness=0.98), "r")
    assert any("saturated" in text for text in texts(full))
    assert full.axes[0].get_ylim() == circuit_evaluation.FAITHFULNESS_LIMITS


def test_a_changing_learning_rate_is_shaded_in_every_figure_over_epochs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "decayed", Truth(decay=6), circuits=False)
    name = timeline.run_name(run)
    assert name.changing_rate == [(6.0, 8.0)]
    answers = learning_tables.predictions(run)
    for figure in (learning.query_accuracy(answers, name), learning.loss(learning_tables.evaluations(run), name)):
        for ax in figure.axes:
            (shade,) = ax.patches
            assert (shade.get_x(), shade.get_width()) == (6.0, 2.0)
    heat_map = learning.knowledge_heatmap(answers, name).axes[0]
    assert heat_map.lines[-1].get_xdata().tolist() == [6.0, 8.0]  # columns 6 to 8 of checkpoints 0 to 8
    constant = write_run(tmp_path / "constant", circuits=False)
    assert timeline.run_name(constant).changing_rate == []
    assert not learning.query_accuracy(answers, timeline.run_name(constant)).axes[0].patches


def test_layers_are_told_apart_in_the_dark_too(figures: dict[str, Figure]) -> None:
    (box,) = figures["layer_order"].legends
    colors = [line.get_color() for line in box.get_lines()]
    assert len(colors) == 4
    for of_mode in (colors, [dark_color(color) for color in colors]):
        shown = np.array([mpl.colors.to_rgb(color) for color in of_mode])
        distance = np.linalg.norm(shown[:, None] - shown, axis=-1) + 9 * np.eye(len(shown))
        assert distance.min() > 0.2


def test_transferred_circuits_are_compared_with_the_own_ones_of_the_same_groups() -> None:
    def row(step: int, circuit_step: int, task: str, hit: float) -> dict:
        place = {"task": task, "type": "new", "band": "high", "target_type": "new", "target_band": "high"}
        return {"step": step, "epoch": step / 10, "circuit_step": circuit_step, **place, "hit": hit}

    transferred = [row(step, origin, "city", 1.0) for step in (0, 10, 20) for origin in {0, step}]
    figure = circuit_evaluation.hits_of_transferred_circuits(
        pd.DataFrame([*transferred, *(row(s, s, "major", 0.0) for s in (0, 10, 20))]), "r"
    )
    lines = {tuple(line.get_ydata()) for ax in figure.axes for line in ax.lines if len(line.get_ydata())}
    assert lines == {(1.0, 1.0, 1.0)}, "major's circuits were not transferred, so they do not lower the own line"


def test_the_circuit_is_drawn_with_as_many_edges_as_asked_for(synthetic_run: Run) -> None:
    graphs = run_circuits.circuits_at(synthetic_run, GROUP, [0, 8])
    figure = circuit_graph(graphs, "run", edges=12)
    drawn = [
        collection for ax in figure.axes for collection in ax.collections if isinstance(collection, LineCollection)
    ]
    assert [len(lines.get_segments()) for lines in drawn] == [12, 12]
    assert drawn[0].get_linewidths()[-1] == pytest.approx(3.6)  # the strongest edge, drawn last and widest


def test_published_curves_stand_beside_ours(synthetic_run: Run) -> None:
    published = learning_tables.published_first_token_accuracy("gpt2")
    first_token = learning_tables.first_token_accuracy(synthetic_run)
    answers = learning_tables.predictions(synthetic_run)
    figure = learning.first_token_and_query_accuracy(first_token, answers, "gpt2/default", published)
    assert ["published" in ax.get_title(loc="left") for ax in figure.axes] == [False, True, False]


def test_what_is_missing_is_said_instead_of_drawn() -> None:
    nothing = pd.DataFrame(columns=learning_tables.PREDICTION_COLUMNS)
    no_hits = pd.DataFrame(columns=circuit_tables.CIRCUIT_PREDICTION_COLUMNS)
    no_results = pd.DataFrame(columns=circuit_tables.RESULT_COLUMNS)
    said = {
        "predict.py": [learning.query_accuracy(nothing, "r"), learning.knowledge_heatmap(nothing, "r")],
        "circuit_discovery.py": [
            circuit_evaluation.hits_by_type(no_hits, no_results, "r"),
            circuit_evaluation.faithfulness(no_results, "r"),
            topology.circuit_entropy(None, "r"),
            topology.activation_ratio(None, "r"),
            circuit_graph({}, "r"),
        ],
        "--circuit_from": [circuit_evaluation.hits_of_transferred_circuits(no_hits, "r")],
        "train.py": [learning.loss(pd.DataFrame(columns=learning_tables.EVALUATION_COLUMNS), "r")],
    }
    for remedy, drawn in said.items():
        for figure in drawn:
            assert any(remedy in text.get_text() for ax in figure.axes for text in ax.texts)


def test_names_with_dollar_signs_are_no_mathematics() -> None:
    skills = pd.DataFrame({"epoch": [0.0], "skill": ["sum_$x^{$"], "accuracy": [0.5]})
    texts, changes = pd.DataFrame(columns=["text"]), pd.DataFrame(columns=["band"])
    drawn = [
        learning.query_accuracy(pd.DataFrame(columns=learning_tables.PREDICTION_COLUMNS), "nano/a$_$b$"),
        dynamics_figures.skills_text_and_circuits(skills, texts, changes, "nano/$\\frac$"),
    ]
    for figure, name in zip(drawn, ("nano/a$_$b$", "nano/$\\frac$"), strict=True):
        assert f"run {name}" in svg_element(figure, "a figure")


def test_predictions_of_one_type_leave_the_other_panel_blank(synthetic_run: Run) -> None:
    table = learning_tables.predictions(synthetic_run)
    figure = learning.knowledge_heatmap(table[table["type"] == "new"], "run")
    assert [text.get_text() for text in figure.axes[0].texts] == ["no predictions"]
    assert figure.axes[1].images


def test_a_figure_for_a_page_has_text_and_colours_for_both_modes(figures: dict[str, Figure]) -> None:
    element = svg_element(figures["query_accuracy"], 'shares of "facts"')
    assert ">share of queries answered</text>" in element
    assert "#0072b2" not in element and "var(--c-0072b2)" in element
    light, dark = color_rules(element).split("@media")
    assert "--c-0072b2:#0072b2" in light and "--c-000000:#000000" in light
    paper = np.array(mpl.colors.to_rgb(DARK_PAPER))
    for color in ("#000000", "#0072b2", "#d55e00", "#00224e"):
        assert f"{dark_color(color)}" in dark or color == "#00224e"
        assert contrast(np.array(mpl.colors.to_rgb(dark_color(color))), paper) >= 4.4
    assert dark_color("#ffffff") == DARK_PAPER


def test_figures_leave_matplotlibs_settings_alone(synthetic_run: Run) -> None:
    before = dict(mpl.rcParams)
    learning.query_accuracy(learning_tables.predictions(synthetic_run), "run")
    assert dict(mpl.rcParams) == before


def test_a_saved_figure_is_a_whole_picture(figures: dict[str, Figure], tmp_path: Path) -> None:
    assert style.keep(figures["loss"], tmp_path, "loss") is figures["loss"]
    with Image.open(tmp_path / "loss.png") as image:
        image.verify()


def test_notebook_pictures_are_small_and_keep_the_types_colours(figures: dict[str, Figure]) -> None:
    data = style.png(figures["query_accuracy"])
    assert len(data) < 150_000
    shown = figures["query_accuracy"]._repr_png_()[1]  # type: ignore[attr-defined]
    assert abs(Image.open(BytesIO(data)).width - 2 * shown["width"]) <= 1
    pixels = np.asarray(Image.open(BytesIO(data)).convert("RGB")).reshape(-1, 3).astype(int)
    for color in (style.VERMILION, style.BLUE):
        wanted = np.array(mpl.colors.to_rgb(color)) * 255
        assert np.abs(pixels - wanted).max(axis=1).min() < 24
