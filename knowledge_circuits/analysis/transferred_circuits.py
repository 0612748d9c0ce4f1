"""Transferred circuits: those of one checkpoint in the weights of others, those of one group on prompts of others.

Between checkpoints, a test of the paper's phase shift:

    python -m knowledge_circuits.analysis origins outputs/train/nano/default

prints the steps of up to four checkpoints, the origins: the first, the last one before the break point of circuit
entropy, the first one after it, and the last (steps on stdout, descriptions on stderr). `circuit_eval.py
--circuit_from` takes these steps, and `circuit_evaluation.hits_of_transferred_circuits` draws the result. If circuits
from after the break answer as well as each checkpoint's own and those from before do not, the circuits that matter
were formed at the break. (Ou et al. 2025, section 4.)

Between groups, `cross_groups` reads what `circuit_eval.py --cross_groups` measured (`sweeps/cross_groups.py`): one
circuit or many?
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from knowledge_circuits.analysis.circuit_settings import Setting, main_setting
from knowledge_circuits.analysis.findings import fit_phase_shift
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.analysis.timeline import epochs
from knowledge_circuits.files import InputError
from knowledge_circuits.records import RECORD, Count, shape
from knowledge_circuits.runs import Coordinates, Run

#: Why there is no matrix of groups where one is wanted.
NO_CROSS_GROUPS = "No circuits were run on other groups' prompts yet: circuit_eval.py --cross_groups does it."

_Row = list[float | None]


class _Shared(TypedDict):
    __pydantic_config__ = RECORD  # type: ignore[misc]
    edges: Count
    nodes: Count
    faithfulness: _Row
    same_size: _Row


class _CrossGroups(TypedDict):
    """A cross_groups.json."""

    __pydantic_config__ = RECORD  # type: ignore[misc]
    groups: Annotated[list[dict[str, str]], Field(min_length=2)]
    edges: list[Count]
    faithfulness: list[_Row]
    shared: _Shared


@dataclass(frozen=True)
class CrossGroups:
    """Every group's circuit on every group's prompts, at one checkpoint. G groups; NaN where undefined.

    Attributes:
        epoch: of the checkpoint.
        groups: in the order of rows and columns: the task and the values of the grouping columns, by name.
        edges: [G] of the groups' circuits.
        faithfulness: [G, G] the row's circuit on the column's prompts.
        core_edges: how many edges are in all circuits, the shared core.
        core: [G] the core's faithfulness on each group's prompts.
        same_size: [G] that of the group's own strongest edges, as many as the core has.
    """

    epoch: float
    groups: tuple[dict[str, str], ...]
    edges: NDArray[np.int64]
    faithfulness: NDArray[np.float64]
    core_edges: int
    core: NDArray[np.float64]
    same_size: NDArray[np.float64]

    def by_difference(self) -> dict[str, float]:
        """Return mean faithfulness on the circuits' own prompts, and where the prompts' group differs in one column."""
        cells: dict[str, list[float]] = {"own": [], **{f"other {name}": [] for name in self.groups[0]}}
        for circuit, row in zip(self.groups, self.faithfulness, strict=True):
            for prompts, value in zip(self.groups, row, strict=True):
                differing = [name for name in circuit if circuit[name] != prompts.get(name)]
                if len(differing) < 2 and np.isfinite(value):
                    cells[f"other {differing[0]}" if differing else "own"].append(float(value))
        return {name: float(np.mean(values)) for name, values in cells.items() if values}

    @property
    def sentence(self) -> str:
        """What the matrix shows, in numbers."""
        parts = [f"{name} {value:.2f}" for name, value in self.by_difference().items()]
        share = self.core_edges / self.edges.mean() if self.edges.sum() else 0.0
        return (
            f"Mean faithfulness by what the prompts' group differs in from the circuit's: {', '.join(parts)}. All"
            f" groups share {self.core_edges:,} edges ({share:.0%} of a circuit), whose faithfulness is"
            f" {np.nanmean(self.core):.2f}; each group's own strongest edges, as many, have"
            f" {np.nanmean(self.same_size):.2f}."
        )


def cross_groups(run: Run, setting: Setting | None = None) -> CrossGroups | None:
    """Return the last checkpoint's matrix of circuits and groups; None if none was measured.

    Raises:
        InputError: a damaged file.
    """
    setting = setting or main_setting(run)
    if setting is None:
        return None
    of_all_groups = Coordinates(setting.circuit_n, "", (), setting.method, setting.topn, setting.intervention)
    for checkpoint in reversed(run.checkpoints()):
        path = checkpoint.output / of_all_groups.folder / "cross_groups.json"
        if not path.exists():
            continue
        content = shape(_CrossGroups).file(path)
        groups, edges = tuple(content["groups"]), content["edges"]
        matrix, shared = content["faithfulness"], content["shared"]
        measured = matrix, shared["faithfulness"], shared["same_size"]
        rows: list[list[Any]] = [edges, *matrix, *measured]
        if any(group.keys() != groups[0].keys() for group in groups) or {len(row) for row in rows} != {len(groups)}:
            raise InputError(f"{path}: not a row and a column for each of its {len(groups)} groups")
        faithfulness, core, same_size = (np.array(values, dtype=float) for values in measured)
        epoch = epochs(run)[checkpoint.step or 0]
        return CrossGroups(epoch, groups, np.array(edges), faithfulness, shared["edges"], core, same_size)
    return None


def origin_steps(run_circuits: Circuits, seed: int = 0) -> dict[str, int]:
    """Choose the checkpoints whose circuits are transferred.

    "before the break" and "after the break" lie outside of the break point's 95% interval. A run with too few
    checkpoints for a break point has only the first and the last; a run with one checkpoint has only that.

    Args:
        seed: of the interval's bootstrap.

    Returns:
        Description -> step, in step order.
    """
    shift = fit_phase_shift(run_circuits, seed=seed)
    steps = {"the first": run_circuits.steps[0]}
    if shift is not None:
        point = float(shift.fit.break_point)
        low, high = (end if math.isfinite(end) else point for end in (shift.break_low, shift.break_high))
        checkpoints = list(zip(run_circuits.epochs, run_circuits.steps, strict=True))
        # The fit leaves at least two checkpoints on either side of any break point.
        steps["before the break"] = max(step for epoch, step in checkpoints if epoch < low)
        steps["after the break"] = min(step for epoch, step in checkpoints if epoch > high)
    if len(run_circuits.steps) > 1:
        steps["the last"] = run_circuits.steps[-1]
    return steps
