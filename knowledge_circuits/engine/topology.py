"""Measures of a circuit's shape: entropy, Jaccard similarity, and the share of each layer's edges in the circuit.

All functions work on the [u, v] matrices of a graph or on stacks of membership rows. Shape letters: c circuits,
u sources, v targets, E real edges, N nodes (the sources, then `logits`), l layers.

    circuit entropy        H = -sum p ln p,  p = |score| / sum |score| over the circuit's edges (nats)
    Jaccard similarity     |A and B| / |A or B| of two circuits' edges, or of their nodes
    activation ratio       the circuit's edges whose parent lies in layer l / all real edges whose parent lies there

(Ou et al. 2025, sections 4.2 and 5.) `weighted_entropy` and `random_walk_entropy` are two further entropies of the
original code, which look at all scored edges and not at the circuit alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from knowledge_circuits.engine.graph import Graph, Layout

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def membership(graph: Graph) -> Mask:
    """Return which of the model's edges are in the circuit: the real edges in row-major order, [E]."""
    return graph.in_graph[graph.layout.real_edges].numpy()


def nodes(graph: Graph) -> Mask:
    """Return which of `layout.nodes` are in the circuit, [N]; a head is one node; `input` and `logits` always count."""
    return graph.nodes_in_graph.numpy()


def _layers(layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the layer of each source [u] (`input` in layer 0) and target [v] (`logits` after the last layer)."""
    sources = layout.source_layers.numpy()
    return sources, np.append(sources, layout.n_layers)[layout.target_nodes.numpy()]


def circuit_entropy(graph: Graph) -> float:
    """Shannon entropy (nats) of |score| normalized over the circuit's edges.

    0 where one edge carries all of it, ln(edges) where all carry the same; NaN without an edge or with zero scores.
    """
    return _entropy(graph.scores[graph.in_graph].numpy())


def weighted_entropy(graph: Graph) -> float:
    """Return the original's layer-weighted entropy (nats): edges of early layers count more.

    Each |score| is multiplied by the mean of 1 / (layer + 1) of the edge's parent and child (`input` in layer 0,
    `logits` after the last layer), over all scored edges rather than the circuit's alone, then normalized.
    """
    parents, children = _layers(graph.layout)
    weights = (1 / (parents[:, None] + 1) + 1 / (children[None, :] + 1)) / 2
    return _entropy((graph.scores.numpy() * weights)[graph.layout.real_edges.numpy()])


def random_walk_entropy(graph: Graph) -> float:
    """Return the original's random-walk entropy (nats): that of each step of a random walk, summed over the nodes.

    At every node the walk takes an outgoing edge with the softmax of the signed scores (all scored edges, not the
    circuit's alone). Scores are small beside 1, so the value mostly counts edges; it is here for comparison.
    """
    scores = np.where(graph.layout.real_edges.numpy(), graph.scores.numpy().astype(np.float64), -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return float(special.entr(weights / weights.sum(axis=1, keepdims=True)).sum())


def _entropy(scores: NDArray[Any]) -> float:
    magnitudes = np.abs(scores.astype(np.float64))
    total = magnitudes.sum()
    return float(special.entr(magnitudes / total).sum()) if total > 0 else float("nan")


def jaccard(first: Mask, second: Mask) -> Floats:
    """Jaccard similarity of membership rows, broadcast over leading axes.

    Args:
        first: [..., E] (edges) or [..., N] (nodes).
        second: the same, broadcastable.

    Returns:
        [...], between 0 and 1; the similarity of two empty sets is 1.
    """
    both = (first & second).sum(axis=-1)
    either = (first | second).sum(axis=-1)
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def similarity_map(members: Mask) -> Floats:
    """Jaccard similarity between all pairs of circuits, as one matrix product.

    Args:
        members: [c, E] or [c, N].

    Returns:
        [c, c], symmetric, with ones on the diagonal.
    """
    counts = members.astype(np.float32)
    both = (counts @ counts.T).astype(np.float64)
    sizes = members.sum(axis=1).astype(np.float64)
    either = sizes[:, None] + sizes[None, :] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def edge_activation_ratio(graph: Graph) -> Floats:
    """Return the share of the edges leaving each layer that is in the circuit, [l]; `input` counts as layer 0."""
    layers, _ = _layers(graph.layout)
    members = graph.in_graph.numpy().sum(axis=1)
    real = graph.layout.real_edges.numpy().sum(axis=1)
    return np.bincount(layers, weights=members) / np.bincount(layers, weights=real)
