"""A run over time: its name, its epochs, its training log."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_run import Truth

from knowledge_circuits.analysis import timeline
from knowledge_circuits.files import InputError, write_json, write_jsonl
from knowledge_circuits.runs import Run

TRUTH = Truth()


def test_checkpoints_have_the_epochs_that_the_trainer_wrote(synthetic_run: Run) -> None:
    assert timeline.epochs(synthetic_run) == {10 * epoch: float(epoch) for epoch in range(TRUTH.epochs + 1)}


def test_without_evaluations_the_trainer_state_tells_the_epochs(copied_run: Run) -> None:
    copied_run.evaluations.unlink()
    assert timeline.epochs(copied_run) == {0: 0, 10: 1, 80: 8}


def test_a_checkpoint_between_evaluations_is_placed_by_its_step(copied_run: Run) -> None:
    for state in copied_run.checkpoints_folder.glob("*/trainer_state.json"):
        state.unlink()
    write_jsonl(copied_run.evaluations, [{"step": 40, "epoch": 4.0, "loss": 1.0}])
    assert timeline.epochs(copied_run) == {0: 0, 10: 1, 80: 8}


def test_a_training_run_that_tells_no_epoch_is_an_error(copied_run: Run) -> None:
    write_json(copied_run.config, {"model": "nano"})  # without it the folder would be a public training history
    copied_run.evaluations.unlink()
    for state in copied_run.checkpoints_folder.glob("*/trainer_state.json"):
        state.unlink()
    with pytest.raises(InputError, match="epochs"):
        timeline.epochs(copied_run)


def test_training_loss_is_what_the_last_trainer_state_logged(copied_run: Run) -> None:
    log = [{"step": 5, "epoch": 0.5, "loss": 3.0}, {"step": 10, "epoch": 1.0, "eval_loss": 2.0}]
    state = {"global_step": 80, "epoch": 8.0, "log_history": log}
    write_json(copied_run.checkpoints_folder / "checkpoint-80" / "trainer_state.json", state)
    assert timeline.training_log(copied_run)[["step", "epoch", "loss"]].to_dict("records") == [
        {"step": 5, "epoch": 0.5, "loss": 3.0}
    ]


def test_a_relative_run_is_found_from_any_folder(synthetic_run: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(synthetic_run.path.parent)
    assert timeline.find_run("default").path == Path("default")
    assert timeline.run_name(timeline.find_run("default")) == "nano/default"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no/such/run: not a run .*name a run's folder"):
        timeline.find_run("no/such/run")
