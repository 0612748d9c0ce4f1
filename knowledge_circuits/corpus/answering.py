"""Questions put to a model: the prompt, the greedy answer, and how much of an accepted answer it holds.

    prompt    under the tokenizer's chat template (`instruct`), else "Question: ...\\nAnswer:" to be continued
    answer    greedy, up to EOS or to the end of its first line, at most so many tokens
    recall    ROUGE-1 recall (package rouge-score): the share of an accepted answer's words that stand in the output
    exact     the output has the words of an accepted answer and no others, in their order

Recall, the paper's measure, also counts words that the question gives away: a long output earns them without knowledge.
Both scores ignore case and punctuation; of several accepted answers the best one counts. Words are runs of letters and
digits of any script, where rouge-score's own tokenizer knows only a to z.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from knowledge_circuits.files import InputError, first_line
from knowledge_circuits.models.generation import Vocabulary, generate_batches, generated_text
from knowledge_circuits.models.loading import context_length
from knowledge_circuits.models.tokenization import encode_prompt, plain_ids
from knowledge_circuits.study import ANSWER_TOKENS

INSTRUCTION = "Answer the question in as few words as possible."

#: Tokens of one batch of prompts with their answers.
_MOST_TOKENS = 1 << 14


@dataclass(frozen=True)
class Prompter:
    """Questions as token ids; with `instruct` the tokenizer's chat template forms the prompt."""

    tokenizer: PreTrainedTokenizerBase
    instruct: bool = False

    def ids(self, question: str, context: str = "") -> list[int]:
        """Return the prompt of a question, after texts that may answer it.

        Raises:
            InputError: the tokenizer has no chat template, or the template fails.
        """
        context = f"Context:\n{context}\n\n" if context else ""
        if not self.instruct:
            return encode_prompt(self.tokenizer, f"{context}{completion_prompt(question)}")
        name = self.tokenizer.name_or_path
        if not self.tokenizer.chat_template:
            raise InputError(f"the tokenizer {name!r} has no chat template; leave out --instruct")
        message = {"role": "user", "content": f"{context}{INSTRUCTION}\n{question}"}
        try:
            text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs, and raise whatever they like
            raise InputError(
                f"the chat template of the tokenizer {name!r} fails ({first_line(error)}); leave out --instruct"
            ) from error
        ids = plain_ids(self.tokenizer, str(text))
        if not ids:
            raise InputError(f"the chat template of the tokenizer {name!r} gives an empty prompt; leave out --instruct")
        return ids


def completion_prompt(question: str) -> str:
    """Return the text that a model without a chat template continues."""
    return f"Question: {question}\nAnswer:"


def check_answers_fit(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raise InputError for a prompt that with its answer does not fit into the model's context."""
    limit = context_length(model.config)
    longest = max(map(len, prompts), default=0)
    if limit and longest + max_new_tokens > limit:
        raise InputError(
            f"a question takes {longest} tokens and its answer up to {max_new_tokens}, but the model's context holds "
            f"{limit}: shorten the question or ask for a shorter answer"
        )


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = ANSWER_TOKENS,
    batch_size: int = 64,
    vocabulary: Vocabulary | None = None,
) -> list[str]:
    """Return the model's greedy answers, without white space around them, in the order of the prompts.

    Args:
        model: in evaluation mode.
        batch_size: prompts that are continued together at most.
        vocabulary: which tokens end an answer; None: read from the tokenizer.

    Raises:
        InputError: a prompt that with its answer does not fit into the model's context.
    """
    check_answers_fit(model, prompts, max_new_tokens)
    ends = vocabulary or Vocabulary.of(tokenizer, model)
    outputs = generate_batches(model, prompts, max_new_tokens, ends, batch_size, _MOST_TOKENS)
    return [generated_text(tokenizer, tokens).strip() for tokens in outputs]


def words(text: str) -> list[str]:
    """Return a text's words in lower case.

    >>> words("Zürich, in 1997!")
    ['zürich', 'in', '1997']
    """
    return re.findall(r"[^\W_]+", text.lower())


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes a second
    except ImportError:
        raise InputError("answers are scored by the package rouge-score (pip install rouge-score)") from None
    return RougeScorer(["rouge1"], tokenizer=SimpleNamespace(tokenize=words))


def recall(output: str, answers: Sequence[str]) -> float:
    """Return the ROUGE-1 recall of an output against the accepted answer that it matches best; 0 without answers."""
    return max((float(_rouge().score(answer, output)["rouge1"].recall) for answer in answers), default=0.0)


def exact(output: str, answers: Sequence[str]) -> bool:
    """Return whether an output has exactly the words of an accepted answer."""
    return any(words(answer) == words(output) != [] for answer in answers)


_ABSTENTION = re.compile(
    r"\b(don'?t|do not|doesn'?t|does not|not|cannot|can'?t|never) (know|known|sure|certain|aware|familiar|available|"
    r"mentioned|specified|provided|given|stated|publicly|clear|find|have (any )?(information|knowledge|access))\b"
    r"|\bno (information|record|records|data|knowledge|mention|answer|such)\b"
    r"|^(the answer is )?(unknown|none|n/?a|nobody|nothing|unclear|unspecified|not applicable)\b"
    r"|\b(unable to|unfortunately|i'?m sorry|i am sorry|apologi[sz]e|as an ai)\b",
    re.IGNORECASE,
)


def abstains(output: str) -> bool:
    """Return whether an output gives no answer: it is empty, or says in English that the answer is not known.

    >>> [abstains(text) for text in ("", "I do not know.", "No information is given.", "Oslo")]
    [True, True, True, False]
    """
    return not words(output) or _ABSTENTION.search(output.replace("’", "'")) is not None
