"""General skills outside the domain: what a model could do before it was taught biographies, and may lose.

A skill is a set of multiple-choice examples: the option whose text is likeliest after the prompt (sum of its tokens'
log-probabilities) is the model's choice. Three come with the project: addition of small numbers, in the wording that
the prior corpus of scripts/gpu teaches; everyday and logical reasoning (data/skills/reasoning.jsonl), for question
probes; and the perplexity of a held-out text of ordinary expository English.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import AfterValidator, Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import TypedDict

from knowledge_circuits.corpus.answering import completion_prompt
from knowledge_circuits.corpus.arithmetic import LARGEST_OPERAND, arithmetic_prompt
from knowledge_circuits.files import InputError, read_text
from knowledge_circuits.models.loading import context_length
from knowledge_circuits.models.scoring import encode_continuations, score_continuations
from knowledge_circuits.paths import HELD_OUT_TEXT, REASONING
from knowledge_circuits.records import RECORD, Text, shape

Item = TypeVar("Item")


def _text_or_index(value: Any) -> Any:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError("must be an option or its index")
    return value


class SkillRow(TypedDict):
    """A line of a skill file."""

    __pydantic_config__ = RECORD  # type: ignore[misc]
    prompt: NotRequired[Text]
    question: NotRequired[Text]
    options: Annotated[list[Text], Field(min_length=2)]
    answer: Annotated[Any, AfterValidator(_text_or_index)]
    skill: NotRequired[Text]


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


def arithmetic_examples(count: int = 100, seed: int = 0) -> list[SkillExample]:
    """Return a seeded multiple-choice set of sums, each with three wrong results close to the right one.

    An option has the full stop that ends the sentence, so that `1` does not win over `12` by being its beginning.

    Args:
        count: how many; all the sums there are if these are fewer.
        seed: of the choice of sums and of the options' order.
    """
    rng = random.Random(seed)
    pairs = list(product(range(LARGEST_OPERAND + 1), repeat=2))
    examples = []
    for a, b in rng.sample(pairs, min(count, len(pairs))):
        total = a + b
        near = [total + offset for offset in range(-5, 6) if offset and total + offset >= 0]
        options = [f"{number}." for number in [total, *rng.sample(near, 3)]]
        rng.shuffle(options)
        examples.append(SkillExample("arithmetic", arithmetic_prompt(a, b), tuple(options), options.index(f"{total}.")))
    return examples


def read_skill_file(path: str | Path) -> list[SkillExample]:
    """Read multiple-choice examples, one JSON object per line.

    Keys: `prompt` (which the options continue) or `question`, `options` (a list of different texts) and `answer` (the
    right option's text, or its index as a number); `skill` names the skill, by default the file's name without its
    ending.

    Raises:
        InputError: with file, line and reason; a file without examples as well.
    """
    name = Path(path).name.split(".")[0]
    examples = [_example(row, f"{path}, line {number}", name) for number, row in shape(SkillRow).numbered(path)]
    if not examples:
        raise InputError(f"{path}: no examples in this file")
    return examples


def reasoning_examples() -> list[SkillExample]:
    """Return the project's own small set of questions about everyday life, order, time, space and logic."""
    return read_skill_file(REASONING)


def fewer_examples(examples: Sequence[SkillExample], most: int | None) -> list[SkillExample]:
    """Return at most `most` examples of each skill (None: all), evenly spaced, in their order.

    Raises:
        InputError: fewer than one is wanted.
    """
    if most is None:
        return list(examples)
    if most < 1:
        raise InputError(f"--skill_examples {most}: at least one example of each skill is needed")
    skills: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        skills[example.skill].append(index)
    chosen = sorted(index for members in skills.values() for index in evenly_spaced(members, most))
    return [examples[index] for index in chosen]


def evenly_spaced(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` items, evenly spaced, in their order."""
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _example(row: SkillRow, where: str, default_skill: str) -> SkillExample:
    options, answer = row["options"], row["answer"]
    prompt = row.get("prompt") or (completion_prompt(row["question"]) if "question" in row else None)
    if prompt is None:
        raise InputError(f"{where}: no key 'prompt'; a row has a prompt that the options continue, or a question")
    if len(set(options)) < len(options):
        raise InputError(f"{where}: an option stands twice in {options!r}")
    if isinstance(answer, str):
        if answer not in options:
            raise InputError(f"{where}: the answer {answer!r} is not among the options {options!r}")
        answer = options.index(answer)
    if not 0 <= answer < len(options):
        raise InputError(f"{where}: 'answer' must be an option or its index (0 to {len(options) - 1}), not {answer!r}")
    return SkillExample(row.get("skill", default_skill), prompt, tuple(options), answer)


@dataclass(frozen=True)
class SkillScore:
    """The share of a skill's examples whose right option is the likeliest, and how many examples there are."""

    accuracy: float
    examples: int


class SkillTest:
    """Examples tokenized once for many tests."""

    def __init__(self, examples: Sequence[SkillExample], tokenizer: PreTrainedTokenizerBase) -> None:
        self.examples = tuple(examples)
        prompts = [example.prompt for example in examples for _ in example.options]
        options = [option for example in examples for option in example.options]
        self._pairs = encode_continuations(tokenizer, prompts, options)

    def scores(self, model: PreTrainedModel) -> dict[str, SkillScore]:
        """Return the score of every skill among the examples, by its name, in the examples' order."""
        prompts, options = [prompt for prompt, _ in self._pairs], [option for _, option in self._pairs]
        log_probs = iter([score.log_prob for score in score_continuations(model, prompts, options)])
        right: dict[str, list[bool]] = defaultdict(list)
        for example in self.examples:
            likelihoods = [next(log_probs) for _ in example.options]
            right[example.skill].append(max(range(len(likelihoods)), key=likelihoods.__getitem__) == example.answer)
        return {skill: SkillScore(sum(answers) / len(answers), len(answers)) for skill, answers in right.items()}

    def check_fits(self, model: PreTrainedModel) -> None:
        """Refuse examples that are longer than the model's context."""
        longest = max((len(prompt) + len(option) for prompt, option in self._pairs), default=0)
        limit = context_length(model.config)
        if limit and longest > limit:
            raise InputError(f"a skill example takes {longest} tokens, but the model's context holds {limit}")


def held_out_text() -> str:
    """Return the project's held-out text: expository English that no corpus contains."""
    return read_text(HELD_OUT_TEXT)
