"""Tasks for `methods.py` that need no hub: prompts from templates, paired and divided into two splits.

| task | clean prompt | corrupted prompt | right answer |
| --- | --- | --- | --- |
| ioi | When Mary and John went to the shop, John gave a book to | ..., Mary gave a book to | Mary |
| greater-than | The war lasted from the year 1749 to the year 17 | ... from the year 1719 ... | a later decade |
| country-capital | The capital of France is | another country | Paris |
| agreement | The key to the cabinets | The keys to the cabinets | is |

IOI has both orders of the names (ABBA and BABA); its corrupted prompt exchanges the repeated name (MIB's
`s2_io_flip_counterfactual`). The year of greater-than ends in 9, so that a right continuation has a larger decade digit
and tokenizers with one or two digits per token are treated alike. The splits share no prompt; clean prompts of
country-capital share no country across splits, those of agreement no subject. `load_biographies` reads the study's own
prompts, `load_mib` those of MIB's data sets.

Shapes: b items, n vocabulary.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from knowledge_circuits import mib
from knowledge_circuits.corpus.prompt_pairs import group_pairs, read_circuit_data
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import evaluate
from knowledge_circuits.engine.graph import Graph, layout_of
from knowledge_circuits.engine.metrics import MetricFunction
from knowledge_circuits.engine.options import Metric
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.files import InputError
from knowledge_circuits.models.tokenization import label_token_id, plain_ids
from knowledge_circuits.study import Attribute, groups


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words(
    "Mary John Anna David Sarah James Laura Peter Emma Paul Julia Mark Alice Tom Kate Robert Jane Henry Lucy George"
    " Helen Frank Rose Daniel Grace Adam Claire Simon Maria Jack"
)
PLACES = _words("shop park school office station garden museum library market hospital")
OBJECTS = _words("book drink ring letter ball ticket key computer picture flower")
IOI = (
    "When {first} and {second} went to the {place}, {giver} gave a {object} to",
    "After {first} and {second} left the {place}, {giver} handed a {object} to",
    "Then {first} and {second} met at the {place}, and {giver} passed a {object} to",
)
EVENTS = _words("war voyage project dispute reign journey trial marriage siege partnership campaign expedition")
CAPITALS = dict(
    pair.split("/")
    for pair in _words(
        "France/Paris Poland/Warsaw Italy/Rome Spain/Madrid Germany/Berlin Austria/Vienna Russia/Moscow Japan/Tokyo"
        " China/Beijing India/Delhi Egypt/Cairo Greece/Athens Portugal/Lisbon Ireland/Dublin Norway/Oslo"
        " Sweden/Stockholm Finland/Helsinki Denmark/Copenhagen Hungary/Budapest Romania/Bucharest Bulgaria/Sofia"
        " Ukraine/Kiev Turkey/Ankara Iran/Tehran Iraq/Baghdad Syria/Damascus Kenya/Nairobi Cuba/Havana Peru/Lima"
        " Chile/Santiago Canada/Ottawa Thailand/Bangkok Vietnam/Hanoi Belgium/Brussels Serbia/Belgrade Lebanon/Beirut"
        " Jordan/Amman Libya/Tripoli Cyprus/Nicosia Nepal/Kathmandu Afghanistan/Kabul Venezuela/Caracas"
    )
)
CAPITAL_OF = (
    "The capital of {} is",
    "The capital city of {} is",
    "{}'s capital is the city of",
    "In {}, the capital is",
)
NOUNS = _words(
    "key book picture letter road house table door window car tree river bridge report plan song game ship train"
    " photo paper bag coin cup dog cat horse bird teacher doctor student writer artist farmer driver king"
    " queen boy girl friend worker player"
)
AGREEMENT = (
    "The {} to the {}",
    "The {} near the {}",
    "The {} behind the {}",
    "The {} from the {}",
    "The {} with the {}",
)

#: A clean prompt, a corrupted prompt, the answer to each, and what may not be in both splits.
Example = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Task:
    """A task's prompts in two splits, and the metric that is attributed and evaluated."""

    name: str
    discovery: PromptPairs
    evaluation: PromptPairs
    metric: Metric | MetricFunction = Metric.LOGIT_DIFFERENCE

    def accuracy(self, decoder: Decoder) -> float:
        """Return the share of evaluation prompts with the right answer ahead of the corrupted prompt's.

        Of greater-than it is the share with more probability on the right digits than on the others.
        """
        layout = layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
        nothing = Graph(layout, torch.zeros(layout.real_edges.shape), layout.real_edges & False, decoder.d_model)
        clean = evaluate(decoder, [nothing], self.evaluation, metric=self.metric)[0].clean
        right = clean > 0 if isinstance(self.metric, Metric) else clean < 0
        return float(right.double().mean())

    def require_accuracy(self, decoder: Decoder, least: float = 0.8) -> float:
        """Return the accuracy.

        Raises:
            InputError: it is below `least`; the circuit of a task that the model cannot do means nothing.
        """
        accuracy = self.accuracy(decoder)
        if accuracy < least:
            raise InputError(
                f"the model is right on {accuracy:.0%} of the prompts of the task {self.name}, fewer than {least:.0%};"
                " leave the task out, or take a model that can do it"
            )
        return accuracy


