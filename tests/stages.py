"""The pipeline's programs at toy size, each started as a process of its own that can be killed at any moment.

The processes come from multiprocessing's fork server, which has imported torch and the library once: a start takes a
tenth of a second instead of ten, and a kill falls into the program's work rather than into its imports.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).parents[1]
RUN = "outputs/train/tiny/run"
DATA = "data/entities_90"
CIRCUITS = f"{DATA}/circuit_6/tiny/{{task}}.jsonl"
MIRRORED = "mirrored/entities_40"
_TRAIN = (
    f"--model tiny --model_name_or_path models/tiny --train_file {DATA}/train.jsonl --block_size 256 --cache_dir cache"
    " --per_device_train_batch_size 16 --learning_rate 1e-3 --lr_scheduler_type constant --save_strategy epoch"
    " --report_to none --seed 5 --max_train_samples 40"
)
_TRAIN_MIRRORED = (
    "--block_size 128 --per_device_train_batch_size 4 --learning_rate 2e-3 --lr_scheduler_type constant --do_train"
    " --save_strategy epoch --eval_strategy no --report_to none --cache_dir cache --max_train_samples 16"
    " --num_train_epochs 1"
)
ENGINE = f"--model tiny --model_path {RUN}/checkpoints --task city --circuit_n 6 --batch_size 8 --threads 1"


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline.

    Attributes:
        programs: command lines, run one after the other in the workspace's folder.
        after: the stage whose workspace it goes on with; empty for one with nothing but the tiny model.
        unequal: names of files that are not the same bytes in every run (they hold times or the order of a set).
    """

    name: str
    programs: tuple[str, ...]
    after: str = ""
    unequal: tuple[str, ...] = ()


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "generation",
            (
                "data/datapoint_generation.py --N 90 --revised_share 0.5 --frequency_rate 0.25",
                "data/text_data_generation.py --N 90 --validation_lines 20",
                "data/query_data_generation.py --N 90 --test_per_group 6",
                "data/circuits_data_generation.py --N 90 --circuit_n 6 --model tiny --model_name_or_path models/tiny"
                " --rare_length 1",
                "data/forget_data_generation.py --N 90 --forget_people 20",
                "data/prior_data_generation.py --N 90 --background_people 5 --held_out_people 2 --arithmetic_lines 5",
                "data/base_model_creation.py --N 90 --output_dir models/start --vocab_size 300 --n_layer 1 --n_head 2"
                " --n_embd 8 --n_positions 64",
            ),
        ),
        Stage(
            "training",
            (
                f"train.py --output_dir {RUN} {_TRAIN} --validation_file {DATA}/validation.jsonl --eval_strategy epoch"
                f" --probe_file {DATA}/test.jsonl --probe_every epoch --num_train_epochs 3 --max_eval_samples 8",
            ),
            after="generation",
        ),
        Stage(
            "adapter",
            (f"train.py --output_dir outputs/train/tiny/lora {_TRAIN} --num_train_epochs 3 --lora_rank 2",),
            after="generation",
        ),
        Stage(
            "prediction",
            (
                f"predict.py --model_name_or_path {RUN}/checkpoints --input_file {DATA}/test.jsonl --threads 1"
                " --max_new_tokens 3 --batch_size 16 --max_predict_samples 20",
            ),
            after="training",
        ),
        Stage(
            "answers",
            (
                "data/document_data_generation.py --low 8 --high 2 --high_documents 2 --unmentioned 2",
                f"predict.py --model_name_or_path {RUN}/checkpoints --input_file data/documents_10/questions.jsonl"
                " --documents data/documents_10/documents.jsonl --context none retrieved --threads 1 --batch_size 16"
                " --max_new_tokens 3 --max_predict_samples 6",
            ),
            after="training",
        ),
        Stage("discovery", (f"circuit_discovery.py {ENGINE} --data_file {CIRCUITS}",), after="prediction"),
        Stage(
            "evaluation",
            (
                f"circuit_eval.py {ENGINE} --eval_data_file {CIRCUITS} --test_data_file {DATA}/test.jsonl --topn 40"
                " --target_type new --target_frequency high",
            ),
            after="discovery",
        ),
        Stage("report", (f"report.py --run {RUN}",), after="evaluation"),
        Stage(
            "mirrored",
            (
                "data/mirrored_data_generation.py --N 40 --data_dir mirrored --untaught_people 16 --dose 3"
                " --templates 2 --background_people 6 --tokenizer_people 20 --past_texts 4 --replays 2",
                f"data/base_model_creation.py --N 40 --data_dir mirrored --output_dir mirrored/base --vocab_size 600"
                f" --tokenizer_file {MIRRORED}/tokenizer.jsonl --n_layer 2 --n_head 2 --n_embd 16 --n_positions 128",
                f"train.py --output_dir mirrored/past --model_name_or_path mirrored/base --train_file"
                f" {MIRRORED}/prior.jsonl {_TRAIN_MIRRORED} --max_steps 2",
                f"train.py --output_dir mirrored/run --model_name_or_path mirrored/past/checkpoints/checkpoint-2"
                f" --train_file {MIRRORED}/train.jsonl --probe_file {MIRRORED}/test.jsonl {_TRAIN_MIRRORED}",
                *(
                    f"data/circuits_data_generation.py --N 40 --data_dir mirrored --model {name} --circuit_n 4"
                    f" --model_name_or_path mirrored/base --rare_length 1{more}"
                    for name, more in (("taught", ""), ("control", " --untaught"))
                ),
            ),
        ),
        *(
            Stage(
                study,
                (f"knowledge_circuits/analysis/__main__.py {study} mirrored/run --study studies/{study}{data}",),
                after="mirrored",
            )
            for study, data in (
                ("relevance", ""),
                (
                    "depth",
                    f" --data_file {MIRRORED}/circuit_4/taught/{{task}}.jsonl"
                    f" --control_file {MIRRORED}/circuit_4/control/{{task}}.jsonl",
                ),
            )
        ),
    )
}


