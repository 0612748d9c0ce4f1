"""The nano model's start: an ordinary checkpoint folder, the same for the same texts and seed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from knowledge_circuits.corpus.folder import DataFolder
from knowledge_circuits.files import InputError, write_jsonl
from knowledge_circuits.models.nano import END_OF_TEXT, Shape, random_gpt2, save_checkpoint, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHAPE = Shape(layers=2, heads=2, width=16, positions=64)
TEXTS = [str(row["text"]) for row in tiny.biographies(60)]


def create(folder: Path, seed: int = 0) -> Path:
    tokenizer = train_tokenizer(TEXTS, 500, SHAPE.positions)
    save_checkpoint(random_gpt2(tokenizer, SHAPE, seed), tokenizer, folder)
    return folder


def test_the_folder_is_an_ordinary_checkpoint_that_loads_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = create(tmp_path / "base")
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
    assert not caplog.records
    assert model.config.model_type == "gpt2"
    assert (model.config.n_layer, model.config.n_head, model.config.n_embd) == (2, 2, 16)
    assert model.config.vocab_size == len(tokenizer) == 500
    assert {model.config.attn_pdrop, model.config.resid_pdrop, model.config.embd_pdrop} == {0.0}
    assert tokenizer.model_max_length == model.config.n_positions == 64
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    assert model(torch.tensor([tokenizer("Ada lives")["input_ids"]])).logits.isfinite().all()


def test_the_tokenizer_gives_back_any_text(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(create(tmp_path))
    for text in ("Ada B. Holt was born on 3 May, 1990.", 'Zoë "Z" {x} 🎉\n\n 山田  , .', " a  b\t"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token_id not in ids
    assert tokenizer(f"one{END_OF_TEXT}two")["input_ids"].count(tokenizer.eos_token_id) == 1


def test_the_seed_decides_the_weights_and_leaves_other_randomness_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    folders = [create(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert torch.equal(torch.rand(3), expected)
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1] != weights[2]
    assert len({(folder / "tokenizer.json").read_bytes() for folder in folders}) == 1


def test_a_folder_left_by_a_killed_process_is_completed(tmp_path: Path) -> None:
    (tmp_path / "base" / ".partial").mkdir(parents=True)
    (tmp_path / "base" / ".partial" / "model.safetensors").write_bytes(b"half")
    folder = create(tmp_path / "base")
    assert not (folder / ".partial").exists()
    AutoModelForCausalLM.from_pretrained(folder)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="a width of 160 cannot be shared among 7 heads"):
        Shape(heads=7)
    with pytest.raises(InputError, match="256 tokens is too small"):
        train_tokenizer(TEXTS, 256, 64)


def test_the_program_gives_the_same_bytes_whatever_the_hash_seed_and_threads(tmp_path: Path) -> None:
    folder = DataFolder.of(str(tmp_path), 60)
    write_jsonl(folder.train, tiny.biographies(60))
    write_jsonl(folder.prior, [{"text": "3 plus 4 equals 7."}])
    written = []
    for name, variables in (
        ("a", {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}),
        ("b", {"PYTHONHASHSEED": "99", "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "3"}),
    ):
        command = [sys.executable, str(ROOT / "data" / "base_model_creation.py"), "--N", "60", "--data_dir"]
        command += [str(tmp_path), "--output_dir", str(tmp_path / name), "--vocab_size", "400", "--n_layer", "1"]
        command += ["--n_embd", "8", "--n_head", "2", "--n_positions", "32"]
        done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(written[0])
