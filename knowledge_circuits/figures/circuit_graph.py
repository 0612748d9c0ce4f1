"""A circuit drawn as a graph: heads in a row per layer, MLPs beside them, the strongest edges as curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from knowledge_circuits.analysis.circuit_settings import NO_CIRCUITS
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.figures import style
from knowledge_circuits.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, Look
from knowledge_circuits.files import InputError

_INPUTS: Mapping[str, Look] = {
    "q": Look("into a query", BLUE, ""),
    "k": Look("into a key", GREEN, ""),
    "v": Look("into a value", ORANGE, ""),
    "": Look("into an MLP or the logits", GREY, ""),
}
#: Of negative scores.
_DASHES = (0, (2, 1.5))


@style.styled
def circuit_graph(circuits: Mapping[str, Graph], run: str, title: str = "The circuit", edges: int = 150) -> Figure:
    """Circuits drawn side by side: layers upward, heads in a row, each layer's MLP at the right and half a step higher.

    Colour tells what the edge feeds, width the root of its |score| beside its circuit's largest; solid edges
    have a positive score (corrupting them costs the right answer), dashed ones a negative. Arguments as of `draw`.
    """
    title = style.plain(title)
    if not circuits:
        return style.missing(title, NO_CIRCUITS, run)
    layout = next(iter(circuits.values())).layout
    width = max(4.9, 0.42 * layout.n_heads + 1.6) * len(circuits)
    height = min(max(5.0, 0.85 * layout.n_layers + 1.6), 16)
    note = f"the {edges} strongest edges of each circuit at most; width grows with the square root of |score|"
    figure, axes = style.grid(title, run, 1, len(circuits), width=max(width, 8.0), height=height, note=note)
    for ax, (heading, graph) in zip(axes[0], circuits.items(), strict=True):
        _draw_circuit(ax, graph, edges)
        ax.set_title(f"{heading}: {graph.n_edges:,} edges, {graph.n_nodes} nodes".removeprefix(": "))
    axes[0, 0].set_ylabel("layer")
    handles = [Line2D([], [], color=look.color, linewidth=2, label=look.label) for look in _INPUTS.values()]
    handles += [
        Line2D([], [], color=BLACK, linewidth=1.5, label="positive score"),
        Line2D([], [], color=BLACK, linewidth=1.5, linestyle=_DASHES, label="negative score"),
    ]
    return style.legend_row(figure, handles)


def draw(circuits: Graph | Mapping[str, Graph], title: str = "The circuit", edges: int = 150) -> Figure:
    """Draw one circuit, or several of one model side by side.

    Args:
        circuits: a circuit, or heading -> circuit, from left to right.
        edges: how many of each circuit's strongest edges are drawn.

    Returns:
        The figure; `figure.savefig("circuit.svg")` writes it, a notebook shows it.

    Raises:
        InputError: no circuit, or circuits of models of different shapes.
    """
    drawn = {"": circuits} if isinstance(circuits, Graph) else dict(circuits)
    if not drawn:
        raise InputError("there is no circuit to draw")
    if len({graph.layout for graph in drawn.values()}) > 1:
        raise InputError(f"the circuits {', '.join(drawn)} are of models of different shapes")
    return circuit_graph(drawn, "", title, edges)


def strongest_edges(graph: Graph, most: int) -> NDArray[np.int64]:
    """Return source and target of the circuit's edges with the largest |score|, strongest first, [m, 2]."""
    edges = graph.in_graph.nonzero().numpy()
    strength = graph.scores.abs().numpy()[edges[:, 0], edges[:, 1]]
    return edges[np.argsort(-strength, kind="stable")[:most]]


def _draw_circuit(ax: Axes, graph: Graph, edges: int) -> None:
    """Draw one circuit's nodes and its strongest edges, the strongest on top."""
    layout = graph.layout
    sources, targets = strongest_edges(graph, edges)[::-1].T
    scores = graph.scores.numpy()[sources, targets]
    strength = np.abs(scores)
    share = np.sqrt(strength / strength.max()) if strength.size and strength.max() > 0 else strength

    x, y = _node_places(layout.n_layers, layout.n_heads)
    nodes = layout.target_nodes.numpy()[targets]
    kinds = np.array([name[-2] if name.endswith(">") else "" for name in layout.targets])[targets]  # keys of _INPUTS
    shift = np.select([kinds == "q", kinds == "v"], [-0.22, 0.22])
    ends = np.stack([x[nodes] + shift, y[nodes] - 0.16], axis=-1)
    starts = np.stack([x[sources], y[sources] + 0.16], axis=-1)
    lines = LineCollection(
        list(_bezier(starts, ends)),
        colors=[(_INPUTS[kind].color, alpha) for kind, alpha in zip(kinds, 0.25 + 0.6 * share, strict=True)],
        linewidths=0.4 + 3.2 * share,
        linestyles=["solid" if positive else _DASHES for positive in scores >= 0],
        zorder=1,
    )
    ax.add_collection(lines)
    _draw_nodes(ax, graph, x, y)


def _draw_nodes(ax: Axes, graph: Graph, x: np.ndarray, y: np.ndarray) -> None:
    layout, present = graph.layout, graph.nodes_in_graph.numpy()
    size = 6.5 if layout.n_heads <= 16 else 4.5
    for name, column, height, inside in zip(layout.nodes, x, y, present, strict=True):
        text, face, frame = ("#222222", "white", "#333333") if inside else ("#BBBBBB", "#F4F4F4", "#DDDDDD")
        box = {"boxstyle": "round,pad=0.28", "linewidth": 0.8, "facecolor": face, "edgecolor": frame}
        ax.text(column, height, name.split(".")[-1], fontsize=size, ha="center", va="center", bbox=box, color=text)
    ax.set(xlim=(x.min() - 0.7, x.max() + 0.7), ylim=(y.min() - 0.5, y.max() + 0.5))
    ax.set(xticks=[], yticks=range(layout.n_layers))
    ax.grid(False)
    ax.spines["bottom"].set_visible(False)


def _node_places(layers: int, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the nodes stand, in the order of `layout.nodes`: x and y, [N] each."""
    columns = np.append(np.arange(heads), heads + 0.4)
    x = np.concatenate([[heads / 2], np.tile(columns, layers), [heads / 2]])
    rise = np.append(np.zeros(heads), 0.45)
    y = np.concatenate([[-1.0], (np.arange(layers)[:, None] + rise).reshape(-1), [layers + 0.3]])
    return x, y


def _bezier(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Curves that leave and arrive vertically, [m, 20, 2], from and to points [m, 2]."""
    t = np.linspace(0, 1, 20)[None, :, None]
    bend = (ends - starts) * [0, 0.45]
    corners = [point[:, None, :] for point in (starts, starts + bend, ends - bend, ends)]
    weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    return np.add.reduce([weight * corner for weight, corner in zip(weights, corners, strict=True)])
