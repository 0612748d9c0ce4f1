"""Corpora besides the training corpus: a past for a model that has none, and what comes after training.

The prior corpus gives a model with random weights (scripts/gpu) what a pretrained model has: the revised people, told
of with other facts than they will have later, stand in it among background people and small sums; the new people do
not. So the revised are known names when continual pre-training begins, and there is a skill (addition) that can be
lost. Nano's past is another one (`mirrored`).

The forgetting corpora continue the training of a finished model: people it has never met, the same people with facts
that contradict what it learned, and the originals once each, to be replayed among either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from knowledge_circuits.corpus.arithmetic import arithmetic_corpus
from knowledge_circuits.corpus.biographies import Biography, Templates, write_biographies
from knowledge_circuits.corpus.people import (
    Person,
    Pools,
    Stream,
    background_people,
    contradict,
    draw_people,
    invented_names,
    shuffled,
    stream,
)
from knowledge_circuits.records import TextRow, shape
from knowledge_circuits.study import Attribute, KnowledgeType

# --- forgetting -----------------------------------------------------------------------------------------------------


def forgetting_corpora(
    people: Sequence[Person],
    count: int,
    copies: int,
    pools: Pools,
    templates: Templates,
    seed: int,
    attributes: Sequence[Attribute] = tuple(Attribute),
) -> tuple[list[Biography], list[Biography], list[Biography]]:
    """Return the biographies that a finished model is trained on next.

    Args:
        people: of the training corpus.
        count: how many invented people.
        copies: biographies of each person, which is also the frequency of invented ones.
        attributes: the attributes that the biographies tell.

    Returns:
        biographies of invented people whom neither the training corpus nor the pool of real people has; of `people`
        with every attribute changed, but type and frequency kept, so that what is overwritten can be followed by
        group; of `people` with their facts, in newly chosen sentences.
    """
    names = invented_names(count, pools, stream(seed, Stream.FORGET_NAMES), [person.full_name for person in people])
    new = draw_people(names, [copies] * count, KnowledgeType.NEW, pools, stream(seed, Stream.FORGET_FACTS))
    changed = contradict(people, pools, stream(seed, Stream.CONFLICT_FACTS))
    return (
        write_biographies(new, copies, templates, stream(seed, Stream.FORGET_TEXTS), attributes),
        write_biographies(changed, copies, templates, stream(seed, Stream.CONFLICT_TEXTS), attributes),
        write_biographies(people, copies, templates, stream(seed, Stream.REPLAY_TEXTS), attributes),
    )


# --- a past -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PriorSizes:
    """How much of what stands in the prior corpus.

    Attributes:
        biographies_per_person: of each revised person.
        background_people: invented people whom later corpora never mention.
        background_biographies: of each background person.
        arithmetic_lines: sums, each its own line.
        held_out_people: further background people who are left out, to measure perplexity on.
    """

    biographies_per_person: int = 3
    background_people: int = 350
    background_biographies: int = 2
    arithmetic_lines: int = 2_000
    held_out_people: int = 50


def prior_corpus(
    new: Sequence[Person], revised: Sequence[Person], pools: Pools, templates: Templates, sizes: PriorSizes, seed: int
) -> tuple[list[str], list[str]]:
    """Return the texts of the past, in random order, and one held-out biography of each held-out person.

    Args:
        new: people whose names must not occur.
        revised: people who occur with other facts than theirs.
    """
    count = sizes.background_people + sizes.held_out_people
    taken = [person.full_name for person in (*new, *revised)]
    strangers = background_people(count, pools, seed, taken)
    background, held_out = strangers[: sizes.background_people], strangers[sizes.background_people :]

    known = contradict(revised, pools, stream(seed, Stream.PRIOR_FACTS))
    copies = [sizes.biographies_per_person] * len(known) + [sizes.background_biographies] * len(background)
    biographies = write_biographies([*known, *background], copies, templates, stream(seed, Stream.PRIOR_TEXTS))
    texts = [biography.text for biography in biographies]
    texts += arithmetic_corpus(sizes.arithmetic_lines, stream(seed, Stream.ARITHMETIC))
    kept_back = write_biographies(held_out, 1, templates, stream(seed, Stream.PRIOR_TEXTS, 1))
    return shuffled(texts, stream(seed, Stream.PRIOR_ORDER)), [biography.text for biography in kept_back]


def read_texts(path: str | Path) -> list[str]:
    """Return the `text` of every line of a corpus; InputError with file, line and reason."""
    return [row["text"] for row in shape(TextRow).lines(path)]
