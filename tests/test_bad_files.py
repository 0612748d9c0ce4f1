"""Every reader meets damaged files: what it accepts is right, and what it refuses it refuses with file and reason.

Real files are damaged at random, as bytes (changed, lost, repeated, cut) and as JSON (values of other types, keys gone
or renamed). A reader may answer in two ways only: with a result that is sound, or with an InputError that names the
file, and the line where one line is at fault. Never another exception, a hang, silent loss or code execution.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import synthetic_run
import tiny
import torch
from damage import damaged_bytes, odd_json, odd_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_run import TinyRun, make_run

from knowledge_circuits.analysis import circuit_tables, learning_tables, timeline
from knowledge_circuits.analysis.dynamics import read_dynamics
from knowledge_circuits.corpus.biographies import load_templates
from knowledge_circuits.corpus.documents import read_text_rows
from knowledge_circuits.corpus.fact_pairs import Fact, read_facts
from knowledge_circuits.corpus.people import Person, read_entities, read_people
from knowledge_circuits.corpus.prompt_pairs import group_pairs, read_circuit_data
from knowledge_circuits.corpus.questions import Question, read_questions
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.graph_files import read_graph, write_graph
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError, write_jsonl
from knowledge_circuits.models.tokenization import load_tokenizer, plain_ids
from knowledge_circuits.runs import Content, Coordinates, Run
from knowledge_circuits.study import Attribute, Band, KnowledgeType, groups
from knowledge_circuits.sweeps.targets import read_test_items
from knowledge_circuits.training.skills import arithmetic_examples, read_skill_file

CASES = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
FEW = settings(CASES, max_examples=30)
CITY = Attribute.CITY


@dataclass(frozen=True, repr=False)
class Reader:
    """A reader and a file that it reads (not shown in failures: there are many).

    Attributes:
        path: the file, good at first.
        read: reads it.
        check: asserts that an accepted result is sound.
        lines: whether it holds one JSON object a line, so that an error names the line.
    """

    path: Path
    read: Callable[[], Any]
    check: Callable[[Any], None]
    lines: bool = False

    def answer(self, data: bytes) -> str | None:
        """Read the file with other content; the reason of a refusal, None if it was accepted."""
        good = self.path.read_bytes()
        try:
            self.path.write_bytes(data)
            result = self.read()
        except InputError as error:
            reason = str(error)
            assert self.path.name in reason, f"no file in: {reason}"
            assert "\n" not in reason and len(reason) < 5_000, f"not one sentence: {reason}"
            return reason
        finally:
            self.path.write_bytes(good)
        self.check(result)
        return None


def check_people(people: list[Person]) -> None:
    assert len({person.full_name for person in people}) == len(people)
    for person in people:
        assert person.frequency >= 1 and person.band in Band and person.type in KnowledgeType
        assert all(person.value(attribute).strip() for attribute in Attribute)
        json.dumps(person.to_row(), ensure_ascii=False).encode()


def check_graph(graph: Graph) -> None:
    real = graph.layout.real_edges
    assert bool(torch.isfinite(graph.scores).all()) and graph.scores.shape == real.shape
    assert not bool((graph.in_graph & ~real).any()) and not bool((graph.scores[~real] != 0).any())


def check_pairs(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["frequency"] >= 1 and row["type"] in list(KnowledgeType)
        assert type(row["clean_label_idx"]) is int and row["clean_subject"].strip()


def check_table(table: Any) -> None:
    for column in ("loss", "accuracy", "token_prob", "faithfulness", "edge_entropy", "perplexity"):
        if column in table:
            values = table[column].dropna().astype(float)
            assert (values.abs() < float("inf")).all()


def check_tables(read: Any) -> None:
    for table in read:
        check_table(table)


def check_documents(documents: list[dict[str, Any]]) -> None:
    assert documents and all(isinstance(row["text"], str) and row["text"].strip() for row in documents)


def check_questions(questions: list[Question]) -> None:
    assert len({question.id for question in questions}) == len(questions) > 0
    for question in questions:
        assert question.question.strip() and (question.answers or question.kind == "unmentioned")
        assert all(isinstance(text, str) and text.strip() for text in (*question.answers, *question.paraphrases))
        json.dumps(question.to_row(), ensure_ascii=False).encode()


def check_facts(facts: list[Fact]) -> None:
    assert facts
    for fact in facts:
        assert fact.clean and fact.answer != "" and (fact.corrupted is None or fact.corrupted_answer is not None)
        folder = Coordinates.of(30, fact.group, "EAP")
        assert Coordinates.read(folder.path(Content.GRAPH)) == (folder, Content.GRAPH)


def check_skills(examples: list[Any]) -> None:
    assert examples and all(0 <= example.answer < len(example.options) for example in examples)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make_run(tmp_path_factory.mktemp("bad") / "run", steps=(4,))


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run as the analysis reads it, with few checkpoints."""
    truth = synthetic_run.Truth(epochs=2, people=2, layout=Layout(2, 2))
    return synthetic_run.write_run(tmp_path_factory.mktemp("analysed") / "run", truth)


