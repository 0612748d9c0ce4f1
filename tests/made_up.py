"""Small pools and templates from which the data tests make people and texts."""

from __future__ import annotations

import json
from pathlib import Path

from knowledge_circuits.corpus.biographies import Template
from knowledge_circuits.corpus.people import Pools
from knowledge_circuits.study import Attribute

SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "mi", "no", "ru", "ta")


def words(ending: str, count: int = 12) -> tuple[str, ...]:
    """Different capitalized words with one ending."""
    made = [f"{first}{second}{ending}".capitalize() for first in SYLLABLES for second in SYLLABLES if first != second]
    return tuple(made[:count])


POOLS = Pools(
    first_names=words("n", 12),
    middle_names=words("l", 12),
    last_names=words("sen", 12),
    cities=tuple(f"{word}, TX" for word in words("ville")),
    companies=tuple(f"{word} Works" for word in words("co")),
    majors=tuple(f"{word} Studies" for word in words("ology")),
    universities=tuple(f"University of {word}" for word in words("ton")),
    people=tuple(f"{first} {last}" for first in words("a", 8) for last in words("is", 8)),
)

TEMPLATES = {
    attribute: tuple(
        Template.parse(text, "made up")
        for text in (
            f"The {attribute} of {{subject}} is {{value}}.",
            f"{{value}} is the {attribute} of {{subject}}.",
            f"{{subject}} has as {attribute} this: {{value}}.",
        )
    )
    for attribute in Attribute
}


def write_pools(folder: Path) -> Path:
    """The pools as the folder of JSON files that the programs read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in vars(POOLS).items():
        if name != "birth_years":
            (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def write_templates(folder: Path) -> Path:
    """Templates as the folder of JSON files that the programs read."""
    folder.mkdir(parents=True, exist_ok=True)
    for attribute in Attribute:
        texts = [f"The {attribute} of {{subject}} is {{value}}.", f"{{value}} is {{subject}}'s {attribute}."]
        (folder / f"{attribute}.json").write_text(json.dumps(texts), encoding="utf-8")
    return folder
