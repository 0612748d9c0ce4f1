"""Training runs: whole checkpoints, resumable at any moment, and numbers that mean what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback

from knowledge_circuits.corpus.documents import hub_documents, read_text_rows
from knowledge_circuits.files import BOUNDS, InputError, read_jsonl
from knowledge_circuits.manifest import FOLDER_MANIFEST, finish
from knowledge_circuits.models.loading import weights_digest
from knowledge_circuits.run_config import read_run_config
from knowledge_circuits.runs import Run, checkpoints
from knowledge_circuits.study import KnowledgeType
from knowledge_circuits.training.arguments import ModelArguments, parse_arguments
from knowledge_circuits.training.callbacks import exponential_steps
from knowledge_circuits.training.checkpoints import has_resume_state
from knowledge_circuits.training.data import IGNORED, TrainingBlocks, choose_block_size
from knowledge_circuits.training.packing import TYPE_CODES, read_blocks
from knowledge_circuits.training.run import Flags, evaluate, train
from knowledge_circuits.training.starting_model import starting_model, training_tokenizer
from knowledge_circuits.training.trainer import CheckpointTrainer, block_counts
from train import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with 24 biographies, 8 of them for validation, and other people's for replay."""
    folder = tmp_path_factory.mktemp("entities_24")
    rows = tiny.biographies(24)
    for name, part in (("train", rows), ("validation", rows[:8]), ("replay", tiny.biographies(6, seed=9))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "data_config.json").write_text(json.dumps({"N": 24, "seed": 77}))
    return folder


@pytest.fixture
def flags(data, tiny_gpt2_folder, tmp_path):
    """Makes the flags of a run: 6 steps an epoch, 2 epochs, a checkpoint and an evaluation each epoch."""

    def make(**changes) -> Flags:
        values = {
            "model": "tiny",
            "model_name_or_path": tiny_gpt2_folder,
            "output_dir": tmp_path / "run",
            "cache_dir": tmp_path / "cache",
            "train_file": data / "train.jsonl",
            "validation_file": data / "validation.jsonl",
            "block_size": 128,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 2,
            "save_strategy": "epoch",
            "eval_strategy": "epoch",
            "logging_steps": 4,
            "seed": 5,
            "disable_tqdm": True,
            **changes,
        }
        words = [f"--{name}={value}" for name, value in values.items() if value is not None]
        return Flags(*parse_arguments(words))

    return make


