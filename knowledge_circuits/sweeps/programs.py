"""What the programs that sweep over checkpoints do alike: threads, work items, and graphs in their places."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from knowledge_circuits.command_line import cores
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.graph_files import write_graph
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import read_manifest
from knowledge_circuits.models.loading import weight_files
from knowledge_circuits.runs import GRAPH_SUFFIXES, Checkpoint
from knowledge_circuits.study import AnyGroup
from knowledge_circuits.sweeps.processes import Existing, Process, WorkItem, report_sweep, sweep

#: Smaller weights do not keep a thread busy (docs/benchmarks.md, Threads).
_BYTES_PER_THREAD = 5_000_000


def default_threads(checkpoints: Sequence[Checkpoint]) -> int:
    """Return a thread for every 5 MB of the first checkpoint's weights, at least 1 and at most one per core."""
    size = sum(file.stat().st_size for one in checkpoints[:1] for file in weight_files(one.path))
    return max(1, min(cores(), size // _BYTES_PER_THREAD)) if size else cores()


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


def refuse_misplaced(graph: Graph, path: Path, group: AnyGroup, checkpoint: str) -> None:
    """Refuse a graph whose meta names another group or checkpoint than those where its file lies."""
    expected = {"task": str(group.task), **group.keys}
    if checkpoint.startswith("checkpoint-"):
        expected["checkpoint"] = checkpoint
    meta = graph.meta
    differing = [f"{key} {meta[key]!r}, not {one!r}" for key, one in expected.items() if meta.get(key, one) != one]
    if differing:
        raise InputError(f"{path} is the graph of {'; '.join(differing)}; put it back or recompute with --overwrite")


def replace_graph(graph: Graph, path_of: Callable[[str], Path], suffix: str, manifest: Path, overwrite: bool) -> Path:
    """Write a graph and return its path.

    A graph that is made again keeps its format, so that there is one file. When overwriting, the manifest's earlier
    graph in another format goes.

    Args:
        path_of: the file's path for each suffix.
        suffix: the format of a new graph; with `overwrite`, also of one that exists.
        manifest: of the unit.

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
