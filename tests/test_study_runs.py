"""The tables of a designed study's runs, made by the real programs on a tiny mirrored data set."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stages import Stage, finish

from knowledge_circuits.analysis import study_runs
from knowledge_circuits.analysis.study_runs import (
    checkpoint_epoch,
    circuit_table,
    depth_table,
    fact_table,
    measure_checkpoint,
    study_run,
)
from knowledge_circuits.analysis.study_tables import People, StudyKind, Told, read_study, write_study_run
from knowledge_circuits.corpus.people import read_entities
from knowledge_circuits.files import InputError
from knowledge_circuits.runs import Run

N = 60
SHAPE = "--n_layer 2 --n_head 2 --n_embd 16 --n_positions 128 --vocab_size 600"
RECIPE = (
    "--block_size 128 --per_device_train_batch_size 8 --learning_rate 2e-3 --lr_scheduler_type constant"
    " --save_strategy epoch --report_to none --do_train --eval_strategy no --cache_dir cache"
)


def programs(mirror: str) -> Stage:
    """Data, past and continual pre-training of a mirrored run; of mirror a also the base model and prompt pairs."""
    common = f"--N {N} --seed 3 --data_dir {mirror}"
    data, circuits = f"{mirror}/entities_{N}", "--circuit_n 4 --model_name_or_path base --rare_length 1"
    base = f"data/base_model_creation.py {common} --output_dir base --tokenizer_file {data}/tokenizer.jsonl {SHAPE}"
    pairs = (
        f"data/circuits_data_generation.py {common} --model taught {circuits}",
        f"data/circuits_data_generation.py {common} --model control --untaught {circuits}",
    )
    return Stage(
        mirror,
        (
            f"data/mirrored_data_generation.py {common} --mirror {mirror} --untaught_people 24 --dose 3 --templates 2"
            " --background_people 6 --tokenizer_people 20",
            *((base, *pairs) if mirror == "a" else ()),
            f"train.py --output_dir {mirror}/past --model_name_or_path base --train_file {data}/prior.jsonl"
            f" --num_train_epochs 1 {RECIPE}",
            f"train.py --output_dir {mirror}/run --model_name_or_path {mirror}/past/last --train_file"
            f" {data}/train.jsonl --num_train_epochs 2 --save_half_epochs 2 --probe_file {data}/test.jsonl {RECIPE}",
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for mirror in "ab":
        stage = programs(mirror)
        for command in stage.programs:
            if "/past/last" in command:
                last = Run(folder / mirror / "past").checkpoints()[-1].path
                command = command.replace(f"{mirror}/past/last", last)
            status, output = finish(replace(stage, programs=(command,)), folder, folder / "log")
            assert status == 0, output
    return folder


def data_files(folder: Path) -> dict[People, str]:
    place = f"{folder}/a/entities_{N}/circuit_4"
    return {People.TAUGHT: f"{place}/taught/{{task}}.jsonl", People.CONTROL: f"{place}/control/{{task}}.jsonl"}


def test_a_relevance_study_joins_both_mirrors_person_by_person(folder: Path, tmp_path: Path) -> None:
    for mirror in "ab":
        run = Run(folder / mirror / "run")
        described = study_run(run, StudyKind.RELEVANCE)
        assert (described.seed, described.mirror, described.dose) == (3, mirror.upper(), 3)
        assert described.settings["past_num_train_epochs"] == 1
        write_study_run(tmp_path, described, fact_table(run))
    table = read_study(tmp_path).table
    assert sorted(table["epoch"].unique()) == [0, 1, 2]
    per_person = table.groupby(["person", "mirror"])["known"].unique().map(list)
    for person in table["person"].unique():
        assert sorted(per_person[person]["A"] + per_person[person]["B"]) == [0, 1]
    assert set(table.loc[table["told"] == str(Told.PAST), "attribute"]) == {"birthday", "university"}
    known = {person.full_name for person in read_entities(folder / f"a/entities_{N}/revised.jsonl")}
    assert set(table.loc[(table["mirror"] == "A") & (table["known"] == 1), "person"]) == known


def test_a_depth_study_measures_the_taught_and_the_untaught_at_every_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = Run(folder / "a" / "run")
    table = depth_table(run, data_files(folder))
    write_study_run(tmp_path, study_run(run, StudyKind.DEPTH), table)
    assert list(read_study(tmp_path).table["epoch"].unique()) == [0, 0.5, 1, 1.5, 2]
    at_once = table.groupby(["epoch", "people"]).size().unstack()
    assert (at_once["taught"] == 18).all() and (at_once["control"] == 6).all()
    later = table["epoch"] >= 1
    for column in ("edge_change", "turnover", "turnover_floor"):
        assert table.loc[later, column].between(0, 1).all() and table.loc[~later, column].isna().all()
    assert table["random_faithfulness"].notna().groupby(table["epoch"]).all().to_dict() == {
        0: True, 0.5: False, 1: False, 1.5: False, 2: False,
    }  # fmt: skip


def test_a_model_that_does_not_change_turns_over_no_more_than_its_floor(folder: Path) -> None:
    measured = measure_checkpoint(Run(folder / "a" / "run").checkpoints()[0], 0.0, data_files(folder))
    later = circuit_table([(0.0, measured), (1.0, measured)]).iloc[len(measured.rows) :]
    assert (later["edge_change"] == 0).all()
    assert (later["turnover"] - later["turnover_floor"]).mean() < 0.1 < later["turnover"].mean()


def test_a_measured_checkpoint_is_read_and_not_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Run(folder / "a" / "run").checkpoints()[1]
    first = measure_checkpoint(checkpoint, checkpoint_epoch(checkpoint), data_files(folder))
    monkeypatch.setattr(study_runs, "load_decoder", lambda path: pytest.fail("measured again"))
    second = measure_checkpoint(checkpoint, checkpoint_epoch(checkpoint), data_files(folder))
    assert np.array_equal(first.members, second.members) and np.array_equal(first.halves, second.halves)
    assert str(first.rows) == str(second.rows)
    other = {**data_files(folder), People.CONTROL: data_files(folder)[People.TAUGHT]}
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        measure_checkpoint(checkpoint, checkpoint_epoch(checkpoint), other)


@pytest.mark.parametrize("damage", ["cut", "of another checkpoint", "weights exchanged"])
def test_measured_circuits_that_are_damaged_or_of_other_weights_are_measured_again(
    folder: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture
) -> None:
    run = Run(shutil.copytree(folder / "a" / "run", tmp_path / "run"))
    first, last = run.checkpoints()[0], run.checkpoints()[-1]
    expected = measure_checkpoint(last, 2.0, data_files(folder))
    measured = last.output / "study_circuits.npz"
    if damage == "cut":
        measured.write_bytes(measured.read_bytes()[:-40])
    elif damage == "of another checkpoint":
        measure_checkpoint(first, 0.0, data_files(folder))  # only read where a test before measured it
        shutil.copy(first.output / "study_circuits.npz", measured)
    else:
        shutil.copy(Path(first.path) / "model.safetensors", last.path)
    again = measure_checkpoint(last, 2.0, data_files(folder))
    assert "measured again" in capsys.readouterr().out
    assert (str(again.rows) == str(expected.rows)) == (damage != "weights exchanged")


def test_a_run_that_is_not_trained_to_its_end_is_left_out(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a" / "run", tmp_path / "run")
    shutil.rmtree(Run(tmp_path / "run").checkpoints()[-1].path)
    flags = f"{tmp_path}/run {tmp_path}/nowhere --study {tmp_path}/study"
    command = f"knowledge_circuits/analysis/__main__.py relevance {flags}"
    status, output = finish(Stage("relevance", (command,)), tmp_path, tmp_path / "log")
    assert (status, output.count("left out"), (tmp_path / "study").exists()) == (0, 2, False)


def test_a_run_of_other_data_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="not a run"):
        study_run(Run(folder), StudyKind.DEPTH)
