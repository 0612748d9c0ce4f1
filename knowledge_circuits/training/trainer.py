"""The Hugging Face Trainer, with what a study of checkpoints needs of it.

- A checkpoint is whole or absent: it is written under another name and renamed when it is complete.
- Optimizer state is kept for the newest checkpoints only; no pickled arguments are written.
- The order of the blocks does not depend on the number of processes (see data).
- Evaluation counts every token once and asks for the attributes' first tokens; no logits are kept.
- A loss or a weight that is not a finite number ends the training, with its step or name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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
    staged,
)
from knowledge_circuits.training.data import IGNORED
from knowledge_circuits.training.divergence import FollowEpochs, Reference
from knowledge_circuits.training.exposure import AdaptiveBlocks
from knowledge_circuits.training.lora import load_adapter, merged_weights, save_adapter
from knowledge_circuits.training.packing import TYPE_CODES

_SPEED = ("_runtime", "_per_second")


class CheckpointTrainer(Trainer):
    """A Trainer whose checkpoints are whole or absent, and stay after it.

    Args:
        run: the run's folder; the rest are the Trainer's own arguments.
        settings: the fingerprint of what decides the weights, for the checkpoints' manifests.
        adapter: peft's view of the model whose adapters are trained; None: the weights themselves are.
        references: models that the predictions should stay near.
    """

    def __init__(
        self, run: Run, settings: str, adapter: Any = None, references: Sequence[Reference] = (), **kwargs: Any
    ) -> None:
        self.run = run
        self.settings = settings
        self.adapter = adapter
        self.references = references
        following = [reference for reference in references if reference.follows]
        self.previous_epoch = FollowEpochs(following[0], self.plain_weights) if following else None
        self._staging: Path | None = None
        self._saved_use_cache = getattr(kwargs["model"].config, "use_cache", None)
        super().__init__(compute_metrics=first_token_metrics, **kwargs)
        if self.previous_epoch is not None:
            self.add_callback(self.previous_epoch)

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

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the cross entropy and the weighted divergences from the references, over the same tokens."""
        if not self.references:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        tokens = num_items_in_batch
        if tokens is None:
            tokens = (labels[:, 1:] != IGNORED).sum().clamp(min=1)
        elif self.args.average_tokens_across_devices:  # gradients are averaged over the processes, tokens are summed
            tokens = tokens / self.accelerator.num_processes
        rest = {name: value for name, value in inputs.items() if name not in ("labels", "num_items_in_batch")}
        for reference in self.references:
            loss = loss + reference.divergence(outputs.logits, rest, labels, tokens)
        return (loss, outputs) if return_outputs else loss

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch; under adaptive exposure it has as many steps as its own documents make."""
        if isinstance(self.train_dataset, AdaptiveBlocks):
            self.train_dataset.set_epoch(kwargs["epoch"])
            kwargs["steps_in_epoch"] = len(kwargs["train_dataloader"])
            kwargs["num_update_steps_per_epoch"] = max(
                math.ceil(kwargs["steps_in_epoch"] / self.args.gradient_accumulation_steps), 1
            )
        super()._run_epoch(*args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        epoch, batches = super()._init_training_state(*args, **kwargs)
        if isinstance(self.train_dataset, AdaptiveBlocks) and self.state.global_step:
            epoch = int(self.state.epoch or 0)
            batches = self.state.global_step - self.train_dataset.start(epoch)
            batches *= self.args.gradient_accumulation_steps
        return epoch, batches

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
            if self.adapter is not None:
                load_adapter(self.adapter, Path(resume_from_checkpoint))
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            if self.previous_epoch is not None:
                self.previous_epoch.load(Path(resume_from_checkpoint))

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
        if self.adapter is not None:
            state_dict = self.plain_weights()
        training_use_cache = config.use_cache
        config.use_cache = self._saved_use_cache
        try:
            super()._save(output_dir, state_dict)
        finally:
            config.use_cache = training_use_cache
        if self.args.should_save and output_dir is not None:
            Path(output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)
            if self.adapter is not None:
                save_adapter(self.adapter, Path(output_dir))

    def plain_weights(self) -> dict[str, Tensor]:
        """Return the weights that an ordinary model has that predicts as this one does; adapters are merged."""
        model = self.accelerator.unwrap_model(self.model)
        weights = merged_weights(model) if self.adapter is not None else model.state_dict()
        return {name: weight for name, weight in weights.items() if name not in model.all_tied_weights_keys}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a whole checkpoint or none, then drop the resume state of the older ones."""
        step = self.state.global_step
        check_weights(self.model, f"step {step}")
        try:
            with staged(self.run, step) as self._staging:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    if self.previous_epoch is not None:
                        self.previous_epoch.save(self._staging / f"checkpoint-{step}", self.state.epoch or 0)
                    complete(self._staging, self.run, step, self.settings)
        finally:
            self._staging = None
        if self.is_world_process_zero():
            drop_older_resume_state(self.run)
            if self.args.save_total_limit:
                remove_oldest(self.run, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()

    def save_start(self) -> None:
        """Save the model as it is before the first step as checkpoint-0: weights and tokenizer, no trainer state."""
        manifest = self.run.checkpoints_folder / "checkpoint-0" / FOLDER_MANIFEST
        if self.is_world_process_zero() and not check(manifest).is_whole:
            with staged(self.run, 0) as staging:
                self._save(str(staging / "checkpoint-0"))
                complete(staging, self.run, 0, self.settings)
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


def block_counts(logits: Tensor, labels: Tensor, attribute_types: Tensor) -> Tensor:
    """Return what evaluation needs to know of a batch.

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
