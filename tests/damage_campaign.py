"""A random campaign: damage one file of a finished tiny study, run the programs that read it, see how they end.

    PYTHONPATH=. python tests/damage_campaign.py --damages 500 [--seed 7] [--processes 2]

A case is right if the program ends with one sentence (exit status not 0, no traceback), or ends well and every result
has the bytes of the undamaged study. The programs run in this process, with the command line, folder and output of a
process of their own. The seed is printed, so that a campaign can be repeated.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import multiprocessing
import os
import random
import runpy
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from damage import ODD_VALUES
from stages import ROOT

from knowledge_circuits.manifest import MANIFEST_ENDING

RUN = "outputs/train/tiny/run"
DATA = "data/entities_90"
PAIRS = f"{DATA}/circuit_6/tiny"
_TRAIN = (
    f"train.py --model tiny --model_name_or_path models/tiny --train_file {DATA}/train.jsonl"
    f" --validation_file {DATA}/validation.jsonl --probe_file {DATA}/test.jsonl --probe_every 2 --cache_dir cache"
    " --block_size 256 --per_device_train_batch_size 4 --learning_rate 1e-3 --lr_scheduler_type constant --seed 5"
    " --save_strategy steps --save_steps 2 --eval_strategy steps --eval_steps 2 --max_train_samples 24"
    " --max_eval_samples 6 --report_to none --disable_tqdm true"
)
TRAIN = f"{_TRAIN} --output_dir {RUN} --max_steps 4"
#: Training that was stopped after 4 of 6 steps goes on.
GO_ON = f"{_TRAIN} --output_dir outputs/train/tiny/longer --max_steps 6"
ANEW = f"{_TRAIN} --output_dir outputs/train/tiny/new --max_steps 2"
TEXTS = "data/text_data_generation.py --N 90 --validation_lines 20"
PREDICT = (
    f"predict.py --model_name_or_path {RUN}/checkpoints --input_file {DATA}/test.jsonl --threads 1 --max_new_tokens 3"
    " --batch_size 64 --max_predict_samples 8 --verify"
)
DOCUMENTS = "data/documents_8"
ASK = (
    f"predict.py --model_name_or_path {RUN}/checkpoints --input_file {DOCUMENTS}/questions.jsonl --documents"
    f" {DOCUMENTS}/documents.jsonl --context gold --threads 1 --max_new_tokens 3 --max_predict_samples 6 --verify"
)
_ENGINE = f"--model tiny --model_path {RUN}/checkpoints --task city --circuit_n 6 --batch_size 8 --threads 1 --verify"
DISCOVER = (
    f"circuit_discovery.py {_ENGINE} --data_file {PAIRS}/{{task}}.jsonl --type new --frequency high low --stability 40"
)
EVALUATE = (
    f"circuit_eval.py {_ENGINE} --eval_data_file {PAIRS}/{{task}}.jsonl --test_data_file {DATA}/test.jsonl --topn 40"
    " --source_type new --source_frequency high low --target_type new --target_frequency high --cross_groups"
)
REPORT = f"report.py --run {RUN}"
MAKING = (
    "data/datapoint_generation.py --N 90 --revised_share 0.5 --frequency_rate 0.25",
    TEXTS,
    "data/query_data_generation.py --N 90 --test_per_group 6",
    f"data/base_model_creation.py --N 90 --output_dir models/tiny --tokenizer_file {DATA}/train.jsonl --vocab_size 400"
    " --n_layer 2 --n_head 4 --n_embd 32 --n_positions 256",
    "data/circuits_data_generation.py --N 90 --circuit_n 6 --model tiny --model_name_or_path models/tiny"
    " --rare_length 1",
    TRAIN,
    GO_ON.replace("--max_steps 6", "--max_steps 4"),
    PREDICT,
    "data/document_data_generation.py --low 6 --high 2 --high_documents 2 --unmentioned 2",
    ASK,
    DISCOVER,
    EVALUATE,
    REPORT,
)


@dataclass(frozen=True)
class Unit:
    """A kind of unit.

    Attributes:
        pattern: its files, below the study's folder: patterns with spaces between them.
        programs: which read it, the nearest first.
        redone: results (patterns) that are removed before, so that they must be computed again.
    """

    name: str
    pattern: str
    programs: tuple[str, ...]
    redone: tuple[str, ...] = ()

    @property
    def work(self) -> tuple[tuple[str, ...], ...]:
        """What is computed; units with the same work have the same results."""
        return self.programs, self.redone


_GRAPHS, _CIRCUITS = f"{RUN}/checkpoints/*/circuit_6/**/method_*/*", f"{RUN}/checkpoints/*/circuit_6/**/topn_*/**/*"
UNITS = (
    Unit("people", f"{DATA}/[nr]e[wv]*.jsonl", (TEXTS,)),
    Unit("texts", f"{DATA}/[tv]*a*i*.jsonl", (ANEW,)),
    Unit("data record", f"{DATA}/data_config.json", (TEXTS, ANEW)),
    Unit("data manifest", f"{DATA}/*{MANIFEST_ENDING}", (TEXTS, ANEW)),
    Unit("queries", f"{DATA}/test.jsonl", (PREDICT,), (f"{RUN}/checkpoints/*/prediction*",)),
    Unit("pairs", f"{PAIRS}/*", (DISCOVER,), (_GRAPHS,)),
    Unit("pairs again", f"{PAIRS}/*", (DISCOVER, EVALUATE)),
    Unit("start", "models/tiny/*", (ANEW,)),
    Unit("checkpoint", f"{RUN}/checkpoints/*/*", (PREDICT,), (f"{RUN}/checkpoints/*/prediction*",)),
    Unit("resume state", "outputs/train/tiny/longer/checkpoints/checkpoint-4/*", (GO_ON,)),
    Unit("records", "outputs/train/tiny/longer/*.json*", (GO_ON,)),
    Unit("documents", f"{DOCUMENTS}/*[sg]*.json*", (ASK,), (f"{RUN}/checkpoints/*/answers*",)),
    Unit("answers", f"{RUN}/checkpoints/*/answers*", (ASK,)),
    Unit("cross groups", f"{RUN}/checkpoints/*/circuit_6/*/*/cross_groups*", (EVALUATE,)),
    Unit("graph", _GRAPHS, (EVALUATE,), (_CIRCUITS,)),
    Unit("graph again", _GRAPHS, (DISCOVER, EVALUATE)),
    Unit("circuit", _CIRCUITS, (EVALUATE,)),
    Unit("predictions", f"{RUN}/checkpoints/*/prediction*", (PREDICT,)),
    Unit(
        "report's inputs", f"{_CIRCUITS} {RUN}/checkpoints/*/prediction* {RUN}/*.json*", (REPORT,), (f"{RUN}/report*",)
    ),
    Unit("report", f"{RUN}/report*", (REPORT,)),
)


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its exit status, what it said, and the error that it let through."""

    status: int
    said: str
    traceback: str = ""


