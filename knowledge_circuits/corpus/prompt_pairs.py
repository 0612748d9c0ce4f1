"""Clean and corrupted prompts: the input of circuit discovery.

A pair asks the same question about two people whose names have the same number of tokens, so that a difference
between the two runs is a difference of people and not of positions. The clean label is the first token of the clean
person's value, the corrupted label that of the other one's; the metric of attribution is their logit difference.
Pairs whose labels share the first token stay (their metric is 0) and are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict

from knowledge_circuits.corpus.folder import whole_file
from knowledge_circuits.corpus.people import Person, Stream, sample_groups, stream
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.files import InputError
from knowledge_circuits.models.tokenization import (
    encode_prompt,
    label_text,
    label_token_id,
    start_token_id,
    subject_positions,
    value_token_ids,
)
from knowledge_circuits.records import RECORD, Count, Frequency, Text, TypeName, shape
from knowledge_circuits.study import RARE_LENGTH, Attribute, Band, Group, task_file


class CircuitRow(TypedDict):
    """A line of circuit data as it stands in the file."""

    __pydantic_config__ = RECORD  # type: ignore[misc]
    clean_subject: Text
    clean_label: Text
    clean_label_idx: Count
    corrupted_subject: Text
    corrupted_label: Text
    corrupted_label_idx: Count
    frequency: Frequency
    type: TypeName


@dataclass(frozen=True)
class CircuitPair:
    """One line of circuit data: a person, another one of the same name length, and the first tokens of their values.

    Attributes:
        clean: the person of the clean prompt; gives frequency and type.
        corrupted: the person of the corrupted prompt.
    """

    clean: Person
    clean_label: str
    clean_label_idx: int
    corrupted: Person
    corrupted_label: str
    corrupted_label_idx: int

    def to_row(self) -> dict[str, Any]:
        """Return the pair as a JSON object."""
        return {
            "clean_subject": self.clean.full_name,
            "clean_label": self.clean_label,
            "clean_label_idx": self.clean_label_idx,
            "corrupted_subject": self.corrupted.full_name,
            "corrupted_label": self.corrupted_label,
            "corrupted_label_idx": self.corrupted_label_idx,
            "frequency": self.clean.frequency,
            "type": self.clean.type.value,
        }


@dataclass(frozen=True)
class CircuitData:
    """The pairs of one task, and what was left out of them.

    Attributes:
        pairs: in the order of the test sample.
        rare_lengths: per name length in tokens that too few subjects have, how many were dropped.
        uneven: pairs dropped because the whole prompts differ in length though the names do not.
        same_label: pairs that stay though their labels share the first token.
    """

    task: Attribute
    pairs: tuple[CircuitPair, ...]
    rare_lengths: dict[int, int]
    uneven: int
    same_label: int


def circuit_data(
    people: Sequence[Person],
    task: Attribute,
    tokenizer: PreTrainedTokenizerBase,
    circuit_n: int,
    seed: int,
    rare_length: int = RARE_LENGTH,
) -> CircuitData:
    """Pair the people of a test sample for one task.

    Args:
        people: the test sample; clean and corrupted subjects both come from it.
        circuit_n: pairs of each type and band, at most.
        rare_length: a name length with so many subjects or fewer is dropped.

    Raises:
        InputError: the tokenizer has neither BOS nor EOS, or a value adds no token to its prompt.
    """
    start_token_id(tokenizer)
    lengths = _token_counts(tokenizer, {person: person.full_name for person in people})
    by_length: dict[int, list[Person]] = {}
    for person in people:
        by_length.setdefault(lengths[person], []).append(person)
    rare = {length: len(same) for length, same in sorted(by_length.items()) if len(same) <= rare_length}
    candidates = [person for person in people if lengths[person] not in rare]
    chosen = sample_groups(candidates, circuit_n, stream(seed, Stream.CIRCUIT_PEOPLE))
    partners = _draw_partners(chosen, lengths, by_length, seed)

    prompt_lengths = _token_counts(tokenizer, {person: task.prompt(person.full_name) for person in people})
    couples = zip(chosen, partners, strict=True)
    even = [(one, other) for one, other in couples if prompt_lengths[one] == prompt_lengths[other]]

    @cache
    def label(person: Person) -> tuple[str, int]:
        value = person.value(task)
        token = label_token_id(tokenizer, task.prompt(person.full_name), value)
        return label_text(tokenizer, value), token

    pairs = tuple(
        CircuitPair(clean, *label(clean), corrupted, *label(corrupted))
        for clean, corrupted in tqdm(even, desc=f"{task} pairs", delay=1, leave=False)
    )
    same_label = sum(pair.clean_label_idx == pair.corrupted_label_idx for pair in pairs)
    return CircuitData(task, pairs, rare, len(chosen) - len(even), same_label)


def _token_counts(tokenizer: PreTrainedTokenizerBase, texts: Mapping[Person, str]) -> dict[Person, int]:
    """Return how many tokens each text has where it opens a prompt, special tokens not counted."""
    ids = tokenizer(list(texts.values()), add_special_tokens=False)["input_ids"] if texts else []
    return dict(zip(texts, map(len, ids), strict=True))


def _draw_partners(
    chosen: Sequence[Person], lengths: dict[Person, int], by_length: dict[int, list[Person]], seed: int
) -> list[Person]:
    """Draw for each person another one whose name has as many tokens, the same for every task."""
    generator = stream(seed, Stream.CORRUPTION)
    position = {person: index for same in by_length.values() for index, person in enumerate(same)}
    partners = []
    for person in chosen:
        same = by_length[lengths[person]]
        shift = int(generator.integers(1, len(same)))
        partners.append(same[(position[person] + shift) % len(same)])
    return partners


def read_circuit_data(path: str, task: Attribute) -> list[dict[str, Any]]:
    """Return the rows of a circuit data file (`circuit_<n>/<model>/<task>.jsonl`); `{task}` in `path` is the task.

    Raises:
        InputError: with file, line and reason.
    """
    return shape(CircuitRow).lines(whole_file(task_file(path, task)))


def in_group(row: Mapping[str, Any], group: Group) -> bool:
    """Return whether a row's type and frequency are the group's."""
    return row["type"] == group.type and Band.of(int(row["frequency"])) == group.band


def group_pairs(
    rows: Sequence[dict[str, Any]],
    group: Group,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None = None,
    where: str = "the circuit data",
) -> PromptPairs:
    """Return the prompt pairs of one group, with their token spans (`prompt_spans`) and whole answers.

    Args:
        rows: of the group's task, as `read_circuit_data` gives them.
        limit: at most this many, from the first.
        where: what errors call the data.

    Raises:
        InputError: a clean and a corrupted prompt differ in length, or a label id is not the tokenizer's.
    """
    chosen = [(number, row) for number, row in enumerate(rows, start=1) if in_group(row, group)][:limit]
    clean, corrupted, labels, spans, answers = [], [], [], [], []
    for number, row in chosen:
        prompts = [group.task.prompt(row[f"{side}_subject"]) for side in ("clean", "corrupted")]
        ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        if len(ids[0]) != len(ids[1]):
            raise InputError(
                f"{where}, item {number}: the clean prompt has {len(ids[0])} tokens and the corrupted one {len(ids[1])}"
                " under this tokenizer; make the data with the model's own"
            )
        pair = (row["clean_label_idx"], row["corrupted_label_idx"])
        tokens = []
        for side, prompt, label in zip(("clean", "corrupted"), prompts, pair, strict=True):
            if label >= len(tokenizer):
                raise InputError(
                    f"{where}, item {number}: label id {label} is outside the tokenizer's {len(tokenizer)} tokens; make"
                    " the data with the model's own"
                )
            text = row[f"{side}_label"]
            tokens.append(value_token_ids(tokenizer, prompt, text.removeprefix(" ")))
            if label != tokens[-1][0]:
                raise InputError(
                    f"{where}, item {number}: token {label} ({tokenizer.decode([label])!r}) is not the first of"
                    f" {text!r} under this tokenizer; make the data with the model's own"
                )
        clean.append(ids[0])
        corrupted.append(ids[1])
        labels.append(pair)
        answers.append(tokens[0])
        spans.append(prompt_spans(subject_positions(tokenizer, row["clean_subject"], prompts[0]), len(ids[0])))
    return PromptPairs(clean, corrupted, labels, [row for _, row in chosen], spans, answers)


#: The spans of a biography's query, in the order of a prompt; `prompt_spans` names them.
SPANS = ("start token", "subject", "subject's last token", "relation", "last token")


def prompt_spans(subject: Sequence[int], length: int) -> dict[str, tuple[int, int]]:
    """Return the spans of a query of `length` tokens: name -> (start, stop); spans without a token are left out.

    Args:
        subject: the subject's positions, after the start token and before the last token.
    """
    first, end = subject[0], min(subject[-1] + 1, length - 1)
    bounds = (0, first, end - 1, end, length - 1, length)
    named = zip(SPANS, pairwise(bounds), strict=True)
    return {name: span for name, span in named if span[0] < span[1]}
