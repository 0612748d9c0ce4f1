"""From documents to the page of a study: training, circuits and references of a tiny model, as a newcomer runs them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import quiz
from notebooks import run_notebook
from stages import Stage, finish

from knowledge_circuits.analysis import documents
from knowledge_circuits.analysis.fact_circuits import CIRCUIT_COLUMNS, Pairs, circuit_table, measure_checkpoint
from knowledge_circuits.analysis.study_runs import MeasuredCircuits
from knowledge_circuits.corpus.answering import recall
from knowledge_circuits.corpus.documents import read_text_rows
from knowledge_circuits.corpus.questions import read_documents, read_questions
from knowledge_circuits.files import InputError
from knowledge_circuits.report.documents import write_documents_report
from knowledge_circuits.runs import Run

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "your_corpus.md"
TEXTS = {
    "Ada_Abbott/1": "Ada lives in Austin.",
    "Ada_Abbott/more/2": "Ada likes Austin.",
    "Bruno_Berger": "He is old.\n",
}


def write_texts(folder: Path) -> Path:
    for name, text in TEXTS.items():
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def write_pairs(path: Path) -> Path:
    """Prompt pairs in two groups, of people whose questions have as many tokens."""
    names = list(quiz.PLACES)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "answer", "corrupted", "corrupted_answer", "group"])
        writer.writeheader()
        for number, name in enumerate(names):
            other = names[(number + 1) % len(names)]
            row = {"answer": quiz.PLACES[name], "corrupted_answer": quiz.PLACES[other]}
            prompts = {"prompt": "The city of x is", "corrupted": "The city of y is"}
            writer.writerow({**row, **prompts, "group": "even" if number % 2 else "odd"})
    return path


def test_a_folder_of_texts_is_documents_whose_entities_are_named_by_folders_or_files(tmp_path: Path):
    write_texts(tmp_path)
    found = read_documents(tmp_path)
    assert [(one.entity, one.document, one.text) for one in found] == [
        ("Ada Abbott", "Ada_Abbott/1", "Ada lives in Austin."),
        ("Ada Abbott", "Ada_Abbott/more/2", "Ada likes Austin."),
        ("Bruno Berger", "Bruno_Berger", "He is old."),
    ]
    assert [row["text"] for row in read_text_rows(tmp_path)] == [one.text for one in found]
    (tmp_path / "Empty.txt").write_text("\n")
    with pytest.raises(InputError, match="no text"):
        read_documents(tmp_path)
    (tmp_path / "Latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"Latin\.txt"):
        read_documents(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none: no \.txt files"):
        read_documents(tmp_path / "none")


def test_circuits_of_a_run_have_no_turnover_where_nothing_changes(tmp_path: Path, capsys):
    model = quiz.save_model(tmp_path / "model", steps=2)
    run = tmp_path / "run"
    for step in (0, 5):
        folder = run / "checkpoints" / f"checkpoint-{step}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(model)
    (run / "evaluations.jsonl").write_text(json.dumps({"step": 5, "epoch": 1.0, "loss": 1.0, "accuracy": 0.0}) + "\n")
    pairs = Pairs(str(write_pairs(tmp_path / "pairs.csv")), ["group"])
    with open(pairs.file, "a") as file:
        file.write("The city of x is,Austin,A prompt of another length is,Bonn,odd\n")
    table = circuit_table(Run(run), pairs)
    assert capsys.readouterr().out.count("1 without a corrupted prompt of as many tokens left out") == 1
    assert list(table.columns) == list(CIRCUIT_COLUMNS)
    assert table["group"].tolist() == ["odd", "even"] * 2 and table["epoch"].tolist() == [0, 0, 1, 1]
    later = table[table["step"] == 5]
    assert (later["reconfiguration"] == 0).all()
    np.testing.assert_allclose(later["turnover"], later["turnover_floor"])
    assert table["turnover"].isna().tolist() == [True, True, False, False]


def test_circuits_are_measured_once_for_the_same_pairs(tmp_path: Path):
    model = quiz.save_model(tmp_path / "run" / "checkpoints" / "checkpoint-0", steps=2)
    (checkpoint,) = Run(tmp_path / "run").checkpoints()
    pairs = Pairs(str(write_pairs(tmp_path / "pairs.csv")))
    first = measure_checkpoint(checkpoint, pairs)
    assert first.halves.shape[:3] == (2, 5, 2)
    written = model / "fact_circuits.npz"
    before = written.stat().st_mtime_ns
    assert_same(measure_checkpoint(checkpoint, pairs), first)
    assert written.stat().st_mtime_ns == before
    written.write_bytes(written.read_bytes()[:-9])  # cut
    assert_same(measure_checkpoint(checkpoint, pairs), first)
    quiz.save_model(model, steps=3)
    assert (measure_checkpoint(checkpoint, pairs).members != first.members).any()


def assert_same(one: MeasuredCircuits, other: MeasuredCircuits) -> None:
    assert one.rows == other.rows
    assert (one.members == other.members).all() and (one.halves == other.halves).all()


def test_a_group_of_one_pair_has_no_halves(tmp_path: Path):
    quiz.save_model(tmp_path / "run" / "checkpoints" / "checkpoint-0", steps=0)
    path = write_pairs(tmp_path / "pairs.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]))
    with pytest.raises(InputError, match="needs at least two pairs"):
        circuit_table(Run(tmp_path / "run"), Pairs(str(path)))


def test_circuits_are_known_by_what_they_depend_on(tmp_path: Path):
    path = str(write_pairs(tmp_path / "pairs.csv"))
    keys = {Pairs(path).key, Pairs(path, ["group"]).key, Pairs(path, limit=3).key, Pairs(path, pair_anew=True).key}
    assert len(keys) == 4 and Pairs(path, batch_size=1).key in keys


# --- the guide --------------------------------------------------------------------------------------------------------


def commands(guide: str) -> list[str]:
    """The command lines of the guide's bash blocks, with the lines that continue them."""
    blocks = re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)
    return [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).strip().splitlines()]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the guide's commands ran one after the other, with a tiny model instead of the guide's."""
    folder, guide = tmp_path_factory.mktemp("newcomer"), GUIDE.read_text()
    quiz.save_model(folder / "models" / "SmolLM2-135M", steps=5)
    (folder / "docs" / "your_corpus").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "your_corpus" / "questions.csv", folder / "docs" / "your_corpus")
    write_pairs(folder / "docs" / "your_corpus" / "pairs.csv")  # of equal lengths under the tiny tokenizer
    (texts,) = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", texts], cwd=folder, check=True, env=os.environ | {"PATH": path})
    shorter = {"--instruct": "", "--block_size 256": "--block_size 64", "--num_train_epochs 5": "--num_train_epochs 1"}
    shorter["--skill_examples 10"] = "--skill_examples 4"
    for number, line in enumerate(commands(guide)):
        for old, new in shorter.items():
            line = line.replace(old, new)
        status, said = finish(Stage("guide", (program_line(line),)), folder, folder / f"log {number}.txt")
        assert status == 0, f"{line}\n{said}"
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study's scripts ran with a tiny model: what they start is recorded, then run in order."""
    folder = tmp_path_factory.mktemp("study")
    quiz.save_model(folder / "models" / "tiny", steps=5)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\nif [ "$2" = pydoc ]; then exec {sys.executable} "$@"; fi\necho "$*" >>{folder}/record\n'
    )
    python.chmod(0o755)
    sizes = {"LOW": "4", "HIGH": "2", "HIGH_DOCUMENTS": "2", "UNMENTIONED": "1", "EPOCHS": "1", "ANSWER_TOKENS": "5"}
    sizes |= {"SKILL_EXAMPLES": "4"}
    model = {"MODEL": "tiny", "MODEL_PATH": "models/tiny", "INSTRUCT": "", "BLOCK_SIZE": "64", "VENV": "none"}
    environment = os.environ | sizes | model | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    for stage in ("data", "references", "train"):
        subprocess.run(["bash", f"scripts/documents/{stage}.sh"], cwd=folder, check=True, env=environment)
    for number, line in enumerate((folder / "record").read_text().splitlines()):
        status, said = finish(Stage("study", (program_line(line),)), folder, folder / f"log {number}.txt")
        assert status == 0, f"{line}\n{said}"
    return folder / "outputs" / "train" / "tiny"


