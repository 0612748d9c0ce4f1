"""Queries: one prompt for each attribute of a person, and the rule for a correct answer.

The prompts are the paper's (`study.Attribute.prompt`). An answer is correct if it begins with the attribute's value and
ends there, or goes on with a full stop or a new line; values such as "St. Louis, MO" have a full stop inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from knowledge_circuits.corpus.fact_pairs import Fact
from knowledge_circuits.corpus.people import Person
from knowledge_circuits.files import InputError, shortened
from knowledge_circuits.models.loading import context_length
from knowledge_circuits.models.scoring import encode_continuations
from knowledge_circuits.study import Attribute


@dataclass(frozen=True)
class Query:
    """One question about a person or a fact of one's own, as text and as tokens.

    Attributes:
        name: what errors call it.
        first_keys: how its prediction begins.
        keys: what its prediction repeats of the data file.
        prompt, value: the question and the right answer.
        prompt_ids: the prompt's tokens, opened by the start token.
        answer_ids: the tokens by which the value extends the prompt; the first is the label's id.
    """

    name: str
    first_keys: dict[str, str]
    keys: dict[str, Any]
    prompt: str
    value: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


def build_fact_queries(facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase) -> list[Query]:
    """Return the queries about facts of one's own.

    Raises:
        InputError: an answer is only given as a token id, or adds no token to its prompt.
    """
    for fact in facts:
        if isinstance(fact.answer, int):
            raise InputError(f"{fact.where}: whole answers are compared, so give `answer` in words")
    pairs = encode_continuations(tokenizer, [fact.clean for fact in facts], [str(fact.answer) for fact in facts])
    queries = []
    for fact, pair in zip(facts, pairs, strict=True):
        name = f"the prompt {shortened(fact.clean, 80)}"
        queries.append(Query(name, {"group": fact.group.name}, fact.row, fact.clean, str(fact.answer), *pair))
    return queries


def build_queries(
    people: Sequence[Person], tokenizer: PreTrainedTokenizerBase, attributes: Sequence[Attribute] = tuple(Attribute)
) -> list[Query]:
    """Return the queries about every person, person by person.

    Raises:
        InputError: a tokenizer without start token, or a value that adds no token to its prompt.
    """
    requested = [(person, attribute) for person in people for attribute in attributes]
    prompts = [attribute.prompt(person.full_name) for person, attribute in requested]
    values = [person.value(attribute) for person, attribute in requested]
    pairs = encode_continuations(tokenizer, prompts, [value.strip() for value in values])
    queries = []
    for (person, attribute), prompt, value, pair in zip(requested, prompts, values, pairs, strict=True):
        name = f"the prompt about {person.full_name!r}"
        queries.append(Query(name, {"attribute": str(attribute)}, person.to_row(), prompt, value, *pair))
    return queries


def is_correct(output: str, value: str) -> bool:
    """Return whether a generated text begins with `value` and there ends, or goes on with a full stop or a new line."""
    answer, value = output.strip(), value.strip()
    return bool(value) and answer.startswith(value) and answer[len(value) : len(value) + 1] in ("", ".", "\n")


def check_context(model: PreTrainedModel, queries: Sequence[Query], room: int) -> None:
    """Refuse, by name, a prompt that with `room` more tokens does not fit into the model's context."""
    limit = context_length(model.config)
    for query in queries:
        needed = len(query.prompt_ids) + room
        if limit and needed > limit:
            raise InputError(
                f"{query.name} takes {len(query.prompt_ids)} tokens and its answer "
                f"up to {room}, but the model's context holds {limit}: leave it out or ask for a shorter answer"
            )
