"""What the programs that sweep over checkpoints share: circuit data by group, one loaded model at a time, manifests.

The items of one checkpoint follow each other (`processes`), so a `ModelLoader` that keeps the last checkpoint loads
the weights once per checkpoint and process, not once per group.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from knowledge_circuits.command_line import cores
from knowledge_circuits.corpus.fact_pairs import Fact, MatchedFacts, is_fact_file, match_facts, read_facts
from knowledge_circuits.corpus.prompt_pairs import group_pairs, in_group, read_circuit_data
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.graph_files import write_graph
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import FOLDER_MANIFEST, FileRecord, fingerprint, read_manifest
from knowledge_circuits.models.loading import DTYPES, adapter_base, delete_download, weight_files, weights_digest
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import GRAPH_SUFFIXES, Checkpoint
from knowledge_circuits.study import AnyGroup, FactGroup, Group, task_file
from knowledge_circuits.sweeps.flags import chosen_groups, refuse_flags
from knowledge_circuits.sweeps.processes import Existing, Process, WorkItem, pick_device, report_sweep, sweep


def prepare(threads: int | None, process: Process, checkpoints: Sequence[Checkpoint]) -> None:
    """Set the number of CPU threads, the same in every process so that results do not depend on how many there are."""
    threads = threads or default_threads(checkpoints)
    torch.set_num_threads(threads)
    disable_progress_bar()  # the library's own bar for every checkpoint
    set_verbosity_error()
    on_this_machine = min(process.count, torch.cuda.device_count() or process.count)
    if process.is_main and not torch.cuda.is_available() and threads * on_this_machine > cores():
        print(f"{process.count} processes x {threads} threads on {cores()} cores: --threads 1 would be faster")


def run_items(
    items: Sequence[WorkItem], process: Process, title: str, args: argparse.Namespace, folders: Sequence[Path]
) -> int:
    """Sweep work items as a program's flags say, print what became of them, and return the exit status."""
    existing = Existing(args.overwrite, args.adopt, folders, title.replace(" ", "_"))
    return report_sweep(sweep(items, process, title, existing), process, args.timing)


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
    def digest(self) -> str:
        """16 hexadecimal digits that identify the query's wording and the rows that are taken."""
        rows = [row for row in self.rows if in_group(row, self.group)][: self.limit]
        return fingerprint([self.group.task.relation, rows])

    @property
    def spans(self) -> str | bool:
        """What tells the prompts' token spans from others in a manifest; True: those of the program."""
        return True

    @property
    def size(self) -> int:
        """How many prompts are taken."""
        return min(self.limit, sum(in_group(row, self.group) for row in self.rows))

    def pairs(self, tokenizer: PreTrainedTokenizerBase) -> PromptPairs:
        """Return the group's prompts under a tokenizer."""
        return group_pairs(self.rows, self.group, tokenizer, self.limit, self.file)


def read_groups(template: str, wanted: Sequence[Group], limit: int, quiet: bool = False) -> list[GroupData]:
    """Return the circuit data of groups; an empty group is named and left out.

    Args:
        template: the data file; `{task}` in it stands for each task.
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
    filled = [group for group in data if group.size]
    if not filled:
        raise InputError(f"{template}: no prompts of any chosen group ({'; '.join(map(str, wanted))})")
    return filled


@dataclass(frozen=True)
class FactGroupData:
    """One group of a file of one's own facts; the same interface as `GroupData`.

    Attributes:
        group: which rows are meant.
        file: where they come from, for errors.
        facts: the group's.
        limit: how many pairs are taken at most (`circuit_n`).
        pair_anew: see `match_facts`.
    """

    group: FactGroup
    file: str
    facts: Sequence[Fact]
    limit: int
    pair_anew: bool = False

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the facts and how they are paired."""
        facts = [[fact.clean, fact.answer, fact.corrupted, fact.corrupted_answer] for fact in self.facts]
        return fingerprint(["facts", facts, self.pair_anew, self.limit])

    @property
    def spans(self) -> str | bool:
        """What tells the prompts' token spans from others in a manifest; True: those of the program."""
        named = [dict(fact.spans) for fact in self.facts]
        return fingerprint(named) if any(named) else True

    @property
    def size(self) -> int:
        """How many pairs are taken at most."""
        return min(self.limit, len(self.facts))

    def pairs(self, tokenizer: PreTrainedTokenizerBase) -> PromptPairs:
        """Return the group's prompts under a tokenizer."""
        return match_facts(self.facts, tokenizer, self.pair_anew, self.limit).pairs


