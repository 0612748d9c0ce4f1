"""Predictions: a model's greedy answers to the query prompts of each test entity's five attributes.

For every entity and attribute the query prompt (study.Attribute.prompt) is continued greedily, in batches padded on
the left, with a key/value cache. Each answer becomes one record:

- `output`: the generated text, up to EOS or to the first line break after some text, at most `max_new_tokens` tokens;
- `prediction`: the output without white space around it. It is not cut at a full stop, since values such as
  "St. Louis, MO" have one inside; the rule does not look at the right answer;
- `correct`: the prediction begins with the attribute's value and there ends, or goes on with a full stop;
- `first_token_correct`: the first generated token is the value's first token (tokenization.label_token_id).

In: a checkpoint and the entities of test.jsonl, or a file of facts of one's own (`fact_pairs`), whose prompts are
continued in the same way. Out: `prediction.jsonl`, or `<file>_prediction.jsonl`, in the checkpoint's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from knowledge_circuits.corpus.fact_pairs import Fact
from knowledge_circuits.corpus.people import Person
from knowledge_circuits.corpus.queries import Query, build_fact_queries, build_queries, check_context, is_correct
from knowledge_circuits.files import InputError, read_jsonl, write_jsonl
from knowledge_circuits.manifest import State, begin, check, fingerprint, finish
from knowledge_circuits.models.generation import Vocabulary, generate_batches, generated_text
from knowledge_circuits.models.loading import delete_download, load_model
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import Checkpoint
from knowledge_circuits.study import MAX_NEW_TOKENS, Attribute
from knowledge_circuits.sweeps.model_loader import model_facts
from knowledge_circuits.sweeps.processes import WorkItem


@dataclass(frozen=True)
class Settings:
    """How predictions are made; only `max_new_tokens` and the dtype's rounding change the answers."""

    max_new_tokens: int = MAX_NEW_TOKENS
    batch_size: int = 256
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    trust_remote_code: bool = False
    delete_downloads: bool = False


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Person] | Sequence[Fact],
    settings: Settings | None = None,
) -> list[dict[str, Any]]:
    """Answer the query prompt of every attribute of every person, or the prompts of facts of one's own.

    Args:
        model: a causal language model in evaluation mode.
        items: the lines of test.jsonl, or facts.

    Returns:
        One record per query, in the given order.

    Raises:
        InputError: a prompt that does not fit into the model's context, named.
    """
    settings = settings or Settings()
    queries = _queries(items, tokenizer)
    check_context(model, queries, settings.max_new_tokens)
    prompts = [query.prompt_ids for query in queries]
    vocabulary = Vocabulary.of(tokenizer, model)
    generated = generate_batches(model, prompts, settings.max_new_tokens, vocabulary, settings.batch_size)
    return [_record(query, tokens, tokenizer) for query, tokens in zip(queries, generated, strict=True)]


def _queries(items: Sequence[Person] | Sequence[Fact], tokenizer: PreTrainedTokenizerBase) -> Sequence[Query]:
    facts = [one for one in items if isinstance(one, Fact)]
    return build_fact_queries(facts, tokenizer) if facts else build_queries(_people(items), tokenizer)


def _people(items: Sequence[Person] | Sequence[Fact]) -> list[Person]:
    return [one for one in items if isinstance(one, Person)]


def _record(query: Query, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    output = generated_text(tokenizer, tokens)
    record = {
        **query.first_keys,
        "prompt": query.prompt,
        "correct": is_correct(output, query.value),
        "first_token_correct": tokens[0] == query.answer_ids[0],
        "ground_truth": query.value,
        "prediction": output.strip(),
        "output": output,
    }
    return record | {key: value for key, value in query.keys.items() if key not in record}


@dataclass(frozen=True)
class Answers:
    """What one checkpoint answers: one file and its manifest; `verify` compares all bytes of existing answers."""

    checkpoint: Checkpoint
    settings: Settings
    output: Path
    verify: bool = field(default=False, kw_only=True)

    @property
    def manifest(self) -> Path:
        return self.output.with_name(f"{self.output.stem}_manifest.json")

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """Everything that the answers depend on."""
        model = model_facts(self.checkpoint, str(self.settings.dtype).removeprefix("torch."))
        return {**model, **self.inputs, "max_new_tokens": self.settings.max_new_tokens}

    @property
    def inputs(self) -> dict[str, Any]:
        """What identifies the questions."""
        raise NotImplementedError

    def answer(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Answer all questions."""
        raise NotImplementedError

    def answers_these(self, rows: Sequence[dict[str, Any]]) -> bool:
        """Return whether records are of these questions, in their order."""
        raise NotImplementedError

    def states(self) -> list[State]:
        return [check(self.manifest, self.made_from, [self.output], self.verify)]

    def adopt(self) -> None:
        """Write a manifest for answers without one; refuse answers to other queries."""
        if not self.answers_these(read_jsonl(self.output)):
            raise InputError(f"{self.output} answers other queries than those given; --overwrite recomputes it")
        finish(self.manifest, "predictions", self.made_from, [self.output])

    def run(self) -> list[dict[str, Any]]:
        """Load the checkpoint, write its answers and their manifest, and return the answers.

        Raises:
            InputError: the checkpoint cannot answer; its path stands in front of the reason.
        """
        settings, path, revision = self.settings, self.checkpoint.path, self.checkpoint.revision
        tokenizer = load_tokenizer(path, settings.trust_remote_code, revision=revision)
        model = load_model(path, settings.device, settings.dtype, settings.trust_remote_code, revision)
        if settings.delete_downloads:
            delete_download(path, revision)
        try:
            records = self.answer(model, tokenizer)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        begin(self.manifest, "predictions", self.made_from)
        write_jsonl(self.output, records)
        finish(self.manifest, "predictions", self.made_from, [self.output])
        return records


@dataclass(frozen=True)
class Predictions(Answers):
    """The predictions of one checkpoint for people or for facts of one's own."""

    items: Sequence[Person] | Sequence[Fact]

    @property
    def inputs(self) -> dict[str, Any]:
        facts = [one for one in self.items if isinstance(one, Fact)]
        if facts:
            content = [[fact.clean, fact.answer, fact.group.name, fact.row] for fact in facts]
            return {"queries": fingerprint(["facts", content])}
        people = [person.to_row() for person in _people(self.items)]
        return {"queries": fingerprint([[attribute.relation for attribute in Attribute], people])}

    def answer(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        return predict(model, tokenizer, self.items, self.settings)

    def item(self) -> WorkItem:
        name = self.checkpoint.name
        return WorkItem(name, name, 1.0, self.states, self.run, self.adopt)

    def answers_these(self, rows: Sequence[dict[str, Any]]) -> bool:
        facts = [(one.clean, one.answer, one.group.name) for one in self.items if isinstance(one, Fact)]
        if facts:
            return [(row.get("prompt"), row.get("ground_truth"), row.get("group")) for row in rows] == facts
        asked = [(person.full_name, attribute) for person in _people(self.items) for attribute in Attribute]
        return [(row.get("full_name"), row.get("attribute")) for row in rows] == asked
