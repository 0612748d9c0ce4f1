"""Atomic writing, readers whose errors name the line, and bounds on what a file may ask memory for.

Everything the project writes goes through `atomic_write`: a temporary name in the target's folder, then a rename. Under
its final name a file is never partial. Everything it reads raises `InputError` with the file, the line and the reason.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import socket
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any


class InputError(Exception):
    """An input that cannot be used; the message is one sentence with the place and the remedy."""


@dataclass
class Bounds:
    """Sizes beyond which a file is taken for damaged, checked before memory is allocated for what it says.

    Each is a flag of every program (`command_line.program_parser`; `training.arguments` for train.py).
    """

    _argument_group_name = "bounds on files"

    max_layers: int = field(
        default=160, metadata={"help": "Refuse models and graphs larger than so many layers of --max_heads heads."}
    )
    max_heads: int = field(default=160, metadata={"help": "Heads of a layer in the bound that --max_layers gives."})
    max_unpacked_gb: float = field(
        default=4.0, metadata={"help": "Refuse a compressed file that unpacks to more gigabytes."}
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise InputError(f"--{name} {value}: a finite number above 0 is wanted")

    def check_shape(self, where: str, layers: float, heads: float) -> None:
        """Raise InputError for a model whose graph is larger than that of `max_layers` layers of `max_heads` heads."""
        if _edge_scores(layers, heads) > _edge_scores(self.max_layers, self.max_heads):
            raise InputError(
                f"{where}: {layers} layers of {heads} heads are more than {self.max_layers} of {self.max_heads}; if the"
                " file is right, raise --max_layers and --max_heads"
            )

    def check_unpacked(self, where: str | os.PathLike[str], size: int) -> None:
        """Raise InputError for a file that unpacks to more than `max_unpacked_gb`."""
        if size > self.most_unpacked:
            raise InputError(
                f"{where}: unpacks to more than {self.max_unpacked_gb:g} GB; if it is right, raise --max_unpacked_gb"
            )

    @property
    def most_unpacked(self) -> int:
        """The bytes that a compressed file may unpack to."""
        return int(self.max_unpacked_gb * 1e9)


def _edge_scores(layers: float, heads: float) -> float:
    """The entries of a graph's matrix of sources x targets (`engine.graph.Layout`)."""
    return (1 + layers * (heads + 1)) * (1 + layers * (3 * heads + 1))


#: The bounds of this process, which the flags set. 160 layers of 160 heads have 2e9 edge scores; the largest published
#: models, 126 layers of 128 heads and 80 of 232, have half of that.
BOUNDS = Bounds()


def means_folder(name_or_path: str) -> bool:
    """Return whether a model's name can only be a path on this machine, never a name on the hub."""
    return Path(name_or_path).exists() or name_or_path.startswith((".", "/", "outputs/", "models/"))


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, at most 200 characters."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def shortened(value: Any, most: int) -> str:
    """Return how Python writes a value, cut to at most so many characters."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path` for writing; on success it takes the name, on failure it goes.

    Args:
        path: the final name; missing folders are made.
        mode: "w" (UTF-8 text, newlines as written) or "wb".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_partials(path)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(partial, mode, **text) as file:  # type: ignore[call-overload]
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _remove_stale_partials(path: Path) -> None:
    """Remove what a killed process of this machine left of an earlier attempt at the same file."""
    import psutil  # 30 ms, which a program that shows its flags need not wait for

    name = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(socket.gethostname())}-(\d+)\.partial")
    for partial in path.parent.iterdir():
        if (match := name.fullmatch(partial.name)) and not psutil.pid_exists(int(match[1])):
            partial.unlink(missing_ok=True)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes; a name that ends in .gz is decompressed.

    Raises:
        InputError: missing, unreadable, not a whole gzip file, or one that unpacks to more than `BOUNDS` allow.
    """
    path = Path(path)
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            data = file.read(BOUNDS.most_unpacked + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not a file") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    BOUNDS.check_unpacked(path, len(data))
    return data


def read_text(path: str | os.PathLike[str]) -> str:
    """Return a file's UTF-8 text without a byte-order mark; see `read_bytes` for the errors."""
    try:
        return read_bytes(path).decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); convert it, for example with iconv") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON knows")


def _each_key_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(members)
    if len(content) != len(members):
        keys = [key for key, _ in members]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return content


def parse_json(text: str, where: str) -> Any:
    """Parse strict JSON; `where` names the place in the error.

    Raises:
        InputError: not JSON, NaN or Infinity, a key twice in one object (one value would be lost), or half of a
            surrogate pair in a text (no file could hold it).
    """
    try:
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_each_key_once)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return a JSON file's content (a `.gz` name is decompressed)."""
    return parse_json(read_text(path), str(path))


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = 1) -> None:
    """Write JSON atomically; a number that is not finite raises ValueError."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent) + "\n")


def numbered_jsonl(path: str | os.PathLike[str], keys: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON lines file with their line numbers (from 1), for readers that check more than keys.

    Args:
        path: the file; blank lines are skipped.
        keys: keys that every line must have.

    Raises:
        InputError: with file, line number and reason.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise InputError(f"{where}: a JSON object is wanted, not {type(row).__name__}")
        if missing := [key for key in keys if key not in row]:
            raise InputError(f"{where}: no key {', '.join(map(repr, missing))}")
        yield number, row


def read_jsonl(path: str | os.PathLike[str], keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read JSON lines as a list of objects; see `numbered_jsonl` for the arguments and errors."""
    return [row for _, row in numbered_jsonl(path, keys)]


def numbered_csv(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file by the names in its first line, each with the number of the line where it ends.

    Blank lines are skipped.

    Raises:
        InputError: with file, line and reason.
    """
    text = read_text(path)
    if "\0" in text:
        raise InputError(f"{path}: not CSV (it has NUL bytes)")
    limit = csv.field_size_limit(sys.maxsize)  # a field may be a whole article
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        names = reader.fieldnames or []
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"{path}: its first line names the column {twice[0]!r} twice")
        rows = []
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if any(field.strip() for field in row.pop(None, [])):
                raise InputError(f"{where}: more fields than the first line has names; a comma needs quotes around it")
            if None in row.values():
                raise InputError(f"{where}: fewer fields than the first line; was the file cut?")
            rows.append((reader.line_num, dict(row)))
    except csv.Error as error:
        raise InputError(f"{path}: not valid CSV ({error})") from None
    finally:
        csv.field_size_limit(limit)
    yield from rows


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically, in UTF-8."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
