"""People, facts and texts: the protocol's numbers, the same bytes from the same seed, and what readers refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import POOLS, TEMPLATES, write_pools, write_templates

from knowledge_circuits.corpus.biographies import Template, load_templates, sample_validation, training_corpus
from knowledge_circuits.corpus.folder import DataFolder
from knowledge_circuits.corpus.people import (
    Person,
    Stream,
    contradict,
    draw_frequencies,
    generate_people,
    invented_names,
    load_pools,
    read_entities,
    read_people,
    read_people_of,
    revised_count,
    sample_groups,
    stream,
)
from knowledge_circuits.files import InputError, write_jsonl
from knowledge_circuits.records import shape
from knowledge_circuits.study import Attribute, Band, KnowledgeType

ROOT = Path(__file__).resolve().parents[1]


def generate_files(folder: Path, hash_seed: str, seed: int = 3) -> dict[str, bytes]:
    """Run the first three data programs as a user does and return the files they wrote."""
    pools, templates = write_pools(folder / "pools"), write_templates(folder / "templates")
    common = ["--N", "60", "--seed", str(seed), "--data_dir", str(folder / "data")]
    for program, flags in (
        ("datapoint_generation", ["--pool_dir", str(pools), "--revised_share", "0.5"]),
        ("text_data_generation", ["--template_dir", str(templates), "--validation_lines", "20"]),
        ("query_data_generation", ["--test_per_group", "5"]),
    ):
        command = [sys.executable, str(ROOT / "data" / f"{program}.py"), *common, *flags]
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in (folder / "data" / "entities_60").glob("*.jsonl")}


def test_the_same_seed_gives_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    first = generate_files(tmp_path / "a", "0")
    assert set(first) == {"new.jsonl", "revised.jsonl", "train.jsonl", "validation.jsonl", "test.jsonl"}
    assert first == generate_files(tmp_path / "b", "1234")
    other = generate_files(tmp_path / "c", "0", seed=4)
    assert all(first[name] != other[name] for name in first)


def test_names_are_unique_and_no_invented_name_is_a_real_one() -> None:
    pools = replace(POOLS, people=(*POOLS.people, "Ban Cel Disen"))
    new, revised = generate_people(900, 0, pools, revised_share=0.05)
    names = [person.full_name for person in new + revised]
    assert len(set(names)) == len(names) == 900
    assert not {person.full_name for person in new} & set(pools.people)
    assert {person.full_name for person in revised} <= set(pools.people)


def test_invented_names_can_use_up_the_pools_but_not_more() -> None:
    pools = replace(POOLS, first_names=("A", "B"), middle_names=("C", "A"), last_names=("D", "E"), people=("A C D",))
    # of the eight combinations two say A twice, and A C D is a real person
    assert len(set(invented_names(5, pools, stream(0, Stream.NEW_NAMES)))) == 5
    assert len(invented_names(4, pools, stream(0, Stream.NEW_NAMES), taken=["B C D"])) == 4
    with pytest.raises(InputError, match="6 invented names are wanted and the name pools make only 5"):
        invented_names(6, pools, stream(0, Stream.NEW_NAMES))
    with pytest.raises(InputError, match="1,000,000,000,000 invented names are wanted and the name pools make only 8"):
        invented_names(10**12, pools, stream(0, Stream.NEW_NAMES))


def test_frequencies_follow_the_rounded_exponential_distribution() -> None:
    drawn = draw_frequencies(50_000, 0.4, stream(0, Stream.FREQUENCIES))
    assert drawn == sorted(drawn, reverse=True)
    assert min(drawn) == 1
    share = Counter(Band.of(frequency) for frequency in drawn)
    # P(round(x) <= 1) = 1 - exp(-0.4 * 1.5); P(round(x) > 5) = exp(-0.4 * 5.5)
    assert share[Band.LOW] / 50_000 == pytest.approx(1 - np.exp(-0.6), abs=0.01)
    assert share[Band.HIGH] / 50_000 == pytest.approx(np.exp(-2.2), abs=0.01)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_revised_people_have_the_frequencies_of_new_people_even_when_they_outnumber_them(share: float) -> None:
    new, revised = generate_people(60, 0, POOLS, revised_share=share)
    assert (len(new), len(revised)) == (round(60 * (1 - share)), round(60 * share))
    for index, person in enumerate(revised):
        assert person.frequency == new[index * len(new) // len(revised)].frequency
    assert {person.type for person in new} == {KnowledgeType.NEW}
    assert {person.type for person in revised} == {KnowledgeType.REVISED}


def test_all_people_can_be_revised() -> None:
    new, revised = generate_people(60, 0, POOLS, revised_share=1.0)
    assert not new
    assert len({person.frequency for person in revised}) > 3


def test_more_revised_people_than_the_pool_holds_are_refused_with_both_numbers_and_the_remedy() -> None:
    with pytest.raises(InputError, match=r"10,000 real people and the pool holds 3,000.*--people_file"):
        revised_count(50_000, 0.2, 3_000)


def test_without_a_share_the_pool_limits_the_revised_people_and_that_is_said(capsys: pytest.CaptureFixture) -> None:
    assert revised_count(10_000, None, 3_000) == 2_000
    assert not capsys.readouterr().out
    assert revised_count(50_000, None, 3_000) == 3_000
    assert "3,000 of 50,000" in capsys.readouterr().out


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        revised_count(100, share, 100)


def test_birthdays_stay_within_the_protocol() -> None:
    new, _ = generate_people(1_000, 0, POOLS, revised_share=0.0)
    assert {int(person.birth_date) for person in new} == set(range(1, 29))
    assert len({person.birth_month for person in new}) == 12
    years = {int(person.birth_year) for person in new}
    assert min(years) >= 1900
    assert max(years) <= 2025
    assert len(years) > 115
    one = new[0]
    assert one.birthday == f"{one.birth_date} {one.birth_month}, {one.birth_year}"


def test_a_person_of_frequency_f_has_f_biographies_each_with_all_five_facts() -> None:
    new, revised = generate_people(80, 0, POOLS, revised_share=0.5)
    corpus = training_corpus(new + revised, TEMPLATES, 0)
    counts = Counter(biography.person.full_name for biography in corpus)
    assert counts == {person.full_name: person.frequency for person in new + revised}
    for biography in corpus:
        assert biography.text.count(biography.person.full_name) == 5
        assert all(biography.person.value(attribute) in biography.text for attribute in Attribute)


def test_sentences_vary_in_order_and_wording() -> None:
    new, _ = generate_people(300, 0, POOLS, revised_share=0.0)
    texts = [biography.text for biography in training_corpus(new, TEMPLATES, 0)]
    first_told = Counter(min(Attribute, key=lambda attribute: text.find(attribute.value)) for text in texts)
    assert all(first_told[attribute] > len(texts) / 10 for attribute in Attribute)
    wordings = Counter("has as city" in text for text in texts)
    assert wordings[True] == pytest.approx(len(texts) / 3, rel=0.2)


def test_biographies_of_one_person_do_not_stand_together() -> None:
    new, _ = generate_people(200, 0, POOLS, revised_share=0.0)
    names = [biography.person.full_name for biography in training_corpus(new, TEMPLATES, 0)]
    assert sum(one == after for one, after in pairwise(names)) < len(names) / 20


def test_validation_lines_are_lines_of_the_corpus() -> None:
    new, _ = generate_people(100, 0, POOLS, revised_share=0.0)
    corpus = training_corpus(new, TEMPLATES, 0)
    sample = sample_validation(corpus, 30, 0)
    places = [next(i for i, biography in enumerate(corpus) if biography is one) for one in sample]
    assert len(set(places)) == 30
    assert places == sorted(places)
    assert sample_validation(corpus, 10**6, 0) == corpus


def test_the_test_sample_takes_as_many_from_each_group_or_all_there_are() -> None:
    new, revised = generate_people(128, 0, POOLS, revised_share=0.5)
    sample = sample_groups(new + revised, 10, stream(0, Stream.TEST))
    there = Counter((person.type, person.band) for person in new + revised)
    assert Counter((person.type, person.band) for person in sample) == {
        group: min(10, count) for group, count in there.items()
    }
    assert min(there.values()) < 10  # so both cases occur
    assert sample != sample_groups(new + revised, 10, stream(1, Stream.TEST))


def test_contradicting_changes_every_fact_and_nothing_else() -> None:
    new, _ = generate_people(500, 0, POOLS, revised_share=0.0)
    stranger = replace(new[0], full_name="Own Person", city="Not in the pool", birthday="in spring")
    people = [*new, stranger]
    for before, after in zip(people, contradict(people, POOLS, stream(0, Stream.CONFLICT_FACTS)), strict=True):
        assert (after.full_name, after.type, after.frequency) == (before.full_name, before.type, before.frequency)
        assert all(after.value(attribute) != before.value(attribute) for attribute in Attribute)
        assert after.birth_date != before.birth_date
        assert after.birthday == f"{after.birth_date} {after.birth_month}, {after.birth_year}"
    with pytest.raises(InputError, match="at least two values"):
        contradict(people, replace(POOLS, cities=("Only Town, TX",)), stream(0, Stream.CONFLICT_FACTS))


ODD_NAMES = [
    'Ann "Annie" O\'Neil',
    "{subject} {value}",
    "Curly {0} Brace}",
    "Ольга Петрова",
    "山田 太郎",
    "Zoë 🎉 Smith",
    "back\\slash \\n",
    "half line\u2028end",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_told_and_read_back_as_it_is(name: str, tmp_path: Path) -> None:
    new, _ = generate_people(3, 0, POOLS, revised_share=0.0)
    people = [replace(new[0], full_name=name), new[1]]
    write_jsonl(tmp_path / "people.jsonl", (person.to_row() for person in people))
    assert read_entities(tmp_path / "people.jsonl") == people
    told = [one for one in training_corpus(people, TEMPLATES, 0) if one.person.full_name == name]
    assert all(one.text.count(name) == 5 for one in told)
    assert Template.parse("It is {value}, says {subject}.", "here").fill(name, "x") == f"It is x, says {name}."


@pytest.mark.parametrize("text", ["{subject} only", "{value} {value}", "{subject} {value} {subject}", "", 3, None])
def test_a_template_without_both_places_exactly_once_is_refused(text: object, tmp_path: Path) -> None:
    folder = write_templates(tmp_path)
    (folder / "city.json").write_text(json.dumps(["{subject} is in {value}.", text]), encoding="utf-8")
    with pytest.raises(InputError, match=r"city\.json[:,] entry 1"):
        load_templates(folder)


def test_entities_may_have_frequencies_as_text_and_keys_of_their_own(tmp_path: Path) -> None:
    new, _ = generate_people(1, 0, POOLS, revised_share=0.0)
    row = {**new[0].to_row(), "frequency": "7", "birth_date": 4, "note": "mine"}
    (tmp_path / "own.jsonl").write_text("\n" + json.dumps(row) + "\n\n", encoding="utf-8")
    assert read_entities(tmp_path / "own.jsonl") == [replace(new[0], frequency=7, birth_date="4")]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("frequency", 0, "'frequency' must be"),
        ("frequency", 2.5, "'frequency' must be"),
        ("frequency", True, "'frequency' must be"),
        ("frequency", 10**300, "'frequency' must be"),
        ("frequency", "many", "'frequency' must be"),
        ("frequency", None, "'frequency' must be"),
        ("type", "newish", "'type' must be 'new' or 'revised'"),
        ("type", ["new"], "'type' must be 'new' or 'revised'"),
        ("full_name", "  ", "'full_name' must be a text"),
        ("city", 3, "'city' must be a text"),
        ("major", "\ud800", "surrogate"),
    ],
)
def test_a_bad_value_is_refused_with_file_line_and_reason(key: str, value: object, reason: str, tmp_path: Path) -> None:
    new, _ = generate_people(2, 0, POOLS, revised_share=0.0)
    rows = [new[0].to_row(), {**new[1].to_row(), key: value}]
    path = tmp_path / "new.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    with pytest.raises(InputError, match=rf"new\.jsonl, line 2: .*{reason}"):
        read_entities(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from([field.name for field in fields(Person)]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    ),
)
def test_whatever_stands_in_a_row_is_taken_as_it_is_or_refused_by_line(tmp_path: Path, key: str, value: object) -> None:
    new, _ = generate_people(1, 0, POOLS, revised_share=0.0)
    row = {**new[0].to_row(), key: value}
    path = tmp_path / "new.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    try:
        person = read_entities(path)[0]
    except InputError as error:
        assert "new.jsonl, line 1: " in str(error)
    else:
        assert str(person.to_row()[key]) == str(value).strip() or person.to_row()[key] == value


def test_a_missing_key_a_repeated_name_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    new, _ = generate_people(2, 0, POOLS, revised_share=0.0)
    path = tmp_path / "new.jsonl"
    row = new[0].to_row()
    del row["major"]
    write_jsonl(path, [row])
    with pytest.raises(InputError, match="line 1: no key 'major'"):
        read_entities(path)
    write_jsonl(path, [new[0].to_row(), new[1].to_row(), new[0].to_row()])
    with pytest.raises(InputError, match=f"line 3: '{new[0].full_name}' already stands on line 1"):
        read_entities(path)
    write_jsonl(path, [])
    with pytest.raises(InputError, match="no people"):
        read_entities(path)


def test_nobody_is_both_new_and_revised(tmp_path: Path) -> None:
    new, _ = generate_people(2, 0, POOLS, revised_share=0.0)
    folder = DataFolder(tmp_path)
    with pytest.raises(InputError, match=r"run data/datapoint_generation\.py"):
        read_people_of(folder)
    write_jsonl(folder.new, (person.to_row() for person in new))
    write_jsonl(folder.revised, [replace(new[1], type=KnowledgeType.REVISED).to_row()])
    with pytest.raises(InputError, match="a person is new or revised"):
        read_people_of(folder)


def test_people_come_from_the_name_column_of_a_csv_and_count_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "people.csv"
    article = "x" * 200_000  # beyond the csv module's usual limit
    path.write_text(
        f'\ufeffURI,name,text\n1,Ada Byron,{article}\n2,"Smith, ""Jo""",b\n3,Ada  Byron,c\n4,,d\n5,Ольга,e\n',
        encoding="utf-8",
    )
    assert read_people(path) == ("Ada Byron", 'Smith, "Jo"', "Ольга")
    assert "1 of 4 names" in capsys.readouterr().out
    assert load_pools(write_pools(tmp_path / "pools"), people_file=path).people[0] == "Ada Byron"


@pytest.mark.parametrize("content", ["title\nAda\n", "", "name\n", "name\n\n ,\n"])
def test_a_csv_without_names_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"people\.csv: no .*name"):
        read_people(path)


@pytest.mark.parametrize("content", ["{}", "[]", '["ok", ""]', '["ok", 3]', "nonsense"])
def test_a_malformed_pool_is_refused_by_name(content: str, tmp_path: Path) -> None:
    folder = write_pools(tmp_path)
    (folder / "majors.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"majors\.json"):
        load_pools(folder)


def test_a_row_keeps_everything_about_a_person() -> None:
    new, _ = generate_people(1, 0, POOLS, revised_share=0.0)
    facts = ["birth_date", "birth_month", "birth_year", "birthday", "city", "major", "university", "company"]
    assert list(new[0].to_row()) == ["full_name", *facts, "frequency", "type"]
    assert shape(Person).check(new[0].to_row(), "here") == new[0]
