"""Selection and pruning: on random graphs they agree with slow programs written from their definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.graph_files import read_graph, write_graph
from knowledge_circuits.engine.selection import greedy, prune, threshold, top_n
from knowledge_circuits.files import InputError


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    layout = Layout(draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.booleans()))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = layout.real_edges.shape
    # Few distinct scores, so that ties are common.
    scores = torch.randint(-4, 5, shape, generator=generator).double() * layout.real_edges
    membership = (torch.rand(shape, generator=generator) < draw(st.floats(0, 1))) & layout.real_edges
    return Graph(layout, scores, membership, 8)


def edges_of(graph: Graph) -> set[tuple[str, str]]:
    layout = graph.layout
    return {(layout.sources[u], layout.targets[v]) for u, v in graph.in_graph.nonzero().tolist()}


def slow_prune(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    def node(target: str) -> str:
        return target.split("<")[0]

    while True:
        read = {source for source, _ in edges}
        fed = {node(target) for _, target in edges}
        kept = {
            (source, target)
            for source, target in edges
            if (source == "input" or source in fed) and (target == "logits" or node(target) in read)
        }
        if kept == edges:
            return edges
        edges = kept


@given(graphs())
def test_pruning_reaches_the_fixed_point_of_its_definition(graph: Graph) -> None:
    assert edges_of(prune(graph)) == slow_prune(edges_of(graph))


@given(graphs())
def test_pruning_is_idempotent_and_never_adds(graph: Graph) -> None:
    once = prune(graph)
    assert torch.equal(prune(once).in_graph, once.in_graph)
    assert not bool((once.in_graph & ~graph.in_graph).any())
    assert torch.equal(once.scores, graph.scores)


@given(graphs(), st.floats(0, 1))
def test_top_n_takes_the_largest_and_breaks_ties_in_row_major_order(graph: Graph, share: float) -> None:
    n = round(share * graph.layout.n_edges)
    places = graph.layout.real_edges.nonzero().tolist()
    ordered = sorted(places, key=lambda place: -abs(float(graph.scores[tuple(place)])))
    assert top_n(graph, n).in_graph.nonzero().tolist() == sorted(ordered[:n])


@given(graphs(), st.integers(0, 4))
def test_threshold_takes_what_reaches_it(graph: Graph, least: int) -> None:
    chosen = threshold(graph, least)
    for u, v in graph.layout.real_edges.nonzero().tolist():
        assert bool(chosen.in_graph[u, v]) == (abs(float(graph.scores[u, v])) >= least)


def slow_greedy(graph: Graph, n: int) -> set[tuple[int, int]]:
    layout = graph.layout
    nodes, chosen = {layout.n_sources}, []
    for _ in range(n):
        open_edges = [
            (u, v)
            for u, v in layout.real_edges.nonzero().tolist()
            if (u, v) not in chosen and int(layout.target_nodes[v]) in nodes
        ]
        if not open_edges:
            break
        best = min(open_edges, key=lambda edge: (-abs(float(graph.scores[edge])), edge))
        chosen.append(best)
        nodes.add(best[0])
    return set(chosen)


@given(graphs(), st.integers(0, 12))
def test_greedy_grows_from_the_logits(graph: Graph, n: int) -> None:
    n = min(n, graph.layout.n_edges)
    assert {tuple(edge) for edge in greedy(graph, n).in_graph.nonzero().tolist()} == slow_greedy(graph, n)


@pytest.mark.parametrize("select", [top_n, greedy])
@pytest.mark.parametrize("n", [-1, 10_000])
def test_a_circuit_larger_than_the_graph_is_refused(select, n: int) -> None:  # type: ignore[no-untyped-def]
    layout = Layout(1, 1)
    with pytest.raises(ValueError, match="edges from a graph of"):
        select(Graph(layout, torch.zeros(layout.real_edges.shape), layout.real_edges, 8), n)


def of_scores(**scores: float) -> Graph:
    """A graph of one layer and one head, all scores 0 but those of the given targets that the embedding feeds."""
    layout = Layout(1, 1)
    matrix = torch.zeros(layout.real_edges.shape)
    for target, score in scores.items():
        matrix[0, layout.targets.index(target)] = score
    return Graph(layout, matrix, layout.real_edges, 8)


def test_edges_of_score_zero_fill_up_a_circuit() -> None:
    scored = of_scores(m0=2.0, logits=-1.0)
    assert edges_of(top_n(scored, 4)) > edges_of(top_n(scored, 2)) == {("input", "m0"), ("input", "logits")}
    assert top_n(scored, 4).n_edges == greedy(scored, 4).n_edges == 4


@pytest.mark.parametrize("select", [top_n, greedy, threshold])
def test_nothing_is_selected_by_a_score_that_is_not_a_number(select) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="a score is NaN"):
        select(of_scores(m0=float("nan"), logits=1.0), 1)


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_edges_whose_scores_a_circuits_file_leaves_out_are_not_selected(tmp_path: Path, suffix: str) -> None:
    write_graph(path := tmp_path / f"circuit{suffix}", top_n(of_scores(m0=2.0, logits=-1.0), 2), edges="circuit")
    read = read_graph(path)
    assert edges_of(top_n(top_n(read, 1), 2)) == edges_of(read)
    for select, n in ((top_n, 3), (greedy, 3), (threshold, 0)):
        with pytest.raises(InputError, match="holds its circuit's edges only"):
            select(read, n)
    with pytest.raises(InputError, match="holds its circuit's edges only"):
        top_n(read, 2, absolute=False)  # an unknown score may be above -1