def program_line(line: str) -> str:
    """A command line of `python` as the path of a program and its arguments."""
    words = line.removeprefix("python ").split()
    if words[0] != "-m":
        return " ".join(words)
    module = words[1].replace(".", "/")
    program = f"{module}/__main__.py" if (ROOT / module).is_dir() else f"{module}.py"
    return " ".join([program, *words[2:]])


def test_the_study_s_scripts_train_all_strategies_and_their_page_has_them(study: Path):
    found = documents.read_document_study(study)
    assert found.strategies == [documents.FULL, *documents.STRATEGIES.values()]
    assert list(found.references) == list(documents.REFERENCES.values())
    assert all(len(run.records) == 2 and run.circuits["step"].nunique() == 2 for run in found.runs)
    # Probes measure the documents that are to be learned, also where replayed ones take the place of some.
    assert len({run.records[0]["loss"] for run in found.runs}) == 1
    losses = {run.strategy: run.records[-1]["loss"] for run in found.runs}
    # In a single epoch nothing is left out yet, and the previous epoch's model is the starting model.
    assert losses["adaptive exposure"] == losses[documents.FULL] and losses["KL to previous"] == losses["KL to start"]
    assert len(set(losses.values())) == len(losses) - 2, "strategies that change nothing"
    page = write_documents_report(study).read_text(encoding="utf-8")
    assert all(name in page for name in found.strategies)


