"""Prompt pairs as the engine takes them: token ids, labels, and batches of one length.

A pair is a clean and a corrupted prompt of the same token length and the first tokens of their two answers. Batches
hold prompts of one length, so nothing is ever computed for padding, and scores cannot depend on it.

The metric of whole answers runs teacher-forced pairs: clean and corrupted prompt both go on with the clean answer's
tokens but the last, and the last positions, one for each of its tokens, predict the answer.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import index
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from knowledge_circuits.files import InputError, shortened
from knowledge_circuits.models.tokenization import encode_prompt, plain_ids, value_token_ids

#: Token spans of prompts that name none, in the order of a prompt.
CHANGE_SPANS = ("start token", "before the change", "changed", "after the change", "last token")
#: The span of the answer's tokens that follow a teacher-forced prompt.
ANSWER_SPAN = "answer"


@dataclass(frozen=True)
class Batch:
    """Pairs of one length.

    Attributes:
        index: [b] their places in the `PromptPairs`.
        clean, corrupted: [b, p] token ids.
        labels: [b, 2] the clean and the corrupted answer's first token.
        shared_prefix: how many first tokens clean and corrupted prompts share in every pair (the positions that a
            metric reads never count); known before the batch goes to a device, so that no pass has to wait for it.
        answers: [b, q] of teacher-forced pairs the tokens that the last q positions predict, -1 where a shorter answer
            has none; else None.
    """

    index: Tensor
    clean: Tensor
    corrupted: Tensor
    labels: Tensor
    shared_prefix: int
    answers: Tensor | None = None

    @classmethod
    def of(
        cls, index: Tensor, clean: Tensor, corrupted: Tensor, labels: Tensor, answers: Tensor | None = None
    ) -> Batch:
        """Return a batch of tensors on the CPU."""
        differs = (clean != corrupted).any(0)
        first = int(differs.int().argmax()) if bool(differs.any()) else clean.shape[1]
        queries = 1 if answers is None else answers.shape[1]
        return cls(index, clean, corrupted, labels, min(first, clean.shape[1] - queries), answers)

    @property
    def queries(self) -> int:
        """How many last positions a metric reads."""
        return 1 if self.answers is None else self.answers.shape[1]

    @property
    def targets(self) -> Tensor:
        """The token ids that a metric looks up: the labels [b, 2], or the answers [b, q]."""
        return self.labels if self.answers is None else self.answers

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on another device; `index` stays on the CPU."""
        clean, corrupted, labels = (
            part.to(device, non_blocking=True) for part in (self.clean, self.corrupted, self.labels)
        )
        answers = None if self.answers is None else self.answers.to(device, non_blocking=True)
        return Batch(self.index, clean, corrupted, labels, self.shared_prefix, answers)

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of at most `size` pairs."""
        given = (self.index, self.clean, self.corrupted, self.labels, self.answers)
        parts = (part.split(size) for part in given if part is not None)
        return (Batch.of(*tensors) for tensors in zip(*parts, strict=True))


@dataclass(frozen=True)
class PromptPairs:
    """Clean and corrupted prompts with the labels of their answers; `from_text` and `match_lengths` make them of text.

    Token ids may also be given as tensors or arrays; they are kept as lists of whole numbers.

    Attributes:
        clean, corrupted: token ids, one list per pair, the start token included; equal lengths within a pair.
        labels: one pair of token ids each: the first tokens of the clean and of the corrupted prompt's answer.
        rows: what else is known of each pair (the data file's row, or the texts of the prompts).
        spans: for each pair its named token spans, name -> (start, stop), which cover the prompt without overlap; or
            none at all. Prompts may differ in the lengths of spans and lack some.
        answers: for each pair all tokens of the clean prompt's answer, empty where only the first is known; or none at
            all. The metric of whole answers needs them, the others do not read them.
        forced: the prompts go on with the answers' tokens but the last (`teacher_forced`).

    Raises:
        InputError: token ids are not whole numbers, labels are not pairs, lengths differ within a pair, a prompt is
            empty, its spans do not cover it, or the lists do not match.
    """

    clean: Sequence[Sequence[int]]
    corrupted: Sequence[Sequence[int]]
    labels: Sequence[tuple[int, int]]
    rows: Sequence[dict[str, Any]] = field(default_factory=list)
    spans: Sequence[Mapping[str, tuple[int, int]]] = field(default_factory=list)
    answers: Sequence[Sequence[int]] = field(default_factory=list)
    forced: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name, kind in (("clean", list), ("corrupted", list), ("labels", tuple), ("answers", list)):
            object.__setattr__(self, name, [kind(ids) for ids in _whole_numbers(name, getattr(self, name))])
        if not len(self.clean) == len(self.corrupted) == len(self.labels):
            raise InputError(
                f"{len(self.clean)} clean prompts, {len(self.corrupted)} corrupted ones and {len(self.labels)} pairs of"
                " labels: one of each is wanted per item"
            )
        if self.rows and len(self.rows) != len(self.clean):
            raise InputError(f"{len(self.rows)} rows for {len(self.clean)} prompts: one is wanted for each, or none")
        if self.answers and len(self.answers) != len(self.clean):
            raise InputError(
                f"{len(self.answers)} answers for {len(self.clean)} prompts: one for each is wanted, or none"
            )
        for number, (clean, corrupted) in enumerate(zip(self.clean, self.corrupted, strict=True)):
            if not clean:
                raise InputError(f"{self.name(number)} is empty")
            if len(clean) != len(corrupted):
                raise InputError(
                    f"{self.name(number)}: the clean prompt has {len(clean)} tokens and the corrupted one"
                    f" {len(corrupted)}; they must have the same number"
                )
            if len(self.labels[number]) != 2:
                raise InputError(
                    f"{self.name(number)}: its labels are {list(self.labels[number])}; the first tokens of the clean"
                    " and of the corrupted answer are wanted"
                )
        if self.spans and len(self.spans) != len(self.clean):
            raise InputError(f"spans of {len(self.spans)} prompts for {len(self.clean)}: give them for all or for none")
        for number, spans in enumerate(self.spans):
            positions = sorted(position for span in spans.values() for position in range(*span))
            if positions != list(range(len(self.clean[number]))):
                raise InputError(
                    f"{self.name(number)}: its spans {dict(spans)} do not cover its {len(self.clean[number])} tokens"
                    " once each"
                )

    def __len__(self) -> int:
        return len(self.clean)

    @classmethod
    def from_text(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        clean: Sequence[str],
        corrupted: Sequence[str],
        labels: Sequence[tuple[str | int, str | int]],
        rows: Sequence[dict[str, Any]] = (),
    ) -> PromptPairs:
        """Tokenize prompts and answers; each prompt starts with exactly one start token.

        Args:
            clean: prompts that the answer follows after a space, such as "The capital of France is".
            corrupted: for each clean prompt one of the same number of tokens with another answer, such as "The
                capital of Poland is". Prompts of different pairs may differ in length.
            labels: for each pair the answers to the clean and to the corrupted prompt, such as ("Paris", "Warsaw").
                Of an answer only the first token counts: that by which `prompt + " " + answer` extends the prompt,
                which for the corrupted answer is the corrupted prompt; all tokens of the clean answer count for the
                metric of whole answers. Token ids are taken as they are, as first tokens.
            rows: what else is known of each pair; by default the texts of its prompts.

        Raises:
            InputError: the numbers of prompts and labels differ, the two prompts of a pair differ in length (with
                both texts and their tokens), or an answer adds no token.
        """
        if not len(clean) == len(corrupted) == len(labels):
            raise InputError(
                f"{len(clean)} clean prompts, {len(corrupted)} corrupted ones and {len(labels)} pairs of labels: one of"
                " each is wanted per item"
            )
        ids = [[encode_prompt(tokenizer, text) for text in texts] for texts in (clean, corrupted)]
        for number, texts in enumerate(zip(clean, corrupted, strict=True)):
            _refuse_unequal(f"prompt {number + 1}", tokenizer, texts, (len(ids[0][number]), len(ids[1][number])))
        answers = [_answer_tokens(tokenizer, text, right) for text, (right, _) in zip(clean, labels, strict=True)]
        others = [_answer_tokens(tokenizer, text, other) for text, (_, other) in zip(corrupted, labels, strict=True)]
        first = [(tokens[0], other[0]) for tokens, other in zip(answers, others, strict=True)]
        whole = [() if isinstance(right, int) else answers[number] for number, (right, _) in enumerate(labels)]
        texts_of = [{"clean": one, "corrupted": other} for one, other in zip(clean, corrupted, strict=True)]
        return cls(ids[0], ids[1], first, list(rows) or texts_of, answers=whole)

    @classmethod
    def match_lengths(
        cls, tokenizer: PreTrainedTokenizerBase, answers: Mapping[str, str | int], seed: int = 0
    ) -> tuple[PromptPairs, list[str]]:
        """Pair every prompt with another one of the same number of tokens and a different answer.

        Args:
            answers: prompt -> its answer, such as {"The capital of France is": "Paris", ...}, or the id of its first
                token. Answers differ when their first tokens do.
            seed: the corrupted prompt is drawn among those that fit; the same seed draws the same ones.

        Returns:
            The pairs in the given order, and the prompts for which no other one fits.

        Raises:
            InputError: no prompt has a partner.
        """
        lengths = {prompt: len(plain_ids(tokenizer, prompt)) for prompt in answers}
        tokens = {prompt: _answer_tokens(tokenizer, prompt, answer)[0] for prompt, answer in answers.items()}
        generator = random.Random(seed)
        partners: dict[str, str] = {}
        for prompt in answers:
            fitting = [o for o in answers if lengths[o] == lengths[prompt] and tokens[o] != tokens[prompt]]
            if fitting:
                partners[prompt] = generator.choice(fitting)
        if not partners:
            counts = ", ".join(f"{prompt!r}: {length}" for prompt, length in list(lengths.items())[:5])
            raise InputError(
                "no two prompts have the same number of tokens and answers with different first tokens; tokens per"
                f" prompt: {counts or 'there is no prompt'}"
            )
        labels = [(answers[clean], tokens[corrupted]) for clean, corrupted in partners.items()]
        pairs = cls.from_text(tokenizer, list(partners), list(partners.values()), labels)
        return pairs, [prompt for prompt in answers if prompt not in partners]

    @classmethod
    def joined(cls, parts: Sequence[PromptPairs]) -> PromptPairs:
        """Return the pairs of several, one after the other."""
        return cls(
            [ids for part in parts for ids in part.clean],
            [ids for part in parts for ids in part.corrupted],
            [pair for part in parts for pair in part.labels],
            [row for part in parts for row in part.rows],
            [spans for part in parts for spans in part.spans],
            [answer for part in parts for answer in part.answers or [()] * len(part)],
        )

    def select(self, chosen: Sequence[int]) -> PromptPairs:
        """Only the pairs of the given numbers, in the given order."""
        return PromptPairs(
            [self.clean[i] for i in chosen],
            [self.corrupted[i] for i in chosen],
            [self.labels[i] for i in chosen],
            [self.rows[i] for i in chosen] if self.rows else [],
            [self.spans[i] for i in chosen] if self.spans else [],
            [self.answers[i] for i in chosen] if self.answers else [],
            forced=self.forced,
        )

    def with_spans(self) -> PromptPairs:
        """Return the pairs with spans; prompts that name none are divided by where clean and corrupted ones differ.

        The spans are `CHANGE_SPANS`; "changed" goes from the first to the last token that differs. A span without a
        token is left out.
        """
        if self.spans:
            return self
        spans = []
        for clean, corrupted in zip(self.clean, self.corrupted, strict=True):
            last = len(clean) - 1
            differing = [position for position in range(1, last) if clean[position] != corrupted[position]] or [last]
            bounds = (0, min(1, last), differing[0], min(differing[-1] + 1, last), last, last + 1)
            named = zip(CHANGE_SPANS, pairwise(bounds), strict=True)
            spans.append({name: span for name, span in named if span[0] < span[1]})
        return replace(self, spans=spans)

    def teacher_forced(self) -> PromptPairs:
        """Return the pairs as the metric of whole answers runs them; they are not taken by other metrics.

        Both prompts go on with the clean answer's tokens but the last. Where prompts have spans, these tokens are the
        span `ANSWER_SPAN`.

        Raises:
            InputError: an answer is not known, or a span of a prompt has that name.
        """
        if self.forced:
            return self
        for number in range(len(self)):
            if not (self.answers and self.answers[number]):
                raise InputError(
                    f"{self.name(number)}: only the first token of its answer is known, but this metric is about whole"
                    " answers; give the answer in words, or all its tokens"
                )
        if ANSWER_SPAN in self.span_names:
            raise InputError(f"a span has the name {ANSWER_SPAN!r}, that of the answer's tokens; give the part another")
        clean, corrupted = (
            [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, self.answers, strict=True)]
            for prompts in (self.clean, self.corrupted)
        )
        bounds = [(len(prompt), len(ids)) for prompt, ids in zip(self.clean, clean, strict=True)]
        spans = [
            {**spans, **({ANSWER_SPAN: (end, stop)} if end < stop else {})}
            for spans, (end, stop) in zip(self.spans, bounds, strict=False)  # or there are no spans
        ]
        return replace(self, clean=clean, corrupted=corrupted, spans=spans, forced=True)

    @property
    def span_names(self) -> tuple[str, ...]:
        """The names of all spans, in the order in which prompts first have them."""
        return tuple(dict.fromkeys(name for spans in self.spans for name in spans))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max((len(ids) for ids in self.clean), default=0)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for the token ids and labels: other prompts have others."""
        parts = (self.clean, self.corrupted, self.labels, *([self.answers] if self.forced else []))
        content = json.dumps([list(map(list, part)) for part in parts])
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
                    answers=_at_the_end([self.answers[i] for i in chosen]) if self.forced else None,
                )

    def check_fits(self, vocabulary: int, max_positions: int) -> None:
        """Raise InputError naming the first item that a model with this vocabulary and context cannot take."""
        answers = [answer[-1:] for answer in self.answers] if self.forced else [()] * len(self)
        parts = zip(self.clean, self.corrupted, self.labels, answers, strict=True)
        for number, (clean, corrupted, labels, answer) in enumerate(parts):
            if len(clean) > max_positions:
                raise InputError(
                    f"{self.name(number)}: its {len(clean)} tokens{', the answer included,' if self.forced else ''} are"
                    f" more than the model's context (or sliding window) of {max_positions}"
                )
            for token in (*clean, *corrupted, *labels, *answer):
                if not 0 <= token < vocabulary:
                    raise InputError(
                        f"{self.name(number)}: token id {token} is outside the model's vocabulary of {vocabulary};"
                        " were the data made with another tokenizer?"
                    )

    def name(self, number: int) -> str:
        """Return what a message calls an item: its number, from 1, and its subject or text where that is known."""
        row = self.rows[number] if self.rows else {}
        known = row.get("clean_subject") or row.get("clean") or ""
        known = known if len(known) <= 80 else known[:77] + "..."
        return f"prompt {number + 1}" + (f" ({known})" if known else "")


