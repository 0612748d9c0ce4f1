"""The computation graph: which node reads which, as index matrices rather than objects.

Sources, in order: `input`, then per layer its heads `a{l}.h{i}` and its MLP `m{l}`: u = 1 + L(H + 1) of them. Targets,
in order: per layer the H query inputs, H key inputs, H value inputs and the MLP input, then `logits`:
v = L(3H + 1) + 1. A target of layer l reads every source of earlier layers; an MLP also reads its own layer's heads
unless attention and MLP are parallel. Scores and membership are matrices [u, v]; names appear only in files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

_INPUT_KINDS = "qkv"


@dataclass(frozen=True)
class Layout:
    """The shape of a model's graph.

    Attributes:
        n_layers, n_heads: L and H (query heads: under grouped queries each has its own key and value input).
        parallel: attention and MLP read the same residual.
    """

    n_layers: int
    n_heads: int
    parallel: bool = False

    def __post_init__(self) -> None:
        if self.n_layers < 1 or self.n_heads < 1:
            raise ValueError(f"a graph needs layers and heads, not {self.n_layers} and {self.n_heads}")

    @property
    def n_sources(self) -> int:
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_targets(self) -> int:
        return self.n_layers * (3 * self.n_heads + 1) + 1

    def head_sources(self, layer: int) -> slice:
        """Rows of a layer's heads."""
        start = 1 + layer * (self.n_heads + 1)
        return slice(start, start + self.n_heads)

    def mlp_source(self, layer: int) -> int:
        """Row of a layer's MLP."""
        return 1 + layer * (self.n_heads + 1) + self.n_heads

    def head_targets(self, layer: int) -> slice:
        """Columns of a layer's query, key and value inputs, in that order (3H)."""
        start = layer * (3 * self.n_heads + 1)
        return slice(start, start + 3 * self.n_heads)

    def mlp_target(self, layer: int) -> int:
        """Column of a layer's MLP input."""
        return layer * (3 * self.n_heads + 1) + 3 * self.n_heads

    @property
    def logits_target(self) -> int:
        return self.n_targets - 1

    def attention_reads(self, layer: int) -> int:
        """How many sources, from the first, a layer's heads read."""
        return 1 + layer * (self.n_heads + 1)

    def mlp_reads(self, layer: int) -> int:
        """How many sources, from the first, a layer's MLP reads."""
        return self.attention_reads(layer) + (0 if self.parallel else self.n_heads)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the rows."""
        names = ["input"]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)]
            names.append(f"m{layer}")
        return tuple(names)

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Names of the columns."""
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}<{kind}>" for kind in _INPUT_KINDS for head in range(self.n_heads)]
            names.append(f"m{layer}")
        return (*names, "logits")

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes: the sources, then `logits`."""
        return (*self.sources, "logits")

    @cached_property
    def real_edges(self) -> Tensor:
        """[u, v] True where the edge exists."""
        real = torch.zeros(self.n_sources, self.n_targets, dtype=torch.bool)
        for layer in range(self.n_layers):
            real[: self.attention_reads(layer), self.head_targets(layer)] = True
            real[: self.mlp_reads(layer), self.mlp_target(layer)] = True
        real[:, self.logits_target] = True
        return real

    @property
    def n_edges(self) -> int:
        return int(self.real_edges.sum())

    @cached_property
    def target_nodes(self) -> Tensor:
        """[v] the index in `nodes` of the node that each target belongs to."""
        index = torch.empty(self.n_targets, dtype=torch.long)
        for layer in range(self.n_layers):
            heads = torch.arange(self.n_sources)[self.head_sources(layer)]
            index[self.head_targets(layer)] = heads.repeat(3)
            index[self.mlp_target(layer)] = self.mlp_source(layer)
        index[self.logits_target] = self.n_sources
        return index

    @cached_property
    def source_layers(self) -> Tensor:
        """[u] the layer of each source; `input` counts as layer 0."""
        per_layer = torch.arange(self.n_layers).repeat_interleave(self.n_heads + 1)
        return torch.cat((torch.zeros(1, dtype=torch.long), per_layer))

    @cached_property
    def edge_names(self) -> tuple[str, ...]:
        """Names of the real edges, `source->target`, in row-major order."""
        rows, columns = self.real_edges.nonzero(as_tuple=True)
        sources, targets = self.sources, self.targets
        return tuple(f"{sources[u]}->{targets[v]}" for u, v in zip(rows.tolist(), columns.tolist(), strict=True))


@lru_cache(maxsize=8)
def layout_of(n_layers: int, n_heads: int, parallel: bool) -> Layout:
    """A shared `Layout`, so that its names are built once per process."""
    return Layout(n_layers, n_heads, parallel)


@dataclass(frozen=True)
class Graph:
    """A scored graph or a circuit.

    Attributes:
        layout: the graph's shape.
        scores: [u, v] edge scores; 0 where there is no edge.
        in_graph: [u, v] membership.
        d_model: the model's width, which graph files state.
        meta: how the graph came about (method, ig_steps, metric, number of examples, ...).
    """

    layout: Layout
    scores: Tensor
    in_graph: Tensor
    d_model: int
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (self.layout.n_sources, self.layout.n_targets)
        if tuple(self.scores.shape) != shape or tuple(self.in_graph.shape) != shape:
            raise ValueError(f"scores and membership of this layout are {shape}, not {tuple(self.scores.shape)}")

    @property
    def nodes_in_graph(self) -> Tensor:
        """[u + 1] which of `layout.nodes` have an edge in the graph; `input` and `logits` always count."""
        present = torch.zeros(self.layout.n_sources + 1, dtype=torch.bool)
        present[: self.layout.n_sources] = self.in_graph.any(1)
        present[self.layout.target_nodes[self.in_graph.any(0)]] = True
        present[0] = present[-1] = True
        return present

    @property
    def n_edges(self) -> int:
        return int(self.in_graph.sum())

    @property
    def n_nodes(self) -> int:
        """The nodes in the graph: a head is one node; `input` and `logits` count."""
        return int(self.nodes_in_graph.sum())

    def with_edges(self, in_graph: Tensor) -> Graph:
        """The same scores with another membership [u, v]."""
        return replace(self, in_graph=in_graph)

    def with_meta(self, **entries: Any) -> Graph:
        """The same graph with more said about it."""
        return replace(self, meta={**self.meta, **entries})
