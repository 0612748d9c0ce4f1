"""The JSON records that several parts of the project share, and the readers that check them.

A record is a TypedDict: its rows are plain dictionaries, and pydantic checks their values while the file is read. A
wrong value is one sentence with the file, the line, the key, what the value must be and what it is. Keys that a record
does not name are kept unchecked. Records of one part only (a person, a row of circuit data, a skill's example) stand
with that part and use the field types of this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict

from knowledge_circuits.files import InputError, numbered_jsonl, read_json, shortened
from knowledge_circuits.study import Attribute, KnowledgeType

#: More biographies of one person than any corpus has; beyond it a frequency is taken for a mistake.
LARGEST_FREQUENCY = 1_000_000

#: Integers are integers, texts are texts, numbers are finite; other keys stay.
RECORD = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must be a text that is not empty")
    return text


def number_of_digits(value: Any) -> Any:
    """Return the number that a text of digits gives; anything else as it is."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()) else value


def _text_of_number(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Count = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
Text = Annotated[str, Field(strict=True), AfterValidator(_not_blank)]
Texts = Annotated[list[Text], Field(min_length=1)]
#: A day or a year, given as its text or as an integer.
Digits = Annotated[Text, BeforeValidator(_text_of_number)]
Share = Annotated[float, Field(ge=0, le=1)]
#: A probability; rounding may lift 1 a little.
Probability = Annotated[float, Field(ge=0, le=1.0001)]
#: Files give a frequency as an integer or as its digits.
Frequency = Annotated[int, BeforeValidator(number_of_digits), Field(strict=True, ge=1, le=LARGEST_FREQUENCY)]
#: An enum's member given by its name, and (in rows that become tables) that name.
Type = Annotated[KnowledgeType, Field(strict=False)]
TypeName = Annotated[KnowledgeType, Field(strict=False), AfterValidator(str)]
AttributeName = Annotated[Attribute, Field(strict=False), AfterValidator(str)]


class Record(TypedDict):
    """A record without keys: the base of all, which gives them the configuration `RECORD`."""

    __pydantic_config__ = RECORD  # type: ignore[misc]


class TextRow(Record):
    """A line of a corpus."""

    text: str


class Evaluation(Record):
    """A line of evaluations.jsonl."""

    step: Count
    epoch: float
    loss: NotRequired[float | None]
    accuracy: NotRequired[float | None]
    new_first_token_attribute_accuracy: NotRequired[float | None]
    revised_first_token_attribute_accuracy: NotRequired[float | None]


class LoggedState(Record):
    """What tables need of a checkpoint's trainer_state.json."""

    epoch: NotRequired[float | None]
    global_step: NotRequired[Count]
    log_history: NotRequired[list[dict[str, Any]]]


class TrainerStateFile(BaseModel):
    """What training needs of a checkpoint's trainer_state.json."""

    model_config = RECORD
    global_step: Count = 0
    stateful_callbacks: dict[str, Any] = {}


class LoggedLoss(Record):
    """An entry of the log history that tells a training loss."""

    step: Count
    epoch: float
    loss: float
    learning_rate: NotRequired[float | None]


class Prediction(Record):
    """A line of a checkpoint's prediction.jsonl."""

    full_name: Text
    attribute: str
    type: TypeName
    frequency: Frequency
    correct: bool
    first_token_correct: NotRequired[bool]


class FactPrediction(Record):
    """A line of a checkpoint's predictions about facts of one's own."""

    group: Text
    prompt: Text
    correct: bool
    first_token_correct: bool


class CircuitResults(Record):
    """A circuit's results.json."""

    clean_baseline_performance: float
    corrupted_baseline_performance: float
    circuit_performance: float
    edges_num: Count
    nodes_num: Count
    edge_entropy: float | None
    faithfulness: float | None
    prompts: NotRequired[Count]
    clean_minus_corrupted_low: NotRequired[float | None]
    clean_minus_corrupted_high: NotRequired[float | None]
    chance_hit10: NotRequired[float | None]
    edges_for_90: NotRequired[float | None]
    random_faithfulness: NotRequired[float | None]
    random_hit10: NotRequired[float | None]


class CircuitPrediction(Record):
    """A line of a circuit's standalone predictions."""

    token_prob: float
    token_rank: Count


class _Probed(Record):
    step: Count
    epoch: Annotated[float, Field(ge=0)]


class ProbedFact(_Probed):
    """A line of knowledge_dynamics.jsonl about one attribute of one person."""

    kind: Literal["fact"]
    full_name: Text
    attribute: AttributeName
    type: TypeName
    frequency: Frequency
    correct: bool
    token_prob: Probability
    token_rank: Count
    answer_log_prob: float


class ProbedSkill(_Probed):
    """A line of knowledge_dynamics.jsonl about one skill."""

    kind: Literal["skill"]
    skill: Text
    accuracy: Share
    examples: Count


class ProbedText(_Probed):
    """A line of knowledge_dynamics.jsonl about one held-out text."""

    kind: Literal["text"]
    text: Text
    perplexity: Annotated[float, Field(ge=0)]


ProbeRecord = ProbedFact | ProbedSkill | ProbedText


class ProbedQuestion(Record):
    """One question of a question probe."""

    id: Text
    entity: Text
    kind: str | None
    frequency: Text
    output: str
    recall: Share
    exact: bool
    paraphrase_recalls: list[Share]
    paraphrase_outputs: NotRequired[list[str]]
    hallucination: NotRequired[Literal["none", "borrowed", "invented"]]


class QuestionProbeRecord(_Probed):
    """A line of question_probes.jsonl: one probe of all questions."""

    learned_threshold: Share
    loss: float
    perplexity: float
    skills: dict[str, Share]
    texts: dict[str, float]
    documents_seen: Count
    seconds: Annotated[float, Field(ge=0)]
    probe_seconds: Annotated[float, Field(ge=0)]
    questions: list[ProbedQuestion]


class Shape:
    """The check of one kind of record: a TypedDict, a dataclass, a pydantic model or an annotated type."""

    def __init__(self, kind: Any) -> None:
        self._adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def check(self, value: Any, where: str) -> Any:
        """Return the value as this kind of record.

        Raises:
            InputError: a key is missing or a value is wrong; `where` names the file and line.
        """
        try:
            record = self._adapter.validate_python(value)
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error)}") from None
        if isinstance(record, dict):  # in the order of the file: what is written again is the same, byte for byte
            return {key: record[key] for key in value}
        return record

    def numbered(self, path: str | Path) -> Iterator[tuple[int, Any]]:
        """Read a JSON lines file: each line's number (from 1) and record."""
        for number, row in numbered_jsonl(path):
            yield number, self.check(row, f"{path}, line {number}")

    def lines(self, path: str | Path) -> list[Any]:
        """Read a JSON lines file."""
        return [row for _, row in self.numbered(path)]

    def optional_lines(self, path: Path) -> list[Any]:
        """Read a JSON lines file; [] where there is none."""
        return self.lines(path) if path.exists() else []

    def file(self, path: str | Path) -> Any:
        """Read a JSON file that holds one record."""
        return self.check(read_json(path), str(path))


