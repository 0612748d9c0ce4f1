"""Circuit discovery over checkpoints: score the edges of every group's graph and write them.

One work item is one group at one checkpoint: its prompt pairs go through `attribution.attribute`, and the scored graph
(every node and edge in it) is written with a `meta` that says how it came about. circuit_eval.py selects circuits from
it. The unit of a manifest is the graph, with its details (stability, scores by token span) where they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowledge_circuits import __version__
from knowledge_circuits.engine.attribution import attribute, provenance
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.graph_files import read_graph, write_details
from knowledge_circuits.engine.stability import Details, Resampling
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import FileRecord, State, Status, begin, check, finish, read_manifest, remove_replaced
from knowledge_circuits.runs import Checkpoint, CircuitFolder, find_graph, method_name
from knowledge_circuits.sweeps.flags import CircuitSettings
from knowledge_circuits.sweeps.groups import AnyGroupData, check_pairs
from knowledge_circuits.sweeps.model_loader import LoadedModel, ModelLoader
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

    @property
    def steps(self) -> int | None:
        """The integration steps; None for a method that has none."""
        return self.ig_steps if self.method.uses_steps else None


def discover(model: LoadedModel, data: AnyGroupData, settings: DiscoverySettings) -> Graph:
    """Score every edge of the model's graph on one group's prompts.

    Raises:
        InputError: prompts that are not this tokenizer's or do not fit the model, or scores that are not finite.
    """
    group, pairs = data.group, data.pairs(model.tokenizer)
    if settings.spans:
        pairs = pairs.with_spans()
    graph = attribute(
        model.decoder,
        pairs,
        method=settings.method,
        gradient=settings.gradient,
        metric=settings.metric,
        ig_steps=settings.ig_steps,
        batch_size=settings.batch_size,
        memory_gb=settings.memory_gb,
        per_prompt=Resampling().weights(len(pairs)) if settings.stability else False,
        by_span=settings.spans,
    )
    if settings.stability > graph.layout.n_edges:
        raise InputError(f"--stability {settings.stability}: the graph has only {graph.layout.n_edges} edges")
    return graph.with_meta(
        task=str(group.task),
        **group.keys,
        checkpoint=model.checkpoint.name,
        version=__version__,
    )


def discovery_items(
    checkpoints: Sequence[Checkpoint], groups: Sequence[AnyGroupData], loader: ModelLoader, settings: DiscoverySettings
) -> list[WorkItem]:
    """Return the work of scoring every group at every checkpoint.

    Args:
        checkpoints: in step order.
        groups: none of them empty.
        loader: loads each checkpoint once.

    Raises:
        InputError: the data are not of the first checkpoint's tokenizer, or lack the answers that the metric reads.
    """
    check_pairs(groups, loader.tokenizer(checkpoints[0]), settings.metric)
    units = [_GraphUnit(checkpoint, data, loader, settings) for checkpoint in checkpoints for data in groups]
    return [
        WorkItem(
            name=f"{unit.checkpoint.name}: {unit.data.group}",
            batch=unit.checkpoint.address,
            cost=unit.data.size,
            states=unit.states,
            run=unit.run,
            adopt=unit.adopt,
        )
        for unit in units
    ]


@dataclass(frozen=True)
class _GraphUnit:
    """One group's scored graph at one checkpoint."""

    checkpoint: Checkpoint
    data: AnyGroupData
    loader: ModelLoader
    settings: DiscoverySettings

    @property
    def folder(self) -> CircuitFolder:
        name = method_name(self.settings.method, self.settings.gradient, self.settings.metric)
        return self.checkpoint.circuit_folder(self.settings.circuit_n, self.data.group, name)

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
        """Return what became of the graph.

        Raises:
            InputError: the file is the graph of another group or checkpoint.
        """
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
        """Write a manifest for a graph without one.

        Raises:
            InputError: its meta says that it was scored in another way.
        """
        path = find_graph(self.folder.graph())
        if path is None:
            return
        meta = read_graph(path).meta
        pairs = self.data.pairs(self.loader.tokenizer(self.checkpoint))
        settings = self.settings
        now = provenance(
            pairs,
            self.loader.dtype,
            settings.method,
            settings.ig_steps,
            metric=settings.metric,
            gradient=settings.gradient,
        )
        refuse_misplaced(read_graph(path), path, self.data.group, self.checkpoint.name)
        differing = [f"{key} {meta[key]!r}, now {now[key]!r}" for key in now if meta.get(key, now[key]) != now[key]]
        if differing:
            raise InputError(f"{path} was made with {'; '.join(differing)}; --overwrite recomputes it")
        finish(self.folder.manifest, "graph", self.made_from, [path])

    def run(self) -> None:
        """Score the graph and write it, its manifest last."""
        settings, manifest = self.settings, self.folder.manifest
        graph = discover(self.loader.load(self.checkpoint), self.data, settings)
        begin(manifest, "graph", self.made_from)
        files = [replace_graph(graph, self.folder.graph, settings.suffix, manifest, settings.overwrite)]
        if settings.stability or settings.spans:
            write_details(self.folder.details, graph.layout, Details.of(graph, settings.stability))
            files.append(self.folder.details)
        remove_replaced(manifest, files)
        finish(manifest, "graph", self.made_from, files)


def graph_origin(folder: CircuitFolder, path: Path) -> dict[str, Any]:
    """Return what a graph's scores were made from, each key after "graph"; its digest if it has no manifest."""
    manifest = read_manifest(folder.manifest)
    if manifest is None:
        return {"graph": FileRecord.of(path).sha256[:16]}
    beside = ("stability", "spans")  # details, on which no score depends
    return {f"graph {key}": value for key, value in manifest.made_from.items() if key not in beside}
