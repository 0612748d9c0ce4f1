"""One list of work items, shared out over the processes of a launcher, on one machine or several.

    python circuit_discovery.py ...                                        one process
    accelerate launch --multi_gpu --num_processes 4 circuit_discovery.py   four; torchrun and Slurm with either work too

How items are shared:
1. Every process builds the same list and leaves out what is done already (an item's output files are whole or absent).
2. Items that share something slow to load (a checkpoint's weights) form a batch. A process opens the unopened batch
   with the most work left and claims its items, longest first; when no batch is unopened it helps with the open ones.
3. A claim is an atomic counter in the launcher's key-value store. The store dies with the launch, so a killed run
   leaves no stale claim behind: the next run does what has no output yet.
4. An item that fails is remembered and the rest goes on; all processes end together, since launchers kill the others
   when one leaves with an error.

Which process runs an item changes nothing in its files, as long as `--threads` is the same.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from tqdm import tqdm

from knowledge_circuits.command_line import is_mendable
from knowledge_circuits.files import InputError

_POLL_SECONDS = 0.1
_ALONE = "the launcher or the main process cannot be reached; run the same command again to go on"


@dataclass(frozen=True)
class WorkItem:
    """One unit of work whose result is files.

    Attributes:
        name: unique in the list; named when the item fails.
        batch: items of one batch share something that is slow to load, such as a checkpoint.
        cost: an estimate in any unit, to start with the longest.
        done: whether all output files exist.
        run: does the work and writes each file whole or not at all.
    """

    name: str
    batch: str
    cost: float
    done: Callable[[], bool]
    run: Callable[[], None]


@dataclass(frozen=True)
class Process:
    """This process's place among those that the launcher started.

    Attributes:
        rank: 0 for the main process, which prints.
        count: how many processes there are on all machines.
        local_rank: this process's number on its machine, which chooses its GPU.
        store: counters and values that all of them see.
    """

    rank: int
    count: int
    local_rank: int
    store: distributed.Store

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class SweepResult:
    """What became of a list of work items, over all processes.

    Attributes:
        present: items whose files were there before.
        finished: items done now.
        failures: (item, reason) of those that failed, in the list's order.
        busy: per process, the share of the sweep's time it spent on items.
    """

    present: int
    finished: int
    failures: tuple[tuple[str, str], ...]
    busy: tuple[float, ...]


def this_process() -> Process:
    """The place that the launcher's environment variables give (RANK, WORLD_SIZE, LOCAL_RANK); alone without them.

    Raises:
        InputError: several processes that were not told how to reach each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Process(0, 1, 0, distributed.HashStore())
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {count} but {', '.join(missing)} is not set; start the program with accelerate or torchrun"
        )
    # torchrun's agent keeps the store and is there already; elsewhere the main process may start later than others.
    patience = timedelta(minutes=1 if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 10)
    try:
        store, rank, count = next(distributed.rendezvous("env://", timeout=patience))
    except distributed.DistError:
        raise InputError(_ALONE) from None
    return Process(rank, count, int(os.environ.get("LOCAL_RANK", rank)), store)


