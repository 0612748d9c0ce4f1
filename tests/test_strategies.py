"""Training strategies: what each changes, that an interrupted run ends as an undisturbed one, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import quiz
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

import knowledge_circuits as kc
from knowledge_circuits.corpus.documents import TEXT
from knowledge_circuits.files import InputError
from knowledge_circuits.models.loading import load_model
from knowledge_circuits.runs import Run
from knowledge_circuits.training import probe_files
from knowledge_circuits.training.arguments import parse_arguments
from knowledge_circuits.training.packing import TokenStream, select_documents
from knowledge_circuits.training.probes import ProbeArguments
from knowledge_circuits.training.question_probes import learned_entities, read_question_probes
from knowledge_circuits.training.run import Flags, train
from knowledge_circuits.training.strategies import StrategyArguments, annotate, chosen

EPOCHS = 4


@pytest.fixture(autouse=True)
def few_skills(monkeypatch: pytest.MonkeyPatch) -> None:
    """The skills that come along would take most of the time."""
    monkeypatch.setattr(probe_files, "reasoning_examples", list)
    monkeypatch.setattr(probe_files, "held_out_text", lambda: "A river begins on a hillside.")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quiz")
    quiz.write(folder)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quiz.save_model(tmp_path_factory.mktemp("models") / "quiz")


@pytest.fixture
def flags(data, start, tmp_path):
    """Makes the flags of a run that learns some answers by heart in a few epochs."""

    def make(name: str = "run", **changes) -> Flags:
        values = {
            "model_name_or_path": start,
            "output_dir": tmp_path / name,
            "cache_dir": tmp_path / "cache",
            "train_file": data / "documents.jsonl",
            "probe_file": data / "questions.jsonl",
            "probe_max_new_tokens": 6,
            "skill_examples": 2,
            "block_size": 64,
            "per_device_train_batch_size": 2,
            "learning_rate": 5e-3,
            "lr_scheduler_type": "constant",
            "num_train_epochs": EPOCHS,
            "save_strategy": "epoch",
            "logging_steps": 1,
            "seed": 5,
            "use_cpu": True,
            "disable_tqdm": True,
            **changes,
        }
        words = [f"--{name}={value}" for name, value in values.items() if value is not None]
        return Flags(*parse_arguments(words, [ProbeArguments, StrategyArguments]))

    return make


class KillAt(TrainerCallback):
    """Ends the process as SIGKILL does, at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_be_killed(flags: Flags, step: int) -> None:
    child = os.fork()
    if child == 0:
        try:
            train(flags, lambda run, tokenizer: [KillAt(step)])
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(Path(run.checkpoints()[-1].path) / "model.safetensors")


def probes(run: Run) -> list[dict]:
    """The run's records without what the clock decides."""
    rows = read_question_probes(run.question_probes)
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def losses(run: Run) -> list[float]:
    state = json.loads((Path(run.checkpoints()[-1].path) / "trainer_state.json").read_text())
    return [record["loss"] for record in state["log_history"] if "loss" in record]


def assert_same(one: Run, other: Run) -> None:
    assert [checkpoint.step for checkpoint in one.checkpoints()] == [c.step for c in other.checkpoints()]
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert probes(one) == probes(other)
    assert losses(one) == losses(other)


