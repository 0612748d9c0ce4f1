"""Mirrored corpora: two data sets in which the two halves of the people change places, and nothing else does.

All people are invented, from the same pools. Neighbours in frequency form pairs, and a coin decides which of the two
belongs to half A. In mirror A half A is known (K_rel, "revised") and half B is not (K_compl, "new"); mirror B is the
reverse. So each person is compared with the same person: facts, frequency and name cancel.

- The past tells two true facts (`PAST`) of each known person, in `dose` texts, and gives whole biographies of
  background people. It has room for `past_texts` texts about each pair: what the dose leaves free is told of
  strangers in the same sentences, so that the past has the same size and form at every dose. Sums may stand among the
  texts: a skill that training can take away.
- Continual pre-training tells the other three facts (`TAUGHT`) of everybody, as often as the frequency says, among
  `replays` of the past texts of each known person. The replayed texts are the same at every dose. At dose 0 they are
  all that is ever told of a known person's past facts: that arm measures what the replay alone does.
- Untaught people are known or unknown alike, but continual pre-training never tells of them.

The position of every text, its sentences and their order are functions of the seed alone, so both mirrors share them.
The tokenizer is learned from other people, whom every seed avoids.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from knowledge_circuits.corpus.arithmetic import arithmetic_corpus
from knowledge_circuits.corpus.biographies import (
    Biography,
    Templates,
    sample_validation,
    training_corpus,
    write_biographies,
)
from knowledge_circuits.corpus.people import (
    Person,
    Pools,
    Stream,
    background_people,
    draw_frequencies,
    draw_people,
    invented_names,
    shuffled,
    stream,
)
from knowledge_circuits.files import InputError
from knowledge_circuits.study import TASKS, Attribute, KnowledgeType

#: The facts that the past tells, and those that continual pre-training tells.
PAST: tuple[Attribute, ...] = (Attribute.BIRTHDAY, Attribute.UNIVERSITY)
TAUGHT = TASKS

#: The tokenizer is the same whatever the seed of a data set.
_TOKENIZER_SEED = 0


class Mirror(StrEnum):
    """Which half of the people is known."""

    A = "a"
    B = "b"


@dataclass(frozen=True)
class MirrorSizes:
    """How much of what stands in a mirrored data set.

    Attributes:
        people: whom continual pre-training tells of, an even number.
        untaught_people: whom it does not, an even number.
        frequency_rate: of the exponential distribution of frequencies.
        past_texts: places in the past for each pair of people.
        dose: how many of them tell of the known person.
        replays: past texts of each known person among the texts of continual pre-training.
        background_people: further people of the past.
        background_biographies: of each of them.
        arithmetic_lines: sums in the past, each a text of its own; the tokenizer is then learned from as many too.
        tokenizer_people: people whose biographies the tokenizer is learned from.
        tokenizer_biographies: of each of them.
    """

    people: int = 360
    untaught_people: int = 0
    frequency_rate: float = 0.25
    past_texts: int = 10
    dose: int = 10
    replays: int = 2
    background_people: int = 180
    background_biographies: int = 2
    arithmetic_lines: int = 0
    tokenizer_people: int = 400
    tokenizer_biographies: int = 2

    def __post_init__(self) -> None:
        for name in ("people", "untaught_people"):
            if getattr(self, name) % 2:
                raise InputError(f"{name} {getattr(self, name)}: people form pairs; an even number is needed")
        for name in ("dose", "replays"):
            if not 0 <= getattr(self, name) <= self.past_texts:
                raise InputError(
                    f"{name} {getattr(self, name)}: a person has {self.past_texts} past texts at most (past_texts)"
                )


@dataclass(frozen=True)
class MirroredCorpus:
    """One mirror's data.

    Attributes:
        people: whom continual pre-training tells of, from the most to the least frequent; `type` says who is known.
        untaught: whom it does not.
        past: the biographies of the past.
        past_texts: their texts and the sums, in training order.
        training: the texts of continual pre-training with the replayed ones, in training order.
        validation: a sample of the texts about `TAUGHT`.
        tokenizer_texts: texts about other people, and sums.
    """

    people: list[Person]
    untaught: list[Person]
    past: list[Biography]
    past_texts: list[str]
    training: list[Biography]
    validation: list[Biography]
    tokenizer_texts: list[str]


def mirrored_corpus(
    pools: Pools, templates: Templates, sizes: MirrorSizes, mirror: Mirror, seed: int, validation_lines: int
) -> MirroredCorpus:
    """Generate one mirror's people and texts; both mirrors of a data set have the same seed."""
    others = background_people(sizes.tokenizer_people, pools, _TOKENIZER_SEED, [])
    sums = arithmetic_corpus(sizes.arithmetic_lines, stream(_TOKENIZER_SEED, Stream.ARITHMETIC))
    writing = stream(_TOKENIZER_SEED, Stream.PRIOR_TEXTS)
    tokenizer_texts = write_biographies(others, sizes.tokenizer_biographies, templates, writing)
    taken = [person.full_name for person in others]

    everybody = _halved(pools, sizes, mirror, seed, taken)
    people, untaught = everybody[: sizes.people], everybody[sizes.people :]
    taken += [person.full_name for person in everybody]
    known = [person for person in everybody if person.type is KnowledgeType.REVISED]
    strangers = background_people(len(known) + sizes.background_people, pools, seed, taken, 1)
    fillers, background = strangers[: len(known)], strangers[len(known) :]

    known_texts = _numbered(
        write_biographies(known, sizes.past_texts, templates, stream(seed, Stream.PRIOR_TEXTS, 1), PAST)
    )
    filler_of = dict(zip(known, fillers, strict=True))
    past = [text if number < sizes.dose else text.about(filler_of[text.person]) for number, text in known_texts]
    writing = stream(seed, Stream.PRIOR_TEXTS, 2)
    past += write_biographies(background, sizes.background_biographies, templates, writing)

    taught = training_corpus(people, templates, seed, TAUGHT)
    replayed_people = set(people)
    replayed = [text for number, text in known_texts if number < sizes.replays and text.person in replayed_people]
    return MirroredCorpus(
        people,
        untaught,
        shuffled(past, stream(seed, Stream.PRIOR_ORDER, 1)),
        shuffled([*(text.text for text in past), *sums], stream(seed, Stream.PRIOR_ORDER, 1)),
        shuffled([*taught, *replayed], stream(seed, Stream.PRIOR_ORDER, 2)),
        sample_validation(taught, validation_lines, seed),
        [*(text.text for text in tokenizer_texts), *sums],
    )


