"""Training files become documents: one object with a `text` for every biography (or other piece of text).

JSON lines, JSON (a list of objects, or lines), CSV and plain text (a document per line) are read; a data set of the hub
goes through `datasets`. The column is `text`, or the first one where there is none of that name.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from knowledge_circuits.files import InputError, first_line, parse_json, read_jsonl, read_text

Document = dict[str, Any]

TEXT = "text"
SUFFIXES = (".jsonl", ".json", ".csv", ".txt")


def read_documents(path: str | Path) -> list[Document]:
    """Read a training or validation file by its suffix.

    Args:
        path: a .jsonl, .json, .csv or .txt file.

    Returns:
        One object per document, each with a non-empty string under "text" and whatever else its line said.

    Raises:
        InputError: the file, the line or the document, and what is wrong with it.
    """
    path = Path(path)
    readers = {".jsonl": read_jsonl, ".json": _read_json, ".csv": _read_csv, ".txt": _read_lines}
    if path.suffix not in readers:
        raise InputError(f"{path}: training files end in {', '.join(SUFFIXES)}, not {path.suffix or 'nothing'!r}")
    return _with_text(readers[path.suffix](path), str(path))


def hub_documents(
    name: str, configuration: str | None = None, cache_dir: str | None = None
) -> tuple[list[Document], list[Document] | None]:
    """The documents of a hub data set (or of a folder that `datasets` can load): to train on, and to evaluate on.

    Args:
        name: its name on the hub, or a folder.
        configuration: which of its configurations.
        cache_dir: where it is kept; None: the library's own place.

    Returns:
        The documents of its train split, and those of its validation split or None where it has none.

    Raises:
        InputError: it cannot be loaded, or has no train split.
    """
    import datasets

    try:
        splits = datasets.load_dataset(name, configuration, cache_dir=cache_dir)
    except Exception as error:  # whatever a missing network, name or configuration makes the library raise
        raise InputError(f"the data set {name!r} cannot be loaded: {first_line(error)}") from error
    if "train" not in splits:
        raise InputError(f"the data set {name!r} has no split 'train', only: {', '.join(splits)}")
    train = _with_text(list(splits["train"]), f"data set {name} (train)")
    if "validation" not in splits:
        return train, None
    return train, _with_text(list(splits["validation"]), f"data set {name} (validation)")


def split_off_validation(
    documents: Sequence[Document], percentage: int, seed: int
) -> tuple[list[Document], list[Document]]:
    """Hold out a seeded share of the documents, for data that come without a validation file.

    Returns:
        The documents to train on and the held-out ones, each in their original order.
    """
    if not 0 < percentage < 100:
        raise InputError(f"--validation_split_percentage {percentage}: a number between 1 and 99 is wanted")
    count = round(len(documents) * percentage / 100)
    if not 0 < count < len(documents):
        raise InputError(f"{len(documents)} documents are too few to hold out {percentage}%; give --validation_file")
    held_out = set(random.Random(f"validation {seed}").sample(range(len(documents)), count))
    return (
        [document for index, document in enumerate(documents) if index not in held_out],
        [document for index, document in enumerate(documents) if index in held_out],
    )


def _with_text(rows: Sequence[Document], where: str) -> list[Document]:
    if not rows:
        raise InputError(f"{where}: holds no documents")
    column = TEXT if TEXT in rows[0] else next(iter(rows[0]), TEXT)
    documents = []
    for number, row in enumerate(rows, start=1):
        text = row.get(column)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}, document {number}: no text under {column!r}")
        documents.append(row if column == TEXT else {**row, TEXT: text})
    return documents


def _read_json(path: Path) -> list[Document]:
    """A list of objects, an object whose "data" is one, one object alone, or JSON lines under the name .json."""
    content = read_text(path)
    if not content.lstrip().startswith("["):
        first, _, rest = content.strip().partition("\n")
        if rest and first.rstrip().endswith("}"):
            return read_jsonl(path)
    parsed = parse_json(content, str(path))
    rows = parsed.get("data", [parsed]) if isinstance(parsed, dict) else parsed
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: a list of objects is wanted")
    return rows


def _read_csv(path: Path) -> list[Document]:
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        rows = []
        for row in reader:
            if None in row:
                raise InputError(f"{path}, line {reader.line_num}: more fields than the first line has names")
            rows.append(dict(row))
    except csv.Error as error:
        raise InputError(f"{path}: not valid CSV ({error})") from None
    return rows


def _read_lines(path: Path) -> list[Document]:
    return [{TEXT: line} for line in read_text(path).split("\n") if line.strip()]