AnyGroupData = GroupData | FactGroupData


def read_fact_groups(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    group_by: Sequence[str] | None = None,
    chosen: Sequence[str] | None = None,
    pair_anew: bool = False,
    quiet: bool = False,
) -> list[FactGroupData]:
    """Return the groups of a file of one's own facts; pairs without a match and groups without pairs are named.

    Args:
        path: see `fact_pairs.read_facts`, also for `group_by`.
        tokenizer: that of the first checkpoint.
        limit: pairs per group at most.
        chosen: the names of the wanted groups; None means all.
        pair_anew: see `match_facts`.
        quiet: name nothing (the other processes of a sweep).

    Raises:
        InputError: a bad file, an unknown group, or no group has any pairs.
    """
    filled = []
    for group, facts in facts_by_group(path, group_by, chosen).items():
        matched = match_facts(facts, tokenizer, pair_anew, limit)
        if not quiet:
            _say_matches(group, matched)
        if len(matched.pairs):
            filled.append(FactGroupData(group, path, facts, limit, pair_anew))
    if not filled:
        remedy = "" if pair_anew else "; --pair_anew draws others within each group"
        raise InputError(f"{path}: no clean prompt has a corrupted one with as many tokens{remedy}")
    return filled


def _say_matches(group: FactGroup, matched: MatchedFacts) -> None:
    pairs, unmatched = matched.pairs, matched.unmatched
    if unmatched:
        names = ", ".join(f"{fact.where.rpartition(', ')[2]} ({fact.clean!r})" for fact in unmatched[:3])
        more = f" and {len(unmatched) - 3} more" if len(unmatched) > 3 else ""
        print(f"{group}: {len(unmatched)} without a corrupted prompt of as many tokens left out: {names}{more}")
    if matched.anew:
        print(f"{group}: {matched.anew} of {len(pairs)} pairs were paired anew")
    if same := sum(clean == corrupted for clean, corrupted in pairs.labels):
        print(f"{group}: {same} of {len(pairs)} pairs have answers with the same first token, which scores cannot tell")
    if not len(pairs):
        print(f"{group}: no prompts left; skipped", file=sys.stderr)


def facts_by_group(
    path: str, group_by: Sequence[str] | None = None, chosen: Sequence[str] | None = None
) -> dict[FactGroup, list[Fact]]:
    """Return the facts of a file by group, in the file's order; see `read_fact_groups`."""
    by_group: dict[FactGroup, list[Fact]] = {}
    for fact in read_facts(path, group_by):
        by_group.setdefault(fact.group, []).append(fact)
    names = {group.name: group for group in by_group}
    for name in chosen or ():
        if name not in names:
            raise InputError(f"{path}: no group {name!r}, only {', '.join(list(names)[:20])}")
    return {group: facts for group, facts in by_group.items() if not chosen or group.name in chosen}