@pytest.fixture(scope="module")
def readers(run: TinyRun, analysed: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    """Every reader of text files with a good file of its kind."""
    folder = tmp_path_factory.mktemp("files")
    people = Path(run.test_data)
    pairs = Path(run.circuit_data.format(task=CITY))
    templates = folder / "templates"
    shutil.copytree(Path(__file__).parents[1] / "data" / "templates", templates)
    skills, probes = folder / "skills.jsonl", folder / "knowledge_dynamics.jsonl"
    write_jsonl(skills, (example.__dict__ for example in arithmetic_examples(8)))
    write_jsonl(probes, probe_rows())
    names = folder / "people.csv"
    names.write_text('name,article\n"Ada, Countess of Lovelace","a, b"\nZoë Quinn,x\nO\'Neil,y\n')
    documents = folder / "train.jsonl"
    write_jsonl(documents, tiny.biographies(6))
    questions, facts = folder / "questions.jsonl", folder / "facts.jsonl"
    asked = {"question": "Where was Ada born?", "answer": ["London", "in London"], "entity": "Ada", "kind": "factual"}
    write_jsonl(questions, [asked, asked | {"answer": 1815, "paraphrases": ["Where?"], "frequency": "low"}])
    pair = {"prompt": "Ada was born in", "corrupted": "Bob was born in", "answer": "London", "group": "birth"}
    write_jsonl(facts, [pair | {"corrupted_answer": "Rome"}, pair | {"corrupted_answer": "Oslo", "group": "other"}])
    graph = folder / "city_graph.json"
    layout = Layout(2, 2)
    scores = torch.where(
        layout.real_edges, torch.linspace(-1, 1, layout.n_sources * layout.n_targets).view(layout.n_sources, -1), 0.0
    )
    write_graph(graph, Graph(layout, scores, layout.real_edges, 8, {"method": "EAP"}))
    checkpoint = analysed.checkpoints()[-1]
    (results, *_) = sorted(checkpoint.output.rglob("city_results.json"))
    (predictions, *_) = sorted(checkpoint.output.rglob("city_prediction.jsonl"))
    (state, *_) = sorted(checkpoint.output.rglob("trainer_state.json"))
    return {
        "people": Reader(people, lambda: read_entities(people), check_people, True),
        "circuit data": Reader(pairs, lambda: read_circuit_data(str(pairs), CITY), check_pairs, True),
        "test items": Reader(
            people, lambda: read_test_items(str(people), list(groups([CITY])), quiet=True), lambda _: None, True
        ),
        "templates": Reader(templates / "city.json", lambda: load_templates(templates), lambda _: None),
        "names": Reader(names, lambda: read_people(names), lambda found: None),
        "skills": Reader(skills, lambda: read_skill_file(skills), check_skills, True),
        "questions": Reader(questions, lambda: read_questions(questions), check_questions, True),
        "facts": Reader(facts, lambda: read_facts(str(facts)), check_facts, True),
        "documents": Reader(documents, lambda: read_text_rows(documents), check_documents, True),
        "probes": Reader(probes, lambda: read_dynamics(probes), lambda read: check_table(read.facts), True),
        "graph": Reader(graph, lambda: read_graph(graph), check_graph),
        "evaluations": Reader(
            analysed.evaluations,
            lambda: (learning_tables.evaluations(analysed), learning_tables.first_token_accuracy(analysed)),
            check_tables,
            True,
        ),
        "predictions": Reader(
            checkpoint.predictions,
            lambda: learning_tables.predictions(analysed),
            check_table,
            True,
        ),
        "results": Reader(results, lambda: circuit_tables.results(analysed), check_table),
        "circuit predictions": Reader(
            predictions, lambda: circuit_tables.circuit_predictions(analysed), check_table, True
        ),
        "trainer state": Reader(
            state, lambda: (learning_tables.evaluations(analysed), timeline.training_log(analysed)), check_tables
        ),
    }


def probe_rows() -> list[dict[str, Any]]:
    fact = {"attribute": "city", "type": "new", "frequency": 3, "token_prob": 0.25, "token_rank": 1}
    return [
        {"kind": kind, "step": step, "epoch": step / 10, **rest}
        for step in (0, 10)
        for kind, rest in (
            ("fact", {"full_name": "Ada", "correct": False, "answer_log_prob": -2.5, **fact}),
            ("fact", {"full_name": "Zoë", "correct": True, "answer_log_prob": -1.0, **fact}),
            ("skill", {"skill": "arithmetic", "accuracy": 0.5, "examples": 10}),
            ("text", {"text": "held_out", "perplexity": 30.0}),
        )
    ]


NAMES = (
    *("people", "circuit data", "test items", "templates", "names", "skills", "documents", "probes", "graph"),
    *("questions", "facts"),
    *("evaluations", "predictions", "results", "circuit predictions", "trainer state"),
)
JSON = tuple(name for name in NAMES if name != "names")


@pytest.mark.parametrize("name", NAMES)
def test_good_files_are_accepted(readers, name):
    assert readers[name].answer(readers[name].path.read_bytes()) is None


@pytest.mark.parametrize("name", NAMES)
@CASES
@given(data=st.data())
def test_damaged_bytes_are_accepted_rightly_or_refused_with_the_file(readers, name, data):
    readers[name].answer(data.draw(damaged_bytes(readers[name].path.read_bytes())))


@pytest.mark.parametrize("name", JSON)
@CASES
@given(data=st.data())
def test_odd_values_are_accepted_rightly_or_refused_with_the_place(readers, name, data):
    reader = readers[name]
    text = reader.path.read_text()
    if reader.lines:
        changed, number = data.draw(odd_lines(text.splitlines()))
        reason = reader.answer(changed.encode())
        assert reason is None or named(number, reason), f"line {number} is odd, but: {reason}"
    else:
        reader.answer(data.draw(odd_json(json.loads(text))).encode())


def named(number: int, reason: str) -> bool:
    """Whether a refusal names the odd line, or says what is wrong with the file as a whole."""
    of_the_whole = ("do not all ask for the same facts", "already stands on line")
    return bool(re.search(rf"(line|item|document) {number}\b", reason)) or any(text in reason for text in of_the_whole)


# --- graphs ----------------------------------------------------------------------------------------------------------


def graph_in(folder: Path, suffix: str) -> Path:
    layout = Layout(2, 2)
    path = folder / f"city_graph{suffix}"
    write_graph(path, Graph(layout, torch.where(layout.real_edges, 0.5, 0.0), layout.real_edges, 8, {"method": "EAP"}))
    return path


@pytest.mark.parametrize("suffix", [".json.gz", ".pt"])
@CASES
@given(data=st.data())
def test_damaged_binary_graphs_are_accepted_rightly_or_refused(tmp_path, suffix, data):
    path = graph_in(tmp_path, suffix)
    Reader(path, lambda: read_graph(path), check_graph).answer(data.draw(damaged_bytes(path.read_bytes())))


@CASES
@given(data=st.data())
def test_odd_tensors_are_accepted_rightly_or_refused(tmp_path, data):
    path = graph_in(tmp_path, ".pt")
    content = torch.load(path, weights_only=True)
    key = data.draw(st.sampled_from(sorted(content)))
    odd = [None, 3, "x", [], {}, torch.zeros(3), torch.full_like(content["edges_scores"], float("nan"))]
    odd += [torch.zeros(content["edges_scores"].shape, dtype=torch.complex64), {"n_layers": 10**9, "n_heads": 10**9}]
    content[key] = data.draw(st.sampled_from(odd))
    buffer = io.BytesIO()
    torch.save(content, buffer)
    Reader(path, lambda: read_graph(path), check_graph).answer(buffer.getvalue())


def test_a_graph_file_that_holds_code_is_not_executed(tmp_path):
    victim = tmp_path / "executed"

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return victim.touch, ()

    path = tmp_path / "city_graph.pt"
    bare = f"cbuiltins\nopen\n(V{victim}\nVw\ntR.".encode()  # a pickle that opens the file for writing
    for data in (bare, _saved(Code())):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"city_graph\.pt"):
            read_graph(path)
    assert not victim.exists()


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_no_edge_is_lost_silently(tmp_path):
    path = graph_in(tmp_path, ".json")
    text = path.read_text()
    first = '"input->a0.h0<q>": {"score": 0.5, "in_graph": true}'
    assert first in text
    for changed, reason in [
        (text.replace(first + ",\n", ""), "edges where a model of this shape has"),
        (text.replace(first, first + ",\n" + first), "stands twice"),
        (text.replace(first, first.replace("0.5", "NaN")), "NaN"),
        (text.replace(first, first.replace("0.5", "1e999")), "input->a0.h0<q>"),
        (text.replace(first, first.replace("0.5", "null")), "input->a0.h0<q>"),
    ]:
        path.write_text(changed)
        with pytest.raises(InputError, match=re.escape(reason)):
            read_graph(path)


