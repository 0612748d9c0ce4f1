"""Prompt pairs about facts of one's own: a file of prompts with answers, in groups that its columns name.

A row (CSV, JSON or JSON lines) is a clean and a corrupted prompt and their answers, in words or as EAP-IG's token ids:

    clean (or prompt), corrupted, answer, corrupted_answer        "The capital of Poland is", ..., "Warsaw", "Paris"
    clean, corrupted, correct_idx, incorrect_idx                  the answers' first tokens as ids of the model

Any other column may group the rows (`group` by default). `spans` names parts of the clean prompt for scores by token
span, by their words or their first and end character: {"country": "Poland"} or {"country": [15, 21]}. The first token
of an answer decides attribution and faithfulness, as in the paper; under the metric of whole answers all tokens of
the clean one do. The prompts of a pair need the same number of tokens, which depends on the tokenizer: pairs that
differ are left out, or paired anew within their group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, BeforeValidator, Field
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict

from knowledge_circuits.corpus.documents import read_rows, without_blanks
from knowledge_circuits.engine.prompts import PromptPairs, token_spans
from knowledge_circuits.files import InputError, parse_json
from knowledge_circuits.models.tokenization import encode_prompt
from knowledge_circuits.records import RECORD, Digits, Text, number_of_digits, shape
from knowledge_circuits.study import FactGroup

#: The grouping column where none is named, and the value of all rows of a file that lacks it.
GROUP, ALL = "group", "all"
#: A group's value is part of folder names.
LONGEST_VALUE = 80

Prompt = Annotated[Text, AfterValidator(str.rstrip)]
Answer = Annotated[Digits, AfterValidator(str.strip)]
TokenId = Annotated[int, BeforeValidator(number_of_digits), Field(strict=True, ge=0)]


class _FactRow(TypedDict):
    __pydantic_config__ = RECORD  # type: ignore[misc]
    clean: Prompt
    corrupted: NotRequired[Prompt]
    answer: NotRequired[Answer]
    corrupted_answer: NotRequired[Answer]
    correct_idx: NotRequired[TokenId]
    incorrect_idx: NotRequired[TokenId]
    spans: NotRequired[dict[Text, Any]]


@dataclass(frozen=True)
class Fact:
    """A prompt and its answer, with a corrupted prompt and answer where the file has them.

    Attributes:
        where: file and line, for errors.
        group: of which it is.
        clean, answer: the prompt, and its answer as text or as its first token's id.
        corrupted, corrupted_answer: the same of the corrupted prompt; None where the file leaves the partner open.
        row: all that the file says.
        spans: parts of the clean prompt by name, first and end character; empty: the file names none.
    """

    where: str
    group: FactGroup
    clean: str
    answer: str | int
    corrupted: str | None
    corrupted_answer: str | int | None
    row: dict[str, Any]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def is_fact_file(path: str) -> bool:
    """Return whether a file holds facts of one's own rather than the study's circuit data or people.

    Raises:
        InputError: it cannot be read.
    """
    if "{task}" in path or not Path(path).is_file():
        return False  # whoever reads it says what it is
    if Path(path).suffix not in (".csv", ".json", ".jsonl"):
        raise InputError(f"{path}: prompts and people are read from .csv, .json and .jsonl; convert the file")
    rows = read_rows(path)
    keys = rows[0][1] if rows else {}
    return Path(path).suffix == ".csv" or "clean" in keys or "prompt" in keys


def read_facts(path: str, group_by: Sequence[str] | None = None) -> list[Fact]:
    """Read a file of prompts with answers.

    Args:
        path: a .csv, .json or .jsonl file.
        group_by: the grouping columns; None: `group`, or one group `all` where the file has no such column.

    Raises:
        InputError: with file, line and reason.
    """
    rows = read_rows(path)
    if not rows:
        raise InputError(f"{path}: holds no prompts")
    names = list(group_by or [GROUP])
    for name in names:
        if not re.fullmatch(r"\w[\w .-]*", name) or name.partition("_")[0] in ("method", "topn", "target"):
            raise InputError(f"--group_by {name!r}: this name cannot stand in a folder's name; rename the column")
        if group_by and name not in rows[0][1]:
            raise InputError(f"{path}: no column {name!r} to group by, only {', '.join(rows[0][1])}")
    grouped = bool(group_by) or any(GROUP in row for _, row in rows)
    facts = [_fact(where, row, Path(path).stem, names, grouped) for where, row in rows]
    named = next((fact.where for fact in facts if fact.spans), None)
    without = next((fact.where for fact in facts if not fact.spans), None)
    if named and without:
        raise InputError(f"{without}: no `spans`, which {named} has; name those of all prompts or of none")
    _refuse_one_name(path, facts)
    return facts


def _refuse_one_name(path: str, facts: Sequence[Fact]) -> None:
    """Refuse two groups whose values join to one name: flags, tables (" / ") and manifests ("/") name groups so."""
    for slash in (" / ", "/"):
        by_name: dict[str, FactGroup] = {}
        for group in dict.fromkeys(fact.group for fact in facts):
            name = slash.join(value for _, value in group.columns)
            other = by_name.setdefault(name, group)
            if other != group:
                one, two = (
                    ", ".join(f"{column} {value!r}" for column, value in both.columns) for both in (other, group)
                )
                raise InputError(f"{path}: the groups {one} and {two} would both be called {name!r}; change a value")


def _fact(where: str, row: dict[str, Any], task: str, names: Sequence[str], grouped: bool) -> Fact:
    content = without_blanks(row)
    if "prompt" in content:
        content.setdefault("clean", content["prompt"])
    if isinstance(content.get("spans"), str):  # a cell of a CSV
        content["spans"] = parse_json(content["spans"], f"{where}, `spans`")
    if "clean" not in content:
        raise InputError(f"{where}: no prompt under `clean` or `prompt`, only {', '.join(content)}")
    checked = shape(_FactRow).check(content, where)
    answer = checked.get("answer", checked.get("correct_idx"))
    if answer is None:
        keys = ", ".join(content)
        raise InputError(f"{where}: no answer under `answer`, nor a token id under `correct_idx`, only {keys}")
    partner = checked.get("corrupted_answer", checked.get("incorrect_idx"))
    if "corrupted" in checked and partner is None:
        raise InputError(f"{where}: no answer to the corrupted prompt; give `corrupted_answer` or `incorrect_idx`")
    columns = []
    for name in names:
        value = str(content.get(name, "" if grouped else ALL)).strip()
        if not value or len(value) > LONGEST_VALUE:
            raise InputError(
                f"{where}: {name!r} must be a text of 1 to {LONGEST_VALUE} characters, since folders are named after it"
            )
        columns.append((name, value))
    group = FactGroup(task, tuple(columns))
    clean = checked["clean"]
    spans = _character_ranges(where, clean, checked.get("spans", {}))
    return Fact(where, group, clean, answer, checked.get("corrupted"), partner, row, spans)


def _character_ranges(where: str, prompt: str, spans: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return first and end character of named parts of a prompt, in its order, without spaces around them."""
    ranges = {}
    for name, part in spans.items():
        if isinstance(part, str) and part.strip() and prompt.count(part) == 1:
            part = [prompt.index(part), prompt.index(part) + len(part)]
        if isinstance(part, str):
            raise InputError(f"{where}: the span {name!r} must be words that {prompt!r} has exactly once, not {part!r}")
        if not (isinstance(part, list) and [type(end) for end in part] == [int, int]):
            raise InputError(f"{where}: the span {name!r} must be words of the prompt or [first, end], not {part!r}")
        first, end = part
        if not (0 <= first < end <= len(prompt) and prompt[first:end].strip()):
            raise InputError(
                f"{where}: the span {name!r}, characters {first} to {end}, holds no part of the prompt's {len(prompt)} "
                "characters"
            )
        first += len(prompt[first:end]) - len(prompt[first:end].lstrip())
        ranges[name] = (first, first + len(prompt[first:end].rstrip()))
    ordered = sorted(ranges.items(), key=lambda item: item[1])
    for (name, (_, end)), (other, (first, _)) in pairwise(ordered):
        if first < end:
            raise InputError(f"{where}: the spans {name!r} and {other!r} overlap in {prompt!r}")
    return dict(ordered)


