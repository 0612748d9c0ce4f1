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
    """One question about one person, as text and as tokens.

    Attributes:
        prompt_ids: the prompt's tokens, opened by the start token.
        answer_ids: the tokens by which the value extends the prompt; the first is the label's id.
    """

    person: Person
    attribute: Attribute
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return self.attribute.prompt(self.person.full_name)

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"the prompt about {self.person.full_name!r}"

    @property
    def first_keys(self) -> dict[str, Any]:
        """How its prediction begins."""
        return {"attribute": str(self.attribute)}

    @property
    def keys(self) -> dict[str, Any]:
        """What its prediction repeats of the data file."""
        return self.person.to_row()

    @property
    def value(self) -> str:
        """The right answer."""
        return self.person.value(self.attribute)


@dataclass(frozen=True)
class FactQuery:
    """A prompt about a fact of one's own, with the interface of `Query`."""

    fact: Fact
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return self.fact.clean

    @property
    def value(self) -> str:
        return str(self.fact.answer)

    @property
    def name(self) -> str:
        return f"the prompt {shortened(self.prompt, 80)}"

    @property
    def first_keys(self) -> dict[str, Any]:
        return {"group": self.fact.group.name}

    @property
    def keys(self) -> dict[str, Any]:
        return self.fact.row


AnyQuery = Query | FactQuery


def build_fact_queries(facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase) -> list[FactQuery]:
    """Return the queries about facts of one's own.

    Raises:
        InputError: an answer is only given as a token id, or adds no token to its prompt.
    """
    for fact in facts:
        if isinstance(fact.answer, int):
            raise InputError(f"{fact.where}: whole answers are compared, so give `answer` in words")
    pairs = encode_continuations(tokenizer, [fact.clean for fact in facts], [str(fact.answer) for fact in facts])
    return [FactQuery(fact, *pair) for fact, pair in zip(facts, pairs, strict=True)]


def build_queries(
    people: Sequence[Person], tokenizer: PreTrainedTokenizerBase, attributes: Sequence[Attribute] = tuple(Attribute)
) -> list[Query]:
    """Return the queries about every person, person by person.

    Raises:
        InputError: a tokenizer without start token, or a value that adds no token to its prompt.
    """
    requested = [(person, attribute) for person in people for attribute in attributes]
    prompts = [attribute.prompt(person.full_name) for person, attribute in requested]
    values = [person.value(attribute).strip() for person, attribute in requested]
    pairs = encode_continuations(tokenizer, prompts, values)
    return [Query(person, attribute, *pair) for (person, attribute), pair in zip(requested, pairs, strict=True)]


def is_correct(output: str, value: str) -> bool:
    """Return whether a generated text begins with `value` and there ends, or goes on with a full stop or a new line."""
    answer, value = output.strip(), value.strip()
    return bool(value) and answer.startswith(value) and answer[len(value) : len(value) + 1] in ("", ".", "\n")


def check_context(model: PreTrainedModel, queries: Sequence[AnyQuery], room: int) -> None:
    """Refuse, by name, a prompt that with `room` more tokens does not fit into the model's context."""
    limit = context_length(model.config)
    for query in queries:
        needed = len(query.prompt_ids) + room
        if limit and needed > limit:
            raise InputError(
                f"{query.name} takes {len(query.prompt_ids)} tokens and its answer "
                f"up to {room}, but the model's context holds {limit}: leave it out or ask for a shorter answer"
            )