def token_spans(
    tokenizer: PreTrainedTokenizerBase, prompt: str, ranges: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return the spans (see `PromptPairs`) of a prompt whose parts have names.

    The start token is a span; so is the last token, unless a part has it. What lies between the parts is named
    "before <part>", and what comes after the last one "after <part>". A token that two parts share is the first one's.

    Args:
        tokenizer: the model's; it must tell which characters a token stands for.
        prompt: as for `encode_prompt`.
        ranges: first and end character of each part, in the prompt's order and without overlap.

    Raises:
        InputError: a part has no token of its own, or a name is used twice.
    """
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer {tokenizer.name_or_path!r} does not tell its tokens' characters, for spans")
    offsets = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans, at = [(CHANGE_SPANS[0], (0, 1))], 1
    for name, (first, end) in ranges.items():
        tokens = [t for t, (a, b) in enumerate(offsets, start=1) if a < end and b > first and t >= at]
        if not tokens:
            raise InputError(f"the span {name!r} has no token of its own ({' | '.join(tokenizer.tokenize(prompt))})")
        spans += [(f"before {name}", (at, tokens[0])), (name, (tokens[0], tokens[-1] + 1))]
        at = tokens[-1] + 1
    last = max(at, len(offsets))
    spans += [(f"after {spans[-1][0]}", (at, last)), (CHANGE_SPANS[-1], (last, len(offsets) + 1))]
    spans = [(name, span) for name, span in spans if span[0] < span[1]]
    if twice := [name for name, _ in spans if sum(name == other for other, _ in spans) > 1]:
        raise InputError(f"two spans of {prompt!r} have the name {twice[0]!r}; give the part another one")
    return dict(spans)


def _whole_numbers(name: str, given: Any) -> list[list[int]]:
    """Return token ids as Python's numbers; `given` has a list, tensor or array of them for each pair."""

    def listed(part: Any) -> Any:
        return part.tolist() if hasattr(part, "tolist") else part

    try:
        return [[index(token) for token in listed(ids)] for ids in listed(given)]
    except TypeError:
        raise InputError(
            f"{name} is {shortened(given, 80)}; for each pair a list of token ids (whole numbers) is wanted"
        ) from None


def _answer_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str | int) -> list[int]:
    """Return all tokens of an answer in words, or the one that is given."""
    return [answer] if isinstance(answer, int) else value_token_ids(tokenizer, prompt, answer)


def _at_the_end(answers: Sequence[Sequence[int]]) -> Tensor:
    """Return answers [b, q], each at the end of its row and -1 before it."""
    longest = max(map(len, answers))
    return torch.tensor([[-1] * (longest - len(answer)) + list(answer) for answer in answers])


def _refuse_unequal(
    name: str, tokenizer: PreTrainedTokenizerBase, texts: tuple[str, str], lengths: tuple[int, int]
) -> None:
    """Raise InputError with both prompts and their tokens where the lengths differ."""
    if lengths[0] != lengths[1]:
        said = (
            f"{text!r} has {length} tokens ({' | '.join(tokenizer.tokenize(text))})"
            for text, length in zip(texts, lengths, strict=True)
        )
        raise InputError(
            f"{name}: the clean prompt {' and the corrupted prompt '.join(said)}, the start token included; they must"
            " have the same number. PromptPairs.match_lengths finds partners of the same length"
        )