@dataclass(frozen=True)
class MatchedFacts:
    """The pairs of one group under one tokenizer.

    Attributes:
        pairs: clean and corrupted prompts of the same length, in the file's order.
        unmatched: the facts without a corrupted prompt of the same length, which are left out.
        anew: how many were given another corrupted prompt.
    """

    pairs: PromptPairs
    unmatched: tuple[Fact, ...]
    anew: int


def match_facts(
    facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase, pair_anew: bool = False, limit: int | None = None
) -> MatchedFacts:
    """Make prompt pairs of one group's facts.

    Args:
        facts: of one group.
        pair_anew: a fact whose corrupted prompt is missing or of another length gets that of another fact of the group
            with as many tokens and another answer, where there is one.
        limit: at most this many pairs, from the first.

    Raises:
        InputError: an answer adds no token to its prompt, or a span has no token; the message names the line.
    """
    texts = {text for fact in facts for text in (fact.clean, fact.corrupted) if text is not None}
    length = {text: len(encode_prompt(tokenizer, text)) for text in texts}
    fits = [fact.corrupted is not None and length[fact.clean] == length[fact.corrupted] for fact in facts]
    partners = _partners(facts, tokenizer) if pair_anew and not all(fits) else {}
    parts: list[tuple[PromptPairs, bool]] = []
    unmatched = []
    for fact, fit in zip(facts, fits, strict=True):
        if not fit and fact.clean not in partners:
            unmatched.append(fact)
            continue
        try:
            pair = _pair(fact, tokenizer) if fit else partners[fact.clean]
            spans = [token_spans(tokenizer, fact.clean, fact.spans)] if fact.spans else []
        except InputError as error:
            raise InputError(f"{fact.where}: {error}") from None
        parts.append((replace(pair, spans=spans), not fit))
    taken = parts[:limit]
    pairs = PromptPairs.joined([pair for pair, _ in taken])
    return MatchedFacts(pairs, tuple(unmatched), sum(is_new for _, is_new in taken))


def _pair(fact: Fact, tokenizer: PreTrainedTokenizerBase) -> PromptPairs:
    assert fact.corrupted is not None and fact.corrupted_answer is not None
    labels = [(fact.answer, fact.corrupted_answer)]
    return PromptPairs.from_text(tokenizer, [fact.clean], [fact.corrupted], labels)


def _partners(facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase) -> dict[str, PromptPairs]:
    """Return a new pair for each clean prompt that has a partner in the group."""
    answers: dict[str, str | int] = {}
    for fact in facts:
        if answers.setdefault(fact.clean, fact.answer) != fact.answer:
            raise InputError(f"{fact.where}: {fact.clean!r} has two answers in its group, so it cannot be paired anew")
    try:
        pairs, _ = PromptPairs.match_lengths(tokenizer, answers)
    except InputError:  # no two prompts fit
        return {}
    return {pairs.rows[number]["clean"]: pairs.select([number]) for number in range(len(pairs))}