def groups_of_flags(
    args: argparse.Namespace, file: str, prefix: str, loader: ModelLoader, first: Checkpoint, quiet: bool
) -> Sequence[AnyGroupData]:
    """Return the groups that a program's flags choose from a file: the study's circuit data, or facts of one's own.

    Args:
        args: of `flags.add_shared_flags` and `flags.add_group_flags` with `prefix`.
        file: the data file; `{task}` in it stands for each task.
        prefix: "" or "source_".
        loader, first: whose tokenizer matches the prompts of own facts.
        quiet: name nothing.

    Raises:
        InputError: a bad file, flags of the other kind of data, or no prompts.
    """
    if is_fact_file(file):
        names = ["task", f"{prefix}type", f"{prefix}frequency"]
        refuse_flags(args, file, names, f"it holds facts of one's own, whose groups --{prefix}group chooses")
        chosen = getattr(args, f"{prefix}group")
        return read_fact_groups(
            file, loader.tokenizer(first), args.circuit_n, args.group_by, chosen, args.pair_anew, quiet
        )
    refuse_flags(args, file, ["group_by", "pair_anew", f"{prefix}group"], "it is circuit data of the study")
    wanted = chosen_groups(args.task, getattr(args, f"{prefix}type"), getattr(args, f"{prefix}frequency"))
    return read_groups(file, wanted, args.circuit_n, quiet)


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint ready to run: its weights in the engine's form and its tokenizer."""

    checkpoint: Checkpoint
    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase


class ModelLoader:
    """Loads checkpoints and keeps the last one, so that its groups share the loaded weights."""

    def __init__(
        self,
        device: torch.device,
        dtype: str,
        trust_remote_code: bool = False,
        delete_downloads: bool = False,
        device_map: str | Mapping[str, Any] | None = None,
    ) -> None:
        self._delete_downloads = delete_downloads
        self.dtype = DTYPES[dtype]
        self._options: dict[str, Any] = {"device": device, "dtype": self.dtype, "device_map": device_map}
        self._trust_remote_code = trust_remote_code
        self._loaded: LoadedModel | None = None
        self._refused: dict[str, InputError] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def facts(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return what results depend on of a checkpoint; see `model_facts`."""
        if checkpoint.address not in self._facts:
            self._facts[checkpoint.address] = model_facts(checkpoint, str(self.dtype).removeprefix("torch."))
        return self._facts[checkpoint.address]

    def tokenizer(self, checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
        """Return a checkpoint's tokenizer without loading its weights."""
        return load_tokenizer(checkpoint.path, self._trust_remote_code, revision=checkpoint.revision)

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        """Return the checkpoint's model; it is loaded unless it was the last one loaded.

        Raises:
            InputError: it cannot be loaded; later calls raise the same without another attempt.
        """
        if checkpoint.address in self._refused:
            raise self._refused[checkpoint.address]
        if self._loaded is None or self._loaded.checkpoint != checkpoint:
            self._loaded = None  # the old weights go before the new ones come
            try:
                tokenizer = self.tokenizer(checkpoint)
                decoder = load_decoder(
                    checkpoint.path,
                    trust_remote_code=self._trust_remote_code,
                    revision=checkpoint.revision,
                    **self._options,
                )
            except InputError as error:
                self._refused[checkpoint.address] = error
                raise
            if self._delete_downloads:  # the weights are in memory now
                delete_download(checkpoint.path, checkpoint.revision)
            self._loaded = LoadedModel(checkpoint, decoder, tokenizer)
        return self._loaded


def model_facts(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """Return what results depend on of a model: its weights, its configuration and tokenizer, and the data type.

    A hub name stands for its weights. Without weights in the folder they are left out, so that results outlive them.

    Raises:
        InputError: the weights, the configuration or the tokenizer are not those that the checkpoint's manifest lists.
    """
    folder = Path(checkpoint.path)
    if not folder.is_dir():
        return {"weights": checkpoint.address, "dtype": dtype}
    digest = hashlib.sha256()
    for name in _MODEL_SETTINGS:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    weights = weights_digest(folder)
    if weights is not None:
        _refuse_changed(folder, weights)
    facts = {"model settings": digest.hexdigest()[:16], "dtype": dtype}
    base = adapter_base(checkpoint.path)
    if base is not None:
        facts["base model"] = weights_digest(base.path) or base.path
    return {"weights": weights, **facts} if weights else facts


def _refuse_changed(folder: Path, weights: str) -> None:
    """Refuse a checkpoint that is not as it was saved: its settings byte for byte, its weights by size and digest."""
    manifest = read_manifest(folder / FOLDER_MANIFEST)
    if manifest is None:
        return
    listed = {folder / name: record for name, record in manifest.files.items()}
    settings = [path for path in listed if path.name in _MODEL_SETTINGS and path.parent == folder]
    changed = [path for path in settings if not path.is_file() or FileRecord.of(path) != listed[path]]
    files = weight_files(folder)
    changed += [path for path in files if path in listed and path.stat().st_size != listed[path].bytes]
    if manifest.made_from.get("weights", weights) != weights:
        changed += files[:1]
    if changed:
        raise InputError(
            f"{changed[0]}: not as it was when the checkpoint was saved; restore it, or remove {FOLDER_MANIFEST} if "
            "you changed it on purpose"
        )


#: The files of a model's folder beside the weights that change what it computes.
_MODEL_SETTINGS = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "adapter_config.json"),
)

