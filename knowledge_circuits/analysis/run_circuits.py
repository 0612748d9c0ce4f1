"""All of a run's own circuits at once: their membership as two matrices beside their measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from knowledge_circuits.analysis.circuit_settings import (
    GROUP_COLUMNS,
    Kind,
    Setting,
    names_of_groups,
    own_circuit_files,
)
from knowledge_circuits.analysis.timeline import nearest_step
from knowledge_circuits.engine import topology
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.graph_files import read_details, read_graph
from knowledge_circuits.engine.stability import Details
from knowledge_circuits.files import InputError
from knowledge_circuits.runs import SIGNED, Content, Coordinates, Run
from knowledge_circuits.study import AnyGroup, Attribute, Band, Group, KnowledgeType

STABILITY_COLUMNS = ("split_half_jaccard", "rank_correlation", "inclusion")
_CIRCUIT_NUMBERS = [
    *("prompts", "edges", "nodes", "entropy", "weighted_entropy", "random_walk_entropy", "edge_jaccard"),
    *("node_jaccard", *STABILITY_COLUMNS),
]
#: Of the study's groups; those of one's own facts have FACT_GROUP_COLUMNS in place of GROUP_COLUMNS.
CIRCUIT_COLUMNS = ["step", "epoch", *GROUP_COLUMNS, *_CIRCUIT_NUMBERS]
SPAN_COLUMNS = ["step", "epoch", *GROUP_COLUMNS, "span", "share"]


@dataclass(frozen=True)
class Circuits:
    """All of a run's own circuits: membership rows in the order of `table`, without the scores.

    Attributes:
        layout: the model's graph.
        table: [n] rows, see CIRCUIT_COLUMNS. edge_jaccard and node_jaccard compare with the group's circuit at its last
            step. split_half_jaccard and rank_correlation (of two halves of the prompts) and inclusion (mean over the
            circuit's edges of the share of resamples that have the edge) are NaN where no stability was measured,
            split_half_jaccard also for circuits of --same_sign: a half has no resamples that tell its stable signs.
        edges: [n, E] membership of the real edges, in row-major order of [sources, targets].
        nodes: [n, N] membership of the nodes, named by `layout.nodes`.
        activation: [n, l] edge activation ratio by layer.
        spans: SPAN_COLUMNS: the share of a circuit's sum of |score by token span| in each span; empty without them.
    """

    layout: Layout
    table: pd.DataFrame
    edges: NDArray[np.bool_]
    nodes: NDArray[np.bool_]
    activation: NDArray[np.float64]
    spans: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=SPAN_COLUMNS))

    @cached_property
    def steps(self) -> list[int]:
        return sorted(self.table["step"].unique().tolist())

    @cached_property
    def epochs(self) -> list[float]:
        """The epochs of `steps`."""
        return self.table.groupby("step")["epoch"].first().astype(float).tolist()

    @property
    def group_columns(self) -> list[str]:
        """The columns that name a group."""
        return names_of_groups(self.table)

    @property
    def saturation(self) -> str:
        """One clause where nearly all nodes are in every circuit, so that node measures can hardly move; else ""."""
        least, most, total = self.table["nodes"].min(), self.table["nodes"].max(), self.nodes.shape[1]
        return f"nodes are saturated: {least} to {most} of {total} in every circuit" if least >= 0.9 * total else ""

    @property
    def prompts(self) -> str:
        """Prompts per group, as text: "30", or "5 to 30" where groups differ; "" if the graphs do not tell."""
        counts = self.table["prompts"].dropna()
        if counts.empty:
            return ""
        least, most = int(counts.min()), int(counts.max())
        return str(least) if least == most else f"{least} to {most}"

    def activation_table(self) -> pd.DataFrame:
        """Edge activation ratio in long form: step, epoch, the columns of the group, layer, ratio."""
        keys = self.table[["step", "epoch", *self.group_columns]]
        parts = [keys.assign(layer=layer, ratio=self.activation[:, layer]) for layer in range(self.layout.n_layers)]
        return pd.concat(parts, ignore_index=True)

    def similarity(self) -> NDArray[np.float64]:
        """Edge Jaccard similarity between all pairs of checkpoints, mean over the groups that both have, [m, m]."""
        total, count = np.zeros((2, len(self.steps), len(self.steps)))
        for _, rows in self.table.groupby(self.group_columns, sort=False):
            at = np.searchsorted(self.steps, rows["step"])
            total[np.ix_(at, at)] += topology.similarity_map(self.edges[rows.index])
            count[np.ix_(at, at)] += 1
        with np.errstate(invalid="ignore"):
            return total / count

    def group_similarity(self) -> tuple[list[dict[str, str]], NDArray[np.float64]]:
        """Return the last checkpoint's groups by column, and the edge Jaccard similarity of their circuits, [G, G]."""
        last = self.table[self.table["step"] == self.steps[-1]]
        return last[self.group_columns].to_dict("records"), topology.similarity_map(self.edges[last.index])


#: Sees each circuit once, with its step, epoch and group, while it is in memory.
Visitor = Callable[[int, float, AnyGroup, Graph], None]


def read_circuits(
    run: Run, setting: Setting | None = None, visit: Visitor | None = None, kind: Kind | None = None
) -> Circuits | None:
    """Read every checkpoint's own circuits and measure their topology; None where the run has none.

    Args:
        visit: is shown each circuit in turn, so that what else is wanted of the scores needs no second reading.

    Raises:
        InputError: a file is damaged, or is the graph of another model than the others.
    """
    rows, edges, nodes, activation, spans, layout = [], [], [], [], [], None
    files = own_circuit_files(run, setting, kind)
    for file in tqdm(files, desc="reading circuits", unit="circuit", leave=False, delay=5):
        graph = read_graph(file.path)
        layout = layout or graph.layout
        if graph.layout != layout:
            raise InputError(f"{file.path}: the graph of another model than the run's other circuits")
        details = details_of(file.coordinates, file.path, layout)
        graph = details.attached(graph)
        if visit is not None:
            visit(file.step, file.epoch, file.group, graph)
        edges.append(topology.membership(graph))
        nodes.append(topology.nodes(graph))
        activation.append(topology.edge_activation_ratio(graph))
        rows.append({**file.columns, **_measures(graph), **stability_columns(details, graph)})
        spans += [{**file.columns, "span": span, "share": share} for span, share in span_shares(graph).items()]
    if layout is None:
        return None
    table, edge_rows, node_rows = pd.DataFrame(rows), np.stack(edges), np.stack(nodes)
    names = names_of_groups(table)
    last = table.groupby(names)["step"].transform("idxmax").to_numpy()
    table["edge_jaccard"] = topology.jaccard(edge_rows, edge_rows[last])
    table["node_jaccard"] = topology.jaccard(node_rows, node_rows[last])
    span_table = pd.DataFrame(spans, columns=["step", "epoch", *names, "span", "share"])
    table = table[["step", "epoch", *names, *_CIRCUIT_NUMBERS]]
    return Circuits(layout, table, edge_rows, node_rows, np.stack(activation), span_table)


def _measures(circuit: Graph) -> dict[str, float]:
    return {
        "prompts": circuit.meta.get("examples", np.nan),
        "edges": circuit.n_edges,
        "nodes": circuit.n_nodes,
        "entropy": topology.circuit_entropy(circuit),
        "weighted_entropy": topology.weighted_entropy(circuit),
        "random_walk_entropy": topology.random_walk_entropy(circuit),
    }


def span_shares(circuit: Graph) -> dict[str, float]:
    """Return each token span's share of the sum of |score by span| over the circuit's edges; {} without span scores."""
    if circuit.span_scores is None:
        return {}
    sums = circuit.span_scores[:, circuit.in_graph].abs().double().sum(1)
    return dict(zip(circuit.spans, (sums / sums.sum().clamp(min=1e-300)).tolist(), strict=True))


def details_of(coordinates: Coordinates, path: Path, layout: Layout) -> Details:
    """Return stability (of this circuit size only) and span scores of the graph that a circuit was selected from.

    That of an ensemble is the mean of its methods' graphs.

    The signs that --same_sign asks for are those of all prompts, so an edge that passed is in a resample's circuit if
    it is in the resample's top n: inclusion holds for such a circuit too. The halves' circuits are unknown. Nothing is
    known of circuits of --signed: stability is measured by |score|.

    Args:
        coordinates, path: of the circuit's file.
    """
    scored = coordinates.scored
    file = path.parents[len(coordinates.folder.parts)] / scored.path(Content.DETAILS, ".safetensors")
    details = read_details(file, layout) if file.exists() else Details()
    measured = details.topn == coordinates.topn and SIGNED not in coordinates.method
    stability = details.stability if measured else None
    if stability is not None and scored.method != coordinates.method:
        stability = replace(stability, split_half_jaccard=stability.split_half_jaccard * np.nan)
    return replace(details, topn=details.topn if stability else 0, stability=stability)


def stability_columns(details: Details, circuit: Graph) -> dict[str, float]:
    """Return a circuit's STABILITY_COLUMNS; NaN where no stability was measured."""
    stability = details.stability
    if stability is None:
        return dict.fromkeys(STABILITY_COLUMNS, np.nan)
    return {
        "split_half_jaccard": float(stability.split_half_jaccard.mean()),
        "rank_correlation": float(stability.rank_correlation.mean()),
        "inclusion": float(stability.inclusion[circuit.in_graph].mean()) if circuit.n_edges else np.nan,
    }


#: The study's group that is shown where none is named.
EXAMPLE = Group(Attribute.CITY, KnowledgeType.REVISED, Band.HIGH)


def choose_group(run: Run, name: str | None = None) -> AnyGroup:
    """Return the group of a name, such as "city / revised / high", or "capitals / europe" for facts of one's own.

    Args:
        name: None means EXAMPLE, or the first group of a run that has circuits of others only.

    Raises:
        InputError: the run has no circuits of that group; it names those that it has.
    """
    found = {str(file.group): file.group for file in own_circuit_files(run)}
    if name is None:
        return EXAMPLE if not found or str(EXAMPLE) in found else next(iter(found.values()))
    if name not in found:
        raise InputError(f"{run.path}: no circuits of the group {name!r}, only of {'; '.join(found) or 'none'}")
    return found[name]


def circuits_at(run: Run, group: AnyGroup, epoch: Sequence[float]) -> dict[str, Graph]:
    """Return one group's circuits at the checkpoints nearest to the given epochs, with headings for
    `figures.circuit_graph.circuit_graph`.

    Args:
        epoch: wanted epochs; `inf` means the last one.

    Returns:
        "epoch <e>" -> circuit; empty where the run has none of the group.
    """
    files = {file.step: file for file in own_circuit_files(run, kind=type(group)) if file.group == group}
    when = {step: file.epoch for step, file in files.items()}
    nearest = [files[nearest_step(when, wanted)] for wanted in epoch if files]
    return {f"epoch {file.epoch:g}": read_graph(file.path) for file in nearest}


def compared(circuits: Mapping[str, Graph]) -> dict[str, Graph]:
    """Return the edges that the first and the last of some circuits share, and those of only one, with headings.

    Args:
        circuits: as `circuits_at` gives them; none gives none.
    """
    if not circuits:
        return {}
    before, *_, after = (*circuits, *circuits)
    first, last = circuits[before], circuits[after]
    return {"shared": first & last, f"only {before}": first - last, f"only {after}": last - first}


def edge_changes(circuits: Circuits | None) -> pd.DataFrame:
    """Return what each group's circuits at its first and at its last step share.

    Returns:
        the columns of the group, from_epoch, to_epoch, shared, lost, new (counts of edges) and edge_jaccard.
    """
    numbers = ["from_epoch", "to_epoch", "shared", "lost", "new", "edge_jaccard"]
    if circuits is None:
        return pd.DataFrame(columns=[*GROUP_COLUMNS, *numbers])
    names, rows = circuits.group_columns, []
    for _, one in circuits.table.groupby(names, sort=False):
        first, last = one.iloc[0], one.iloc[-1]
        before, after = (circuits.edges[row.name] for row in (first, last))
        counts = ((before & after).sum(), (before & ~after).sum(), (~before & after).sum())
        rows.append([*first[names], first["epoch"], last["epoch"], *counts, float(topology.jaccard(before, after))])
    return pd.DataFrame(rows, columns=[*names, *numbers])
