"""Files of rows, and training files as documents: one row with a `text` for every biography (or other piece of text).

JSON lines, JSON (a list of objects, or lines), CSV, plain text (a row per line) and folders of text files (a row per
file) are read; a data set of the hub goes through `datasets`. The text stands under `text`, under the only key there
is, or under `--text_column`. `questions` reads the same files as checked records.

The readers of files are the project's, not those of `datasets`: theirs drop the text "NA" of a CSV, name neither file
nor line in errors, and take 3.2 s instead of 0.7 s for 50,000 biographies.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from knowledge_circuits.corpus.folder import whole_file
from knowledge_circuits.files import InputError, first_line, numbered_csv, numbered_jsonl, parse_json, read_text

Row = dict[str, Any]

TEXT = "text"
SUFFIXES = (".jsonl", ".json", ".csv", ".txt")


def read_text_rows(path: str | Path, text_column: str | None = None) -> list[Row]:
    """Read a training or validation file, or a folder of text files; see `read_rows` for the files and errors.

    Args:
        text_column: the key or column of the text; None: "text", or the only one there is.

    Returns:
        One object per document, each with a non-empty string under "text" and whatever else its line said.

    Raises:
        InputError: the file, the line or the document, and what is wrong with it; or a manifest says that it was cut
            or exchanged.
    """
    return [row for _, row in placed_texts(read_rows(path), str(path), text_column)]


def read_rows(path: str | Path) -> list[tuple[str, Row]]:
    """Read a file of rows by its suffix.

    Args:
        path: a .jsonl, .json, .csv or .txt file, a line of which is a row with the key "text"; or a folder of .txt
            files, each one document: its entity is named by the subfolder in which it lies, else by the file.

    Returns:
        Each row with its place (file and line, or the item's number in a JSON list), for errors. Values of a CSV are
        texts.

    Raises:
        InputError: the file, the line and what is wrong with it; or a manifest says that it was cut or exchanged.
    """
    if Path(path).is_dir():
        return _folder(Path(path))
    path = whole_file(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix == ".json":
        return _json_list(path)
    readers = {".jsonl": numbered_jsonl, ".csv": numbered_csv, ".txt": _text_lines}
    if path.suffix not in readers:
        raise InputError(f"{path}: data files end in {', '.join(SUFFIXES)}, not {path.suffix or 'nothing'!r}")
    return _placed(path, "line", readers[path.suffix](path))


def hub_documents(
    name: str, configuration: str | None = None, cache_dir: str | None = None, text_column: str | None = None
) -> tuple[list[Row], list[Row] | None]:
    """Return the documents of a hub data set (or a folder that `datasets` loads) for training and for evaluation.

    Args:
        cache_dir: folder of hub data sets; None: the library's default.
        text_column: see `read_text_rows`.

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

    def documents(split: str) -> list[Row]:
        where = f"data set {name} ({split})"
        rows = _placed(where, "document", enumerate(splits[split], start=1))
        return [row for _, row in placed_texts(rows, where, text_column)]

    return documents("train"), documents("validation") if "validation" in splits else None


def split_off_validation(documents: Sequence[Row], percentage: int, seed: int) -> tuple[list[Row], list[Row]]:
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


def placed_texts(rows: Sequence[tuple[str, Row]], file: str, text_column: str | None) -> list[tuple[str, Row]]:
    """Return rows with their places, each with its text under "text"; see `read_text_rows`."""
    if not rows:
        raise InputError(f"{file}: holds no documents")
    columns = list(rows[0][1])
    column = text_column or (columns[0] if len(columns) == 1 else TEXT)
    if column not in columns:
        remedy = f"--text_column {text_column!r} is none of" if text_column else "name one with --text_column:"
        raise InputError(f"{file}: no column {column!r}; {remedy} {', '.join(map(str, columns))}")
    for where, row in rows:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise InputError(f"{where}: no text under {column!r}")
    return [(where, row if column == TEXT else {**row, TEXT: row[column]}) for where, row in rows]


def without_blanks(row: Row) -> Row:
    """Return the row without keys whose value is null or a blank text (an empty cell of a CSV)."""
    return {key: value for key, value in row.items() if value is not None and str(value).strip()}


def _folder(folder: Path) -> list[tuple[str, Row]]:
    """Return a row for each text file; underscores in a name stand for spaces."""
    paths = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    if not paths:
        raise InputError(f"{folder}: no .txt files in this folder")
    rows: list[tuple[str, Row]] = []
    for path in paths:
        name = path.relative_to(folder).with_suffix("")
        entity = name.parts[0].replace("_", " ")
        rows.append((str(path), {TEXT: read_text(path).strip(), "entity": entity, "document": name.as_posix()}))
    return rows


def _placed(path: Path | str, unit: str, rows: Iterable[tuple[int, Row]]) -> list[tuple[str, Row]]:
    return [(f"{path}, {unit} {number}", row) for number, row in rows]


def _json_list(path: Path) -> list[tuple[str, Row]]:
    """Return a list of objects, an object whose "data" is one, one object alone, or JSON lines under the name .json."""
    content = read_text(path)
    if not content.lstrip().startswith("["):
        first, _, rest = content.strip().partition("\n")
        if rest and first.rstrip().endswith("}"):
            return _placed(path, "line", numbered_jsonl(path))
    parsed = parse_json(content, str(path))
    rows = parsed.get("data", [parsed]) if isinstance(parsed, dict) else parsed
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: a list of objects is wanted")
    return _placed(path, "item", enumerate(rows, start=1))


def _text_lines(path: Path) -> Iterator[tuple[int, Row]]:
    lines = enumerate(read_text(path).split("\n"), start=1)
    return ((number, {TEXT: line.removesuffix("\r")}) for number, line in lines if line.strip())
