"""Worked examples: the shape of small circuits, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from knowledge_circuits.engine import topology
from knowledge_circuits.engine.graph import Graph, Layout

LAYOUT = Layout(n_layers=2, n_heads=1)  # input, a0.h0, m0, a1.h0, m1 -> q, k, v, m0, q, k, v, m1, logits


def circuit(edges: dict[str, float], layout: Layout = LAYOUT) -> Graph:
    """A circuit of the named edges with their scores; all other edges score 0 and are outside."""
    scores = torch.zeros(layout.n_sources, layout.n_targets)
    for name, score in edges.items():
        source, target = name.split("->")
        scores[layout.sources.index(source), layout.targets.index(target)] = score
    return Graph(layout, scores, scores != 0, d_model=8)


def test_entropy_of_equal_edges_is_the_logarithm_of_their_number() -> None:
    graph = circuit({"input->m0": 0.5, "m0->logits": -0.5, "input->logits": 0.5})
    assert topology.circuit_entropy(graph) == pytest.approx(math.log(3))


def test_entropy_of_a_circuit_in_which_one_edge_has_everything_is_zero() -> None:
    assert topology.circuit_entropy(circuit({"input->logits": -3.0})) == 0


def test_entropy_counts_the_size_of_a_score_and_not_its_sign() -> None:
    worked = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert topology.circuit_entropy(circuit({"input->m0": -3.0, "m0->logits": 1.0})) == pytest.approx(worked)


def test_entropy_leaves_out_edges_outside_the_circuit() -> None:
    graph = circuit({"input->m0": 1.0, "m0->logits": 1.0, "m1->logits": 5.0})
    inside = graph.in_graph.clone()
    inside[LAYOUT.sources.index("m1")] = False
    assert topology.circuit_entropy(graph.with_edges(inside)) == pytest.approx(math.log(2))


def test_an_empty_circuit_has_no_entropy() -> None:
    assert math.isnan(topology.circuit_entropy(circuit({})))


def test_weighted_entropy_weighs_edges_by_the_layers_they_join() -> None:
    graph = circuit({"input->m0": 1.0, "m1->logits": 1.0})
    early, late = 1.0, (1 / 2 + 1 / 3) / 2  # layers 0 and 0; layers 1 and 2 (logits follow the last layer)
    share = early / (early + late)
    assert topology.weighted_entropy(graph) == pytest.approx(
        -share * math.log(share) - (1 - share) * math.log(1 - share)
    )


def test_weighted_entropy_sees_all_scored_edges() -> None:
    graph = circuit({"input->m0": 1.0, "m1->logits": 1.0})
    nothing_inside = graph.with_edges(torch.zeros_like(graph.in_graph))
    assert topology.weighted_entropy(nothing_inside) == topology.weighted_entropy(graph)


def test_random_walk_over_equal_scores_counts_the_ways_out_of_every_node() -> None:
    ways_out = LAYOUT.real_edges.sum(1).tolist()
    assert ways_out == [9, 6, 5, 2, 1]
    assert topology.random_walk_entropy(circuit({})) == pytest.approx(sum(math.log(n) for n in ways_out))


def test_random_walk_entropy_follows_the_softmax_of_signed_scores() -> None:
    walk = topology.random_walk_entropy(circuit({"a1.h0->logits": 2.0}))
    share = math.e**2 / (math.e**2 + 1)
    of_that_head = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert walk == pytest.approx(math.log(9) + math.log(6) + math.log(5) + of_that_head)


def test_the_three_inputs_of_a_head_are_one_node() -> None:
    present = topology.nodes(circuit({"input->a0.h0<q>": 1.0, "input->a0.h0<v>": 1.0, "a0.h0->logits": 1.0}))
    assert [name for name, inside in zip(LAYOUT.nodes, present, strict=True) if inside] == ["input", "a0.h0", "logits"]


def test_jaccard_is_the_shared_over_the_joint_edges() -> None:
    first = topology.membership(circuit({"input->m0": 1.0, "m0->logits": 1.0, "input->logits": 1.0}))
    second = topology.membership(circuit({"input->m0": 9.0, "m0->logits": -1.0, "input->m1": 1.0, "m1->logits": 1.0}))
    assert topology.jaccard(first, second) == pytest.approx(2 / 5)
    assert topology.jaccard(first, first) == 1


def test_two_empty_circuits_are_alike() -> None:
    nothing = np.zeros(4, dtype=bool)
    assert topology.jaccard(nothing, nothing) == 1
    assert topology.similarity_map(np.stack([nothing, nothing])).tolist() == [[1, 1], [1, 1]]


def test_the_similarity_map_is_the_jaccard_similarity_of_every_pair() -> None:
    members = np.random.default_rng(0).random((6, 40)) < 0.4
    pairs = topology.jaccard(members[:, None], members[None, :])
    assert topology.similarity_map(members) == pytest.approx(pairs)


def test_activation_ratio_is_a_layers_edges_in_the_circuit_over_all_that_leave_it() -> None:
    graph = circuit({"input->m0": 1.0, "m0->logits": 1.0, "a0.h0->m1": 1.0, "m1->logits": 1.0})
    assert topology.edge_activation_ratio(graph) == pytest.approx([3 / (9 + 6 + 5), 1 / (2 + 1)])


def test_the_whole_graph_is_activated_in_every_layer() -> None:
    layout = Layout(3, 2, parallel=True)
    whole = circuit({}, layout).with_edges(layout.real_edges)
    assert topology.edge_activation_ratio(whole) == pytest.approx([1, 1, 1])
    assert topology.membership(whole).sum() == layout.n_edges
