"""Synthetic people: who they are, their facts, how often each occurs, and samples of them.

The protocol (Ou et al. 2025, section 3.1): N people, of whom a share are real ("revised": the model knows them, the
facts are new) and the rest invented ("new"). Each has five attributes drawn from pools and a frequency
round(Exp(0.4)), at least 1; revised person i has the frequency of new person floor(i n_new / n_revised), so both types
have the same distribution.

Everything is a function of a seed and of the pools: each purpose draws from its own stream (`stream`), in a fixed
order, so the same seed gives the same bytes on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from knowledge_circuits.corpus.folder import DataFolder, whole_file
from knowledge_circuits.files import InputError, numbered_csv
from knowledge_circuits.records import Digits, Frequency, Text, Texts, Type, shape
from knowledge_circuits.study import Attribute, Band, KnowledgeType

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
LAST_DAY = 28
BIRTH_YEARS = (1900, 2025)

Value = TypeVar("Value")


class Stream(IntEnum):
    """The independent random streams of the data; a purpose never disturbs another's draws."""

    NEW_NAMES = 1
    REVISED_NAMES = 2
    FREQUENCIES = 3
    NEW_FACTS = 4
    REVISED_FACTS = 5
    TEXTS = 6
    VALIDATION = 7
    TEST = 8
    CIRCUIT_PEOPLE = 9
    CORRUPTION = 10
    FORGET_NAMES = 11
    FORGET_FACTS = 12
    FORGET_TEXTS = 13
    CONFLICT_FACTS = 14
    CONFLICT_TEXTS = 15
    REPLAY_TEXTS = 16
    PRIOR_FACTS = 17
    PRIOR_TEXTS = 18
    BACKGROUND_NAMES = 19
    BACKGROUND_FACTS = 20
    ARITHMETIC = 21
    PRIOR_ORDER = 22
    HALVES = 23
    ENCYCLOPEDIA_NAMES = 24
    ENCYCLOPEDIA_FACTS = 25
    ENCYCLOPEDIA_TEXTS = 26
    ENCYCLOPEDIA_QUESTIONS = 27


def stream(seed: int, purpose: Stream, index: int = 0) -> np.random.Generator:
    """Return the random generator of one purpose under a seed; `index` where one purpose needs several streams."""
    return np.random.default_rng([seed, int(purpose), index])


def shuffled(values: Sequence[Value], generator: np.random.Generator) -> list[Value]:
    """Return the values in random order."""
    return [values[index] for index in generator.permutation(len(values)).tolist()]


@dataclass(frozen=True)
class Person:
    """One person and the facts that a corpus tells: a line of new.jsonl, revised.jsonl or test.jsonl.

    Attributes:
        frequency: how often the person's biography stands in the training corpus.
        type: whether the model knew the person before.
    """

    full_name: Text
    birth_date: Digits
    birth_month: Text
    birth_year: Digits
    birthday: Text
    city: Text
    major: Text
    university: Text
    company: Text
    frequency: Frequency
    type: Type

    @property
    def band(self) -> Band:
        """The frequency band."""
        return Band.of(self.frequency)

    def value(self, attribute: Attribute) -> str:
        """Return the attribute's value as texts tell it."""
        return str(getattr(self, attribute.value))

    def to_row(self) -> dict[str, Any]:
        """Return the person as a JSON object."""
        return {**self.__dict__, "type": self.type.value}


def read_entities(path: str | Path, least: int = 1) -> list[Person]:
    """Read a file of at least `least` people (new.jsonl, revised.jsonl, test.jsonl): one line each, no name twice.

    Raises:
        InputError: with file, line and reason; also where there are too few people in the file, or it is not as its
            manifest says.
    """
    people: list[Person] = []
    lines: dict[str, int] = {}
    for number, person in shape(Person).numbered(whole_file(path)):
        if person.full_name in lines:
            first = lines[person.full_name]
            raise InputError(f"{path}, line {number}: {person.full_name!r} already stands on line {first}")
        lines[person.full_name] = number
        people.append(person)
    if len(people) < least:
        raise InputError(f"{path}: {len(people) or 'no'} people in it")
    return people


def read_people_of(folder: DataFolder) -> tuple[list[Person], list[Person]]:
    """Return the new and the revised people of a data folder; one of the two files may be empty.

    Raises:
        InputError: a file is missing or malformed, a name stands in both, or nobody in either.
    """
    paths = [folder.require(path, "datapoint_generation.py") for path in (folder.new, folder.revised)]
    new, revised = (read_entities(path, least=0) for path in paths)
    both = sorted({person.full_name for person in new} & {person.full_name for person in revised})
    if both:
        raise InputError(f"{both[0]!r} stands both in {paths[0]} and in {paths[1]}; a person is new or revised")
    if not new and not revised:
        raise InputError(f"{folder.path}: no people in new.jsonl nor in revised.jsonl")
    return new, revised


