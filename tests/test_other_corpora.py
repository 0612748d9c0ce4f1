"""The corpora besides the training corpus: nano's past, and what a finished model is trained on next."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from made_up import POOLS, TEMPLATES, write_pools, write_templates

from knowledge_circuits.corpus.folder import DataFolder
from knowledge_circuits.corpus.other_corpora import (
    PriorSizes,
    forgetting_corpora,
    prior_corpus,
    read_texts,
)
from knowledge_circuits.corpus.people import Person, generate_people, read_people_of
from knowledge_circuits.files import InputError, read_jsonl
from knowledge_circuits.study import Attribute

ROOT = Path(__file__).resolve().parents[1]
NEW, REVISED = generate_people(80, 0, POOLS, revised_share=0.5)
PEOPLE = [*NEW, *REVISED]


def test_forgetting_by_new_people_never_names_an_original_or_a_real_person() -> None:
    corpus, _, _ = forgetting_corpora(PEOPLE, 200, 1, POOLS, TEMPLATES, 0)
    names = {biography.person.full_name for biography in corpus}
    assert len(corpus) == len(names) == 200
    assert not names & {person.full_name for person in PEOPLE}
    assert not names & set(POOLS.people)


def test_forgetting_by_conflict_tells_every_person_once_with_every_fact_changed() -> None:
    _, corpus, _ = forgetting_corpora(PEOPLE, 20, 1, POOLS, TEMPLATES, 0)
    changed = {biography.person.full_name: biography for biography in corpus}
    assert len(changed) == len(corpus) == len(PEOPLE)
    for person in PEOPLE:
        told = changed[person.full_name]
        assert (told.person.type, told.person.frequency) == (person.type, person.frequency)
        for attribute in Attribute:
            assert person.value(attribute) not in told.text
            assert told.person.value(attribute) in told.text


def test_replay_tells_every_person_once_with_the_facts_they_had() -> None:
    _, _, corpus = forgetting_corpora(PEOPLE, 20, 1, POOLS, TEMPLATES, 0)
    assert Counter(biography.person for biography in corpus) == Counter(PEOPLE)
    for biography in corpus:
        assert all(biography.person.value(attribute) in biography.text for attribute in Attribute)


def test_further_training_tells_only_the_attributes_that_training_told() -> None:
    told = [Attribute.CITY, Attribute.MAJOR]
    for biography in chain(*forgetting_corpora(PEOPLE, 20, 1, POOLS, TEMPLATES, 0, told)):
        assert {attribute for attribute, _ in biography.sentences} == set(told)
        keys = {"full_name", "city", "major", "frequency", "type", "text"}
        assert biography.to_row(told).keys() == keys


def told_of(texts: list[str], person: Person) -> list[str]:
    return [text for text in texts if text.count(person.full_name) == 5]


def test_the_past_knows_the_revised_people_by_other_facts_and_the_new_people_not_at_all() -> None:
    sizes = PriorSizes(biographies_per_person=3, background_people=50, background_biographies=2, arithmetic_lines=0)
    texts, held_out = prior_corpus(NEW, REVISED, POOLS, TEMPLATES, sizes, 0)
    assert len(texts) == 3 * len(REVISED) + 2 * 50
    for person in REVISED:
        mine = told_of(texts, person)
        assert len(mine) == 3
        assert not any(person.value(attribute) in text for text in mine for attribute in Attribute)
    assert not any(person.full_name in text for text in texts + held_out for person in NEW)


def test_held_out_texts_are_about_people_the_past_never_mentions() -> None:
    sizes = PriorSizes(background_people=20, held_out_people=10, arithmetic_lines=30)
    texts, held_out = prior_corpus(NEW, REVISED, POOLS, TEMPLATES, sizes, 0)
    assert len(held_out) == 10
    names = [set(re.findall(r"\w+ \w+ \w+sen\b", "\n".join(some))) for some in (texts, held_out)]
    assert [len(some) for some in names] == [20, 10]
    assert not names[0] & names[1]
    without, _ = prior_corpus(NEW, REVISED, POOLS, TEMPLATES, PriorSizes(background_people=20, arithmetic_lines=0), 0)
    assert len(texts) == len(without) + 30


def test_the_past_is_a_function_of_the_seed_in_mixed_order() -> None:
    sizes = PriorSizes(background_people=20, arithmetic_lines=100)
    first = prior_corpus(NEW, REVISED, POOLS, TEMPLATES, sizes, 0)
    assert first == prior_corpus(NEW, REVISED, POOLS, TEMPLATES, sizes, 0)
    assert first != prior_corpus(NEW, REVISED, POOLS, TEMPLATES, sizes, 1)
    sums = [index for index, text in enumerate(first[0]) if " plus " in text]
    assert len(sums) == 100
    assert max(sums) - min(sums) > len(first[0]) / 2


def run(program: str, folder: Path, *flags: str) -> str:
    command = [sys.executable, str(ROOT / "data" / f"{program}.py"), "--N", "40", "--data_dir", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_programs_write_the_corpora_beside_the_people(tmp_path: Path) -> None:
    pools = ["--pool_dir", str(write_pools(tmp_path / "pools"))]
    templates = ["--template_dir", str(write_templates(tmp_path / "templates"))]
    run("datapoint_generation", tmp_path, *pools, "--revised_share", "0.5")
    run(
        "forget_data_generation", tmp_path, *pools, *templates, "--forget_people", "25", "--attributes", "city", "major"
    )
    run("prior_data_generation", tmp_path, *pools, *templates, "--background_people", "10", "--arithmetic_lines", "7")
    folder = DataFolder.of(str(tmp_path), 40)
    people = {person.full_name for part in read_people_of(folder) for person in part}
    assert len(read_jsonl(folder.forget_new)) == 25
    assert {row["full_name"] for row in read_jsonl(folder.forget_conflict)} == people
    assert {row["full_name"] for row in read_jsonl(folder.replay)} == people
    assert read_jsonl(folder.replay)[0].keys() == {"full_name", "city", "major", "frequency", "type", "text"}
    assert len(read_texts(folder.prior)) == 3 * 20 + 2 * 10 + 7
    assert len(read_texts(folder.prior_held_out)) == 50


def test_a_text_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prior.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": 2}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"prior\.jsonl, line 3: 'text' must be a text"):
        read_texts(path)
