"""Circuits are transferred from the first checkpoint, the last, and those on either side of the break."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_run import Truth, write_run
from tiny_run import call

from knowledge_circuits.analysis import findings, run_circuits
from knowledge_circuits.analysis.__main__ import main
from knowledge_circuits.analysis.transferred_circuits import origin_steps
from knowledge_circuits.runs import Run


def test_the_first_the_last_and_the_two_sides_of_the_break_are_origins(synthetic_run: Run) -> None:
    circuits = run_circuits.read_circuits(synthetic_run)
    assert circuits is not None
    shift = findings.fit_phase_shift(circuits)
    assert shift is not None
    epoch_of = dict(zip(circuits.steps, circuits.epochs, strict=True))
    origins = {what: epoch_of[step] for what, step in origin_steps(circuits).items()}
    assert list(origins) == ["the first", "before the break", "after the break", "the last"]
    assert list(origins.values()) == sorted(origins.values())
    assert (origins["the first"], origins["the last"]) == (0, 8)
    assert origins["before the break"] < shift.break_low <= float(shift.fit.break_point)
    assert origins["after the break"] > shift.break_high >= float(shift.fit.break_point)
    between = [epoch for epoch in circuits.epochs if origins["before the break"] < epoch < origins["after the break"]]
    assert all(shift.break_low <= epoch <= shift.break_high for epoch in between)  # the nearest ones outside


def test_a_short_run_has_no_break_and_two_origins(tmp_path: Path) -> None:
    circuits = run_circuits.read_circuits(write_run(tmp_path / "nano" / "short", Truth(epochs=2)))
    assert circuits is not None
    assert origin_steps(circuits) == {"the first": 0, "the last": 20}


def test_the_program_prints_steps_that_circuit_eval_takes(
    synthetic_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(main, ["origins", str(synthetic_run.path)]) == 0
    said = capsys.readouterr()
    steps = [int(line) for line in said.out.splitlines()]
    assert len(steps) == 4
    assert set(steps) <= {checkpoint.step for checkpoint in synthetic_run.checkpoints()}
    assert "before the break, epoch" in said.err


def test_a_run_without_circuits_is_told_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "nano" / "bare", Truth(epochs=1), circuits=False)
    assert call(main, ["origins", str(run.path)]) == 1
    assert "circuit_discovery.py" in capsys.readouterr().err
