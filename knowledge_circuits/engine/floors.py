"""What a measure of circuits shows where there is nothing to see: noise floors, chance levels, random circuits.

    split halves     a group's prompts in two halves, several times; the circuits of two halves in the same weights
                     differ by the noise of the prompts alone
    turnover         1 - edge Jaccard between the circuits of one half before and of the other half after; its floor is
                     the same between two halves at one checkpoint, so both sides have the same noise
    chance of Hit@10 the ten commonest first tokens answer this share of a group; ten of all first tokens this one
    random circuits  as many edges drawn at random, pruned

All are functions from arrays to numbers; attribution per prompt is the engine's. Shape letters: b prompts, s splits,
E real edges, l layers, u sources, v targets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special

from knowledge_circuits.engine import topology
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.topology import Mask

#: How often a group's prompts are halved, and how many random circuits are averaged.
SPLITS = 5
#: Sizes, as shares of all edges, at which faithfulness is measured to find the edges needed for 0.9.
SIZE_SHARES = (0.01, 0.02, 0.04, 0.08, 0.15, 0.4, 0.7)


def halves(prompts: int, seed: int = 0, splits: int = SPLITS) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split prompts into two halves of equal size, several times (with an odd number one prompt is left out).

    Args:
        prompts: how many, at least 2.

    Returns:
        Per split the indices of either half, ascending; the same for the same seed, so that checkpoints share them.
    """
    if prompts < 2:
        raise ValueError(f"{prompts} prompts have no two halves")
    generator, size = np.random.default_rng(seed), prompts // 2
    orders = [generator.permutation(prompts) for _ in range(splits)]
    return [(np.sort(order[:size]), np.sort(order[size : 2 * size])) for order in orders]


def split_half_jaccard(members: Mask) -> float:
    """Edge Jaccard of the circuits of two halves of the prompts, mean over the splits.

    Args:
        members: [s, 2, E] membership of the circuits that the halves' mean scores give.
    """
    return float(topology.jaccard(members[:, 0], members[:, 1]).mean())


def turnover(before: Mask, after: Mask) -> tuple[float, float]:
    """Return how much a circuit changed between two checkpoints, and how much the prompts' noise alone would show.

    Turnover compares one half's circuit before with the other half's circuit after, in both directions. The floor
    compares the two halves' circuits at one checkpoint, mean of before and after. Without change both are equal on
    average, whatever the number of prompts.

    Args:
        before, after: [s, 2, E] membership of the halves' circuits, of the same splits.

    Returns:
        turnover and turnover_floor, each 1 - edge Jaccard, between 0 and 1.
    """
    across = (topology.jaccard(before[:, 0], after[:, 1]) + topology.jaccard(before[:, 1], after[:, 0])) / 2
    within = (split_half_jaccard(before) + split_half_jaccard(after)) / 2
    return 1 - float(across.mean()), 1 - within


def layer_centroid(graph: Graph) -> float:
    """Return the mean layer of a circuit's edges, by the layer of the edge's source (`input` counts as layer 0).

    NaN for an empty circuit. With as many edges in every circuit, a rise says that edges of deeper layers replace those
    of shallower ones.
    """
    count = graph.in_graph.sum(dim=1).double().cpu().numpy()
    return float(np.average(graph.layout.source_layers.numpy(), weights=count)) if count.sum() else float("nan")


def edges_for(edges: ArrayLike, faithfulness: ArrayLike, level: float = 0.9) -> float:
    """Return the number of edges from which on a circuit's faithfulness is at least `level`.

    Between two measured sizes the logarithm of the size is interpolated. A size that reaches the level before a larger
    one that does not is not enough.

    Args:
        edges: [n] circuit sizes, positive, ascending.
        faithfulness: [n].

    Returns:
        The size; NaN where the largest circuit does not reach the level; the smallest size where all do.
    """
    sizes, values = np.asarray(edges, dtype=float), np.asarray(faithfulness, dtype=float)
    below = np.flatnonzero(~(values >= level))
    if len(below) and below[-1] == len(values) - 1:
        return float("nan")
    if not len(below):
        return float(sizes[0])
    last = below[-1]
    share = (level - values[last]) / (values[last + 1] - values[last]) if np.isfinite(values[last]) else 1.0
    return float(np.exp(np.log(sizes[last]) + share * (np.log(sizes[last + 1]) - np.log(sizes[last]))))


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of independent values with its t interval, for clean minus corrupted over a group's prompts.

    Args:
        values: [b].

    Returns:
        mean, low, high; infinite ends for a single value.
    """
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return float(sample.mean()), -np.inf, np.inf
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    half = error * special.stdtrit(len(sample) - 1, (1 + level) / 2)
    return float(sample.mean()), float(sample.mean() - half), float(sample.mean() + half)


def chance_of_hits(first_tokens: Sequence[int], ranks: int = 10) -> tuple[float, float]:
    """Hit@10 without any knowledge of the person.

    Args:
        first_tokens: [b] the first token of each answer of a group (one task, type and band).
        ranks: 10 for Hit@10.

    Returns:
        The share of the group that the ten commonest of its first tokens answer, and that of ten tokens drawn from its
        first tokens with equal chance.
    """
    counts = np.unique(np.asarray(first_tokens), return_counts=True)[1]
    commonest = np.sort(counts)[::-1][:ranks].sum() / counts.sum()
    return float(commonest), min(1.0, ranks / len(counts))


def random_circuits(layout: Layout, edges: int, d_model: int, seed: int = 0, count: int = SPLITS) -> list[Graph]:
    """Circuits of random edges that have, after pruning, as nearly as possible a given number of edges.

    Args:
        layout: the model's graph.
        edges: the size of the circuit that they are compared with, after pruning.
    """
    generator = torch.Generator().manual_seed(seed)
    return [_random_circuit(layout, edges, d_model, generator) for _ in range(count)]


def _random_circuit(layout: Layout, edges: int, d_model: int, generator: torch.Generator) -> Graph:
    """Draw an order of the edges; take the shortest beginning of it that has the wanted edges after pruning."""
    scores = torch.rand(layout.n_sources, layout.n_targets, generator=generator) * layout.real_edges
    graph = Graph(layout, scores, torch.zeros_like(layout.real_edges), d_model)

    def circuit(drawn: int) -> Graph:
        return prune(top_n(graph, drawn))

    least = min(edges, layout.n_edges)
    return circuit(bisect_left(range(layout.n_edges), edges, least, key=lambda drawn: circuit(drawn).n_edges))
