"""The engine, and the oracles that the other tests trust, give the numbers of the original code and of EAP-IG 2.0.

Each folder of tests/golden holds a tiny checkpoint, six prompt pairs, and what those programs compute for them in
float64, one prompt at a time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import oracles
import pytest
import torch
from families import Pair
from torch import Tensor
from transformers import AutoModelForCausalLM

from knowledge_circuits.engine.attribution import Method, attribute
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import CURVE_SHARES, Intervention, evaluate, faithfulness_curve, standalone
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.weights import load_decoder

FOLDER = Path(__file__).parent / "golden"

#: golden array -> (method, first step of the path)
SCORES = {
    "eap": (Method.EAP, 1),
    "eap_ig": (Method.EAP_IG, 1),
    "eap_ig_v2": (Method.EAP_IG, 0),
    "clean_corrupted": (Method.CLEAN_CORRUPTED, 1),
    "eap_ig_activations_v2": (Method.EAP_IG_ACTIVATIONS, 1),
}


@dataclass(frozen=True)
class Golden:
    """One golden folder."""

    folder: Path
    items: list[Pair]
    facts: dict[str, Any]
    arrays: dict[str, Tensor]

    @property
    def pairs(self) -> PromptPairs:
        return PromptPairs(
            [item.clean_ids for item in self.items],
            [item.corrupted_ids for item in self.items],
            [item.label_ids for item in self.items],
        )

    def decoder(self, dtype: torch.dtype = torch.float64) -> Decoder:
        return load_decoder(str(self.folder), dtype=dtype)

    def graph(self, decoder: Decoder) -> Graph:
        """The golden EAP-IG scores as a graph."""
        layout = Layout(decoder.n_layers, decoder.n_heads, decoder.parallel)
        return Graph(layout, self.arrays["eap_ig"], self.arrays["real_edges"], decoder.d_model)


@pytest.fixture(scope="module", params=["gpt2", "llama", "phi", "gpt_neox"])
def golden(request: pytest.FixtureRequest) -> Golden:
    folder = FOLDER / request.param
    facts = json.loads((folder / "golden.json").read_text())
    with numpy.load(folder / "golden.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return Golden(folder, [Pair.of(item) for item in facts["items"]], facts, arrays)


@pytest.fixture(scope="module")
def oracle(golden: Golden) -> oracles.Model:
    return oracles.from_hugging_face(AutoModelForCausalLM.from_pretrained(golden.folder, dtype=torch.float64))


@pytest.fixture(scope="module")
def decoder(golden: Golden) -> Decoder:
    return golden.decoder()


def test_the_graph_has_the_same_nodes_and_edges(golden: Golden, decoder: Decoder) -> None:
    layout = Layout(decoder.n_layers, decoder.n_heads, decoder.parallel)
    assert list(layout.sources) == golden.facts["source_nodes"]
    assert list(layout.targets) == golden.facts["target_nodes"]
    assert torch.equal(layout.real_edges, golden.arrays["real_edges"])


@pytest.mark.parametrize("name", SCORES)
def test_scores_in_double_precision(golden: Golden, decoder: Decoder, name: str) -> None:
    method, first_step = SCORES[name]
    graph = attribute(decoder, golden.pairs, method, ig_steps=golden.facts["ig_steps"], first_step=first_step)
    torch.testing.assert_close(graph.scores, golden.arrays[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize("rule", ["gim", "relp"])
@pytest.mark.parametrize(("name", "method"), [("eap", Method.EAP), ("eap_ig_v2", Method.EAP_IG)])
def test_scores_under_other_gradient_rules(
    golden: Golden, decoder: Decoder, name: str, method: Method, rule: str
) -> None:
    steps = golden.facts["ig_steps"]
    graph = attribute(decoder, golden.pairs, method, ig_steps=steps, first_step=0, gradient=rule)
    expected = golden.arrays[f"{name}_{rule}"]  # the reference keeps scores in float32
    assert (graph.scores - expected).abs().max() < 1e-6 * expected.abs().max()
    assert graph.meta["gradient"] == rule


@pytest.mark.parametrize("name", SCORES)
def test_scores_in_single_precision(golden: Golden, name: str) -> None:
    method, first_step = SCORES[name]
    decoder, steps = golden.decoder(torch.float32), golden.facts["ig_steps"]
    scores = attribute(decoder, golden.pairs, method, ig_steps=steps, first_step=first_step).scores
    expected = golden.arrays[name]
    assert (scores.double() - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", SCORES)
def test_the_oracle_gives_the_same_scores(golden: Golden, oracle: oracles.Model, name: str) -> None:
    method, first_step = SCORES[name]
    scores = oracles.attribute(oracle, golden.items, method, golden.facts["ig_steps"], first_step)
    torch.testing.assert_close(scores, golden.arrays[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize(("size", "prefix"), [("topn", ""), ("small_topn", "small_")])
def test_the_circuit_of_the_largest_scores_after_pruning(
    golden: Golden, decoder: Decoder, size: str, prefix: str
) -> None:
    circuit = prune(top_n(golden.graph(decoder), golden.facts[size]))
    assert torch.equal(circuit.in_graph, golden.arrays[f"{prefix}circuit_edges"])
    # The golden nodes are sources; among them `input` counts here whether or not an edge leaves it.
    assert torch.equal(circuit.nodes_in_graph[1:-1], golden.arrays[f"{prefix}circuit_nodes"][1:])


@pytest.mark.parametrize("prefix", ["", "small_"])
def test_circuit_performance(golden: Golden, decoder: Decoder, prefix: str) -> None:
    circuit = golden.graph(decoder).with_edges(golden.arrays[f"{prefix}circuit_edges"])
    for intervention, suffix in ((Intervention.PATCHING, ""), (Intervention.ZERO, "_zero")):
        (found,) = evaluate(decoder, [circuit], golden.pairs, intervention)
        for values, name in (
            (found.clean, "clean_logit_diff"),
            (found.corrupted, "corrupted_logit_diff"),
            (found.circuit, f"{prefix}circuit_logit_diff{suffix}"),
        ):
            torch.testing.assert_close(values, golden.arrays[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize(("selection", "absolute"), [("signed", False), ("absolute", True)])
def test_the_faithfulness_curve_and_its_areas_are_those_of_mib(
    golden: Golden, decoder: Decoder, selection: str, absolute: bool
) -> None:
    scored = golden.graph(decoder)
    curve = faithfulness_curve(decoder, scored, golden.pairs, absolute=absolute)
    assert curve.shares == CURVE_SHARES
    for name in ("faithfulness", "cpr", "cmd"):
        expected = golden.arrays[f"mib_{selection}_{name}"]
        values = torch.tensor(getattr(curve, name), dtype=expected.dtype)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-8)
    for share, edges, expected in zip(curve.shares, curve.edges, golden.arrays[f"mib_{selection}_edges"], strict=True):
        fewest, most = edges_whatever_the_ties(scored, int(share * scored.layout.n_edges), absolute)
        assert fewest <= expected <= most and fewest <= edges <= most
        assert edges == expected or fewest < most


def edges_whatever_the_ties(scored: Graph, n: int, absolute: bool) -> tuple[int, int]:
    """Edges after pruning without and with all edges that tie with the n-th: MIB's sort leaves their order open."""
    scores = torch.where(scored.layout.real_edges, scored.scores.abs() if absolute else scored.scores, -torch.inf)
    least = scores.flatten().sort(descending=True).values[max(n, 1) - 1]
    if n == 0 or (scores >= least).sum() == n:
        fewest = most = prune(top_n(scored, n, absolute)).n_edges
    else:
        fewest, most = (prune(scored.with_edges(members)).n_edges for members in (scores > least, scores >= least))
    return fewest, most


def test_standalone_performance(golden: Golden, decoder: Decoder) -> None:
    circuit = golden.graph(decoder).with_edges(golden.arrays["circuit_edges"])
    found = standalone(decoder, circuit, golden.pairs)
    torch.testing.assert_close(found.token_prob, golden.arrays["standalone_prob"], rtol=0, atol=1e-8)
    assert torch.equal(found.token_rank, golden.arrays["standalone_rank"])


def test_the_oracle_gives_the_same_circuit_performance(golden: Golden, oracle: oracles.Model) -> None:
    for prefix in ("", "small_"):
        circuit = golden.arrays[f"{prefix}circuit_edges"]
        for intervention, suffix in (("patching", ""), ("zero", "_zero")):
            differences = oracles.circuit_logit_differences(oracle, golden.items, circuit, intervention)
            expected = golden.arrays[f"{prefix}circuit_logit_diff{suffix}"]
            torch.testing.assert_close(differences, expected, rtol=0, atol=1e-8)
    probability, rank = oracles.standalone(oracle, golden.items, golden.arrays["circuit_edges"])
    torch.testing.assert_close(probability, golden.arrays["standalone_prob"], rtol=0, atol=1e-8)
    assert torch.equal(rank, golden.arrays["standalone_rank"])
