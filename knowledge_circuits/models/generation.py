"""Greedy generation that stops at EOS or at the first line break after some text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from knowledge_circuits.models.scoring import last_logits, left_padded


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
