"""Probes inside the training loop tell what queries would tell, cost nothing but time, and survive interruption."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memorizing import memorizing_model, persons
from transformers import (
    GPT2LMHeadModel,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from knowledge_circuits.analysis.dynamics import fact_history, read_dynamics
from knowledge_circuits.corpus.queries import build_queries
from knowledge_circuits.files import InputError, read_jsonl, write_jsonl
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Attribute
from knowledge_circuits.sweeps.prediction import predict
from knowledge_circuits.training.probe_files import probe_callbacks
from knowledge_circuits.training.probes import (
    KnowledgeProbe,
    KnowledgeProbeCallback,
    ProbeArguments,
    Schedule,
    even_sample,
    would_answer,
)
from knowledge_circuits.training.skills import SkillExample, arithmetic_examples
from knowledge_circuits.training.stopping import StoppingRule


def test_a_probe_finds_correct_what_greedy_generation_answers_correctly():
    model, tokenizer, people = memorizing_model()
    rows = KnowledgeProbe(people, tokenizer).records(model, 0, 0.0)
    answers = predict(model, tokenizer, people)
    assert [row["correct"] for row in rows] == [answer["correct"] for answer in answers]
    assert [row["token_rank"] == 0 for row in rows] == [answer["first_token_correct"] for answer in answers]
    assert 20 < sum(row["correct"] for row in rows) < 50  # both outcomes occur


def test_facts_stand_in_the_order_of_people_and_attributes_with_all_their_keys():
    model, tokenizer, people = memorizing_model()
    rows = KnowledgeProbe(people[:2], tokenizer).records(model, 7, 0.5)
    assert [(row["full_name"], row["attribute"]) for row in rows] == [
        (person.full_name, attribute) for person in people[:2] for attribute in Attribute
    ]
    assert list(rows[0]) == [
        *("kind", "step", "epoch", "full_name", "attribute", "type", "frequency"),
        *("correct", "token_prob", "token_rank", "answer_log_prob"),
    ]
    assert (rows[0]["kind"], rows[0]["step"], rows[0]["epoch"]) == ("fact", 7, 0.5)


@pytest.mark.parametrize(
    ("follows", "right"),
    [(".", True), ("\n", True), ("<|endoftext|>", True), (",", False), (" and", False), (" ", False)],
)
def test_what_the_model_would_put_after_the_answer_decides_whether_it_is_right(follows: str, right: bool):
    _, tokenizer, people = memorizing_model()
    query = build_queries(people[:1], tokenizer, [Attribute.CITY])[0]
    token = tokenizer(follows)["input_ids"][0]
    assert would_answer(tokenizer, query, (*query.answer_ids, token)) is right
    assert not would_answer(tokenizer, query, (token, *query.answer_ids))


def test_an_answer_as_long_as_generation_may_be_need_not_end_and_a_longer_one_is_never_right():
    _, tokenizer, people = memorizing_model()
    (comma,) = tokenizer(",")["input_ids"]
    for length, right in ((14, False), (15, True), (16, False)):
        person = replace(people[0], city="x" * length)
        query = build_queries([person], tokenizer, [Attribute.CITY])[0]
        # One token for each letter; the space goes with the first one or stands alone.
        ids = tuple(query.answer_ids)[-length:] if len(query.answer_ids) > length else query.answer_ids
        query = replace(query, answer_ids=ids)
        assert len(ids) == length
        assert would_answer(tokenizer, query, (*ids, comma)) is right


def test_skills_and_texts_are_probed_beside_the_facts():
    model, tokenizer, people = memorizing_model()
    examples = [*arithmetic_examples(5), SkillExample("colour", "Grass is", ("green", "pink"), 0)]
    rows = KnowledgeProbe(people[:1], tokenizer, examples, {"held_out": "Some plain text."}).records(model, 0, 0.0)
    others = [row for row in rows if row["kind"] != "fact"]
    assert [(row["kind"], row.get("skill", row.get("text"))) for row in others] == [
        ("skill", "arithmetic"),
        ("skill", "colour"),
        ("text", "held_out"),
    ]
    assert [row.get("examples") for row in others] == [5, 1, None]
    assert others[2]["perplexity"] > 1


def test_a_smaller_sample_takes_all_types_and_bands_evenly():
    people = persons(60)
    chosen = even_sample(people, 12)
    assert len(chosen) == 12
    counts = [sum((p.type, p.band) == group for p in chosen) for group in {(p.type, p.band) for p in people}]
    assert counts == [2] * 6
    assert chosen == sorted(chosen, key=people.index)
    assert even_sample(people, 1000) == people
    unequal = [p for p in people if p.band != "low"] + [p for p in people if p.band == "low"][:1]
    assert len(even_sample(unequal, 11)) == 11  # what a small group cannot give, the others do
    with pytest.raises(InputError, match="at least one person"):
        even_sample(people, 0)


@pytest.mark.parametrize("words", ["epoch", ["epoch"]])
def test_a_schedule_is_epochs(words: Any):
    assert Schedule.parse(words) == Schedule(None)


@pytest.mark.parametrize("words", ["50", "50 steps", ["50", "steps"], ["50"]])
def test_a_schedule_is_a_number_of_steps(words: Any):
    assert Schedule.parse(words) == Schedule(50)


@pytest.mark.parametrize("words", ["epochs", "0", "-3 steps", "", "1.5"])
def test_any_other_schedule_is_refused(words: str):
    with pytest.raises(InputError, match="epoch or a number of steps"):
        Schedule.parse(words)


# --- inside a Trainer -----------------------------------------------------------------------------------------------


class _Interrupt(TrainerCallback):
    """Ends the program, as it were, at the beginning of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def _train(folder: Path, schedule: Schedule, resume: bool = False, interrupt: int | None = None, **options: Any) -> Any:
    """Train a copy of the tiny model for 3 epochs of 4 steps with probes; the Trainer afterwards."""
    model, tokenizer, people = memorizing_model()
    texts = [attribute.prompt(p.full_name) + f" {p.city}." for p in people[10:] for attribute in Attribute][:8]
    rows = [([0, *tokenizer(text)["input_ids"]] + [0] * 40)[:40] for text in texts]
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"), num_train_epochs=3, per_device_train_batch_size=2, learning_rate=3e-3,
        save_strategy="steps", save_steps=2, logging_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, seed=1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    model = GPT2LMHeadModel(copy.deepcopy(model.config))
    model.load_state_dict(memorizing_model()[0].state_dict())
    trainer = Trainer(model, arguments, train_dataset=data)
    callback = KnowledgeProbeCallback(
        options.get("probe") or KnowledgeProbe(people, tokenizer, arithmetic_examples(4), {"held_out": "A text."}),
        schedule,
        folder / "knowledge_dynamics.jsonl",
        options.get("stopping"),
    )
    trainer.add_callback(callback)
    callback.log = trainer.log
    if interrupt is not None:
        trainer.add_callback(_Interrupt(interrupt))
        with pytest.raises(KeyboardInterrupt):
            trainer.train(resume_from_checkpoint=resume)
    else:
        trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_probes_every_epoch_are_at_the_start_and_the_epochs_ends(tmp_path: Path):
    trainer = _train(tmp_path, Schedule())
    dynamics = read_dynamics(tmp_path / "knowledge_dynamics.jsonl")
    history = fact_history(dynamics.facts)
    assert history.steps.tolist() == [0, 4, 8, 12]
    assert history.epochs.tolist() == [0, 1, 2, 3]
    assert dynamics.skills["step"].tolist() == dynamics.texts["step"].tolist() == [0, 4, 8, 12]
    assert history.known[:, 0].sum() > history.known[:, -1].sum()  # other facts push the old ones out
    assert trainer.model.training


