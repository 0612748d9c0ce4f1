"""What attribution methods find of a circuit that is known, because its weights were set by hand."""

from __future__ import annotations

import statistics

import pytest
import torch

from benchmarks.known_circuit import Induction, roc_area, truth
from benchmarks.methods import known_circuit_areas
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.evaluation import evaluate
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.selection import prune

#: An induction head whose softmax saturates, among idle parts that write a little everywhere.
SATURATED = Induction(sharpness=16.0, leak=0.1)


@pytest.fixture(scope="module")
def exact() -> Graph:
    return attribute(SATURATED.decoder(), SATURATED.pairs(4), "exact")


def circuit(graph: Graph) -> Graph:
    members = torch.zeros_like(graph.in_graph)
    members[graph.layout.real_edges] = truth(graph)
    return graph.with_edges(members)


def test_the_model_continues_a_repeated_token_as_before(exact: Graph) -> None:
    (result,) = evaluate(SATURATED.decoder(), [exact], SATURATED.pairs(40))
    assert (result.clean > 0).double().mean() >= 0.95 and (result.corrupted < 0).double().mean() >= 0.95


def test_the_circuits_five_edges_alone_do_the_task(exact: Graph) -> None:
    alone = circuit(exact)
    assert alone.n_edges == 5 and prune(alone).n_edges == 5
    (result,) = evaluate(SATURATED.decoder(), [alone], SATURATED.pairs(40))
    assert result.faithfulness == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("missing", range(5))
def test_without_one_of_its_edges_the_circuit_does_not(exact: Graph, missing: int) -> None:
    members = circuit(exact).in_graph.clone()
    edge = members.nonzero()[missing]
    members[edge[0], edge[1]] = False
    (result,) = evaluate(SATURATED.decoder(), [exact.with_edges(members)], SATURATED.pairs(40))
    assert result.faithfulness is not None and result.faithfulness < 0.7


def test_exact_patching_ranks_the_circuit_first(exact: Graph) -> None:
    assert roc_area(exact) > 0.99


def test_random_scores_rank_it_by_chance() -> None:
    areas = known_circuit_areas(["random"], SATURATED, prompts=1, seeds=range(30))["random"]
    assert statistics.fmean(areas) == pytest.approx(0.5, abs=0.1)


def test_a_saturated_softmax_hides_edges_from_the_gradient_and_not_from_gim() -> None:
    areas = {
        name: statistics.fmean(values) for name, values in known_circuit_areas(["eap", "eap-gim"], SATURATED).items()
    }
    assert areas["eap"] < 0.98 < areas["eap-gim"]
    unsaturated = known_circuit_areas(["eap"], Induction(sharpness=4.0, leak=0.02))["eap"]
    assert min(unsaturated) > 0.98


@pytest.mark.parametrize("method", ["eap", "eap-ig", "eap-ig-gim", "eap-relp", "eap-ig-relp", "eap-ig-activations"])
def test_every_method_is_much_better_than_chance(method: str) -> None:
    assert min(known_circuit_areas([method], SATURATED, prompts=8)[method]) > 0.8


def test_the_roc_area_counts_ties_half(exact: Graph) -> None:
    flat = Graph(exact.layout, torch.zeros_like(exact.scores), exact.in_graph, exact.d_model)
    assert roc_area(flat) == 0.5
    perfect = Graph(exact.layout, circuit(exact).in_graph.double(), exact.in_graph, exact.d_model)
    assert roc_area(perfect) == 1.0