_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "torch",
        "transformer_lens",
        "datasets",
        "pandas",
        "matplotlib.pyplot",
        "knowledge_circuits.corpus.other_corpora",
        "knowledge_circuits.sweeps.evaluation",
        "knowledge_circuits.sweeps.discovery",
        "knowledge_circuits.sweeps.prediction",
        "knowledge_circuits.training.run",
        "knowledge_circuits.analysis.circuit_tables",
        "knowledge_circuits.analysis.study_runs",
        "knowledge_circuits.report.page",
    ]
)


def start(command: str, folder: Path, log: Path) -> ForkServerProcess:
    """Start a program in a folder; its output goes to a file."""
    process = _server.Process(target=_run, args=(command.split(), str(folder), str(log)))
    process.start()
    return process


def _run(words: Sequence[str], folder: str, log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    sys.path.insert(0, str(ROOT))
    sys.argv = list(words)
    runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def finish(stage: Stage, folder: Path, log: Path) -> tuple[int, str]:
    """Run a stage to its end; the exit status of the first program that fails (or 0), and its output.

    Raises:
        TimeoutError: a program takes more than 5 minutes.
    """
    for command in stage.programs:
        process = start(command, folder, log)
        process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{command}\n{log.read_text()}")
        if process.exitcode != 0:
            return process.exitcode, log.read_text()
    return 0, log.read_text()


def contents(folder: Path, unequal: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file below a folder by its relative path, without the files that differ from run to run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in unequal
    }


def final_files(folder: Path) -> Iterator[Path]:
    """Files under their final names: what a reader may find."""
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith((".", "tmp")) for part in path.relative_to(folder).parts):
            yield path


def read_whole(path: Path) -> None:
    """Read a file to its end as its name asks; raises if it is a part of a file."""
    if path.suffix == ".jsonl":
        text = path.read_text()
        assert text.endswith("\n") or not text, f"{path} ends within a line"
        for line in text.splitlines():
            json.loads(line)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                file.get_tensor(key)
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")


def duplicate(folder: Path, target: Path) -> Path:
    """A copy of a workspace."""
    return Path(shutil.copytree(folder, target))
