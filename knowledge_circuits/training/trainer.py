"""The Hugging Face Trainer, with what a study of checkpoints needs of it.

- A checkpoint is whole or absent: it is written under another name and renamed when it is complete.
- Optimizer state is kept for the newest checkpoints only; no pickled arguments are written.
- The order of the blocks does not depend on the number of processes (see data).
- Evaluation counts every token once and asks for the attributes' first tokens; no logits are kept.
- A loss or a weight that is not a finite number ends the training, with its step or name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import EvalPrediction, Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from knowledge_circuits.files import InputError, first_line
from knowledge_circuits.manifest import FOLDER_MANIFEST, check
from knowledge_circuits.models.loading import check_weights
from knowledge_circuits.runs import Run
from knowledge_circuits.training.checkpoints import (
    REMEDY,
    complete,
    drop_older_resume_state,
    remove_oldest,
    staging_folder,
)
from knowledge_circuits.training.data import IGNORED
from knowledge_circuits.training.packing import TYPE_CODES

_SPEED = ("_runtime", "_per_second")


class CheckpointTrainer(Trainer):
    """A Trainer whose checkpoints are whole or absent, and stay after it.

    Args:
        run: the run's folder; the rest are the Trainer's own arguments.
        settings: the fingerprint of what decides the weights, for the checkpoints' manifests.
    """

    def __init__(self, *args: Any, run: Run, settings: str, **kwargs: Any) -> None:
        self.run = run
        self.settings = settings
        self._staging: Path | None = None
        config = kwargs["model"].config
        self._saved_use_cache = getattr(config, "use_cache", None)
        super().__init__(*args, compute_metrics=first_token_metrics, **kwargs)

    # The Trainer's hooks

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.run.checkpoints_folder)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            raise InputError(
                f"step {self.state.global_step + 1}: the training loss is {loss.item()}; the checkpoints before it are "
                "kept; a lower --learning_rate or --max_grad_norm may help"
            )
        return loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        """Evaluate b blocks: only counts leave this function, never logits."""
        inputs = self._prepare_inputs(inputs)
        labels, types = inputs.pop("labels"), inputs.pop("attribute_types")
        with torch.no_grad(), self.compute_loss_context_manager():
            counts = block_counts(model(**inputs).logits, labels, types)
        return None, counts, counts[:, 0]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        # A checkpoint is the same for every run of these arguments; timings are not.
        entry = self.state.log_history[-1]
        self.state.log_history[-1] = {key: value for key, value in entry.items() if not key.endswith(_SPEED)}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with loading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with loading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with loading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        config = model.config
        if state_dict:  # of a sharded model, gathered: a weight that two layers share has become two
            state_dict = {name: state_dict[name] for name in state_dict if name not in model.all_tied_weights_keys}
        training_use_cache = config.use_cache
        config.use_cache = self._saved_use_cache
        try:
            super()._save(output_dir, state_dict)
        finally:
            config.use_cache = training_use_cache
        if self.args.should_save and output_dir is not None:
            Path(output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a whole checkpoint or none, then drop the resume state of the older ones."""
        final = self.run.checkpoints_folder / f"checkpoint-{self.state.global_step}"
        check_weights(self.model, f"step {self.state.global_step}")
        self._staging = staging_folder(self.run, self.state.global_step)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                complete(self._staging / final.name, final, self.run, self.state.global_step, self.settings)
                self._staging.rmdir()
        except (RuntimeError, SafetensorError, OSError) as error:
            shutil.rmtree(self._staging, ignore_errors=True)
            raise unwritable(final, error) from error
        finally:
            self._staging = None
        if self.is_world_process_zero():
            drop_older_resume_state(self.run)
            if self.args.save_total_limit:
                remove_oldest(self.run, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def save_start(self) -> None:
        """Save the model as it is before the first step as checkpoint-0: weights and tokenizer, no trainer state."""
        final = self.run.checkpoints_folder / "checkpoint-0"
        if self.is_world_process_zero() and not check(final / FOLDER_MANIFEST).is_whole:
            staging = staging_folder(self.run, 0) / final.name
            try:
                self._save(str(staging))
                complete(staging, final, self.run, 0, self.settings)
                staging.parent.rmdir()
            except (RuntimeError, SafetensorError, OSError) as error:
                shutil.rmtree(staging.parent, ignore_errors=True)
                raise unwritable(final, error) from error
        self.accelerator.wait_for_everyone()


@contextmanager
def loading(checkpoint: str | None) -> Iterator[None]:
    """Turn whatever the libraries raise while they load a checkpoint's state into one sentence.

    The files agree with their manifest; they may still be those of other library versions or of another number of
    processes.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{checkpoint}: training cannot load the state in it ({reason}); {REMEDY}") from error


def unwritable(path: Path, error: Exception) -> InputError | OSError:
    """The error to raise when a checkpoint cannot be written; libraries hide a full disk behind errors of their own."""
    if isinstance(error, OSError):
        return error
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{path}: cannot be written ({reason}); is the disk full? Earlier checkpoints are untouched")


def block_counts(logits: Tensor, labels: Tensor, attribute_types: Tensor) -> Tensor:
    """What evaluation needs to know of a batch.

    Args:
        logits: [b, p, vocabulary].
        labels: token ids, or IGNORED where a token does not count [b, p].
        attribute_types: the type's code where a token opens an attribute, else 0 [b, p].

    Returns:
        float64 [b, 3 + 2 x types]: summed loss, tokens, correct tokens, then per type the attributes and those whose
        first token is the most probable one.
    """
    rows = []
    for row_logits, row_labels, row_types in zip(logits, labels, attribute_types, strict=True):
        predicting, targets, types = row_logits[:-1].float(), row_labels[1:], row_types[1:]
        loss = torch.nn.functional.cross_entropy(predicting, targets, ignore_index=IGNORED, reduction="sum")
        right = predicting.argmax(dim=-1) == targets
        counts = [loss, (targets != IGNORED).sum(), right.sum()]
        for code in TYPE_CODES.values():
            opens = (types == code) & (targets != IGNORED)
            counts += [opens.sum(), (opens & right).sum()]
        rows.append(torch.stack([count.double() for count in counts]))
    return torch.stack(rows)


def first_token_metrics(evaluated: EvalPrediction) -> dict[str, float]:
    """Loss, next-token accuracy and first-token attribute accuracy by type, from the rows of `block_counts`.

    A type of which no attribute is told has no accuracy.
    """
    totals = evaluated.predictions.sum(axis=0)
    loss, tokens, right = totals[:3]
    metrics = {"loss": float(loss / max(tokens, 1)), "accuracy": float(right / max(tokens, 1))}
    for kind, attributes, predicted in zip(TYPE_CODES, totals[3::2], totals[4::2], strict=True):
        if attributes:
            metrics[f"{kind}_first_token_attribute_accuracy"] = float(predicted / attributes)
    return metrics
