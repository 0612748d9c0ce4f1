"""A unit is finished when its manifest says so, agrees with what is asked, and its files agree with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from tiny_run import call, files

from knowledge_circuits import verify
from knowledge_circuits.files import InputError, read_json, write_json
from knowledge_circuits.manifest import (
    FileRecord,
    Status,
    begin,
    check,
    fingerprint,
    finish,
    locked,
    read_manifest,
    remove_replaced,
    renew,
)
from knowledge_circuits.models.loading import weights_digest
from knowledge_circuits.runs import checkpoints
from knowledge_circuits.sweeps.model_loader import model_facts

MADE_FROM = {"weights": "0f", "ig_steps": 5}


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The manifest of a finished unit of two files."""
    (tmp_path / "part").mkdir()
    for name in ("graph.json", "part/rows.jsonl"):
        (tmp_path / name).write_text("content of " + name)
    finish(tmp_path / "manifest.json", "graph", MADE_FROM, [tmp_path / "part/rows.jsonl", tmp_path / "graph.json"])
    return tmp_path / "manifest.json"


def test_a_finished_unit_is_whole_and_says_what_made_it(unit):
    manifest = read_manifest(unit)
    assert check(unit, MADE_FROM, [unit.parent / "graph.json"], verify=True).is_whole
    assert (manifest.unit, manifest.finished, manifest.made_from) == ("graph", True, MADE_FROM)
    assert manifest.files["part/rows.jsonl"] == FileRecord.of(unit.parent / "part/rows.jsonl")
    content = fingerprint(manifest.made_from)
    assert content == fingerprint({"ig_steps": 5, "weights": "0f"}) != fingerprint(MADE_FROM | {"x": 1})


def test_the_same_unit_has_the_same_manifest(unit):
    before = unit.read_bytes()
    finish(unit, "graph", MADE_FROM, [unit.parent / "graph.json", unit.parent / "part/rows.jsonl"])
    assert unit.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "graph.json is missing"),
        (lambda path: path.write_text("content"), "graph.json has 7 bytes, not 21"),
        (lambda path: path.write_text(""), "has 0 bytes"),
        (lambda path: (path.unlink(), path.mkdir()), "graph.json is missing"),
    ],
)
def test_a_missing_or_cut_file_is_named(unit, damage, said):
    damage(unit.parent / "graph.json")
    state = check(unit, MADE_FROM)
    assert state.status is Status.DAMAGED and said in state.detail


def test_bytes_that_changed_within_the_same_size_are_seen_on_verifying(unit):
    (unit.parent / "graph.json").write_text("CONTENT of graph.json")
    assert check(unit, MADE_FROM).is_whole
    state = check(unit, MADE_FROM, verify=True)
    assert state.status is Status.DAMAGED and "other content" in state.detail


def test_other_settings_are_told_apart_and_named(unit):
    state = check(unit, {"weights": "0f", "ig_steps": 3})
    assert state.status is Status.OTHER and state.detail == "ig_steps 5, now 3"
    assert check(unit, {"weights": "0f"}).is_whole, "what is not given is not compared"


def test_a_unit_without_a_part_that_is_wanted_is_not_finished(unit):
    assert check(unit, MADE_FROM, [unit.parent / "more.json"]).status is Status.MISSING
    assert check(unit, MADE_FROM | {"more": 1}).status is Status.MISSING


def test_files_without_a_manifest_are_unknown_and_nothing_at_all_is_missing(tmp_path):
    path = tmp_path / "manifest.json"
    assert check(path, MADE_FROM, [tmp_path / "graph.json"]).status is Status.MISSING
    (tmp_path / "graph.json").write_text("")
    assert check(path, MADE_FROM, [tmp_path / "graph.json"]).status is Status.UNKNOWN
    assert check(path, MADE_FROM, beside=[tmp_path / "other"]).status is Status.MISSING


def test_an_interrupted_unit_is_not_finished(unit):
    begin(unit, "graph", MADE_FROM)
    assert check(unit, MADE_FROM).status is Status.MISSING


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"unit": "graph"},
        {"unit": "graph", "version": "1", "finished": "yes", "made_from": {}, "files": {}},
        {"unit": "g", "version": "1", "finished": True, "made_from": {}, "files": {"a": {"bytes": -1, "sha256": ""}}},
    ],
)
def test_a_damaged_manifest_is_named(unit, content):
    write_json(unit, content)
    with pytest.raises(
        InputError, match=r"manifest\.json: not a manifest .*; run the program that wrote it again, or remove it"
    ):
        read_manifest(unit)
    assert check(unit, MADE_FROM).status is Status.DAMAGED
    unit.write_text('{"unit": "gra')
    assert check(unit, MADE_FROM).status is Status.DAMAGED


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.txt", "part/../../outside.txt", ""])
def test_a_manifest_that_lists_files_outside_its_folder_is_refused(unit, name):
    content = read_json(unit)
    content["files"][name] = content["files"]["graph.json"]
    write_json(unit, content)
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(unit)


