"""The computation graph: which node reads which, as index matrices rather than objects.

Sources, in order: `input`, then per layer its heads `a{l}.h{i}` and its MLP `m{l}`: u = 1 + L(H + 1) of them. Targets,
in order: per layer the H query inputs, H key inputs, H value inputs and the MLP input, then `logits`:
v = L(3H + 1) + 1. A target of layer l reads every source of earlier layers; an MLP also reads its own layer's heads
unless attention and MLP are parallel. Scores and membership are matrices [u, v]; names appear only in files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from knowledge_circuits.files import InputError, atomic_write

if TYPE_CHECKING:
    import networkx
    import pandas

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
        """Return how many sources, from the first, a layer's heads read."""
        return 1 + layer * (self.n_heads + 1)

    def mlp_reads(self, layer: int) -> int:
        """Return how many sources, from the first, a layer's MLP reads."""
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

    def __str__(self) -> str:
        return f"{self.n_layers} layers x {self.n_heads} heads" + (", parallel" if self.parallel else "")

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
        """Names of the real edges, as `names_of` gives them."""
        return self.names_of(self.real_edges)

    def names_of(self, edges: Tensor) -> tuple[str, ...]:
        """Return the names `source->target` of edges [u, v], in row-major order."""
        rows, columns = edges.nonzero(as_tuple=True)
        sources, targets = self.sources, self.targets
        return tuple(f"{sources[u]}->{targets[v]}" for u, v in zip(rows.tolist(), columns.tolist(), strict=True))

    def matrix(self, values: Tensor) -> Tensor:
        """Return values [..., E] of the real edges, in row-major order, as [..., u, v] that is 0 elsewhere."""
        matrix = values.new_zeros(*values.shape[:-1], self.n_sources, self.n_targets)
        matrix[..., self.real_edges] = values
        return matrix


@lru_cache(maxsize=8)
def layout_of(n_layers: int, n_heads: int, parallel: bool) -> Layout:
    """Return a shared `Layout`, so that its names are built once per process."""
    return Layout(n_layers, n_heads, parallel)


