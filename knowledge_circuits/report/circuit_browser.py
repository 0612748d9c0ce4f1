"""The data behind the report's interactive circuits: every group's circuit at every epoch, a few hundred bytes each.

A page shows which nodes are in a circuit, how much of the circuit's effect passes through each, and the strongest
edges. `CircuitBrowser.add` takes circuits one at a time (as `read_circuits` reads them) and keeps only that:

    node strength    sum of |score| over the circuit's edges that touch the node / the largest such sum
    nodes            one byte per node: 0 not in the circuit, else 1 + round(254 sqrt(strength))
    edges            the strongest, strongest first: source, target, 32767 x score / largest |score|, 32767 x inclusion
                     (-1 where the stability was not measured), two bytes each

of the whole prompt and, where scores by token span were kept, of each span, so that memory and page stay small whatever
the model's size (GPT-2 medium: 231,877 edges become 60). `page_data` is JSON with these bytes in base64
(little-endian); templates/circuit_browser.js draws it.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knowledge_circuits.analysis.circuit_settings import group_columns, names_of_groups
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.figures.circuit_graph import strongest_edges
from knowledge_circuits.study import AnyGroup, Group, groups

#: Edges drawn of each circuit at most.
MOST_EDGES = 60
#: Of all circuits together in a page; beyond it epochs are left out evenly.
MOST_BYTES = 1_500_000


@dataclass(frozen=True)
class CircuitPicture:
    """What a page shows of one circuit.

    Attributes:
        step, epoch: the checkpoint.
        edges, nodes: how many the circuit has.
        node_bytes: [N] uint8, see the module.
        edge_numbers: [m, 4] int16: source, target (both to be read as unsigned), score, inclusion.
        spans: node_bytes and edge_numbers of each token span by its name.
    """

    step: int
    epoch: float
    edges: int
    nodes: int
    node_bytes: NDArray[np.uint8]
    edge_numbers: NDArray[np.int16]
    spans: dict[str, tuple[NDArray[np.uint8], NDArray[np.int16]]] = field(default_factory=dict)


def node_strengths(graph: Graph) -> NDArray[np.float64]:
    """Sum of |score| over the circuit's edges that leave or enter each of `layout.nodes`, over the largest sum, [N]."""
    weights = (graph.scores.abs() * graph.in_graph).double().numpy()
    total = np.zeros(graph.layout.n_sources + 1)
    total[:-1] = weights.sum(axis=1)
    np.add.at(total, graph.layout.target_nodes.numpy(), weights.sum(axis=0))
    return total / total.max() if total.max() > 0 else total


def picture(graph: Graph, step: int, epoch: float) -> CircuitPicture:
    """Keep of a circuit what a page shows."""
    by_span = graph.span_scores if graph.span_scores is not None else ()
    parts = {name: _packed(replace(graph, scores=scores)) for name, scores in zip(graph.spans, by_span, strict=True)}
    return CircuitPicture(step, epoch, graph.n_edges, graph.n_nodes, *_packed(graph), parts)


def _packed(graph: Graph) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Return node_bytes and edge_numbers of a circuit's scores."""
    present = graph.nodes_in_graph.numpy()
    levels = np.where(present, 1 + np.round(254 * np.sqrt(node_strengths(graph))), 0).astype(np.uint8)
    sources, targets = strongest_edges(graph, MOST_EDGES).T
    scores = graph.scores.double().numpy()[sources, targets]
    largest = np.abs(scores).max(initial=0.0) or 1.0
    known = None if graph.inclusion is None else graph.inclusion.numpy()[sources, targets]
    inclusion = np.full(len(scores), -1) if known is None else np.round(32767 * known)
    numbers = np.column_stack([sources, targets, np.round(32767 * scores / largest), inclusion]).astype(np.int64)
    return levels, numbers.astype(np.int16)