def test_a_cut_archive_is_refused(tmp_path):
    path = graph_in(tmp_path, ".json.gz")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a whole gzip file"):
        read_graph(path)
    path.write_bytes(gzip.compress(b"\xff\xfe"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_graph(path)


# --- checkpoint folders ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_gpt2(tmp_path_factory.mktemp("checkpoint") / "tiny")


@dataclass(frozen=True, repr=False)
class InFolder(Reader):
    """A file of a checkpoint folder: errors name the folder."""

    def answer(self, data: bytes) -> str | None:
        good = self.path.read_bytes()
        try:
            self.path.write_bytes(data)
            result = self.read()
        except InputError as error:
            assert self.path.parent.name in str(error) or "architecture" in str(error), error
            return str(error)
        finally:
            self.path.write_bytes(good)
        self.check(result)
        return None


def check_decoder(decoder: Any) -> None:
    assert all(bool(torch.isfinite(weight).all()) for _, weight in decoder.tensors())


@FEW
@given(data=st.data())
def test_damaged_weights_are_refused_or_finite(checkpoint, data):
    reader = InFolder(checkpoint / "model.safetensors", lambda: load_decoder(str(checkpoint)), check_decoder)
    reader.answer(data.draw(damaged_bytes(reader.path.read_bytes())))


@FEW
@given(data=st.data())
def test_an_odd_model_configuration_is_refused_or_right(checkpoint, data):
    reader = InFolder(checkpoint / "config.json", lambda: load_decoder(str(checkpoint)), check_decoder)
    reader.answer(data.draw(odd_json(json.loads(reader.path.read_text()))).encode())


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@FEW
@given(data=st.data())
def test_a_damaged_tokenizer_is_refused_or_encodes(checkpoint, file, data):
    reader = InFolder(checkpoint / file, lambda: load_tokenizer(str(checkpoint)), lambda found: plain_ids(found, "Ada"))
    reader.answer(data.draw(damaged_bytes(reader.path.read_bytes())))


# --- names of all kinds ----------------------------------------------------------------------------------------------


ODD_NAMES = ['Zoë "Q" O\'Neil', "李 小龙", "{subject} {0} %s", "Ada 😀 Lovelace", "back\\slash {"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_of_all_kinds_go_through(run, tmp_path, name):
    rows = read_circuit_data(run.circuit_data, CITY)
    rows = [{**row, "clean_subject": name, "corrupted_subject": name} for row in rows]
    path = tmp_path / "city.jsonl"
    write_jsonl(path, rows)
    tokenizer = load_tokenizer(str(run.checkpoints / "checkpoint-4"))
    for group in groups([CITY]):
        pairs = group_pairs(read_circuit_data(str(path), CITY), group, tokenizer)
        assert len(pairs) == 6
        assert tokenizer.decode(pairs.clean[0][1:]) == group.task.prompt(name)