@dataclass(frozen=True, repr=False)
class Graph:
    """A scored graph or a circuit: the model's edges, their scores, and which of them are in the graph.

    `a & b` has the edges that are in both and `a - b` those that are in `a` only, with the scores of `a`.

    Attributes:
        layout: the graph's shape.
        scores: [u, v] edge scores; 0 where there is no edge.
        in_graph: [u, v] membership.
        d_model: the model's width, which graph files state.
        meta: how the graph came about (method, ig_steps, metric, number of examples, ...).
        prompt_scores: [rows, u, v] scores per prompt or weighted sums of them (`attribute(per_prompt=...)`), or None.
        span_scores: [spans, u, v] the scores divided by token span (`attribute(by_span=True)`), or None.
        spans: the spans' names.
        inclusion: [u, v] the share of resamples of the prompts whose circuit has the edge (`stability`), or None.
    """

    layout: Layout
    scores: Tensor
    in_graph: Tensor
    d_model: int
    meta: dict[str, Any] = field(default_factory=dict)
    prompt_scores: Tensor | None = None
    span_scores: Tensor | None = None
    spans: tuple[str, ...] = ()
    inclusion: Tensor | None = None

    def __post_init__(self) -> None:
        shape = (self.layout.n_sources, self.layout.n_targets)
        if tuple(self.scores.shape) != shape or tuple(self.in_graph.shape) != shape:
            raise ValueError(f"scores and membership of this layout are {shape}, not {tuple(self.scores.shape)}")

    def __repr__(self) -> str:
        method = f", {self.meta['method']}" if "method" in self.meta else ""
        return (
            f"Graph({self.layout}: {self.n_edges:,} of {self.layout.n_edges:,} edges, {self.n_nodes:,} of"
            f" {len(self.layout.nodes):,} nodes{method})"
        )

    def __and__(self, other: Graph) -> Graph:
        return self.with_edges(self.in_graph & self._same_shape(other).in_graph)

    def __sub__(self, other: Graph) -> Graph:
        return self.with_edges(self.in_graph & ~self._same_shape(other).in_graph)

    def jaccard(self, other: Graph) -> float:
        """Return the edges in both graphs over those in either; 1 where neither has any.

        Raises:
            InputError: the other graph is of a model of another shape.
        """
        either = int((self.in_graph | self._same_shape(other).in_graph).sum())
        return int((self.in_graph & other.in_graph).sum()) / either if either else 1.0

    def _same_shape(self, other: Graph) -> Graph:
        if other.layout != self.layout:
            raise InputError(f"graphs of different models: {self.layout}, and {other.layout}")
        return other

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
        """Return the same scores with another membership [u, v], without the scores per prompt, which may be large."""
        return replace(self, in_graph=in_graph, prompt_scores=None)

    def with_meta(self, **entries: Any) -> Graph:
        """Return the same graph with more said about it."""
        return replace(self, meta={**self.meta, **entries})

    def edges(self) -> pandas.DataFrame:
        """Return all of the model's edges as a table: source, target, score, in_graph; one row per edge."""
        return self._table(self.layout.real_edges)

    def top(self, k: int) -> pandas.DataFrame:
        """Return the k edges of largest |score| among those in the graph, strongest first, as in `edges`."""
        table = self._table(self.in_graph)
        return table.loc[table["score"].abs().sort_values(ascending=False, kind="stable").index[:k]]

    def _table(self, chosen: Tensor) -> pandas.DataFrame:
        """Return the chosen edges [u, v] as a table in row-major order."""
        import pandas

        rows, columns = chosen.nonzero(as_tuple=True)
        return pandas.DataFrame(
            {
                "source": np.array(self.layout.sources, dtype=object)[rows.numpy()],
                "target": np.array(self.layout.targets, dtype=object)[columns.numpy()],
                "score": self.scores[chosen].numpy(),
                "in_graph": self.in_graph[chosen].numpy(),
            }
        )

    def to_csv(self, path: str | Path) -> None:
        """Write the table of `edges` as CSV, atomically."""
        with atomic_write(path) as file:
            self.edges().to_csv(file, index=False)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """Return the nodes and edges in the graph as a networkx graph.

        An edge's key is the input that it feeds: q, k or v of a head, "" of an MLP or the logits. Its attributes are
        `score` and `target`, the target's name.
        """
        import networkx

        graph = networkx.MultiDiGraph(**self.meta)
        graph.add_nodes_from(compress(self.layout.nodes, self.nodes_in_graph.tolist()))
        for source, target, score in self._named_edges():
            node, _, kind = target.removesuffix(">").partition("<")
            graph.add_edge(source, node, key=kind, score=score, target=target)
        return graph

    def to_dot(self) -> str:
        """Return the nodes and edges in the graph in Graphviz's language.

        Negative scores are dashed; a line's width grows with the square root of |score|.
        """
        largest = float(self.scores[self.in_graph].abs().max()) if self.n_edges else 0.0
        lines = ["digraph circuit {", "  rankdir=BT;", "  node [shape=box];"]
        lines += [f'  "{name}";' for name in compress(self.layout.nodes, self.nodes_in_graph.tolist())]
        for source, target, score in self._named_edges():
            node, _, kind = target.removesuffix(">").partition("<")
            width = 0.3 + 3 * (abs(score) / largest) ** 0.5 if largest else 0.3
            style = "dashed" if score < 0 else "solid"
            lines.append(f'  "{source}" -> "{node}" [label="{kind}", penwidth={width:.2f}, style={style}];')
        return "\n".join([*lines, "}"]) + "\n"

    def _named_edges(self) -> list[tuple[str, str, float]]:
        """Source, target and score of the edges in the graph, in row-major order."""
        rows, columns = (part.tolist() for part in self.in_graph.nonzero(as_tuple=True))
        sources, targets, scores = self.layout.sources, self.layout.targets, self.scores[self.in_graph].tolist()
        return [(sources[u], targets[v], score) for u, v, score in zip(rows, columns, scores, strict=True)]