def records(run: Run) -> list[dict]:
    return [json.loads(line) for line in run.evaluations.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class KillAt(TrainerCallback):
    """Ends the process as SIGKILL does, at an event of a step."""

    def __init__(self, event: str, step: int) -> None:
        setattr(self, event, self._kill)
        self.step = step

    def _kill(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run_and_be_killed(action) -> None:
    """Call `action` in a process of its own, which must die of SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_a_run_keeps_the_untrained_model_a_checkpoint_each_epoch_and_every_evaluation(flags, tiny_gpt2_folder):
    outcome = train(flags())
    assert outcome.trained and outcome.step == 12
    saved = outcome.run.checkpoints()
    assert [checkpoint.step for checkpoint in saved] == [0, 6, 12]
    for checkpoint in saved:
        assert AutoModelForCausalLM.from_pretrained(checkpoint.path).config.use_cache
        assert (Path(checkpoint.path) / "tokenizer.json").exists()
    untrained, start = (
        load_file(saved[0].path + "/model.safetensors"),
        load_file(tiny_gpt2_folder / "model.safetensors"),
    )
    assert all(torch.equal(untrained[name], start[name]) for name in start)
    assert not (Path(saved[0].path) / "trainer_state.json").exists()
    found = records(outcome.run)
    assert [(record["step"], record["epoch"]) for record in found] == [(0, 0), (6, 1), (12, 2)]
    assert set(found[0]) == {
        "step",
        "epoch",
        "loss",
        "accuracy",
        "new_first_token_attribute_accuracy",
        "revised_first_token_attribute_accuracy",
    }
    assert found[2]["loss"] < found[0]["loss"] - 1


def test_optimizer_state_is_kept_for_the_two_newest_checkpoints_and_no_arguments_are_pickled(flags):
    outcome = train(flags(num_train_epochs=3))
    resumable = [checkpoint.step for checkpoint in outcome.run.checkpoints() if has_resume_state(Path(checkpoint.path))]
    assert resumable == [12, 18]
    assert not list(outcome.run.path.rglob("training_args.bin"))
    assert not list(outcome.run.path.rglob("*.partial"))
    assert not list(Path(outcome.run.checkpoints()[1].path).glob("*.pt*"))


def test_resume_state_that_a_killed_process_left_in_part_goes(flags):
    run = train(flags(num_train_epochs=3)).run
    before = contents(run.path)
    first, *_, last = (Path(checkpoint.path) for checkpoint in run.checkpoints()[1:])
    shutil.copy(last / "rng_state.pth", first)  # the optimizer's was removed first
    assert not train(flags(num_train_epochs=3)).trained
    assert contents(run.path) == before


def test_only_so_many_checkpoints_are_kept_as_asked_for(flags):
    run = train(flags(save_total_limit=1)).run
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [12]
    assert not train(flags(save_total_limit=1)).trained


def test_a_run_says_its_whole_configuration_and_the_seed_of_its_data(flags):
    run = train(flags(replay_file=None)).run
    said = json.loads(run.config.read_text())
    assert said["model"] == "tiny" and said["data"]["seed"] == 77 and said["sequences_per_step"] == 4
    assert said["arguments"]["learning_rate"] == 1e-2 and said["arguments"]["block_size"] == 128
    assert set(said["versions"]) >= {"torch", "transformers", "knowledge_circuits"}


def test_a_run_says_how_the_weights_that_it_starts_from_were_made(flags, tmp_path):
    first = train(flags(max_steps=1)).run
    start = first.checkpoints()[-1]
    second = train(flags(model_name_or_path=start.path, output_dir=tmp_path / "second", max_steps=1)).run
    config = read_run_config(second)
    assert config.starting_weights == weights_digest(start.path) and config.starting_model is not None
    assert config.starting_model.configuration == read_run_config(first)
    assert config.starting_model.epoch == pytest.approx(1 / 6)
    assert read_run_config(first).starting_model is None  # of another program


def test_random_weights_are_told_by_the_flags_that_made_them(tmp_path):
    (tmp_path / "model").mkdir()
    finish(tmp_path / "model" / FOLDER_MANIFEST, "model", {"seed": 3, "n_layer": 2}, [])
    made = starting_model(tmp_path / "model")
    assert made is not None and made.made_from == {"seed": 3, "n_layer": 2}
    assert starting_model(tmp_path) is None


def test_a_finished_run_is_left_as_it_is(flags):
    run = train(flags()).run
    before = contents(run.path)
    outcome = train(flags())
    assert (outcome.trained, outcome.step) == (False, 12)
    assert contents(run.path) == before


def test_more_epochs_go_on_where_a_finished_run_ended(flags, tmp_path):
    train(flags())
    assert train(flags(num_train_epochs=3)).step == 18
    train(flags(num_train_epochs=3, output_dir=tmp_path / "whole"))
    ends = [load_file(tmp_path / name / "checkpoints/checkpoint-18/model.safetensors") for name in ("run", "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_more_epochs_are_refused_where_the_warm_up_is_a_share_of_them(flags):
    schedule = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.5, "num_train_epochs": 1}
    train(flags(**schedule))
    with pytest.raises(InputError, match=r"num_train_epochs 1.0, now 2.0"):
        train(flags(**{**schedule, "num_train_epochs": 2}))
    assert not train(flags(**schedule)).trained


@pytest.mark.parametrize(
    ("event", "step"),
    [("on_train_begin", 0), ("on_step_end", 4), ("on_step_end", 9), ("on_evaluate", 6), ("on_save", 6)],
)
def test_a_killed_run_ends_as_an_undisturbed_one_byte_for_byte(flags, tmp_path, event, step):
    changes = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 1.7, "gradient_accumulation_steps": 2}
    changes["per_device_train_batch_size"] = 2
    whole = train(flags(output_dir=tmp_path / "whole", **changes)).run
    run_and_be_killed(lambda: train(flags(**changes), lambda run, tokenizer: [KillAt(event, step)]))
    resumed = train(flags(**changes)).run
    undisturbed, found = contents(whole.path), contents(resumed.path)
    assert found.keys() == undisturbed.keys()
    differing = {name for name in found if found[name] != undisturbed[name]}
    assert differing == {"run_config.json", "run_config_manifest.json"}  # they name different folders


def test_a_run_killed_while_it_saves_has_no_such_checkpoint_and_ends_the_same(flags, tmp_path):
    class DiesWhileSaving(CheckpointTrainer):
        def _save_rng_state(self, output_dir: str) -> None:
            if self.state.global_step == 12:
                os.kill(os.getpid(), signal.SIGKILL)
            super()._save_rng_state(output_dir)

    def die() -> None:
        import knowledge_circuits.training.run as module

        module.CheckpointTrainer = DiesWhileSaving  # in the process that dies
        train(flags())

    whole = train(flags(output_dir=tmp_path / "whole")).run
    run_and_be_killed(die)
    run = Run(tmp_path / "run")
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [0, 6]
    assert (run.checkpoints_folder / ".checkpoint-12.partial").exists()
    train(flags())
    undisturbed, found = contents(whole.checkpoints_folder), contents(run.checkpoints_folder)
    assert found == undisturbed
    assert run.evaluations.read_bytes() == whole.evaluations.read_bytes()


def test_dropout_goes_on_as_it_would_have(flags, tmp_path, tiny_gpt2_folder):
    folder = tmp_path / "with-dropout"
    shutil.copytree(tiny_gpt2_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "resid_pdrop": 0.3}))
    changes = {"model_name_or_path": folder, "save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    train(flags(output_dir=tmp_path / "whole", **changes))
    run_and_be_killed(lambda: train(flags(**changes), lambda run, tokenizer: [KillAt("on_step_end", 5)]))
    train(flags(**changes))
    ends = [load_file(tmp_path / name / "checkpoints/checkpoint-8/model.safetensors") for name in ("run", "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_exponential_schedule_saves_ever_more_rarely_up_to_its_cap(flags):
    steps = exponential_steps(cap=flags().training.save_schedule_cap)
    assert [next(steps) for _ in range(11)] == [1, 3, 5, 9, 13, 21, 29, 45, 61, 77, 93]
    small = exponential_steps(cap=3)
    assert [next(small) for _ in range(6)] == [1, 3, 5, 8, 11, 14]
    run = train(flags(save_schedule="exponential", save_schedule_cap=4, eval_strategy="steps", eval_steps=5)).run
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [0, 1, 3, 5, 9, 12]
    assert [record["step"] for record in records(run)] == [0, 5, 10, 12]


def test_checkpoints_may_be_denser_in_the_first_epochs(flags):
    run = train(flags(save_half_epochs=1)).run
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [0, 3, 6, 12]


def test_training_that_a_callback_ends_is_saved_and_finished(flags):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 4

    outcome = train(flags(), lambda run, tokenizer: [Stop()])
    assert outcome.step == 4
    assert [checkpoint.step for checkpoint in outcome.run.checkpoints()] == [0, 4]
    assert not train(flags()).trained


def test_replay_changes_what_is_learned_but_not_how_many_steps(flags, data):
    plain = train(flags())
    mixed = train(
        flags(output_dir=plain.run.path.parent / "mixed", replay_ratio=0.5, replay_file=data / "replay.jsonl")
    )
    assert mixed.step == plain.step
    keys = [json.loads(outcome.run.config.read_text())["data"]["content_key"] for outcome in (plain, mixed)]
    assert keys[0] != keys[1]


def test_evaluation_agrees_with_the_mean_over_each_token_of_the_text(flags, data, tiny_gpt2_folder):
    metrics = evaluate(flags())
    block = read_blocks_of_cache(flags())
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder)
    losses, right, opened = [], [], {kind: [] for kind in KnowledgeType}
    for ids, counted, types in zip(block.input_ids, block.counted, block.attribute_types, strict=True):
        logits = model(torch.tensor(ids[None].astype("int64"))).logits[0]
        for position in range(1, len(ids)):
            if counted[position]:
                log_probs = logits[position - 1].log_softmax(-1)
                losses.append(-log_probs[int(ids[position])].item())
                right.append(int(log_probs.argmax()) == ids[position])
                for kind, code in TYPE_CODES.items():
                    if types[position] == code:
                        opened[kind].append(right[-1])
    assert metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(sum(right) / len(right))
    for kind in KnowledgeType:
        assert len(opened[kind]) == 20, "four people of each type, five attributes each"
        found = metrics[f"{kind}_first_token_attribute_accuracy"]
        assert found == pytest.approx(sum(opened[kind]) / len(opened[kind]))


def read_blocks_of_cache(flags: Flags):
    (path,) = Path(flags.model.cache_dir).glob("packed/evaluation-*.safetensors")
    blocks = read_blocks(path, path.stem.removeprefix("evaluation-"))
    assert blocks is not None
    return blocks


def test_without_do_train_the_program_only_evaluates(flags, data, tiny_gpt2_folder, tmp_path, monkeypatch, capsys):
    words = f"train.py --model_name_or_path {tiny_gpt2_folder} --output_dir {tmp_path / 'only'} --do_eval"
    words += f" --eval_strategy epoch --train_file {data / 'train.jsonl'} --validation_file {data / 'validation.jsonl'}"
    words += f" --block_size 128 --cache_dir {tmp_path} --report_to none"
    monkeypatch.setattr("sys.argv", words.split())
    main()
    assert re.search(r"^loss [0-9.]+, accuracy", capsys.readouterr().out, re.MULTILINE)
    assert not (tmp_path / "only" / "checkpoints").exists()


def test_evaluation_does_not_depend_on_the_batch_size(flags):
    whole, single = evaluate(flags(per_device_eval_batch_size=64)), evaluate(flags(per_device_eval_batch_size=1))
    assert whole == pytest.approx(single, rel=1e-5)


def test_first_tokens_count_where_the_model_would_say_them():
    new, revised = TYPE_CODES[KnowledgeType.NEW], TYPE_CODES[KnowledgeType.REVISED]
    labels = torch.tensor([[3, 1, 2, 0, 2], [4, 4, IGNORED, IGNORED, IGNORED]])
    types = torch.tensor([[0, new, revised, 0, revised], [0, new, 0, 0, 0]])
    said = torch.tensor([[1, 0, 0, 2, 0], [4, 0, 0, 0, 0]])  # what each position predicts to follow
    logits = torch.nn.functional.one_hot(said, 5).float() * 20
    counts = block_counts(logits, labels, types)
    #                                         tokens, right, new: told, said, revised: told, said
    assert counts[:, 1:].tolist() == [[4, 3, 1, 1, 2, 1], [1, 1, 1, 1, 0, 0]]


def test_a_data_set_has_its_own_validation_split_or_none(data, tmp_path):
    folder = tmp_path / "data_set"
    folder.mkdir()
    shutil.copy(data / "train.jsonl", folder / "train.jsonl")
    train_documents, evaluation = hub_documents(str(folder), cache_dir=str(tmp_path / "cache"))
    assert [row["text"] for row in train_documents] == [row["text"] for row in read_jsonl(data / "train.jsonl")]
    assert evaluation is None
    shutil.copy(data / "validation.jsonl", folder / "validation.jsonl")
    _, evaluation = hub_documents(str(folder), cache_dir=str(tmp_path / "cache"))
    assert [row["text"] for row in evaluation] == [row["text"] for row in read_jsonl(data / "validation.jsonl")]
    (folder / "train.jsonl").unlink()
    with pytest.raises(InputError, match="has no split 'train'"):
        hub_documents(str(folder), cache_dir=str(tmp_path / "cache"))


def test_the_tokenizer_is_of_the_models_revision_and_from_its_cache(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "knowledge_circuits.training.starting_model.load_tokenizer", lambda *a, **k: asked.append((a[0], k))
    )
    model = ModelArguments(model_name_or_path="someone/model", model_revision="v2", cache_dir="cache")
    training_tokenizer(model)
    training_tokenizer(replace(model, tokenizer_name="someone/tokenizer"))
    assert asked == [
        ("someone/model", {"revision": "v2", "cache_dir": "cache"}),
        ("someone/tokenizer", {"revision": "main", "cache_dir": "cache"}),
    ]


def test_without_limits_a_block_has_the_default_size():
    assert choose_block_size(None) == choose_block_size(None, None) == 1024
    assert choose_block_size(None, 512, None) == 512


def test_a_model_from_scratch_takes_its_shape_from_the_overrides(flags, tiny_gpt2_folder):
    run = train(
        flags(
            model_name_or_path=None,
            model_type="gpt2",
            tokenizer_name=tiny_gpt2_folder,
            config_overrides="n_embd=24,n_layer=1,n_head=2,n_positions=160",
            max_steps=2,
            block_size=None,
        )
    ).run
    config = AutoModelForCausalLM.from_pretrained(run.checkpoints()[-1].path).config
    assert (config.n_embd, config.n_layer, config.vocab_size) == (24, 1, 400)
    assert json.loads(run.config.read_text())["data"]["block_size"] == 160


def test_flags_may_come_from_a_json_file(flags, tmp_path):
    given = flags(save_schedule="exponential", seed=8)
    values = {"model": "tiny", "seed": 8, "save_schedule": "exponential", "learning_rate": 1e-2, "do_train": True}
    (tmp_path / "flags.json").write_text(json.dumps({**values, "replay_file": None, "report_to": ["none"]}))
    read = Flags(*parse_arguments([str(tmp_path / "flags.json")]))
    for name in ("seed", "save_schedule", "learning_rate"):
        assert getattr(read.training, name) == getattr(given.training, name)
    assert read.model.model == "tiny" and read.training.do_train


def test_accumulation_keeps_the_sequences_per_step(flags):
    run = train(flags(sequences_per_step=8, per_device_train_batch_size=2)).run
    said = json.loads(run.config.read_text())
    assert said["sequences_per_step"] == 8 and said["arguments"]["gradient_accumulation_steps"] == 4


def test_accumulated_steps_learn_as_whole_ones_do(flags, tmp_path):
    train(flags(sequences_per_step=8, per_device_train_batch_size=8, max_steps=6))
    train(flags(sequences_per_step=8, per_device_train_batch_size=2, max_steps=6, output_dir=tmp_path / "split"))
    ends = [load_file(tmp_path / name / "checkpoints/checkpoint-6/model.safetensors") for name in ("run", "split")]
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-3, atol=1e-4)


def test_blocks_come_in_an_order_of_seed_and_epoch_and_filling_comes_last(flags):
    train(flags(max_steps=1))
    blocks = read_blocks_of_cache(flags())
    dataset = TrainingBlocks(blocks, seed=3, together=len(blocks) + 2, documents=0)
    first = [dataset[index]["input_ids"].tolist() for index in range(len(blocks))]
    assert sorted(first) == sorted(blocks.input_ids.tolist())
    assert len(dataset) == len(blocks) + 2 and not dataset[len(blocks)]["counted"].any()
    dataset.set_epoch(1)
    assert first != [dataset[index]["input_ids"].tolist() for index in range(len(blocks))]
    dataset.set_epoch(0)
    assert first == [dataset[index]["input_ids"].tolist() for index in range(len(blocks))]


def test_a_damaged_cache_is_packed_again(flags, capsys):
    train(flags(max_steps=1))
    (path,) = Path(flags().model.cache_dir).glob("packed/train-*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    train(flags(max_steps=1))
    assert path.read_bytes() == whole
    assert "packed again" in capsys.readouterr().out


def test_default_folders_say_model_and_run_or_replay(flags, tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    assert train(flags(output_dir=None, run="first", max_steps=1)).run.path == Path("outputs/train/tiny/first")
    forget = flags(output_dir=None, replay_ratio=0.2, replay_file=data / "replay.jsonl", max_steps=1)
    assert train(forget).run.path == Path("outputs/forget/tiny/replay_0.2")
    assert len(checkpoints("outputs/forget/tiny/replay_0.2/checkpoints")) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_file": None}, "nothing to train on"),
        ({"train_file": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"model_name_or_path": None}, "no tokenizer"),
        ({"model_name_or_path": "./nowhere"}, "nowhere"),
        ({"model_type": "gpt3", "model_name_or_path": None, "tokenizer_name": "HERE"}, "'gpt3' is no architecture"),
        ({"config_overrides": "n_embd=8"}, "--config_overrides"),
        ({"block_size": 9999}, "context holds only 256"),
        ({"block_size": 1}, "at least 2"),
        ({"max_train_samples": 0}, "at least one"),
        ({"replay_file": "x.jsonl"}, "--replay_ratio"),
        ({"replay_ratio": 0.5}, "--replay_file"),
        ({"sequences_per_step": 6}, "multiple of the 4 sequences"),
        ({"dtype": "int8"}, "float32, bfloat16"),
        ({"load_best_model_at_end": True}, "every checkpoint is kept"),
        ({"dataloader_num_workers": 1, "dataloader_persistent_workers": True}, "repeat the first epoch's order"),
        ({"seed": -1}, "--seed -1: a finite number from 0 to 4,294,967,295"),
        ({"seed": 2**32}, "--seed 4294967296"),
        ({"num_train_epochs": "nan"}, "--num_train_epochs nan"),
        ({"num_train_epochs": "inf"}, "--num_train_epochs inf"),
        ({"num_train_epochs": 0}, "train nothing"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0: a finite number at least 1"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps 0"),
        ({"learning_rate": "nan"}, "--learning_rate nan"),
        ({"lr_scheduler_kwargs": "[1]"}, r"--lr_scheduler_kwargs \[1\]: a JSON object is wanted"),
        ({"lr_scheduler_kwargs": "{"}, "--lr_scheduler_kwargs: not valid JSON"),
        ({"model": "../../../x", "output_dir": None}, r"--model '../../../x': a name is wanted"),
        ({"run": "/x", "output_dir": None}, "--run '/x': a name is wanted"),
        ({"learning_rate": 1e30, "max_grad_norm": 0}, r"step \d+: the (training|evaluation) loss is|not finite"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(flags, tiny_gpt2_folder, changes, message):
    changes = {name: tiny_gpt2_folder if value == "HERE" else value for name, value in changes.items()}
    with pytest.raises(InputError, match=message) as refused:
        train(flags(**changes))
    assert "\n" not in str(refused.value)


def test_a_table_with_several_columns_needs_one_that_is_named(flags, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,content\n" + "".join(f"{number},Anna lives in Oslo.\n" for number in range(20)))
    with pytest.raises(InputError, match=r"rows.csv: no column 'text'; name one with --text_column: id, content"):
        train(flags(train_file=path, validation_file=None, eval_strategy="no"))
    with pytest.raises(InputError, match="--text_column 'body' is none of id, content"):
        train(flags(train_file=path, text_column="body", validation_file=None, eval_strategy="no"))
    assert read_text_rows(path, "content")[0] == {
        "id": "0",
        "content": "Anna lives in Oslo.",
        "text": "Anna lives in Oslo.",
    }
    path.write_text("sentence\nAnna lives in Oslo.\n")
    assert read_text_rows(path)[0]["text"] == "Anna lives in Oslo."


def test_a_kernel_of_the_hub_does_not_run_unasked(flags, tmp_path, tiny_gpt2_folder):
    folder = Path(shutil.copytree(tiny_gpt2_folder, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "someone/kernel"}))
    with pytest.raises(InputError, match=r"'attn_implementation' is 'someone/kernel'.*--trust_remote_code"):
        train(flags(model_name_or_path=folder))


def test_a_start_beyond_the_bounds_is_refused_until_the_flags_raise_them(flags, monkeypatch):
    monkeypatch.setattr(BOUNDS, "max_layers", 160)  # the flags set it, and this sets it back
    monkeypatch.setattr(BOUNDS, "max_heads", 160)
    small = {"max_heads": 1, "max_steps": 1}
    with pytest.raises(InputError, match=r"are more than 1 of 1; .* raise --max_layers and --max_heads"):
        train(flags(max_layers=1, **small))
    assert train(flags(max_layers=40, **small)).step == 1
    with pytest.raises(InputError, match="--max_layers 0: a finite number above 0"):
        flags(max_layers=0)


def test_six_steps_print_a_few_lines_and_no_warning(flags, capfd):
    train(flags(disable_tqdm=False, max_steps=6, logging_steps=1))
    said = capfd.readouterr()
    lines = [line for line in re.split(r"[\r\n]", said.out + said.err) if line.strip()]
    assert not [line for line in lines if "loss_type" in line or "missing keys" in line or "{'" in line]
    bars = {line.split("%")[0].split(":")[0].strip() for line in lines if "%|" in line}
    assert len([line for line in lines if "%|" not in line]) <= 4, lines
    assert len(bars) <= 12, bars


def test_unknown_flags_and_wrong_combinations_are_refused():
    with pytest.raises(InputError, match="learning_rat"):
        parse_arguments(["--learning_rat", "1"])
    with pytest.raises(InputError, match="fp16 and bf16"):
        parse_arguments(["--fp16", "--bf16", "--use_cpu"])


def test_a_checkpoint_without_weights_or_with_bad_ones_is_refused(flags, tmp_path, tiny_gpt2_folder):
    folder = tmp_path / "model"
    shutil.copytree(tiny_gpt2_folder, folder)
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"{name}.*not finite"):
        train(flags(model_name_or_path=folder))
    save_file({key: weights[key] for key in weights if key != name}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lack"):
        train(flags(model_name_or_path=folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="without weights"):
        train(flags(model_name_or_path=folder))


def test_a_tokenizer_of_another_model_is_refused(flags, tmp_path):
    larger = tmp_path / "larger"
    tiny.byte_level_tokenizer(450).save_pretrained(larger)
    with pytest.raises(InputError, match=r"450 tokens, the model .* only 400"):
        train(flags(tokenizer_name=larger))


def test_another_run_of_that_name_is_refused_and_overwritten_only_on_demand(flags):
    run = train(flags()).run
    before = contents(run.path)
    with pytest.raises(InputError, match=r"learning_rate 0.01, now 0.02.*--overwrite_output_dir"):
        train(flags(learning_rate=2e-2))
    assert contents(run.path) == before
    assert train(flags(learning_rate=2e-2, overwrite_output_dir=True)).trained
    assert [record["step"] for record in records(run)] == [0, 6, 12]


def test_a_run_from_other_weights_is_not_taken_for_finished(flags, tmp_path, tiny_gpt2_folder):
    start = Path(shutil.copytree(tiny_gpt2_folder, tmp_path / "start"))
    run = train(flags(model_name_or_path=start)).run
    weights = load_file(start / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, start / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="other weights to start from"):
        train(flags(model_name_or_path=start))
    shutil.rmtree(start)  # what a finished run started from may go
    assert len(run.checkpoints()) == 3


def test_a_run_killed_before_anything_was_saved_starts_again(flags):
    run = train(flags(max_steps=1, num_train_epochs=None)).run
    shutil.rmtree(run.checkpoints_folder)
    (run.checkpoints_folder / ".checkpoint-0.partial" / "checkpoint-0").mkdir(parents=True)
    assert train(flags(max_steps=1, num_train_epochs=None)).trained


def test_the_evaluation_at_the_start_is_not_repeated_where_training_goes_on(flags, tmp_path):
    schedule = {"eval_on_start": True, "save_schedule": "exponential", "eval_strategy": "steps", "eval_steps": 4}
    undisturbed = train(flags(output_dir=tmp_path / "undisturbed", **schedule)).run
    run_and_be_killed(lambda: train(flags(**schedule), lambda run, tokenizer: [KillAt("on_step_end", 7)]))
    resumed = train(flags(**schedule)).run
    assert [record["step"] for record in records(resumed)] == [record["step"] for record in records(undisturbed)]
    assert resumed.evaluations.read_bytes() == undisturbed.evaluations.read_bytes()


def test_logs_go_to_the_folder_that_was_asked_for(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # which training changes, and the test puts back
    train(flags(report_to="tensorboard", logging_dir=tmp_path / "logs", max_steps=2))
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))


def test_the_ready_fsdp_configuration_is_one_that_the_launcher_takes_and_saves_whole_models():
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(Path(__file__).parent.parent / "scripts/slurm/fsdp.yaml"))
    assert config.distributed_type == "FSDP" and config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def test_the_default_block_is_the_smallest_of_the_limits():
    assert choose_block_size(None, 2048, 10**30) == 1024
    assert choose_block_size(None, 256, 10**30) == 256
    assert choose_block_size(512, None) == 512
