"""The invented encyclopedia and the check of documents and questions, through their programs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import tiny
from tiny_run import call, files

from data import check_documents, document_data_generation
from knowledge_circuits.corpus.document_check import longest_run
from knowledge_circuits.corpus.encyclopedia import (
    EncyclopediaSizes,
    load_encyclopedia_pools,
    load_forms,
    make_encyclopedia,
)
from knowledge_circuits.corpus.fact_pairs import match_facts, read_facts
from knowledge_circuits.corpus.people import load_pools
from knowledge_circuits.corpus.questions import Document, Question, entity_frequency, read_documents, read_questions
from knowledge_circuits.files import read_json, read_jsonl, write_jsonl
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.paths import ENCYCLOPEDIA, SELECTION_POOL

SIZES = ["--low", "8", "--high", "6", "--high_documents", "3", "--unmentioned", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_gpt2(tmp_path_factory.mktemp("model") / "checkpoint-0", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    data = tmp_path_factory.mktemp("data")
    flags = [*SIZES, "--data_dir", str(data), "--model_name_or_path", str(model)]
    assert call(document_data_generation.main, flags) == 0
    return data / "documents_14"


@pytest.fixture(scope="module")
def documents(folder: Path) -> list[Document]:
    return read_documents(folder / "documents.jsonl")


@pytest.fixture(scope="module")
def questions(folder: Path) -> list[Question]:
    return read_questions(folder / "questions.jsonl")


def test_entities_have_as_many_articles_as_their_frequency_says(documents, questions) -> None:
    articles = Counter(document.entity for document in documents)
    assert Counter(articles.values()) == {1: 8, 3: 6}
    labels = entity_frequency(documents, questions)
    assert Counter(labels.values()) == {"low": 8, "high": 6, "unmentioned": 4}
    for entity, label in labels.items():
        assert articles[entity] == {"low": 1, "high": 3, "unmentioned": 0}[label]
    several = [document.text for document in documents if articles[document.entity] == 3]
    assert len(set(several)) == 18, "an entity's articles are worded differently"


def test_every_entity_has_a_question_of_each_kind_and_its_document_supports_the_answer(documents, questions) -> None:
    by_id = {document.document: document for document in documents}
    asked = Counter((question.entity, question.kind) for question in questions if question.answers)
    assert set(asked.values()) == {1} and len(asked) == 14 * 3
    for question in questions:
        assert len(question.paraphrases) == 3 and len({question.question, *question.paraphrases}) == 4
        if not question.answers:
            assert question.kind == question.frequency == "unmentioned"
            continue
        text = by_id[question.document].text
        assert question.supports in text and question.answers[0] in question.supports
        if question.kind == "time-sensitive":
            year = int(re.search(r"\b(1[89]|20)\d\d\b", question.question)[0])
            start, end = sorted(int(number) for number in re.findall(r"\b(?:1[89]|20)\d\d\b", question.supports))
            assert start < year < end


def test_no_wording_of_a_question_and_no_unmentioned_entity_stands_in_the_documents(documents, questions) -> None:
    everything = "\n".join(document.text for document in documents)
    for question in questions:
        assert not any(wording in everything for wording in (question.question, *question.paraphrases))
        assert (question.entity in everything) == (question.frequency != "unmentioned")


def test_no_question_asks_for_an_event_of_which_the_articles_of_others_tell() -> None:
    forms, pools = load_forms(ENCYCLOPEDIA / "templates.json"), load_encyclopedia_pools(ENCYCLOPEDIA / "pools.json")
    for seed in range(4):
        made = make_encyclopedia(load_pools(SELECTION_POOL), pools, forms, EncyclopediaSizes(), seed)
        events = {fact.details["event"] for entity in made.entities for fact in entity.facts if "event" in fact.details}
        assert not [q for q in made.questions if q.supports and any(event in q.supports for event in events)]


def test_events_connect_entities(documents) -> None:
    entities = {document.entity for document in documents}
    shared = [
        (document.entity, other)
        for document in documents
        for other in entities
        if other != document.entity and other in document.text
    ]
    assert len(set(shared)) >= 9, "each person's article names the town of an event"


def test_held_out_articles_are_about_the_unmentioned_entities(folder: Path, questions) -> None:
    held_out = read_documents(folder / "held_out.jsonl")
    assert {document.entity for document in held_out} == {q.entity for q in questions if q.frequency == "unmentioned"}


def test_pairs_match_in_length_within_a_relation(folder: Path, model: Path) -> None:
    facts = read_facts(str(folder / "pairs.csv"))
    groups = {fact.group for fact in facts}
    assert len(groups) > 4 and len(facts) > 20
    for group in groups:
        matched = match_facts([fact for fact in facts if fact.group == group], load_tokenizer(str(model)))
        assert not matched.unmatched and all(clean != corrupted for clean, corrupted in matched.pairs.labels)
    with open(folder / "pairs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    prompts = {(row["group"], row["prompt"]) for row in rows}
    completions = {row["prompt"]: row["answer"] for row in rows}
    for row in rows:
        assert (row["group"], row["corrupted"]) in prompts
        assert row["corrupted_answer"] == completions[row["corrupted"]]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_corpus(folder, model, tmp_path) -> None:
    same = [*SIZES, "--data_dir", str(tmp_path), "--model_name_or_path", str(model)]
    assert call(document_data_generation.main, same) == 0
    assert files(tmp_path / "documents_14") == files(folder)
    assert call(document_data_generation.main, [*SIZES, "--data_dir", str(tmp_path), "--seed", "1"]) == 0
    other = files(tmp_path / "documents_14")
    assert other["documents.jsonl"] != files(folder)["documents.jsonl"]
    rows = list(csv.DictReader(other["pairs.csv"].decode().splitlines()))
    assert rows and not any(row["corrupted"] for row in rows), "without a tokenizer the partner is left open"
    manifest = read_json(tmp_path / "documents_14" / "document_data_generation_manifest.json")
    assert manifest["finished"] and set(manifest["files"]) == {*other} - {
        "data_config.json",
        "document_data_generation_manifest.json",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda forms: forms["person"]["relations"].pop("work"), "must name each of"),
        (lambda forms: forms["person"]["relations"]["work"]["sentences"].append("{subject} rests."), r"\{value\}"),
        (lambda forms: forms["place"]["relations"]["river"]["questions"].append("{subject} {who}?"), "no other braces"),
        (lambda forms: forms["place"]["relations"]["river"].update(kind="vague"), "'kind' must be"),
        (lambda forms: forms.pop("place"), "no key 'place'"),
    ],
)
def test_wordings_that_cannot_be_filled_are_refused(change, reason, tmp_path: Path, capsys) -> None:
    copy = Path(shutil.copytree(ENCYCLOPEDIA, tmp_path / "encyclopedia"))
    forms = read_json(copy / "templates.json")
    change(forms)
    (copy / "templates.json").write_text(json.dumps(forms))
    flags = ["--data_dir", str(tmp_path), "--encyclopedia_dir", str(copy)]
    assert call(document_data_generation.main, flags) == 1
    assert re.search(rf"templates.json: .*{reason}", capsys.readouterr().err)


def test_too_few_names_are_refused(tmp_path: Path, capsys) -> None:
    assert call(document_data_generation.main, ["--low", "2000", "--data_dir", str(tmp_path)]) == 1
    assert "names of towns are wanted and the pools make only" in capsys.readouterr().err
    assert call(document_data_generation.main, ["--low", "1", "--high", "0", "--data_dir", str(tmp_path)]) == 1
    assert "raise --low" in capsys.readouterr().err


def checked(tmp_path: Path, documents: list[dict], questions: list[dict], *flags: str) -> int:
    write_jsonl(tmp_path / "d.jsonl", documents)
    write_jsonl(tmp_path / "q.jsonl", questions)
    paths = ["--documents", str(tmp_path / "d.jsonl"), "--questions", str(tmp_path / "q.jsonl")]
    return call(check_documents.main, [*paths, *flags])


def test_the_generated_corpus_passes_its_check(folder: Path, capsys) -> None:
    paths = ["--documents", str(folder / "documents.jsonl"), "--questions", str(folder / "questions.jsonl")]
    assert call(check_documents.main, paths) == 0
    out = capsys.readouterr().out
    assert re.search(r"^temporal +low +8 +0 +1.00$", out, re.M) and "errors" not in out and "warnings" not in out


DOCUMENTS = [
    {"text": "Orla Venn was born in Tarn on the Ild.", "entity": "Orla Venn", "document": "o1"},
    {"text": "Tarn lies on the Ild and has a port.", "entity": "Tarn", "document": "t1"},
]
BORN = {"question": "Where was Orla born?", "answer": "Tarn", "entity": "Orla Venn", "kind": "factual"}


def test_the_share_of_an_answer_is_its_longest_run_in_a_document_of_the_entity(tmp_path: Path, capsys) -> None:
    questions = [
        BORN | {"id": "whole"},
        BORN | {"id": "part", "question": "Where?", "answer": "in Tarn, by the Ild"},
        BORN | {"id": "other", "question": "What has it?", "answer": "a port"},
        BORN | {"id": "either", "question": "Which?", "answer": ["nowhere", "the Ild"]},
    ]
    output = tmp_path / "shares.jsonl"
    assert checked(tmp_path, DOCUMENTS, questions, "--output_file", str(output)) == 0
    shares = {row["id"]: (row["share"], row["document"]) for row in read_jsonl(output)}
    assert shares == {"whole": (1, "o1"), "part": (2 / 5, "o1"), "other": (0, None), "either": (1, "o1")}
    out = capsys.readouterr().out
    assert re.search(r"^factual +low +4 +2 +0.60$", out, re.M)
    assert "2 questions that no document answers:\n  part: Where? (share 0.40)\n  other: What has it?" in out
    assert longest_run(["a", "b", "c"], ["b", "c", "a", "b"]) == 2 and longest_run([], ["a"]) == 0


@pytest.mark.parametrize(
    ("question", "status", "said"),
    [
        ({"document": "o9"}, 1, "no document has the id 'o9'"),
        ({"kind": "unmentioned"}, 1, "'Orla Venn' should be unmentioned and has 1 documents"),
        ({"document": "t1"}, 0, "its document 't1' is about 'Tarn'"),
        ({"entity": "Ida Moss"}, 0, "no document is about 'Ida Moss'"),
        ({"document": "o1", "supports": "Orla came from Tarn."}, 0, "its `supports` does not stand in"),
        ({"paraphrases": ["Orla Venn was born in Tarn"]}, 0, "so it is no new wording"),
    ],
)
def test_what_contradicts_is_an_error_and_what_is_odd_a_warning(tmp_path, capsys, question, status, said) -> None:
    assert checked(tmp_path, DOCUMENTS, [BORN | question]) == status
    assert said in capsys.readouterr().out


def test_repeated_texts_and_questions_are_said_and_bad_files_are_one_sentence(tmp_path: Path, capsys) -> None:
    assert checked(tmp_path, [DOCUMENTS[0], DOCUMENTS[0] | {"document": "o2"}], [BORN, BORN]) == 0
    out = capsys.readouterr().out
    assert "1 text(s) stand in the file more than once" in out and "1 question(s) stand" in out
    assert checked(tmp_path, DOCUMENTS, [BORN | {"answer": ""}]) == 1
    assert "q.jsonl, line 1: 'Where was Orla born?' has no answer" in capsys.readouterr().err
