"""An invented encyclopedia: articles about people and towns that do not exist, and questions about them.

It stands for the documents of a real corpus where none may be used: articles in paragraphs, several per entity, events
that connect people and towns, entities that are told of rarely and often. The facts of all entities come from the same
distributions, whatever their frequency, so the frequency is all that differs. An event stands in the articles of all
who were there, so no question with an answer asks for one. Every fact is of a kind:

    factual         does not change: a birthplace, a river
    time-sensitive  holds for a while: a post, a mayor; the question names a year in it
    temporal        is a date: a year of birth, the year of an event

`unmentioned` entities are of the same distribution and have no article in the corpus: what a model answers about them
is made up. Wordings and pools stand in data/encyclopedia; questions are worded apart from the articles.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from knowledge_circuits.corpus.people import Pools, Stream, invented_names, shuffled, stream
from knowledge_circuits.corpus.questions import HIGH, LOW, UNMENTIONED, Document, Question
from knowledge_circuits.files import InputError
from knowledge_circuits.records import Text, Texts, shape

#: Every third entity is a town.
_PLACE_EVERY = 3
#: Towns in which people are born; they have no articles.
_BIRTHPLACES = 40
#: The years of towns' events and of mayors, and of foundations.
_MODERN, _FOUNDED = (1880, 1980), (1100, 1700)


class EntityKind(StrEnum):
    """What an article is about."""

    PERSON = "person"
    PLACE = "place"


class Relation(BaseModel):
    """How one kind of fact is told and asked for.

    Attributes:
        kind: of the questions.
        sentences: wordings in articles.
        questions: wordings of the question; one is asked, the others are its paraphrases.
        prompt: a text that the value completes, for circuits.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    kind: Literal["factual", "time-sensitive", "temporal"]
    sentences: Texts
    questions: list[Text] = Field(min_length=2)
    prompt: Text


class ArticleForm(BaseModel):
    """How articles about one kind of entity are written.

    Attributes:
        titles: wordings of the title.
        paragraphs: the relations in each paragraph.
        relations: by name.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    titles: Texts
    paragraphs: list[Texts] = Field(min_length=1)
    relations: dict[str, Relation]


class EncyclopediaPools(BaseModel):
    """What names and values are drawn from."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    town_beginnings: Texts
    town_endings: Texts
    river_beginnings: Texts
    river_endings: Texts
    products: Texts
    occupations: Texts
    posts: Texts
    work_adjectives: Texts
    work_nouns: Texts
    events: Texts


Forms = Mapping[EntityKind, ArticleForm]

#: The relations whose facts are drawn, with the details that their wordings may use beside subject and value.
_DETAILS = {
    EntityKind.PERSON: {
        **{"birthplace": set(), "birth_year": set(), "occupation": set(), "work": set()},
        **{"post": {"from", "to"}, "event": {"event", "place"}},
    },
    EntityKind.PLACE: {
        **{"river": set(), "founded": set(), "product": set()},
        **{"mayor": {"from", "to"}, "event": {"event", "people"}},
    },
}


def load_forms(path: str | Path) -> Forms:
    """Read the wordings of articles and questions (data/encyclopedia/templates.json).

    Raises:
        InputError: a relation is missing or unknown, or a wording lacks a placeholder or has an unknown one.
    """
    read: dict[str, ArticleForm] = shape(dict[EntityKind, ArticleForm]).file(path)
    forms = {EntityKind(kind): form for kind, form in read.items()}
    for kind, details in _DETAILS.items():
        if kind not in forms:
            raise InputError(f"{path}: no key '{kind}'")
        form = forms[kind]
        names = [name for paragraph in form.paragraphs for name in paragraph]
        if sorted(names) != sorted(details) or set(form.relations) != set(details):
            raise InputError(
                f"{path}: {kind!s}: the relations and the paragraphs must name each of {', '.join(details)} once"
            )
        for text in form.titles:
            _check_wording(text, {"subject"}, set(), f"{path}: {kind!s}, titles")
        for name, relation in form.relations.items():
            where = f"{path}: {kind!s}, {name}"
            slots = (details[name] - {"from", "to", "people"}) | ({"year"} if "from" in details[name] else set())
            for text in relation.sentences:
                _check_wording(text, {"subject", "value"}, details[name], where)
            for text in (*relation.questions, relation.prompt):
                _check_wording(text, {"subject"}, slots, where)
    return forms


