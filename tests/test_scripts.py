"""The shell scripts: the command lines that they run, pipelines that continue after an interruption, their headers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from knowledge_circuits import manifest, stages
from knowledge_circuits.files import InputError

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
ALL = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*/*.sh"), *SCRIPTS.glob("*/*.sbatch")])
PYTHON = Path(sys.executable).parent
MANIFEST = "prediction_manifest.json"
INSTALLED_FROM = ("requirements.txt", "constraints.txt", "pyproject.toml")
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
    process = subprocess.run(
        ["bash", "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS.parent), "PATH": f"{PYTHON}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return process.returncode, re.findall(r"^ran (\w+)$", process.stdout, re.MULTILINE)


def test_an_interrupted_pipeline_goes_on_where_it_was(pipeline: Path) -> None:
    assert run(pipeline) == (1, ["one"])
    (pipeline / "repaired").touch()
    assert run(pipeline) == (0, ["two", "three"])


def test_a_finished_pipeline_runs_nothing(pipeline: Path) -> None:
    (pipeline / "repaired").touch()
    run(pipeline)
    assert run(pipeline) == (0, [])


def test_a_stage_whose_units_are_lost_or_cut_is_not_done(tmp_path: Path) -> None:
    predictions, record = tmp_path / "prediction.jsonl", tmp_path / "stages" / "predict.json"
    with pytest.raises(InputError, match="left no predictions"):
        stages.record_stage(record, "key", [tmp_path])
    for damage in (lambda: predictions.write_text("{}"), predictions.unlink, (tmp_path / MANIFEST).unlink):
        predictions.write_text("{}\n")
        manifest.finish(tmp_path / MANIFEST, "predictions", {}, [predictions])
        stages.record_stage(record, "key", [tmp_path])
        assert stages.unfinished(record, "key") == ""
        assert stages.unfinished(record, "other key")
        damage()
        assert "prediction" in stages.unfinished(record, "key")


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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with environment.sh, the files that it installs from, and a .venv whose `python` only records."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "environment.sh", tmp_path / "scripts")
    for name in INSTALLED_FROM:
        (tmp_path / name).write_text("something\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$*" >>record\n')
    python.chmod(0o755)
    return tmp_path


def installations(checkout: Path, options: str = "") -> list[str]:
    """Source environment.sh and return the pip commands of it."""
    (checkout / "record").write_text("")
    environment = {name: value for name, value in os.environ.items() if name != "VENV"}
    command = ["bash", "-c", f"{options}source scripts/environment.sh"]
    subprocess.run(command, cwd=checkout, env=environment, timeout=60)
    return re.findall(r"pip install .*", (checkout / "record").read_text())


def test_the_environment_gets_the_requirements_and_the_package_itself(checkout: Path) -> None:
    requirements, package = installations(checkout)
    assert requirements.endswith("-r requirements.txt")
    assert package.endswith("--no-deps -e .")
    assert installations(checkout) == []


@pytest.mark.parametrize("name", INSTALLED_FROM)
def test_a_change_of_what_is_installed_installs_again(checkout: Path, name: str) -> None:
    installations(checkout)
    (checkout / name).write_text("something else\n")
    assert len(installations(checkout)) == 2


@pytest.mark.parametrize("options", ["", "set -euo pipefail; "])
@pytest.mark.parametrize("fails", ["-r requirements.txt", "-e ."])
def test_a_failed_installation_is_not_taken_for_a_finished_one(checkout: Path, options: str, fails: str) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f'{python.read_text()}case "$*" in *"{fails}"*) exit 1;; esac\n')
    installations(checkout, options)
    assert not (checkout / ".venv" / "installed").exists()


@pytest.mark.parametrize("script", ALL, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_a_script_is_sound_bash_and_opens_with_what_it_does(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    first = lines[1] if lines[0].startswith("#!") else lines[0]
    assert first.startswith("#")
    if lines[0].startswith("#!"):
        assert "set -euo pipefail" in lines


PYTHON_THAT_ONLY_RECORDS = """#!/usr/bin/env bash
if [[ "$*" == *device_count* ]]; then echo "$GPUS"; else printf '%q ' "$@" >>"$RECORD"; echo >>"$RECORD"; fi
"""
Command = dict[str, list[str]]


@pytest.fixture
def dry_run(tmp_path: Path) -> Callable[..., list[Command]]:
    """A function that runs a script with a `python` that only records, and returns the recorded command lines.

    A command is a dict of flags to values; the key "" holds what stands before the first flag.
    """
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON_THAT_ONLY_RECORDS)
    (tmp_path / "bin" / "python").chmod(0o755)

    def run_script(script: str, *arguments: str, gpus: int = 0, **variables: str) -> list[Command]:
        model = script.split("/")[0]
        (tmp_path / "outputs" / "train" / model / "default" / "checkpoints" / "checkpoint-7").mkdir(
            parents=True, exist_ok=True
        )
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "VENV": "none", "GPUS": str(gpus), **variables}
        subprocess.run(
            ["bash", str(tmp_path / "scripts" / script), *arguments],
            env={**environment, "RECORD": str(tmp_path / "record")},
            check=True,
            capture_output=True,
        )
        return [as_command(shlex.split(line)) for line in (tmp_path / "record").read_text().splitlines()]

    return run_script


def as_command(words: list[str]) -> Command:
    command: Command = {"": []}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag = word
            command[flag] = []
        else:
            command[flag].append(word)
    return command


def only(commands: list[Command], program: str) -> Command:
    (command,) = (command for command in commands if program in [word for words in command.values() for word in words])
    return command


@pytest.mark.parametrize("model", PAPERS_MODELS)
def test_the_papers_models_are_trained_with_the_papers_numbers(model: str, dry_run: Callable) -> None:
    rate, block, sequences, epochs, _, _ = PAPERS_MODELS[model]
    commands = dry_run(f"{model}/train.sh", "--bf16", SEED="3", N="70")
    train = only(commands, "train.py")
    assert train["--learning_rate"] == [rate]
    assert train["--block_size"] == [str(block)]
    assert train["--sequences_per_step"] == [str(sequences)]
    assert train["--num_train_epochs"] == [str(epochs)]
    assert train["--run"] == ["seed_3"] and train["--seed"] == ["3"]
    assert train["--train_file"] == ["outputs/data/seed_3/entities_70/train.jsonl"]
    assert train["--bf16"] == []
    assert [command[""] for command in commands[:3]] == [
        [f"data/{name}_generation.py"] for name in ("datapoint", "text_data", "query_data")
    ]


@pytest.mark.parametrize("model", PAPERS_MODELS)
def test_the_papers_models_are_attributed_in_their_batches(model: str, dry_run: Callable) -> None:
    batch = PAPERS_MODELS[model][4]
    eap = only(dry_run(f"{model}/eap.sh", "--ig_steps", "9"), "circuit_discovery.py")
    assert (eap["--batch_size"], eap["--ig_steps"]) == ([str(batch)], ["9"])


@pytest.mark.parametrize("model", PAPERS_MODELS)
def test_the_papers_models_have_circuits_of_the_papers_size(model: str, dry_run: Callable) -> None:
    batch, edges = PAPERS_MODELS[model][4:]
    evaluation = only(dry_run(f"{model}/circuit_eval.sh"), "circuit_eval.py")
    assert (evaluation["--batch_size"], evaluation["--topn"]) == ([str(batch)], [str(edges)])


@pytest.mark.parametrize("model", PAPERS_MODELS)
def test_forgetting_trains_and_evaluates_at_every_ratio(model: str, dry_run: Callable) -> None:
    commands = dry_run(f"{model}/forget.sh", RATIOS="0 0.4")
    trained = [c for c in commands if c[""] == ["train.py"]]
    assert [c["--replay_ratio"] for c in trained] == [["0"], ["0.4"]]
    tenth = float(PAPERS_MODELS[model][0]) / 10
    assert [float(c["--learning_rate"][0]) for c in trained] == pytest.approx([tenth] * 2)
    evaluations = [c for c in commands if c[""] == ["circuit_eval.py"]]
    last = f"outputs/train/{model}/default/checkpoints/checkpoint-7"
    assert [c.get("--circuit_from") for c in evaluations] == [None, [last]] * 2
    assert all(c["--source_frequency"] == ["low", "medium", "high"] for c in evaluations)


def test_nano_has_a_constant_rate_and_a_tokenizer_that_does_not_know_its_people(dry_run: Callable) -> None:
    past, training = [c for c in dry_run("nano/train.sh") if c[""] == ["train.py"]]
    for flag in ("--learning_rate", "--block_size", "--lr_scheduler_type"):
        assert past[flag] == training[flag]
    assert training["--lr_scheduler_type"] == ["constant"]
    assert past["--train_file"][-1].endswith("prior.jsonl")
    data = dry_run("nano/data.sh")
    model = only(data, "data/base_model_creation.py")
    assert model["--tokenizer_file"] == ["data/entities_360/tokenizer.jsonl"]


def test_nano_is_trained_further_on_the_attributes_that_it_was_taught(dry_run: Callable) -> None:
    told = only(dry_run("nano/forget.sh"), "data/forget_data_generation.py")["--attributes"]
    assert told == ["city", "company", "major"]


def test_nanos_circuits_have_their_floors(dry_run: Callable) -> None:
    evaluation, discovery = dry_run("nano/circuit_eval.sh"), only(dry_run("nano/eap.sh"), "circuit_discovery.py")
    topn = only([c for c in evaluation if "--floors" in c], "circuit_eval.py")["--topn"]
    assert discovery["--stability"] == topn


def test_nano_forgets_at_a_tenth_of_its_learning_rate_in_all_bands(dry_run: Callable) -> None:
    training = [c for c in dry_run("nano/train.sh") if c[""] == ["train.py"]]
    commands = dry_run("nano/forget.sh")
    forgetting = [c for c in commands if "--replay_ratio" in c]
    assert [c["--replay_ratio"] for c in forgetting] == [[ratio] for ratio in ("0", "0.1", "0.2", "0.4", "0.6", "1")]
    tenth = float(training[-1]["--learning_rate"][-1]) / 10
    assert [float(c["--learning_rate"][-1]) for c in forgetting] == pytest.approx([tenth] * 6)
    bands = [c["--source_frequency"] for c in commands if "--source_frequency" in c]
    assert bands and all(band == ["low", "medium", "high"] for band in bands)


def test_a_circuit_of_smollm2_is_a_quarter_of_the_edges(dry_run: Callable) -> None:
    assert "--topn" not in only(dry_run("SmolLM2-135M/circuit_eval.sh"), "circuit_eval.py")


def test_every_strategy_of_the_documents_study_is_one_flag_on_the_same_recipe(dry_run: Callable) -> None:
    commands = dry_run("documents/train.sh", LOW="2", HIGH="1", MODEL="tiny", MODEL_PATH="models/tiny", INSTRUCT="")
    trained = [command for command in commands if command[""] == ["train.py"]]
    names = ["full", "lora", "adaptive", "annotated", "kl_start", "kl_previous", "replay"]
    assert [command["--output_dir"] for command in trained] == [[f"outputs/train/tiny/{name}"] for name in names]
    rest = [
        {name: words for name, words in command.items() if name not in ("--output_dir", "--learning_rate")}
        for command in trained
    ]
    added = [command.keys() - rest[0].keys() for command in rest]
    assert added == [
        *(set(), {"--lora_rank"}, {"--adaptive_exposure"}, {"--annotate_entities"}, {"--kl_start"}, {"--kl_previous"}),
        {"--replay_file", "--replay_ratio"},
    ]
    assert all({**command, **rest[0]} == command for command in rest)
    assert all(command["--train_file"] == ["outputs/data/documents/documents_3/documents.jsonl"] for command in trained)
    measured = [command[""][-1] for command in commands if "--group_by" in command]
    assert measured == [f"outputs/train/tiny/{name}" for name in names]


def test_an_unknown_strategy_of_the_documents_study_is_refused(dry_run: Callable) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        dry_run("documents/train.sh", "magic")
    assert b"no strategy magic" in error.value.stderr


def test_the_references_of_the_documents_study_are_all_contexts(dry_run: Callable) -> None:
    command = only(dry_run("documents/references.sh", MODEL="tiny", MODEL_PATH="models/tiny"), "predict.py")
    assert command["--context"] == ["none", "gold", "entity", "retrieved"]
    assert command["--output_dir"] == ["outputs/train/tiny/references"] and "--instruct" in command


def test_one_process_is_started_per_gpu(dry_run: Callable) -> None:
    command = only(dry_run("gpt2/predict.sh", gpus=4), "predict.py")
    assert command[""][:2] == ["-m", "accelerate.commands.launch"]
    assert command["--num_processes"] == ["4", "predict.py"]


def test_the_optimizer_is_the_papers(dry_run: Callable) -> None:
    train = only(dry_run("gpt2/train.sh"), "train.py")
    paper = {"weight_decay": "0.1", "adam_beta1": "0.9", "adam_beta2": "0.95", "adam_epsilon": "1e-6"}
    assert {name: train[f"--{name}"] for name in paper} == {name: [value] for name, value in paper.items()}
    assert train["--lr_scheduler_type"] == ["constant"]


PROGRAMS = sorted([*SCRIPTS.parent.glob("data/*.py"), *SCRIPTS.glob("*/*.py")])


def test_gemmas_circuits_are_those_of_capitals_by_continent(dry_run: Callable, tmp_path: Path) -> None:
    (tmp_path / "models" / "gemma-3-270m").mkdir(parents=True)
    (tmp_path / "models" / "gemma-3-270m" / "config.json").write_text("{}")
    found = only(dry_run("gemma-3-270m/eap.sh"), "circuit_discovery.py")
    facts = SCRIPTS.parent / found["--data_file"][0]
    assert facts.is_file() and found["--group_by"] == ["continent"] and "--pair_anew" in found
    evaluated = only(dry_run("gemma-3-270m/circuit_eval.sh"), "circuit_eval.py")
    assert evaluated["--output_dir"] == found["--output_dir"] and evaluated["--topn"] == ["500"]


def test_the_gpu_is_measured_at_every_shape_and_precision(dry_run: Callable) -> None:
    commands = dry_run("gpu/speed.sh", "--repeats", "2", SHAPES="nano llama-8b", PRECISIONS="tf32 bfloat16")
    settings = [(one["--shape"][0], one["--dtype"][0], "--tf32" in one, one["--repeats"]) for one in commands]
    assert settings == [
        (shape, dtype, dtype == "float32", ["2"]) for shape in ("nano", "llama-8b") for dtype in ("float32", "bfloat16")
    ]
    assert {one["--device"][0] for one in commands} == {"cuda"}


def test_the_timed_sweep_has_the_papers_checkpoints_and_prompts(dry_run: Callable, tmp_path: Path) -> None:
    data = tmp_path / "data" / "entities_50000" / "circuit_300" / "gpt2-scratch"
    untrained = tmp_path / "models" / "gpt2-scratch-untrained" / "default"
    for file in (data / "major.jsonl", untrained / "config.json"):
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    command = only(dry_run("gpu/sweep.sh"), "circuit_discovery.py")
    assert command["--circuit_n"] == ["300"] and "--type" not in command
    assert len(list((tmp_path / command["--model_path"][0]).glob("checkpoint-*/config.json"))) == 26
    assert (tmp_path / "outputs" / "gpu" / "sweep" / "seconds.txt").read_text().strip().isdecimal()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_finds_the_library_from_wherever_it_is_called(program: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    looks_only = "import sys, runpy; runpy.run_path(sys.argv[1], run_name='looked at')"
    process = subprocess.run(
        [sys.executable, "-c", looks_only, str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