def call(command: str, folder: Path) -> Outcome:
    """Run a program in this process."""
    words, output, status, trace = command.split(), io.StringIO(), 0, ""
    with chdir(folder), mock.patch.object(sys, "argv", words), redirect_stdout(output), redirect_stderr(output):
        try:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            trace = traceback.format_exc()
    return Outcome(status, output.getvalue(), trace)


def make_study(folder: Path) -> Path:
    """Make the study that is damaged."""
    folder.mkdir(parents=True)
    for command in MAKING:
        outcome = call(command, folder)
        if outcome.status or outcome.traceback:
            raise RuntimeError(f"{command}\n{outcome.said}\n{outcome.traceback}")
    return folder


# --- damages ----------------------------------------------------------------------------------------------------------


def _odd(value: object, generator: random.Random) -> str:
    """The JSON text of a value of which one part is odd."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        chosen = generator.choice(list(value))
        texts = {key: json.dumps(part) for key, part in value.items()}
        texts[chosen] = _odd(value[chosen], generator)
        if generator.random() < 0.2:
            del texts[chosen]
        return "{" + ", ".join(f"{json.dumps(key)}: {text}" for key, text in texts.items()) + "}"
    if isinstance(value, list) and value and generator.random() < 0.8:
        chosen = generator.randrange(len(value))
        parts = [_odd(part, generator) if i == chosen else json.dumps(part) for i, part in enumerate(value)]
        return "[" + ", ".join(parts) + "]"
    if isinstance(value, bool | None) or generator.random() < 0.5:
        return generator.choice(ODD_VALUES)
    return json.dumps(value * 2 + 1 if isinstance(value, int | float) else f"{value}x")


def _json_mutation(path: Path, generator: random.Random) -> None:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = generator.randrange(len(lines))
    lines[number] = _odd(json.loads(lines[number]), generator)
    path.write_text("\n".join(lines) + "\n")


def _flip(path: Path, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, generator: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: generator.randrange(len(content))])


def _cut_line(path: Path, generator: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[generator.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "cut": _cut,
    "emptied": lambda path, generator: path.write_bytes(b"") and None,
    "deleted": lambda path, generator: path.unlink(),
    "bit flipped": _flip,
    "line lost": _cut_line,
    "JSON changed": _json_mutation,
}


@dataclass(frozen=True)
class Case:
    """One damage and what came of it; `fault` is empty if the programs ended as they should."""

    unit: str
    file: str
    damage: str
    fault: str
    said: str

    def __str__(self) -> str:
        return f"{self.unit}: {self.file} {self.damage}: {self.fault or 'right'} | {self.said[-300:]}"


class Campaign:
    """A study, what each unit's programs make of it undamaged, and a random generator."""

    def __init__(self, study: Path, work: Path, seed: int) -> None:
        self.study, self.work, self.generator = study, work, random.Random(seed)
        self._expected: dict[tuple[tuple[str, ...], ...], dict[str, bytes]] = {}

    def case(self) -> Case:
        """Draw a damage, apply it to a copy of the study, and run the unit's programs."""
        unit = self.generator.choice(UNITS)
        if unit.work not in self._expected:
            self._expected[unit.work], _ = self._run(unit, lambda folder: None)
        redone = {name for pattern in unit.redone for name in _files(self.study, pattern)}
        files = [name for name in _files(self.study, unit.pattern) if name not in redone]
        name = self.generator.choice(files)
        kinds = [kind for kind in DAMAGES if kind != "JSON changed" or name.endswith((".json", ".jsonl"))]
        damage = self.generator.choice([*kinds, "exchanged"])
        others = [other for other in files if Path(other).suffix == Path(name).suffix and other != name]

        def apply(folder: Path) -> None:
            path = folder / name
            if damage == "exchanged":
                shutil.copy(folder / self.generator.choice(others or [f"{DATA}/new.jsonl"]), path)
            else:
                DAMAGES[damage](path, self.generator)

        contents, outcomes = self._run(unit, apply)
        return Case(unit.name, name, damage, self._fault(unit, name, contents, outcomes), outcomes[-1].said.strip())

    def _run(self, unit: Unit, damage: Callable[[Path], None]) -> tuple[dict[str, bytes], list[Outcome]]:
        folder = Path(shutil.copytree(self.study, self.work / "copy"))
        try:
            for pattern in unit.redone:
                for name in _files(folder, pattern):
                    (folder / name).unlink()
            damage(folder)
            outcomes = []
            for command in unit.programs:
                outcomes.append(call(command, folder))
                if outcomes[-1].status or outcomes[-1].traceback:
                    break
            return _results(folder), outcomes
        finally:
            shutil.rmtree(folder)

    def _fault(self, unit: Unit, name: str, contents: dict[str, bytes], outcomes: Sequence[Outcome]) -> str:
        last = outcomes[-1]
        if last.traceback:
            return "TRACEBACK " + last.traceback
        if last.status:
            sentence = last.said.strip().splitlines()[-1] if last.said.strip() else ""
            return "" if "rror: " in sentence and "Traceback" not in last.said else f"NO SENTENCE {last.said[-500:]}"
        expected = self._expected[unit.work]
        other = [file for file in expected if file != name and contents.get(file) != expected[file]]
        if name in contents and name in expected and contents[name] != expected[name] and _is_result(name, unit):
            other.append(name)
        return f"OTHER RESULTS {', '.join(other[:4])}" if other else ""