def _check_wording(text: str, needed: set[str], allowed: set[str], where: str) -> None:
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError:
        names = {"?"}
    if not needed <= names or not names <= needed | allowed:
        wanted = ", ".join(f"{{{name}}}" for name in sorted(needed))
        more = f", perhaps {', '.join(f'{{{name}}}' for name in sorted(allowed))}" if allowed else ""
        raise InputError(f"{where}: a wording has {wanted}{more} and no other braces, unlike {text!r}")


def load_encyclopedia_pools(path: str | Path) -> EncyclopediaPools:
    """Read the pools (data/encyclopedia/pools.json); InputError where one is missing or malformed."""
    pools: EncyclopediaPools = shape(EncyclopediaPools).file(path)
    for name in ("posts", "occupations", "products"):
        if len(set(getattr(pools, name))) < 2:
            raise InputError(f"{path}: {name!r} needs at least two entries")
    return pools


@dataclass(frozen=True)
class Fact:
    """One fact about an entity: its relation, its value, and what else its wordings name."""

    relation: str
    value: str
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entity:
    """A person or a town.

    Attributes:
        frequency: low, high or unmentioned.
        short: what an article calls it after the first sentence.
    """

    name: str
    kind: EntityKind
    frequency: str
    short: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class EncyclopediaSizes:
    """How many entities there are, and articles and questions about each.

    Attributes:
        low, high, unmentioned: entities with one article, with several, with none.
        high_documents: articles about each entity of high frequency.
        questions_per_kind: about each entity, at most.
    """

    low: int = 24
    high: int = 12
    unmentioned: int = 12
    high_documents: int = 4
    questions_per_kind: int = 1


@dataclass(frozen=True)
class Completion:
    """A prompt that a fact completes: a row of pairs.csv."""

    prompt: str
    answer: str
    group: str
    frequency: str
    kind: str
    entity: str
    corrupted: str = ""
    corrupted_answer: str = ""


@dataclass(frozen=True)
class Encyclopedia:
    """The generated corpus.

    Attributes:
        entities: low, high, unmentioned ones.
        documents: the articles to train on, in random order.
        held_out: articles about the unmentioned entities: text of the same distribution that is never trained on.
        questions: entity by entity.
        completions: prompts about the facts of mentioned entities whose answers are no years.
    """

    entities: list[Entity]
    documents: list[Document]
    held_out: list[Document]
    questions: list[Question]
    completions: list[Completion]


def make_encyclopedia(
    names: Pools, pools: EncyclopediaPools, forms: Forms, sizes: EncyclopediaSizes, seed: int
) -> Encyclopedia:
    """Draw entities and facts and write articles and questions about them; all are functions of the seed.

    Args:
        names: people's names; none is one of its real people.
        pools, forms: see `load_encyclopedia_pools` and `load_forms`.

    Raises:
        InputError: the pools make too few names of towns or people.
    """
    entities = _draw_entities(names, pools, sizes, seed)
    texts = stream(seed, Stream.ENCYCLOPEDIA_TEXTS)
    asking = stream(seed, Stream.ENCYCLOPEDIA_QUESTIONS)
    documents: list[Document] = []
    held_out: list[Document] = []
    questions: list[Question] = []
    completions: list[Completion] = []
    for entity in entities:
        form = forms[entity.kind]
        count = sizes.high_documents if entity.frequency == HIGH else 1
        articles = [_article(entity, form, number, texts) for number in range(1, count + 1)]
        questions += _questions(entity, form, *articles[0], sizes.questions_per_kind, asking)
        if entity.frequency == UNMENTIONED:
            held_out += [document for document, _ in articles]
        else:
            documents += [document for document, _ in articles]
            completions += _completions(entity, form)
    return Encyclopedia(entities, shuffled(documents, texts), held_out, questions, completions)


