"""EAP-IG 2.0's names and signatures on this package's engine: its users change one import.

    from knowledge_circuits.eap import Graph, attribute, evaluate_baseline, evaluate_graph

This module only translates; scores and evaluations come from `engine`. A model is a TransformerBridge, a Hugging Face
causal language model, or a `Decoder` (`knowledge_circuits.load_model`, which is read once and not at every call). A
data loader yields (clean texts, corrupted texts, labels); a prompt may also be given as token ids. A metric has
EAP-IG's signature (logits [b, p, n], clean logits [b, p, n], input lengths [b], labels).

Two things differ from EAP-IG 2.0. The metric is called for one prompt at a time, so results do not depend on the batch
size or on whether it takes a mean: they are those of EAP-IG with batches of one prompt. The engine computes logits at
a prompt's last position only; at other positions they are NaN, and a metric that uses them is refused.

Shapes: b items, p positions, n vocabulary, u sources, v targets.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from knowledge_circuits.engine import attribution, evaluation, graph_files, selection
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.graph import Graph as EngineGraph
from knowledge_circuits.engine.graph import Layout, layout_of
from knowledge_circuits.engine.metrics import MetricFunction
from knowledge_circuits.engine.options import Intervention, Method
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import decoder_from_bridge, decoder_from_model
from knowledge_circuits.files import InputError
from knowledge_circuits.models.tokenization import encode_prompt

__all__ = ["Edge", "Graph", "Node", "attribute", "evaluate_baseline", "evaluate_graph"]

#: (logits [b, p, n], clean logits [b, p, n], input lengths [b], labels) -> one number per item, or their mean.
Metric = Callable[[Tensor, Tensor, Tensor, Any], Tensor]

#: EAP-IG's method -> the engine's, and the first step of its path.
_METHODS = {
    "EAP": (Method.EAP, 1),
    "EAP-IG-inputs": (Method.EAP_IG, 0),
    "EAP-IG-activations": (Method.EAP_IG_ACTIVATIONS, 1),
    "clean-corrupted": (Method.CLEAN_CORRUPTED, 1),
    "exact": (Method.EXACT, 1),
}


@dataclass(unsafe_hash=True)
class Node:
    """A node of a graph: `input`, a head such as `a0.h1`, an MLP such as `m0`, or `logits`."""

    graph: Graph
    name: str

    @property
    def layer(self) -> int:
        """The node's layer; 0 for `input`, the last layer for `logits`."""
        layers = self.graph.layout.source_layers
        return int(layers[-1] if self.name == "logits" else layers[self._row])

    @property
    def in_graph(self) -> bool:
        """Whether the node is in the graph; `logits` always is."""
        return self.name == "logits" or bool(self.graph.nodes_in_graph[self._row])

    @in_graph.setter
    def in_graph(self, value: bool) -> None:
        if self.name == "logits":
            raise InputError("the node logits is always in the graph")
        self.graph.nodes_in_graph[self._row] = value

    @property
    def child_edges(self) -> list[Edge]:
        return [edge for edge in self.graph.edges.values() if edge.parent == self]

    @property
    def parent_edges(self) -> list[Edge]:
        return [edge for edge in self.graph.edges.values() if edge.child == self]

    @property
    def children(self) -> set[Node]:
        return {edge.child for edge in self.child_edges}

    @property
    def parents(self) -> set[Node]:
        return {edge.parent for edge in self.parent_edges}

    @property
    def _row(self) -> int:
        return self.graph.layout.sources.index(self.name)