_REMADE = ("graph again", "circuit", "predictions", "answers", "cross groups", "report")


def _is_result(name: str, unit: Unit) -> bool:
    """Whether the unit's programs are to make the damaged file itself again."""
    return unit.name in _REMADE and not name.endswith(MANIFEST_ENDING)


def _files(folder: Path, pattern: str) -> list[str]:
    paths = {path for part in pattern.split() for path in folder.glob(part)}
    return sorted(str(path.relative_to(folder)) for path in paths if path.is_file() and path.stat().st_size)


def _results(folder: Path) -> dict[str, bytes]:
    """The results of a study: weights, records, predictions, graphs, circuits, texts and report."""
    return {
        name: (folder / name).read_bytes()
        for name in (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if name.endswith((".jsonl", ".safetensors", "report.html", "_graph.json", "_results.json", "cross_groups.json"))
        and not name.startswith("cache")
        and ".aside-" not in name
    }


def run_campaign(study: Path, work: Path, seed: int, damages: int, count: Callable[[str], None]) -> None:
    """Draw and print so many cases, and count each by the first word of its fault, or as right."""
    work.mkdir()
    campaign = Campaign(study, work, seed)
    for number in range(1, damages + 1):
        case = campaign.case()
        count(case.fault.split(" ")[0] or "right")
        if case.fault or number % 50 == 0:
            print(f"seed {seed}, {number} of {damages}. {case if case.fault else 'right so far'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=500)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"), help="of the first process")
    parser.add_argument("--processes", type=int, default=1, help="share the damages; each has a seed one higher")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as base:
        study = make_study(Path(base) / "study")
        gc.freeze()  # the Trainer collects garbage at every end, and the imported libraries are most of what it visits
        fork = multiprocessing.get_context("fork")
        ends: multiprocessing.queues.SimpleQueue[str] = fork.SimpleQueue()
        workers = [
            fork.Process(
                target=run_campaign,
                args=(study, Path(base) / str(index), args.seed + index, args.damages // args.processes, ends.put),
            )
            for index in range(args.processes)
        ]
        for worker in workers:
            worker.start()
        counts: Counter[str] = Counter()
        while any(worker.is_alive() for worker in workers) or not ends.empty():
            while not ends.empty():
                counts[ends.get()] += 1
            time.sleep(0.1)
    print(dict(counts))
    complete = counts.total() == args.damages // args.processes * args.processes
    return 0 if complete and set(counts) <= {"right"} else 1


if __name__ == "__main__":
    os.environ |= {
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    sys.exit(main())
