"""Sums are right, all different before any comes again, and asked in the words in which they are taught."""

from __future__ import annotations

from collections import Counter

from knowledge_circuits.corpus.arithmetic import LARGEST_OPERAND, arithmetic_corpus, arithmetic_text
from knowledge_circuits.corpus.people import Stream, stream
from knowledge_circuits.training.skills import arithmetic_examples


def test_a_sum_is_taught_and_asked_in_the_same_words():
    assert arithmetic_text(7, 5) == "7 plus 5 equals 12."
    for example in arithmetic_examples(30):
        a, b = int(example.prompt.split()[0]), int(example.prompt.split()[2])
        assert f"{example.prompt} {example.options[example.answer]}" == arithmetic_text(a, b)


def test_sums_are_right_and_all_of_them_come_before_any_comes_again() -> None:
    every = {arithmetic_text(a, b) for a in range(LARGEST_OPERAND + 1) for b in range(LARGEST_OPERAND + 1)}
    lines = arithmetic_corpus(2 * len(every) + 5, stream(0, Stream.ARITHMETIC))
    assert set(lines[: len(every)]) == every
    assert set(Counter(lines).values()) == {2, 3}
    assert arithmetic_corpus(0, stream(0, Stream.ARITHMETIC)) == []
