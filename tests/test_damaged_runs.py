"""A damaged half-finished run ends with one sentence or as an undisturbed one: never with other numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from fault_matrix import FLIPPED, cases, damages, sentence_of
from safetensors.torch import load_file, save_file
from test_training import KillAt, contents, data, flags, run_and_be_killed  # noqa: F401

from knowledge_circuits.corpus.folder import DataFolder
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import finish, locked, read_manifest
from knowledge_circuits.runs import Run
from knowledge_circuits.sweeps.model_loader import model_facts
from knowledge_circuits.training.arguments import parse_arguments
from knowledge_circuits.training.resume import differences
from knowledge_circuits.training.run import Flags, train
from knowledge_circuits.verify import states

CHANGES = {"save_strategy": "steps", "save_steps": 3, "max_steps": 12, "eval_strategy": "steps", "eval_steps": 3}


@pytest.fixture(scope="module")
def half_finished(data, tmp_path_factory):  # noqa: F811
    """The flags of a run, its folder as a kill at step 10 left it, and what an undisturbed run ends with."""
    base = tmp_path_factory.mktemp("half")
    model = base / "model"
    tiny.save_tiny_gpt2(model)

    def make(**changes) -> Flags:
        values = {
            **{"model": "tiny", "model_name_or_path": model, "cache_dir": base / "cache", "block_size": 128},
            **{"train_file": data / "train.jsonl", "validation_file": data / "validation.jsonl"},
            **{"per_device_train_batch_size": 4, "learning_rate": 1e-2, "seed": 5, "disable_tqdm": True},
            **{"probe_file": base / "test.jsonl", "probe_every": 3, "lr_scheduler_type": "constant"},
            **CHANGES,
            **changes,
        }
        return Flags(*parse_arguments([f"--{name}={value}" for name, value in values.items()], [_probes()]))

    rows = tiny.entities(6)
    (base / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = train(make(output_dir=base / "whole")).run
    run_and_be_killed(
        lambda: train(make(output_dir=base / "killed"), lambda run, tokenizer: [KillAt("on_step_end", 10)])
    )
    return make, base / "killed", whole


def _probes() -> type:
    from knowledge_circuits.training.probes import ProbeArguments

    return ProbeArguments


def _results(run: Run) -> dict[str, bytes]:
    """What a run is worth: the weights of its checkpoints and its records."""
    files = contents(run.path)
    return {
        name: content
        for name, content in files.items()
        if ".aside-" not in name and (name.endswith(("model.safetensors", ".jsonl")))
    }


def _matters(path: Path) -> bool:
    """Files of the newest checkpoint and of the run; checkpoint-0 and older checkpoints are not read again."""
    return path.parent.name == "checkpoint-9" or (path.suffix in (".json", ".jsonl") and path.parent.name == "killed")


def _hold_to_the_rule(half_finished, tmp_path: Path, sample: int | None) -> None:
    make, killed, whole = half_finished
    wrong = []
    for name, damage in cases(killed, _matters, sample):
        folder = Path(shutil.copytree(killed, tmp_path / "run"))
        damage.apply(folder / name)
        said = sentence_of(lambda: train(make(output_dir=tmp_path / "run")))
        if said is None and _results(Run(folder)) != _results(whole):
            wrong.append((name, damage.name, "other results"))
        elif said is not None and Path(name).name not in said and "settings" not in said:
            wrong.append((name, damage.name, said))
        shutil.rmtree(folder)
    assert not wrong


def test_any_damage_of_a_half_finished_run_is_named_or_made_good(half_finished, tmp_path, capsys):
    _hold_to_the_rule(half_finished, tmp_path, sample=8)


@pytest.mark.slow
def test_every_damage_of_a_half_finished_run_is_named_or_made_good(half_finished, tmp_path, capsys):
    _hold_to_the_rule(half_finished, tmp_path, sample=None)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_newest_checkpoint_costs_one_interval_and_is_kept_aside(half_finished, tmp_path, capsys, name):
    make, killed, whole = half_finished
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    (folder / "checkpoints/checkpoint-9" / name).unlink()
    assert train(make(output_dir=folder)).step == 12
    assert f"{name} is missing; training goes on from checkpoint-6" in capsys.readouterr().out
    assert _results(Run(folder)) == _results(whole)
    assert (folder / "checkpoints/checkpoint-9.aside-1/model.safetensors").exists()


def test_one_bit_of_the_random_state_costs_one_interval(half_finished, tmp_path, capsys):
    make, killed, whole = half_finished
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    FLIPPED.apply(folder / "checkpoints/checkpoint-9/rng_state.pth")
    train(make(output_dir=folder))
    assert "rng_state.pth has other content than when it was written" in capsys.readouterr().out
    assert _results(Run(folder)) == _results(whole)


def test_another_step_in_the_trainers_state_does_not_make_a_run_finished(half_finished, tmp_path):
    make, killed, _ = half_finished
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints/checkpoint-9")
    path = folder / "checkpoints/checkpoint-6/trainer_state.json"
    path.write_text(path.read_text().replace('"global_step": 6', '"global_step": 8'))
    with pytest.raises(InputError, match=r"checkpoint-6: trainer_state.json has other content"):
        train(make(output_dir=folder, max_steps=8))


@pytest.mark.parametrize("name", ["evaluations.jsonl", "knowledge_dynamics.jsonl"])
def test_training_does_not_go_on_without_the_records_so_far(half_finished, tmp_path, name):
    make, killed, _ = half_finished
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: missing, though .* --overwrite_output_dir starts again"):
        train(make(output_dir=folder))


def test_a_tensor_that_was_taken_out_of_the_weights_is_noticed(half_finished, tmp_path, capsys):
    make, killed, whole = half_finished
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    path = folder / "checkpoints/checkpoint-9/model.safetensors"
    weights = load_file(path)
    weights.pop(sorted(weights)[0])
    save_file(weights, path, {"format": "pt"})
    train(make(output_dir=folder))
    assert "model.safetensors has" in capsys.readouterr().out
    assert _results(Run(folder)) == _results(whole)


def test_a_finished_run_that_is_to_train_longer_is_compared_byte_for_byte(half_finished, tmp_path, capsys):
    make, _, whole = half_finished
    folder = Path(shutil.copytree(whole.path, tmp_path / "run"))
    longer = train(make(output_dir=folder, max_steps=15)).run
    expected = _results(longer)
    shutil.rmtree(folder)
    shutil.copytree(whole.path, folder)
    path = folder / "checkpoints/checkpoint-12/optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    train(make(output_dir=folder, max_steps=15))
    assert "optimizer.pt has other content" in capsys.readouterr().out
    assert _results(Run(folder)) == expected


def test_a_manifest_whose_records_are_of_another_form_is_a_sentence(half_finished, tmp_path, capsys):
    make, killed, whole = half_finished
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    path = folder / "checkpoints/checkpoint-9/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["made_from"]["records"]["evaluations.jsonl"]["bytes"]
    path.write_text(json.dumps(manifest))
    train(make(output_dir=folder))
    assert "manifest.json: damaged (made_from.records.evaluations.jsonl)" in capsys.readouterr().out
    assert _results(Run(folder)) == _results(whole)


def test_a_finished_run_without_part_of_a_checkpoint_is_not_called_finished(half_finished, tmp_path):
    make, _, whole = half_finished
    folder = Path(shutil.copytree(whole.path, tmp_path / "run"))
    path = folder / "checkpoints/checkpoint-12/model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    (folder / "checkpoints/checkpoint-9/optimizer.pt").unlink()
    with pytest.raises(InputError, match=r"checkpoint-12: model.safetensors has .* newest whole checkpoint is"):
        train(make(output_dir=folder))


def test_a_second_program_on_the_same_run_is_refused(half_finished, tmp_path):
    make, killed, _ = half_finished
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    holder = "import sys, time; from pathlib import Path; from knowledge_circuits.manifest import locked\n"
    holder += "with locked(Path(sys.argv[1]), 'training'): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holder, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"training is under way here in process {other.pid}"):
            train(make(output_dir=folder))
        other.kill()
    with locked(folder, "training"):
        pass  # a dead process holds nothing


def test_overwriting_a_run_leaves_the_users_files_alone(half_finished, tmp_path, capsys):
    make, _, whole = half_finished
    folder = Path(shutil.copytree(whole.path, tmp_path / "run"))
    note, extra = folder / "checkpoints/checkpoint-6/my_notes.txt", folder / "checkpoints/mine/plan.md"
    extra.parent.mkdir()
    note.write_text("mine")
    extra.write_text("mine too")
    with pytest.raises(InputError, match="other settings"):
        train(make(output_dir=folder, learning_rate=2e-2))
    assert note.read_text() == "mine"
    train(make(output_dir=folder, learning_rate=2e-2, overwrite_output_dir=True, max_steps=3))
    assert (folder / "checkpoints/checkpoint-6.aside-1/my_notes.txt").read_text() == "mine"
    assert extra.read_text() == "mine too"
    assert [checkpoint.step for checkpoint in Run(folder).checkpoints()] == [0, 3]


def test_a_checkpoint_that_no_manifest_lists_is_not_overwritten(half_finished, tmp_path):
    make, _, whole = half_finished
    folder = Path(shutil.copytree(whole.path, tmp_path / "run"))
    (folder / "checkpoints/checkpoint-6/manifest.json").unlink()
    before = contents(folder)
    with pytest.raises(InputError, match="checkpoint-6: no manifest lists its files"):
        train(make(output_dir=folder, overwrite_output_dir=True))
    assert {name: before[name] for name in before if "lock" not in name} == {
        name: content for name, content in contents(folder).items() if "lock" not in name
    }


def test_the_remedy_for_checkpoints_of_before_there_were_manifests_works(half_finished, tmp_path):
    make, killed, _ = half_finished
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    for manifest in folder.rglob("manifest.json"):
        manifest.unlink()
    for overwrite in (False, True):
        with pytest.raises(InputError, match="to start again: mv ") as refused:
            train(make(output_dir=folder, overwrite_output_dir=overwrite))
    subprocess.run(str(refused.value).split("to start again: ")[1], shell=True, check=True)
    assert train(make(output_dir=folder, overwrite_output_dir=True, max_steps=3)).step == 3
    assert (folder / "checkpoints.old/checkpoint-9/model.safetensors").exists()


def test_a_limit_of_checkpoints_removes_only_what_a_manifest_lists(half_finished, tmp_path):
    make, killed, _ = half_finished
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    checkpoints = folder / "checkpoints"
    (checkpoints / "checkpoint-3/my_notes.txt").write_text("mine")
    (checkpoints / "checkpoint-6.aside-1").mkdir()
    (checkpoints / "checkpoint-6.aside-1/plan.md").write_text("mine too")
    train(make(output_dir=folder, save_total_limit=1))
    assert [checkpoint.step for checkpoint in Run(folder).checkpoints()] == [12]
    assert (checkpoints / "checkpoint-3.aside-1/my_notes.txt").read_text() == "mine"
    assert (checkpoints / "checkpoint-6.aside-1/plan.md").read_text() == "mine too"


def test_resume_state_that_is_whole_but_of_another_kind_is_one_sentence(half_finished, tmp_path):
    make, killed, _ = half_finished
    folder = Path(shutil.copytree(killed, tmp_path / "run"))
    newest = folder / "checkpoints/checkpoint-9"
    for name, content in (("rng_state.pth", {}), ("optimizer.pt", {"state": 1}), ("trainer_state.json", None)):
        copy = Path(shutil.copytree(newest, tmp_path / name))
        if content is None:
            state = json.loads((newest / name).read_text())
            (newest / name).write_text(json.dumps({**state, "a_later_version_of_transformers": 1}))
        else:
            torch.save(content, newest / name)
        manifest = read_manifest(newest / "manifest.json")
        finish(newest / "manifest.json", manifest.unit, manifest.made_from, [newest / file for file in manifest.files])
        with pytest.raises(InputError, match=r"checkpoint-9: training cannot load the state in it .*--overwrite"):
            train(make(output_dir=folder))
        shutil.rmtree(newest)
        shutil.move(copy, newest)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_nothing_is_computed_from_a_checkpoint_that_is_not_as_it_was_saved(half_finished, tmp_path, name):
    _, _, whole = half_finished
    folder = Path(shutil.copytree(whole.path, tmp_path / "run"))
    earlier, last = Run(folder).checkpoints()[-2:]
    assert model_facts(last, "float32")["weights"] != model_facts(earlier, "float32")["weights"]
    if name == "model.safetensors":
        shutil.copy(Path(earlier.path) / name, last.path)  # of the same size
    else:
        path = Path(last.path) / name
        path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(InputError, match=rf"checkpoint-12/{name}: not as it was when the checkpoint was saved"):
        model_facts(last, "float32")
    (Path(last.path) / "manifest.json").unlink()
    assert model_facts(last, "float32")


def test_a_checkpoint_with_an_earlier_versions_digest_is_compared_by_the_digests_of_its_files(half_finished, tmp_path):
    _, _, whole = half_finished
    folder = Path(shutil.copytree(whole.path, tmp_path / "run"))
    earlier, last = Run(folder).checkpoints()[-2:]
    manifest = json.loads((Path(last.path) / "manifest.json").read_text())
    manifest["made_from"]["weights"] = "0f" * 8
    (Path(last.path) / "manifest.json").write_text(json.dumps(manifest))
    assert model_facts(last, "float32")
    assert all(state.is_whole for state in states(Path(last.path)))
    shutil.copy(Path(earlier.path) / "model.safetensors", last.path)
    with pytest.raises(InputError, match=r"model.safetensors: not as it was when the checkpoint was saved"):
        model_facts(last, "float32")


def test_a_run_of_an_earlier_version_goes_on_from_the_start_whose_digest_it_has(half_finished):
    _, _, whole = half_finished
    now = json.loads(whole.config.read_text())
    assert differences({**now, "starting_weights": "0f" * 8}, {**now, "starting_weights": "a1" * 16}) == []
    assert differences({**now, "starting_weights": "0f" * 16}, {**now, "starting_weights": "a1" * 16}) == [
        "other weights to start from"
    ]


@pytest.fixture
def generated(half_finished, data, tmp_path):  # noqa: F811
    """A data folder with a manifest, and what makes flags of a run on it."""
    make, _, _ = half_finished
    folder = DataFolder(tmp_path / "data")
    with folder.making("text_data_generation", {"N": 1}, [folder.train, folder.validation]):
        shutil.copy(data / "train.jsonl", folder.train)
        shutil.copy(data / "validation.jsonl", folder.validation)
    files = {"train_file": folder.train, "validation_file": folder.validation}
    return folder, lambda **changes: make(output_dir=tmp_path / "run", **files, **changes)


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_training_refuses_a_cut_or_exchanged_file(generated, name):
    folder, make = generated
    path = folder.path / name
    lines = path.read_text().splitlines(keepends=True)
    for content in (lines[:-1], [lines[1], lines[0], *lines[2:]]):
        path.write_text("".join(content))
        with pytest.raises(InputError, match=rf"{name}: has .* run data/text_data_generation.py again"):
            train(make())


def test_training_refuses_a_start_whose_weights_were_exchanged(half_finished, tmp_path):
    make, _, whole = half_finished
    start = Path(shutil.copytree(whole.path / "checkpoints/checkpoint-12", tmp_path / "start"))
    shutil.copy(whole.path / "checkpoints/checkpoint-9/model.safetensors", start)
    with pytest.raises(InputError, match=r"start: model.safetensors has other content .* start from another"):
        train(make(output_dir=tmp_path / "run", model_name_or_path=start))


def test_the_matrix_knows_each_kind_of_file(tmp_path):
    assert {damage.name for damage in damages(tmp_path / "rows.jsonl")} > {
        damage.name for damage in damages(tmp_path / "weights.safetensors")
    }