def ioi(generator: random.Random) -> Example:
    """Indirect object identification: the name that is not repeated."""
    indirect, subject = generator.sample(NAMES, 2)
    first, second = generator.choice(((indirect, subject), (subject, indirect)))
    words = {"first": first, "second": second, "place": generator.choice(PLACES), "object": generator.choice(OBJECTS)}
    template = generator.choice(IOI)
    clean, corrupted = (template.format(**words, giver=giver) for giver in (subject, indirect))
    return clean, corrupted, indirect, subject, clean


def greater_than(generator: random.Random) -> Example:
    """A war's last year is later than its first."""
    century, noun = generator.randrange(11, 19), generator.choice(EVENTS)
    first, other = sorted(generator.sample(range(8), 2), reverse=True)
    clean, corrupted = (f"The {noun} lasted from the year {century}{x}9 to the year {century}" for x in (first, other))
    return clean, corrupted, str(first), str(other), clean


def country_capital(generator: random.Random) -> Example:
    """The capital of a country; the corrupted prompt is about another country."""
    country, other = generator.sample(list(CAPITALS), 2)
    template = generator.choice(CAPITAL_OF)
    return template.format(country), template.format(other), CAPITALS[country], CAPITALS[other], country


def agreement(generator: random.Random) -> Example:
    """The verb agrees with the subject and not with the noun next to it."""
    subject, attractor = generator.sample(NOUNS, 2)
    template = generator.choice(AGREEMENT)
    # Its number is drawn, so that it predicts nothing.
    attractor += generator.choice(("", "s"))
    singular, plural = template.format(subject, attractor), template.format(f"{subject}s", attractor)
    if generator.random() < 0.5:
        return singular, plural, "is", "are", subject
    return plural, singular, "are", "is", subject


TASKS: dict[str, Callable[[random.Random], Example]] = {
    "ioi": ioi,
    "greater-than": greater_than,
    "country-capital": country_capital,
    "agreement": agreement,
}


def load_task(name: str, tokenizer: PreTrainedTokenizerBase, count: int, seed: int = 0) -> Task:
    """Draw a task's two splits of `count` prompts each that this tokenizer can pair.

    Pairs whose prompts differ in length, or whose answers have the same first token, are left out. All prompts of a
    task have the length in tokens that is most common, so that a circuit runs on a split in one pass: most of the time
    of a pass is that of reading the weights.

    Raises:
        InputError: no such task, or too few pairs fit the tokenizer.
    """
    if name not in TASKS:
        raise InputError(f"no task is called {name!r}; choose one of: {', '.join(TASKS)}")
    generator = random.Random(f"{name} {seed}")
    drawn = [TASKS[name](random.Random(f"{name} {seed} {number}")) for number in range(100)]
    lengths = Counter(len(plain_ids(tokenizer, each[0])) for each in drawn if _fits(each, name, tokenizer))
    common = max(lengths, key=lambda length: lengths[length], default=0)
    splits: tuple[list[Example], list[Example]] = ([], [])
    side: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for _ in range(400 * count):
        if min(map(len, splits)) == count:
            break
        example = TASKS[name](generator)
        # A shared item is assigned to one split the first time that it is drawn.
        half = side.setdefault(example[4], len(side) % 2)
        if example[:2] in seen or len(splits[half]) == count or len(plain_ids(tokenizer, example[0])) != common:
            continue
        if _fits(example, name, tokenizer):
            seen.add(example[:2])
            splits[half].append(example)
    fewest = min(map(len, splits))
    if fewest < count:
        raise InputError(
            f"task {name}: {fewest} pairs of prompts fit this tokenizer, and {count} are wanted; ask for fewer"
        )
    if name == "greater-than":
        return _greater_than_task(tokenizer, splits)
    discovery, evaluation = (_pairs(tokenizer, split) for split in splits)
    return Task(name, discovery, evaluation)


