"""Circuit discovery over checkpoints: score the edges of every group's graph and write them.

One work item is one group at one checkpoint: its prompt pairs go through `attribution.attribute`, and the scored graph
(every node and edge in it) is written with a `meta` that says how it came about. circuit_eval.py selects circuits from
it. The unit of a manifest is the graph, with its details (stability, scores by token span) where they are asked for.

With `--ensemble` the group is scored in several ways, a graph each. Only here, where the scores of all resamples are in
memory, can the stability of their mean be measured: its details are a further unit, without a graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from knowledge_circuits import __version__
from knowledge_circuits.engine.attribution import attribute, provenance
from knowledge_circuits.engine.graph import Graph, layout_of
from knowledge_circuits.engine.graph_files import read_graph, write_details
from knowledge_circuits.engine.options import GradientRule, Method, Metric
from knowledge_circuits.engine.selection import mean_scores
from knowledge_circuits.engine.stability import Details, Resampling, mean_resampled
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import FileRecord, State, Status, begin, check, finish, read_manifest, remove_replaced
from knowledge_circuits.runs import Checkpoint, CircuitFolder, find_graph, method_name
from knowledge_circuits.sweeps.flags import CircuitSettings
from knowledge_circuits.sweeps.groups import AnyGroupData, check_pairs
from knowledge_circuits.sweeps.model_loader import ModelLoader
from knowledge_circuits.sweeps.processes import WorkItem
from knowledge_circuits.sweeps.programs import refuse_misplaced, replace_graph


@dataclass(frozen=True, kw_only=True)
class DiscoverySettings(CircuitSettings):
    """How graphs are scored; see also `flags.CircuitSettings`.

    Attributes:
        ig_steps: of the methods that integrate.
        stability: edges of the circuits whose stability under resampled prompts is measured; 0 measures none.
        spans: whether scores by token span are kept.
    """

    ig_steps: int = 5
    stability: int = 0
    spans: bool = False

    def __post_init__(self) -> None:
        if self.method is Method.EXACT and self.gradient is not GradientRule.STANDARD:
            raise InputError(f"--method exact takes no gradient, so --gradient {self.gradient} does not go with it")
        if self.method is Method.EXACT and self.spans:
            raise InputError("--method exact gives no scores by token span, so --spans does not go with it")

    @property
    def steps(self) -> int | None:
        """The integration steps; None for a method that has none."""
        return self.ig_steps if self.method.uses_steps else None

    def alone(self) -> list[DiscoverySettings]:
        """Return the settings of each way of scoring by itself; refuse a name that is none of a way of scoring."""
        ways = {method_name(*way): way for way in product(Method, GradientRule, Metric)}
        if unknown := [name for name in self.methods if name not in ways]:
            raise InputError(
                f"--ensemble {unknown[0]}: no way of scoring has this name; it is a method, then a gradient rule and a "
                "metric that are not the default, such as EAP_gim"
            )
        chosen = [ways[name] for name in self.methods]
        return [replace(self, ensemble=(), method=one, gradient=two, metric=three) for one, two, three in chosen]


def discovery_items(
    checkpoints: Sequence[Checkpoint], groups: Sequence[AnyGroupData], loader: ModelLoader, settings: DiscoverySettings
) -> list[WorkItem]:
    """Return the work of scoring every group at every checkpoint.

    Args:
        checkpoints: in step order.
        groups: none of them empty.

    Raises:
        InputError: settings that do not go together; the data are not of the first checkpoint's tokenizer, lack the
            answers that a metric reads, or are too few for the stability; or the graph has fewer edges than that.
    """
    resampling = Resampling() if settings.stability else None
    for metric in dict.fromkeys(one.metric for one in settings.alone()):
        check_pairs(groups, loader.tokenizer(checkpoints[0]), metric, resampling)
    if settings.stability:
        _refuse_more_edges(settings.stability, loader.n_edges(checkpoints[0]))
    return [_GroupScoring(checkpoint, data, loader, settings).item() for checkpoint in checkpoints for data in groups]


def _refuse_more_edges(stability: int, edges: int) -> None:
    if stability > edges:
        raise InputError(f"--stability {stability}: the graph has only {edges} edges")


@dataclass(frozen=True)
class _GroupScoring:
    """One group's scored graphs at one checkpoint, one for each way of scoring, and the details of their mean."""

    checkpoint: Checkpoint
    data: AnyGroupData
    loader: ModelLoader
    settings: DiscoverySettings

    def item(self) -> WorkItem:
        name = f"{self.checkpoint.name}: {self.data.group}"
        return WorkItem(name, self.checkpoint.address, self.data.size, self.states, self.run, self.adopt)

    @cached_property
    def units(self) -> list[_GraphUnit]:
        return [_GraphUnit(self.checkpoint, self.data, self.loader, one) for one in self.settings.alone()]

    @property
    def has_mean(self) -> bool:
        return len(self.units) > 1 and bool(self.settings.stability or self.settings.spans)

    @property
    def mean_folder(self) -> CircuitFolder:
        return self.settings.scored_folder(self.checkpoint, self.data.group)

    @property
    def mean_made_from(self) -> dict[str, Any]:
        """Everything that the mean's details depend on; of the graphs in the words of `graphs_origin`."""
        graphs = {
            f"{unit.folder.coordinates.method} {key}": value
            for unit in self.units
            for key, value in _origin(unit.made_from).items()
        }
        details = {key: value for key, value in self.units[0].made_from.items() if key in _DETAILS}
        return {**self.loader.facts(self.checkpoint), **graphs, **details}

    def mean_state(self) -> State:
        folder = self.mean_folder
        return check(folder.manifest, self.mean_made_from, [folder.details], self.settings.verify)

    def states(self) -> list[State]:
        """Return what became of the graphs, and of the mean's details where they are asked for."""
        states = [state for unit in self.units for state in unit.states()]
        return [*states, self.mean_state()] if self.has_mean else states

    def adopt(self) -> None:
        for unit in self.units:
            unit.adopt()

    def run(self) -> None:
        """Score in each way and write what is not whole; a whole graph is scored again where the mean's details lack.

        The details of the mean are written after the graphs.
        """
        again = self.settings.overwrite
        mean = self.has_mean and (again or not self.mean_state().is_whole)
        graphs = []
        for unit in self.units:
            write = again or not all(state.is_whole for state in unit.states())
            if write or mean:
                graph = unit.score()
                if write:
                    unit.write(graph)
                if mean:
                    graphs.append(graph)
        if mean:
            self.write_mean(graphs)

    def write_mean(self, graphs: Sequence[Graph]) -> None:
        """Write the details of the mean of the graphs' scores, the manifest last."""
        folder, stability = self.mean_folder, self.settings.stability
        average = mean_resampled(graphs) if stability else mean_scores(graphs)
        begin(folder.manifest, "details", self.mean_made_from)
        write_details(folder.details, average.layout, Details.of(average, stability))
        finish(folder.manifest, "details", self.mean_made_from, [folder.details])


