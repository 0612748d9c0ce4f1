"""Where generated data lie, and the record of how they came about.

data/entities_<N>/
    new.jsonl  revised.jsonl                 people and their facts          datapoint_generation.py
    train.jsonl  validation.jsonl            biographies                     text_data_generation.py
    test.jsonl                               the people in the queries       query_data_generation.py
    circuit_<n>/<model>/<task>.jsonl         clean and corrupted prompts     circuits_data_generation.py
    forget_new.jsonl  forget_conflict.jsonl  replay.jsonl                    forget_data_generation.py
    prior.jsonl  prior_held_out.jsonl        a past                          prior_data_generation.py
    untaught.jsonl  tokenizer.jsonl          of a mirrored set               mirrored_data_generation.py
    data_config.json                         N, seed, and the flags of every program that wrote here
    <program>_manifest.json                  what the program wrote, from which flags and inputs

A file counts as the program left it if a finished manifest beside it says so (`whole_file`).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from knowledge_circuits.command_line import HelpFormatter, natural, positive, program_parser
from knowledge_circuits.files import InputError, write_json
from knowledge_circuits.manifest import (
    MANIFEST_ENDING,
    FileRecord,
    Manifest,
    begin,
    fingerprint,
    finish,
    locked,
    read_manifest,
)
from knowledge_circuits.paths import SELECTION_POOL, TEMPLATES, check_name, shown
from knowledge_circuits.records import RECORD, Count, shape
from knowledge_circuits.study import Attribute

Sizes = TypeVar("Sizes")

#: Flags that name folders or files and do not decide the content.
_PATHS = ("data_dir", "output_dir", "overwrite")

#: What a data program's manifest records beside its flags: digests of this folder's files and of what else was read.
_INPUTS = ("inputs", "sources")

#: The programs whose N and seed stand at the top of data_config.json.
_MAKERS_OF_PEOPLE = ("datapoint_generation", "mirrored_data_generation")

#: The kinds of unit in the manifests of data programs.
UNIT = "data"
CIRCUIT_UNIT = "circuit data"


class DataConfig(BaseModel):
    """The content of data_config.json; further keys are programs, with their flags."""

    model_config = RECORD
    __pydantic_extra__: dict[str, dict[str, Any]]

    N: Count | None = None
    seed: Count | None = None


def read_data_config(path: Path) -> dict[str, Any]:
    """Read a data_config.json; an empty object where there is none.

    Raises:
        InputError: with the file, the key and the reason.
    """
    return shape(DataConfig).file(path).model_dump(exclude_unset=True) if path.exists() else {}


def checked_data_config(path: Path) -> dict[str, Any]:
    """Read a data_config.json as `read_data_config` does, and compare it with the manifests beside it.

    Raises:
        InputError: the file is missing beside manifests, or a program's flags there are not those of its manifest.
    """
    config = read_data_config(path)
    for listing in sorted(path.parent.glob(f"*_{MANIFEST_ENDING}")):
        manifest, program = read_manifest(listing), listing.name.removesuffix(f"_{MANIFEST_ENDING}")
        if manifest is None or manifest.unit != UNIT or not manifest.finished:
            continue
        recorded = {name: value for name, value in manifest.made_from.items() if name not in _INPUTS}
        flags = config.get(program, recorded if path.exists() else None)  # those about former people are not there
        top = ("N", "seed") if program in _MAKERS_OF_PEOPLE else ()
        if flags != recorded or any(config.get(name) != flags.get(name) for name in top):
            raise InputError(f"{path}: other flags of {program} than in {listing.name}; run data/{program}.py again")
    return config


class _File:
    """The path of a file in a data folder, given its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: DataFolder, _: type) -> Path:
        return folder.path / self._name


