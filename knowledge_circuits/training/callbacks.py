"""Callbacks of every run: when checkpoints are saved, and the record of every evaluation.

A checkpoint is saved after everything else that belongs to its step (logging, evaluation, probes), so that a run
resumed from it has lost nothing. That is why a save that falls due on the last step of an epoch waits for the
epoch's end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState

from knowledge_circuits.files import InputError, write_jsonl
from knowledge_circuits.records import Evaluation, shape


def exponential_steps(cap: int) -> Iterator[int]:
    """Return the steps of the exponential schedule: gaps 1, 2, 2, 4, 4, 8, 8, ..., none larger than `cap`.

    With cap 16, as in the original, these are 1, 3, 5, 9, 13, 21, 29, 45, 61, 77, 93, ...
    """
    step = 0
    for number in count(1):
        step += min(2 ** (number // 2), cap)
        yield step


class TrainingBar(ProgressCallback):
    """One bar for the whole training, with the newest numbers at its end instead of a line for each of them."""

    _SHOWN: ClassVar[dict[str, str]] = {
        "loss": "loss",
        "eval_loss": "evaluation loss",
        "probe_known_share": "known",
        "probe_learned_share": "learned",
    }

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self._numbers |= {name: f"{logs[key]:.3g}" for key, name in self._SHOWN.items() if logs and key in logs}
            self.training_bar.set_postfix(self._numbers)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Show no second bar."""


class SavingCallback(TrainerCallback):
    """Decides when checkpoints are saved. It must come after every callback that may stop the training.

    Args:
        schedule: the steps to save at, in order; None leaves it to the Trainer's own strategy.
        half_epochs: in how many of the first epochs a checkpoint is saved in the middle as well.
    """

    def __init__(self, schedule: Iterator[int] | None, steps_per_epoch: int, half_epochs: int) -> None:
        self.schedule = schedule
        self.half_epochs = half_epochs
        self.steps_per_epoch = steps_per_epoch
        self._next = next(schedule) if schedule else 0
        self._waiting = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.schedule:
            while self._next < state.global_step:
                self._next = next(self.schedule)
            control.should_save = self._next == state.global_step
        epoch, step = divmod(state.global_step, self.steps_per_epoch)
        if epoch < self.half_epochs and step and step == self.steps_per_epoch // 2:
            control.should_save = True
        if float(state.epoch or 0).is_integer() or control.should_training_stop:
            self._waiting = control.should_save or control.should_training_stop
            control.should_save = False
        self._log_before_saving(control)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Whatever ends the training, its last model is saved.
        control.should_save |= self._waiting or control.should_training_stop
        self._waiting = False
        self._log_before_saving(control)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save at an epoch's end where the evaluation there ended the training."""
        if control.should_training_stop and float(state.epoch or 0).is_integer():
            control.should_save = True

    @staticmethod
    def _log_before_saving(control: TrainerControl) -> None:
        # The running loss lives in memory: what is logged before a save cannot be lost with it.
        control.should_log |= control.should_save


class EvaluationLog(TrainerCallback):
    """Writes evaluations.jsonl: one object per evaluation, in step order; only the main process `writes`."""

    def __init__(self, path: Path, writes: bool) -> None:
        self.path = path
        self.writes = writes

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Forget evaluations later than the checkpoint that training goes on from: they come again."""
        if self.writes and self.path.exists():
            records = shape(Evaluation).lines(self.path)
            earlier = [record for record in records if record["step"] <= state.global_step and state.global_step > 0]
            if len(earlier) < len(records):
                write_jsonl(self.path, earlier)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        record = evaluation_record(metrics, state.global_step, state.epoch or 0.0)
        if self.writes:
            records = shape(Evaluation).optional_lines(self.path)
            write_jsonl(self.path, [*(other for other in records if other["step"] < record["step"]), record])


def evaluation_record(metrics: dict[str, float], step: int, epoch: float) -> dict[str, float]:
    """Return one line of evaluations.jsonl: the Trainer's metrics without their prefix and without timings.

    Raises:
        InputError: the loss is not a finite number.
    """
    names = ["loss", "accuracy", *sorted(key[5:] for key in metrics if key.endswith("_first_token_attribute_accuracy"))]
    record: dict[str, float] = {"step": step, "epoch": epoch}
    record |= {name: metrics[f"eval_{name}"] for name in names if f"eval_{name}" in metrics}
    if not math.isfinite(record.get("loss", 0.0)):
        raise InputError(f"step {step}: the evaluation loss is {record['loss']}; a lower --learning_rate may help")
    return record