@pytest.mark.parametrize(
    ("strategy", "save_steps"),
    [
        ({}, None),
        ({"adaptive_exposure": True}, None),
        ({"adaptive_exposure": True}, 2),
        ({"lora_rank": 4, "lora_dropout": 0.1}, 2),
        ({"kl_previous": 0.5, "kl_start": 0.1}, 2),
        ({"lora_rank": 4, "kl_previous": 0.5, "annotate_entities": True}, 2),
    ],
)
def test_a_killed_run_ends_with_the_weights_and_probes_of_an_undisturbed_one(flags, strategy, save_steps):
    saving = {"save_strategy": "steps", "save_steps": save_steps} if save_steps else {}
    changes = {**strategy, **saving, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
    whole = train(flags("whole", **changes))
    step = max(whole.step * 2 // 3, 5)
    train_and_be_killed(flags(**changes), step)
    resumed = train(flags(**changes))
    assert resumed.trained and resumed.step == whole.step
    assert_same(resumed.run, whole.run)
    assert not train(flags(**changes)).trained


def test_documents_of_learned_entities_are_left_out_of_the_next_epoch_and_come_back(flags, data):
    run = train(flags(adaptive_exposure=True, num_train_epochs=10)).run
    records = probes(run)
    rows = quiz.documents()
    seen = [record["documents_seen"] for record in records]
    for before, read in zip(records, np.diff(seen), strict=False):
        learned = learned_entities(before, 0.6)
        assert read == sum(row["entity"] not in learned for row in rows)
    learned = [learned_entities(record, 0.6) for record in records]
    assert any(one - two for one, two in pairwise(learned)), "nothing was forgotten"
    assert 1 < min(np.diff(seen)) < len(rows)
    steps = np.diff([record["step"] for record in records])
    assert min(steps) < max(steps)  # fewer documents make fewer steps


def test_without_a_strategy_every_epoch_reads_all_documents_and_the_configuration_names_none(flags):
    run = train(flags()).run
    assert [record["documents_seen"] for record in probes(run)] == [10 * epoch for epoch in range(EPOCHS + 1)]
    assert chosen(json.loads(run.config.read_text())["arguments"]) == {}
    assert probes(run)[-1]["loss"] < probes(run)[0]["loss"]


def test_training_ends_when_every_entity_is_learned(flags, tmp_path):
    for name, rows in (("one", quiz.documents()), ("questions", quiz.questions())):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows if row["entity"] == "Farid Foster")
        )
    files = {"train_file": tmp_path / "one.jsonl", "probe_file": tmp_path / "questions.jsonl"}
    run = train(flags(**files, adaptive_exposure=True, num_train_epochs=30)).run
    learned = [learned_entities(record, 0.6) for record in probes(run)]
    assert learned[-1] == {"Farid Foster"} and not any(learned[:-1]) and len(learned) < 30
    assert run.checkpoints()[-1].step == probes(run)[-1]["step"]
    assert not train(flags(**files, adaptive_exposure=True, num_train_epochs=30)).trained


def test_selected_documents_are_those_of_the_stream():
    stream = TokenStream(np.arange(9), np.array([0, 2, 5, 9]), np.zeros(9, dtype=np.uint8))
    chosen_ones = select_documents(stream, np.array([True, False, True]))
    assert chosen_ones.ids.tolist() == [0, 1, 5, 6, 7, 8] and chosen_ones.starts.tolist() == [0, 2, 6]


# --- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_of_lora_is_an_ordinary_model_and_its_adapter_gives_the_same_one(
    flags, start, tiny_gpt2_folder, tied
):
    start = tiny_gpt2_folder if tied else start  # GPT-2 also keeps its weights as [in, out]
    run = train(flags(lora_rank=2, num_train_epochs=1, model_name_or_path=start)).run
    first, end = (Path(run.checkpoints()[index].path) for index in (0, -1))
    base = load_file(start / "model.safetensors")
    assert all(torch.equal(weight, base[name]) for name, weight in load_file(first / "model.safetensors").items())
    changed = {name for name, weight in weights(run).items() if not torch.equal(weight, base[name])}
    assert changed and all(("_proj." in name or ".c_" in name) and name.endswith("weight") for name in changed)
    ids = torch.arange(1, 30)[None]
    merged = AutoModelForCausalLM.from_pretrained(end)(ids).logits
    adapted = load_model(str(end / "adapter"))(ids).logits
    torch.testing.assert_close(adapted, merged)
    by_path = kc.load_model(str(end / "adapter"))
    by_flag = kc.load_model(str(start), adapter=str(end / "adapter"))
    torch.testing.assert_close(by_path.embedding, by_flag.embedding)
    assert type(by_path) is type(kc.load_model(str(end)))
    with pytest.raises(InputError, match="trained on a base model with other weights than"):
        kc.load_model(str(end), adapter=str(end / "adapter"))


