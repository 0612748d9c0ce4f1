"""Graph files: the JSON of EAP-IG 2.0 (and one key more, `meta`), the same compressed, and its tensor form.

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"}, "nodes": {name: {"in_graph"}},
     "edges": {"parent->a2.h3<k>": {"score", "in_graph"}}, "meta": {...}}

Reading also accepts EAP-IG 1's nodes (`name: bool`). Scores and membership are read into matrices. The format follows
from the file's name: .json, .json.gz or .pt.

A file may hold the circuit's own edges only; its meta then has `"edges": "circuit"`. Scores of other edges read as 0.
EAP-IG's own reader needs the whole graph. A file with scores of single neurons (EAP-IG's `neuron_level`) is refused:
the engine has no such scores, and edges alone would be another circuit.

`write_details` keeps stability and span scores (`stability.Details`) in a safetensors file: numbers of the real edges
in row-major order, and one entry of metadata.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from knowledge_circuits.engine.graph import Graph, Layout, layout_of
from knowledge_circuits.engine.stability import Details, Stability
from knowledge_circuits.files import BOUNDS, InputError, atomic_write, parse_json, read_bytes, read_text

#: What an edge reads as that a circuit's file leaves out.
_OUTSIDE = {"score": 0.0, "in_graph": False}


def write_graph(path: str | Path, graph: Graph, edges: Literal["all", "circuit"] = "all") -> None:
    """Write a graph atomically, in the format that the name asks for.

    Args:
        path: ends in .json, .json.gz or .pt.
        graph: a scored graph or a circuit.
        edges: "all" writes every edge of the model, as EAP-IG reads it; "circuit" only the edges in the graph, which
            takes a fraction of the space and loses the other scores. A graph that was read from a file without them
            is always written without them.

    Raises:
        InputError: a score is not finite, or the name ends in none of .json, .json.gz, .pt.
    """
    path = Path(path)
    if edges not in ("all", "circuit"):
        raise InputError(f"edges {edges!r}: a graph file holds all edges or the circuit's")
    if edges == "circuit":
        graph = graph.with_meta(edges="circuit")
    if not bool(torch.isfinite(graph.scores).all()):
        raise InputError(f"{path}: a graph with NaN or infinite scores is not written")
    if path.name.endswith(".pt"):
        with atomic_write(path, "wb") as file:
            torch.save(_tensor_form(graph), file)
    elif path.name.endswith(".json.gz"):
        with atomic_write(path, "wb") as file:
            # Level 6 and no time stamp: the same graph gives the same bytes.
            file.write(gzip.compress(_to_json(graph).encode(), compresslevel=6, mtime=0))
    elif path.name.endswith(".json"):
        with atomic_write(path) as file:
            file.write(_to_json(graph))
    else:
        raise InputError(f"{path}: a graph file's name ends in .json, .json.gz or .pt")


def read_graph(path: str | Path) -> Graph:
    """Read a graph file of any of the three formats.

    Returns:
        The graph; scores are float32 unless the file's meta says float64.

    Raises:
        InputError: with the file and the reason.
    """
    path = Path(path)
    if path.name.endswith(".pt"):
        return _read_tensors(path)
    text = read_text(path)
    content = _Checked(parse_json(text, str(path)), str(path))
    content.refuse_neurons()
    layout, d_model = content.configuration()
    return content.graph(layout, d_model)


def configuration(graph: Graph) -> dict[str, Any]:
    """Return the part `cfg` of a graph's file."""
    layout = graph.layout
    return {
        "n_layers": layout.n_layers,
        "n_heads": layout.n_heads,
        "parallel_attn_mlp": layout.parallel,
        "d_model": graph.d_model,
    }