#: The check of a kind of record, made once.
shape: Callable[[Any], Shape] = cache(Shape)

#: Lines of knowledge_dynamics.jsonl, told apart by their `kind`.
PROBE_RECORD: Annotated[Any, "a type"] = Annotated[ProbeRecord, Discriminator("kind")]


def explain(error: ValidationError) -> str:
    """Say in one clause what the first wrong value is and must be."""
    first = error.errors(include_url=False)[0]
    kind, value = first["type"], first["input"]
    key = next((part for part in reversed(first["loc"]) if isinstance(part, str)), None)
    entry = f"entry {first['loc'][-1]} " if first["loc"] and isinstance(first["loc"][-1], int) else ""
    if kind == "missing":
        return f"no key {key!r}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = str(first["ctx"]["discriminator"]).strip("'")
        if kind == "union_tag_not_found":
            return f"no key {key!r}"
        return f"{key!r} must be one of {first['ctx']['expected_tags']}, not {shortened(first['ctx']['tag'], 60)}"
    if key is None and kind in ("dict_type", "model_type", "dataclass_type", "model_attributes_type"):
        return f"a JSON object is wanted, not {type(value).__name__}"
    message = first["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").replace("should have", "must have")
    message = message.replace("a valid integer", "a whole number").replace("a valid boolean", "true or false")
    message = message.replace("a valid string", "a text").replace("valid number", "number")
    message = message.replace("a valid dictionary", "a JSON object")
    message = message.replace("List must", "must").replace("a valid list", "a list")
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return f"{repr(key) + ' ' if key else ''}{entry}{message}, not {shortened(value, 60)}"
