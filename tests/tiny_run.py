"""A tiny run for tests of the programs: two checkpoints of random weights, people, circuit data of all 18 groups."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import tiny

from knowledge_circuits.command_line import run_program
from knowledge_circuits.corpus.people import Person
from knowledge_circuits.corpus.prompt_pairs import circuit_data
from knowledge_circuits.files import write_jsonl
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.records import shape
from knowledge_circuits.study import TASKS

SMALL = ["--threads", "1", "--batch_size", "8"]
ONE_GROUP = ["--task", "city", "--type", "new", "--frequency", "high"]


@dataclass(frozen=True)
class TinyRun:
    """Where the run's parts lie."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def circuit_data(self) -> str:
        return str(self.folder / "circuit" / "{task}.jsonl")

    @property
    def test_data(self) -> str:
        return str(self.folder / "test.jsonl")

    def discovery(self, *more: str) -> list[str]:
        """Arguments of circuit_discovery.py."""
        paths = ["--model", "tiny", "--model_path", str(self.checkpoints), "--data_file", self.circuit_data]
        return [*paths, "--circuit_n", "6", *SMALL, *more]

    def evaluation(self, *more: str) -> list[str]:
        """Arguments of circuit_eval.py."""
        paths = ["--model", "tiny", "--model_path", str(self.checkpoints), "--eval_data_file", self.circuit_data]
        return [*paths, "--test_data_file", self.test_data, "--circuit_n", "6", *SMALL, *more]


def make_run(
    folder: Path,
    steps: tuple[int, ...] = (0, 4),
    people: int = 72,
    save: Callable[[Path, int], Path] = tiny.save_tiny_gpt2,
) -> TinyRun:
    """Write the checkpoints and data files of a tiny run."""
    run = TinyRun(folder)
    for seed, step in enumerate(steps):
        save(run.checkpoints / f"checkpoint-{step}", seed)
    sample = [shape(Person).check(row, "tiny") for row in tiny.entities(people)]
    write_jsonl(run.test_data, (person.to_row() for person in sample))
    tokenizer = load_tokenizer(str(run.checkpoints / f"checkpoint-{steps[0]}"))
    for task in TASKS:
        data = circuit_data(sample, task, tokenizer, circuit_n=6, seed=0, rare_length=1)
        write_jsonl(run.circuit_data.replace("{task}", task), (pair.to_row() for pair in data.pairs))
    return run


def call(main: Callable[[], int | None], arguments: list[str]) -> int:
    """Run a program's `main` as the command line does; its exit status."""
    with mock.patch.object(sys, "argv", ["program", *arguments]), pytest.raises(SystemExit) as exit_:
        run_program(main)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
