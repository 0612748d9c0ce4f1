"""The vocabulary of the study: who is known, how often their biographies occur, which attributes queries ask for.

Every other module takes types, frequency bands, attributes and query prompts from here; nothing else spells them
out. A `Group` (task, type, band) is the unit of circuit discovery: 3 x 2 x 3 = 18 per checkpoint.
(Ou et al. 2025, sections 3.1 and 4.) A `FactGroup` is the same unit for facts of any kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product


class KnowledgeType(StrEnum):
    """Whether the model knew the person before training; the facts are new in both cases."""

    NEW = "new"
    REVISED = "revised"

    @property
    def symbol(self) -> str:
        """The paper's name of the type, as figures show it."""
        return {KnowledgeType.NEW: "K_compl", KnowledgeType.REVISED: "K_rel"}[self]


class Band(StrEnum):
    """How often a person's biography stands in the corpus: low = 1, medium = 2 to 5, high > 5."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"

    @classmethod
    def of(cls, frequency: int) -> Band:
        """Return the band of a frequency (a count of biographies, at least 1)."""
        if frequency < 1:
            raise ValueError(f"a frequency is at least 1, not {frequency}")
        if frequency == 1:
            return cls.LOW
        return cls.MEDIUM if frequency <= 5 else cls.HIGH

    @property
    def limits(self) -> str:
        """The frequencies of the band, as texts show them."""
        return {Band.LOW: "1", Band.MEDIUM: "2 to 5", Band.HIGH: "above 5"}[self]


class Attribute(StrEnum):
    """What a biography tells about a person."""

    BIRTHDAY = "birthday"
    CITY = "city"
    MAJOR = "major"
    UNIVERSITY = "university"
    COMPANY = "company"

    @property
    def relation(self) -> str:
        """The query prompt's text after the subject, with its leading space."""
        return _RELATIONS[self]

    def prompt(self, subject: str) -> str:
        """Return the query prompt for a subject; the attribute's value follows it after a space."""
        return subject + self.relation


_RELATIONS = {
    Attribute.BIRTHDAY: " was born on",
    Attribute.CITY: " lives in the city of",
    Attribute.MAJOR: " majors in the field of",
    Attribute.UNIVERSITY: " graduates from the",
    Attribute.COMPANY: " works for the company of",
}

#: The attributes whose circuits are discovered.
TASKS: tuple[Attribute, ...] = (Attribute.CITY, Attribute.COMPANY, Attribute.MAJOR)

#: The longest generated answer to a query, in tokens.
MAX_NEW_TOKENS = 15

#: The longest answer to a question about documents, as in the published code of arXiv 2601.03858.
ANSWER_TOKENS = 25

#: A name length with this many subjects or fewer gives too little choice of corrupted subjects.
RARE_LENGTH = 5


#: Values of grouping columns in the order of the folders, such as (("type", "new"), ("frequency", "high")).
Columns = tuple[tuple[str, str], ...]


def group_columns(knowledge: KnowledgeType | str, band: Band | str) -> Columns:
    """Return the study's own grouping columns."""
    return (("type", str(knowledge)), ("frequency", str(band)))


@dataclass(frozen=True, order=True)
class Group:
    """The study's unit of circuit discovery: one task's prompts about people of one type and one band."""

    task: Attribute
    type: KnowledgeType
    band: Band

    @property
    def columns(self) -> Columns:
        return group_columns(self.type, self.band)

    @property
    def keys(self) -> dict[str, str]:
        """How result files and the meta of graphs name the group, beside its task."""
        return dict(self.columns)

    def __str__(self) -> str:
        return f"{self.task} / {self.type} / {self.band}"


@dataclass(frozen=True, order=True)
class FactGroup:
    """The unit of circuit discovery for facts of one's own: the prompts of a file that share the grouping values.

    Attributes:
        task: the name of the file, without its ending.
        columns: the grouping columns and their values.
    """

    task: str
    columns: Columns

    @property
    def name(self) -> str:
        """The values of the grouping columns."""
        return " / ".join(value for _, value in self.columns)

    @property
    def keys(self) -> dict[str, str]:
        """How result files and the meta of graphs name the group, beside its task."""
        return {"group": self.name}

    def __str__(self) -> str:
        return f"{self.task} / {self.name}"


AnyGroup = Group | FactGroup


def task_file(template: str, task: str) -> str:
    """Return the data file of one task: `{task}` in the template stands for the task's name."""
    return template.replace("{task}", task)


def groups(
    tasks: Sequence[Attribute] = TASKS,
    types: Sequence[KnowledgeType] = tuple(KnowledgeType),
    bands: Sequence[Band] = tuple(Band),
) -> Iterator[Group]:
    """Yield the product of tasks, types and bands, in that order."""
    return (Group(*parts) for parts in product(tasks, types, bands))