def _halved(pools: Pools, sizes: MirrorSizes, mirror: Mirror, seed: int, taken: Sequence[str]) -> list[Person]:
    """Invented people, taught before untaught, in frequency order; of each pair of neighbours one is known."""
    count = sizes.people + sizes.untaught_people
    names = invented_names(count, pools, stream(seed, Stream.NEW_NAMES), taken)
    frequencies = draw_frequencies(sizes.people, sizes.frequency_rate, stream(seed, Stream.FREQUENCIES))
    frequencies += [1] * sizes.untaught_people  # never told, but a line of a people file states a frequency
    people = draw_people(names, frequencies, KnowledgeType.NEW, pools, stream(seed, Stream.NEW_FACTS))
    coins = stream(seed, Stream.HALVES).integers(2, size=count // 2).tolist()
    for pair, coin in enumerate(coins):
        known = 2 * pair + (coin != (mirror is Mirror.B))
        people[known] = replace(people[known], type=KnowledgeType.REVISED)
    return people


def _numbered(texts: Sequence[Biography]) -> list[tuple[int, Biography]]:
    """Return each text after the number of texts about the same person that stand before it."""
    counters: defaultdict[Person, Iterator[int]] = defaultdict(itertools.count)
    return [(next(counters[text.person]), text) for text in texts]