def _to_json(graph: Graph) -> str:
    """Return the JSON text; edges are formatted directly, since 32,491 small dicts take longer than all the rest."""
    layout = graph.layout
    if _circuit_only(graph.meta):
        written, names = graph.in_graph, layout.names_of(graph.in_graph)
    else:
        written, names = layout.real_edges, layout.edge_names
    scores = graph.scores[written]
    # 9 digits bring a float32 back exactly; Python's own repr does it for float64.
    values = (
        [f"{score:.9g}" for score in scores.tolist()] if scores.dtype == torch.float32 else map(repr, scores.tolist())
    )
    members = ("true" if member else "false" for member in graph.in_graph[written].tolist())
    edges = ",\n".join(
        f'"{name}": {{"score": {value}, "in_graph": {member}}}'
        for name, value, member in zip(names, values, members, strict=True)
    )
    nodes = {
        name: {"in_graph": present} for name, present in zip(layout.nodes, graph.nodes_in_graph.tolist(), strict=True)
    }
    head = json.dumps(configuration(graph))
    meta = json.dumps(graph.meta, ensure_ascii=False, allow_nan=False)
    return f'{{"cfg": {head},\n"nodes": {json.dumps(nodes)},\n"edges": {{\n{edges}\n}},\n"meta": {meta}}}\n'


def _circuit_only(meta: dict[str, Any]) -> bool:
    """Return whether the scores of edges outside the circuit are unknown."""
    return meta.get("edges") == "circuit"


def _tensor_form(graph: Graph) -> dict[str, Any]:
    """EAP-IG 2.0's content; of a circuit alone, membership as [u, v] indices [E, 2] and the scores of these [E]."""
    if _circuit_only(graph.meta):
        edges = {"edges": graph.in_graph.nonzero(), "edges_scores": graph.scores[graph.in_graph]}
        return {"cfg": configuration(graph), **edges, "meta": graph.meta}
    return {
        "cfg": configuration(graph),
        "src_nodes": list(graph.layout.sources),
        "dst_nodes": list(graph.layout.targets),
        "edges_scores": graph.scores,
        "edges_in_graph": graph.in_graph,
        "nodes_in_graph": graph.nodes_in_graph[:-1],
        "meta": graph.meta,
    }


