"""Every group's circuit on every other group's prompts, and the edges that all groups share: one circuit or many?

The faithfulness of a circuit on its own prompts does not say whether it is that group's alone. `measure` runs each
group's circuit under patching on the prompts of every group (tasks, types and bands), and the shared core: the edges
that are in all circuits, pruned. A small core is less faithful than a whole circuit whatever it holds, so each group's
own strongest edges, as many as the core has, are run beside it. (The question is arXiv 2606.06267's.)

One work item is one checkpoint and circuit size; `cross_groups.json` in the size's folder holds the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import evaluate
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.files import InputError, write_json
from knowledge_circuits.manifest import State, Status, begin, check, fingerprint, finish, read_manifest
from knowledge_circuits.runs import Checkpoint
from knowledge_circuits.study import AnyGroup
from knowledge_circuits.sweeps.chosen_circuits import EvaluationSettings
from knowledge_circuits.sweeps.evaluation import CircuitKey, GroupEvaluation, finite_or_none
from knowledge_circuits.sweeps.groups import AnyGroupData
from knowledge_circuits.sweeps.model_loader import ModelLoader
from knowledge_circuits.sweeps.processes import WorkItem

NAME = "cross_groups.json"


def shared_core(circuits: Sequence[Graph]) -> Graph:
    """Return the edges that are in all circuits, pruned, with the scores of the first."""
    return prune(reduce(and_, circuits))


def measure(
    decoder: Decoder,
    circuits: Mapping[AnyGroup, Graph],
    pairs: Mapping[AnyGroup, PromptPairs],
    signed: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Measure each circuit's and the shared core's faithfulness on the prompts of every group.

    Args:
        circuits: each group's circuit with the scores of all edges.
        pairs: each group's prompts, the same groups.
        signed: the circuits are of the largest signed scores, not of the largest |score|.
        options: of `evaluate`: intervention, metric, batch_size, memory_gb.

    Returns:
        groups: the task and the grouping columns of each; edges: of their circuits; faithfulness: a row for each
        circuit, a column for each group's prompts; shared: edges and nodes of the core, its faithfulness on each
        group's prompts, and that of the group's own strongest edges, as many as the core has (same_size). None where
        it is undefined.
    """
    core = shared_core(list(circuits.values()))
    columns = []
    for group, circuit in circuits.items():
        own = prune(top_n(circuit, core.n_edges, not signed))
        columns.append(evaluate(decoder, [*circuits.values(), core, own], pairs[group], **options))
    rows = [[finite_or_none(outcome.faithfulness) for outcome in row] for row in zip(*columns, strict=True)]
    return {
        "groups": [{"task": str(group.task), **dict(group.columns)} for group in circuits],
        "edges": [circuit.n_edges for circuit in circuits.values()],
        "faithfulness": rows[:-2],
        "shared": {"edges": core.n_edges, "nodes": core.n_nodes, "faithfulness": rows[-2], "same_size": rows[-1]},
    }


def cross_group_items(
    checkpoints: Sequence[Checkpoint], groups: Sequence[AnyGroupData], loader: ModelLoader, settings: EvaluationSettings
) -> list[WorkItem]:
    """Return the work of measuring all groups' circuits on each other's prompts, one item per checkpoint and size.

    Raises:
        InputError: fewer than two groups.
    """
    if len(groups) < 2:
        raise InputError("--cross_groups compares groups; choose at least two")
    return [_CrossGroups(one, groups, loader, settings, topn).item() for one in checkpoints for topn in settings.topn]


@dataclass(frozen=True)
class _CrossGroups:
    """All groups' circuits at one checkpoint."""

    checkpoint: Checkpoint
    groups: Sequence[AnyGroupData]
    loader: ModelLoader
    settings: EvaluationSettings
    topn: int

    def item(self) -> WorkItem:
        name = f"{self.checkpoint.name}: cross groups, top {self.topn}"
        cost = sum(data.size for data in self.groups) * (len(self.groups) + 4)
        return WorkItem(name, self.checkpoint.address, cost, self.states, self.run)

    @property
    def path(self) -> Path:
        settings = self.settings
        folder = self.checkpoint.output / f"circuit_{settings.circuit_n}" / f"method_{settings.name}"
        return folder / settings.folder(self.checkpoint, self.groups[0].group).topn_folder(self.topn).name / NAME

    @property
    def manifest(self) -> Path:
        return self.path.with_name("cross_groups_manifest.json")

    def evaluation(self, data: AnyGroupData) -> GroupEvaluation:
        return GroupEvaluation(self.checkpoint, (), data, (), self.loader, replace(self.settings, floors=False))

    @property
    def made_from(self) -> dict[str, Any]:
        """Everything that the matrix depends on."""
        parts = {str(data.group): self.evaluation(data).made_from(CircuitKey(self.topn)) for data in self.groups}
        return {group: fingerprint(part) for group, part in parts.items()}

    def states(self) -> list[State]:
        made_from = self.made_from
        state = check(self.manifest, made_from, [self.path], self.settings.verify)
        manifest = read_manifest(self.manifest) if state.is_whole else None
        if manifest and manifest.made_from.keys() != made_from.keys():  # the core is that of more groups
            state = State(Status.MISSING, self.manifest, "of other groups")
        return [state]

    def run(self) -> None:
        """Select the circuits, measure and write, the manifest last."""
        model, settings = self.loader.load(self.checkpoint), self.settings
        circuits = {}
        for data in self.groups:
            evaluation = self.evaluation(data)
            scored = evaluation.scored(model, self.checkpoint)
            circuits[data.group] = evaluation.circuit(scored, self.checkpoint, self.topn)
        pairs = {data.group: data.pairs(model.tokenizer) for data in self.groups}
        options = {"intervention": settings.intervention, "metric": settings.metric, **settings.bounds}
        measured = measure(model.decoder, circuits, pairs, signed=settings.signed, **options)
        begin(self.manifest, "cross groups", self.made_from)
        write_json(self.path, measured)
        finish(self.manifest, "cross groups", self.made_from, [self.path])
