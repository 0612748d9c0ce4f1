"""Queries are answered greedily, the same in any batch, and judged as the protocol says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from memorizing import memorizing_model, persons
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from knowledge_circuits.corpus.queries import build_queries, is_correct
from knowledge_circuits.files import InputError, read_jsonl, write_jsonl
from knowledge_circuits.models.generation import generated_text
from knowledge_circuits.models.loading import load_model
from knowledge_circuits.models.tokenization import encode_prompt, label_token_id, load_tokenizer
from knowledge_circuits.runs import checkpoints
from knowledge_circuits.study import Attribute
from knowledge_circuits.sweeps.prediction import Settings, predict, predict_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("output", "value", "correct"),
    [
        (" Austin, TX", "Austin, TX", True),
        (" Austin, TX.", "Austin, TX", True),
        ("Austin, TX. She was", "Austin, TX", True),
        ("\nAustin, TX\nmore", "Austin, TX", True),
        (" St. Louis, MO. He", "St. Louis, MO", True),
        (" St. Louis, MO", "St", True),
        (" Austin, TX and", "Austin, TX", False),
        (" Austin, TXs", "Austin, TX", False),
        (" in Austin, TX", "Austin, TX", False),
        (" austin, tx", "Austin, TX", False),
        ("", "Austin, TX", False),
        ("  ", "Austin, TX", False),
    ],
)
def test_an_answer_begins_with_the_value_and_ends_there_or_at_a_stop_or_line(output: str, value: str, correct: bool):
    assert is_correct(output, value) is correct


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_predictions_do_not_depend_on_the_batch_size_and_equal_plain_generation(batch_size: int):
    model, tokenizer, people = memorizing_model()
    records = predict(model, tokenizer, people[::3], Settings(batch_size=batch_size, max_new_tokens=9))
    queries = build_queries(people[::3], tokenizer)
    for query, record in zip(queries, records, strict=True):
        ids = torch.tensor([query.prompt_ids])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, pad_token_id=0
        )
        tokens = whole[0, ids.shape[1] :].tolist()
        assert record["output"] == generated_text(tokenizer, tokens)
        assert record["first_token_correct"] == (tokens[0] == label_token_id(tokenizer, query.prompt, query.value))
    assert len({record["output"] for record in records}) > 5


def test_a_model_s_own_generation_settings_do_not_count():
    model, tokenizer, people = memorizing_model()
    expected = predict(model, tokenizer, people[:4])
    model.generation_config = own = GenerationConfig(do_sample=True, no_repeat_ngram_size=1, repetition_penalty=9.0)
    assert predict(model, tokenizer, people[:4]) == expected
    assert model.generation_config is own


def test_results_stand_in_the_input_order_with_the_person_s_own_keys():
    model, tokenizer, people = memorizing_model()
    records = predict(model, tokenizer, people, Settings(max_new_tokens=4))
    assert [(record["full_name"], record["attribute"]) for record in records] == [
        (person.full_name, attribute) for person in people for attribute in Attribute
    ]
    assert list(records[0])[:7] == [
        "attribute", "prompt", "correct", "first_token_correct", "ground_truth", "prediction", "output",
    ]  # fmt: skip
    assert records[1]["prompt"] == f"{people[0].full_name} lives in the city of"
    assert {key: records[1][key] for key in people[0].to_row()} == people[0].to_row()
    assert records[1]["ground_truth"] == people[0].city


def test_what_was_learned_is_known_and_what_was_not_is_not():
    model, tokenizer, people = memorizing_model()
    records = predict(model, tokenizer, people)
    learned, others = records[:50], records[50:]
    assert sum(record["first_token_correct"] for record in learned) == 50
    assert sum(record["first_token_correct"] for record in others) < 10
    # Endings 3 and 4 (" and", ", too.") carry on after the value, which makes the answer a wrong one.
    assert [record["correct"] for record in learned[:5]] == [True, True, True, False, False]


def test_an_output_ends_at_eos_or_at_the_first_line_break_after_some_text():
    tokenizer = tiny.byte_level_tokenizer()

    def tokens(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    eos = tokenizer.eos_token_id
    assert generated_text(tokenizer, [*tokens(" Austin"), eos, *tokens("Boston")]) == " Austin"
    assert generated_text(tokenizer, tokens(" Austin\nBoston")) == " Austin"
    assert generated_text(tokenizer, tokens("\n\nAustin\n")) == "\n\nAustin"
    assert generated_text(tokenizer, [eos]) == ""


@pytest.mark.parametrize("folder", ["tiny_gpt2_folder", "tiny_llama_folder"])
def test_a_query_is_the_protocol_s_prompt_with_one_start_token_and_its_label(folder: str, request):
    tokenizer = load_tokenizer(str(request.getfixturevalue(folder)))
    people = persons(6)
    people[0] = replace(people[0], full_name='Zoë "Z{0}" 李 😀 O\'Neill')
    for query in build_queries(people, tokenizer):
        assert list(query.prompt_ids) == encode_prompt(tokenizer, query.prompt)
        assert query.answer_ids[0] == label_token_id(tokenizer, query.prompt, query.value)
        assert tokenizer.decode(query.answer_ids).strip() == query.value


def test_a_prompt_beyond_the_model_s_context_is_refused_by_name(tiny_gpt2_folder: Path):
    model, tokenizer = load_model(str(tiny_gpt2_folder)), load_tokenizer(str(tiny_gpt2_folder))
    person = replace(persons(1)[0], full_name="Ada " * 300 + "Longname")
    with pytest.raises(InputError, match=r"Longname.*context holds 256"):
        predict(model, tokenizer, [person])


def test_damaged_checkpoints_are_refused_with_the_reason(tiny_gpt2_folder: Path, tmp_path: Path):
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(tiny_gpt2_folder, tmp_path / name))

    empty = damaged("empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(InputError, match="without weights"):
        load_model(str(empty))
    cut = damaged("cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="could not be loaded"):
        load_model(str(cut))
    weights = load_file(tiny_gpt2_folder / "model.safetensors")
    name = "transformer.h.1.mlp.c_fc.weight"
    lacking = damaged("lacking")
    save_file(
        {key: value for key, value in weights.items() if key != name}, lacking / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match=r"lack 'transformer\.h\.1\.mlp\.c_fc\.weight'"):
        load_model(str(lacking))
    infinite = damaged("infinite")
    weights[name][0, 0] = float("nan")
    save_file(weights, infinite / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"h\.1\.mlp\.c_fc\.weight.*not finite"):
        load_model(str(infinite))


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "predict.py"), "--device", "cpu", "--threads", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_the_program_answers_for_all_checkpoints_of_a_run_and_skips_what_is_there(
    tiny_gpt2_folder: Path, tmp_path: Path
):
    run = tmp_path / "run"
    for step in (0, 10):
        shutil.copytree(tiny_gpt2_folder, run / "checkpoints" / f"checkpoint-{step}")
    write_jsonl(tmp_path / "test.jsonl", tiny.entities(4))
    kept = run / "checkpoints" / "checkpoint-0" / "prediction.jsonl"
    asked = [row["full_name"] for row in tiny.entities(3)]
    rows = [{"full_name": name, "attribute": attribute, "kept": 1} for name in asked for attribute in Attribute]
    write_jsonl(kept, rows)
    common = ("--model_name_or_path", run, "--input_file", tmp_path / "test.jsonl", "--max_predict_samples", "3")
    result = _run(*common)
    assert result.returncode == 0, result.stderr
    assert read_jsonl(kept) == rows
    records = read_jsonl(run / "checkpoints" / "checkpoint-10" / "prediction.jsonl")
    assert len(records) == 3 * len(Attribute)
    refused = _run(*common, "--output_file", tmp_path / "one.jsonl")
    assert refused.returncode == 1 and "--output_file is for one checkpoint" in refused.stderr
    refused = _run(*common[:-1], "4")
    assert refused.returncode == 1 and "15 other questions than the 20" in refused.stderr


def test_writing_a_checkpoint_s_predictions_leaves_whole_json_lines(tiny_llama_folder: Path, tmp_path: Path):
    (checkpoint,) = checkpoints(str(tiny_llama_folder), str(tmp_path / "results"))
    records = predict_checkpoint(checkpoint, persons(2), Settings(max_new_tokens=3))
    assert [json.loads(line) for line in checkpoint.predictions.read_text().splitlines()] == records
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["prediction.jsonl"]