def count_table(people: Iterable[Person]) -> str:
    """Return how many people there are of each type and band, as a small text table."""
    counts = Counter((person.type, person.band) for person in people)
    lines = [f"{'people':<10}" + "".join(f"{band:>9}" for band in Band)]
    lines += [f"{type_:<10}" + "".join(f"{counts[type_, band]:>9,}" for band in Band) for type_ in KnowledgeType]
    return "\n".join(lines)


@dataclass(frozen=True)
class Pools:
    """What names and facts are drawn from; no pool holds anything twice."""

    first_names: tuple[str, ...]
    middle_names: tuple[str, ...]
    last_names: tuple[str, ...]
    cities: tuple[str, ...]
    companies: tuple[str, ...]
    majors: tuple[str, ...]
    universities: tuple[str, ...]
    people: tuple[str, ...]
    birth_years: tuple[int, int] = BIRTH_YEARS


_POOL_FILES = ("first_names", "middle_names", "last_names", "cities", "companies", "majors", "universities")


def load_pools(
    folder: str | Path, people_file: str | Path | None = None, birth_years: tuple[int, int] = BIRTH_YEARS
) -> Pools:
    """Read the selection pools.

    Args:
        folder: has one JSON list of texts per pool, `<pool>.json`.
        people_file: a CSV with a `name` column instead of `people.json`.
        birth_years: the first and the last year of birth.

    Raises:
        InputError: a pool is missing, malformed or empty, or the years are in the wrong order.
    """
    if birth_years[0] > birth_years[1]:
        raise InputError(f"the first birth year, {birth_years[0]}, is after the last, {birth_years[1]}")
    pools = {name: _read_pool(Path(folder) / f"{name}.json") for name in _POOL_FILES}
    people = read_people(people_file) if people_file is not None else _read_pool(Path(folder) / "people.json")
    return Pools(**pools, people=people, birth_years=birth_years)


def _read_pool(path: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys(shape(Texts).file(path)))


def read_people(path: str | Path) -> tuple[str, ...]:
    """Read the `name` column of a CSV; a name that stands there twice counts once, and that is said.

    Raises:
        InputError: no such column, or no names in it.
    """
    rows = [row for _, row in numbered_csv(path)]
    if rows and "name" not in rows[0]:
        raise InputError(f"{path}: no column `name` in its first line")
    names = [name for row in rows if (name := " ".join(row["name"].split()))]
    different = tuple(dict.fromkeys(names))
    if not different:
        raise InputError(f"{path}: no names in its column `name`")
    if len(different) < len(names):
        print(
            f"{path}: {len(names) - len(different)} of {len(names)} names stand there more than once; each counts once"
        )
    return different


def invented_names(count: int, pools: Pools, generator: np.random.Generator, taken: Collection[str] = ()) -> list[str]:
    """Draw different full names "first middle last" that no real or other person has.

    Args:
        taken: the other people's names.

    Raises:
        InputError: the pools make too few names.
    """
    parts = (pools.first_names, pools.middle_names, pools.last_names)
    sizes = [len(part) for part in parts]
    total = sizes[0] * sizes[1] * sizes[2]
    avoid = {*pools.people, *taken}
    if count > total:
        raise InputError(
            f"{count:,} invented names are wanted and the name pools make only {total:,}; add names to them"
        )
    names: list[str] = []
    for size in (min(total, 2 * count + 100), total):  # the second time all there are, where few are free
        names, seen = [], set(avoid)
        for combination in generator.choice(total, size=size, replace=False).tolist():
            if len(names) == count:
                break
            rest, last = divmod(combination, sizes[2])
            first, middle = divmod(rest, sizes[1])
            triple = (parts[0][first], parts[1][middle], parts[2][last])
            name = " ".join(triple)
            if name not in seen and len(set(triple)) == 3:
                seen.add(name)
                names.append(name)
        if len(names) == count:
            return names
    raise InputError(
        f"{count:,} invented names are wanted and the name pools make only {len(names):,}; add names to them"
    )


def draw_frequencies(count: int, rate: float, generator: np.random.Generator) -> list[int]:
    """`count` times round(Exp(rate)), at least 1, from the largest to the smallest."""
    if not rate > 0 or not np.isfinite(rate):
        raise InputError(f"the frequency rate must be a number above 0, not {rate}")
    drawn = np.maximum(1, np.rint(generator.exponential(1.0 / rate, size=count)).astype(np.int64))
    return sorted(drawn.tolist(), reverse=True)


def _fact_pools(pools: Pools) -> dict[str, tuple[str, ...]]:
    """Per drawn key of a person, the values it can take."""
    first, last = pools.birth_years
    return {
        "birth_date": tuple(str(day) for day in range(1, LAST_DAY + 1)),
        "birth_month": MONTHS,
        "birth_year": tuple(str(year) for year in range(first, last + 1)),
        "city": pools.cities,
        "major": pools.majors,
        "university": pools.universities,
        "company": pools.companies,
    }