class _Checked:
    """The parsed content of a graph file, checked as it is read."""

    def __init__(self, content: Any, path: str) -> None:
        if not isinstance(content, dict):
            raise InputError(f"{path}: a graph is a JSON object, not {type(content).__name__}")
        self.content = content
        self.path = path

    def part(self, key: str, kind: type) -> Any:
        value = self.content.get(key)
        if not isinstance(value, kind):
            raise InputError(f"{self.path}: no {key!r} of type {kind.__name__}; this is not a graph file")
        return value

    def refuse_neurons(self) -> None:
        """Raise InputError if the file has scores or membership of single neurons."""
        nodes = self.content.get("nodes")
        keys = set(self.content)
        if isinstance(nodes, dict):
            keys.update(*(value for value in nodes.values() if isinstance(value, dict)))
        if neurons := sorted(key for key in keys if isinstance(key, str) and "neurons" in key):
            raise InputError(
                f"{self.path}: it has {neurons[0]!r}, scores or membership of single neurons, which the engine has not;"
                " write the graph without neuron_level"
            )

    def configuration(self) -> tuple[Layout, int]:
        """Return the layout and d_model."""
        cfg = self.part("cfg", dict)
        sizes = []
        for key in ("n_layers", "n_heads", "d_model"):
            value = cfg.get(key, 0 if key == "d_model" else None)
            if type(value) is not int or value < (key != "d_model"):
                raise InputError(f"{self.path}: cfg {key!r} is {value!r}, not a positive whole number")
            sizes.append(value)
        BOUNDS.check_shape(self.path, sizes[0], sizes[1])
        parallel = cfg.get("parallel_attn_mlp", False)
        if not isinstance(parallel, bool):
            raise InputError(f"{self.path}: cfg 'parallel_attn_mlp' is {parallel!r}, not true or false")
        return layout_of(sizes[0], sizes[1], parallel), sizes[2]

    def graph(self, layout: Layout, d_model: int) -> Graph:
        """Return the graph, every edge and node accounted for."""
        edges = self.part("edges", dict)
        self._check_nodes(layout)
        meta = self.meta()
        names = layout.edge_names
        if _circuit_only(meta):
            self._refuse_strange(edges, names)
            ordered = [edges.get(name, _OUTSIDE) for name in names]
        elif len(edges) != layout.n_edges:
            raise InputError(f"{self.path}: {len(edges)} edges where a model of this shape has {layout.n_edges}")
        elif tuple(edges) == names:
            ordered = list(edges.values())
        else:
            self._refuse_strange(edges, names)
            ordered = [edges[name] for name in names]
        scores, members = self._edge_values(names, ordered)
        dtype = torch.float64 if meta.get("dtype") == "float64" else torch.float32
        score_matrix = layout.matrix(torch.from_numpy(scores).to(dtype))
        if not bool(torch.isfinite(score_matrix).all()):
            raise InputError(f"{self.path}: a score is too large for {dtype}")
        return Graph(layout, score_matrix, layout.matrix(torch.from_numpy(members)), d_model, meta)

    def meta(self) -> dict[str, Any]:
        """Return what the file says of itself; empty in EAP-IG's own files."""
        meta = self.content.get("meta", {})
        if not isinstance(meta, dict):
            raise InputError(f"{self.path}: meta is {type(meta).__name__}, not an object")
        return meta

    def _refuse_strange(self, edges: dict[str, Any], names: tuple[str, ...]) -> None:
        unknown = edges.keys() - set(names)
        if unknown:
            raise InputError(f"{self.path}: no edge {min(unknown)!r} exists in a model of this shape")

    def _check_nodes(self, layout: Layout) -> None:
        nodes = self.part("nodes", dict)
        unknown = set(layout.nodes).symmetric_difference(nodes)
        if unknown:
            raise InputError(f"{self.path}: node {min(unknown)!r} does not match a model of this shape")
        for name, value in nodes.items():
            member = value.get("in_graph") if isinstance(value, dict) else value
            if not isinstance(member, bool):
                raise InputError(f"{self.path}: node {name!r} has no in_graph that is true or false")

    def _edge_values(self, names: tuple[str, ...], edges: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Scores and membership as arrays; the slow path only finds which edge is at fault."""
        try:
            scores = [edge["score"] for edge in edges]
            members = [edge["in_graph"] for edge in edges]
        except (TypeError, KeyError):
            scores, members = [None], [None]
        if {*map(type, scores)} <= {float, int} and {*map(type, members)} == {bool}:
            try:
                array = np.array(scores, dtype=np.float64)
            except OverflowError:
                array = np.array([np.inf])
            if np.isfinite(array).all():
                return array, np.array(members, dtype=bool)
        for name, edge in zip(names, edges, strict=True):
            if not _sound(edge):
                raise InputError(f"{self.path}: edge {name!r} is {edge!r}; a finite score and an in_graph are wanted")
        raise AssertionError("an edge was refused and none is at fault")


def _sound(edge: Any) -> bool:
    if not isinstance(edge, dict) or type(edge.get("in_graph")) is not bool:
        return False
    score = edge.get("score")
    if not isinstance(score, (float, int)) or isinstance(score, bool):
        return False
    try:
        return math.isfinite(float(score))
    except OverflowError:
        return False


def _read_tensors(path: Path) -> Graph:
    """EAP-IG 2.0's tensor form; weights_only, so nothing in the file is executed."""
    data = read_bytes(path)
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            BOUNDS.check_unpacked(path, sum(part.file_size for part in zipfile.ZipFile(io.BytesIO(data)).infolist()))
        content = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except InputError:
        raise
    except Exception as error:  # whatever damaged bytes make the unpickler raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise InputError(f"{path}: not a graph in tensor form ({reason})") from None
    checked = _Checked(content, str(path))
    if isinstance(content, dict):
        checked.refuse_neurons()
    layout, d_model = checked.configuration()
    if _circuit_only(checked.meta()):
        return _read_circuit_tensors(checked, layout, d_model)
    for key, names in (("src_nodes", layout.sources), ("dst_nodes", layout.targets)):
        listed = content.get(key)
        if not isinstance(listed, list | tuple) or list(listed) != list(names):
            raise InputError(f"{path}: {key} are not those of a model of this shape")
    shape = (layout.n_sources, layout.n_targets)
    tensors = {}
    for key, dtypes in (("edges_scores", (torch.float32, torch.float64)), ("edges_in_graph", (torch.bool,))):
        value = content.get(key)
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape or value.dtype not in dtypes:
            raise InputError(f"{path}: {key} is not a tensor of shape {shape} and type {dtypes[0]}")
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise InputError(f"{path}: {key} holds fewer numbers than its shape {shape} says")
        tensors[key] = value
    if not bool(torch.isfinite(tensors["edges_scores"][layout.real_edges]).all()):
        raise InputError(f"{path}: a score is not a finite number")
    real = layout.real_edges
    scores = torch.where(real, tensors["edges_scores"], 0.0)
    return Graph(layout, scores, tensors["edges_in_graph"] & real, d_model, checked.meta())


def _read_circuit_tensors(content: _Checked, layout: Layout, d_model: int) -> Graph:
    """Return the tensor form of a circuit's own edges."""
    path, real = content.path, layout.real_edges
    edges, values = content.part("edges", torch.Tensor), content.part("edges_scores", torch.Tensor)
    if edges.dtype != torch.long or edges.dim() != 2 or edges.shape[1] != 2 or values.shape != edges.shape[:1]:
        raise InputError(f"{path}: edges are not [E, 2] indices with a score for each")
    if values.dtype not in (torch.float32, torch.float64) or not bool(torch.isfinite(values).all()):
        raise InputError(f"{path}: a score is not a finite number")
    inside = ((edges >= 0) & (edges < torch.tensor(real.shape))).all(1)
    if not bool(inside.all()) or not bool(real[edges[:, 0], edges[:, 1]].all()):
        raise InputError(f"{path}: an edge does not exist in a model of this shape")
    scores, members = torch.zeros(real.shape, dtype=values.dtype), torch.zeros_like(real)
    scores[edges[:, 0], edges[:, 1]] = values
    members[edges[:, 0], edges[:, 1]] = True
    return Graph(layout, scores, members, d_model, content.meta())


def write_details(path: str | Path, layout: Layout, details: Details) -> None:
    """Write a graph's stability and span scores atomically as safetensors."""
    tensors: dict[str, torch.Tensor] = {}
    real = layout.real_edges
    if details.stability is not None:
        tensors["inclusion"] = details.stability.inclusion[real].float()
        tensors["same_sign"] = details.stability.same_sign[real].float()
        tensors["split_half_jaccard"] = details.stability.split_half_jaccard.float()
        tensors["rank_correlation"] = details.stability.rank_correlation.float()
    if details.span_scores is not None:
        tensors["span_scores"] = details.span_scores[:, real].float().contiguous()
    about = {"topn": details.topn, "spans": details.spans, "layout": str(layout)}
    with atomic_write(path, "wb") as file:
        file.write(save(tensors, {"details": json.dumps(about)}))


def read_details(path: str | Path, layout: Layout) -> Details:
    """Read what `write_details` wrote.

    Raises:
        InputError: the file is damaged or of another model, with the file and the reason.
    """
    data = read_bytes(path)
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["details"])
        topn, spans, shape = int(about["topn"]), tuple(map(str, about["spans"])), about["layout"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a graph's details ({error or type(error).__name__})") from None
    if shape != str(layout):
        raise InputError(f"{path}: the details of a graph of {shape}, and the graph has {layout}")
    for name in ("inclusion", "same_sign", "span_scores"):
        wanted = (len(spans), layout.n_edges) if name == "span_scores" else (layout.n_edges,)
        if name in tensors and (tuple(tensors[name].shape) != wanted or not bool(tensors[name].isfinite().all())):
            raise InputError(f"{path}: {name} is not {wanted} finite numbers")

    measured = None
    if topn:
        names = ("split_half_jaccard", "rank_correlation", "inclusion", "same_sign")
        if lacking := [name for name in names if name not in tensors]:
            raise InputError(f"{path}: no {lacking[0]!r} in it")
        measured = Stability(
            tensors["split_half_jaccard"],
            tensors["rank_correlation"],
            layout.matrix(tensors["inclusion"].float()),
            layout.matrix(tensors["same_sign"].float()),
        )
    by_span = layout.matrix(tensors["span_scores"].float()) if "span_scores" in tensors else None
    return Details(topn, measured, by_span, spans if by_span is not None else ())
