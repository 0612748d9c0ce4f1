"""Adaptive exposure: documents of entities that are learned are left out of the next epoch.

An epoch reads the documents of every entity that the last probe before it did not find learned, and all documents
without an entity. What was left out comes back as soon as a probe finds the entity forgotten. Training ends when
nothing is left. (Mousavi et al. 2026, arXiv 2601.03858.)

Which documents an epoch reads is a function of question_probes.jsonl alone, so a run that goes on after an
interruption reads what it would have read. The epochs have different numbers of steps; a learning rate schedule that
is not constant counts on those of full exposure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from knowledge_circuits.files import InputError
from knowledge_circuits.records import QuestionProbeRecord, shape
from knowledge_circuits.training.data import TrainingBlocks, TrainingData
from knowledge_circuits.training.packing import pack_for_training, select_documents, token_stream
from knowledge_circuits.training.probes import from_main_process
from knowledge_circuits.training.question_probes import learned_entities


class AdaptiveBlocks(TrainingBlocks):
    """The blocks of an epoch, made of the documents that it reads; of all documents to begin with.

    Args:
        data: with documents of which those of an entity have the key "entity".
        probes: the run's question_probes.jsonl.
        threshold: the mean recall from which an entity counts as learned.

    Raises:
        InputError: no document has an entity.
    """

    def __init__(
        self,
        data: TrainingData,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        together: int,
        probes: Path,
        threshold: float,
    ) -> None:
        documents = data.documents.train
        self._entities = [str(row["entity"]) if row.get("entity") else None for row in documents]
        if not any(self._entities):
            raise InputError("--adaptive_exposure needs documents with the column entity")
        self._stream, self._padding_id = token_stream(documents, tokenizer), tokenizer.eos_token_id
        self._probes, self._threshold = probes, threshold
        self._learned: dict[int, set[str]] = {}
        super().__init__(data.train, seed, together, len(documents))

    def set_epoch(self, epoch: int) -> None:
        """Take the documents that an epoch (counted from 0) reads, and shuffle their blocks."""
        read = np.array(self.read(epoch), dtype=bool)
        if not read.any():
            raise InputError(
                "--adaptive_exposure: every entity is learned before training begins; raise --learned_threshold"
            )
        stream = select_documents(self._stream, read)
        self.blocks = pack_for_training(stream, self.blocks.block_size, self._padding_id)
        super().set_epoch(epoch)

    def read(self, epoch: int) -> list[bool]:
        """Return which documents an epoch reads."""
        if epoch not in self._learned:
            records = shape(QuestionProbeRecord).optional_lines(self._probes)
            before = [record for record in records if record["epoch"] <= epoch]
            learned = learned_entities(before[-1], self._threshold) if before else set()
            self._learned[epoch] = from_main_process(learned)
        return [entity is None or entity not in self._learned[epoch] for entity in self._entities]

    def start(self, epoch: int) -> int:
        """Return the optimizer step at which an epoch began that has been probed at its beginning."""
        records = shape(QuestionProbeRecord).optional_lines(self._probes)
        steps = [int(record["step"]) for record in records if record["epoch"] == epoch]
        if not steps:
            raise InputError(f"{self._probes}: no probe at the beginning of epoch {epoch}, from which training goes on")
        return steps[0]

    def documents_seen(self, epoch: float) -> int:
        whole, part = divmod(epoch, 1)
        seen = sum(sum(self.read(number)) for number in range(int(whole)))
        return seen + (round(part * sum(self.read(int(whole)))) if part else 0)


class EndOfExposure(TrainerCallback):
    """Ends training after the last epoch, which its number of steps does not tell, or when nothing is left to read."""

    def __init__(self, blocks: AdaptiveBlocks) -> None:
        self._blocks = blocks

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        epoch = round(float(state.epoch or 0))
        nothing_left = not any(self._blocks.read(epoch))
        if nothing_left and state.is_world_process_zero:
            tqdm.write(f"training ended at step {state.global_step}: every entity is learned")
        control.should_training_stop |= nothing_left or epoch >= args.num_train_epochs
