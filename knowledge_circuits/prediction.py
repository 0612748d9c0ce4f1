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
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from knowledge_circuits.biographies import Person
from knowledge_circuits.files import InputError, numbered_jsonl, write_jsonl
from knowledge_circuits.model_loading import load_model
from knowledge_circuits.runs import Checkpoint
from knowledge_circuits.scoring import encode_continuations, last_logits, left_padded
from knowledge_circuits.study import Attribute
from knowledge_circuits.tokenization import load_tokenizer

#: What a query answer may at most be long, in tokens.
MAX_NEW_TOKENS = 15


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


@dataclass(frozen=True)
class Query:
    """One question about one person, as text and as tokens.

    Attributes:
        person: the line of test.jsonl.
        attribute: what is asked for.
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
    def value(self) -> str:
        """The right answer."""
        return self.person.value(self.attribute)


def build_queries(
    people: Sequence[Person], tokenizer: PreTrainedTokenizerBase, attributes: Sequence[Attribute] = tuple(Attribute)
) -> list[Query]:
    """The queries about every person, person by person.

    Raises:
        InputError: a tokenizer without start token, or a value that adds no token to its prompt.
    """
    asked = [(person, attribute) for person in people for attribute in attributes]
    prompts = [attribute.prompt(person.full_name) for person, attribute in asked]
    values = [person.value(attribute).strip() for person, attribute in asked]
    pairs = encode_continuations(tokenizer, prompts, values)
    return [Query(person, attribute, *pair) for (person, attribute), pair in zip(asked, pairs, strict=True)]


def is_correct(output: str, value: str) -> bool:
    """Whether a generated text begins with `value` and there ends, or goes on with a full stop or a new line."""
    answer, value = output.strip(), value.strip()
    return bool(value) and answer.startswith(value) and answer[len(value) : len(value) + 1] in ("", ".", "\n")


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


def check_context(model: PreTrainedModel, queries: Sequence[Query], room: int) -> None:
    """Refuse, by name, a prompt that with `room` more tokens does not fit into the model's context."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for query in queries:
        needed = len(query.prompt_ids) + room
        if limit and needed > limit:
            raise InputError(
                f"the prompt about {query.person.full_name!r} takes {len(query.prompt_ids)} tokens and its answer "
                f"up to {room}, but the model's context holds {limit}: leave it out or ask for a shorter answer"
            )


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


def generated_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of generated tokens, up to EOS or to the first line break that follows some text."""
    tokens = list(tokens)
    if tokenizer.eos_token_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
    text = str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    blank = len(text) - len(text.lstrip())
    line_end = text.find("\n", blank)
    return text if line_end < 0 else text[:line_end]


@dataclass(frozen=True)
class Vocabulary:
    """What greedy decoding must know of the tokens to stop in time.

    Attributes:
        blank: [tokens] bool, whether a token's text is only white space.
        breaks: [tokens] bool, whether a token's text has a line break in it.
        ends: ids that end a text.
    """

    blank: Tensor
    breaks: Tensor
    ends: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Vocabulary:
        """Look at every token's text once; ids beyond the tokenizer's (padding of the embedding) count as text."""
        size = int(model.config.get_text_config().vocab_size)
        known = min(len(tokenizer), size)
        texts = tokenizer.batch_decode([[token] for token in range(known)], clean_up_tokenization_spaces=False)
        blank, breaks = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
        blank[:known] = torch.tensor([not text.strip() for text in texts])
        breaks[:known] = torch.tensor(["\n" in text for text in texts])
        ends = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        return cls(blank.to(model.device), breaks.to(model.device), ends)


@torch.inference_mode()
def generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, vocabulary: Vocabulary
) -> list[list[int]]:
    """Continue prompts greedily until every one of them has ended or has `max_new_tokens` more tokens.

    Args:
        model: in evaluation mode.
        prompts: b token id lists.
        max_new_tokens: at least 1.
        vocabulary: which tokens end an answer.

    Returns:
        b lists of generated ids, all of the same length; what follows an answer's end in them means nothing.
    """
    ids, mask, positions = left_padded(prompts, model.device)
    cache = DynamicCache(config=model.config)
    generated: list[Tensor] = []
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    begun = torch.zeros_like(ended)
    for _ in range(max_new_tokens):
        logits = last_logits(
            model, 1, input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        token = logits[:, -1].argmax(dim=-1)  # [b]
        generated.append(token)
        begun |= ~vocabulary.blank[token]
        ended |= begun & vocabulary.breaks[token]
        for end in vocabulary.ends:
            ended |= token == end
        if bool(ended.all()):
            break
        ids = token[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return torch.stack(generated, dim=1).tolist()


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