def _draw_entities(names: Pools, pools: EncyclopediaPools, sizes: EncyclopediaSizes, seed: int) -> list[Entity]:
    frequencies = [LOW] * sizes.low + [HIGH] * sizes.high + [UNMENTIONED] * sizes.unmentioned
    places = range(_PLACE_EVERY - 1, len(frequencies), _PLACE_EVERY)
    if all(frequencies[index] == UNMENTIONED for index in places):
        raise InputError("too few entities: every third one is a town, and people need one to meet in; raise --low")
    naming, n_places = stream(seed, Stream.ENCYCLOPEDIA_NAMES), len(places)
    people = iter(invented_names(len(frequencies) + n_places, names, naming))  # two mayors for each town
    taken = {city.split(",")[0] for city in names.cities}
    drawn_towns = _joined_names(
        pools.town_beginnings, pools.town_endings, n_places + _BIRTHPLACES, "towns", naming, taken
    )
    towns, birthplaces = drawn_towns[:n_places], drawn_towns[n_places:]
    rivers = _joined_names(pools.river_beginnings, pools.river_endings, n_places, "rivers", naming)
    drawing = stream(seed, Stream.ENCYCLOPEDIA_FACTS)
    events: dict[str, tuple[str, str, list[str]]] = {  # a town's name -> its event, the year, who was there
        town: (_one_of(pools.events, drawing), str(drawing.integers(*_MODERN)), []) for town in towns
    }
    meeting = [town for town, index in zip(towns, places, strict=True) if frequencies[index] != UNMENTIONED]

    drawn: dict[int, Entity] = {}
    for index, frequency in enumerate(frequencies):
        if index not in places:
            name, place = next(people), _one_of(meeting, drawing)
            event, year, witnesses = events[place]
            if frequency != UNMENTIONED:  # no article of the corpus names an unmentioned person
                witnesses.append(name)
            facts = _person_facts(pools, birthplaces, (event, place, int(year)), drawing)
            drawn[index] = Entity(name, EntityKind.PERSON, frequency, name.split()[-1], facts)
    for name, river, index in zip(towns, rivers, places, strict=True):
        event, year, witnesses = events[name]
        mayors = [next(people), next(people)]
        people_there = " and ".join([*witnesses, "many travellers", "many others"][:2])
        facts = (
            Fact("river", river),
            Fact("founded", str(drawing.integers(*_FOUNDED))),
            Fact("product", _one_of(pools.products, drawing)),
            *_terms("mayor", mayors, int(drawing.integers(*_MODERN)), drawing),
            Fact("event", year, {"event": event, "people": people_there}),
        )
        drawn[index] = Entity(name, EntityKind.PLACE, frequencies[index], "the town", facts)
    return [drawn[index] for index in sorted(drawn)]


def _person_facts(
    pools: EncyclopediaPools, birthplaces: Sequence[str], event: tuple[str, str, int], drawing: np.random.Generator
) -> tuple[Fact, ...]:
    name, place, year = event
    born = year - int(drawing.integers(15, 60))
    posts = shuffled(pools.posts, drawing)[:2]
    work = f"The {_one_of(pools.work_adjectives, drawing)} {_one_of(pools.work_nouns, drawing)}"
    return (
        Fact("birthplace", _one_of(birthplaces, drawing)),
        Fact("birth_year", str(born)),
        Fact("occupation", _one_of(pools.occupations, drawing)),
        *_terms("post", posts, born + int(drawing.integers(25, 36)), drawing),
        Fact("work", work),
        Fact("event", str(year), {"event": name, "place": place}),
    )


def _terms(relation: str, values: Sequence[str], start: int, drawing: np.random.Generator) -> list[Fact]:
    """Return facts that hold one after the other, for 4 to 9 years each."""
    facts = []
    for value in values:
        end = start + int(drawing.integers(4, 10))
        facts.append(Fact(relation, value, {"from": str(start), "to": str(end)}))
        start = end + int(drawing.integers(1, 5))
    return facts


def _one_of(values: Sequence[str], generator: np.random.Generator) -> str:
    return values[int(generator.integers(len(values)))]


