"""Manifests: what a finished unit of work is, what made it, and which files belong to it.

A unit is a data folder, a checkpoint, a scored graph, a circuit with its results and predictions, the predictions of a
checkpoint, or a report. Its manifest is a small JSON file beside its files:

    {"unit": "graph", "version": "0.2.0", "finished": true,
     "made_from": {"weights": "5f0c...", "ig_steps": 5, ...},       everything that the content depends on
     "files": {"city_graph.json": {"bytes": 91823, "sha256": "..."}}}

1. `begin` writes an unfinished manifest before the unit's files are written.
2. `finish` writes the finished one last, atomically, with each file's size and digest.
3. `check` says what became of a unit. Only a finished manifest that agrees with the settings and inputs given, and
   whose files agree with it, is whole.

`locked` keeps a second process from the same work in the same folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from knowledge_circuits import __version__
from knowledge_circuits.files import InputError, read_json, shortened, write_json

#: The manifest's name where a unit is a whole folder (a data folder, a checkpoint).
FOLDER_MANIFEST = "manifest.json"
#: How the names of all manifests end.
MANIFEST_ENDING = "manifest.json"


class FileRecord(BaseModel):
    """The size of a file in bytes and its SHA-256 digest, in hexadecimal digits."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Return the record of a file; raise InputError if it cannot be read."""
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(bytes=path.stat().st_size, sha256=digest)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _below(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("a manifest lists only files below its own folder")
    return name


class Manifest(BaseModel):
    """The content of a manifest file.

    Attributes:
        unit: the kind of unit.
        version: of the program that wrote it; recorded, never compared.
        finished: false while the unit's files are being written.
        made_from: settings, inputs and weights that the files' content depends on.
        files: by path relative to the manifest's folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    unit: str
    version: str
    finished: bool
    made_from: dict[str, JsonValue]
    files: dict[Annotated[str, AfterValidator(_below)], FileRecord]


def fingerprint(content: Any) -> str:
    """Return 16 hexadecimal digits of a JSON value, the same for the same content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def is_partial_digest(recorded: Any) -> bool:
    """Return whether a digest of weights is an earlier version's: 16 digits, of some bytes; now 32, of all bytes."""
    return isinstance(recorded, str) and re.fullmatch("[0-9a-f]{16}", recorded) is not None


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest, None if there is none; raise InputError if the file is not a manifest."""
    if not path.exists():
        return None
    content = read_json(path)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: not a manifest ({where}: {first['msg']}); run the program that wrote it again, or remove it if "
            "you trust the files that it lists"
        ) from None


def sound_manifest(path: Path) -> Manifest | None:
    """Return the manifest; None if there is none that can be read."""
    try:
        return read_manifest(path)
    except InputError:
        return None


def begin(path: Path, unit: str, made_from: Mapping[str, Any]) -> None:
    """Write an unfinished manifest, so that what an interrupted process leaves is known to be a part.

    Files that an earlier manifest lists stay listed until `finish`.
    """
    earlier = sound_manifest(path)
    _write(path, unit, False, made_from, earlier.files if earlier else {})


def finish(
    path: Path,
    unit: str,
    made_from: Mapping[str, Any],
    files: Iterable[Path],
    records: Mapping[Path, FileRecord] | None = None,
) -> None:
    """Write the finished manifest; the unit's files must all be written.

    Args:
        files: at or below the manifest's folder.
        records: sizes and digests that are known already, such as those of large weights.

    Raises:
        InputError: a file cannot be read.
    """
    known = records or {}
    listed = {file.relative_to(path.parent).as_posix(): known.get(file) or FileRecord.of(file) for file in files}
    _write(path, unit, True, made_from, dict(sorted(listed.items())))


def _write(path: Path, unit: str, finished: bool, made_from: Mapping[str, Any], files: dict[str, FileRecord]) -> None:
    content = json.loads(json.dumps(dict(made_from)))
    manifest = Manifest(unit=unit, version=__version__, finished=finished, made_from=content, files=files)
    write_json(path, manifest.model_dump())


class Status(StrEnum):
    """What became of a unit."""

    WHOLE = "whole"
    """Finished, of the settings given, all files as the manifest says."""
    MISSING = "missing"
    """Not made, interrupted, or without a part that is wanted now."""
    DAMAGED = "damaged"
    """A file, or the manifest, is missing, cut or changed."""
    OTHER = "of other settings"
    """Made from other settings, inputs or weights."""
    UNKNOWN = "unknown"
    """Files without a manifest, or with an earlier version's digest of some bytes of the weights."""


@dataclass(frozen=True)
class State:
    """A unit's status and one line of detail.

    Attributes:
        path: the unit's manifest.
        detail: which file or setting; empty if whole.
        renewed: where nothing is unknown but whether an earlier version's partial digests of weights are those of the
            weights now, the manifest with the digests of these.
    """

    status: Status
    path: Path
    detail: str = ""
    renewed: Manifest | None = None

    @property
    def is_whole(self) -> bool:
        return self.status is Status.WHOLE

    def __str__(self) -> str:
        return f"{self.path}: {self.status}" + (f" ({self.detail})" if self.detail else "")


def check(
    path: Path,
    made_from: Mapping[str, Any] | None = None,
    files: Iterable[Path] = (),
    verify: bool = False,
    beside: Iterable[Path] | None = None,
) -> State:
    """Return what became of a unit.

    Args:
        made_from: what the unit would be made from now; None compares nothing. Recorded keys that are not given here
            are not compared.
        files: files that the unit must have.
        verify: compare all bytes with the digests; by default only sizes.
        beside: files that, without a manifest, make the unit unknown rather than missing; default `files`.
    """
    files = list(files)
    try:
        manifest = read_manifest(path)
    except InputError as error:
        return State(Status.DAMAGED, path, str(error))
    if manifest is None:
        there = [file for file in (files if beside is None else beside) if file.exists()]
        detail = f"{there[0].name} has no manifest" if there else "not made yet"
        return State(Status.UNKNOWN if there else Status.MISSING, path, detail)
    if not manifest.finished:
        return State(Status.MISSING, path, "interrupted")
    wanted = json.loads(json.dumps(dict(made_from or {})))
    changed = {key: value for key, value in wanted.items() if manifest.made_from.get(key, value) != value}
    partial = {key: value for key, value in changed.items() if _replaces_partial(manifest.made_from[key], value)}
    differing = [
        f"{key} {shortened(manifest.made_from[key], 80)}, now {shortened(value, 80)}"
        for key, value in changed.items()
        if key not in partial
    ]
    if differing:
        return State(Status.OTHER, path, "; ".join(differing))
    for name, record in manifest.files.items():
        if fault := _fault(path.parent / name, record, verify):
            return State(Status.DAMAGED, path, fault)
    lacking = [key for key in wanted if key not in manifest.made_from]
    lacking += [file.name for file in files if file.relative_to(path.parent).as_posix() not in manifest.files]
    if lacking:
        return State(Status.MISSING, path, f"without {', '.join(lacking)}")
    if partial:
        renewed = manifest.model_copy(update={"made_from": manifest.made_from | partial})
        return State(Status.UNKNOWN, path, "an earlier version compared some bytes of the weights only", renewed)
    return State(Status.WHOLE, path)


def _replaces_partial(recorded: Any, now: Any) -> bool:
    """Return whether a partial digest is recorded where one of all bytes is compared."""
    return is_partial_digest(recorded) and isinstance(now, str) and re.fullmatch("[0-9a-f]{32}", now) is not None


def renew(state: State) -> None:
    """Write a unit's manifest with the digests of the weights now, as `--adopt` asks; see `State.renewed`."""
    if state.renewed is not None:
        write_json(state.path, state.renewed.model_dump())


def _fault(path: Path, record: FileRecord, verify: bool) -> str:
    """Return what is wrong with a file; an empty text if nothing is."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != record.bytes:
        return f"{path.name} has {size:,} bytes, not {record.bytes:,}"
    if verify and FileRecord.of(path).sha256 != record.sha256:
        return f"{path.name} has other content than when it was written"
    return ""


def remove_replaced(path: Path, files: Iterable[Path]) -> None:
    """Remove the files that a unit's manifest lists and that are not among `files`, as `--overwrite` asks.

    Files that no manifest lists are never removed.
    """
    manifest = sound_manifest(path)
    keep = {file.absolute() for file in files}
    for name in manifest.files if manifest else ():
        if (file := path.parent / name).absolute() not in keep:
            file.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold the right to do one kind of work in a folder.

    The operating system releases the lock when its process ends, so a dead process holds nothing.

    Args:
        folder: made if missing.
        work: one word, such as "training"; different kinds of work do not exclude each other.

    Raises:
        InputError: another process holds it; the message names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / f".{work}.process.json"
    lock = FileLock(folder / f".{work}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder}: {work} is under way here{_holder(holder)}; wait for it or stop it") from None
    try:
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "program": Path(sys.argv[0]).name})
        yield
    finally:
        holder.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held, so that no other process has locked it
        lock.release()


def _holder(path: Path) -> str:
    try:
        process = read_json(path)
        return f" in process {process['pid']} on {process['host']} ({process['program']})"
    except (InputError, KeyError, TypeError):
        return " in another process"
