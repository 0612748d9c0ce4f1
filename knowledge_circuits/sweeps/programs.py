"""What circuit_discovery.py and circuit_eval.py share: flags, circuit data by group, one loaded model at a time.

Flags of the original keep their names and meaning. Both programs sweep checkpoints x groups (`queue`). The items of one
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

from knowledge_circuits.command_line import choice
from knowledge_circuits.corpus.prompt_pairs import group_pairs, in_group, read_circuit_data
from knowledge_circuits.engine.attribution import Method
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.graph_files import write_graph
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError
from knowledge_circuits.models.loading import DTYPES
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import GRAPH_SUFFIXES, Checkpoint
from knowledge_circuits.study import TASKS, Attribute, Band, Group, KnowledgeType, groups, task_file
from knowledge_circuits.sweeps.queue import Process, cores, pick_device


def add_group_flags(parser: argparse.ArgumentParser, prefix: str = "", meaning: str = "") -> None:
    """Add `--<prefix>type` and `--<prefix>frequency`; several values mean their product."""
    parser.add_argument(
        f"--{prefix}type",
        nargs="+",
        type=choice(KnowledgeType),
        default=list(KnowledgeType),
        metavar="TYPE",
        help=f"{meaning}types of knowledge: new (K_compl), revised (K_rel); default both",
    )
    parser.add_argument(
        f"--{prefix}frequency",
        nargs="+",
        type=choice(Band),
        default=list(Band),
        metavar="BAND",
        help=f"{meaning}frequency bands: low (1), medium (2 to 5), high (above 5); default all",
    )


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which model, which circuits, and how the engine runs."""
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="the model's name in output paths and for defaults; the weights come from --model_path",
    )
    add(
        "--model_path",
        required=True,
        help="a checkpoint, a run's checkpoints/ folder (all of it, in step order), or a hub name",
    )
    add(
        "--task",
        nargs="+",
        type=choice(Attribute, TASKS),
        default=list(TASKS),
        metavar="TASK",
        help=f"any of {', '.join(TASKS)}; default all",
    )
    add("--circuit_n", type=positive, default=300, help="prompts per group at most; part of the output path (300)")
    add("--batch_size", type=positive, default=32, help="prompts at a time; changes speed and memory, not results (32)")
    add("--method", type=choice(Method), default=Method.EAP_IG, help=f"{', '.join(Method)}; default EAP-IG")
    add("--output_dir", help="where results go instead of into the checkpoint folders")
    add("--overwrite", action="store_true", help="do again what is on disk already")
    add("--format", choices=[suffix[1:] for suffix in GRAPH_SUFFIXES], default="json", help="of graph files (json)")
    add("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:<number>")
    add("--dtype", choices=list(DTYPES), default="float32", help="of weights and activations (float32)")
    add("--threads", type=positive, default=cores(), help="CPU threads of each process (all cores)")
    add("--memory_gb", type=float, help="memory the engine may use; found when absent; changes rounding only")
    add("--trust_remote_code", action="store_true", help="run code that comes with a model; off by default")


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


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


def chosen_groups(tasks: Sequence[Attribute], types: Sequence[KnowledgeType], bands: Sequence[Band]) -> list[Group]:
    """The product of the flags' values without repetitions."""
    return list(groups(list(dict.fromkeys(tasks)), list(dict.fromkeys(types)), list(dict.fromkeys(bands))))


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