@dataclass(unsafe_hash=True)
class Edge:
    """An edge of a graph; `score` and `in_graph` read and write the graph's matrices.

    Attributes:
        name: such as `input->a0.h1<q>` or `a0.h1->m0`.
        matrix_index: its row and column in `graph.scores` and `graph.in_graph`.
    """

    graph: Graph
    name: str
    matrix_index: tuple[int, int]

    @property
    def parent(self) -> Node:
        return self.graph.nodes[self.name.split("->")[0]]

    @property
    def child(self) -> Node:
        return self.graph.nodes[self.name.split("->")[1].partition("<")[0]]

    @property
    def qkv(self) -> str | None:
        """Which input of a head the edge enters: q, k or v; None at an MLP and at the logits."""
        return self.name.partition("<")[2].removesuffix(">") or None

    @property
    def score(self) -> Tensor:
        """The edge's score, a scalar."""
        return self.graph.scores[self.matrix_index]

    @score.setter
    def score(self, value: float) -> None:
        self.graph.scores[self.matrix_index] = value

    @property
    def in_graph(self) -> Tensor:
        """Whether the edge is in the graph, a scalar."""
        return self.graph.in_graph[self.matrix_index]

    @in_graph.setter
    def in_graph(self, value: bool) -> None:
        self.graph.in_graph[self.matrix_index] = value


Item = TypeVar("Item", Node, Edge)