def test_probes_are_logged_and_do_not_swallow_the_trainer_s_own_log(tmp_path: Path):
    log = _train(tmp_path, Schedule(4)).state.log_history
    assert [entry["step"] for entry in log if "probe_known_share" in entry] == [0, 4, 8, 12]
    assert [entry["step"] for entry in log if "loss" in entry] == [2, 4, 6, 8, 10, 12]
    assert {"probe_arithmetic_accuracy", "probe_held_out_perplexity"} <= set(log[0])


def test_training_is_the_same_with_probes_and_without(tmp_path: Path):
    often = _train(tmp_path / "often", Schedule(1)).model.state_dict()
    rarely = _train(tmp_path / "rarely", Schedule()).model.state_dict()
    assert all(torch.equal(often[name], rarely[name]) for name in often)


@pytest.mark.parametrize(
    ("schedule", "steps", "interrupt"),
    [
        (Schedule(), [0, 4, 8, 12], 1),
        (Schedule(), [0, 4, 8, 12], 7),
        (Schedule(3), [0, 3, 6, 9, 12], 5),
        (Schedule(3), [0, 3, 6, 9, 12], 9),
    ],
)
def test_an_interrupted_and_resumed_run_leaves_the_same_records(
    schedule: Schedule, steps: list[int], interrupt: int, tmp_path: Path
):
    _train(tmp_path / "whole", schedule)
    _train(tmp_path / "resumed", schedule, interrupt=interrupt)
    _train(tmp_path / "resumed", schedule, resume=interrupt > 2)
    whole, resumed = (tmp_path / name / "knowledge_dynamics.jsonl" for name in ("whole", "resumed"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert sorted({row["step"] for row in read_jsonl(whole)}) == steps


def test_a_run_killed_between_saving_and_probing_makes_up_for_the_missing_probe(tmp_path: Path):
    _train(tmp_path / "whole", Schedule())
    _train(tmp_path / "resumed", Schedule(), interrupt=8)
    path = tmp_path / "resumed" / "knowledge_dynamics.jsonl"
    write_jsonl(path, [row for row in read_jsonl(path) if row["step"] < 8])
    _train(tmp_path / "resumed", Schedule(), resume=True)
    assert path.read_bytes() == (tmp_path / "whole" / "knowledge_dynamics.jsonl").read_bytes()


def test_a_run_is_not_resumed_with_other_facts(tmp_path: Path):
    model, tokenizer, people = memorizing_model()
    path = tmp_path / "knowledge_dynamics.jsonl"
    write_jsonl(path, KnowledgeProbe(people[:2], tokenizer).records(model, 4, 1.0))
    state = TrainerState(global_step=4, epoch=1.0)
    callback = KnowledgeProbeCallback(KnowledgeProbe(people[:3], tokenizer), Schedule(), path)
    with pytest.raises(InputError, match="probed for other facts"):
        callback.on_train_begin(TrainingArguments(report_to=[]), state, TrainerControl(), model=model)
    assert len(read_jsonl(path)) == 10


def test_training_ends_when_a_skill_has_fallen_too_far(tmp_path: Path):
    _, tokenizer, people = memorizing_model()
    right = [
        SkillExample("old facts", attribute.prompt(p.full_name), (p.value(attribute), "Nowhere."), 0)
        for p in people[:6]
        for attribute in Attribute
    ]
    probe = KnowledgeProbe(people, tokenizer, right)
    trainer = _train(tmp_path, Schedule(2), probe=probe, stopping=StoppingRule(skill_drop=0.0, patience=99))
    accuracies = read_dynamics(tmp_path / "knowledge_dynamics.jsonl").skills["accuracy"].tolist()
    assert trainer.state.global_step == 2 * (len(accuracies) - 1) < 12
    assert accuracies[-1] < accuracies[0] <= min(accuracies[:-1])


def test_the_flags_make_the_callback_that_they_describe(tmp_path: Path):
    model, tokenizer, people = memorizing_model()
    write_jsonl(tmp_path / "test.jsonl", [person.to_row() for person in people])

    def parsed(*words: str) -> ProbeArguments:
        return HfArgumentParser(ProbeArguments).parse_args_into_dataclasses(list(words))[0]

    def make(*words: str) -> list[KnowledgeProbeCallback]:
        return probe_callbacks(parsed(*words), tokenizer, Run(tmp_path))

    file = ("--probe_file", str(tmp_path / "test.jsonl"))
    assert make() == []
    assert parsed("--probe_every", "50", "steps").probe_every == ["50", "steps"]
    assert make(*file, "--stop_on", "knowledge", "--patience", "2", "--skill_drop", "0.5") != []
    (callback,) = make(*file, "--skill_examples", "3")
    callback.on_train_begin(TrainingArguments(report_to=[]), TrainerState(), TrainerControl(), model=model)
    skills = read_dynamics(Run(tmp_path).knowledge_dynamics).skills
    assert (skills["skill"].tolist(), skills["examples"].tolist()) == (["arithmetic"], [3])
    with pytest.raises(InputError, match="--stop_on knowledge needs --probe_file"):
        make("--stop_on", "knowledge")
    with pytest.raises(InputError, match="--patience must be at least 1"):
        make(*file, "--stop_on", "knowledge", "--patience", "0")
    with pytest.raises(InputError, match="no such file"):
        make("--probe_file", str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="at least one person"):
        make(*file, "--probe_max_facts", "4")
