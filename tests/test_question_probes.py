"""Question probes: answers and their scores, what they say of entities, and records that survive interruption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import quiz
from memorizing import memorizing_model
from tiny import byte_level_tokenizer

from knowledge_circuits.corpus.answering import Prompter, abstains, answer_prompts, exact, recall
from knowledge_circuits.corpus.questions import UNMENTIONED, Document, Question
from knowledge_circuits.files import InputError
from knowledge_circuits.models.scoring import mean_loss
from knowledge_circuits.models.tokenization import start_token_id
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Attribute
from knowledge_circuits.training.probe_files import probe_callbacks
from knowledge_circuits.training.probes import ProbeArguments
from knowledge_circuits.training.question_probes import (
    QuestionProbe,
    agreement,
    described,
    hallucination,
    known_entities,
    learned_entities,
    progress,
    recall_floors,
)
from knowledge_circuits.training.skills import SkillExample, read_skill_file, reasoning_examples

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}<|assistant|>\n"


def test_recall_is_the_share_of_the_best_accepted_answers_words():
    assert recall("She lives in Oslo, Norway.", ["Bergen", "oslo Norway"]) == 1
    assert recall("Oslo", ["Oslo in Norway"]) == pytest.approx(1 / 3)
    assert recall("Paris Paris", ["Paris and Rome"]) == pytest.approx(1 / 3)  # a word counts as often as it occurs
    assert recall("anything", []) == 0


def test_words_of_any_script_count():
    assert recall("Она живёт в Москве", ["Москве"]) == 1
    assert recall("Zürich", ["Zurich"]) == 0
    assert exact("東京", ["東京"])


def test_an_answer_is_exact_whatever_its_case_and_punctuation_but_not_with_further_words():
    assert exact("St. Louis, MO.", ["st louis mo"]) and not exact("in St. Louis", ["St. Louis"])
    assert not exact("", [""])


@pytest.mark.parametrize(
    ("output", "without"),
    [
        ("", True),
        ("...", True),
        ("I don't know.", True),
        ("I’m not sure about that", True),
        ("Unknown", True),
        ("There is no information about this person.", True),
        ("Oslo", False),
        ("He knows Oslo", False),
        ("None of the above is likely, but Oslo", True),
    ],
)
def test_an_output_that_says_that_nothing_is_known_is_no_answer(output: str, without: bool):
    assert abstains(output) is without


def test_a_question_stands_under_the_chat_template_or_is_completed():
    _, tokenizer, _ = memorizing_model()
    tokenizer.chat_template = TEMPLATE
    plain = tokenizer.decode(Prompter(tokenizer).ids("Who?", "A text."))
    assert plain.endswith("Context:\nA text.\n\nQuestion: Who?\nAnswer:")
    chat = tokenizer.decode(Prompter(tokenizer, instruct=True).ids("Who?", "A text."))
    assert chat.startswith("<|user|>\nContext:\nA text.\n\n") and chat.endswith("Who?\n<|assistant|>")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template; leave out --instruct"),
        ("{{ raise_exception('a system message is wanted') }}", r"fails \(a system message is wanted\)"),
        ("{{ messages[5].content }}", "the chat template of the tokenizer .* fails"),
        ("{{ '' }}", "empty prompt"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_one_sentence(template: str | None, message: str):
    _, tokenizer, _ = memorizing_model()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=message) as refused:
        Prompter(tokenizer, instruct=True).ids("Who?")
    assert "\n" not in str(refused.value)


def test_answers_do_not_depend_on_the_batch_and_a_question_that_does_not_fit_is_refused():
    model, tokenizer, people = memorizing_model()
    prompts = [
        [start_token_id(tokenizer), *tokenizer(Attribute.CITY.prompt(person.full_name))["input_ids"]]
        for person in people[:6]
    ]
    alone = [answer_prompts(model, tokenizer, [prompt], 15)[0] for prompt in prompts]
    assert answer_prompts(model, tokenizer, prompts, 15, batch_size=4) == alone
    assert sum(person.city in output for person, output in zip(people, alone, strict=False)) >= 3
    with pytest.raises(InputError, match="the model's context holds 96"):
        answer_prompts(model, tokenizer, prompts, 90)


# --- what records tell ----------------------------------------------------------------------------------------------


def _row(entity: str, recall: float, **more) -> dict:
    return {
        "id": f"{entity} {more.get('kind')}",
        "entity": entity,
        "kind": "factual",
        "frequency": "low",
        "output": "x",
        "recall": recall,
        "exact": recall == 1,
        "paraphrase_recalls": [],
        **more,
    }


def _record(step: int, *questions: dict) -> dict:
    return {
        "step": step, "epoch": step / 10, "learned_threshold": 0.6, "loss": 2.0, "perplexity": 7.4,
        "questions": list(questions),
    }  # fmt: skip


def test_an_entity_is_learned_when_the_mean_recall_of_its_questions_reaches_the_threshold():
    record = _record(0, _row("A", 1.0), _row("A", 0.2, kind="temporal"), _row("B", 0.5), _row("B", 0.6))
    assert learned_entities(record, 0.6) == {"A"}
    assert learned_entities(record, 0.6, kind="temporal") == set()
    assert learned_entities(record, 0.55) == {"A", "B"}


def test_progress_counts_kept_newly_learned_and_forgotten_entities_by_group():
    records = [
        _record(0, _row("A", 0), _row("B", 1), _row("C", 1, frequency="high"), _row("X", 1, frequency="unmentioned")),
        _record(10, _row("A", 1), _row("B", 0), _row("C", 1, frequency="high"), _row("X", 1, frequency="unmentioned")),
    ]
    rows = {(row["step"], row["frequency"], row["kind"]): row for row in progress(records, 0.6)}
    keys = ("entities", "learned", "kept", "newly_learned", "forgotten")
    assert [rows[0, None, None][key] for key in keys] == [3, 2, 2, 0, 0]
    assert [rows[10, None, None][key] for key in keys] == [3, 2, 1, 1, 1]
    assert [rows[10, "low", "factual"][key] for key in keys] == [2, 1, 0, 1, 1]
    assert [rows[10, "high", None][key] for key in keys] == [1, 1, 1, 0, 0]
    assert all(row["learned"] == row["kept"] + row["newly_learned"] for row in rows.values())
    assert rows[10, None, None]["recall"] == pytest.approx(2 / 3)
    assert known_entities(records, 0.6).tolist() == [[False, True], [True, False], [True, True]]


def test_the_floor_of_recall_is_what_answers_earn_as_answers_about_others():
    said = {"a": "master of the mint", "b": "a master of arts", "c": "", "d": "master"}
    rows = [
        {"id": name, "entity": name, "kind": "d" if name == "d" else "office", "frequency": "low", "output": output}
        for name, output in said.items()
    ]
    nobody = {"id": "e", "entity": "e", "kind": "office", "frequency": UNMENTIONED, "output": "master of the mint"}
    answers = {
        "a": ("master of the mint",),
        "b": ("doctor", "lady of letters"),
        "c": ("mayor",),
        "d": ("king",),
        "e": (),
    }
    floors = recall_floors({"questions": [*rows, nobody]}, answers)
    assert floors == pytest.approx({"a": (1 / 3 + 0) / 2, "b": (2 / 4 + 0) / 2, "c": 0, "d": np.nan}, nan_ok=True)


def test_the_floor_of_many_questions_is_taken_over_some(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("knowledge_circuits.training.question_probes.MOST_OTHERS", 2)
    rows = [{"id": n, "entity": f"{n}", "kind": "k", "frequency": "low", "output": "0"} for n in range(6)]
    floors = recall_floors({"questions": rows}, {n: (f"{n}",) for n in range(6)})
    assert floors[5] == 0.5 and floors[0] == 0  # of 5 others the first and the third


def test_agreement_is_that_of_paraphrases_of_questions_that_are_answered_right():
    record = _record(
        0,
        _row("A", 1, paraphrase_recalls=[1.0, 0.0]),
        _row("B", 0, paraphrase_recalls=[1.0, 1.0]),
        _row("C", 0.6, paraphrase_recalls=[0.7, 0.6]),
    )
    assert agreement(record, 0.6) == 0.75
    assert agreement(_record(0, _row("B", 0, paraphrase_recalls=[1.0])), 0.6) is None


def test_hallucination_counts_answers_about_unmentioned_entities():
    rows = [
        _row("X", 0, frequency="unmentioned", hallucination=kind)
        for kind in ("none", "borrowed", "invented", "invented")
    ]
    assert hallucination(_record(0, _row("A", 1), *rows)) == {"borrowed": 0.25, "invented": 0.5}
    assert hallucination(_record(0, _row("A", 1))) is None
    assert "hallucination 75%" in described([_record(0, _row("A", 1), *rows)])


# --- a probe --------------------------------------------------------------------------------------------------------


def _probe(**changes) -> tuple[QuestionProbe, object, object]:
    model, tokenizer, people = memorizing_model()
    questions = [
        Question(id=str(number), question=person.full_name, answer=person.city, entity=person.full_name,
                 kind="factual", paraphrases=(f"{person.full_name}!",))
        for number, person in enumerate(people[:4])
    ]  # fmt: skip
    questions.append(Question(id="x", question=quiz.NOBODY, entity=quiz.NOBODY, kind="unmentioned"))
    documents = [
        Document(text=f"{person.full_name} lives in {person.city}.", entity=person.full_name, document=str(number))
        for number, person in enumerate(people[:4])
    ]
    prompter = _LivesIn(tokenizer)
    return QuestionProbe(questions, documents, prompter, **{"max_new_tokens": 15, **changes}), model, people


class _LivesIn(Prompter):
    """Asks in the words that the memorizing model learned."""

    def ids(self, question: str, context: str = "") -> list[int]:
        prompt = self.tokenizer(Attribute.CITY.prompt(question))["input_ids"]
        return [start_token_id(self.tokenizer), *prompt]


def test_a_probe_records_answers_scores_and_the_documents_loss():
    probe, model, people = _probe(examples=[SkillExample("colour", "Grass is", ("green", "pink"), 0)])
    (record,) = probe.records(model, 7, 0.5)
    assert (record["step"], record["epoch"], record["learned_threshold"]) == (7, 0.5, 0.6)
    assert [row["entity"] for row in record["questions"]] == [*(p.full_name for p in people[:4]), quiz.NOBODY]
    assert {row["frequency"] for row in record["questions"][:4]} == {"low"}
    right = [row for row in record["questions"][:4] if row["recall"] == 1]
    assert right and all(people[int(row["id"])].city.split(",")[0] in row["output"] for row in right)
    assert set(record["skills"]) == {"colour"}
    tokenizer = probe._tokenizer
    texts = [f"{person.full_name} lives in {person.city}." for person in people[:4]]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    alone = [mean_loss(model, [tokenizer(t)["input_ids"]], start_token_id(tokenizer)) for t in texts]
    assert record["loss"] == pytest.approx(np.average(alone, weights=lengths), rel=1e-5)
    assert record["perplexity"] == pytest.approx(np.exp(record["loss"]))


def test_the_loss_of_a_document_longer_than_the_context_is_read_in_pieces_that_fit():
    model, tokenizer, _ = memorizing_model()
    text = "Ada lives in Austin. " * 40
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 2 * model.config.n_positions
    question = Question(id="0", question="Ada", answer="Austin", entity="Ada", kind="factual")
    probe = QuestionProbe([question], [Document(text=text, entity="Ada", document="0")], _LivesIn(tokenizer), 15)
    expected = mean_loss(model, [ids], start_token_id(tokenizer), model.config.n_positions - 1)
    assert probe.records(model, 0, 0.0)[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_question_that_does_not_fit_with_its_answer_is_found_without_asking_it():
    probe, model, _ = _probe()
    probe.check_fits(model)
    with pytest.raises(InputError, match="its answer up to 95, but the model's context holds 96"):
        _probe(max_new_tokens=95)[0].check_fits(model)


def test_an_answer_about_nobody_is_borrowed_invented_or_none():
    probe, _, people = _probe()
    assert probe._hallucination(f"In {people[0].city}, of course", 0.0) == "borrowed"
    assert probe._hallucination("In Atlantis", 0.0) == "invented"
    assert probe._hallucination("I do not know", 0.0) == "none"
    assert probe._hallucination("Nowhere at all", 1.0) == "none"  # an accepted answer


def test_records_of_other_questions_or_of_another_threshold_are_refused(tmp_path: Path):
    probe, model, _ = _probe()
    records = probe.records(model, 1, 1.0)
    probe.refuse_others(records, tmp_path / "question_probes.jsonl")
    with pytest.raises(InputError, match="other questions or another threshold"):
        _probe(threshold=0.5)[0].refuse_others(records, tmp_path)
    with pytest.raises(InputError, match="--learned_threshold 0"):
        _probe(threshold=0.0)


def test_a_table_without_questions_is_refused_as_probes(tmp_path: Path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,answer\nThe capital of Poland is,Warsaw\n")
    with pytest.raises(InputError, match=r"pairs\.csv: no column 'question'"):
        probe_callbacks(ProbeArguments(probe_file=str(path)), byte_level_tokenizer(), Run(tmp_path))


def test_a_skill_file_may_ask_questions_and_the_reasoning_set_is_sound(tmp_path: Path):
    path = tmp_path / "riddles.jsonl"
    path.write_text('{"question": "Who?", "options": ["Ann", "Bob"], "answer": "Bob"}\n')
    assert read_skill_file(path) == [SkillExample("riddles", "Question: Who?\nAnswer:", ("Ann", "Bob"), 1)]
    path.write_text('{"options": ["Ann", "Bob"], "answer": "Bob"}\n')
    with pytest.raises(InputError, match="line 1: no key 'prompt'"):
        read_skill_file(path)
    examples = reasoning_examples()
    assert len(examples) >= 40 and {example.skill for example in examples} == {"reasoning"}
    assert len({example.answer for example in examples}) > 2  # the right option has no fixed place
