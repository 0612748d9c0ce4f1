"""A public training history, mimicked by a local folder, through discovery, evaluation and prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.text import Text
from synthetic_run import Truth, write_run
from tiny_run import ONE_GROUP, SMALL, TinyRun, call, files, make_run

import circuit_discovery
import circuit_eval
import predict
from knowledge_circuits.analysis import run_circuits, timeline
from knowledge_circuits.engine.graph_files import read_graph
from knowledge_circuits.figures import topology
from knowledge_circuits.files import read_jsonl
from knowledge_circuits.report.page import write_report
from knowledge_circuits.runs import Run, existing_graph
from knowledge_circuits.study import Attribute, Band, Group, KnowledgeType

GROUP = Group(Attribute.CITY, KnowledgeType.NEW, Band.HIGH)
SOURCE = ["--task", "city", "--source_type", "new", "--source_frequency", "high"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """Three checkpoints under the names of a public model's revisions, in a folder beside the working directory."""
    run = make_run(tmp_path / "data", steps=(0, 1, 512))
    for step in (0, 1, 512):
        (run.checkpoints / f"checkpoint-{step}").rename(run.checkpoints / f"step{step}")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return run


def test_every_program_takes_revisions_and_leaves_the_models_folder_as_it_is(run: TinyRun) -> None:
    before = files(run.checkpoints)
    revisions = ["--revisions", "step0", "step512"]
    assert call(circuit_discovery.main, run.discovery(*ONE_GROUP, *revisions)) == 0
    assert call(circuit_eval.main, run.evaluation(*SOURCE, "--topn", "40", *revisions)) == 0
    prediction = ["--model_name_or_path", str(run.checkpoints), "--input_file", run.test_data]
    assert call(predict.main, [*prediction, "--max_predict_samples", "2", *SMALL, *revisions]) == 0
    assert files(run.checkpoints) == before
    results = Run(Path("outputs/history/checkpoints")).checkpoints()
    assert [checkpoint.step for checkpoint in results] == [0, 512]
    for checkpoint in results:
        folder = checkpoint.circuit_folder(6, GROUP, "EAP-IG")
        assert read_graph(existing_graph(folder.graph())).meta["checkpoint"] == checkpoint.name
        assert folder.results(40).is_file()
        assert len(read_jsonl(checkpoint.predictions)) == 2 * len(Attribute)


def test_the_circuits_of_one_step_run_in_another(run: TinyRun) -> None:
    assert call(circuit_discovery.main, run.discovery(*ONE_GROUP)) == 0
    flags = [*SOURCE, "--topn", "40", "--circuit_from", "1", "--revisions", "log"]
    assert call(circuit_eval.main, run.evaluation(*flags)) == 0
    (last,) = [one for one in Run(Path("outputs/history/checkpoints")).checkpoints() if one.step == 512]
    assert last.circuit_folder(6, GROUP, "EAP-IG").results(40, origin=1).is_file()


def test_figures_and_report_of_a_history_count_steps_on_a_logarithmic_axis(run: TinyRun) -> None:
    assert call(circuit_discovery.main, run.discovery(*ONE_GROUP)) == 0
    assert call(circuit_eval.main, run.evaluation(*SOURCE, "--topn", "40")) == 0
    history = Run(Path("outputs/history/checkpoints"))
    assert timeline.is_history(history) and timeline.epochs(history) == {0: 0.0, 1: 1.0, 512: 512.0}
    circuits = run_circuits.read_circuits(history)
    assert circuits is not None
    figure = topology.circuit_entropy(circuits, timeline.run_name(history))
    panels = [ax for ax in figure.axes if ax.lines]
    assert {ax.get_xscale() for ax in panels} == {"symlog"}
    words = {text.get_text() for text in figure.findobj(Text)}
    assert "optimizer step" in words and not any("epoch" in word for word in words)
    page = write_report(history).read_text()
    assert "optimizer steps 0 to 512" in page


def test_a_trained_run_counts_epochs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Truth(epochs=2))
    assert not timeline.is_history(run)
    circuits = run_circuits.read_circuits(run)
    assert circuits is not None
    figure = topology.circuit_entropy(circuits, timeline.run_name(run))
    assert {ax.get_xscale() for ax in figure.axes if ax.lines} == {"linear"}
    assert "epoch" in {text.get_text() for text in figure.findobj(Text)}
