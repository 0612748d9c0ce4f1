"""Documents of any kind and the questions about them, as checked records.

A model reads *documents* while it is trained and answers *questions* at every probe. Both are files of rows
(`documents.read_rows`: JSON lines, JSON or CSV; documents also plain text):

    documents   text, optional: entity, document (an id; default: the row's number)
    questions   question, answer (a text, or a list of accepted ones), entity; optional: id (default: the row's number),
                document (of the text that answers), kind, paraphrases, supports (the sentence that answers), frequency

In a CSV a list is written as a JSON list or with `|` between its entries. Further keys are ignored. A question of the
kind `unmentioned` asks about an entity of which no document tells; it alone needs no answer.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from knowledge_circuits.corpus.documents import placed_texts, read_rows, without_blanks
from knowledge_circuits.files import InputError, parse_json
from knowledge_circuits.records import Digits, Text, shape

#: The kind of a question about an entity of which no document tells, and the frequency of such an entity.
UNMENTIONED = "unmentioned"
LOW, HIGH = "low", "high"

Record = TypeVar("Record", "Document", "Question")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str | int) else value


#: One text or several; a whole number is read as its digits.
TextTuple = Annotated[tuple[Digits, ...], BeforeValidator(_as_tuple)]

_RECORD = ConfigDict(strict=True, extra="ignore", frozen=True, validate_by_name=True)


class Document(BaseModel):
    """One document.

    Attributes:
        text: what is learned.
        entity: whom or what it is about; None where the file does not say.
        document: its id, unique in the file.
    """

    model_config = _RECORD
    text: Text
    entity: Digits | None = None
    document: Digits


class Question(BaseModel):
    """One question about an entity.

    Attributes:
        id: unique in the file.
        answers: the accepted answers; empty only where nothing can be right (kind `unmentioned`).
        entity: whom or what it asks about.
        document: the id of the document that answers.
        kind: any label; the generator's are factual, time-sensitive, temporal and unmentioned.
        paraphrases: the same question in other words.
        supports: the sentence of a document that answers.
        frequency: how often documents tell of the entity, any label; see `entity_frequency`.
    """

    model_config = _RECORD
    id: Digits
    question: Text
    answers: TextTuple = Field((), validation_alias="answer")
    entity: Digits
    document: Digits | None = None
    kind: Text | None = None
    paraphrases: TextTuple = ()
    supports: Text | None = None
    frequency: Digits | None = None

    def to_row(self) -> dict[str, Any]:
        """Return the question as a line of a file, without keys that hold nothing."""
        row = {"answer" if key == "answers" else key: value for key, value in self.model_dump().items()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in row.items() if value}


def read_documents(path: str | Path, text_column: str | None = None) -> list[Document]:
    """Read documents from a file or folder; see `documents.read_text_rows`.

    Raises:
        InputError: a bad file or row, with its place; no documents; or an id twice.
    """
    records = []
    for number, (where, row) in enumerate(placed_texts(read_rows(path), str(path), text_column), start=1):
        records.append((where, shape(Document).check({"document": str(number), **without_blanks(row)}, where)))
    return _each_id_once(records, "document")


def read_questions(path: str | Path) -> list[Question]:
    """Read questions from a .jsonl, .json or .csv file.

    Raises:
        InputError: a bad file or row, with its place; a question without an answer; no questions; or an id twice.
    """
    if Path(path).suffix == ".txt":
        raise InputError(f"{path}: questions need the columns question, answer and entity; give .jsonl, .json or .csv")
    records = []
    for number, (where, row) in enumerate(read_rows(path), start=1):
        content = {"id": str(number), **without_blanks(row)}
        if Path(path).suffix == ".csv":
            content |= {key: _split_list(content[key], where) for key in ("answer", "paraphrases") if key in content}
        question: Question = shape(Question).check(content, where)
        if not question.answers and question.kind != UNMENTIONED:
            raise InputError(f"{where}: {question.question!r} has no answer; only the kind {UNMENTIONED!r} has none")
        records.append((where, question))
    if not records:
        raise InputError(f"{path}: holds no questions")
    return _each_id_once(records, "id")


def holds_questions(path: str | Path) -> bool:
    """Return whether a file has the column `question`, and so holds questions rather than people."""
    rows = read_rows(path) if Path(path).suffix in (".jsonl", ".json", ".csv") else []
    return bool(rows) and "question" in rows[0][1]


def entity_frequency(documents: Sequence[Document], questions: Sequence[Question]) -> dict[str, str]:
    """Return each questioned entity's frequency label.

    A label that the questions give is taken. Of the others an entity with no document is `unmentioned`; one with more
    documents than the median of the entities that have any is `high`, every other one `low`.

    Raises:
        InputError: two questions give one entity different labels.
    """
    counts = Counter(document.entity for document in documents if document.entity is not None)
    median = statistics.median(counts.values()) if counts else 0
    labels: dict[str, str] = {}
    given: dict[str, str] = {}
    for question in questions:
        entity, label = question.entity, question.frequency
        if label is not None and given.setdefault(entity, label) != label:
            raise InputError(f"the questions about {entity!r} give the frequencies {given[entity]!r} and {label!r}")
        count = counts[entity]
        labels[entity] = given.get(entity) or (UNMENTIONED if not count else HIGH if count > median else LOW)
    return labels


def _split_list(cell: str, where: str) -> Any:
    """Return the entries of a CSV's cell: a JSON list, or texts with `|` between them."""
    return parse_json(cell, where) if cell.lstrip().startswith("[") else [entry.strip() for entry in cell.split("|")]


def _each_id_once(records: Sequence[tuple[str, Record]], key: str) -> list[Record]:
    """Return the records; an id that stands twice is an InputError with both lines."""
    first_seen: dict[str, str] = {}
    for where, record in records:
        name = getattr(record, key)
        if name in first_seen:
            raise InputError(f"{where}: the {key} {name!r} already stands in {first_seen[name]}")
        first_seen[name] = where
    return [record for _, record in records]
