"""Queries: what a model answers when it is asked for the five attributes of each test entity.

For every entity and attribute the query prompt (study.Attribute.prompt) is continued greedily, in batches padded on
the left, with a key/value cache. Each answer becomes one record:

- `output`: the generated text, up to EOS or to the first line break after some text, at most `max_new_tokens` tokens;
- `prediction`: the output without white space around it. It is not cut at a full stop, since values such as
  "St. Louis, MO" have one inside; the rule does not look at the right answer;
- `correct`: the prediction begins with the attribute's value and there ends, or goes on with a full stop;
- `first_token_correct`: the first generated token is the value's first token (tokenization.label_token_id).

In: a checkpoint and the entities of test.jsonl. Out: `prediction.jsonl` in the checkpoint's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from knowledge_circuits.corpus.people import Person
from knowledge_circuits.corpus.queries import Query, build_queries, check_context, is_correct
from knowledge_circuits.files import InputError, numbered_jsonl, write_jsonl
from knowledge_circuits.models.generation import Vocabulary, generate, generated_text
from knowledge_circuits.models.loading import load_model
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import Checkpoint
from knowledge_circuits.study import MAX_NEW_TOKENS, Attribute


@dataclass(frozen=True)
class Settings:
    """How predictions are made; none of it but the first and the dtype's rounding changes the answers.

    Attributes:
        max_new_tokens: length limit of an answer.
        batch_size: prompts that are continued together.
        device: a torch device or its name.
        dtype: of weights and activations.
        trust_remote_code: whether code in a model's folder may run.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    batch_size: int = 256
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    trust_remote_code: bool = False


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    people: Sequence[Person],
    settings: Settings | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> list[dict[str, Any]]:
    """Ask for every attribute of every person.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: the model's.
        people: the lines of test.jsonl.
        settings: see `Settings`.
        progress: called with the number of prompts just answered.

    Returns:
        One record per query, person by person, in the given order.

    Raises:
        InputError: a prompt that does not fit into the model's context, named.
    """
    settings = settings or Settings()
    queries = build_queries(people, tokenizer)
    check_context(model, queries, settings.max_new_tokens)
    # Prompts of like length together: less padding. Longest first, so that memory that suffices once suffices always.
    order = sorted(range(len(queries)), key=lambda index: -len(queries[index].prompt_ids))
    vocabulary = Vocabulary.of(tokenizer, model)
    generated: dict[int, list[int]] = {}
    for at in range(0, len(order), settings.batch_size):
        batch = order[at : at + settings.batch_size]
        prompts = [queries[index].prompt_ids for index in batch]
        generated.update(zip(batch, generate(model, prompts, settings.max_new_tokens, vocabulary), strict=True))
        progress(len(batch))
    return [_record(query, generated[index], tokenizer) for index, query in enumerate(queries)]


def _record(query: Query, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    output = generated_text(tokenizer, tokens)
    record = {
        "attribute": str(query.attribute),
        "prompt": query.prompt,
        "correct": is_correct(output, query.value),
        "first_token_correct": tokens[0] == query.answer_ids[0],
        "ground_truth": query.value,
        "prediction": output.strip(),
        "output": output,
    }
    return record | {key: value for key, value in query.person.to_row().items() if key not in record}


def predict_checkpoint(
    checkpoint: Checkpoint, people: Sequence[Person], settings: Settings, output: Path | None = None
) -> list[dict[str, Any]]:
    """Load one checkpoint, ask it everything, and write its predictions whole.

    Args:
        checkpoint: where the weights are and where results go.
        people: the lines of test.jsonl.
        settings: see `Settings`.
        output: another place for the predictions than the checkpoint's own.

    Returns:
        The records, as written.
    """
    tokenizer = load_tokenizer(checkpoint.path, settings.trust_remote_code)
    model = load_model(checkpoint.path, settings.device, settings.dtype, settings.trust_remote_code)
    prompts = len(people) * len(Attribute)
    with tqdm(total=prompts, desc=checkpoint.name, unit="prompt", leave=False, delay=2) as bar:
        try:
            records = predict(model, tokenizer, people, settings, bar.update)
        except InputError as error:
            raise InputError(f"{checkpoint.path}: {error}") from error
    write_jsonl(output or checkpoint.predictions, records)
    return records


def refuse_other_questions(path: Path, people: Sequence[Person]) -> None:
    """Refuse to take answers to other questions than those about `people` for finished work.

    Raises:
        InputError: the file's questions are others, or it is not a file of predictions.
    """
    rows = (row for _, row in numbered_jsonl(path, keys=("full_name", "attribute")))
    answered = [(row["full_name"], row["attribute"]) for row in rows]
    if answered != [(person.full_name, attribute) for person in people for attribute in Attribute]:
        raise InputError(
            f"{path} has the answers to {len(answered)} other questions than the {len(people) * len(Attribute)} that"
            " are asked now; --overwrite asks again at every checkpoint, another --output_dir keeps them"
        )