class _ByName(Mapping[str, Item]):
    """Views of a graph's nodes or edges by name, made when they are asked for."""

    def __init__(self, names: Sequence[str], view: Callable[[str], Item]) -> None:
        self._names = dict.fromkeys(names)
        self._view: Callable[[str], Item] = view

    def __getitem__(self, name: str) -> Item:
        if name not in self._names:
            raise KeyError(name)
        return self._view(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class GraphConfig(dict[str, Any]):
    """A graph's configuration; `cfg.n_layers` is `cfg["n_layers"]`, as in EAP-IG."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"a graph's configuration has no {name}") from None


class Graph:
    """EAP-IG's graph: scores and membership that one changes in place. `from_model` and `from_json` make one.

    Attributes:
        scores: [u, v] edge scores.
        in_graph: [u, v] membership of edges.
        nodes_in_graph: [u] membership of nodes without `logits`.
        layout: which edges exist.
        cfg: n_layers, n_heads, parallel_attn_mlp and d_model.
    """

    def __init__(self, graph: EngineGraph) -> None:
        self.layout = graph.layout
        self.scores = graph.scores.clone()
        self.in_graph = graph.in_graph.clone()
        self.nodes_in_graph = selection.connected_nodes(self.layout, self.in_graph)[:-1]
        self.meta = dict(graph.meta)
        self._members_given = graph.in_graph
        self.cfg = GraphConfig(graph_files.configuration(graph))

    @classmethod
    def from_model(cls, model_or_config: Any, neuron_level: bool = False, node_scores: bool = False) -> Graph:
        """Return the graph of a model with no edge in it and all scores 0.

        Args:
            model_or_config: a model (see the module), a TransformerLens configuration, or a dictionary with n_layers,
                n_heads, parallel_attn_mlp and d_model.
            neuron_level, node_scores: only False.

        Raises:
            InputError: neurons or node scores are asked for, or the architecture is not supported.
        """
        if neuron_level or node_scores:
            raise InputError("the engine scores edges; it scores neither neurons nor nodes")
        layout, d_model = _shape_of(model_or_config)
        return cls(EngineGraph(layout, torch.zeros(layout.real_edges.shape), layout.real_edges & False, d_model))

    @classmethod
    def from_json(cls, json_path: str | Path) -> Graph:
        """Read a graph that `to_json` or EAP-IG wrote."""
        return cls(graph_files.read_graph(json_path))

    from_pt = from_json

    def to_json(self, filename: str | Path) -> None:
        """Write the graph as EAP-IG does: JSON to a name that ends in .json or .json.gz, tensors to one in .pt.

        A graph that was read from a circuit's own file is written as one until an edge outside it gets a score.
        """
        graph_files.write_graph(filename, self.engine)

    to_pt = to_json

    def to_image(self, filename: str | Path, **style: Any) -> None:
        """Draw the graph with Graphviz's `dot`; the name's ending is the format. EAP-IG's style has no effect.

        Raises:
            InputError: Graphviz's program `dot` is not installed, or it fails.
        """
        if (program := shutil.which("dot")) is None:
            raise InputError(
                "to_image needs Graphviz's program dot, which is not installed; kc.draw needs only matplotlib"
            )
        form = Path(filename).suffix.removeprefix(".") or "png"
        command = [program, f"-T{form}", "-o", str(filename)]
        result = subprocess.run(command, input=self.engine.to_dot(), text=True, capture_output=True)
        if result.returncode:
            raise InputError(f"{filename}: dot failed ({result.stderr.strip()[:200]})")

    @property
    def engine(self) -> EngineGraph:
        """The graph as the engine takes it: `knowledge_circuits.evaluate`, `draw` and others."""
        meta = dict(self.meta)
        # A circuit's file leaves out the scores of other edges. Once one of these is set, the graph is a whole one.
        if meta.get("edges") == "circuit" and bool(self.scores[~self._members_given].any()):
            del meta["edges"]
        return EngineGraph(self.layout, self.scores, self.in_graph, self.cfg["d_model"], meta)

    @property
    def real_edge_mask(self) -> Tensor:
        """[u, v] which edges exist."""
        return self.layout.real_edges

    @property
    def n_forward(self) -> int:
        """The number of sources, u."""
        return self.layout.n_sources

    @property
    def n_backward(self) -> int:
        """The number of targets, v."""
        return self.layout.n_targets

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        return _ByName(self.layout.nodes, lambda name: Node(self, name))

    @cached_property
    def edges(self) -> Mapping[str, Edge]:
        """The edges by name; `graph.edges["input->m0"].score = 1.0` changes the graph."""
        where = self.layout.real_edges.nonzero().tolist()
        index = {name: (u, v) for name, (u, v) in zip(self.layout.edge_names, where, strict=True)}
        return _ByName(self.layout.edge_names, lambda name: Edge(self, name, index[name]))

    def reset(self, empty: bool = True) -> None:
        """Take every edge and node out of the graph, or put all in."""
        self.in_graph = self.layout.real_edges & (not empty)
        self.nodes_in_graph = torch.full((self.layout.n_sources,), not empty)

    def apply_topn(
        self, n: int, absolute: bool = True, level: str = "edge", reset: bool = True, prune: bool = True
    ) -> None:
        """Select the n edges of largest score (by default of largest |score|)."""
        _only_edges(level)
        self._select(selection.top_n(self.engine, int(n), absolute), prune)

    def apply_threshold(
        self, threshold: float, absolute: bool = True, reset: bool = True, level: str = "edge", prune: bool = True
    ) -> None:
        """Select the edges whose score (by default |score|) is at least the threshold."""
        _only_edges(level)
        if absolute:
            self._select(selection.threshold(self.engine, float(threshold)), prune)
        else:
            members = self.layout.real_edges & (self.scores >= float(threshold))
            self._select(self.engine.with_edges(members), prune)

    def apply_greedy(self, n_edges: int, absolute: bool = True, reset: bool = True, prune: bool = True) -> None:
        """Select n edges from the logits upward, always the largest score that leads into the graph.

        Raises:
            InputError: reset is False; the engine grows a circuit from the logits alone.
        """
        if not reset:
            raise InputError("apply_greedy grows a circuit from the logits alone; reset=False is not supported")
        scored = self.engine
        if not absolute:
            # The engine ranks by |score|; ranks have the order of the signed scores and are not negative.
            ranks = torch.zeros_like(self.scores)
            real = self.layout.real_edges
            ranks[real] = self.scores[real].unique(return_inverse=True)[1].to(ranks.dtype)
            scored = EngineGraph(self.layout, ranks, self.in_graph, scored.d_model)
        self._select(selection.greedy(scored, int(n_edges)), prune)

    def prune(self) -> None:
        """Remove nodes without incoming or outgoing edges, and their edges, until none is left."""
        self._select(self.engine, prune=True)

    def count_included_edges(self) -> int:
        return int(self.in_graph.sum())

    def count_included_nodes(self) -> int:
        """Return the number of nodes in the graph without `logits`."""
        return int(self.nodes_in_graph.sum())

    def weighted_edge_count(self) -> float:
        """Return the number of edges in the graph (there are no neurons to weigh them by)."""
        return float(self.count_included_edges())

    def _select(self, chosen: EngineGraph, prune: bool) -> None:
        self.in_graph = (selection.prune(chosen) if prune else chosen).in_graph.clone()
        self.nodes_in_graph = selection.connected_nodes(self.layout, self.in_graph)[:-1]


def attribute(
    model: Any,
    graph: Graph,
    dataloader: Iterable[Any],
    metric: Metric,
    method: str,
    intervention: str = "patching",
    aggregation: str = "sum",
    ig_steps: int | None = 5,
    intervention_dataloader: Iterable[Any] | None = None,
    quiet: bool = False,
    optimal_ablation_path: str | None = None,
    tokenizer: Any = None,
) -> None:
    """Set `graph.scores` to the scores of all edges.

    Args:
        dataloader: yields (clean texts, corrupted texts, labels).
        metric: the loss, lower is better.
        method: EAP, EAP-IG-inputs (steps 0..m-1), EAP-IG-activations (steps 1..m), clean-corrupted or exact.
        intervention: only patching; `evaluate_graph` also has zero and mean.
        aggregation: sum, or mean over d_model.
        ig_steps: m.
        intervention_dataloader: not used by patching.
        quiet: show no progress bar.
        optimal_ablation_path: only None.
        tokenizer: the model's, where the loader yields texts and the model does not know its tokenizer.

    Raises:
        InputError: the engine does not have the method, intervention or aggregation, or the prompts do not fit.
    """
    if intervention == "optimal" or optimal_ablation_path is not None:
        raise InputError("the engine has no optimal ablation; the intervention of attribute is patching")
    if intervention != "patching":
        raise InputError(f"attribute estimates patching effects only, not {intervention!r}; evaluate_graph has others")
    if method not in _METHODS:
        raise InputError(f"the engine does not have the method {method!r}; choose one of: {', '.join(_METHODS)}")
    if aggregation not in ("sum", "mean"):
        raise InputError(f"no aggregation is called {aggregation!r}; choose sum or mean")
    decoder = _decoder(model)
    prompts = _Prompts.of(dataloader, model, tokenizer)
    engine_method, first_step = _METHODS[method]
    result = attribution.attribute(
        decoder,
        prompts.pairs,
        engine_method,
        ig_steps=5 if ig_steps is None else ig_steps,
        first_step=first_step,
        metric=prompts.loss(metric),
        batch_size=prompts.batch_size,
        progress=not quiet,
    )
    if result.layout != graph.layout:
        raise InputError(f"the graph is of another model: {graph.layout}, and the model has {result.layout}")
    graph.scores = result.scores / (decoder.d_model if aggregation == "mean" else 1)
    graph.meta = result.meta


def evaluate_graph(
    model: Any,
    graph: Graph,
    dataloader: Iterable[Any],
    metrics: Metric | list[Metric],
    quiet: bool = False,
    intervention: str = "patching",
    intervention_dataloader: Iterable[Any] | None = None,
    skip_clean: bool = True,
    optimal_ablation_path: str | None = None,
    tokenizer: Any = None,
) -> Tensor | list[Tensor]:
    """Prune the graph and run it as a circuit; edges outside it carry the intervention's outputs.

    Args:
        intervention: patching, zero, mean or mean-positional.
        intervention_dataloader: prompts of the mean; only None or `dataloader` itself, over whose clean prompts the
            engine takes it.
        skip_clean: has no effect; a metric always gets the clean run's logits.

    Returns:
        The metric's value for each prompt [b] in float64; of several metrics a list of these.

    Raises:
        InputError: optimal ablation, or a mean over other prompts.
    """
    if intervention == "optimal" or optimal_ablation_path is not None:
        raise InputError("the engine has no optimal ablation; choose patching, zero, mean or mean-positional")
    other = intervention_dataloader is not None and intervention_dataloader is not dataloader
    if "mean" in intervention and other:
        raise InputError("the engine takes means over the evaluated prompts, not over another data loader")
    graph.prune()
    prompts = _Prompts.of(dataloader, model, tokenizer)
    decoder = _decoder(model)
    return _each(
        metrics,
        lambda metric: prompts.evaluate(decoder, graph.engine, metric, Intervention(intervention), quiet).circuit,
    )


def evaluate_baseline(
    model: Any,
    dataloader: Iterable[Any],
    metrics: Metric | list[Metric],
    run_corrupted: bool = False,
    quiet: bool = False,
    tokenizer: Any = None,
) -> Tensor | list[Tensor]:
    """Run the whole model on the clean prompts, or on the corrupted ones.

    As in EAP-IG, the metric's second argument is the logits of the other prompts.

    Returns:
        The metric's value for each prompt [b] in float64; of several metrics a list of these.
    """
    decoder = _decoder(model)
    prompts = _Prompts.of(dataloader, model, tokenizer)
    if not run_corrupted:
        pairs = prompts.pairs
        prompts = replace(prompts, pairs=PromptPairs(pairs.corrupted, pairs.clean, pairs.labels))
    empty = Graph.from_model(decoder).engine
    return _each(
        metrics, lambda metric: prompts.evaluate(decoder, empty, metric, Intervention.PATCHING, quiet).corrupted
    )


@dataclass(frozen=True)
class _Prompts:
    """A data loader's prompts as pairs.

    The engine hands a metric two label ids per item; here these are the item's number, as two digits in base n.
    `labels` is what the loader yielded for each item, as a batch of one, `batch_size` that of its first batch.
    """

    pairs: PromptPairs
    labels: list[Any]
    base: int
    batch_size: int

    @classmethod
    def of(cls, dataloader: Iterable[Any], model: Any, tokenizer: Any) -> _Prompts:
        """Read a data loader to its end."""
        clean: list[list[int]] = []
        corrupted: list[list[int]] = []
        labels: list[Any] = []
        batch_size = 0
        encode = _Encoder(model, tokenizer)
        for clean_texts, corrupted_texts, batch_labels in dataloader:
            if not len(clean_texts) == len(corrupted_texts) == len(batch_labels):
                raise InputError(
                    f"a batch has {len(clean_texts)} clean prompts, {len(corrupted_texts)} corrupted ones and"
                    f" {len(batch_labels)} labels: one of each is wanted per item"
                )
            clean += map(encode, clean_texts)
            corrupted += map(encode, corrupted_texts)
            labels += [batch_labels[item : item + 1] for item in range(len(batch_labels))]
            batch_size = batch_size or len(clean_texts)
        base = _vocabulary(model)
        numbers = [divmod(item, base) for item in range(len(labels))]
        return cls(PromptPairs(clean, corrupted, numbers), labels, base, max(1, batch_size))

    def loss(self, metric: Metric) -> MetricFunction:
        """Return a metric of EAP-IG's signature in the engine's form."""

        def loss(logits: Tensor, clean_logits: Tensor, numbers: Tensor) -> Tensor:
            values = []
            for row, (high, low) in enumerate(numbers.tolist()):
                item = high * self.base + low
                length = len(self.pairs.clean[item])
                lengths = torch.tensor([length], device=logits.device)
                run, clean = (_at_last_position(part[row], length) for part in (logits, clean_logits))
                value = metric(run, clean, lengths, self.labels[item])
                if value.numel() != 1:
                    raise InputError(f"a metric gives one number per prompt; this one gave {value.numel()}")
                values.append(value.reshape(()))
            return torch.stack(values)

        loss.__name__ = getattr(metric, "__name__", "custom")
        return loss

    def evaluate(
        self, decoder: Decoder, circuit: EngineGraph, metric: Metric, intervention: Intervention, quiet: bool
    ) -> evaluation.Evaluation:
        """Evaluate a circuit on the prompts."""
        return evaluation.evaluate(
            decoder, [circuit], self.pairs, intervention, self.loss(metric), self.batch_size, progress=not quiet
        )[0]


def _at_last_position(logits: Tensor, length: int) -> Tensor:
    """Return logits [n] as those of one prompt's last position, [1, p, n]; the other positions are NaN."""
    unknown = logits.new_full((1, 1, 1), torch.nan).expand(1, length - 1, len(logits))
    return torch.cat((unknown, logits[None, None]), 1)


def _each(metrics: Metric | list[Metric], value: Callable[[Metric], Tensor]) -> Tensor | list[Tensor]:
    """Return the value of one metric, or of each in a list; as in EAP-IG, a list of one gives one value."""
    values = [value(metric) for metric in (metrics if isinstance(metrics, list) else [metrics])]
    return values[0] if len(values) == 1 else values


@dataclass(frozen=True)
class _Encoder:
    """Turns a prompt into token ids with one start token; ids are taken as they are."""

    model: Any
    given: Any

    def __call__(self, prompt: str | Sequence[int]) -> list[int]:
        return encode_prompt(self._tokenizer, prompt) if isinstance(prompt, str) else [int(token) for token in prompt]

    @cached_property
    def _tokenizer(self) -> Any:
        if self.given is not None:
            return self.given
        if getattr(self.model, "tokenizer", None) is not None:
            return self.model.tokenizer
        name = getattr(getattr(self.model, "config", None), "_name_or_path", "")
        if not name:
            raise InputError("the model does not know its tokenizer; give it as `tokenizer`, or prompts as token ids")
        return AutoTokenizer.from_pretrained(name)


def _decoder(model: Any) -> Decoder:
    """Return a model's weights as the engine takes them; the model is left as it is."""
    if isinstance(model, Decoder):
        return model
    if isinstance(model, PreTrainedModel):
        # TransformerLens replaces a model's modules when it reads it.
        return decoder_from_model(copy.deepcopy(model))
    if hasattr(model, "original_model") and hasattr(model, "blocks"):
        return decoder_from_bridge(model)
    raise InputError(f"a model is a TransformerBridge, a Hugging Face model or a Decoder, not {type(model).__name__}")


def _vocabulary(model: Any) -> int:
    """Return n, as `PromptPairs.check_fits` counts it."""
    if isinstance(model, Decoder):
        return model.d_vocab
    if isinstance(model, PreTrainedModel):
        return int(model.config.vocab_size)
    return int(model.cfg.d_vocab)


def _shape_of(model_or_config: Any) -> tuple[Layout, int]:
    """Return the layout and d_model of a model or a configuration."""
    if isinstance(model_or_config, Mapping):
        cfg = dict(model_or_config)
    elif isinstance(model_or_config, (Decoder, PreTrainedModel)) or hasattr(model_or_config, "original_model"):
        decoder = _decoder(model_or_config)
        return layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel), decoder.d_model
    else:
        names = ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")
        cfg = {name: getattr(model_or_config, name, None) for name in names}
    for name in ("n_layers", "n_heads", "d_model"):
        if not isinstance(cfg.get(name), int):
            raise InputError(f"a configuration has a whole number as {name!r}, not {cfg.get(name)!r}")
    return layout_of(cfg["n_layers"], cfg["n_heads"], bool(cfg.get("parallel_attn_mlp"))), cfg["d_model"]


def _only_edges(level: str) -> None:
    if level != "edge":
        raise InputError(f"the engine scores edges; it has no {level} level")
