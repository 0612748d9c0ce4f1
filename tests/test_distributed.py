"""Training in two processes is training in one: the same losses, weights and probe records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from knowledge_circuits.runs import Run

ROOT = Path(__file__).resolve().parent.parent
#: `accelerate launch --cpu` starts one process whatever number is asked for; --multi_gpu starts two, here without GPUs.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]

#: Two processes add up gradients in another order than one; float32 keeps seven digits.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def start(words: list[str], cwd: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Run train.py as a user does."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def words(folder: Path, model: Path, output: str, batch: int) -> list[str]:
    """Eight sequences a step, in batches of `batch` on each device."""
    values = {
        "model_name_or_path": model,
        "train_file": folder / "train.jsonl",
        "validation_file": folder / "validation.jsonl",
        "probe_file": folder / "probes.jsonl",
        "output_dir": output,
        "cache_dir": folder / "cache",
        "block_size": 96,
        "sequences_per_step": 8,
        "per_device_train_batch_size": batch,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 2,
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "logging_steps": 1,
        "seed": 2,
        "use_cpu": True,
    }
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = tiny.biographies(29)
    for name, part in (("train", rows), ("validation", rows[:7]), ("probes", rows[:6])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_alike(found: list[dict], expected: list[dict]) -> None:
    """The same records: numbers within the tolerance, everything else equal."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert one[key] == (pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value), key


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(data, tiny_gpt2_folder):
    one = start(words(data, tiny_gpt2_folder, "one", batch=4), data)
    assert one.returncode == 0, one.stderr
    two = start(words(data, tiny_gpt2_folder, "two", batch=2), data, *LAUNCH)
    assert two.returncode == 0, two.stderr
    runs = [Run(data / name) for name in ("one", "two")]
    # Eight sequences a step: one process makes them in two batches of four, two processes in two rounds of two each.
    for run in runs:
        assert json.loads(run.config.read_text())["arguments"]["gradient_accumulation_steps"] == 2
    blocks = json.loads(runs[0].config.read_text())["data"]["blocks"]
    assert blocks % 8, "the last step of an epoch is to have fewer sequences"
    steps = [[checkpoint.step for checkpoint in run.checkpoints()] for run in runs]
    assert steps[0] == steps[1] and len(steps[0]) == 3
    for step in steps[0]:
        weights = [load_file(run.checkpoints_folder / f"checkpoint-{step}" / "model.safetensors") for run in runs]
        for name in weights[0]:
            torch.testing.assert_close(weights[0][name], weights[1][name], **TOLERANCE)
    histories = []
    for run in runs:
        state = json.loads((run.checkpoints_folder / f"checkpoint-{steps[0][-1]}" / "trainer_state.json").read_text())
        histories.append([record["loss"] for record in state["log_history"] if "loss" in record])
    assert histories[0] == pytest.approx(histories[1], rel=1e-4) and len(histories[0]) == steps[0][-1]
    assert_alike(json_lines(runs[1].evaluations), json_lines(runs[0].evaluations))
    assert_alike(json_lines(runs[1].knowledge_dynamics), json_lines(runs[0].knowledge_dynamics))


def test_a_mistake_ends_in_one_sentence_without_a_traceback(data, tiny_gpt2_folder):
    given = words(data, tiny_gpt2_folder, "run", batch=4)
    (data / "train.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    ended = start(given, data)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "train.jsonl, line 2: not valid JSON" in ended.stderr.strip().splitlines()[-1]
    assert not (data / "run").exists()
