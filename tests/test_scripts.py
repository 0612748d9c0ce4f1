"""The shell scripts: whole pipelines that go on where they were, and what a reader finds at the top of each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
ALL = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*/*.sh"), *SCRIPTS.glob("*/*.sbatch")])
PAPERS_MODELS = {
    # learning rate, block, sequences a step, epochs, attribution batch, edges of a circuit
    "gpt2": ("1e-3", 1024, 128, 25, 64, 8_000),
    "gpt2-medium": ("1e-3", 1024, 64, 15, 64, 20_000),
    "TinyLlama_v1.1": ("4e-5", 2048, 16, 10, 16, 50_000),
    "phi-1_5": ("2e-4", 1024, 16, 7, 4, 50_000),
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Three stages that say their names; the second fails until a file `repaired` is there."""
    (tmp_path / "settings.sh").write_text("")
    for name, body in (("one", ""), ("two", "[[ -e repaired ]]"), ("three", "")):
        (tmp_path / f"{name}.sh").write_text(f"#!/usr/bin/env bash\n# Stage {name}.\nset -e\n{body}\necho ran {name}\n")
    return tmp_path


def run(folder: Path, before: str = "") -> tuple[int, list[str]]:
    """Run the three stages; returns the exit status and the stages that ran to their end."""
    program = f"set -euo pipefail; source {SCRIPTS / 'stages.sh'}; {before} run_stages stamps . one two three"
    process = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, timeout=60)
    return process.returncode, re.findall(r"^ran (\w+)$", process.stdout, re.MULTILINE)


def test_an_interrupted_pipeline_goes_on_where_it_was(pipeline: Path) -> None:
    assert run(pipeline) == (1, ["one"])
    (pipeline / "repaired").touch()
    assert run(pipeline) == (0, ["two", "three"])


def test_a_finished_pipeline_runs_nothing(pipeline: Path) -> None:
    (pipeline / "repaired").touch()
    run(pipeline)
    assert run(pipeline) == (0, [])


def test_a_changed_stage_runs_again_with_all_that_follow(pipeline: Path) -> None:
    (pipeline / "repaired").touch()
    run(pipeline)
    with (pipeline / "two.sh").open("a") as file:
        file.write("true\n")
    assert run(pipeline) == (0, ["two", "three"])


def test_a_changed_setting_runs_everything_again(pipeline: Path) -> None:
    (pipeline / "repaired").touch()
    run(pipeline)
    assert run(pipeline, "N=7;") == (0, ["one", "two", "three"])


def test_a_stage_that_does_not_heed_the_interruption_is_out_of_time_too(pipeline: Path) -> None:
    (pipeline / "two.sh").write_text("#!/usr/bin/env bash\n# Stage two.\ntrap '' INT\nkill -KILL $$\n")
    assert run(pipeline, "timeout() { sleep 1; return 137; }; DEADLINE=$((SECONDS + 1));")[0] == 124


def test_a_stage_that_outlasts_the_deadline_ends_the_slice_with_its_own_status(pipeline: Path) -> None:
    (pipeline / "two.sh").write_text("#!/usr/bin/env bash\n# Stage two.\nsleep 60\necho ran two\n")
    assert run(pipeline, "DEADLINE=$((SECONDS + 1));") == (124, ["one"])


def test_a_failed_installation_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "environment.sh").write_text((SCRIPTS / "environment.sh").read_text())
    (tmp_path / "requirements.txt").write_text("torch\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n" + 'case "$*" in *install*) exit 1;; esac\n')
    python.chmod(0o755)
    for options in ("", "set -euo pipefail; "):
        subprocess.run(["bash", "-c", f"{options}source scripts/environment.sh"], cwd=tmp_path, timeout=60)
        assert not (tmp_path / ".venv" / "requirements.installed").exists()


@pytest.mark.parametrize("script", ALL, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_a_script_is_sound_bash_and_opens_with_what_it_does(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    first = lines[1] if lines[0].startswith("#!") else lines[0]
    assert first.startswith("#")
    if lines[0].startswith("#!"):
        assert "set -euo pipefail" in lines


@pytest.mark.parametrize("model", PAPERS_MODELS)
def test_the_papers_models_have_the_papers_numbers(model: str) -> None:
    rate, block, sequences, epochs, batch, edges = PAPERS_MODELS[model]
    text = {name: (SCRIPTS / model / f"{name}.sh").read_text() for name in ("train", "eap", "circuit_eval")}
    for flag in (
        f"--learning_rate {rate} ",
        f"--block_size {block} ",
        f"--sequences_per_step {sequences} ",
        f"--num_train_epochs {epochs} ",
    ):
        assert flag in text["train"]
    assert f"--batch_size {batch} " in text["eap"]
    assert f"--topn {edges} " in text["circuit_eval"]


def test_the_optimizer_is_the_papers() -> None:
    text = (SCRIPTS / "common.sh").read_text()
    for flag in ("--weight_decay 0.1", "--adam_beta1 0.9 ", "--adam_beta2 0.95", "--adam_epsilon 1e-6", "constant"):
        assert flag in text


PROGRAMS = sorted([*SCRIPTS.parent.glob("data/*.py"), *SCRIPTS.glob("*/*.py")])


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_finds_the_library_from_wherever_it_is_called(program: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    looks_only = "import sys, runpy; runpy.run_path(sys.argv[1], run_name='looked at')"
    process = subprocess.run(
        [sys.executable, "-c", looks_only, str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
