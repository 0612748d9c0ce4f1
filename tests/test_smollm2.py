"""A real pretrained model through every stage of its scripts, cut to a few steps and one group."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_readme import python_block

from knowledge_circuits.files import read_json, read_jsonl
from knowledge_circuits.runs import Run, existing_graph
from knowledge_circuits.study import Attribute, Band, Group, KnowledgeType

ROOT = Path(__file__).resolve().parents[1]
GROUP = Group(Attribute.CITY, KnowledgeType.NEW, Band.LOW)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of four steps with its predictions and the circuits of one group."""
    run = Run(ROOT / "outputs" / "train" / "SmolLM2-135M" / f"slow-test-{os.getpid()}")
    shutil.rmtree(run.path, ignore_errors=True)
    settings = {"RUN": run.path.name, "DATA_DIR": str(tmp_path_factory.mktemp("data")), "REPORT_TO": "none"}
    group = f"--task {GROUP.task} --{{}}type {GROUP.type} --{{}}frequency {GROUP.band}"
    for script, flags in (
        ("train", "--max_steps 4 --save_strategy steps --save_steps 4 --eval_strategy no"),
        ("predict", "--max_predict_samples 2"),
        ("eap", group.format("", "")),
        ("circuit_eval", group.format("source_", "source_")),
    ):
        command = ["bash", str(ROOT / "scripts" / "SmolLM2-135M" / f"{script}.sh"), *flags.split()]
        subprocess.run(command, env={**os.environ, **settings, "HF_HUB_OFFLINE": "1"}, check=True)
    yield run
    shutil.rmtree(run.path)


def test_training_saves_the_start_and_the_end(run: Run) -> None:
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [0, 4]


def test_every_checkpoint_answers_all_queries(run: Run) -> None:
    for checkpoint in run.checkpoints():
        assert len(read_jsonl(checkpoint.predictions)) == 2 * len(Attribute)


def test_a_group_has_its_graph_and_its_results(run: Run) -> None:
    for checkpoint in run.checkpoints():
        folder = checkpoint.circuit_folder(10, GROUP, "EAP-IG")
        assert existing_graph(folder.graph()).stat().st_size > 100_000
        (results,) = folder.graph().parent.glob("topn_*/city_results.json")
        content = read_json(results)
        assert content["edges_num"] <= 123_211 // 4 + 1
        assert math.isfinite(content["faithfulness"])  # its value means nothing for facts that the model does not know


def test_a_twentieth_of_the_edges_carries_what_the_model_knows(run: Run, tmp_path: Path) -> None:
    """The README's program on the model that it names."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", python_block()]
    output = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    faithfulness = float(re.fullmatch(r"6,\d{3} of 123,211 edges, faithfulness (\S+)\s*", output)[1])
    assert 0.9 < faithfulness < 1.1
