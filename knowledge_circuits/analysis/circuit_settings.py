"""Which circuits of a run a table or figure is about, and the files that hold them.

A run may have circuits under several settings. Functions that take a `setting` use the one with most circuits
(`main_setting`) where it is None. Those that take a `kind` of groups (the study's `Group`, or `FactGroup` for facts of
one's own) use `main_kind` where it is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from knowledge_circuits.analysis.timeline import with_epochs
from knowledge_circuits.engine.options import Method, Metric
from knowledge_circuits.runs import PATCHING, Content, Coordinates, Run
from knowledge_circuits.study import AnyGroup, FactGroup, Group, groups

#: What is said where a figure or table would show circuits and there are none.
NO_CIRCUITS = "No circuits in this run yet: circuit_discovery.py and circuit_eval.py write them."

#: The columns that name a group in tables: of the study, and of one's own facts.
GROUP_COLUMNS = ["task", "type", "band"]
FACT_GROUP_COLUMNS = ["task", "group"]

Kind = type[Group] | type[FactGroup]


@dataclass(frozen=True, order=True)
class Setting:
    """One choice of circuits in a run: prompts per group, attribution method, circuit size, intervention."""

    circuit_n: int
    method: str
    topn: int
    intervention: str = PATCHING

    def __str__(self) -> str:
        intervention = "" if self.intervention == PATCHING else f", {self.intervention} ablation"
        return f"{self.method}, {self.circuit_n} prompts a group, top {self.topn:,} edges{intervention}"


def _setting(key: Coordinates) -> Setting | None:
    """Return the setting of a circuit's file; None for a scored graph, from which circuits of any size are selected."""
    return None if key.topn is None else Setting(key.circuit_n, key.method, key.topn, key.intervention)


def settings(run: Run) -> list[Setting]:
    """Return the settings that the run has circuits or results of: those with most circuits first, then EAP-IG's."""
    count: Counter[Setting] = Counter()
    for checkpoint in run.checkpoints():
        for key, content in checkpoint.circuit_files():
            if (setting := _setting(key)) is not None:
                count[setting] += content is Content.GRAPH
    return sorted(count, key=lambda setting: (-count[setting], setting.method != Method.EAP_IG, setting))


def main_setting(run: Run) -> Setting | None:
    """Return the setting that figures show where none is given: the one with most circuits; None without circuits."""
    return next(iter(settings(run)), None)


def files_by_checkpoint(
    run: Run, setting: Setting | None
) -> Iterator[tuple[int, float, dict[tuple[Coordinates, Content], Path]]]:
    """Yield each checkpoint's step, epoch and files of circuits under a setting; nothing without circuits."""
    setting = setting or main_setting(run)
    for checkpoint, step, epoch in with_epochs(run) if setting is not None else ():
        files = checkpoint.circuit_files().items()
        yield step, epoch, {key: path for key, path in files if _setting(key[0]) == setting}


def main_kind(run: Run, setting: Setting | None = None) -> Kind:
    """Return which groups are shown where none are named: the study's, else one's own facts if these have circuits."""
    kind: Kind = Group
    for _, _, files in files_by_checkpoint(run, setting):
        for key, _ in files:
            if key.study_group is not None:
                return Group
            kind = FactGroup
    return kind


def metric_of(key: Coordinates) -> Metric:
    """Return the metric by which a circuit was evaluated: that of its scores, of an ensemble the first one's."""
    scored = key.scored.method.split("+")[0]
    return next((metric for metric in Metric if scored.endswith(f"_{metric}")), Metric.LOGIT_DIFFERENCE)


@dataclass(frozen=True)
class CircuitFile:
    """One file of a circuit, and what it is about."""

    step: int
    epoch: float
    group: AnyGroup
    coordinates: Coordinates
    path: Path

    @property
    def columns(self) -> dict[str, float | str]:
        """Step, epoch, circuit_step (of the checkpoint that the circuit comes from), and what names the group."""
        origin = self.coordinates.origin
        when = {"step": self.step, "epoch": self.epoch, "circuit_step": self.step if origin is None else origin}
        return {**when, **group_columns(self.group)}


def group_columns(group: AnyGroup) -> dict[str, str]:
    """Return the values of GROUP_COLUMNS or FACT_GROUP_COLUMNS."""
    if isinstance(group, FactGroup):
        return {"task": group.task, "group": group.name}
    return {"task": str(group.task), "type": str(group.type), "band": str(group.band)}


def names_of_groups(table: Container[str]) -> list[str]:
    """Return the columns that name the groups of a table: of one's own facts where it has a column `group`."""
    return FACT_GROUP_COLUMNS if "group" in table else GROUP_COLUMNS


def circuit_files(
    run: Run, setting: Setting | None, content: Content, kind: Kind | None = None
) -> Iterator[CircuitFile]:
    """Yield the files of one content under a setting, in the order of steps, groups and paths.

    A circuit that was transferred to its own checkpoint counts once.
    """
    kind = kind or main_kind(run, setting)
    order: dict[AnyGroup, int] = {group: index for index, group in enumerate(groups())}
    for step, epoch, files in files_by_checkpoint(run, setting):
        wanted = [
            CircuitFile(step, epoch, group, key, path)
            for (key, of), path in files.items()
            if of is content
            and isinstance(group := key.any_group, kind)
            and (group in order or kind is FactGroup)
            and not (key.origin == step and (replace(key, origin=None), of) in files)
        ]
        yield from sorted(wanted, key=lambda file: order.get(file.group, 0))


def own_circuit_files(run: Run, setting: Setting | None = None, kind: Kind | None = None) -> list[CircuitFile]:
    """Return the checkpoints' own circuits under a setting, not transferred ones."""
    return [file for file in circuit_files(run, setting, Content.GRAPH, kind) if file.coordinates.origin is None]
