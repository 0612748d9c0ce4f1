"""The count of least arithmetic that benchmarks compare with, and the benchmark program itself at a tiny shape."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, random_model, random_pairs
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, LlamaConfig, PhiConfig

from benchmarks import attribution, launches, scaling
from benchmarks.arithmetic import Shape, attribution_flop, circuit_flop, forward_flop
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.graph import Layout
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.files import read_json

GPT2 = Shape.of(GPT2Config())
PAPER_MODELS = {
    "gpt2": (GPT2Config(), 32_491),
    "gpt2-medium": (GPT2Config(n_layer=24, n_embd=1024, n_head=16), 231_877),
    "tinyllama": (
        LlamaConfig(
            num_hidden_layers=22,
            hidden_size=2048,
            num_attention_heads=32,
            num_key_value_heads=4,
            intermediate_size=5632,
        ),
        742_996,
    ),
    "phi-1_5": (
        PhiConfig(num_hidden_layers=24, hidden_size=2048, num_attention_heads=32, intermediate_size=8192),
        886_597,
    ),
}


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_the_papers_models_have_the_edges_that_the_design_states(name: str) -> None:
    config, edges = PAPER_MODELS[name]
    assert Shape.of(config).edges == edges


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_counts_the_edges_of_the_graph(family: str) -> None:
    shape = Shape.of(FAMILIES[family]())
    decoder = decoder_from_model(random_model(FAMILIES[family]()))
    block = decoder.blocks[0]
    assert shape.edges == Layout(decoder.n_layers, decoder.n_heads, decoder.parallel).n_edges
    assert (shape.gated, shape.d_mlp) == (block.mlp.gated, block.mlp.w_out.shape[0])
    assert (shape.n_kv_heads, shape.d_head) == (decoder.n_kv_heads, decoder.d_head)


def test_gpt2_small_has_85_million_weights_in_its_layers() -> None:
    assert GPT2.n_layers * GPT2.layer_weights == 84_934_656


def test_a_forward_pass_of_one_position_is_two_operations_per_weight_and_its_attention() -> None:
    weights = 2 * GPT2.n_layers * GPT2.layer_weights
    assert forward_flop(GPT2, 1) == weights + GPT2.n_layers * 4 * GPT2.d_model


def test_a_gpt2_prompt_needs_27_to_31_gflop_to_attribute_and_about_6_as_a_circuit() -> None:
    assert 27e9 < attribution_flop(GPT2, positions=16, steps=5) < attribution_flop(GPT2, 16, 5, shared=0) < 31e9
    assert 5.5e9 < circuit_flop(GPT2, positions=16) < 6.5e9


def test_each_step_adds_one_forward_and_one_backward_pass() -> None:
    per_step = attribution_flop(GPT2, 16, 6) - attribution_flop(GPT2, 16, 5)
    assert per_step == attribution_flop(GPT2, 16, 5) - attribution_flop(GPT2, 16, 4)
    assert 1.9 < per_step / forward_flop(GPT2, 16, shared=1) < 2.1


def test_the_engine_computes_little_more_than_the_least() -> None:
    config = GPT2Config(n_layer=4, n_embd=64, n_head=4, vocab_size=90, n_positions=32)
    decoder = decoder_from_model(random_model(config))
    items = random_pairs((16, 16, 16))
    pairs = PromptPairs(
        [pair.clean_ids for pair in items], [pair.corrupted_ids for pair in items], [pair.label_ids for pair in items]
    )
    # The counter does not know oneDNN's products.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        attribute(decoder, pairs, ig_steps=5)
    least = len(items) * attribution_flop(Shape.of(config), positions=16, steps=5)
    assert least <= counter.get_total_flops() < 1.2 * least


def test_the_measuring_programs_of_the_gpu_run_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = ["--shape", "nano", "--layers", "1", "--positions", "4", "--repeats", "1"]
    speed = [*tiny, "--batch", "1", "--tf32", "--no-hook_based", "--no-memory", "--json", str(tmp_path / "speed.json")]
    monkeypatch.setattr(sys, "argv", ["attribution.py", *speed])
    attribution.main()
    assert read_json(tmp_path / "speed.json")["result"]["attribution"]["engine"]["seconds_per_prompt"] > 0
    ways = ["--batch", "2", "--ways", "eager", "compile", "--backend", "eager", "--json", str(tmp_path / "ways.json")]
    monkeypatch.setattr(sys, "argv", ["launches.py", *tiny, *ways])
    launches.main()
    results = read_json(tmp_path / "ways.json")["results"]
    assert [(one["way"], one["batch"]) for one in results] == [("eager", 2), ("compile", 2)]
    assert results[1]["difference"] < 1e-5


def test_prompt_lengths_and_a_large_shape_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = ["--lengths", "8", "40", "--layers", "1", "--memory_gb", "0.001"]
    large = ["--large", "nano", "--layers", "1", "--folder", str(tmp_path / "weights")]
    rows = []
    for flags in (lengths, large):
        monkeypatch.setattr(sys, "argv", ["scaling.py", *flags])
        scaling.main()
        table = capsys.readouterr().out.splitlines()[2:]
        rows += [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    assert [row[0] for row in rows] == ["8", "40", "1"]
    assert rows[1][1] != "6 of 6" and rows[1][6] != "40"  # the longer prompt does not fit a megabyte at once
    assert not (tmp_path / "weights").exists()
