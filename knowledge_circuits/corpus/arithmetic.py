"""Sums in words: a small skill that the prior corpus teaches and that training can take away."""

from __future__ import annotations

import numpy as np

#: The largest operand of the arithmetic set, and of the arithmetic in the prior corpus.
LARGEST_OPERAND = 9


def arithmetic_prompt(a: int, b: int) -> str:
    """Return the question about a sum, such as `7 plus 5 equals`."""
    return f"{a} plus {b} equals"


def arithmetic_text(a: int, b: int) -> str:
    """Return the sentence that teaches a sum, such as `7 plus 5 equals 12.`"""
    return f"{arithmetic_prompt(a, b)} {a + b}."


def arithmetic_corpus(lines: int, generator: np.random.Generator) -> list[str]:
    """Sums of operands from 0 to `LARGEST_OPERAND`, one a line; all of them once before any comes again."""
    side = LARGEST_OPERAND + 1
    rounds = -(-lines // (side * side))
    pairs = [pair for _ in range(rounds) for pair in generator.permutation(side * side).tolist()]
    return [arithmetic_text(*divmod(pair, side)) for pair in pairs[:lines]]
