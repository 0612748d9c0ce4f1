"""What circuit_discovery.py and circuit_eval.py share: circuit data by group, one loaded model at a time.

Both programs sweep checkpoints x groups (`queue`). The items of one
checkpoint follow each other, so a `ModelLoader` that keeps the last checkpoint loads the weights once per checkpoint
and process, not once per group.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from knowledge_circuits.command_line import cores
from knowledge_circuits.corpus.prompt_pairs import group_pairs, in_group, read_circuit_data
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.graph_files import write_graph
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError
from knowledge_circuits.models.loading import DTYPES
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import GRAPH_SUFFIXES, Checkpoint
from knowledge_circuits.study import Group, task_file
from knowledge_circuits.sweeps.queue import Process, pick_device


def prepare(threads: int, process: Process) -> None:
    """Set the number of CPU threads, the same in every process so that results do not depend on how many there are."""
    torch.set_num_threads(threads)
    disable_progress_bar()  # the library's own, one for every checkpoint, between the lines of the sweep's
    on_this_machine = min(process.count, torch.cuda.device_count() or process.count)
    if process.is_main and not torch.cuda.is_available() and threads * on_this_machine > cores():
        print(f"{process.count} processes x {threads} threads on {cores()} cores: --threads 1 would be faster")


@dataclass(frozen=True)
class GroupData:
    """One group's rows of a circuit data file.

    Attributes:
        group: which rows are meant.
        file: where they come from, for errors.
        rows: all rows of the group's task, as `read_circuit_data` gives them.
        limit: how many prompts are taken at most (`circuit_n`).
    """

    group: Group
    file: str
    rows: Sequence[dict[str, Any]]
    limit: int

    @property
    def size(self) -> int:
        """How many prompts are taken."""
        return min(self.limit, sum(in_group(row, self.group) for row in self.rows))

    def pairs(self, tokenizer: PreTrainedTokenizerBase) -> PromptPairs:
        """The group's prompts under a tokenizer."""
        return group_pairs(self.rows, self.group, tokenizer, self.limit, self.file)


def read_groups(template: str, wanted: Sequence[Group], limit: int, quiet: bool = False) -> list[GroupData]:
    """Read the circuit data of groups; an empty group is named and left out.

    Args:
        template: the data file; `{task}` in it stands for each task.
        wanted: the groups.
        limit: prompts per group at most.
        quiet: name nothing (the other processes of a sweep).

    Raises:
        InputError: a bad file, or no group has any prompts.
    """
    rows = {name: read_circuit_data(template, name) for name in dict.fromkeys(group.task for group in wanted)}
    data = [GroupData(group, task_file(template, group.task), rows[group.task], limit) for group in wanted]
    for group in data:
        if not group.size and not quiet:
            print(f"{group.group}: no prompts in {group.file}; skipped", file=sys.stderr)
    found = [group for group in data if group.size]
    if not found:
        raise InputError(f"{template}: no prompts of any chosen group ({'; '.join(map(str, wanted))})")
    return found


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint ready to run: its weights in the engine's form and its tokenizer."""

    checkpoint: Checkpoint
    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase


class ModelLoader:
    """Loads checkpoints and keeps the last one, so that its groups share the loaded weights."""

    def __init__(self, device: torch.device, dtype: str, trust_remote_code: bool = False) -> None:
        self.dtype = DTYPES[dtype]
        self._options: dict[str, Any] = {"device": device, "dtype": self.dtype}
        self._trust_remote_code = trust_remote_code
        self._loaded: LoadedModel | None = None
        self._refused: dict[str, InputError] = {}

    def tokenizer(self, checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
        """A checkpoint's tokenizer, without its weights."""
        return load_tokenizer(checkpoint.path, trust_remote_code=self._trust_remote_code)

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        """The checkpoint's model; loaded now unless it was the last one asked for.

        Raises:
            InputError: it cannot be loaded; a second asking gets the same answer without another attempt.
        """
        if checkpoint.path in self._refused:
            raise self._refused[checkpoint.path]
        if self._loaded is None or self._loaded.checkpoint != checkpoint:
            self._loaded = None  # the old weights go before the new ones come
            try:
                tokenizer = self.tokenizer(checkpoint)
                decoder = load_decoder(checkpoint.path, trust_remote_code=self._trust_remote_code, **self._options)
            except InputError as error:
                self._refused[checkpoint.path] = error
                raise
            self._loaded = LoadedModel(checkpoint, decoder, tokenizer)
        return self._loaded


def refuse_stale(path: Path, found: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to take a file for finished work that was done in another way.

    Args:
        path: the file.
        found: what its meta says; what it does not say is not compared.
        now: what would be said of it now.

    Raises:
        InputError: with what differs.
    """
    differing = [f"{key} {found[key]!r}, now {now[key]!r}" for key in now if key in found and found[key] != now[key]]
    if differing:
        raise InputError(
            f"{path} was made with {'; '.join(differing)}; --overwrite makes everything again, another --output_dir"
            " keeps it"
        )


def replace_graph(graph: Graph, path_of: Callable[[str], Path], suffix: str, overwrite: bool) -> None:
    """Write a graph; when overwriting, what an older run left in another format goes, or it would be read instead.

    Args:
        path_of: the file's path for each suffix.
    """
    write_graph(path_of(suffix), graph)
    for other in GRAPH_SUFFIXES if overwrite else ():
        if other != suffix:
            path_of(other).unlink(missing_ok=True)


def loader_from(args: argparse.Namespace, process: Process) -> ModelLoader:
    """The loader that the shared flags ask for."""
    return ModelLoader(pick_device(args.device, process), args.dtype, args.trust_remote_code)