#: Smaller weights do not keep a thread busy (docs/benchmarks.md, Threads).
_BYTES_PER_THREAD = 5_000_000


def default_threads(checkpoints: Sequence[Checkpoint]) -> int:
    """Return a thread for every 5 MB of the first checkpoint's weights, at least 1 and at most one per core."""
    size = sum(file.stat().st_size for one in checkpoints[:1] for file in weight_files(one.path))
    return max(1, min(cores(), size // _BYTES_PER_THREAD)) if size else cores()


def refuse_misplaced(graph: Graph, path: Path, group: AnyGroup, checkpoint: str) -> None:
    """Refuse a graph of another group or checkpoint than the one where its file lies.

    Args:
        graph: what was read from `path`.
        group, checkpoint: the group, and the name of the checkpoint's folder, where it lies.

    Raises:
        InputError: the graph's meta names another one; what it does not name is not compared.
    """
    expected = {"task": str(group.task), **group.keys}
    if checkpoint.startswith("checkpoint-"):
        expected["checkpoint"] = checkpoint
    differing = [
        f"{key} {graph.meta[key]!r}, not {expected[key]!r}"
        for key in expected
        if graph.meta.get(key, expected[key]) != expected[key]
    ]
    if differing:
        raise InputError(f"{path} is the graph of {'; '.join(differing)}; put it back or recompute with --overwrite")


def replace_graph(graph: Graph, path_of: Callable[[str], Path], suffix: str, manifest: Path, overwrite: bool) -> Path:
    """Write a graph and return its path.

    A graph that is made again keeps its format, so that there is one file. When overwriting, the manifest's earlier
    graph in another format goes.

    Args:
        path_of: the file's path for each suffix.
        suffix: the format of a new graph.
        manifest: of the unit.
        overwrite: whether `suffix` also holds for a graph that exists.

    Raises:
        InputError: a file in another format that no manifest lists would be read instead.
    """
    earlier = read_manifest(manifest)
    listed = {manifest.parent / name for name in earlier.files} if earlier else set()
    formats = [other for other in GRAPH_SUFFIXES if path_of(other) in listed]
    if formats and not overwrite:
        suffix = formats[0]
    for other in GRAPH_SUFFIXES:
        if other != suffix and path_of(other).exists():
            if path_of(other) not in listed:
                raise InputError(f"{path_of(other)} would be read instead of the new {suffix} file; remove it first")
            path_of(other).unlink()
    write_graph(path_of(suffix), graph)
    return path_of(suffix)


def loader_from(args: argparse.Namespace, process: Process) -> ModelLoader:
    """Return the loader that the shared flags describe.

    Raises:
        InputError: several processes would delete the download that others still read.
    """
    refuse_shared_deletion(args, process)
    device = pick_device(args.device, process)
    return ModelLoader(device, args.dtype, args.trust_remote_code, args.delete_downloads, args.device_map)


def refuse_shared_deletion(args: argparse.Namespace, process: Process) -> None:
    """Raise InputError for `--delete_downloads` with several processes, which share a checkpoint's download."""
    if args.delete_downloads and process.count > 1:
        raise InputError("--delete_downloads is for one process; with several, delete the cache afterwards")