@dataclass
class CircuitBrowser:
    """Collects each group's circuits for a page, in the order in which they come; the first tells the layout."""

    pictures: dict[AnyGroup, list[CircuitPicture]] = field(default_factory=dict)
    layout: Layout | None = None

    def add(self, step: int, epoch: float, group: AnyGroup, graph: Graph) -> None:
        """Take one circuit (the signature of `run_circuits.Visitor`)."""
        if 1 + graph.layout.n_sources >= 1 << 16 or graph.layout.n_targets >= 1 << 16:
            raise ValueError(f"a page's circuits have fewer than 65,536 inputs, not {graph.layout.n_targets:,}")
        self.layout = self.layout or graph.layout
        self.pictures.setdefault(group, []).append(picture(graph, step, epoch))

    def shown_steps(self, most_bytes: int = MOST_BYTES) -> list[int]:
        """The checkpoints that fit in a page: all, or evenly chosen ones with the first and the last."""
        steps = sorted({shown.step for shown in self._all()})
        size = max((_base64_size(shown) for shown in self._all()), default=0) * len(self.pictures)
        room = max(2, most_bytes // size) if size else len(steps)
        if len(steps) <= room:
            return steps
        return [steps[round(index)] for index in np.linspace(0, len(steps) - 1, room)]

    def page_data(
        self,
        circuits: pd.DataFrame | None,
        results: pd.DataFrame,
        facts: pd.DataFrame | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> dict[str, Any]:
        """Everything for the page's script.

        Args:
            circuits: `Circuits.table`, for the entropies; None: no circuits.
            results: `circuit_tables.results`, for the faithfulness.
            facts: `circuit_tables.fact_circuits`, for both of groups of one's own facts; None: there are none.
            most_bytes: as MOST_BYTES.

        Returns:
            layers, heads, omitted (how many checkpoints were left out), spans (names of token spans) and groups: a
            list of task, type (of one's own facts: the group's name), symbol, band (of one's own facts: "") and rows of
            [step, epoch, edges, nodes, entropy, faithfulness, nodes in base64, edges in base64, [nodes, edges] of each
            span]; what is not known is null. {} without circuits.
        """
        if self.layout is None:
            return {}
        shown = set(self.shown_steps(most_bytes))
        entropy = _by_circuit(circuits, "entropy") | _by_circuit(facts, "edge_entropy")
        faithfulness = _by_circuit(results[results["circuit_step"] == results["step"]], "faithfulness")
        faithfulness |= _by_circuit(facts, "faithfulness")
        spans = list(dict.fromkeys(name for one in self._all() for name in one.spans))
        described = []
        for group in dict.fromkeys((*(one for one in groups() if one in self.pictures), *self.pictures)):
            rows = []
            for one in sorted(self.pictures[group], key=lambda each: each.step):
                if one.step in shown:
                    key = (one.step, *group_columns(group).values())
                    measured = [_number(entropy.get(key)), _number(faithfulness.get(key))]
                    packed = [_base64(part) for part in (one.node_bytes, one.edge_numbers)]
                    by_span = [
                        [_base64(part) for part in one.spans[name]] if name in one.spans else None for name in spans
                    ]
                    rows.append([one.step, round(one.epoch, 3), one.edges, one.nodes, *measured, *packed, by_span])
            symbol = group.type.symbol if isinstance(group, Group) else ""
            described.append({**_names(group), "symbol": symbol, "rows": rows})
        return {
            "layers": self.layout.n_layers,
            "heads": self.layout.n_heads,
            "omitted": len({one.step for one in self._all()}) - len(shown),
            "spans": spans,
            "groups": described,
        }

    def _all(self) -> list[CircuitPicture]:
        return [shown for pictures in self.pictures.values() for shown in pictures]


def _names(group: AnyGroup) -> dict[str, str]:
    """A group as the page's selectors name it."""
    return group_columns(group) if isinstance(group, Group) else {"task": group.task, "type": group.name, "band": ""}


def _by_circuit(table: pd.DataFrame | None, column: str) -> dict[tuple[Any, ...], float]:
    """A column by (step, task, type, band), or (step, task, group) of one's own facts."""
    return {} if table is None else table.set_index(["step", *names_of_groups(table)])[column].to_dict()


def _number(value: float | None) -> float | None:
    """A number with four significant digits; None for one that is not known."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _base64_size(shown: CircuitPicture) -> int:
    parts = [part for pair in ((shown.node_bytes, shown.edge_numbers), *shown.spans.values()) for part in pair]
    return sum(4 * math.ceil(part.nbytes / 3) + 6 for part in parts) + 60
