"""Where generated data lie, and the record of how they came about.

data/entities_<N>/
    new.jsonl  revised.jsonl                 people and their facts          datapoint_generation.py
    train.jsonl  validation.jsonl            biographies                     text_data_generation.py
    test.jsonl                               the people who are asked about  query_data_generation.py
    circuit_<n>/<model>/<task>.jsonl         clean and corrupted prompts     circuits_data_generation.py
    forget_new.jsonl  forget_conflict.jsonl  replay.jsonl                    forget_data_generation.py
    prior.jsonl  prior_held_out.jsonl        nano's past                     prior_data_generation.py
    untaught.jsonl  tokenizer.jsonl          of a mirrored set               mirrored_data_generation.py
    data_config.json                         N, seed, and the flags of every program that wrote here
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowledge_circuits.command_line import HelpFormatter, natural, positive
from knowledge_circuits.files import InputError, read_json, write_json
from knowledge_circuits.manifest import MANIFEST_ENDING, Status, check, finish
from knowledge_circuits.paths import SELECTION_POOL, TEMPLATES, check_name, shown
from knowledge_circuits.study import Attribute

#: What a program's flags are not: part of the content.
_PLACES = ("data_dir", "output_dir", "overwrite")


@dataclass(frozen=True)
class DataFolder:
    """The files of one generated set of N people."""

    path: Path

    @classmethod
    def of(cls, data_dir: str, n: int) -> DataFolder:
        """The folder of N people under `data_dir`."""
        return cls(Path(data_dir) / f"entities_{n}")

    @property
    def new(self) -> Path:
        return self.path / "new.jsonl"

    @property
    def revised(self) -> Path:
        return self.path / "revised.jsonl"

    @property
    def train(self) -> Path:
        return self.path / "train.jsonl"

    @property
    def validation(self) -> Path:
        return self.path / "validation.jsonl"

    @property
    def test(self) -> Path:
        return self.path / "test.jsonl"

    @property
    def forget_new(self) -> Path:
        return self.path / "forget_new.jsonl"

    @property
    def forget_conflict(self) -> Path:
        return self.path / "forget_conflict.jsonl"

    @property
    def replay(self) -> Path:
        return self.path / "replay.jsonl"

    @property
    def prior(self) -> Path:
        return self.path / "prior.jsonl"

    @property
    def prior_held_out(self) -> Path:
        return self.path / "prior_held_out.jsonl"

    @property
    def untaught(self) -> Path:
        return self.path / "untaught.jsonl"

    @property
    def tokenizer_texts(self) -> Path:
        return self.path / "tokenizer.jsonl"

    @property
    def config(self) -> Path:
        return self.path / "data_config.json"

    def circuit(self, circuit_n: int, model: str, task: Attribute) -> Path:
        """The pairs of one task under one model's tokenizer."""
        check_name(model, "--model")
        return self.path / f"circuit_{circuit_n}" / model / f"{task}.jsonl"

    def require(self, path: Path, program: str) -> Path:
        """Return `path` if it is there and as the program wrote it.

        Raises:
            InputError: it is missing, or a file of that program has another size; the message names the program.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such file; run data/{program} with the same --N and --data_dir first")
        manifest = self.manifest(program.removesuffix(".py"))
        state = check(manifest)
        if state.status is Status.DAMAGED:
            raise InputError(
                f"{path.parent}: {state.detail}; run data/{program} again, or remove {manifest.name} if you changed "
                "the file on purpose"
            )
        return path

    def manifest(self, program: str) -> Path:
        """Return the manifest of what a program wrote into this folder."""
        return self.path / f"{program}_{MANIFEST_ENDING}"

    def record(self, program: str, flags: Mapping[str, Any], files: Sequence[Path] = (), first: bool = False) -> None:
        """Put a program's flags into data_config.json, beside those of the others, and write the files' manifest last.

        Args:
            program: the program's name, under which its flags stand.
            flags: N, seed and everything else that the content depends on; values that are not JSON become text.
            files: what the program wrote into this folder.
            first: the program makes the people, whose N and seed stand at the top; what other programs recorded goes
                if these flags differ from the recorded ones, because it was made from other people.
        """
        flags = {key: value for key, value in flags.items() if key not in _PLACES}
        flags = json.loads(json.dumps(flags, default=str))
        config: dict[str, Any] = read_json(self.config) if self.config.is_file() else {}
        if not isinstance(config, dict):
            raise InputError(f"{self.config}: a JSON object is wanted; remove the file and generate the data again")
        if first and config.get(program) != flags:
            config = {"N": flags.get("N"), "seed": flags.get("seed")}
        write_json(self.config, {**config, program: flags})
        if files:
            finish(self.manifest(program), "data", flags, files)


def data_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags that all data programs share: --N, --seed, --data_dir."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)
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