def _columns_to_rows(facts: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yield each person's facts; the birthday is joined from its three parts."""
    for values in zip(*facts.values(), strict=True):
        row = dict(zip(facts, values, strict=True))
        yield {**row, "birthday": f"{row['birth_date']} {row['birth_month']}, {row['birth_year']}"}


def draw_people(
    names: Sequence[str], frequencies: Sequence[int], type_: KnowledgeType, pools: Pools, generator: np.random.Generator
) -> list[Person]:
    """Give every name facts drawn uniformly from the pools, and its frequency."""
    facts = {key: generator.choice(pool, len(names)).tolist() for key, pool in _fact_pools(pools).items()}
    drawn = zip(names, frequencies, _columns_to_rows(facts), strict=True)
    return [Person(full_name=name, frequency=frequency, type=type_, **row) for name, frequency, row in drawn]


def background_people(count: int, pools: Pools, seed: int, taken: Collection[str], index: int = 0) -> list[Person]:
    """Draw people of a prior corpus (type new, frequency 1), whose names no real or other person has."""
    names = invented_names(count, pools, stream(seed, Stream.BACKGROUND_NAMES, index), taken)
    return draw_people(names, [1] * count, KnowledgeType.NEW, pools, stream(seed, Stream.BACKGROUND_FACTS, index))


def contradict(people: Sequence[Person], pools: Pools, generator: np.random.Generator) -> list[Person]:
    """Return the same people with other facts: every attribute and every part of the birthday differs.

    Raises:
        InputError: a pool has no other value.
    """
    other: dict[str, list[str]] = {}
    for key, pool in _fact_pools(pools).items():
        if len(pool) < 2:
            raise InputError(f"contradicting a {key} takes at least two values in its pool, which has {len(pool)}")
        position = {value: index for index, value in enumerate(pool)}
        shifts = generator.integers(1, len(pool), size=len(people)).tolist()
        old = (position.get(getattr(person, key), 0) for person in people)
        other[key] = [pool[(index + shift) % len(pool)] for index, shift in zip(old, shifts, strict=True)]
    return [replace(person, **row) for person, row in zip(people, _columns_to_rows(other), strict=True)]


DEFAULT_REVISED_SHARE = 0.2
DEFAULT_FREQUENCY_RATE = 0.4


def revised_count(n: int, share: float | None, pool_size: int) -> int:
    """Return how many of n people are real ones.

    Args:
        share: the requested share; None means 20%, or as many as the pool has, which is then said.

    Raises:
        InputError: the share is no share, or asks for more people than the pool has.
    """
    wanted = DEFAULT_REVISED_SHARE if share is None else share
    if not 0 <= wanted <= 1:
        raise InputError(f"the revised share must lie between 0 and 1, not {wanted}")
    count = int(n * wanted + 0.5)
    if count <= pool_size:
        return count
    if share is not None:
        raise InputError(
            f"a revised share of {share:g} of {n:,} people asks for {count:,} real people and the pool holds "
            f"{pool_size:,}; give more with --people_file (a CSV with a `name` column) or lower --revised_share"
        )
    print(
        f"revised share: {pool_size / n:.1%} ({pool_size:,} of {n:,}), all the real people in the pool, instead of 20%"
    )
    return pool_size


def generate_people(
    n: int, seed: int, pools: Pools, revised_share: float | None = None, frequency_rate: float = DEFAULT_FREQUENCY_RATE
) -> tuple[list[Person], list[Person]]:
    """Return the new and the revised people of a data set of n, each from the most to the least frequent.

    Args:
        revised_share: see `revised_count`.
        frequency_rate: the rate of the exponential distribution of frequencies.
    """
    n_revised = revised_count(n, revised_share, len(pools.people))
    n_new = n - n_revised
    names = invented_names(n_new, pools, stream(seed, Stream.NEW_NAMES))
    frequencies = draw_frequencies(n_new or n_revised, frequency_rate, stream(seed, Stream.FREQUENCIES))
    revised = draw_people(
        shuffled(pools.people, stream(seed, Stream.REVISED_NAMES))[:n_revised],
        [frequencies[i * len(frequencies) // n_revised] for i in range(n_revised)],
        KnowledgeType.REVISED,
        pools,
        stream(seed, Stream.REVISED_FACTS),
    )
    new = draw_people(names, frequencies[:n_new], KnowledgeType.NEW, pools, stream(seed, Stream.NEW_FACTS))
    return new, revised


def sample_groups(people: Sequence[Person], per_group: int, generator: np.random.Generator) -> list[Person]:
    """Draw `per_group` people of each type and band, or all where there are fewer; they keep their order."""
    members: dict[tuple[KnowledgeType, Band], list[int]] = {key: [] for key in product(KnowledgeType, Band)}
    for index, person in enumerate(people):
        members[person.type, person.band].append(index)
    chosen = [index for indices in members.values() for index in shuffled(indices, generator)[:per_group]]
    return [people[index] for index in sorted(chosen)]
