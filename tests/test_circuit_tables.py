"""A run's evaluated circuits read back as tables: what was written is what is counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from synthetic_run import Truth, scored_graph, write_run

from knowledge_circuits.analysis import circuit_settings, circuit_tables, learning_tables, run_circuits
from knowledge_circuits.analysis.circuit_settings import Setting
from knowledge_circuits.engine.graph_files import write_graph
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.files import read_jsonl, write_jsonl
from knowledge_circuits.runs import Run
from knowledge_circuits.study import TASKS, Attribute, Band, Group, KnowledgeType

TRUTH = Truth()
GROUP = Group(Attribute.CITY, KnowledgeType.REVISED, Band.HIGH)


def test_the_setting_with_most_circuits_is_the_main_one(copied_run: Run) -> None:
    graph = prune(top_n(scored_graph(TRUTH, GROUP, 3.0), 10))
    write_graph(copied_run.checkpoints()[0].circuit_folder(30, GROUP, "EAP").circuit(10), graph)
    assert circuit_settings.settings(copied_run) == [Setting(30, "EAP-IG", TRUTH.topn), Setting(30, "EAP", 10)]
    assert len(run_circuits.read_circuits(copied_run, Setting(30, "EAP", 10)).table) == 1


def test_results_keep_one_row_per_circuit_and_a_missing_faithfulness_is_no_number(synthetic_run: Run) -> None:
    table = circuit_tables.results(synthetic_run)
    assert len(table) == (TRUTH.epochs + 1) * 18
    assert table[table["step"] == 0]["faithfulness"].isna().all()
    assert table[table["step"] > 0]["faithfulness"].notna().all()


@pytest.mark.parametrize(
    ("method", "metric"),
    [
        ("EAP-IG", "logit_difference"),
        ("EAP-IG_gim_kl_divergence_signed_sign0.95", "kl_divergence"),
        ("EAP-IG+EAP_kl_divergence", "logit_difference"),  # an ensemble is judged by --metric
        ("EAP-IG_js_divergence+EAP_signed", "js_divergence"),
    ],
)
def test_the_metric_of_results_is_that_of_their_path(copied_run: Run, method: str, metric: str) -> None:
    folder = copied_run.checkpoints()[-1]
    results = folder.circuit_folder(30, GROUP, method).results(10)
    results.parent.mkdir(parents=True)
    shutil.copy(folder.circuit_folder(30, GROUP, "EAP-IG").results(TRUTH.topn), results)
    assert circuit_tables.results(copied_run, Setting(30, method, 10))["metric"].tolist() == [metric]


def test_a_transferred_circuit_is_distinguished_from_a_checkpoints_own(copied_run: Run) -> None:
    folder = copied_run.checkpoints()[-1].circuit_folder(30, GROUP, "EAP-IG")
    own = folder.predictions(TRUTH.topn, GROUP.columns)
    shutil.copy(own, folder.predictions(TRUTH.topn, GROUP.columns, origin=10))
    shutil.copy(folder.results(TRUTH.topn), folder.results(TRUTH.topn, origin=10))
    hits, results = circuit_tables.circuit_predictions(copied_run), circuit_tables.results(copied_run)
    for table, rows in ((hits, TRUTH.people), (results, 1)):
        transferred = table[table["circuit_step"] != table["step"]]
        assert len(transferred) == rows
        assert set(transferred["circuit_step"]) == {10}
        assert set(transferred["step"]) == {80}
    assert len(circuit_tables.own_circuit_hits(hits)) == 3 * 18 * TRUTH.people


def test_a_circuit_transferred_to_where_it_comes_from_counts_once(copied_run: Run) -> None:
    before = circuit_tables.circuit_predictions(copied_run), circuit_tables.results(copied_run)
    folder, step = copied_run.checkpoints()[-1].circuit_folder(30, GROUP, "EAP-IG"), copied_run.checkpoints()[-1].step
    own = folder.predictions(TRUTH.topn, GROUP.columns)
    shutil.copy(own, folder.predictions(TRUTH.topn, GROUP.columns, origin=step))
    shutil.copy(folder.results(TRUTH.topn), folder.results(TRUTH.topn, origin=step))
    pd.testing.assert_frame_equal(circuit_tables.circuit_predictions(copied_run), before[0])
    pd.testing.assert_frame_equal(circuit_tables.results(copied_run), before[1])


def test_rank_nine_is_a_hit_and_rank_ten_is_none(copied_run: Run) -> None:
    folder = copied_run.checkpoints()[-1].circuit_folder(30, GROUP, "EAP-IG")
    path = folder.predictions(TRUTH.topn, GROUP.columns)
    ranks = [0, 9, 10, 500, 9, 10]
    rows = [{**row, "token_rank": rank} for row, rank in zip(read_jsonl(path), ranks, strict=True)]
    write_jsonl(path, rows)
    table = circuit_tables.own_circuit_hits(circuit_tables.circuit_predictions(copied_run))
    part = table[
        (table["step"] == 80) & (table["task"] == "city") & (table["type"] == "revised") & (table["band"] == "high")
    ]
    assert part["hit"].tolist() == [1, 1, 0, 0, 1, 0]


def test_the_last_checkpoint_has_a_row_for_each_group(synthetic_run: Run) -> None:
    table = circuit_tables.last_checkpoint(synthetic_run)
    assert len(table) == 18
    assert set(table["task"]) == set(TASKS)
    assert table.notna().all(axis=None)


def test_a_run_that_is_not_done_gives_empty_tables(tmp_path: Path) -> None:
    run = write_run(tmp_path / "model" / "run", circuits=False)
    for checkpoint in run.checkpoints():
        checkpoint.predictions.unlink()
    assert list(learning_tables.predictions(run)) == learning_tables.PREDICTION_COLUMNS
    assert list(circuit_tables.results(run)) == circuit_tables.RESULT_COLUMNS
    assert list(circuit_tables.circuit_predictions(run)) == circuit_tables.CIRCUIT_PREDICTION_COLUMNS
    assert run_circuits.read_circuits(run) is None
    assert circuit_settings.main_setting(run) is None
    assert run_circuits.circuits_at(run, GROUP, [0]) == {}
    assert circuit_tables.last_checkpoint(run)[["hit", "accuracy", "entropy"]].isna().all(axis=None)
