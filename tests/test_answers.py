"""References without training: which documents stand in a prompt, that they fit, and what answers come to."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import quiz
from tiny_run import call

import predict as predict_program
from knowledge_circuits.corpus.answering import Prompter
from knowledge_circuits.corpus.questions import Document, read_documents, read_questions
from knowledge_circuits.files import InputError, read_jsonl
from knowledge_circuits.models.loading import load_model
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.sweeps.answers import Reference, _fitting_prompt, answers, retrieve, summary
from knowledge_circuits.sweeps.flags import Context
from knowledge_circuits.sweeps.prediction import Settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quiz, in which questions name the document that answers, and a model that knows some answers."""
    folder = tmp_path_factory.mktemp("quiz")
    quiz.write(folder)
    rows = [{**row, "document": f"1 {row['entity']}"} for row in quiz.questions()]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quiz.save_model(folder / "model", steps=60)
    return folder


def reference(data: Path, context: Context, **more) -> Reference:
    return Reference(
        read_questions(data / "questions.jsonl"), read_documents(data / "documents.jsonl"), context, **more
    )


def test_each_context_has_its_documents(data: Path):
    chosen = {context: reference(data, context).chosen for context in Context}
    assert chosen[Context.NONE] == [[]] * 7
    names = [*quiz.PLACES]
    assert [[d.document for d in row] for row in chosen[Context.GOLD]] == [*([f"1 {name}"] for name in names), []]
    by_entity = [[d.document for d in row] for row in chosen[Context.ENTITY]]
    assert by_entity[0] == ["1 Ada Abbott", "2 Ada Abbott"] and by_entity[5] == ["1 Farid Foster"] and not by_entity[6]
    retrieved = chosen[Context.RETRIEVED]
    assert all(row[0].entity == name for row, name in zip(retrieved, names, strict=False))
    assert {len(row) for row in retrieved} == {3}
    assert {len(row) for row in reference(data, Context.RETRIEVED, retrieved=99).chosen} <= {9, 10}


def test_bm25_leaves_out_documents_that_share_no_word(data: Path):
    documents = [Document(text=text, document=text) for text in ("Rain falls in Porto.", "Boats sail.", "Rain.")]
    questions = read_questions(data / "questions.jsonl")[:1]
    question = questions[0].model_copy(update={"question": "Does rain fall?"})
    (found,) = retrieve([question], documents, 3)
    assert [document.text for document in found] == ["Rain.", "Rain falls in Porto."]


def test_documents_are_cut_to_fit_into_the_context_and_the_question_is_not(data: Path):
    tokenizer = load_tokenizer(str(data / "model"))
    prompter = Prompter(tokenizer)
    alone = prompter.ids("Who?")
    long = [Document(text="word " * 500, document="1")]
    ids, cut = _fitting_prompt(prompter, "Who?", long, 60)
    assert cut and 50 <= len(ids) <= 60
    assert tokenizer.decode(ids).endswith("\n\nQuestion: Who?\nAnswer:")
    assert _fitting_prompt(prompter, "Who?", long, len(alone)) == (alone, True)
    assert _fitting_prompt(prompter, "Who?", [Document(text="Ann.", document="1")], None)[1] is False


def test_answers_are_scored_and_summed_up(data: Path):
    model, tokenizer = load_model(str(data / "model")), load_tokenizer(str(data / "model"))
    rows = answers(model, tokenizer, reference(data, Context.NONE), Settings(max_new_tokens=6))
    assert [row["entity"] for row in rows] == [*quiz.PLACES, quiz.NOBODY]
    right = [row for row in rows if row["exact"]]
    assert right and all(row["output"].startswith(quiz.PLACES[row["entity"]]) and row["recall"] == 1 for row in right)
    assert rows[-1]["frequency"] == "unmentioned"
    line = summary("checkpoint-0", "none", rows, 0.6)
    assert line.startswith("checkpoint-0, context none: recall ")
    assert f"{len(right)} of 6 entities known (6 questions)" in line


def words(data: Path, model: Path, *more: str) -> list[str]:
    return [
        *("--model_name_or_path", str(model), "--input_file", str(data / "questions.jsonl")),
        *("--max_new_tokens", "6", "--device", "cpu", *more),
    ]


def test_the_program_writes_the_answers_of_every_context_once(data: Path, tmp_path: Path, capsys):
    model = shutil.copytree(data / "model", tmp_path / "checkpoint-3")
    given = words(data, model, "--documents", str(data / "documents.jsonl"), "--context", *Context)
    assert call(predict_program.main, given) == 0
    said = capsys.readouterr().out
    for context in Context:
        rows = read_jsonl(model / f"answers_{context}.jsonl")
        assert len(rows) == 7 and f"checkpoint-3, context {context}: recall" in said
    written = {path: path.stat().st_mtime_ns for path in model.glob("answers_*")}
    assert call(predict_program.main, given) == 0
    assert {path: path.stat().st_mtime_ns for path in model.glob("answers_*")} == written
    assert "checkpoint-3, context gold: recall" in capsys.readouterr().out
    for manifest in model.glob("answers_*_manifest.json"):
        manifest.unlink()
    assert call(predict_program.main, [*given, "--adopt"]) == 0
    assert "0 done, 4 were there already" in capsys.readouterr().out
    (model / "answers_retrieved_manifest.json").unlink()
    assert call(predict_program.main, [*given, "--adopt", "--retrieved", "1"]) == 1
    assert "answers_retrieved.jsonl answers other queries" in capsys.readouterr().err


def test_answers_under_another_chat_template_are_not_taken_for_finished(data: Path, tmp_path: Path, capsys):
    model = shutil.copytree(data / "model", tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text("{{ messages[0].content }}")
    assert call(predict_program.main, words(data, model, "--instruct")) == 0
    template.write_text("Say: {{ messages[0].content }}")
    assert call(predict_program.main, words(data, model, "--instruct")) == 1
    assert "made from other settings or inputs" in capsys.readouterr().err
    assert call(predict_program.main, words(data, model, "--instruct", "--overwrite")) == 0
    assert call(predict_program.main, words(data, model, "--overwrite")) == 0
    template.unlink()
    assert call(predict_program.main, words(data, model)) == 0  # does not use it


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--context", "gold"), "--context gold needs --documents"),
        (("--instruct",), "has no chat template"),
        (("--output_file", "x.jsonl"), "--output_file is for people"),
        (("--context", "gold", "--documents", "OTHER"), "no question names a document"),
        (("--context", "retrieved", "--documents", "SIGNS"), "signs.txt: no document has a word of two letters"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(data: Path, tmp_path: Path, more, message: str, capsys):
    (tmp_path / "other.txt").write_text("It rains.\n")
    (tmp_path / "signs.txt").write_text("?\n")
    paths = {name.upper(): str(tmp_path / f"{name}.txt") for name in ("other", "signs")}
    more = [paths.get(word, word) for word in more]
    model = shutil.copytree(data / "model", tmp_path / "model")
    assert call(predict_program.main, words(data, model, *more)) == 1
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_file_of_people_takes_no_context(data: Path, tmp_path: Path, capsys):
    (tmp_path / "people.jsonl").write_text(json.dumps({"full_name": "Ada"}) + "\n")
    given = words(tmp_path, data / "model", "--context", "none")
    given[given.index("--input_file") + 1] = str(tmp_path / "people.jsonl")
    assert call(predict_program.main, given) == 1
    assert "need a file with the column question" in capsys.readouterr().err


def test_without_bm25s_retrieval_says_what_to_install(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(InputError, match=r"pip install bm25s"):
        _ = reference(data, Context.RETRIEVED).chosen
