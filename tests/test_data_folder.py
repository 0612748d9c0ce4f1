"""The record of how data came about: whole, and never about data that are gone."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import tiny
from damage_campaign import call
from stages import ROOT, contents

from knowledge_circuits.corpus.folder import (
    DataFolder,
    add_pool_arguments,
    add_template_argument,
    data_parser,
    whole_file,
)
from knowledge_circuits.corpus.people import read_entities
from knowledge_circuits.files import InputError, read_json, write_json, write_jsonl
from knowledge_circuits.study import Attribute, groups
from knowledge_circuits.sweeps.targets import read_test_items
from knowledge_circuits.training.data import data_configuration

PROGRAMS = sorted((Path(__file__).resolve().parents[1] / "data").glob("*.py"))


def test_each_program_adds_its_flags_and_n_and_seed_stand_at_the_top(tmp_path: Path) -> None:
    folder = DataFolder.of(str(tmp_path), 60)
    assert folder.path == tmp_path / "entities_60"
    folder.record("people", {"N": 60, "seed": 7, "data_dir": str(tmp_path), "rate": 0.4}, first=True)
    folder.record("texts", {"N": 60, "seed": 7, "pools": Path("pools")})
    assert read_json(folder.config) == {
        "N": 60,
        "seed": 7,
        "people": {"N": 60, "seed": 7, "rate": 0.4},
        "texts": {"N": 60, "seed": 7, "pools": "pools"},
    }


def test_other_people_make_the_record_of_texts_about_the_former_ones_go(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.record("people", {"N": 60, "seed": 7}, first=True)
    folder.record("texts", {"lines": 5})
    folder.record("people", {"N": 60, "seed": 7}, first=True)
    assert "texts" in read_json(folder.config)
    folder.record("people", {"N": 60, "seed": 8}, first=True)
    assert read_json(folder.config) == {"N": 60, "seed": 8, "people": {"N": 60, "seed": 8}}


@pytest.fixture
def texts(tmp_path: Path) -> DataFolder:
    """A folder with people, and texts made from them."""
    folder = DataFolder(tmp_path)
    with folder.making("datapoint_generation", {"N": 60, "seed": 7}, [folder.new], first=True):
        folder.new.write_text("[]\n")
    with folder.making("text_data_generation", {"N": 60, "seed": 7}, [folder.train], [folder.new]):
        folder.train.write_text("{}\n{}\n")
    return folder


def test_a_file_that_was_cut_since_it_was_written_is_refused(texts: DataFolder) -> None:
    folder = texts
    assert folder.require(folder.train, "text_data_generation.py") == folder.train
    folder.train.write_text("{}\n")
    with pytest.raises(InputError, match=r"train.jsonl: has 3 bytes, not 6; run data/text_data_generation.py again"):
        folder.require(folder.train, "text_data_generation.py")


def test_a_file_that_was_exchanged_for_one_of_the_same_size_is_refused(texts: DataFolder) -> None:
    texts.train.write_text("{}\n[]\n")
    with pytest.raises(InputError, match=r"other content .* or remove text_data_generation_manifest.json if you"):
        whole_file(texts.train)
    (texts.path / "text_data_generation_manifest.json").unlink()
    assert whole_file(texts.train) == texts.train


def test_people_of_whom_one_was_lost_are_refused_by_every_reader(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with folder.making("query_data_generation", {"N": 6}, [folder.test]):
        write_jsonl(folder.test, tiny.entities(6))
    assert len(read_entities(folder.test)) == 6
    write_jsonl(folder.test, tiny.entities(6)[1:])
    for read in (read_entities, lambda path: read_test_items(str(path), groups())):
        with pytest.raises(InputError, match=r"run data/query_data_generation\.py again"):
            read(folder.test)


def test_texts_about_other_people_are_refused(texts: DataFolder) -> None:
    with texts.making("datapoint_generation", {"N": 60, "seed": 8}, [texts.new], first=True):
        texts.new.write_text("{}\n")
    with pytest.raises(InputError, match=r"train.jsonl: was made from another new.jsonl; run data/text_data_gener"):
        whole_file(texts.train)


def test_files_of_an_interrupted_program_are_refused_until_it_has_run_again(texts: DataFolder) -> None:
    with pytest.raises(KeyboardInterrupt), texts.making("text_data_generation", {"N": 60, "seed": 8}, [texts.train]):
        texts.train.write_text("{}\n")
        raise KeyboardInterrupt
    with pytest.raises(InputError, match=r"interrupted; run data/text_data_generation.py again"):
        texts.require(texts.train, "text_data_generation.py")
    assert texts.require(texts.new, "datapoint_generation.py")
    with texts.making("text_data_generation", {"N": 60, "seed": 8}, [texts.train]):
        texts.train.write_text("{}\n")
    assert texts.require(texts.train, "text_data_generation.py")


@pytest.mark.parametrize("content", ['{"N": "many"}', '{"texts": 3}', '{"N": 1', '{"seed": -1}'])
def test_a_record_of_other_types_is_one_sentence(texts: DataFolder, content: str) -> None:
    texts.config.write_text(content)
    with pytest.raises(InputError, match=r"data_config\.json"):
        data_configuration(str(texts.train))


@pytest.mark.parametrize("change", [{"seed": 8}, {"datapoint_generation": {"N": 60, "seed": 8}}, {"N": 61}])
def test_a_record_that_is_not_what_the_manifests_say_is_refused(texts: DataFolder, change: dict) -> None:
    assert data_configuration(str(texts.train)) == read_json(texts.config)
    write_json(texts.config, {**read_json(texts.config), **change})
    with pytest.raises(
        InputError, match=r"data_config\.json: other flags of datapoint_generation than in datapoint_gen"
    ):
        data_configuration(str(texts.train))


def test_a_record_that_was_lost_is_noticed_by_training(texts: DataFolder) -> None:
    texts.config.unlink()
    with pytest.raises(InputError, match=r"data_config\.json: other flags .* run data/datapoint_generation\.py again"):
        data_configuration(str(texts.train))


def test_a_second_data_program_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = DataFolder.of(str(tmp_path), 90)
    commands = ("data/datapoint_generation.py", "data/mirrored_data_generation.py --validation_lines 5")
    assert call(f"{commands[0]} --N 90 --data_dir {tmp_path}", ROOT).status == 0
    before = contents(folder.path)
    with folder.locked():
        for command in (*commands, "data/text_data_generation.py", "data/query_data_generation.py"):
            outcome = call(f"{command} --N 90 --data_dir {tmp_path}", ROOT)
            assert outcome.status == 1 and "generation is under way here in process" in outcome.said
    assert contents(folder.path) == before


def test_the_pools_and_the_people_file_that_a_program_drew_from_stand_in_its_manifest(tmp_path: Path) -> None:
    people = tmp_path / "people.csv"
    manifests = []
    for names in ("Ada Venn\nBo Tarn\n", "Ada Venn\nCy Moor\n"):
        people.write_text(f"name\n{names}")
        command = f"data/datapoint_generation.py --N 4 --revised_share 0.5 --people_file {people} --data_dir {tmp_path}"
        assert call(command, ROOT).status == 0
        manifests.append(read_json(tmp_path / "entities_4/datapoint_generation_manifest.json")["made_from"])
    assert manifests[0].pop("sources") != manifests[1].pop("sources")
    assert manifests[0] == manifests[1]


def test_a_missing_file_names_the_program_that_writes_it(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with pytest.raises(InputError, match=r"train\.jsonl: no such file; run data/text_data_generation\.py"):
        folder.require(folder.train, "text_data_generation.py")


def test_the_protocol_is_the_default_of_the_flags() -> None:
    parser = data_parser("Some program")
    add_pool_arguments(parser)
    add_template_argument(parser)
    arguments = parser.parse_args([])
    assert (arguments.N, arguments.seed, arguments.birth_years) == (50_000, 0, [1900, 2025])
    assert Path(arguments.pool_dir, "people.json").is_file()
    assert Path(arguments.template_dir, "city.json").is_file()


@pytest.mark.parametrize("flags", [["--N", "0"], ["--N", "many"], ["--seed", "-1"]])
def test_numbers_that_cannot_be_end_with_usage(flags: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        data_parser("Some program").parse_args(flags)
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_help_names_no_default_where_there_is_none(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", [program.name, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(program), run_name="__main__")
    said = " ".join(capsys.readouterr().out.split())
    assert "(default: 50000)" in said or "--N " not in said
    assert "None" not in said and "Attribute" not in said


def test_every_file_has_its_own_place_in_the_folder(tmp_path: Path) -> None:
    folder = DataFolder.of("data", 700)
    named = ["new", "revised", "train", "validation", "test", "forget_new", "forget_conflict", "replay", "prior"]
    for name in named:
        assert getattr(folder, name) == Path(f"data/entities_700/{name}.jsonl")
    assert folder.circuit(300, "gpt2", Attribute.CITY) == Path("data/entities_700/circuit_300/gpt2/city.jsonl")


def test_a_record_that_is_no_object_is_refused(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.config.write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"data_config\.json: a JSON object is wanted"):
        folder.record("texts", {})