@dataclass(frozen=True)
class _GraphUnit:
    """One group's scored graph at one checkpoint."""

    checkpoint: Checkpoint
    data: AnyGroupData
    loader: ModelLoader
    settings: DiscoverySettings

    @property
    def folder(self) -> CircuitFolder:
        return self.settings.scored_folder(self.checkpoint, self.data.group)

    @property
    def made_from(self) -> dict[str, Any]:
        """Everything that the scores depend on."""
        group, settings = self.data.group, self.settings
        return {
            **self.loader.facts(self.checkpoint),
            **{"task": str(group.task), **group.keys},
            **{"prompts": self.data.digest, "method": str(settings.method), "metric": str(settings.metric)},
            **{"gradient": str(settings.gradient), "ig_steps": settings.steps},
            **({"stability": settings.stability} if settings.stability else {}),
            **({"spans": self.data.spans} if settings.spans else {}),
        }

    def states(self) -> list[State]:
        """Return what became of the graph; refuse the graph of another group or checkpoint."""
        path = find_graph(self.folder.graph())
        state = check(self.folder.manifest, self.made_from, verify=self.settings.verify, beside=[path] if path else [])
        if state.status is Status.DAMAGED and path is not None:
            try:
                graph = read_graph(path)
            except InputError:
                return [state]  # a cut file is made again
            refuse_misplaced(graph, path, self.data.group, self.checkpoint.name)
        return [state]

    def adopt(self) -> None:
        """Write a manifest for a graph without one; refuse one scored in another way. Details are made anew."""
        path = find_graph(self.folder.graph())
        if path is None:
            return
        graph, settings = read_graph(path), self.settings
        pairs = self.data.pairs(self.loader.tokenizer(self.checkpoint))
        now = provenance(
            pairs,
            self.loader.dtype,
            settings.method,
            settings.ig_steps,
            metric=settings.metric,
            gradient=settings.gradient,
        )
        refuse_misplaced(graph, path, self.data.group, self.checkpoint.name)
        meta = graph.meta
        differing = [f"{key} {meta[key]!r}, now {now[key]!r}" for key in now if meta.get(key, now[key]) != now[key]]
        if differing:
            raise InputError(f"{path} was made with {'; '.join(differing)}; --overwrite recomputes it")
        made_from = {key: value for key, value in self.made_from.items() if key not in _DETAILS}
        finish(self.folder.manifest, "graph", made_from, [path])

    def score(self) -> Graph:
        """Score every edge of the model's graph on the group's prompts.

        Raises:
            InputError: prompts that are not this tokenizer's or do not fit the model, or scores that are not finite.
        """
        model, settings, group = self.loader.load(self.checkpoint), self.settings, self.data.group
        layout = layout_of(model.decoder.n_layers, model.decoder.n_heads, model.decoder.parallel)
        _refuse_more_edges(settings.stability, layout.n_edges)
        pairs = self.data.pairs(model.tokenizer)
        if settings.spans:
            pairs = pairs.with_spans()
        graph = attribute(
            model.decoder,
            pairs,
            method=settings.method,
            gradient=settings.gradient,
            metric=settings.metric,
            ig_steps=settings.ig_steps,
            per_prompt=Resampling().weights(len(pairs)) if settings.stability else False,
            by_span=settings.spans,
            **settings.bounds,
        )
        return graph.with_meta(task=str(group.task), **group.keys, checkpoint=self.checkpoint.name, version=__version__)

    def write(self, graph: Graph) -> None:
        """Write the graph and its details, the manifest last."""
        settings, manifest = self.settings, self.folder.manifest
        begin(manifest, "graph", self.made_from)
        files = [replace_graph(graph, self.folder.graph, settings.suffix, manifest, settings.overwrite)]
        if settings.stability or settings.spans:
            write_details(self.folder.details, graph.layout, Details.of(graph, settings.stability))
            files.append(self.folder.details)
        remove_replaced(manifest, files)
        finish(manifest, "graph", self.made_from, files)


#: Keys of `made_from` on which a graph's details depend and no score.
_DETAILS = ("stability", "spans")


def _origin(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a graph's scores were made from, in the words of what is made of the graph."""
    return {f"graph {key}": value for key, value in made_from.items() if key not in _DETAILS}


def graphs_origin(folders: Sequence[CircuitFolder]) -> dict[str, Any]:
    """Return what the scores of graphs were made from; a graph that is gone has no part in it.

    With several folders of scored graphs, each one's keys begin with its way of scoring.
    """
    origin: dict[str, Any] = {}
    for folder in folders:
        prefix = f"{folder.coordinates.method} " if len(folders) > 1 else ""
        if path := find_graph(folder.graph()):
            manifest = read_manifest(folder.manifest)
            part = _origin(manifest.made_from) if manifest else {"graph": FileRecord.of(path).sha256[:16]}
            origin |= {f"{prefix}{key}": value for key, value in part.items()}
    return origin
