"""General skills outside the domain: what a model could do before it was taught biographies, and may lose.

A skill is a set of multiple-choice examples: the option whose text is likeliest after the prompt (sum of its tokens'
log-probabilities) is the model's choice. Two skills come with the project: addition of small numbers, in the wording
that nano's prior corpus teaches, and the perplexity of a held-out text of ordinary expository English.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

#: The largest operand of the arithmetic set, and of the arithmetic in nano's prior corpus.
LARGEST_OPERAND = 12


@dataclass(frozen=True)
class SkillExample:
    """One multiple-choice example.

    Attributes:
        skill: the name under which accuracy is reported.
        prompt: the text before the option; the option follows it after a space.
        options: the texts to choose from, at least two, all different.
        answer: the index of the right one.
    """

    skill: str
    prompt: str
    options: tuple[str, ...]
    answer: int


def arithmetic_prompt(a: int, b: int) -> str:
    """The question about a sum, such as `7 plus 5 equals`."""
    return f"{a} plus {b} equals"


def arithmetic_text(a: int, b: int) -> str:
    """The sentence that teaches a sum, such as `7 plus 5 equals 12.`"""
    return f"{arithmetic_prompt(a, b)} {a + b}."


def arithmetic_examples(count: int = 100, seed: int = 0, largest: int = LARGEST_OPERAND) -> list[SkillExample]:
    """A seeded multiple-choice set of sums, each with three wrong results close to the right one.

    Args:
        count: how many; all the sums there are if these are fewer.
        seed: of the choice of sums and of the options' order.
        largest: operands go from 0 to this number.
    """
    rng = random.Random(seed)
    pairs = [(a, b) for a in range(largest + 1) for b in range(largest + 1)]
    examples = []
    for a, b in rng.sample(pairs, min(count, len(pairs))):
        total = a + b
        near = [total + offset for offset in range(-5, 6) if offset and total + offset >= 0]
        options = [str(number) for number in [total, *rng.sample(near, 3)]]
        rng.shuffle(options)
        examples.append(SkillExample("arithmetic", arithmetic_prompt(a, b), tuple(options), options.index(str(total))))
    return examples
