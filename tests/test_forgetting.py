"""A forgetting experiment's tables and figures on made-up runs whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from notebooks import run_notebook
from scipy import stats
from synthetic_forgetting import RATIOS, START, STEPS, left, write_experiment

from knowledge_circuits.analysis import circuit_tables, forgetting
from knowledge_circuits.analysis.forgetting import CircuitKind, Experiment
from knowledge_circuits.figures import forgetting as forgetting_figures
from knowledge_circuits.figures import style
from knowledge_circuits.files import InputError, write_json
from knowledge_circuits.runs import Checkpoint, Run


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("outputs") / "forget" / "nano"
    return forgetting.find_experiment(str(write_experiment(folder)))


@pytest.fixture(scope="module")
def shapes(experiment: Experiment) -> pd.DataFrame:
    return forgetting.shapes(forgetting.read_circuits(experiment))


def figures_of(experiment: Experiment) -> dict[str, Figure]:
    """Every figure of the experiment."""
    circuits, name = forgetting.read_circuits(experiment), experiment.name
    lens, missing = forgetting.logit_lens(experiment)
    return {
        "old_facts": forgetting_figures.old_facts(forgetting.predictions(experiment), name),
        "first_token": forgetting_figures.first_token(
            forgetting.first_token_accuracy(experiment), forgetting.evaluations(experiment), name
        ),
        "faithfulness": forgetting_figures.faithfulness(forgetting.results(experiment), name),
        "hits": forgetting_figures.hits(forgetting.circuit_predictions(experiment), name),
        "shapes": forgetting_figures.shapes(forgetting.shapes(circuits), name),
        "activation": forgetting_figures.activation_change(forgetting.activation(circuits), name),
        "lens": forgetting_figures.lens(lens, missing, name),
    }


@pytest.fixture(scope="module")
def figures(experiment: Experiment) -> dict[str, Figure]:
    return figures_of(experiment)


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in [*figure.texts, *(text for ax in figure.axes for text in ax.texts)])


# --- the experiment ---------------------------------------------------------------------------------------------------


def test_the_runs_are_found_by_rising_ratio_with_the_run_that_they_continue(experiment: Experiment) -> None:
    assert experiment.ratios == RATIOS
    assert [part.start for part in experiment.runs] == [Checkpoint(START, Path(START))] * len(RATIOS)
    assert experiment.original == Run(Path("outputs/train/nano/default"))
    assert experiment.name == "forget/nano, which continues nano/default"


def test_without_a_configuration_the_folders_name_tells_the_ratio(tmp_path: Path) -> None:
    write_experiment(tmp_path, ratios=(0.4,), circuits=False)
    (tmp_path / "replay_0.4" / "run_config.json").unlink()
    found = forgetting.find_experiment(str(tmp_path))
    assert found.ratios == (0.4,)
    assert found.original is None


@pytest.mark.parametrize("folder", ["replay_much", "replay_7"])
def test_a_folder_whose_ratio_nobody_knows_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=folder):
        forgetting.find_experiment(str(tmp_path))


def test_runs_of_different_models_are_no_experiment(tmp_path: Path) -> None:
    write_experiment(tmp_path, ratios=(0.0, 1.0), circuits=False)
    other = {"replay_ratio": 1.0, "model_name_or_path": "outputs/train/nano/other/checkpoints/checkpoint-7"}
    write_json(tmp_path / "replay_1" / "run_config.json", {"arguments": other})
    with pytest.raises(InputError, match="different checkpoints"):
        forgetting.find_experiment(str(tmp_path))


def test_an_empty_folder_is_told_what_fills_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"forget\.sh"):
        forgetting.find_experiment(str(tmp_path))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_old_facts_fade_with_the_ratio(experiment: Experiment) -> None:
    table = forgetting.predictions(experiment)
    known = table.groupby(["ratio", "step"])["correct"].mean()
    assert {key: round(value, 9) for key, value in known.items()} == {
        (ratio, step): round(left(ratio, step), 1) for ratio in RATIOS for step in STEPS
    }


def test_rediscovered_and_transferred_circuits_are_distinguished(experiment: Experiment) -> None:
    table = forgetting.results(experiment)
    assert table.groupby("kind").size().to_dict() == dict.fromkeys(map(str, CircuitKind), len(RATIOS) * len(STEPS) * 2)
    faithful = table.groupby(["kind", "ratio", "step"])["faithfulness"].mean()
    assert faithful[CircuitKind.REDISCOVERED, 0.0, 13] == pytest.approx(0.95)
    assert faithful[CircuitKind.TRANSFERRED, 0.0, 13] == pytest.approx(0.95 * left(0.0, 13))


def test_circuits_of_other_checkpoints_than_the_original_are_left_out(experiment: Experiment) -> None:
    table = circuit_tables.results(experiment.runs[0].run)
    other = pd.concat([table, table[table["circuit_step"] == 100].assign(circuit_step=5, step=13)])
    start = experiment.runs[0].start
    assert len(forgetting.with_kind(other, start)) == len(table)
    assert len(forgetting.with_kind(other, None)) == len(other)


def test_hits_are_those_of_a_circuits_own_group(experiment: Experiment) -> None:
    table = forgetting.circuit_predictions(experiment)
    assert (table["type"] == table["target_type"]).all()
    hits = table.groupby(["kind", "ratio", "step"])["hit"].mean()
    assert hits[CircuitKind.REDISCOVERED, 1.0, 13] == 1.0
    assert hits[CircuitKind.REDISCOVERED, 0.0, 0] == 1.0
    assert hits[CircuitKind.TRANSFERRED, 1.0, 13] == 0.5


def test_jaccard_is_with_the_circuit_of_step_0(experiment: Experiment, shapes: pd.DataFrame) -> None:
    assert (shapes.loc[shapes["step"] == 0, ["edge_jaccard", "node_jaccard"]] == 1).all(axis=None)
    assert (shapes.loc[shapes["ratio"] == 1, "edge_jaccard"] == 1).all()  # all replay: nothing drifts
    circuits = forgetting.read_circuits(experiment)[0.0]
    at = circuits.table.reset_index(drop=True)
    rows = [at[(at["type"] == "new") & (at["step"] == step)].index[0] for step in (0, 13)]
    first, last = circuits.edges[rows[0]], circuits.edges[rows[1]]
    wanted = (first & last).sum() / (first | last).sum()
    row = shapes[(shapes["ratio"] == 0) & (shapes["type"] == "new") & (shapes["step"] == 13)].iloc[0]
    assert row["edge_jaccard"] == pytest.approx(wanted)
    assert wanted < 0.9


def test_without_the_original_circuit_similarity_is_not_a_number(tmp_path: Path) -> None:
    write_experiment(tmp_path, ratios=(0.0,))
    for path in (tmp_path / "replay_0" / "checkpoints" / "checkpoint-0").rglob("*_graph.json"):
        path.unlink()
    circuits = forgetting.read_circuits(forgetting.find_experiment(str(tmp_path)))
    assert forgetting.shapes(circuits)["edge_jaccard"].isna().all()
    assert forgetting.activation(circuits)["change"].isna().all()


def test_activation_changes_are_since_step_0(experiment: Experiment) -> None:
    table = forgetting.activation(forgetting.read_circuits(experiment))
    assert (table.loc[table["step"] == 0, "change"] == 0).all()
    wide = table[(table["ratio"] == 0) & (table["layer"] == 1) & (table["type"] == "new")].set_index("step")
    assert wide.loc[13, "change"] == pytest.approx(wide.loc[13, "activation"] - wide.loc[0, "activation"])
    assert table["change"].abs().max() > 0


def test_the_summary_has_a_row_for_each_ratio(experiment: Experiment, shapes: pd.DataFrame) -> None:
    table = forgetting.summary(
        forgetting.predictions(experiment),
        forgetting.evaluations(experiment),
        shapes,
        forgetting.results(experiment),
        forgetting.circuit_predictions(experiment),
    ).set_index("replay ratio")
    assert table.index.tolist() == list(RATIOS)
    none = table.loc[0.0]
    assert (none["known before"], none["known after"], none["at step"]) == pytest.approx((1.0, 0.4, 13))
    assert none["first token after"] == pytest.approx(left(0.0, 10))
    assert none["loss after"] == pytest.approx(3 - left(0.0, 10))
    assert none["faithfulness, transferred"] == pytest.approx(0.95 * left(0.0, 13))
    assert none["Hit@10, rediscovered"] == pytest.approx(0.4)
    assert table["known after"].is_monotonic_increasing


def test_the_change_of_what_is_known_has_an_interval_over_people(experiment: Experiment, shapes: pd.DataFrame) -> None:
    answers, results = forgetting.predictions(experiment), forgetting.results(experiment)
    hits, evaluations = forgetting.circuit_predictions(experiment), forgetting.evaluations(experiment)
    none = forgetting.summary(answers, evaluations, shapes, results, hits).set_index("replay ratio").loc[0.0]
    of_ratio = answers[answers["ratio"] == 0]
    sides = [of_ratio[of_ratio["step"] == step].set_index(["full_name", "attribute"])["correct"] for step in (0, 13)]
    sides = [side.astype(float) for side in sides]
    people = (sides[1] - sides[0]).groupby("full_name").mean()
    assert (none["change, low"], none["change, high"]) == pytest.approx(
        stats.t.interval(0.95, len(people) - 1, people.mean(), stats.sem(people))
    )
    assert (none["lost"], none["gained"]) == ((sides[0] > sides[1]).sum(), (sides[1] > sides[0]).sum())


def test_a_summary_of_what_was_not_measured_is_not_a_number(tmp_path: Path) -> None:
    bare = forgetting.find_experiment(str(write_experiment(tmp_path, circuits=False)))
    shapes = forgetting.shapes(forgetting.read_circuits(bare))
    parts = (forgetting.predictions, forgetting.evaluations, forgetting.results, forgetting.circuit_predictions)
    predictions, evaluations, results, hits = (read(bare) for read in parts)
    table = forgetting.summary(predictions, evaluations, shapes, results, hits)
    assert len(table) == len(RATIOS)
    assert table[["edge Jaccard", "faithfulness, transferred", "Hit@10, transferred"]].isna().all(axis=None)
    assert table["known after"].notna().all()


# --- figures ----------------------------------------------------------------------------------------------------------


def test_every_figure_names_the_experiment_and_what_it_continues(figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        assert "run forget/nano, which continues nano/default" in words(figure), name
        assert len(style.png(figure)) > 2_000, name


def test_old_facts_are_drawn_as_a_line_for_each_ratio(figures: dict[str, Figure]) -> None:
    ax = figures["old_facts"].axes[2]
    looks = forgetting_figures.ratio_looks(RATIOS)
    drawn = {line.get_color(): np.asarray(line.get_xydata()) for line in ax.lines}
    assert set(drawn) == {look.color for look in looks.values()}
    for ratio in RATIOS:
        points = drawn[looks[ratio].color]
        assert points[:, 0].tolist() == list(STEPS)
        assert points[:, 1] == pytest.approx([round(left(ratio, step), 1) for step in STEPS])


def test_first_tokens_are_drawn_at_every_evaluation(figures: dict[str, Figure]) -> None:
    line = figures["first_token"].axes[0].lines[0]
    assert line.get_xdata().tolist() == [0, 5, 10]
    assert line.get_ydata() == pytest.approx([left(0.0, step) for step in (0, 5, 10)])


def test_transferred_circuits_stand_beside_rediscovered_ones(figures: dict[str, Figure]) -> None:
    rediscovered, transferred = figures["faithfulness"].axes[:2]
    color = forgetting_figures.ratio_looks(RATIOS)[0.0].color

    def last(ax: object) -> float:
        return next(line.get_ydata()[-1] for line in ax.lines if line.get_color() == color)  # type: ignore[attr-defined]

    assert last(rediscovered) == pytest.approx(0.95)
    assert last(transferred) == pytest.approx(0.95 * left(0.0, 13))


def test_faithfulness_beyond_the_axis_is_marked_on_its_edge(experiment: Experiment) -> None:
    table = forgetting.results(experiment).assign(faithfulness=-40.0)
    ax = forgetting_figures.faithfulness(table, "nano").axes[0]
    marks = {line.get_ydata()[0] for line in ax.lines if line.get_marker() == "v"}
    assert marks == {ax.get_ylim()[0]}


def test_more_replay_changes_fewer_edges_of_each_layer(figures: dict[str, Figure]) -> None:
    maps = [ax.images[0].get_array() for ax in figures["activation"].axes if ax.images and ax.get_title(loc="left")]
    assert len(maps) == 2 * len(RATIOS)
    assert maps[0].shape == (2, len(STEPS))  # the last layer is left out
    change = [np.abs(values).sum() for values in maps[: len(RATIOS)]]
    assert change[0] > change[-1] == 0


def test_the_logit_lens_is_drawn_where_it_was_measured() -> None:
    rows = [
        {"type": kind, "ratio": ratio, "layer": layer, "step": step, "rank": 1.0 + step * layer}
        for kind in ("new", "revised")
        for ratio in (0.0, 1.0)
        for layer in range(4)
        for step in (0, 3)
    ]
    table = pd.DataFrame(rows).assign(prob=0.5, subject_rank=2.0)
    for measure in ("rank", "prob"):
        figure = forgetting_figures.lens(table, "", "nano", measure)
        maps = [ax.images[0].get_array() for ax in figure.axes if ax.images]
        assert [values.shape for values in maps] == [(4, 2)] * 4
    assert maps[0].max() == 0.5
    for measure, what in (("rank", "rank + 1"), ("subject_rank", "best rank + 1")):
        figure = forgetting_figures.lens(table, "", "nano", measure)
        assert f"mean of {what} (1 is best)" in [ax.get_ylabel() for ax in figure.axes]
        assert any(f"training: {what} of the original answer" in text.get_text() for text in figure.texts)


def test_what_is_missing_is_said_instead_of_drawn(tmp_path: Path) -> None:
    bare = forgetting.find_experiment(str(write_experiment(tmp_path, circuits=False)))
    said = {name: words(figure) for name, figure in figures_of(bare).items()}
    for name in ("faithfulness", "hits", "shapes", "activation", "lens"):
        assert "circuit_discovery.py" in said[name], name
    for name in ("old_facts", "first_token"):
        assert "No " not in said[name], name


def test_the_notebooks_cells_run_on_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_experiment(tmp_path / "forget" / "nano")
    monkeypatch.setenv("RUN", str(folder))
    run_notebook("forgetting", monkeypatch)
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        *("old_facts", "first_token", "faithfulness", "circuit_hits", "circuit_shapes", "activation_change"),
        *("lens_rank", "lens_probability"),
    }
