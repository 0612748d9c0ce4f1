"""Likelihoods, ranks and greedy choices of given continuations, from one teacher-forced forward pass.

A prompt and its continuation go through the model together. Position i of the continuation then tells the model's
distribution over what follows the prompt and the continuation's first i tokens. Greedy decoding gives exactly this
continuation if each of its tokens is the most likely one at its position, so no step-by-step generation is needed to
know whether the model answers with it.

In: token id lists and a Hugging Face causal language model. Out: a `ContinuationScore` per pair. Sequences are padded
on the left, so the continuations stand at the end and only the last few positions need logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from knowledge_circuits.models.loading import context_length
from knowledge_circuits.models.tokenization import added_ids, start_token_id

#: Limits of one batch: tokens that go through the model, and logits that are held at once.
_MAX_TOKENS = 1 << 13
_MAX_LOGITS = 1 << 25


@dataclass(frozen=True)
class ContinuationScore:
    """The model's scores of one continuation of one prompt.

    Attributes:
        log_prob: the continuation's log-probability (nats), the sum over its tokens.
        first_prob: the first token's probability.
        first_rank: how many tokens are more likely than the first one; 0 is best.
        greedy: the most likely token after the prompt and the continuation's first i tokens, for i = 0 to its length;
            the last one is what follows the whole continuation.
    """

    log_prob: float
    first_prob: float
    first_rank: int
    greedy: tuple[int, ...]


def left_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and position ids of sequences padded on the left to the longest, each [b, p]."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[0] * (longest - len(sequence)) + list(sequence) for sequence in sequences])
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = (torch.arange(longest)[None] >= (longest - lengths)[:, None]).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return ids.to(device), mask.to(device), positions.to(device)


def encode_continuations(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], texts: Sequence[str]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts as token ids and, for each, the tokens by which `prompt + " " + text` extends it.

    The rule is that of tokenization.encode_prompt and label_token_id; one call of the tokenizer for all texts is
    several times faster than one for each.

    Raises:
        InputError: the tokenizer has no start token, or a text adds no token to its prompt.
    """
    if not prompts:
        return []
    start = start_token_id(tokenizer)
    before = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    joined = [f"{prompt} {text}" for prompt, text in zip(prompts, texts, strict=True)]
    after = tokenizer(joined, add_special_tokens=False)["input_ids"]
    return [
        ((start, *prompt_ids), tuple(added_ids(prompt, text, prompt_ids, full_ids)))
        for prompt, text, prompt_ids, full_ids in zip(prompts, texts, before, after, strict=True)
    ]


def score_continuations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    progress: Callable[[int], object] = lambda count: None,
) -> list[ContinuationScore]:
    """Score each continuation after its prompt.

    Args:
        model: in evaluation mode; its device and dtype are used, sums are taken in float32.
        prompts: token ids, opened by the start token; at least one token each.
        continuations: token ids, at least one token each, as many as prompts.
        progress: called with the number of pairs just scored.

    Returns:
        The scores in the given order. They do not depend on what else is scored with them, up to rounding.

    Raises:
        ValueError: an empty prompt or continuation.
    """
    if not all(len(sequence) for sequence in [*prompts, *continuations]):
        raise ValueError("a prompt and a continuation have at least one token each")
    scores: dict[int, ContinuationScore] = {}
    vocabulary = int(model.config.get_text_config().vocab_size)
    with torch.no_grad():  # not inference_mode: what a model in training caches must stay usable for gradients
        for batch in _batches(prompts, continuations, vocabulary):
            batch_scores = _score_batch(model, [prompts[i] for i in batch], [continuations[i] for i in batch])
            scores.update(zip(batch, batch_scores, strict=True))
            progress(len(batch))
    return [scores[index] for index in range(len(prompts))]


def _batches(
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], vocabulary: int
) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, within the limits of tokens and logits."""
    order = sorted(
        range(len(prompts)), key=lambda i: (-len(prompts[i]) - len(continuations[i]), -len(continuations[i]))
    )
    batch: list[int] = []
    width = keep = 0
    for index in order:
        length, kept = len(prompts[index]) + len(continuations[index]), len(continuations[index]) + 1
        width, keep = max(width, length), max(keep, kept)
        rows = len(batch) + 1
        if batch and (rows * width > _MAX_TOKENS or rows * keep * vocabulary > _MAX_LOGITS):
            yield batch
            batch, width, keep = [], length, kept
        batch.append(index)
    if batch:
        yield batch


def _score_batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> list[ContinuationScore]:
    lengths = torch.tensor([len(continuation) for continuation in continuations])
    keep = int(lengths.max()) + 1
    sequences = [[*prompt, *continuation] for prompt, continuation in zip(prompts, continuations, strict=True)]
    ids, mask, positions = left_padded(sequences, model.device)
    limit = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **limit).logits
    logits = logits[:, -keep:].float()  # [b, keep, vocabulary]; column j predicts column j + 1 of the last keep tokens
    keep = logits.shape[1]  # fewer where the longest sequence is shorter
    greedy = logits.argmax(dim=-1).cpu()  # [b, keep]
    targets = ids[:, -keep + 1 :]  # [b, keep - 1]
    chosen = logits[:, :-1].gather(2, targets[..., None])[..., 0]  # [b, keep - 1]
    log_probs = (chosen - logits[:, :-1].logsumexp(dim=-1)).cpu()
    inside = torch.arange(keep - 1)[None] >= (keep - 1 - lengths)[:, None]
    totals = (log_probs * inside).sum(dim=1, dtype=torch.float64)
    rows, first = torch.arange(len(prompts)), keep - 1 - lengths  # the column that predicts the first token
    first_logits = logits[rows.to(logits.device), first.to(logits.device)]  # [b, vocabulary]
    ranks = (first_logits > chosen[rows.to(logits.device), first.to(logits.device)][:, None]).sum(dim=1).cpu()
    probs = log_probs[rows, first].exp()
    return [
        ContinuationScore(
            float(totals[row]),
            float(probs[row]),
            int(ranks[row]),
            tuple(greedy[row, -int(lengths[row]) - 1 :].tolist()),
        )
        for row in range(len(prompts))
    ]


def mean_loss(model: PreTrainedModel, texts: Sequence[Sequence[int]], start_token: int, block_size: int = 256) -> float:
    """Return the mean loss per token (nats) of texts, each read in blocks that open afresh and fit the model's context.

    Args:
        model: in evaluation mode.
        texts: token ids, without special tokens.
        start_token: opens each block.
        block_size: tokens of text per block at most; the first of each is predicted from the start token alone.
    """
    size = min(block_size, (context_length(model.config) or block_size + 1) - 1)  # the start token takes one position
    blocks = [ids[at : at + size] for ids in texts for at in range(0, len(ids), size)]
    scores = score_continuations(model, [[start_token]] * len(blocks), blocks)
    return -sum(score.log_prob for score in scores) / sum(map(len, blocks))
