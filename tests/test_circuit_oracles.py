"""For every decoder family and intervention, circuits perform as in a walk over the graph edge by edge."""

from __future__ import annotations

from pathlib import Path

import families
import oracles
import pytest
import torch
from families import FAMILIES
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import hook_based
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import Intervention, evaluate, standalone
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import load_decoder

ITEMS = families.random_pairs((7, 10, 7), seed=2)
PAIRS = PromptPairs(
    [pair.clean_ids for pair in ITEMS], [pair.corrupted_ids for pair in ITEMS], [pair.label_ids for pair in ITEMS]
)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.save_family(tmp_path_factory.mktemp("families") / request.param, request.param, seed=1)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> oracles.Model:
    return oracles.from_hugging_face(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return load_decoder(str(folder), dtype=torch.float64)


def random_circuit(decoder: Decoder, share: float) -> Graph:
    """A share of the edges, unpruned: what nothing feeds or reads must do no harm."""
    layout = Layout(decoder.n_layers, decoder.n_heads, decoder.parallel)
    chosen = torch.rand(layout.real_edges.shape, generator=torch.Generator().manual_seed(0)) < share
    return Graph(layout, torch.zeros(chosen.shape), layout.real_edges & chosen, decoder.d_model)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("intervention", Intervention)
def test_circuits_perform_as_the_oracle_says(decoder, oracle, intervention: Intervention) -> None:
    for share in (0.1, 0.6):
        circuit = random_circuit(decoder, share)
        (found,) = evaluate(decoder, [circuit], PAIRS, intervention)
        assert_same(found.circuit, oracles.circuit_logit_differences(oracle, ITEMS, circuit.in_graph, intervention))


def test_standalone_circuits_perform_as_the_oracle_says(decoder, oracle) -> None:
    circuit = random_circuit(decoder, 0.6)
    probability, rank = oracles.standalone(oracle, ITEMS, circuit.in_graph)
    found = standalone(decoder, circuit, PAIRS)
    assert_same(found.token_prob, probability)
    assert torch.equal(found.token_rank, rank)


def test_the_hook_based_way_evaluates_alike(tmp_path: Path) -> None:
    folder = families.save_family(tmp_path / "model", "gpt2")
    items = families.random_pairs((9, 9))
    clean, corrupted, labels = (
        torch.tensor([getattr(pair, name) for pair in items]) for name in ("clean_ids", "corrupted_ids", "label_ids")
    )
    decoder = load_decoder(str(folder), dtype=torch.float64)
    circuit = random_circuit(decoder, 0.5)
    (found,) = evaluate(decoder, [circuit], PromptPairs(clean.tolist(), corrupted.tolist(), labels.tolist()))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    bridge = hook_based.boot(model, AutoTokenizer.from_pretrained(folder), str(folder))
    expected = hook_based.evaluate(bridge, clean, corrupted, labels, circuit.in_graph)
    assert_same(torch.stack((found.clean, found.corrupted, found.circuit)), expected)
