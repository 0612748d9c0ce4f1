"""What a run learned, as a table of text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from knowledge_circuits.analysis.summary import learning_table, summary_text
from knowledge_circuits.files import InputError, read_jsonl, write_json, write_jsonl
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Band, Group, KnowledgeType

FREQUENCY = {Band.LOW: 1, Band.MEDIUM: 3, Band.HIGH: 8}


def write_run(folder: Path) -> Run:
    """A run of three checkpoints: at epoch e, high-frequency facts are known with accuracy e / 2, others never."""
    run = Run(folder / "outputs" / "train" / "tiny" / "default")
    write_jsonl(run.evaluations, [{"step": step, "epoch": step / 10, "loss": 1.0} for step in (10, 20)])
    for epoch, step in enumerate((0, 10, 20)):
        checkpoint = run.checkpoints_folder / f"checkpoint-{step}"
        rows = [
            {
                "full_name": f"Person {number}",
                "attribute": attribute,
                "type": str(kind),
                "frequency": FREQUENCY[band],
                "correct": False,
                "first_token_correct": band is Band.HIGH and number < epoch,
            }
            for kind in KnowledgeType
            for band in Band
            for number in range(2)
            for attribute in ("city", "major")
        ]
        write_jsonl(checkpoint / "prediction.jsonl", rows)
    return run


def write_result(run: Run, group: Group, faithfulness: float | None) -> None:
    last = run.checkpoints()[-1]
    path = last.circuit_folder(30, group, "EAP-IG").results(100)
    numbers = ("clean_baseline_performance", "corrupted_baseline_performance", "circuit_performance", "edge_entropy")
    counts = {"edges_num": 100, "nodes_num": 10}
    write_json(path, {**dict.fromkeys(numbers, 1.0), **counts, "faithfulness": faithfulness})


def test_accuracy_stands_by_type_and_band_at_the_first_the_middle_and_the_last_epoch(tmp_path: Path) -> None:
    table = learning_table(write_run(tmp_path))
    assert list(table.loc[("new", "high"), ["epoch 0", "epoch 1", "epoch 2"]]) == [0.0, 0.5, 1.0]
    assert list(table.loc[("revised", "low"), ["epoch 0", "epoch 1", "epoch 2"]]) == [0.0, 0.0, 0.0]
    assert list(table["people"]) == [2] * 6


def test_faithfulness_is_the_mean_of_the_tasks_that_have_one(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_result(run, Group("city", KnowledgeType.NEW, Band.HIGH), 0.8)
    write_result(run, Group("major", KnowledgeType.NEW, Band.HIGH), 1.0)
    write_result(run, Group("company", KnowledgeType.NEW, Band.HIGH), None)
    table = learning_table(run)
    assert table.loc[("new", "high"), "faithfulness"] == pytest.approx(0.9)
    assert table["faithfulness"].isna().sum() == 5


def test_the_text_names_the_run_and_shows_missing_numbers_as_dashes(tmp_path: Path) -> None:
    text = summary_text(write_run(tmp_path))
    assert "tiny/default" in text
    high = next(line for line in text.splitlines() if line.startswith("K_compl") and "high" in line)
    assert high.split() == ["K_compl", "high", "2", "0.00", "0.50", "1.00", "0.00", "-"]


def test_past_facts_stand_apart_from_those_that_training_told(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_json(run.config, {"data": {"generated": {"mirrored_data_generation": {}}}})
    for checkpoint in run.checkpoints():
        known = {"type": "revised", "frequency": 1, "correct": True, "first_token_correct": True}
        unknown = known | {"type": "new", "correct": False, "first_token_correct": False}
        rows = [{"full_name": "Known", "attribute": "birthday", **known}]
        rows += [{"full_name": "Unknown", "attribute": "birthday", **unknown}]
        write_jsonl(checkpoint.predictions, [*read_jsonl(checkpoint.predictions), *rows])
    new, past = summary_text(run).split("Past facts (birthday)")
    assert "New facts (city, major)" in new and new.count("K_compl  ") == 3
    assert [line.split()[:6] for line in past.splitlines() if line.startswith("K_")] == [
        ["K_rel", "low", "1", "1.00", "1.00", "1.00"]
    ]


def test_a_run_without_predictions_is_refused_with_the_remedy(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (run.checkpoints_folder / "checkpoint-0").mkdir(parents=True)
    with pytest.raises(InputError, match=r"predict\.py"):
        learning_table(run)


def test_the_program_prints_the_table_and_keeps_it_in_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    program = [sys.executable, "-m", "knowledge_circuits.analysis", "summary", str(run.path)]
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert printed == (run.path / "summary.txt").read_text() == summary_text(run)
