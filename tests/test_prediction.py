"""Queries are answered greedily, the same in any batch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from memorizing import memorizing_model, persons
from safetensors.torch import load_file, save_file
from tiny_run import call, files
from transformers import GenerationConfig

import predict as predict_program
from knowledge_circuits.corpus.queries import build_queries
from knowledge_circuits.files import InputError, read_jsonl, write_jsonl
from knowledge_circuits.models.generation import generated_text
from knowledge_circuits.models.loading import load_model
from knowledge_circuits.models.tokenization import label_token_id, load_tokenizer
from knowledge_circuits.runs import checkpoints
from knowledge_circuits.study import Attribute
from knowledge_circuits.sweeps.prediction import Predictions, Settings, predict


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


@pytest.fixture
def run(tiny_gpt2_folder: Path, tmp_path: Path) -> Path:
    """A run of two checkpoints, with test.jsonl beside it."""
    for step in (0, 10):
        shutil.copytree(tiny_gpt2_folder, tmp_path / "run" / "checkpoints" / f"checkpoint-{step}")
    write_jsonl(tmp_path / "test.jsonl", tiny.entities(4))
    return tmp_path / "run"


def _predict(run: Path, *more: str) -> int:
    arguments = ["--model_name_or_path", str(run), "--input_file", str(run.parent / "test.jsonl")]
    return call(predict_program.main, [*arguments, "--threads", "1", "--max_new_tokens", "3", *more])


def test_the_program_answers_for_all_checkpoints_of_a_run_and_skips_what_is_finished(run: Path, capsys):
    assert _predict(run, "--max_predict_samples", "3") == 0
    outputs = sorted(run.rglob("prediction.jsonl"))
    assert [len(read_jsonl(path)) for path in outputs] == [3 * len(Attribute)] * 2
    before = files(run)
    assert _predict(run, "--max_predict_samples", "3", "--verify") == 0
    assert "0 done, 2 were there already" in capsys.readouterr().out and files(run) == before
    assert _predict(run, "--output_file", str(run.parent / "one.jsonl")) == 1
    assert "--output_file is for one checkpoint" in capsys.readouterr().err


def test_predictions_of_other_queries_or_lengths_are_refused_until_overwritten(run: Path, capsys):
    assert _predict(run, "--max_predict_samples", "3") == 0
    before = files(run)
    for flags, reason in (
        ([], "queries '"),
        (["--max_predict_samples", "3", "--max_new_tokens", "4"], "tokens 3, now 4"),
    ):
        assert _predict(run, *flags) == 1
        assert reason in (said := capsys.readouterr().err) and "--overwrite" in said
    assert files(run) == before
    assert _predict(run, "--overwrite") == 0
    assert len(read_jsonl(next(run.rglob("prediction.jsonl")))) == 4 * len(Attribute)


@pytest.mark.parametrize("keep", [0, 400])
def test_a_cut_file_of_predictions_is_made_again_and_named(run: Path, keep: int, capsys):
    assert _predict(run) == 0
    before = files(run)
    path = run / "checkpoints" / "checkpoint-10" / "prediction.jsonl"
    path.write_bytes(path.read_bytes()[:keep])
    capsys.readouterr()
    assert _predict(run) == 0
    assert "1 result is damaged and made again" in (said := capsys.readouterr().out) and "checkpoint-10" in said
    assert files(run) == before


def test_predictions_of_other_weights_are_refused(run: Path, capsys):
    assert _predict(run) == 0
    tiny.save_tiny_gpt2(run / "checkpoints" / "checkpoint-10", seed=7)
    assert _predict(run) == 1
    assert "weights '" in (said := capsys.readouterr().err) and "checkpoint-10" in said


def test_predictions_stay_finished_where_the_weights_were_removed(run: Path):
    assert _predict(run) == 0
    for weights in run.rglob("*.safetensors"):
        weights.unlink()
    assert _predict(run) == 0


def test_predictions_of_an_older_version_are_adopted_if_they_answer_the_queries(run: Path, capsys):
    assert _predict(run) == 0
    before = files(run)
    for manifest in run.rglob("prediction_manifest.json"):
        manifest.unlink()
    assert _predict(run) == 1
    assert "2 results are without a manifest" in (said := capsys.readouterr().err) and "--adopt" in said
    assert _predict(run, "--adopt") == 0
    assert "0 done, 2 were there already" in capsys.readouterr().out and files(run) == before
    next(run.rglob("prediction_manifest.json")).unlink()
    assert _predict(run, "--adopt", "--max_predict_samples", "2") == 1
    assert "answers other queries" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--batch_size", "0"], "'0' is not a whole number of at least 1"),
        (["--threads", "99999999999"], "more than 4096 threads"),
        (["--device", "mps"], "--device mps: this machine or this torch has none"),
        (["--learned_threshold", "7"], "'7' is not a share above 0 and at most 1"),
    ],
)
def test_flags_out_of_range_are_one_sentence(run: Path, flags: list[str], reason: str, capsys):
    assert _predict(run, *flags) != 0
    assert reason in (said := capsys.readouterr().err) and "Traceback" not in said


def test_a_unit_of_predictions_is_one_file_and_its_manifest(tiny_llama_folder: Path, tmp_path: Path):
    (checkpoint,) = checkpoints(str(tiny_llama_folder), str(tmp_path / "results"))
    records = Predictions(checkpoint, Settings(max_new_tokens=3), checkpoint.predictions, persons(2)).run()
    assert [json.loads(line) for line in checkpoint.predictions.read_text().splitlines()] == records
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "prediction.jsonl",
        "prediction_manifest.json",
    ]
