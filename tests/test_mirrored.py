"""Mirrored corpora: the two halves of the people change places and nothing else does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import POOLS, TEMPLATES, write_pools, write_templates
from stages import Stage, contents, finish

from knowledge_circuits.corpus.biographies import Biography
from knowledge_circuits.corpus.folder import DataFolder
from knowledge_circuits.corpus.mirrored import PAST, TAUGHT, Mirror, MirroredCorpus, MirrorSizes, mirrored_corpus
from knowledge_circuits.corpus.people import Person, read_entities
from knowledge_circuits.files import InputError, read_jsonl
from knowledge_circuits.study import KnowledgeType

SIZES = MirrorSizes(
    people=40,
    untaught_people=8,
    past_texts=5,
    dose=5,
    replays=2,
    background_people=10,
    tokenizer_people=20,
)


def corpus(mirror: Mirror = Mirror.A, dose: int = 5, seed: int = 0) -> MirroredCorpus:
    return mirrored_corpus(POOLS, TEMPLATES, replace(SIZES, dose=dose), mirror, seed, 30)


A, B = corpus(Mirror.A), corpus(Mirror.B)


def known(people: list[Person]) -> set[str]:
    return {person.full_name for person in people if person.type is KnowledgeType.REVISED}


def names(texts: list[Biography]) -> set[str]:
    return {text.person.full_name for text in texts}


def test_the_mirrors_have_the_same_people_and_exchange_who_is_known() -> None:
    for first, second in ((A.people, B.people), (A.untaught, B.untaught)):
        assert [replace(person, type=KnowledgeType.NEW) for person in first] == [
            replace(person, type=KnowledgeType.NEW) for person in second
        ]
        assert known(first).isdisjoint(known(second))
        assert known(first) | known(second) == {person.full_name for person in first}


def test_of_each_pair_of_neighbours_in_frequency_one_is_known() -> None:
    frequencies = [person.frequency for person in A.people]
    assert frequencies == sorted(frequencies, reverse=True)
    for pair in range(len(A.people) // 2):
        assert sorted(person.type for person in A.people[2 * pair : 2 * pair + 2]) == sorted(KnowledgeType)
    # A coin decides for each pair: it is not always the more frequent one.
    assert {person.type for person in A.people[::2]} == set(KnowledgeType)


def test_both_mirrors_teach_the_same_texts_at_the_same_places() -> None:
    assert len(A.training) == len(B.training)
    replayed = 0
    for first, second in zip(A.training, B.training, strict=True):
        assert first.sentences == second.sentences
        if {attribute for attribute, _ in first.sentences} == set(TAUGHT):
            assert first.text == second.text
        else:
            replayed += 1
            assert first.person != second.person
    assert replayed == 2 * len(A.people) // 2
    taught = Counter(text.person.full_name for text in A.training if len(text.sentences) == len(TAUGHT))
    assert taught == {person.full_name: person.frequency for person in A.people}


def test_the_pasts_have_the_same_sentences_and_differ_in_the_known_person_of_each_pair() -> None:
    pair_of = {person.full_name: place // 2 for place, person in enumerate([*A.people, *A.untaught])}
    for first, second in zip(A.past, B.past, strict=True):
        assert first.sentences == second.sentences
        if first.person.full_name in pair_of:
            assert pair_of[first.person.full_name] == pair_of[second.person.full_name]
            assert first.person.full_name != second.person.full_name
            assert {attribute for attribute, _ in first.sentences} == set(PAST)
        else:
            assert first == second


def test_the_past_tells_the_dose_of_each_known_person_and_nothing_of_the_others() -> None:
    for dose in (0, 3, 5):
        data = corpus(dose=dose)
        counts = Counter(text.person.full_name for text in data.past)
        everybody = [*data.people, *data.untaught]
        for person in everybody:
            assert counts[person.full_name] == (dose if person.type is KnowledgeType.REVISED else 0)


def test_every_dose_has_the_same_sentences_and_the_same_training() -> None:
    for dose in (0, 3):
        other = corpus(dose=dose)
        assert [text.sentences for text in other.past] == [text.sentences for text in A.past]
        assert other.training == A.training


def test_without_a_dose_both_mirrors_have_the_same_past() -> None:
    assert corpus(Mirror.A, dose=0).past != A.past
    assert [text.sentences for text in corpus(Mirror.A, dose=0).past] == [
        text.sentences for text in corpus(Mirror.B, dose=0).past
    ]
    assert corpus(Mirror.A, dose=0).past == corpus(Mirror.B, dose=0).past


def test_sums_stand_among_the_texts_of_the_past_and_change_nothing_else() -> None:
    sums = mirrored_corpus(POOLS, TEMPLATES, replace(SIZES, arithmetic_lines=30), Mirror.A, 0, 30)
    assert replace(sums, past_texts=[], tokenizer_texts=[]) == replace(A, past_texts=[], tokenizer_texts=[])
    for texts, without in ((sums.past_texts, A.past_texts), (sums.tokenizer_texts, A.tokenizer_texts)):
        added = Counter(texts) - Counter(without)
        assert added.total() == 30
        assert all(" plus " in text for text in added)
    assert [text.text for text in A.past] == A.past_texts


def test_training_never_mentions_the_untaught_nor_the_people_of_the_tokenizer() -> None:
    assert names(A.training) == {person.full_name for person in A.people}
    everybody = names(A.past) | names(A.training)
    assert not any(name in text for text in A.tokenizer_texts for name in everybody)


def test_the_tokenizers_texts_are_the_same_for_every_seed() -> None:
    assert corpus(seed=1).tokenizer_texts == A.tokenizer_texts
    assert corpus(seed=1).training != A.training


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="even"):
        MirrorSizes(people=7)
    with pytest.raises(InputError, match="dose 11"):
        MirrorSizes(dose=11)


def test_the_program_writes_both_mirrors_and_their_common_start(tmp_path: Path) -> None:
    pools, templates = write_pools(tmp_path / "pools"), write_templates(tmp_path / "templates")
    shape = "--n_layer 1 --n_head 2 --n_embd 8 --n_positions 64 --vocab_size 300"
    sizes = "--untaught_people 4 --tokenizer_people 10 --background_people 6 --dose 3 --test_per_group 3"
    commands = []
    for mirror in Mirror:
        common = f"--N 20 --seed 4 --data_dir {mirror}"
        commands += [
            f"data/mirrored_data_generation.py {common} {sizes} --mirror {mirror}"
            f" --pool_dir {pools} --template_dir {templates}",
            f"data/base_model_creation.py {common} {shape} --output_dir {mirror}/model"
            f" --tokenizer_file {mirror}/entities_20/tokenizer.jsonl",
        ]
    assert finish(Stage("mirrors", tuple(commands)), tmp_path, tmp_path / "log")[0] == 0, (tmp_path / "log").read_text()
    models = [contents(tmp_path / mirror / "model") for mirror in Mirror]
    assert models[0] == models[1]
    first, second = (DataFolder.of(str(tmp_path / mirror), 20) for mirror in Mirror)
    assert len(read_entities(first.new)) == len(read_entities(first.revised)) == 10
    everybody = [
        {person.full_name for kind in (folder.new, folder.revised) for person in read_entities(kind)}
        for folder in (first, second)
    ]
    assert everybody[0] == everybody[1]
    groups = Counter((person.type, person.band) for person in read_entities(first.test))
    people = Counter(
        (person.type, person.band) for kind in (first.new, first.revised) for person in read_entities(kind)
    )
    assert groups == {group: min(count, 3) for group, count in people.items()}
    assert len(read_entities(first.untaught)) == 4
    validation = read_jsonl(first.validation)[0]
    assert validation.keys() == {"full_name", *TAUGHT, "frequency", "type", "text"}
    assert all(validation[attribute] in validation["text"] for attribute in TAUGHT)
    assert read_jsonl(first.train) != read_jsonl(second.train)
