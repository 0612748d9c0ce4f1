"""A model whose layers lie on several devices gives the scores and evaluations of one that lies on one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch
from test_attribution_oracles import prompt_pairs
from tiny_run import ONE_GROUP, call, make_run
from two_devices import FIRST, SECOND, TwoDevices

import circuit_discovery
import circuit_eval
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import evaluate, standalone
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.weights import decoder_from_model, load_decoder
from knowledge_circuits.files import InputError
from knowledge_circuits.sweeps import model_loader

PAIRS = prompt_pairs(families.random_pairs((7, 10, 7), seed=3))


def spread(decoder: Decoder) -> Decoder:
    """The decoder with every second layer on the second of two devices."""

    def moved(part, device):  # type: ignore[no-untyped-def]
        tensors = {name: value.to(device) for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
        return replace(part, **tensors)

    blocks = []
    for index, block in enumerate(decoder.blocks):
        device = SECOND if index % 2 else FIRST
        blocks.append(replace(block, attention=moved(block.attention, device), mlp=moved(block.mlp, device)))
    return replace(moved(decoder, FIRST), blocks=tuple(blocks))


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi", "gemma3"])
def test_layers_on_two_devices_give_the_scores_and_evaluations_of_one(family: str) -> None:
    decoder = decoder_from_model(families.random_model(families.FAMILIES[family](), 0, torch.float64))
    graph = attribute(decoder, PAIRS, ig_steps=2)
    circuit = prune(top_n(graph, graph.n_edges // 3))
    with TwoDevices():
        two = spread(decoder)
        assert {block.device for block in two.blocks} == {FIRST, SECOND}
        scores = [attribute(two, PAIRS, ig_steps=2, memory_gb=budget).scores for budget in (1.0, 1e-6)]
        (evaluation,) = evaluate(two, [circuit], PAIRS)
        (mean,) = evaluate(two, [circuit], PAIRS, "mean")
        alone = standalone(two, circuit, PAIRS)
    for found in scores:
        torch.testing.assert_close(found, graph.scores, rtol=0, atol=1e-12)
    (expected,) = evaluate(decoder, [circuit], PAIRS)
    torch.testing.assert_close(evaluation.circuit, expected.circuit)
    torch.testing.assert_close(mean.circuit, evaluate(decoder, [circuit], PAIRS, "mean")[0].circuit)
    torch.testing.assert_close(alone.token_prob, standalone(decoder, circuit, PAIRS).token_prob)


def test_whole_answers_are_scored_and_evaluated_alike_on_two_devices() -> None:
    decoder = decoder_from_model(families.random_model(families.FAMILIES["llama"](), 0, torch.float64))
    pairs = replace(PAIRS, answers=[[5, 6, 7], [8], [9, 10]])
    options = {"ig_steps": 2, "metric": "answer_log_probability"}
    graph = attribute(decoder, pairs, **options)
    circuit = prune(top_n(graph, graph.n_edges // 3))
    with TwoDevices():
        two = spread(decoder)
        scores = [attribute(two, pairs, memory_gb=budget, **options).scores for budget in (1.0, 1e-6)]
        found = [
            evaluate(two, [circuit], pairs, kind, options["metric"])[0] for kind in ("patching", "mean-positional")
        ]
    for one in scores:
        torch.testing.assert_close(one, graph.scores, rtol=0, atol=1e-12)
    for one, kind in zip(found, ("patching", "mean-positional"), strict=True):
        (expected,) = evaluate(decoder, [circuit], pairs, kind, options["metric"])
        torch.testing.assert_close(one.circuit, expected.circuit)


def test_an_operation_on_two_devices_is_noticed() -> None:
    with TwoDevices(), pytest.raises(RuntimeError, match="tensors of"):
        torch.ones(2, 2, device=FIRST) @ torch.ones(2, 2, device=SECOND)


def test_a_checkpoint_is_spread_as_its_map_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families.save_family(tmp_path, "gpt2")
    plain = load_decoder(str(tmp_path))
    for device_map in (
        "auto",
        {"": "cpu"},
        {"transformer.wte": "cpu", "transformer.h.0": "cpu", "transformer.h": "cpu"},
    ):
        mapped = load_decoder(str(tmp_path), device_map=device_map)
        assert torch.equal(mapped.blocks[2].attention.w_qkv, plain.blocks[2].attention.w_qkv)
    for device_map, reason in (
        ({"transformer.h.0": "cpu", "transformer.wte": "cpu"}, r"names no device for transformer\.h\.1"),
        ("balanced", "it is auto or"),
        ({"": "foo"}, "device map foo: no such device"),
        ({"": "cpu", "transformer.h.2": 99}, "device map cuda:99: (this machine or this torch has no|there are only)"),
    ):
        with pytest.raises(InputError, match=reason):
            load_decoder(str(tmp_path), device_map=device_map)
    short = {"": "cpu", "transformer.h.2": "disk"}  # what accelerate says where memory is short
    monkeypatch.setattr("accelerate.infer_auto_device_map", lambda *_, **__: short)
    with pytest.raises(InputError, match=r"but the disk for transformer\.h\.2"):
        load_decoder(str(tmp_path), device_map="auto")


def test_the_programs_take_a_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", steps=(0,))
    one = [*ONE_GROUP, "--device_map", '{"": "cpu"}', "--output_dir", str(tmp_path / "mapped")]
    assert call(circuit_discovery.main, run.discovery(*one)) == 0
    source = ["--task", "city", "--source_type", "new", "--source_frequency", "high", "--topn", "40"]
    mapped = [*source, "--device_map", "auto", "--output_dir", str(tmp_path / "mapped")]
    assert call(circuit_eval.main, run.evaluation(*mapped)) == 0
    assert call(circuit_discovery.main, run.discovery(*ONE_GROUP)) == 0
    graphs = [sorted(folder.rglob("city_graph.json"), key=str)[0] for folder in (tmp_path / "mapped", run.checkpoints)]
    assert graphs[0].read_bytes() == graphs[1].read_bytes()
    assert call(circuit_discovery.main, run.discovery("--device_map", "cuda:0")) == 2
    assert "neither auto nor a JSON object" in capsys.readouterr().err
    monkeypatch.setattr(model_loader, "load_decoder", None)  # no model is loaded
    assert call(circuit_discovery.main, run.discovery("--overwrite", "--device_map", '{"": "foo"}')) == 1
    assert capsys.readouterr().err == "error: device map foo: no such device; use cpu, cuda or cuda:<number>\n"
