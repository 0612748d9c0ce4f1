"""Greedy generation that stops at EOS or at the first line break after some text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from knowledge_circuits.models.scoring import left_padded


def generated_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of generated tokens, up to EOS or to the first line break after some text."""
    tokens = list(tokens)
    if tokenizer.eos_token_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
    text = str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    blank = len(text) - len(text.lstrip())
    line_end = text.find("\n", blank)
    return text if line_end < 0 else text[:line_end]


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens can end an answer.

    Attributes:
        blank: [tokens] bool, whether a token's text is only white space.
        breaks: [tokens] bool, whether a token's text has a line break in it.
        eos: the id that ends a text; None: there is none.
    """

    blank: Tensor
    breaks: Tensor
    eos: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Vocabulary:
        """Read every token's text once; ids beyond the tokenizer's (padding of the embedding) count as text."""
        size = int(model.config.get_text_config().vocab_size)
        known = min(len(tokenizer), size)
        texts = tokenizer.batch_decode([[token] for token in range(known)], clean_up_tokenization_spaces=False)
        blank, breaks = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
        blank[:known] = torch.tensor([not text.strip() for text in texts])
        breaks[:known] = torch.tensor(["\n" in text for text in texts])
        return cls(blank.to(model.device), breaks.to(model.device), tokenizer.eos_token_id)


class _LineEnded(StoppingCriteria):
    """Ends each row at the first line break after some text."""

    def __init__(self, vocabulary: Vocabulary, rows: int) -> None:
        self._vocabulary = vocabulary
        self._begun = torch.zeros(rows, dtype=torch.bool, device=vocabulary.blank.device)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        token = input_ids[:, -1]
        self._begun |= ~self._vocabulary.blank[token]
        return self._begun & self._vocabulary.breaks[token]


@torch.no_grad()  # not inference_mode: what a model in training caches must stay usable for gradients
def generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, vocabulary: Vocabulary
) -> list[list[int]]:
    """Continue prompts greedily until every one of them has ended or has `max_new_tokens` more tokens.

    The model's own generation settings (sampling, repetition penalty, ...) do not count.

    Args:
        model: in evaluation mode.
        prompts: b token id lists.
        max_new_tokens: at least 1.

    Returns:
        b lists of generated ids, all of the same length; ids after an answer's end have no meaning.
    """
    ids, mask, _ = left_padded(prompts, model.device)
    own = model.generation_config
    # `generate` would fill what a configuration leaves open from the model's own, so that one is replaced.
    model.generation_config = GenerationConfig(
        do_sample=False,
        use_cache=True,  # which training switches off in the model's configuration
        max_new_tokens=max_new_tokens,
        eos_token_id=vocabulary.eos,
        pad_token_id=vocabulary.eos or 0,
    )
    try:
        stopping = StoppingCriteriaList([_LineEnded(vocabulary, len(prompts))])
        whole = model.generate(ids, attention_mask=mask, stopping_criteria=stopping)
    finally:
        model.generation_config = own
    return whole[:, ids.shape[1] :].tolist()


def generate_batches(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    vocabulary: Vocabulary,
    batch_size: int,
    most_tokens: int | None = None,
) -> list[list[int]]:
    """Continue any number of prompts as `generate` does, those of like length together; ids in the prompts' order.

    Args:
        batch_size: prompts in a batch at most.
        most_tokens: tokens of a batch at most, padding and answers included; a batch has at least one prompt. None: no
            limit.
    """
    # Longest first, so that memory that suffices once suffices always.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    generated: dict[int, list[int]] = {}
    while order:
        width = len(prompts[order[0]]) + max_new_tokens
        count = batch_size if most_tokens is None else min(batch_size, max(most_tokens // width, 1))
        batch, order = order[:count], order[count:]
        batch_prompts = [prompts[index] for index in batch]
        generated.update(zip(batch, generate(model, batch_prompts, max_new_tokens, vocabulary), strict=True))
    return [generated[index] for index in range(len(prompts))]
