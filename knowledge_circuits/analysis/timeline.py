"""A run over time: which folder it is, what figures call it, and the epoch of each of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import pandas as pd

from knowledge_circuits.files import InputError
from knowledge_circuits.paths import REPOSITORY
from knowledge_circuits.records import Evaluation, LoggedLoss, LoggedState, shape
from knowledge_circuits.run_config import read_run_config
from knowledge_circuits.runs import Checkpoint, Run


def find_run(path: str) -> Run:
    """Return the run of a folder, which is looked up from the working folder, then from the repository's root.

    Args:
        path: "" means nano's run.

    Raises:
        InputError: no such run.
    """
    wanted = Path(path or "outputs/train/nano/default").expanduser()
    for candidate in (wanted, REPOSITORY / wanted):
        if (candidate / "checkpoints").is_dir():
            return Run(candidate)
    raise InputError(
        f"{wanted}: not a run (no checkpoints/ in it); name a run's folder (`--run` of report.py, `RUN` of a "
        "notebook), or make nano's with scripts/reproduce.sh"
    )


class RunName(str):
    """What figures call a run, and what they must know of its time axis."""

    run: Run

    @cached_property
    def changing_rate(self) -> list[tuple[float, float]]:
        """The spans of epochs in which the learning rate changed, which figures over time shade; none where it was
        constant or not logged."""
        logged = training_log(self.run).dropna(subset=["learning_rate"])
        negligible = 1e-6 * logged["learning_rate"].max()
        spans: list[tuple[float, float]] = []
        for (start, before), (end, after) in pairwise(zip(logged["epoch"], logged["learning_rate"], strict=True)):
            if abs(after - before) > negligible:
                if spans and spans[-1][1] == start:
                    start, _ = spans.pop()
                spans.append((start, end))
        return spans

    @cached_property
    def is_history(self) -> bool:
        """Whether time is counted in optimizer steps."""
        return is_history(self.run)


def run_name(run: Run) -> RunName:
    """Return how figures call the run: the model's name and the run's own."""
    folder = run.path.resolve()
    name = RunName(f"{folder.parent.name}/{folder.name}")
    name.run = run
    return name


def model_name(run: Run) -> str:
    """Return the run's `--model`, from its configuration or, without one, from its path."""
    return read_run_config(run).model or run.path.resolve().parent.name


def _trainer_states(run: Run) -> dict[Checkpoint, Path]:
    """Return the trainer_state.json of the checkpoints that have one, in step order."""
    states = {checkpoint: Path(checkpoint.path) / "trainer_state.json" for checkpoint in run.checkpoints()}
    return {checkpoint: path for checkpoint, path in states.items() if path.exists()}


def is_history(run: Run) -> bool:
    """Return whether a folder has the results of a public training history: nothing of the training itself."""
    records = (run.config, run.evaluations, run.knowledge_dynamics)
    return not any(path.exists() for path in records) and not _trainer_states(run)


def epochs(run: Run) -> dict[int, float]:
    """Return the epoch of each of the run's checkpoints, by step.

    Known from the evaluations and from each checkpoint's trainer_state.json; checkpoint-0 is epoch 0. A checkpoint
    without either is placed by the steps per epoch of the others. In a public training history, whose epochs nobody
    records, the step stands for the epoch.

    Raises:
        InputError: nothing tells how many steps make an epoch.
    """
    steps = [checkpoint.step for checkpoint in run.checkpoints() if checkpoint.step is not None]
    if is_history(run):
        return {step: float(step) for step in steps}
    known = {0: 0.0} | {row["step"]: float(row["epoch"]) for row in shape(Evaluation).optional_lines(run.evaluations)}
    for checkpoint, state in _trainer_states(run).items():
        epoch = shape(LoggedState).file(state).get("epoch")
        if checkpoint.step is not None and epoch is not None:
            known[checkpoint.step] = float(epoch)
    pairs = [(step, epoch) for step, epoch in known.items() if step > 0 and epoch > 0]
    if not pairs and any(steps):
        raise InputError(
            f"{run.path}: neither evaluations.jsonl nor a trainer_state.json tells the checkpoints' epochs"
        )
    per_step = max(pairs)[1] / max(pairs)[0] if pairs else 0.0
    return {step: known.get(step, step * per_step) for step in steps}


def nearest_step(epochs: Mapping[int, float], epoch: float) -> int:
    """Return the step whose epoch, given by step, is nearest to the wanted one; `inf` means the last one."""
    if epoch == float("inf"):
        return max(epochs, key=epochs.__getitem__)
    return min(epochs, key=lambda step: abs(epochs[step] - epoch))


def with_epochs(run: Run) -> Iterator[tuple[Checkpoint, int, float]]:
    """Yield each of the run's checkpoints with its step and epoch, in step order."""
    by_step = epochs(run)
    for checkpoint in run.checkpoints():
        if checkpoint.step is not None:
            yield checkpoint, checkpoint.step, by_step[checkpoint.step]


def training_log(run: Run) -> pd.DataFrame:
    """Return what the Trainer logged, if anything: columns step, epoch, loss, learning_rate (NaN where not logged)."""
    columns = ["step", "epoch", "loss", "learning_rate"]
    states = list(_trainer_states(run).values())
    if not states:
        return pd.DataFrame(columns=columns)
    history = shape(LoggedState).file(states[-1]).get("log_history", [])
    losses = [row for row in history if "loss" in row and "epoch" in row]
    rows = [shape(LoggedLoss).check(row, f"{states[-1]}, log_history") for row in losses]
    return pd.DataFrame(rows, columns=columns).astype({"learning_rate": float})
