"""The files of a designed study: what each of its runs writes, and the reader that joins them.

A study is a folder with one folder per run:

    <study>/runs/<run>/study_run.json   what the run is (`StudyRun`), written last: a folder without it is unfinished
    <study>/runs/<run>/facts.csv        relevance: one row per checkpoint, person and attribute (`FACT_COLUMNS`)
    <study>/runs/<run>/circuits.csv     depth: one row per checkpoint and circuit (`CIRCUIT_COLUMNS`)

Either table may end in .csv.gz. The runs of a study differ in seed, mirror and dose alone; everything else stands in
`settings` and has to be equal, for runs that differ in more than these are never averaged. Columns with units:

    facts     person, attribute; told: "past" for a fact that the past tells, "new" for one that only continual
              pre-training tells; epoch; known: the person was in this run's past; accuracy: 0 or 1, the first token
              is the most probable one; hit10: 0 or 1, it is among the ten most probable; band
    circuits  task, type, band; people: "taught", or "control" for people who are never taught; step, epoch; edges,
              nodes; entropy (nats); edges_for_90: edges needed for a faithfulness of 0.9; edge_change: 1 - edge Jaccard
              with the circuit one epoch earlier, same prompts; turnover, turnover_floor: see `floors.turnover`;
              centroid (layers, see `floors.layer_centroid`); faithfulness; clean_minus_corrupted with its 95% interval
              cmc_low, cmc_high (logits); split_half_jaccard; random_faithfulness, random_hit10: mean of 5 random
              circuits of the same size; hit10; layer_0, layer_1, ...: edge activation ratio by layer

Turnover compares checkpoints that lie one epoch apart, wherever checkpoints are denser than that: between checkpoints
at unequal distances it would bend where the distance changes. It is empty where no such checkpoint exists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from knowledge_circuits.files import InputError, atomic_write, read_bytes, read_json, write_json
from knowledge_circuits.manifest import FOLDER_MANIFEST, begin, finish, read_manifest
from knowledge_circuits.study import Attribute, Band, KnowledgeType

Scalar = str | int | float | bool | None


class StudyKind(StrEnum):
    """Which question a study asks; the value names it in files."""

    RELEVANCE = "relevance"
    DEPTH = "depth"

    @property
    def table(self) -> str:
        """The name of a run's table."""
        return {StudyKind.RELEVANCE: "facts.csv", StudyKind.DEPTH: "circuits.csv"}[self]


class Told(StrEnum):
    """When a fact of the relevance study is told."""

    PAST = "past"
    NEW = "new"


class People(StrEnum):
    """Whom a circuit of the depth study is about."""

    TAUGHT = "taught"
    CONTROL = "control"


class StudyRun(BaseModel):
    """What a run of a study is; study_run.json.

    Attributes:
        study: which study.
        seed: the unit of all statistics.
        mirror: which half of the people stands in the past ("A" or "B"); "" in the depth study.
        dose: texts of the past per known person; None in the depth study.
        settings: everything else that the run was made with, equal in all runs of the study.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: StudyKind
    seed: int
    mirror: str = ""
    dose: float | None = Field(default=None, ge=0)
    settings: dict[str, Scalar] = {}

    @model_validator(mode="after")
    def _has_what_its_study_varies(self) -> Self:
        mirrored = self.study == StudyKind.RELEVANCE
        if bool(self.mirror) != mirrored or (self.dose is not None) != mirrored:
            raise ValueError("a run of the relevance study has a mirror and a dose, one of the depth study neither")
        return self

    @property
    def name(self) -> str:
        """The run's folder."""
        parts = [f"seed_{self.seed}"]
        parts += [f"mirror_{self.mirror}"] if self.mirror else []
        parts += [f"dose_{self.dose:g}"] if self.dose is not None else []
        return "_".join(parts)


#: Columns that a run's table must have, with the values that a closed set allows.
FACT_COLUMNS: Mapping[str, Sequence[str] | None] = {
    "person": None,
    "attribute": [str(a) for a in Attribute],
    "told": [str(t) for t in Told],
    "epoch": None,
    "known": None,
    "accuracy": None,
    "hit10": None,
    "band": [str(b) for b in Band],
}
CIRCUIT_COLUMNS: Mapping[str, Sequence[str] | None] = {
    "task": [str(a) for a in Attribute],
    "type": [str(t) for t in KnowledgeType],
    "band": [*(str(b) for b in Band), ""],
    "people": [str(p) for p in People],
    **dict.fromkeys(
        (
            *("step", "epoch", "edges", "nodes", "entropy", "edges_for_90", "edge_change", "turnover"),
            *("turnover_floor", "centroid", "faithfulness", "clean_minus_corrupted", "cmc_low", "cmc_high"),
            *("split_half_jaccard", "random_faithfulness", "random_hit10", "hit10"),
        )
    ),
}
_COLUMNS = {StudyKind.RELEVANCE: FACT_COLUMNS, StudyKind.DEPTH: CIRCUIT_COLUMNS}
#: Columns that are not numbers.
_TEXTS = {"person", "attribute", "told", "band", "task", "type", "people"}
#: Columns without gaps.
_WHOLE = {"person", "attribute", "told", "epoch", "known", "accuracy", "hit10", "task", "people", "step", "centroid"}


