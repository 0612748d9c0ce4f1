"""From scores to circuits: top-n, threshold, greedy, and pruning to a fixed point.

Each function takes a scored `Graph` and returns one with fewer edges; only `mean_scores` changes scores. A selection
that is not pruned can hold edges that nothing feeds or nothing reads; `prune` removes them.

As in EAP-IG 2.0, `top_n` and `greedy` return the number of edges that is asked for: where fewer have a score other than
0, edges of score 0 fill it up, in the order of ties.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.files import InputError


def top_n(graph: Graph, n: int, absolute: bool = True) -> Graph:
    """Select the n edges of largest |score| (ties in row-major order of [sources, targets]).

    Args:
        absolute: rank by |score|; False ranks by the signed score, so that edges which help come first.

    Raises:
        ValueError: n is negative or more than the edges there are.
        InputError: a score is NaN, or the graph was read from a file without the scores of edges that would be chosen.
    """
    if not 0 <= n <= graph.layout.n_edges:
        raise ValueError(f"a circuit of {n} edges from a graph of {graph.layout.n_edges}")
    scores = graph.scores[graph.layout.real_edges]
    order = (scores.abs() if absolute else scores).argsort(descending=True, stable=True)
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[:n]] = True
    return _selected(graph, graph.layout.matrix(chosen))


def threshold(graph: Graph, least: float) -> Graph:
    """Return the edges whose |score| is at least `least`."""
    return _selected(graph, graph.layout.real_edges & (graph.scores.abs() >= least))


def greedy(graph: Graph, n: int) -> Graph:
    """Grow a circuit of up to n edges from `logits` upward.

    The next edge is always the one of largest |score| among those that lead into a node already in the circuit, so
    every edge reaches the logits (ties in row-major order).

    Raises:
        ValueError, InputError: as `top_n`.
    """
    layout = graph.layout
    if not 0 <= n <= layout.n_edges:
        raise ValueError(f"a circuit of {n} edges from a graph of {layout.n_edges}")
    columns: dict[int, list[int]] = {}
    for target, node in enumerate(layout.target_nodes.tolist()):
        columns.setdefault(node, []).append(target)
    sizes = graph.scores.abs().tolist()
    reads = layout.real_edges.sum(0).tolist()
    candidates: list[tuple[float, int, int]] = []
    opened = set()

    def open_node(node: int) -> None:
        opened.add(node)
        for target in columns.get(node, ()):
            for source in range(reads[target]):
                heapq.heappush(candidates, (-sizes[source][target], source, target))

    open_node(layout.n_sources)
    membership = torch.zeros_like(layout.real_edges)
    for _ in range(n):
        if not candidates:
            break
        _, source, target = heapq.heappop(candidates)
        membership[source, target] = True
        if source not in opened:
            open_node(source)
    return _selected(graph, membership)


def _selected(graph: Graph, membership: Tensor) -> Graph:
    """Return the graph with edges that were selected by their scores.

    Raises:
        InputError: a score is NaN, or not in the file that the graph was read from.
    """
    if bool(graph.scores.isnan().any()):
        raise InputError("a score is NaN, so edges cannot be selected by their scores")
    unknown = membership & ~graph.in_graph & (graph.scores == 0)
    if graph.meta.get("edges") == "circuit" and bool(unknown.any()):
        raise InputError(
            "edges are to be selected whose scores are not in the graph's file, which holds its circuit's edges only; "
            "select fewer, or read the file with all edges"
        )
    return graph.with_edges(membership)


def prune(graph: Graph) -> Graph:
    """Remove, to a fixed point, nodes without an incoming or without an outgoing edge, with their edges.

    `input` needs no incoming and `logits` no outgoing edge.
    """
    membership = graph.in_graph & graph.layout.real_edges
    while True:
        connected = connected_nodes(graph.layout, membership)
        remaining = membership & connected[:-1, None] & connected[graph.layout.target_nodes]
        if torch.equal(remaining, membership):
            return graph.with_edges(membership)
        membership = remaining


def mean_scores(graphs: Sequence[Graph]) -> Graph:
    """Return the whole graph with the mean of several methods' scores (an ensemble).

    Methods differ in scale, so each graph's scores are divided by their mean |score| over all edges; signs and zeros
    stay. Scores by token span are averaged alike where all graphs have those of the same spans. What the graphs' meta
    agree on is kept; what differs is listed, one value per graph.

    Raises:
        InputError: no graph, graphs of different models, a graph without the scores of all edges, or scores that are
            all 0.
    """
    if not graphs:
        raise InputError("a mean of scores takes at least one graph")
    layout, spans = graphs[0].layout, graphs[0].spans
    parts, by_span = [], []
    for graph in graphs:
        if graph.layout != layout:
            raise InputError(f"graphs of different models: {layout}, and {graph.layout}")
        if graph.meta.get("edges") == "circuit":
            raise InputError("a graph holds the scores of its circuit's edges only; a mean takes those of all edges")
        scale = graph.scores[layout.real_edges].abs().mean()
        if scale == 0:
            raise InputError("a graph's scores are all 0, so a mean with others has no scale for it")
        parts.append(graph.scores / scale)
        if graph.span_scores is not None and graph.spans == spans:
            by_span.append(graph.span_scores / scale)
    metas = [graph.meta for graph in graphs]
    keys = dict.fromkeys(key for meta in metas for key in meta)
    values = {key: [meta.get(key) for meta in metas] for key in keys}
    meta = {key: each[0] if all(value == each[0] for value in each) else each for key, each in values.items()}
    mean = Graph(layout, torch.stack(parts).mean(0), layout.real_edges.clone(), graphs[0].d_model, meta)
    if len(by_span) < len(graphs):
        return mean
    return replace(mean, span_scores=torch.stack(by_span).mean(0), spans=spans)


def connected_nodes(layout: Layout, membership: Tensor) -> Tensor:
    """Return which nodes [u + 1] have the edges of a membership [u, v] that `prune` asks for."""
    fed = torch.zeros(layout.n_sources + 1, dtype=torch.bool)
    fed[layout.target_nodes[membership.any(0)]] = True
    fed[0] = True
    read = torch.ones_like(fed)
    read[:-1] = membership.any(1)
    return fed & read
