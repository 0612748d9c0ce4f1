"""Damage to files, for tests that hold a program to one rule.

Whatever happens to one of its files, a program ends in one of two ways: with one sentence (`InputError`), or with the
results of an undisturbed run. A traceback is a failure, and so are other numbers without a word.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from knowledge_circuits.files import InputError


@dataclass(frozen=True)
class Damage:
    """One way to damage one file."""

    name: str
    apply: Callable[[Path], None]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def _cut_at_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))


def _other_types(path: Path) -> None:
    content = json.loads(
        path.read_text(encoding="utf-8").splitlines()[0] if path.suffix == ".jsonl" else path.read_text()
    )
    changed = {key: [value] for key, value in content.items()} if isinstance(content, dict) else {"a": content}
    path.write_text(json.dumps(changed) + "\n", encoding="utf-8")


REMOVED = Damage("removed", Path.unlink)
EMPTY = Damage("emptied", lambda path: path.write_bytes(b"") and None)
CUT = Damage("cut", _cut)
FLIPPED = Damage("one bit changed", _flip)
SHORTENED = Damage("cut at a line", _cut_at_a_line)
OTHER_TYPES = Damage("of other types", _other_types)
A_LIST = Damage("a list", lambda path: path.write_text("[1]\n") and None)


def damages(path: Path) -> Iterator[Damage]:
    """The ways in which a file can be damaged."""
    yield from (REMOVED, EMPTY, CUT, FLIPPED)
    if path.suffix in (".json", ".jsonl"):
        yield from (OTHER_TYPES, A_LIST)
    if path.suffix == ".jsonl":
        yield SHORTENED


def cases(folder: Path, wanted: Callable[[Path], bool], sample: int | None = None) -> list[tuple[str, Damage]]:
    """Every file below a folder with each damage, or a seeded sample of these pairs."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and wanted(path))
    pairs = [(str(path.relative_to(folder)), damage) for path in files for damage in damages(path)]
    return pairs if sample is None else random.Random(0).sample(pairs, min(sample, len(pairs)))


def sentence_of(program: Callable[[], object]) -> str | None:
    """Run a program; the sentence it ended with, None if it ended well. Any other error is a failure of the test."""
    try:
        program()
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
        return str(error)
    return None