@dataclass(frozen=True)
class Study:
    """All finished runs of a study.

    Attributes:
        kind: which study.
        runs: by seed, mirror and dose.
        settings: what all runs share.
        table: the runs' tables with the columns seed, mirror and dose before theirs.
    """

    kind: StudyKind
    runs: tuple[StudyRun, ...]
    settings: Mapping[str, Scalar]
    table: pd.DataFrame

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})


def write_study_run(study: Path, run: StudyRun, table: pd.DataFrame) -> Path:
    """Write a run's table, its description and the manifest of both.

    Args:
        table: see the module's columns; checked as on reading.

    Returns:
        The run's folder, `study / "runs" / run.name`.

    Raises:
        InputError: a column is missing or a value is not allowed.
    """
    folder = study / "runs" / run.name
    _check(table, run.study, str(folder / run.study.table))
    settings = run.model_dump(mode="json")
    begin(folder / FOLDER_MANIFEST, "study run", settings)
    with atomic_write(folder / run.study.table) as file:
        table.to_csv(file, index=False, float_format="%.6g")
    write_json(folder / "study_run.json", settings)
    files = [folder / run.study.table, folder / "study_run.json"]
    finish(folder / FOLDER_MANIFEST, "study run", settings, files)
    return folder


def finished(study: Path, run: StudyRun) -> bool:
    """Return whether the study has this run already, whole and made with the same settings."""
    folder = study / "runs" / run.name
    path = folder / "study_run.json"
    if not path.exists() or _read_run(path) != run:
        return False
    try:
        _read_table(folder, run)
    except InputError as error:
        print(f"{error}; measured again")
        return False
    return True


def read_study(study: Path) -> Study:
    """Read all finished runs of a study.

    Raises:
        InputError: no finished run; a broken file; runs of two kinds; or settings that differ between runs.
    """
    paths = sorted(study.glob("runs/*/study_run.json"))
    if not paths:
        raise InputError(f"{study}: no finished run of a study (runs/*/study_run.json); run the study's script first")
    runs = [_read_run(path) for path in paths]
    first = runs[0]
    for path, run in zip(paths, runs, strict=True):
        if run.study != first.study:
            raise InputError(f"{path}: a run of the {run.study} study among those of {first.study}")
        keys = run.settings.keys() | first.settings.keys()
        if differing := sorted(key for key in keys if run.settings.get(key) != first.settings.get(key)):
            raise InputError(
                f"{path}: {', '.join(differing)} differ from {paths[0].parent.name}; only runs that differ in seed, "
                "mirror and dose make one study: give the others a folder of their own"
            )
    tables = [_read_table(path.parent, run) for path, run in zip(paths, runs, strict=True)]
    order = ["seed", "mirror", "dose"]
    table = pd.concat(tables, ignore_index=True).sort_values(order, kind="stable", ignore_index=True)
    runs.sort(key=lambda run: (run.seed, run.mirror, run.dose or 0))
    return Study(first.study, tuple(runs), runs[0].settings, table)


def _read_run(path: Path) -> StudyRun:
    try:
        return StudyRun.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key}: {first['msg']}; remove the run's folder and run the study again") from None


def _read_table(folder: Path, run: StudyRun) -> pd.DataFrame:
    names = (run.study.table, f"{run.study.table}.gz")
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise InputError(f"{folder}: no {run.study.table}; remove the folder and run the study again")
    _refuse_changed(folder, path)
    empty = {column: [""] for column in _COLUMNS[run.study] if column not in _TEXTS}
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False, na_values=empty)
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError, OSError, EOFError) as error:
        raise InputError(f"{path}: not a table of comma-separated values ({str(error).splitlines()[0]})") from None
    _check(table, run.study, str(path))
    for position, (name, value) in enumerate((("seed", run.seed), ("mirror", run.mirror), ("dose", run.dose))):
        table.insert(position, name, np.nan if value is None else value)
    return table


def _refuse_changed(folder: Path, path: Path) -> None:
    """Refuse a table that is not as its manifest says; it may have been compressed since."""
    manifest = read_manifest(folder / FOLDER_MANIFEST)
    if manifest is None:
        return  # measured before there were manifests
    record = manifest.files.get(path.name.removesuffix(".gz"))
    if not manifest.finished or record is None or hashlib.sha256(read_bytes(path)).hexdigest() != record.sha256:
        raise InputError(
            f"{path}: not as its manifest says; remove the folder and run the study again, or remove {FOLDER_MANIFEST} "
            "if you changed the table on purpose"
        )


def _check(table: pd.DataFrame, kind: StudyKind, where: str) -> None:
    """Check a run's table: its columns, closed sets, finite numbers, gaps."""
    missing = [column for column in _COLUMNS[kind] if column not in table]
    if missing:
        raise InputError(f"{where}: no column {', '.join(missing)}")
    for column, allowed in _COLUMNS[kind].items():
        values = table[column]
        if column in _TEXTS:
            wrong = ~values.isin(list(allowed)) if allowed is not None else values.astype(str) == ""
        elif values.dtype == bool or pd.api.types.is_numeric_dtype(values):
            wrong = np.isinf(values.astype(float)) | (values.isna() if column in _WHOLE else False)
        else:
            wrong = pd.to_numeric(values, errors="coerce").isna() & values.notna()
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(f"{where}, line {row + 2}: {column} is {values.iloc[row]!r}, which it cannot be")
