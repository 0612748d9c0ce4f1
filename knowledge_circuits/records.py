"""What the values of a JSON record must be: checked where a file is read, so that nothing later meets a wrong one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from knowledge_circuits.files import InputError, numbered_jsonl, read_json
from knowledge_circuits.study import KnowledgeType

#: More biographies of one person than any corpus has; beyond it a frequency is taken for a mistake.
LARGEST_FREQUENCY = 1_000_000


class Kind(StrEnum):
    """What a value is; the text completes "... is not"."""

    NUMBER = "a finite number"
    COUNT = "a whole number of at least 0"
    FLAG = "true or false"
    TEXT = "a text"


@dataclass(frozen=True)
class Field:
    """One key of a record.

    Attributes:
        key: its name.
        kind: what its value must be.
        required: whether every record has it.
        nullable: whether null is a value too.
    """

    key: str
    kind: Kind
    required: bool = True
    nullable: bool = False


def check_record(record: Mapping[str, Any], fields: Sequence[Field], where: str) -> None:
    """Check a record's values.

    Raises:
        InputError: a key is missing or its value is not of its kind; `where` names the file and line.
    """
    for field in fields:
        if field.key not in record:
            if field.required:
                raise InputError(f"{where}: no key {field.key!r}")
            continue
        value = record[field.key]
        if not (value is None and field.nullable) and not _is(value, field.kind):
            raise InputError(f"{where}: {field.key!r} is {_shown(value)}, which is not {field.kind}")


def checked_jsonl(path: str | Path, fields: Sequence[Field]) -> Iterator[dict[str, Any]]:
    """The records of a JSON lines file, each checked; see `check_record`."""
    for number, record in numbered_jsonl(path):
        check_record(record, fields, f"{path}, line {number}")
        yield record


def checked_json(path: str | Path, fields: Sequence[Field]) -> dict[str, Any]:
    """The record of a JSON file, checked; see `check_record`."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path}: a JSON object is wanted, not {type(record).__name__}")
    check_record(record, fields, str(path))
    return record


def _is(value: Any, kind: Kind) -> bool:
    if kind is Kind.TEXT:
        return isinstance(value, str)
    if kind is Kind.FLAG:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind is Kind.COUNT:
        return isinstance(value, int) and 0 <= value < 2**63
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) < 2**63


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_frequency(value: Any, where: str) -> int:
    """A frequency given as an integer or as its text.

    Raises:
        InputError: neither, or not between 1 and `LARGEST_FREQUENCY`.
    """
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_FREQUENCY:
        raise InputError(f"{where}: 'frequency' must be an integer from 1 to {LARGEST_FREQUENCY:,}, not {value!r}")
    return value


def parse_type(value: Any, where: str) -> KnowledgeType:
    """A knowledge type given by its name.

    Raises:
        InputError: not one of them.
    """
    try:
        return KnowledgeType(value)
    except ValueError:
        valid = ", ".join(KnowledgeType)
        raise InputError(f"{where}: 'type' must be one of {valid}, not {value!r}") from None