def load_biographies(path: str, tokenizer: PreTrainedTokenizerBase, count: int) -> Task:
    """Return the prompts of a circuit data file (`.../circuit_<n>/<model>/city.jsonl`), all types and bands together.

    Raises:
        InputError: the file is not circuit data of this tokenizer, or has fewer than 2 x `count` prompts.
    """
    attribute = Attribute(Path(path).stem)
    rows = read_circuit_data(path, attribute)
    pairs = PromptPairs.joined([group_pairs(rows, group, tokenizer, where=path) for group in groups([attribute])])
    if len(pairs) < 2 * count:
        raise InputError(f"{path}: {len(pairs)} prompts, and two splits of {count} are wanted")
    drawn = random.Random(0).sample(range(len(pairs)), 2 * count)
    return Task(f"biographies ({attribute})", pairs.select(drawn[:count]), pairs.select(drawn[count:]))


def load_mib(name: str, tokenizer: PreTrainedTokenizerBase, count: int, folder: str | None = None) -> Task:
    """Return the first prompts of a data set of MIB: discovery on its train split, evaluation on its validation split.

    Args:
        name: a key of `mib.DATA_SETS`.
        folder: of local copies, see `mib.load_rows`; None: the hub.

    Raises:
        InputError: the data set cannot be loaded, or too few of its rows fit the tokenizer.
    """
    splits = []
    for split in ("train", "validation"):
        pairs = mib.prompt_pairs(mib.load_rows(name, split, folder), name, tokenizer)
        if len(pairs) < count:
            raise InputError(f"{name}: {len(pairs)} rows of {split} fit this tokenizer, and {count} are wanted")
        splits.append(pairs.select(range(count)))
    return Task(f"mib-{name}", splits[0], splits[1])


def _fits(example: Example, name: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    clean, corrupted, right, wrong, _ = example
    if len(plain_ids(tokenizer, clean)) != len(plain_ids(tokenizer, corrupted)):
        return False
    if name == "greater-than":
        return len(_digits(tokenizer, clean)) == 10
    return label_token_id(tokenizer, clean, right) != label_token_id(tokenizer, clean, wrong)


def _pairs(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> PromptPairs:
    clean, corrupted, right, wrong, _ = zip(*examples, strict=True)
    return PromptPairs.from_text(tokenizer, clean, corrupted, list(zip(right, wrong, strict=True)))


def _digits(tokenizer: PreTrainedTokenizerBase, prompt: str) -> dict[int, list[int]]:
    """Return for each decade digit the tokens that continue a year with it, of one digit or of two."""
    before = plain_ids(tokenizer, prompt)

    def token(text: str) -> int | None:
        after = plain_ids(tokenizer, prompt + text)
        return after[-1] if after[:-1] == before else None

    two = {digit: [token(f"{digit}{last}") for last in range(10)] for digit in range(10)}
    found = {digit: [t for t in tokens if t is not None] for digit, tokens in two.items()}
    if all(len(tokens) == 10 for tokens in found.values()):
        return found
    one = {digit: token(str(digit)) for digit in range(10)}
    return {digit: [t] for digit, t in one.items() if t is not None}


def _greater_than_task(tokenizer: PreTrainedTokenizerBase, splits: tuple[list[Example], list[Example]]) -> Task:
    """Labels are the first tokens of the two prompts' decade digits; the metric looks up which digits are larger."""
    digits = _digits(tokenizer, splits[0][0][0])
    order = torch.tensor([digits[digit] for digit in range(10)])  # [10, tokens of a digit]

    def later_decade(logits: Tensor, clean_logits: Tensor, labels: Tensor) -> Tensor:
        """The probability of digits up to the clean year's less that of larger ones: a loss [b]."""
        tokens = order.to(logits.device)
        per_digit = logits.softmax(-1)[:, tokens].sum(-1)  # [b, 10]
        clean_digit = (labels[:, :1] == tokens[:, 0]).int().argmax(1)
        larger = torch.arange(10, device=logits.device) > clean_digit[:, None]
        return (per_digit * torch.where(larger, -1.0, 1.0)).sum(1)

    if any(_digits(tokenizer, clean) != digits for split in splits for clean, *_ in split):
        raise InputError("task greater-than: this tokenizer divides years of different centuries differently")
    pairs = []
    for split in splits:
        labels = [(digits[int(right)][0], digits[int(wrong)][0]) for _, _, right, wrong, _ in split]
        pairs.append(PromptPairs.from_text(tokenizer, [e[0] for e in split], [e[1] for e in split], labels))
    return Task("greater-than", pairs[0], pairs[1], later_decade)
