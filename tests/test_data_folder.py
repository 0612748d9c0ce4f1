"""The record of how data came about: whole, and never about data that are gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from knowledge_circuits.data_folder import DataFolder
from knowledge_circuits.files import InputError, read_json


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


def test_a_missing_file_names_the_program_that_writes_it(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with pytest.raises(InputError, match=r"train\.jsonl: no such file; run data/text_data_generation\.py"):
        folder.require(folder.train, "text_data_generation.py")