class KeepLogits(TrainerCallback):
    """Keeps the logits of the trained model at the end of training."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def on_train_end(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            self.logits = model.eval()(self.ids).logits


@pytest.mark.parametrize(
    ("family", "modules"),
    [
        *(("gpt2", name) for name in ("all-linear", "c_attn", "c_fc", "c_proj", "wpe")),
        *(("llama", name) for name in ("all-linear", "q_proj", "down_proj", "embed_tokens", "lm_head")),
    ],
)
def test_a_checkpoint_of_lora_predicts_as_the_trained_model_did(flags, start, tiny_gpt2_folder, family, modules):
    start = tiny_gpt2_folder if family == "gpt2" else start  # GPT-2's head is its embedding, this Llama's is not
    kept = KeepLogits(torch.arange(1, 30)[None])
    changes = {"lora_rank": 2, "lora_modules": modules, "model_name_or_path": start, "num_train_epochs": 1}
    run = train(flags(learning_rate=0.05, **changes), lambda run, tokenizer: [kept]).run
    end = Path(run.checkpoints()[-1].path)
    before, *after = (load_model(str(path))(kept.ids).logits for path in (start, end, end / "adapter"))
    assert (kept.logits - before).abs().max() > 1e-2
    for logits in after:
        torch.testing.assert_close(logits, kept.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modules", ["lm_head", "wte"])
def test_layers_that_share_their_weights_get_no_adapter(flags, tiny_gpt2_folder, modules):
    shared = rf"--lora_modules {modules}: lm_head and transformer.wte of this model share their weights, .*name other"
    with pytest.raises(InputError, match=shared):
        train(flags(lora_rank=2, lora_modules=modules, model_name_or_path=tiny_gpt2_folder))


def test_the_layers_of_an_adapter_are_saved_in_an_order_that_never_changes(flags):
    run = train(flags(lora_rank=2, max_steps=1)).run
    names = json.loads((Path(run.checkpoints()[-1].path) / "adapter/adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names) and len(names) == 14


def test_lora_learns_in_few_weights(flags):
    run = train(flags(lora_rank=8)).run
    records = probes(run)
    assert records[-1]["loss"] < records[1]["loss"]
    adapter = load_file(Path(run.checkpoints()[-1].path) / "adapter/adapter_model.safetensors")
    assert sum(weight.numel() for weight in adapter.values()) < sum(w.numel() for w in weights(run).values()) / 2


def test_without_peft_lora_says_what_to_install(flags, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"--lora_rank needs the package peft \(pip install peft\)"):
        train(flags(lora_rank=2))


# --- KL -------------------------------------------------------------------------------------------------------------


def distance(run: Run, folder: Path) -> float:
    base = load_file(folder / "model.safetensors")
    return sum(float((weight - base[name]).square().sum()) for name, weight in weights(run).items())


def test_the_divergence_from_the_starting_model_keeps_the_model_near_it(flags, start):
    free, held = train(flags("free")).run, train(flags("held", kl_start=20)).run
    assert distance(held, start) < distance(free, start) / 2
    assert losses(held)[0] == pytest.approx(losses(free)[0])  # the model is its own reference at first


def test_the_previous_epochs_model_is_the_starting_model_in_the_first_epoch_only(flags):
    start = train(flags("start", kl_start=2, num_train_epochs=2)).run
    previous = train(flags("previous", kl_previous=2, num_train_epochs=2)).run
    steps = len(losses(start)) // 2
    assert losses(start)[:steps] == losses(previous)[:steps]
    assert losses(start)[steps:] != losses(previous)[steps:]


def test_the_divergence_is_kl_of_the_reference_from_the_model_over_learned_tokens(start):
    from knowledge_circuits.training.divergence import Reference

    model = load_model(str(start))
    other = load_model(str(start))
    with torch.no_grad():
        other.lm_head.weight += 0.5 * torch.randn(other.lm_head.weight.shape)
    ids = torch.randint(0, 300, (2, 12))
    labels = ids.clone()
    labels[0, 5:] = -100
    found = Reference(other, 3.0).divergence(model(ids).logits, {"input_ids": ids}, labels, 15)
    q, p = (m(ids).logits[:, :-1].detach().float().softmax(-1) for m in (other, model))
    each = (q * (q.log() - p.log())).sum(-1)[labels[:, 1:] != -100]
    assert len(each) == 15
    assert found.item() == pytest.approx(3 * float(each.mean()), rel=1e-4)


# --- annotation -----------------------------------------------------------------------------------------------------


def test_every_entity_of_the_corpus_is_marked_the_longest_first_and_whole_words_only():
    rows = [
        {"entity": "Ann", TEXT: "Ann met Ann Lee, not Annette."},
        {"entity": "Ann Lee", TEXT: "She (Ann Lee) left."},
        {TEXT: "A+ is a grade.", "entity": "A+"},
        {TEXT: "Of Ann."},
    ]
    assert [row[TEXT] for row in annotate(rows)] == [
        "<entity>Ann</entity> met <entity>Ann Lee</entity>, not Annette.",
        "She (<entity>Ann Lee</entity>) left.",
        "<entity>A+</entity> is a grade.",
        "Of <entity>Ann</entity>.",
    ]
    assert rows[0][TEXT] == "Ann met Ann Lee, not Annette."


def test_annotation_changes_what_is_learned_and_not_what_is_probed(flags):
    plain, marked = (
        train(flags("plain", max_steps=1)).run,
        train(flags("marked", max_steps=1, annotate_entities=True)).run,
    )
    assert probes(plain)[0] == probes(marked)[0]
    keys = [json.loads(run.config.read_text())["data"]["content_key"] for run in (plain, marked)]
    assert keys[0] != keys[1]


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 0}, "--lora_rank 0"),
        ({"lora_alpha": 4}, "--lora_alpha needs --lora_rank"),
        ({"lora_rank": 2, "lora_modules": "elsewhere"}, "--lora_modules elsewhere"),
        ({"lora_rank": 2, "lora_dropout": 1}, "--lora_dropout 1"),
        ({"kl_start": -1}, "--kl_start -1"),
        ({"kl_previous": "nan"}, "--kl_previous nan"),
        ({"adaptive_exposure": True, "probe_file": None}, "needs question probes"),
        ({"adaptive_exposure": True, "probe_every": "2 steps"}, "--probe_every epoch"),
        ({"adaptive_exposure": True, "max_steps": 3}, "whole epochs"),
        (
            {"adaptive_exposure": True, "text_column": "document", "train_file": "PLAIN"},
            "needs documents with the column",
        ),
        (
            {"annotate_entities": True, "train_file": "PLAIN", "text_column": "document"},
            "needs documents with the column",
        ),
        ({"instruct": True}, "has no chat template"),
        ({"learned_threshold": 1.5}, "--learned_threshold 1.5"),
        ({"probe_max_new_tokens": 0}, "--probe_max_new_tokens 0"),
        ({"probe_max_facts": 5}, "--probe_max_facts is for people"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(flags, tmp_path, changes, message):
    if changes.get("train_file") == "PLAIN":
        changes = {**changes, "train_file": tmp_path / "plain.txt", "text_column": None}
        (tmp_path / "plain.txt").write_text("It rains.\n" * 3)
    with pytest.raises(InputError, match=message) as refused:
        train(flags(**changes))
    assert "\n" not in str(refused.value)


def test_probes_that_do_not_fit_the_context_are_refused_before_a_run_is_written(flags, tmp_path):
    with pytest.raises(InputError, match="its answer up to 250, but the model's context holds 256"):
        train(flags(probe_max_new_tokens=250))
    assert not [path.name for path in (tmp_path / "run").rglob("*") if path.name != ".lock"]


def test_a_question_without_an_answer_is_refused_with_its_line(flags, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"question": "Who?", "entity": "Ann"}\n')
    with pytest.raises(InputError, match=r"questions.jsonl, line 1: 'Who\?' has no answer"):
        train(flags(probe_file=tmp_path / "questions.jsonl"))


def test_a_run_is_not_resumed_with_another_strategy(flags):
    train(flags(num_train_epochs=1))
    with pytest.raises(InputError, match=r"other settings \(kl_start None, now 0.5\)"):
        train(flags(num_train_epochs=2, kl_start=0.5))
    with pytest.raises(InputError, match=r"other settings \(skill_examples 2, now 1\)"):
        train(flags(num_train_epochs=2, skill_examples=1))
    train(flags("adaptive", num_train_epochs=1, adaptive_exposure=True))
    with pytest.raises(InputError, match=r"other settings \(probe_max_new_tokens 6, now 7\)"):
        train(flags("adaptive", num_train_epochs=2, adaptive_exposure=True, probe_max_new_tokens=7))
