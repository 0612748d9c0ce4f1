"""A study of training on documents: runs by strategy and seed, and the answers of the model without training.

A study is a folder of runs on the same documents and questions, one or more for each strategy:

    <study>/<run>/question_probes.jsonl   the answers at every probe (`training.question_probes`)
    <study>/<run>/run_config.json         which flags, and so which strategy
    <study>/<run>/circuits.csv            circuits at every checkpoint, where measured (`fact_circuits`)
    <study>/questions.jsonl               the questions with their accepted answers; default: the runs' --probe_file
    <study>/references/answers_*.jsonl    answers without training (predict.py --context; also in <run>'s checkpoint-0)

`document_tables` counts what happened, `document_claims` judges claims about it. Shape letters: e entities, t probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knowledge_circuits.analysis.fact_circuits import CIRCUIT_COLUMNS
from knowledge_circuits.corpus.questions import read_questions
from knowledge_circuits.files import InputError, read_jsonl
from knowledge_circuits.run_config import read_run_config
from knowledge_circuits.runs import Run
from knowledge_circuits.training.question_probes import (
    entity_recalls,
    known_entities,
    read_question_probes,
    recall_floors,
)
from knowledge_circuits.training.strategies import chosen

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

FULL = "full fine-tuning"
#: How strategies are called, by the flag that each is.
STRATEGIES = {
    "lora_rank": "LoRA",
    "adaptive_exposure": "adaptive exposure",
    "annotate_entities": "annotation",
    "kl_start": "KL to start",
    "kl_previous": "KL to previous",
    "replay_ratio": "replay",
}
#: How references are called, by what stands in the prompt (`sweeps.answers`).
REFERENCES = {
    "none": "no documents",
    "gold": "gold document",
    "entity": "all documents of the entity",
    "retrieved": "retrieved documents",
}


@dataclass(frozen=True)
class DocumentRun:
    """One run of a study.

    Attributes:
        name: its folder.
        strategy: what sets it apart from full fine-tuning, in words.
        seed: of the training.
        records: its question probes in step order, at least one.
        circuits: one row per checkpoint and group of prompts (CIRCUIT_COLUMNS); empty where none were measured.
        settings: flags that decide the weights, but for the strategy's.
        accepted: the accepted answers by question id; empty where the file of questions is not there.
    """

    name: str
    strategy: str
    seed: int
    records: tuple[Mapping[str, Any], ...]
    circuits: pd.DataFrame
    settings: Mapping[str, Any]
    accepted: Mapping[str, tuple[str, ...]]

    @property
    def threshold(self) -> float:
        """The mean recall from which an entity counts as learned."""
        return float(self.records[0]["learned_threshold"])

    @cached_property
    def frequency(self) -> NDArray[np.str_]:
        """[e] labels of the mentioned entities."""
        labels = {row["entity"]: row["frequency"] for row in self.records[0]["questions"]}
        return np.array([labels[entity] for entity in entity_recalls(self.records[0])], dtype=str)

    @cached_property
    def recall(self) -> Floats:
        """[e, t] mean recall of the entity's questions."""
        recalls = [entity_recalls(record) for record in self.records]
        return np.array([[at[entity] for at in recalls] for entity in recalls[0]], dtype=float)

    @cached_property
    def known(self) -> Mask:
        """[e, t] whether the entity is learned."""
        return known_entities(self.records, self.threshold)

    @cached_property
    def loss(self) -> Floats:
        """[t] of the documents."""
        return np.array([record["loss"] for record in self.records])

    @cached_property
    def recall_floor(self) -> Floats:
        """The floor [e, t] of `recall` (`recall_floors`); NaN without the accepted answers."""
        asked = {row["id"]: row["entity"] for row in self.records[0]["questions"]}
        floors = [pd.Series(self.floors_of(record), dtype=float).groupby(asked).mean() for record in self.records]
        return np.array([floor.reindex(list(entity_recalls(self.records[0]))) for floor in floors], dtype=float).T

    def floors_of(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Return the floor of each answer's recall in a record, by question id; empty without accepted answers."""
        return recall_floors(record, self.accepted) if self.accepted else {}


@dataclass(frozen=True)
class DocumentStudy:
    """Runs on the same documents and questions, and the answers of the model without training.

    Attributes:
        name: the folder.
        runs: full fine-tuning first, then by strategy and seed.
        references: by name; each one record as of a probe.
    """

    name: str
    runs: tuple[DocumentRun, ...]
    references: Mapping[str, Mapping[str, Any]]

    @property
    def strategies(self) -> list[str]:
        return list(dict.fromkeys(run.strategy for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})


def strategy_name(arguments: Mapping[str, Any]) -> str:
    """Return what a run's flags call its strategy; combined ones are joined with a plus sign."""
    flags = {*chosen(arguments), *(["replay_ratio"] if arguments.get("replay_ratio") else [])}
    return " + ".join(name for flag, name in STRATEGIES.items() if flag in flags) or FULL


# --- reading ----------------------------------------------------------------------------------------------------------


def read_document_study(folder: Path) -> DocumentStudy:
    """Read all probed runs of a study.

    Args:
        folder: of runs, or one run's own.

    Raises:
        InputError: no probed run, a broken file, two runs of one strategy and seed, or runs with other questions or
            settings.
    """
    alone = (folder / "question_probes.jsonl").exists()
    paths = [folder] if alone else sorted(path.parent for path in folder.glob("*/question_probes.jsonl"))
    runs = [run for path in paths if (run := _read_run(path)).records]
    if not runs:
        raise InputError(
            f"{folder}: no run with question_probes.jsonl in it; train with a --probe_file of questions first"
        )
    order = {name: place for place, name in enumerate((FULL, *STRATEGIES.values()))}
    runs.sort(key=lambda run: (order.get(run.strategy, len(order)), run.strategy, run.seed))
    by_key: dict[tuple[str, int], DocumentRun] = {}
    for run in runs:
        other = by_key.setdefault((run.strategy, run.seed), run)
        if other is not run:
            raise InputError(f"{folder}: {other.name} and {run.name} are both {run.strategy} with seed {run.seed}")
        first = next(one for one in runs if one.seed == run.seed)
        if _questions_of(first) != _questions_of(run):
            raise InputError(
                f"{folder / run.name}: other questions or another threshold than in {first.name}; runs of one study "
                "share the --probe_file and the --learned_threshold"
            )
        for flag in sorted({*first.settings, *run.settings} - {"learning_rate"}):
            if first.settings.get(flag) != run.settings.get(flag):
                raise InputError(
                    f"{folder / run.name}: --{flag} {run.settings.get(flag)}, not {first.settings.get(flag)} as in "
                    f"{first.name}; runs of one study differ in strategy, learning rate and seed only"
                )
    references = _read_references(folder.resolve().parent if alone else folder, runs)
    return DocumentStudy(folder.resolve().name, tuple(runs), references)


def _read_run(path: Path) -> DocumentRun:
    configuration = read_run_config(Run(path))
    flags = configuration.as_dict().get("arguments", {})
    table = path / "circuits.csv"
    circuits = pd.DataFrame(columns=list(CIRCUIT_COLUMNS))
    if table.exists():
        circuits = pd.read_csv(table, dtype={"group": str})
    if missing := [column for column in CIRCUIT_COLUMNS if column not in circuits]:
        raise InputError(f"{table}: no column {', '.join(missing)}; measure the circuits again")
    named = ("model_name_or_path", "train_file", "probe_file", "learning_rate", "lr_scheduler_type", "num_train_epochs")
    settings = {name: flags[name] for name in (*named, "block_size", "instruct") if flags.get(name) is not None}
    seed = configuration.arguments.seed
    records = tuple(read_question_probes(path / "question_probes.jsonl"))
    return DocumentRun(
        path.resolve().name,
        strategy_name(flags),
        42 if seed is None else seed,  # the Trainer's own
        records,
        circuits,
        settings,
        _accepted_answers(path, flags.get("probe_file"), records),
    )


def _accepted_answers(
    path: Path, probe_file: str | None, records: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[str, ...]]:
    """Return the accepted answers to a run's questions by id; empty where no file has them all."""
    asked = {(row["id"], row["entity"]) for record in records for row in record["questions"]}
    for file in (path.resolve().parent / "questions.jsonl", probe_file and Path(probe_file)):
        if file and file.is_file():
            questions = read_questions(file)
            if asked <= {(question.id, question.entity) for question in questions}:
                return {question.id: question.answers for question in questions}
    return {}


def _read_references(folder: Path, runs: Sequence[DocumentRun]) -> dict[str, Mapping[str, Any]]:
    """Return the answers of each file as a probe's record; what a question is about is taken from a run's probes."""
    questions = {row["id"]: row for row in runs[0].records[0]["questions"]}
    folders = [folder / "references", *(folder / run.name / "checkpoints" / "checkpoint-0" for run in runs)]
    references: dict[str, Mapping[str, Any]] = {}
    asked = {id: row["entity"] for id, row in questions.items()}
    for context, name in REFERENCES.items():
        path = next((file for one in folders if (file := one / f"answers_{context}.jsonl").exists()), None)
        if path is None:
            continue
        rows = read_jsonl(path, ("id", "entity", "output", "recall", "exact"))
        others = [str(row["id"]) for row in rows if asked.get(row["id"]) != row["entity"]]
        if others or not rows:
            raise InputError(
                f"{path}: answers to other questions than the runs', such as {(*others, 'none')[0]!r}; ask theirs "
                "with predict.py"
            )
        answered = [
            {**questions[row["id"]], **{key: row[key] for key in ("output", "recall", "exact")}} for row in rows
        ]
        references[name] = {"step": 0, "epoch": 0.0, "questions": answered}
    return references


def _questions_of(run: DocumentRun) -> list[Any]:
    return [run.threshold, *((row["id"], row["entity"]) for row in run.records[0]["questions"])]