def test_only_listed_files_are_removed(unit):
    (unit.parent / "notes.txt").write_text("the user's own")
    remove_replaced(unit, [unit.parent / "part/rows.jsonl"])
    assert sorted(path.name for path in unit.parent.rglob("*")) == ["manifest.json", "notes.txt", "part", "rows.jsonl"]


def test_a_second_process_is_refused_with_the_first_one_s_name(tmp_path):
    with locked(tmp_path / "run", "training"):
        with (
            pytest.raises(InputError, match=rf"training is under way here in process {os.getpid()} on .*; wait"),
            locked(tmp_path / "run", "training"),
        ):
            raise AssertionError("two processes hold one lock")
        with locked(tmp_path / "run", "prediction"):
            pass
    with locked(tmp_path / "run", "training"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from knowledge_circuits.manifest import locked
with locked(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {process.pid} on"), locked(tmp_path, "training"):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with locked(tmp_path, "training"):
        pass


def test_the_program_prints_what_is_whole_damaged_of_other_weights_or_unknown(tmp_path, tiny_gpt2_folder, capsys):
    run = tmp_path / "run"
    for step in range(4):
        folder = run / "checkpoints" / f"checkpoint-{step}"
        shutil.copytree(tiny_gpt2_folder, folder)
        (folder / "prediction.jsonl").write_text("{}\n")
        finish(
            folder / "prediction_manifest.json",
            "predictions",
            {"weights": weights_digest(folder)},
            [folder / "prediction.jsonl"],
        )
    assert call(verify.main, [str(run)]) == 0
    assert capsys.readouterr().out == "4 whole\n"
    (run / "checkpoints" / "checkpoint-1" / "prediction.jsonl").write_text("{ \n")
    tiny.save_tiny_gpt2(run / "checkpoints" / "checkpoint-2", seed=8)
    (run / "checkpoints" / "checkpoint-3" / "prediction_manifest.json").unlink()
    circuit = run / "checkpoints" / "checkpoint-3" / "circuit_30" / "type_new" / "frequency_low" / "method_EAP"
    circuit.mkdir(parents=True)
    (circuit / "city_graph.json").write_text("{}")
    before = files(run)
    assert call(verify.main, [str(run)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "1 whole, 1 damaged, 1 of other settings, 2 unknown"
    assert "checkpoint-1" in said[0] and "damaged" in said[0]
    assert "checkpoint-2" in said[1] and "weights" in said[1]
    assert "city_graph.json: unknown" in said[2] and "checkpoint-3/prediction.jsonl: unknown" in said[3]
    assert files(run) == before
    assert call(verify.main, [str(tmp_path / "nowhere")]) == 1


def test_results_in_a_models_or_an_adapters_folder_are_compared_with_the_weights_there(
    tmp_path, tiny_gpt2_folder, capsys
):
    for name in ("a model", "base"):
        shutil.copytree(tiny_gpt2_folder, tmp_path / name)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../base"}))
    (adapter / "adapter_model.bin").write_bytes(b"weights")
    for folder in (adapter, tmp_path / "a model"):
        (folder / "prediction.jsonl").write_text("{}\n")
        (checkpoint,) = checkpoints(str(folder))
        made_from = {**model_facts(checkpoint, "float32"), "prompts": "0f"}
        finish(folder / "prediction_manifest.json", "predictions", made_from, [folder / "prediction.jsonl"])

    def said() -> list[str]:
        assert call(verify.main, [str(tmp_path)]) in (0, 1)
        return [line.removeprefix(str(tmp_path)) for line in capsys.readouterr().out.splitlines()]

    assert said() == ["2 whole"]
    tiny.save_tiny_gpt2(tmp_path / "base", seed=8)
    assert "/adapter/prediction_manifest.json: of other settings (base model" in said()[0]
    shutil.rmtree(tmp_path / "base")
    assert said() == ["2 whole"], "nothing is there to compare with"
    (adapter / "adapter_model.bin").write_bytes(b"WEIGHTS")
    tiny.save_tiny_gpt2(tmp_path / "a model", seed=8)
    model, changed, last = said()
    assert model.startswith("/a model/prediction_manifest.json: of other settings (weights")
    assert changed.startswith("/adapter/prediction_manifest.json: of other settings (weights")
    assert last == "2 of other settings"
    (adapter / "adapter_config.json").write_text("{")
    assert "adapter_config.json" in said()[1]


def test_an_earlier_versions_digest_of_some_bytes_tells_nothing_until_it_is_renewed(unit):
    finish(unit, "graph", {"weights": "0f" * 8, "ig_steps": 5}, [unit.parent / "graph.json"])
    now = {"weights": "a1" * 16, "ig_steps": 5}
    state = check(unit, now)
    assert (
        state.status is Status.UNKNOWN and state.detail == "an earlier version compared some bytes of the weights only"
    )
    assert check(unit, {**now, "ig_steps": 3}).detail == "ig_steps 5, now 3", "what is known to differ comes first"
    assert check(unit, {"weights": "a1" * 8}).status is Status.OTHER
    renew(state)
    assert check(unit, now, verify=True).is_whole
    assert check(unit, {**now, "weights": "b2" * 16}).status is Status.OTHER
