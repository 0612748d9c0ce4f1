"""What all tests share: no network, one thread, and tiny checkpoints made once a session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

import pytest
import tiny
import torch
from synthetic_run import write_fact_run, write_run

from knowledge_circuits.runs import Run

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 checkpoint folder with weights and a byte-level BPE tokenizer. Read only: copy it before changing it."""
    return tiny.save_tiny_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama checkpoint folder (grouped queries, BOS token). Read only: copy it before changing it."""
    return tiny.save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def synthetic_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A made-up run of nine checkpoints with predictions, circuits and results. Read only."""
    return write_run(tmp_path_factory.mktemp("runs") / "nano" / "default")


@pytest.fixture(scope="session")
def fact_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A made-up run of one's own facts: prompts, question probes and circuits of two groups. Read only."""
    return write_fact_run(tmp_path_factory.mktemp("runs") / "my_corpus" / "full")


@pytest.fixture
def copied_run(synthetic_run: Run, tmp_path: Path) -> Run:
    """A copy of the synthetic run's first two and last checkpoints, to be changed."""
    for step in (0, 10, 80):
        name = f"checkpoints/checkpoint-{step}"
        shutil.copytree(synthetic_run.path / name, tmp_path / "run" / name)
    shutil.copy(synthetic_run.evaluations, tmp_path / "run")
    return Run(tmp_path / "run")
