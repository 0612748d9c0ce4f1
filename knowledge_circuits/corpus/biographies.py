"""Synthetic biographies: the sentences about the people of `people`.

The protocol (Ou et al. 2025, section 3.1): a biography is five sentences, one per attribute, each from a randomly
chosen template, in random order; the corpus has as many biographies of a person as the frequency says, in random order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from knowledge_circuits.corpus.people import Person, Stream, stream
from knowledge_circuits.files import InputError
from knowledge_circuits.records import Texts, shape
from knowledge_circuits.study import Attribute


@dataclass(frozen=True)
class Template:
    """A sentence with a slot for the subject and one for the attribute's value.

    Filled by joining, not by formatting, so that names with braces or with the words of a placeholder stay as they are.
    """

    before: str
    between: str
    after: str
    subject_first: bool

    @classmethod
    def parse(cls, text: str, where: str) -> Template:
        """Split a text at `{subject}` and `{value}`.

        Raises:
            InputError: it does not have both exactly once.
        """
        parts = re.split(r"(\{subject\}|\{value\})", text)
        if len(parts) != 5 or parts[1] == parts[3]:
            raise InputError(f"{where}: a template has {{subject}} and {{value}} exactly once each, unlike {text!r}")
        return cls(parts[0], parts[2], parts[4], parts[1] == "{subject}")

    def fill(self, subject: str, value: str) -> str:
        """Return the sentence about a subject."""
        first, second = (subject, value) if self.subject_first else (value, subject)
        return f"{self.before}{first}{self.between}{second}{self.after}"


Templates = Mapping[Attribute, Sequence[Template]]


def load_templates(folder: str | Path, count: int | None = None) -> dict[Attribute, tuple[Template, ...]]:
    """Read the templates, one JSON list of texts per attribute, `<attribute>.json`; all, or `count` evenly spaced ones.

    Raises:
        InputError: a file is missing, empty, shorter than `count` or has a text that is not a template.
    """
    templates = {}
    for attribute in Attribute:
        path = Path(folder) / f"{attribute}.json"
        all_ = [Template.parse(text, f"{path}, entry {index}") for index, text in enumerate(shape(Texts).file(path))]
        if count is not None and count > len(all_):
            raise InputError(f"{path}: {count} templates were requested, but it holds {len(all_)}")
        wanted = len(all_) if count is None else count
        templates[attribute] = tuple(all_[index * len(all_) // wanted] for index in range(wanted))
    return templates


@dataclass(frozen=True)
class Biography:
    """A person and one text about the person: a line of train.jsonl.

    Attributes:
        sentences: the templates that make the text, with their attributes, in order.
    """

    person: Person
    text: str
    sentences: tuple[tuple[Attribute, Template], ...] = ()

    @classmethod
    def of(cls, person: Person, sentences: Sequence[tuple[Attribute, Template]]) -> Biography:
        """Fill the sentences with a person's name and facts."""
        filled = [template.fill(person.full_name, person.value(attribute)) for attribute, template in sentences]
        return cls(person, " ".join(filled), tuple(sentences))

    def about(self, person: Person) -> Biography:
        """Return the same sentences about another person."""
        return Biography.of(person, self.sentences)

    def to_row(self, attributes: Sequence[Attribute] = tuple(Attribute)) -> dict[str, Any]:
        """Return the biography as a JSON object: `text`, and the person's keys but those of other attributes."""
        left_out: set[str] = {*Attribute} - {*attributes}
        if Attribute.BIRTHDAY in left_out:
            left_out |= {"birth_date", "birth_month", "birth_year"}
        return {key: value for key, value in self.person.to_row().items() if key not in left_out} | {"text": self.text}


def write_biographies(
    people: Sequence[Person],
    copies: Sequence[int] | int,
    templates: Templates,
    generator: np.random.Generator,
    attributes: Sequence[Attribute] = tuple(Attribute),
) -> list[Biography]:
    """Biographies of people in random order: one sentence per attribute, in random order.

    A person's biographies do not stand together, so that no training block gives a fact away by an earlier copy.

    Args:
        copies: how many biographies each person gets; one number for all, or one for each.
        generator: draws the order of biographies, then the templates, then the order of sentences.
    """
    owners = generator.permutation(np.repeat(np.arange(len(people)), copies))
    chosen = np.stack([generator.integers(len(templates[a]), size=len(owners)) for a in attributes], axis=1)
    orders = np.argsort(generator.random((len(owners), len(attributes))), axis=1, kind="stable")
    biographies = []
    rows = zip(owners.tolist(), chosen.tolist(), orders.tolist(), strict=True)
    for owner, picks, order in tqdm(rows, total=len(owners), desc="biographies", unit="", delay=1, leave=False):
        sentences = [(attributes[index], templates[attributes[index]][picks[index]]) for index in order]
        biographies.append(Biography.of(people[owner], sentences))
    return biographies


def training_corpus(
    people: Sequence[Person], templates: Templates, seed: int, attributes: Sequence[Attribute] = tuple(Attribute)
) -> list[Biography]:
    """Return the corpus of continual pre-training: each person's biography as often as the frequency says."""
    frequencies = [person.frequency for person in people]
    return write_biographies(people, frequencies, templates, stream(seed, Stream.TEXTS), attributes)


def sample_validation(biographies: Sequence[Biography], lines: int, seed: int) -> list[Biography]:
    """Return a seeded sample of the corpus's lines, in the corpus's order; all of them where there are fewer."""
    chosen = stream(seed, Stream.VALIDATION).permutation(len(biographies))[:lines]
    return [biographies[index] for index in sorted(chosen.tolist())]
