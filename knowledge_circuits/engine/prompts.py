"""Prompt pairs as the engine takes them: token ids, labels, and batches of one length.

A pair is a clean and a corrupted prompt of the same token length and the first tokens of their two answers. Batches
hold prompts of one length, so nothing is ever computed for padding, and scores cannot depend on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from knowledge_circuits.files import InputError
from knowledge_circuits.models.tokenization import encode_prompt


@dataclass(frozen=True)
class Batch:
    """Pairs of one length.

    Attributes:
        index: [b] their places in the `PromptPairs`.
        clean, corrupted: [b, p] token ids.
        labels: [b, 2] the clean and the corrupted answer's first token.
        shared_prefix: how many first tokens clean and corrupted prompts share in every pair (the last position never
            counts); known before the batch goes to a device, so that no pass has to wait for it.
    """

    index: Tensor
    clean: Tensor
    corrupted: Tensor
    labels: Tensor
    shared_prefix: int

    @classmethod
    def of(cls, index: Tensor, clean: Tensor, corrupted: Tensor, labels: Tensor) -> Batch:
        """A batch of tensors on the CPU."""
        differs = (clean != corrupted).any(0)
        first = int(differs.int().argmax()) if bool(differs.any()) else clean.shape[1]
        return cls(index, clean, corrupted, labels, min(first, clean.shape[1] - 1))

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        clean, corrupted, labels = (
            part.to(device, non_blocking=True) for part in (self.clean, self.corrupted, self.labels)
        )
        return Batch(self.index, clean, corrupted, labels, self.shared_prefix)

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of at most `size` pairs."""
        parts = (part.split(size) for part in (self.index, self.clean, self.corrupted, self.labels))
        return (Batch.of(*tensors) for tensors in zip(*parts, strict=True))


@dataclass(frozen=True)
class PromptPairs:
    """Clean and corrupted prompts with the labels of their answers.

    Attributes:
        clean, corrupted: token ids, one list per pair, the start token included; equal lengths within a pair.
        labels: one (clean, corrupted) pair of token ids each.
        rows: what else is known of each pair (the data file's row).

    Raises:
        InputError: lengths differ within a pair, a prompt is empty, or the lists do not match.
    """

    clean: Sequence[Sequence[int]]
    corrupted: Sequence[Sequence[int]]
    labels: Sequence[tuple[int, int]]
    rows: Sequence[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not len(self.clean) == len(self.corrupted) == len(self.labels):
            raise InputError(
                f"{len(self.clean)} clean prompts, {len(self.corrupted)} corrupted ones and {len(self.labels)} pairs of"
                " labels: one of each is wanted per item"
            )
        if self.rows and len(self.rows) != len(self.clean):
            raise InputError(f"{len(self.rows)} rows for {len(self.clean)} prompts: one is wanted for each, or none")
        for number, (clean, corrupted) in enumerate(zip(self.clean, self.corrupted, strict=True)):
            if not clean:
                raise InputError(f"{self.name(number)} is empty")
            if len(clean) != len(corrupted):
                raise InputError(
                    f"{self.name(number)}: clean, it has {len(clean)} tokens and corrupted {len(corrupted)};"
                    " they must be of one length"
                )

    def __len__(self) -> int:
        return len(self.clean)

    @classmethod
    def joined(cls, parts: Sequence[PromptPairs]) -> PromptPairs:
        """The pairs of several, one after the other."""
        return cls(
            [ids for part in parts for ids in part.clean],
            [ids for part in parts for ids in part.corrupted],
            [pair for part in parts for pair in part.labels],
            [row for part in parts for row in part.rows],
        )

    def select(self, chosen: Sequence[int]) -> PromptPairs:
        """Only the pairs of the given numbers, in the given order."""
        rows = [self.rows[i] for i in chosen] if self.rows else []
        return PromptPairs(
            [self.clean[i] for i in chosen], [self.corrupted[i] for i in chosen], [self.labels[i] for i in chosen], rows
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max((len(ids) for ids in self.clean), default=0)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for the token ids and labels: other prompts have others."""
        content = json.dumps([list(map(list, part)) for part in (self.clean, self.corrupted, self.labels)])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches of at most `batch_size` pairs of one length, shortest first, in the given order within a length."""
        if batch_size < 1:
            raise InputError(f"a batch holds at least one prompt, not {batch_size}")
        by_length: dict[int, list[int]] = {}
        for number, ids in enumerate(self.clean):
            by_length.setdefault(len(ids), []).append(number)
        for length in sorted(by_length):
            members = by_length[length]
            for start in range(0, len(members), batch_size):
                chosen = members[start : start + batch_size]
                yield Batch.of(
                    index=torch.tensor(chosen),
                    clean=torch.tensor([list(self.clean[i]) for i in chosen]),
                    corrupted=torch.tensor([list(self.corrupted[i]) for i in chosen]),
                    labels=torch.tensor([list(self.labels[i]) for i in chosen]),
                )

    def check_fits(self, vocabulary: int, max_positions: int) -> None:
        """Raise InputError naming the first item that a model with this vocabulary and context cannot take."""
        for number, (clean, corrupted, labels) in enumerate(zip(self.clean, self.corrupted, self.labels, strict=True)):
            if len(clean) > max_positions:
                raise InputError(
                    f"{self.name(number)}: its {len(clean)} tokens are more than the model's context (or sliding"
                    f" window) of {max_positions}"
                )
            for token in (*clean, *corrupted, *labels):
                if not 0 <= token < vocabulary:
                    raise InputError(
                        f"{self.name(number)}: token id {token} is outside the model's vocabulary of {vocabulary};"
                        " were the data made with another tokenizer?"
                    )

    def name(self, number: int) -> str:
        """What a message calls an item: its place, from 1, and whom it asks about where that is known."""
        subject = self.rows[number].get("clean_subject") if self.rows else None
        return f"prompt {number + 1}" + (f" ({subject})" if subject else "")


def pairs_from_text(
    tokenizer: PreTrainedTokenizerBase,
    clean: Sequence[str],
    corrupted: Sequence[str],
    labels: Sequence[tuple[int, int]],
    rows: Sequence[dict[str, Any]] = (),
) -> PromptPairs:
    """Prompt pairs from text; each prompt starts with exactly one start token."""
    return PromptPairs(
        [encode_prompt(tokenizer, text) for text in clean],
        [encode_prompt(tokenizer, text) for text in corrupted],
        list(labels),
        list(rows),
    )
