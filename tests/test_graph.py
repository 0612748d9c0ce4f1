"""The computation graph's shape: counts, names and who reads whom."""

from __future__ import annotations

import pytest
import torch

from knowledge_circuits.engine.graph import Graph, Layout


@pytest.mark.parametrize(
    ("name", "layout", "edges"),
    [
        ("GPT-2 small", Layout(12, 12), 32_491),
        ("GPT-2 medium", Layout(24, 16), 231_877),
        ("TinyLlama", Layout(22, 32), 742_996),
        ("Phi-1.5", Layout(24, 32, parallel=True), 886_597),
        ("nano", Layout(6, 5), 1_603),
    ],
)
def test_the_papers_models_have_as_many_edges_as_it_says(name: str, layout: Layout, edges: int) -> None:
    assert layout.n_edges == edges


def test_names_stand_in_the_order_of_the_matrices() -> None:
    layout = Layout(2, 2)
    assert layout.sources == ("input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
    assert layout.targets[:7] == ("a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0")
    assert layout.targets[-1] == "logits"
    assert (layout.n_sources, layout.n_targets) == (7, 15)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_target_reads_all_earlier_sources_and_an_mlp_its_own_layers_heads_unless_parallel(parallel: bool) -> None:
    layout = Layout(2, 2, parallel)
    read = {target: set() for target in layout.targets}
    for name in layout.edge_names:
        source, target = name.split("->")
        read[target].add(source)
    assert read["a0.h1<k>"] == {"input"}
    assert read["m0"] == ({"input"} if parallel else {"input", "a0.h0", "a0.h1"})
    assert read["a1.h0<v>"] == {"input", "a0.h0", "a0.h1", "m0"}
    assert read["logits"] == set(layout.sources)


def test_a_head_is_one_node_and_input_and_logits_always_count() -> None:
    layout = Layout(1, 2)
    membership = torch.zeros_like(layout.real_edges)
    empty = Graph(layout, torch.zeros(membership.shape), membership, 4)
    assert (empty.n_nodes, empty.n_edges) == (2, 0)
    for target in ("a0.h1<q>", "a0.h1<k>", "a0.h1<v>"):
        membership[0, layout.targets.index(target)] = True
    membership[2, layout.logits_target] = True
    circuit = empty.with_edges(membership)
    assert (circuit.n_nodes, circuit.n_edges) == (3, 4)
    assert circuit.nodes_in_graph.tolist() == [True, False, True, False, True]


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="of this layout"):
        Graph(Layout(1, 2), torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.bool), 4)
    with pytest.raises(ValueError, match="needs layers and heads"):
        Layout(0, 2)