def pick_device(name: str, process: Process) -> torch.device:
    """The torch device for `--device`: `auto` is this process's GPU where there is one, the CPU otherwise.

    Raises:
        InputError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"--device {name}: this machine or this torch has no CUDA; use --device cpu")
        if device.index is None:
            device = torch.device("cuda", process.local_rank % torch.cuda.device_count())
        if device.index >= torch.cuda.device_count():
            raise InputError(f"--device {name}: there are only {torch.cuda.device_count()} CUDA devices")
    return device


def sweep(items: Sequence[WorkItem], process: Process, title: str) -> SweepResult:
    """Run the items that are not done yet, together with the launcher's other processes.

    Args:
        items: the whole list; every process gives the same.
        process: this process's place.
        title: the progress bar's text; a program that sweeps twice uses two titles.

    Returns:
        What became of the items, the same in every process.

    Raises:
        InputError: the launcher or the main process was killed.
        OSError: a full disk, a read-only folder: every other item would meet it too.
    """
    if len({item.name for item in items}) != len(items):
        raise ValueError("work items must have different names")
    try:
        return _sweep(items, process, title)
    except distributed.DistError:  # the store is gone, so the launch is over
        raise InputError(_ALONE) from None


def _sweep(items: Sequence[WorkItem], process: Process, title: str) -> SweepResult:
    store = distributed.PrefixStore(f"sweep {title}", process.store)
    pending = [item for item in items if not item.done()]
    failures: dict[str, str] = {}
    started, busy = time.monotonic(), 0.0
    with tqdm(
        total=len(items), initial=len(items) - len(pending), desc=title, unit="item", disable=not process.is_main
    ) as bar:
        for item in _claimed(pending, store):
            bar.set_postfix_str(item.name, refresh=False)
            item_started = time.monotonic()
            reason = None if item.done() else _attempt(item)
            busy += time.monotonic() - item_started
            if reason is not None:
                if reason not in failures.values():
                    bar.write(f"failed: {item.name}: {reason}", file=sys.stderr)
                failures[item.name] = reason
            store.add("finished", 1)
            _show(bar, len(items) - len(pending) + store.add("finished", 0))
        bar.set_postfix_str("", refresh=False)
        _wait_for_all(store, process, bar, len(items) - len(pending))
    report = {"busy": busy / max(time.monotonic() - started, 1e-9), "pending": len(pending), "failures": failures}
    return _summary(items, _exchange(store, process, report))


def _claimed(pending: Sequence[WorkItem], store: distributed.Store) -> Iterator[WorkItem]:
    """Claim and yield items until none is left: those of unopened batches first, then what others have not reached."""
    batches: dict[str, list[WorkItem]] = defaultdict(list)
    for item in sorted(pending, key=lambda item: -item.cost):
        batches[item.batch].append(item)
    longest_first = sorted(batches.items(), key=lambda batch: -sum(item.cost for item in batch[1]))
    for helping in (False, True):
        for name, members in longest_first:
            if helping or store.add(f"open {name}", 1) == 1:
                yield from (item for item in members if store.add(f"claim {item.name}", 1) == 1)


def _attempt(item: WorkItem) -> str | None:
    """Run an item; the reason if it failed. What would stop every other item too is raised."""
    try:
        item.run()
    except InputError as error:
        return str(error)
    except OSError as error:
        if is_mendable(error):
            raise
        return f"{type(error).__name__}: {error}"
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "the GPU's memory does not suffice; give a smaller --batch_size (or --memory_gb)"
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def _show(bar: tqdm, finished: int) -> None:
    bar.update(max(0, min(finished, bar.total) - bar.n))


def _wait_for_all(store: distributed.Store, process: Process, bar: tqdm, present: int) -> None:
    """Return when every process has run out of items; the main process's bar shows the others' work meanwhile."""
    ended = store.add("ended", 1)
    while ended < process.count:
        time.sleep(_POLL_SECONDS)
        ended = store.add("ended", 0)
        _show(bar, present + store.add("finished", 0))


def _exchange(store: distributed.Store, process: Process, report: dict) -> list[dict]:
    """Every process's report, by rank. The main process, which may keep the store, leaves last."""
    store.set(f"report {process.rank}", json.dumps(report))
    reports = [json.loads(store.get(f"report {rank}")) for rank in range(process.count)]
    left = store.add("left", 1)
    while process.is_main and left < process.count:
        time.sleep(_POLL_SECONDS)
        left = store.add("left", 0)
    return reports


def _summary(items: Sequence[WorkItem], reports: Sequence[dict]) -> SweepResult:
    reasons = {name: reason for report in reports for name, reason in report["failures"].items()}
    pending = max(report["pending"] for report in reports)
    return SweepResult(
        present=len(items) - pending,
        finished=pending - len(reasons),
        failures=tuple((item.name, reasons[item.name]) for item in items if item.name in reasons),
        busy=tuple(report["busy"] for report in reports),
    )


def report_sweep(result: SweepResult, process: Process) -> int:
    """Print what became of a sweep on the main process; the exit status: 1 if an item failed, else 0."""
    if process.is_main:
        print(f"{result.finished} done, {result.present} were there already, {len(result.failures)} failed")
        if result.finished or result.failures:
            shares = ", ".join(f"process {rank} {share:.0%}" for rank, share in enumerate(result.busy))
            print(f"share of the time busy: {shares}")
        names: dict[str, list[str]] = defaultdict(list)
        for name, reason in result.failures:
            names[reason].append(name)
        for reason, failed in names.items():
            print(f"error: {reason} (failed: {'; '.join(failed)})", file=sys.stderr)
    return 1 if result.failures else 0
