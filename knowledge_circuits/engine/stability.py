"""How stable a circuit is under the choice of prompts, from per-prompt scores of one attribution pass.

    graph = attribute(decoder, pairs, per_prompt=True)
    result = stability(graph.layout, resampled(graph.prompt_scores, resampling), n, resampling)

Prompts are divided into two halves several times, and resampled with replacement (bootstrap). Each half and each
resample gives scores, whose top n edges are compared. Where memory does not hold the scores of all prompts,
`attribute(..., per_prompt=resampling.weights(len(pairs)))` accumulates the same sums on the way. `mean_resampled` is
the same for an ensemble: the mean of its methods' scores in each half and resample. `Details` is what a file keeps of
both, and of scores by token span.

Shapes: b prompts, r halves and resamples, u sources, v targets, E real edges in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy  # scipy.stats, which takes 0.7 s to import, is loaded when it is used
import torch
from torch import Tensor

from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.selection import mean_scores
from knowledge_circuits.engine.topology import jaccard
from knowledge_circuits.files import InputError


@dataclass(frozen=True)
class Resampling:
    """How prompts are resampled.

    Attributes:
        splits: random divisions into two halves.
        resamples: bootstrap resamples.
        seed: of both.
    """

    splits: int = 5
    resamples: int = 100
    seed: int = 0

    def weights(self, prompts: int) -> Tensor:
        """Return the weight of each prompt in the mean of each half, then of each resample: [2 splits + resamples, b].

        With an odd number of prompts the second half has one more.

        Raises:
            InputError: fewer than two prompts, which have no halves.
        """
        if prompts < 2:
            raise InputError(f"stability takes at least two prompts, not {prompts}")
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.zeros(2 * self.splits + self.resamples, prompts, dtype=torch.float64)
        for split in range(self.splits):
            order = torch.randperm(prompts, generator=generator)
            for half, members in enumerate((order[: prompts // 2], order[prompts // 2 :])):
                rows[2 * split + half, members] = 1 / len(members)
        drawn = torch.randint(prompts, (self.resamples, prompts), generator=generator)
        rows[2 * self.splits :].scatter_add_(1, drawn, torch.full(drawn.shape, 1 / prompts, dtype=rows.dtype))
        return rows


@dataclass(frozen=True)
class Stability:
    """What `stability` measures.

    Attributes:
        split_half_jaccard: [splits] Jaccard similarity of the two halves' top n edges.
        rank_correlation: [splits] Spearman correlation of the two halves' scores as they are ranked for selection.
        inclusion: [u, v] the share of resamples whose top n has the edge.
        same_sign: [u, v] the share of resamples in which the edge's score has the sign of the resamples' mean.
    """

    split_half_jaccard: Tensor
    rank_correlation: Tensor
    inclusion: Tensor
    same_sign: Tensor


@dataclass(frozen=True)
class Details:
    """What is known of a scored graph beside its scores, for one circuit size.

    Attributes:
        topn: edges of the circuits whose stability was measured; 0 if none was.
        stability: under the choice of prompts, or None.
        span_scores: [spans, u, v] the scores divided by token span, or None.
        spans: the spans' names.
    """

    topn: int = 0
    stability: Stability | None = None
    span_scores: Tensor | None = None
    spans: tuple[str, ...] = ()

    @classmethod
    def of(cls, graph: Graph, topn: int = 0, resampling: Resampling | None = None) -> Details:
        """Return a graph's details.

        Args:
            graph: with span scores or not; with `topn`, `prompt_scores` accumulated with `resampling.weights`.
            topn: edges of a circuit; 0 measures no stability.
            resampling: how prompts were resampled.
        """
        measured = None
        if topn and graph.prompt_scores is not None:
            measured = stability(graph.layout, graph.prompt_scores, topn, resampling)
        return cls(topn if measured else 0, measured, graph.span_scores, graph.spans)

    def attached(self, graph: Graph) -> Graph:
        """Return the graph, or a circuit of it, with its span scores and the inclusion frequency of its edges."""
        inclusion = None if self.stability is None else self.stability.inclusion
        return replace(graph, span_scores=self.span_scores, spans=self.spans, inclusion=inclusion)


def stability(
    layout: Layout, scores: Tensor, n: int, resampling: Resampling | None = None, absolute: bool = True
) -> Stability:
    """Measure how stable scores and the top n edges (before pruning) are under the choice of prompts.

    Edges of score 0 are never among the top n, so a half or resample whose scores are all 0 has no edges.

    Args:
        scores: [2 splits + resamples, u, v] from `resampled`, or `Graph.prompt_scores` accumulated with
            `resampling.weights`.
        n: edges of a circuit.
        resampling: how prompts are resampled; must be the one whose weights were accumulated.
        absolute: rank by |score|, as `selection.top_n`.
    """
    resampling = resampling or Resampling()
    flat = scores[:, layout.real_edges]  # [r, E]
    ranked = flat.abs() if absolute else flat
    order = ranked.argsort(dim=1, descending=True, stable=True)
    members = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, order[:, :n], True) & (flat != 0)
    halves, rest = 2 * resampling.splits, slice(2 * resampling.splits, None)
    first, second = members[:halves:2].numpy(), members[1:halves:2].numpy()
    correlations = [
        scipy.stats.spearmanr(one.numpy(), other.numpy()).statistic
        for one, other in zip(ranked[:halves:2], ranked[1:halves:2], strict=True)
    ]
    signs = flat[rest].sign()
    same_sign = (signs == flat[rest].mean(0).sign()).double().mean(0)
    return Stability(
        split_half_jaccard=torch.from_numpy(np.asarray(jaccard(first, second))),
        rank_correlation=torch.tensor(correlations, dtype=torch.float64),
        inclusion=layout.matrix(members[rest].double().mean(0)),
        same_sign=layout.matrix(same_sign),
    )


def resampled(prompt_scores: Tensor, resampling: Resampling) -> Tensor:
    """Return the mean scores [2 splits + resamples, u, v] of halves and resamples, from all prompts' [b, u, v]."""
    weights = resampling.weights(len(prompt_scores)).to(prompt_scores.dtype)
    return torch.tensordot(weights, prompt_scores, 1)


def mean_resampled(graphs: Sequence[Graph]) -> Graph:
    """Return the mean of several methods' scores with that of each half and resample of the prompts.

    Each half and resample is averaged as `selection.mean_scores` averages the scores of all prompts, with its own
    scales. Where a method's scores are all 0 in a resample, which few prompts can give, they stay 0.

    Args:
        graphs: of the same prompts, each with the `prompt_scores` [r, u, v] of the same halves and resamples.

    Raises:
        InputError: as `mean_scores`, or a graph without its resamples.
    """
    mean, rows = mean_scores(graphs), []
    for graph in graphs:
        if graph.prompt_scores is None:
            raise InputError("the stability of a mean takes each method's resampled scores; score with per_prompt")
        scale = graph.prompt_scores[:, mean.layout.real_edges].abs().mean(1)
        rows.append(graph.prompt_scores / torch.where(scale > 0, scale, 1)[:, None, None])
    return replace(mean, prompt_scores=torch.stack(rows).mean(0))


def keep_stable_signs(graph: Graph, stability: Stability, least: float) -> Graph:
    """Return the graph without the edges whose sign fewer than the share `least` of the resamples keep."""
    return graph.with_edges(graph.in_graph & (stability.same_sign >= least))