@dataclass(frozen=True)
class DataFolder:
    """The files of one generated set of N people."""

    path: Path

    new = _File("new.jsonl")
    revised = _File("revised.jsonl")
    train = _File("train.jsonl")
    validation = _File("validation.jsonl")
    test = _File("test.jsonl")
    forget_new = _File("forget_new.jsonl")
    forget_conflict = _File("forget_conflict.jsonl")
    replay = _File("replay.jsonl")
    prior = _File("prior.jsonl")
    prior_held_out = _File("prior_held_out.jsonl")
    untaught = _File("untaught.jsonl")
    tokenizer_texts = _File("tokenizer.jsonl")
    config = _File("data_config.json")

    @classmethod
    def of(cls, data_dir: str, n: int) -> DataFolder:
        """Return the folder of N people under `data_dir`."""
        return cls(Path(data_dir) / f"entities_{n}")

    def circuit(self, circuit_n: int, model: str, task: Attribute) -> Path:
        """Return the pairs of one task under one model's tokenizer."""
        check_name(model, "--model")
        return self.path / f"circuit_{circuit_n}" / model / f"{task}.jsonl"

    def require(self, path: Path, program: str) -> Path:
        """Return `path` if it is there and as a program wrote it.

        Raises:
            InputError: it is missing, or not as `whole_file` wants it; the message names the program.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file; run data/{program} with the same --N and --data_dir first")
        return whole_file(path)

    def record(self, program: str, flags: Mapping[str, Any], first: bool = False) -> None:
        """Put a program's flags into data_config.json, beside those of the others.

        Args:
            program: the program's name, under which its flags stand.
            flags: N, seed and everything else that the content depends on; values that are not JSON become text.
            first: the program makes the people, whose N and seed stand at the top; what other programs recorded goes
                if these flags differ from the recorded ones, because it was made from other people.
        """
        flags = content_flags(flags)
        config = read_data_config(self.config)
        if first and config.get(program) != flags:
            config = {"N": flags.get("N"), "seed": flags.get("seed")}
        write_json(self.config, {**config, program: flags})

    @contextmanager
    def making(
        self,
        program: str,
        flags: Mapping[str, Any],
        files: Sequence[Path],
        inputs: Sequence[Path] = (),
        first: bool = False,
        sources: Mapping[str, Any] | None = None,
    ) -> Iterator[None]:
        """Enclose the writing of a program's files: an unfinished manifest before, then the record and the manifest.

        No other data program writes into the folder meanwhile.

        Args:
            program, flags, first: see `record`.
            files: what the program writes into this folder.
            inputs: files of this folder that it read; what it writes counts as outdated when they change.
            sources: what else it drew from (pools, templates), whose fingerprints the manifest records.

        Raises:
            InputError: another data program is at work here, or data_config.json is damaged.
        """
        with self.locked():
            read_data_config(self.config)  # refuse a damaged one before anything is written
            made_from = {
                **content_flags(flags),
                "inputs": digests(self.path, inputs),
                "sources": {name: fingerprint(repr(source)) for name, source in (sources or {}).items()},
            }
            manifest = self.path / f"{program}_{MANIFEST_ENDING}"
            begin(manifest, UNIT, made_from)
            yield
            self.record(program, flags, first)
            finish(manifest, UNIT, made_from, files)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the right to write into the folder; see `manifest.locked`."""
        return locked(self.path, "generation")


def content_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags on which the content of a program's files depends, as JSON values."""
    chosen = {key: value for key, value in flags.items() if key not in _PATHS}
    return dict(json.loads(json.dumps(chosen, default=str)))


def digests(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 digests of files, by their path relative to the folder of the manifest that they go into."""
    return {os.path.relpath(path, folder): FileRecord.of(path).sha256 for path in files}


def whole_file(name: str | Path) -> Path:
    """Return the path of a file that is, byte for byte, as a manifest beside it says, or that none lists.

    Raises:
        InputError: the file, or what it was made from, has changed since, or the program that makes it was interrupted.
    """
    path, faults = Path(name), []
    if not path.is_file():
        return path  # whoever reads it says so
    for listing in sorted(path.parent.glob(f"*{MANIFEST_ENDING}")):
        manifest = read_manifest(listing)
        if manifest is None or manifest.unit not in (UNIT, CIRCUIT_UNIT):
            continue
        fault = _fault(path, manifest)
        if fault == "" and path.name in manifest.files:
            return path
        if fault:
            program = listing.name.removesuffix(f"_{MANIFEST_ENDING}").removesuffix(MANIFEST_ENDING)
            remedy = f"run data/{program or 'circuits_data_generation'}.py again"
            faults.append(f"{path}: {fault}; {remedy}, or remove {listing.name} if you changed the file on purpose")
    if faults:
        raise InputError(faults[0])
    return path


def _fault(path: Path, manifest: Manifest) -> str:
    """Say what a manifest has against a file; an empty text if nothing."""
    record = manifest.files.get(path.name)
    if not manifest.finished:
        return "the program that writes it was interrupted"
    if record is None:
        return ""
    if (size := path.stat().st_size) != record.bytes:
        return f"has {size:,} bytes, not {record.bytes:,}"
    if FileRecord.of(path).sha256 != record.sha256:
        return "has other content than when it was written"
    inputs = manifest.made_from.get("inputs")
    for name, digest in inputs.items() if isinstance(inputs, dict) else ():
        source = path.parent / name
        if source.is_file() and FileRecord.of(source).sha256 != digest:
            return f"was made from another {name}"
    return ""


def data_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flags that all data programs share: --N, --seed, --data_dir."""
    parser = program_parser(description, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("--N", type=positive, default=50_000, help="people in all, new and revised together")
    parser.add_argument("--seed", type=natural, default=0, help="the same seed gives the same bytes everywhere")
    parser.add_argument("--data_dir", default="data", help="data go into its folder entities_<N>")
    return parser


def add_pool_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the selection pools: --pool_dir, --people_file, --birth_years."""
    parser.add_argument("--pool_dir", default=shown(SELECTION_POOL), help="folder of the selection pools")
    parser.add_argument(
        "--birth_years", type=natural, nargs=2, default=[1900, 2025], metavar=("FIRST", "LAST"), help="years of birth"
    )
    parser.add_argument(
        "--people_file", help="CSV with a `name` column: real people to use; default the pool's people.json"
    )


def add_template_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sentence templates: --template_dir and --templates."""
    parser.add_argument("--template_dir", default=shown(TEMPLATES), help="folder of the sentence templates")
    parser.add_argument(
        "--templates", type=positive, help="use only so many templates of each attribute, evenly spaced; default all"
    )


def sizes_from(kind: type[Sizes], arguments: argparse.Namespace, **others: int) -> Sizes:
    """Return a dataclass of sizes with the values of the flags that its fields name, and of `others`."""
    names = [field.name for field in fields(kind) if field.name in arguments]  # type: ignore[arg-type]
    return kind(**{name: getattr(arguments, name) for name in names}, **others)
