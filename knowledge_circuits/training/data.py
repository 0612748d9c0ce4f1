"""What training sees: documents read, mixed with replayed ones and packed (or taken from the cache), in seeded order.

The order of the blocks is a function of the seed and the epoch alone. So it does not depend on how many processes
share the work, and a run that goes on after an interruption sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from knowledge_circuits.corpus.documents import Row, hub_documents, read_text_rows, split_off_validation
from knowledge_circuits.corpus.folder import checked_data_config
from knowledge_circuits.files import InputError
from knowledge_circuits.training.arguments import DataArguments
from knowledge_circuits.training.packing import (
    PackedBlocks,
    evaluation_stream,
    pack_for_evaluation,
    pack_for_training,
    packing_key,
    read_blocks,
    token_stream,
    write_blocks,
)
from knowledge_circuits.training.replay import mix_replay

#: Labels of this value are not learned.
IGNORED = -100

#: The folder of packed data, unless --cache_dir names another.
CACHE = Path("outputs") / "cache"

DEFAULT_BLOCK_SIZE = 1024


@dataclass(frozen=True)
class Documents:
    """The documents of a run, after replay and limits.

    Attributes:
        evaluation: what is evaluated on; None where nothing is.
        new: what there is to learn, before replayed documents take the place of some.
    """

    train: list[Row]
    evaluation: list[Row] | None
    new: list[Row]


@dataclass(frozen=True)
class TrainingData:
    """Packed data, and the hash that stands for all that decided them: documents, tokenizer and block size."""

    train: PackedBlocks
    evaluation: PackedBlocks | None
    content_key: str
    documents: Documents


def read_training_documents(arguments: DataArguments, evaluates: bool, seed: int, cache_dir: str | None) -> Documents:
    """Read the files or the hub data set that the flags name, and mix in replayed documents.

    Args:
        evaluates: whether documents to evaluate on are wanted.
        seed: of replay and of a held-out share.
        cache_dir: folder of hub data sets; None: the library's default.

    Raises:
        InputError: no data named, or what is named cannot be read.
    """
    column, evaluation = arguments.text_column, None
    if arguments.train_file is not None:
        train = read_text_rows(arguments.train_file, column)
    elif arguments.dataset_name is not None:
        train, evaluation = hub_documents(arguments.dataset_name, arguments.dataset_config_name, cache_dir, column)
    else:
        raise InputError("nothing to train on: give --train_file or --dataset_name")
    if not evaluates:
        evaluation = None
    elif arguments.validation_file is not None:
        evaluation = read_text_rows(arguments.validation_file, column)
    elif evaluation is None:
        train, evaluation = split_off_validation(train, arguments.validation_split_percentage, seed)
    new = train = train[: _limit("max_train_samples", arguments.max_train_samples)]
    if arguments.replay_ratio is not None:
        replayed = read_text_rows(arguments.replay_file, column) if arguments.replay_file else []
        train = mix_replay(train, replayed, arguments.replay_ratio, seed)
    elif arguments.replay_file is not None:
        raise InputError("--replay_file needs --replay_ratio, the share of documents that it replaces")
    if evaluation is not None:
        evaluation = evaluation[: _limit("max_eval_samples", arguments.max_eval_samples)]
    return Documents(train, evaluation, new)


def _limit(flag: str, count: int | None) -> int | None:
    if count is not None and count < 1:
        raise InputError(f"--{flag} {count}: at least one document is needed")
    return count


def pack_documents(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, block_size: int, arguments: DataArguments, cache: Path
) -> TrainingData:
    """Tokenize and pack, or take packed blocks of the same content from the cache; a damaged file is packed again."""
    if arguments.preprocessing_num_workers:
        # Read once, when the tokenizer first splits its work.
        os.environ["RAYON_NUM_THREADS"] = str(arguments.preprocessing_num_workers)
    reads = arguments.load_data_from_cache and not arguments.overwrite_cache
    train, key = _packed("train", documents.train, tokenizer, block_size, cache, reads)
    evaluation = None
    if documents.evaluation is not None:
        evaluation, evaluation_key = _packed("evaluation", documents.evaluation, tokenizer, block_size, cache, reads)
        key = hashlib.sha256(f"{key} {evaluation_key}".encode()).hexdigest()[:32]
    return TrainingData(train, evaluation, key, documents)


def _packed(
    purpose: str, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, block_size: int, cache: Path, reads: bool
) -> tuple[PackedBlocks, str]:
    """Return the blocks of some documents and their key; `purpose`, train or evaluation, says how they are packed."""
    key = packing_key(rows, tokenizer, block_size, purpose)
    path = cache / f"{purpose}-{key}.safetensors"
    if reads and path.exists():
        if (cached := read_blocks(path, key)) is not None:
            return cached, key
        print(f"{path}: damaged or of another content; packed again")
    if purpose == "train":
        blocks = pack_for_training(token_stream(rows, tokenizer), block_size, tokenizer.eos_token_id)
    else:
        blocks = pack_for_evaluation(evaluation_stream(rows, tokenizer), block_size, tokenizer.eos_token_id)
    write_blocks(path, blocks, key)
    return blocks, key


def choose_block_size(requested: int | None, *limits: int | None) -> int:
    """Return the block size: the requested one, else what the model's context and the tokenizer allow, at most 1,024.

    Args:
        limits: the model's context, then others that only bound the default; None is no limit.

    Raises:
        InputError: the model cannot take blocks of that size.
    """
    if requested is None:
        return min([DEFAULT_BLOCK_SIZE, *(limit for limit in limits if limit)])
    if limits and limits[0] is not None and requested > limits[0]:
        raise InputError(f"--block_size {requested}: the model's context holds only {limits[0]} tokens")
    return requested


def data_configuration(train_file: str | None) -> dict[str, Any]:
    """Return how the data were generated: the data_config.json beside a training file; empty where there is none."""
    return {} if train_file is None else checked_data_config(Path(train_file).parent / "data_config.json")


class TrainingBlocks(Dataset[dict[str, np.ndarray]]):
    """The blocks of an epoch in its order; `set_epoch` shuffles them by seed and epoch.

    So that several processes get whole batches, the blocks are filled up to a multiple of `together` with a block of
    which nothing is learned. It comes last, so the real blocks meet in the same steps whatever the processes.
    """

    def __init__(self, blocks: PackedBlocks, seed: int, together: int, documents: int) -> None:
        self.blocks = blocks
        self.seed = seed
        self.documents = documents
        self.together = together
        TrainingBlocks.set_epoch(self, 0)  # not a subclass's, which may wait for a probe

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for an epoch (counted from 0)."""
        digest = hashlib.sha256(f"order of seed {self.seed}, epoch {epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        self.order = torch.randperm(len(self.blocks), generator=generator).tolist()

    def documents_seen(self, epoch: float) -> int:
        """Return how many documents so many epochs read."""
        return round(epoch * self.documents)

    def __len__(self) -> int:
        return -(-len(self.blocks) // self.together) * self.together

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index >= len(self.order):
            ids = self.blocks.input_ids[0]
            return {"input_ids": ids, "counted": np.zeros(len(ids), dtype=bool)}
        block = self.order[index]
        return {"input_ids": self.blocks.input_ids[block], "counted": self.blocks.counted[block]}


def collate(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Stack b blocks into `input_ids` and `labels`, int64 [b, p], and `attribute_types` where the rows have them.

    There is no attention mask: padding stands behind the last token, where causal attention never looks.
    """
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    batch["input_ids"] = batch["input_ids"].long()
    batch["labels"] = batch["input_ids"].masked_fill(~batch.pop("counted"), IGNORED)
    return batch
