"""Circuit discovery over checkpoints: score the edges of every group's graph and write them.

One work item is one group at one checkpoint: its prompt pairs go through `attribution.attribute`, and the scored graph
(every node and edge in it) is written with a `meta` that says how it came about. A circuit is selected from it later,
by circuit_eval.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from knowledge_circuits import __version__
from knowledge_circuits.engine.attribution import attribute, provenance
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.graph_files import read_graph
from knowledge_circuits.engine.options import Method
from knowledge_circuits.runs import Checkpoint, find_graph
from knowledge_circuits.sweeps.programs import GroupData, LoadedModel, ModelLoader, refuse_stale, replace_graph
from knowledge_circuits.sweeps.queue import WorkItem


@dataclass(frozen=True)
class DiscoverySettings:
    """How graphs are scored and written.

    Attributes:
        circuit_n: prompts per group at most; part of the output path.
        method, ig_steps: of the attribution.
        batch_size, memory_gb: bounds on memory, which change no score.
        suffix: of the graph files (.json, .json.gz, .pt).
        overwrite: do again what is there.
    """

    circuit_n: int = 300
    method: Method = Method.EAP_IG
    ig_steps: int = 5
    batch_size: int = 32
    memory_gb: float | None = None
    suffix: str = ".json"
    overwrite: bool = False


def discover(model: LoadedModel, data: GroupData, settings: DiscoverySettings) -> Graph:
    """Score every edge of the model's graph on one group's prompts.

    Raises:
        InputError: prompts that are not this tokenizer's or do not fit the model, or scores that are not finite.
    """
    group, pairs = data.group, data.pairs(model.tokenizer)
    graph = attribute(
        model.decoder,
        pairs,
        method=settings.method,
        ig_steps=settings.ig_steps,
        batch_size=settings.batch_size,
        memory_gb=settings.memory_gb,
    )
    return graph.with_meta(
        task=str(group.task),
        type=str(group.type),
        frequency=str(group.band),
        checkpoint=model.checkpoint.name,
        version=__version__,
    )


def discovery_items(
    checkpoints: Sequence[Checkpoint], groups: Sequence[GroupData], loader: ModelLoader, settings: DiscoverySettings
) -> list[WorkItem]:
    """The work of scoring every group at every checkpoint.

    Args:
        checkpoints: in step order.
        groups: none of them empty.
        loader: loads each checkpoint once.
        settings: see `DiscoverySettings`.

    Raises:
        InputError: there is work to do and the data are not of the first checkpoint's tokenizer, or what is done was
            done in another way (one graph of each checkpoint is looked at).
    """
    items = [_item(checkpoint, data, loader, settings) for checkpoint in checkpoints for data in groups]
    tokenizer = loader.tokenizer(checkpoints[0])
    if not all(item.done() for item in items):
        for data in groups:
            data.pairs(tokenizer)
    for checkpoint in () if settings.overwrite else checkpoints:
        folders = [checkpoint.circuit_folder(settings.circuit_n, data.group, settings.method) for data in groups]
        graphs = [(data, find_graph(folder.graph())) for data, folder in zip(groups, folders, strict=True)]
        for data, path in [(data, path) for data, path in graphs if path is not None][:1]:
            now = provenance(data.pairs(tokenizer), loader.dtype, settings.method, settings.ig_steps)
            refuse_stale(path, read_graph(path).meta, now)
    return items


def _item(checkpoint: Checkpoint, data: GroupData, loader: ModelLoader, settings: DiscoverySettings) -> WorkItem:
    folder = checkpoint.circuit_folder(settings.circuit_n, data.group, settings.method)
    path = folder.graph(settings.suffix)

    def run() -> None:
        graph = discover(loader.load(checkpoint), data, settings)
        replace_graph(graph, folder.graph, settings.suffix, settings.overwrite)

    return WorkItem(
        name=f"{checkpoint.name}: {data.group}",
        batch=checkpoint.path,
        cost=data.size,
        done=lambda: not settings.overwrite and path.exists(),
        run=run,
    )