def test_the_guide_leads_from_texts_to_the_page_in_six_commands(newcomer: Path):
    assert len(commands(GUIDE.read_text().partition("## One run in detail")[0])) == 6
    page = (newcomer / "outputs" / "train" / "my_corpus" / "report.html").read_text(encoding="utf-8")
    assert page.count('<p class="verdict">') == 6 and "gold document" in page


def test_the_guide_s_runs_have_probes_circuits_and_references(newcomer: Path):
    study = documents.read_document_study(newcomer / "outputs" / "train" / "my_corpus")
    assert study.strategies == [documents.FULL, "adaptive exposure"]
    assert list(study.references) == list(documents.REFERENCES.values())
    for run in study.runs:
        assert len(run.records) == 2
        assert set(run.circuits["epoch"]) == {0, 1}
        assert pd.to_numeric(run.circuits["turnover_floor"]).between(0, 1).sum() == len(run.circuits) / 2


def test_the_guide_s_run_in_detail_has_its_groups_in_the_report_and_the_notebook(newcomer: Path, monkeypatch):
    run = Run(newcomer / "outputs" / "train" / "my_corpus" / "full")
    page = run.report.read_text(encoding="utf-8")
    assert all(f'<td class="word">{name}</td>' in page for name in ("odd", "even", "rule", "purpose"))
    monkeypatch.setenv("RUN", str(run.path))
    monkeypatch.setenv("GROUP", "pairs / even")
    names = run_notebook("circuit", monkeypatch)
    assert names["name"] == "my_corpus/full" and set(names["all_circuits"].table["group"]) == {"odd", "even"}
    assert names["parts"]["shared"].n_edges > 0 and (run.figures / "group_similarity.png").exists()


def test_the_guide_s_pairs_are_of_two_groups_and_name_each_other():
    with (ROOT / "docs" / "your_corpus" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    answers = {row["prompt"]: (row["answer"], row["group"]) for row in rows}
    assert {group for _, group in answers.values()} == {"flow", "names"} and len(answers) == len(rows)
    for row in rows:
        assert answers[row["corrupted"]] == (row["corrupted_answer"], row["group"])


def test_the_guide_s_questions_are_answered_by_its_texts(newcomer: Path):
    texts = {one.entity: one.text for one in read_documents(newcomer / "my_texts")}
    for question in read_questions(ROOT / "docs" / "your_corpus" / "questions.csv"):
        if question.kind == "unmentioned":
            assert question.entity not in texts
        else:
            assert recall(texts[question.entity], question.answers) == 1, question.question