def _joined_names(
    beginnings: Sequence[str],
    endings: Sequence[str],
    count: int,
    what: str,
    generator: np.random.Generator,
    taken: Collection[str] = (),
) -> list[str]:
    joined = dict.fromkeys(first + last for first in beginnings for last in endings)
    names = [name for name in joined if name not in taken]
    if len(names) < count:
        raise InputError(f"{count} names of {what} are wanted and the pools make only {len(names)}; add some to them")
    return shuffled(names, generator)[:count]


def _article(
    entity: Entity, form: ArticleForm, number: int, generator: np.random.Generator
) -> tuple[Document, dict[int, str]]:
    """Return an article that tells all the entity's facts, and the sentence of each fact by its number."""
    sentences: dict[int, str] = {}
    paragraphs = []
    for relations in form.paragraphs:
        facts = [index for name in relations for index, fact in enumerate(entity.facts) if fact.relation == name]
        order = shuffled(facts, generator)
        for position, index in enumerate(order):
            fact = entity.facts[index]
            called = entity.name if position == 0 or generator.random() < 0.5 else entity.short
            wording = _one_of(form.relations[fact.relation].sentences, generator)
            sentence = wording.format(subject=called, value=fact.value, **fact.details)
            sentences[index] = sentence[0].upper() + sentence[1:]
        paragraphs.append(" ".join(sentences[index] for index in order))
    title = _one_of(form.titles, generator).format(subject=entity.name)
    slug = re.sub(r"[^a-z0-9]+", "-", entity.name.lower()).strip("-")
    document = Document(text="\n".join([title, *paragraphs]), entity=entity.name, document=f"{slug}-{number}")
    return document, sentences


def _questions(
    entity: Entity,
    form: ArticleForm,
    document: Document,
    sentences: Mapping[int, str],
    per_kind: int,
    generator: np.random.Generator,
) -> list[Question]:
    """Return questions of each kind about an entity; about an unmentioned one they have no answer."""
    mentioned = entity.frequency != UNMENTIONED
    by_kind: dict[str, list[int]] = {}
    for index, fact in enumerate(entity.facts):
        by_kind.setdefault(form.relations[fact.relation].kind, []).append(index)
    questions: list[Question] = []
    for kind, indices in by_kind.items():
        drawn = shuffled(indices, generator)
        if mentioned:
            drawn = [index for index in drawn if entity.facts[index].relation != "event"]
        for index in drawn[:per_kind]:
            fact = entity.facts[index]
            names = _asked(entity, fact, generator)
            wordings = shuffled([text.format(**names) for text in form.relations[fact.relation].questions], generator)
            row: dict[str, Any] = {
                "id": f"{document.document.rpartition('-')[0]}-{kind}-{len(questions) + 1}",
                "question": wordings[0],
                "entity": entity.name,
                "kind": kind if mentioned else UNMENTIONED,
                "paraphrases": tuple(wordings[1:]),
                "frequency": entity.frequency,
            }
            if mentioned:
                row |= {"answers": (fact.value,), "document": document.document, "supports": sentences[index]}
            questions.append(Question(**row))
    return questions


def _asked(entity: Entity, fact: Fact, generator: np.random.Generator | None = None) -> dict[str, str]:
    """Return what a question or prompt about a fact may name.

    `year` lies within the time in which the fact holds: it is drawn, or without a generator its middle.
    """
    names = {"subject": entity.name, **fact.details}
    if "from" in fact.details:
        start, end = int(fact.details["from"]), int(fact.details["to"])
        names["year"] = str(generator.integers(start + 1, end) if generator else (start + end) // 2)
    return names


def _completions(entity: Entity, form: ArticleForm) -> list[Completion]:
    """Return completion prompts; years are left out, because their first token is that of most years."""
    made = []
    for fact in entity.facts:
        relation = form.relations[fact.relation]
        if relation.kind != "temporal":
            prompt = relation.prompt.format(**_asked(entity, fact))
            made.append(Completion(prompt, fact.value, fact.relation, entity.frequency, relation.kind, entity.name))
    return made
