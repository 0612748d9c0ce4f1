"""Work items shared over the processes of a launcher, on one machine or several.

    python circuit_discovery.py ...                                        one process
    accelerate launch --multi_gpu --num_processes 4 circuit_discovery.py   four; torchrun and Slurm with either work too

1. The main process locks the output folders, asks every item for the state of its units (`manifest`), refuses units of
   other settings, and tells the others which items are to be done.
2. The items are sorted by batch (a checkpoint, slow to load) and then by cost, and process r of w takes items[r::w]. A
   queue that processes claim items from was not 10% faster. CPU time of the longer of two processes on ten checkpoints
   of the nano run, with a queue and this way: discovery 31.0 and 31.8 s, evaluation 48.7 and 53.5 s (each process loads
   every checkpoint; the two processes differ by less than 2%).
3. An item that fails is recorded and the rest goes on. All processes end together, since launchers kill the others when
   one exits with an error.

Which process runs an item changes nothing in its files, as long as `--threads` is the same.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from tqdm import tqdm

from knowledge_circuits.command_line import is_mendable
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import State, Status, locked, renew
from knowledge_circuits.models.loading import find_device

_POLL_SECONDS = 0.1
_ALONE = "the launcher or the main process cannot be reached; run the same command again to go on"


@dataclass(frozen=True)
class WorkItem:
    """One unit of work, or several that share their inputs.

    Attributes:
        name: unique in the list; named if the item fails.
        batch: items of one batch share something that is slow to load, such as a checkpoint.
        cost: an estimate in any unit.
        states: what became of the item's units.
        run: does the work and writes the units' files and manifests.
        adopt: writes manifests for units without one if their files agree with the settings; raises InputError if not.
    """

    name: str
    batch: str
    cost: float
    states: Callable[[], Sequence[State]]
    run: Callable[[], object]
    adopt: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Existing:
    """What a sweep does about units that exist.

    Attributes:
        overwrite: recompute them, whatever their settings.
        adopt: take units without a manifest as finished if their files agree with the settings, and an earlier
            version's digest of some bytes of the weights as that of the weights now.
        folders: output folders, locked while the sweep runs.
        work: the kind of work that is locked.
    """

    overwrite: bool = False
    adopt: bool = False
    folders: Sequence[Path] = ()
    work: str = "sweep"


@dataclass(frozen=True)
class Process:
    """This process among those that the launcher started.

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
        present: items that were whole before.
        finished: items done now.
        failures: (item, reason) of those that failed, in the list's order.
        busy: per process, the share of the sweep's time it spent on items.
    """

    present: int
    finished: int
    failures: tuple[tuple[str, str], ...]
    busy: tuple[float, ...]


def this_process() -> Process:
    """Return the process that the launcher's variables RANK, WORLD_SIZE, LOCAL_RANK give; without them, one process.

    Raises:
        InputError: several processes without the variables that connect them.
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
    """Return the torch device for `--device`: `auto` is this process's GPU if there is one, else the CPU.

    Raises:
        InputError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = find_device(name, "--device")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", process.local_rank % torch.cuda.device_count())
    return device


def sweep(items: Sequence[WorkItem], process: Process, title: str, existing: Existing | None = None) -> SweepResult:
    """Run the items whose units are not whole, together with the launcher's other processes.

    Args:
        items: the whole list; every process gives the same.
        title: the progress bar's text; a program that sweeps twice uses two titles.

    Returns:
        What became of the items, the same in every process.

    Raises:
        InputError: units of other settings or without a manifest; another process at work in the same folder; the
            launcher or the main process was killed.
        OSError: a full disk, a read-only folder: every other item would meet it too.
    """
    if len({item.name for item in items}) != len(items):
        raise ValueError("work items must have different names")
    existing = existing or Existing()
    store = distributed.PrefixStore(f"sweep {title}", process.store)
    try:
        with ExitStack() as locks:
            if process.is_main:
                for folder in dict.fromkeys(existing.folders):
                    locks.enter_context(locked(folder, existing.work))
                _publish(items, existing, store)
            return _sweep(items, _pending(items, store), process, store, title)
    except distributed.DistError:  # the store is gone, so the launch is over
        raise InputError(_ALONE) from None


def _publish(items: Sequence[WorkItem], existing: Existing, store: distributed.Store) -> None:
    """Tell all processes which items are to be done, or why none is."""
    try:
        pending = list(range(len(items))) if existing.overwrite else _unfinished(items, existing)
        store.set("pending", json.dumps({"pending": pending}))
    except InputError as error:
        store.set("pending", json.dumps({"error": str(error)}))


def _pending(items: Sequence[WorkItem], store: distributed.Store) -> list[WorkItem]:
    """Return the items to be done in the order of batches, then of falling cost."""
    store.wait(["pending"], timedelta(days=1))
    said = json.loads(store.get("pending"))
    if "error" in said:
        raise InputError(said["error"])
    batches = {batch: index for index, batch in enumerate(dict.fromkeys(item.batch for item in items))}
    return sorted((items[index] for index in said["pending"]), key=lambda item: (batches[item.batch], -item.cost))


def _unfinished(items: Sequence[WorkItem], existing: Existing) -> list[int]:
    """Return the indices of the items with a unit that is not whole; refuse units of other settings or versions."""
    by_status: dict[Status, list[State]] = defaultdict(list)
    unfinished = []
    for index, item in enumerate(items):
        states = item.states()
        if existing.adopt and any(state.status is Status.UNKNOWN for state in states):
            for state in states:
                renew(state)
            if any(state.status is Status.UNKNOWN for state in item.states()):
                item.adopt()
            states = item.states()
        for state in states:
            # What could not be adopted lacks a part, and is made.
            adopted = existing.adopt and state.status is Status.UNKNOWN
            by_status[Status.MISSING if adopted else state.status].append(state)
        if not all(state.is_whole for state in states):
            unfinished.append(index)
    if other := by_status[Status.OTHER]:
        raise InputError(
            f"{_several(other)} made from other settings or inputs, the first {other[0].path} from {other[0].detail};"
            " --overwrite recomputes all of them, another --output_dir leaves them as they are"
        )
    if earlier := [state for state in by_status[Status.UNKNOWN] if state.renewed]:
        raise InputError(
            f"{_several(earlier)} of an earlier version, which compared some bytes of the weights only, the first"
            f" {earlier[0].path}; --adopt takes them as made from the weights that are there now, --overwrite"
            " recomputes them"
        )
    if unknown := by_status[Status.UNKNOWN]:
        raise InputError(
            f"{_several(unknown)} without a manifest, the first {unknown[0].path.parent} ({unknown[0].detail}); --adopt"
            " takes them as made with these settings and inputs, --overwrite recomputes them"
        )
    if damaged := by_status[Status.DAMAGED]:
        print(f"{_several(damaged)} damaged and made again, the first {damaged[0].path.parent}: {damaged[0].detail}")
    return unfinished


def _several(states: Sequence[State]) -> str:
    return "1 result is" if len(states) == 1 else f"{len(states)} results are"


def _sweep(
    items: Sequence[WorkItem], pending: Sequence[WorkItem], process: Process, store: distributed.Store, title: str
) -> SweepResult:
    failures: dict[str, str] = {}
    present = len(items) - len(pending)
    started, busy = time.monotonic(), 0.0
    with tqdm(total=len(items), initial=present, desc=title, unit="item", disable=not process.is_main) as bar:
        for item in pending[process.rank :: process.count]:
            bar.set_postfix_str(item.name, refresh=False)
            item_started = time.monotonic()
            reason = _attempt(item)
            busy += time.monotonic() - item_started
            if reason is not None:
                failures[item.name] = reason
            _show(bar, present + store.add("finished", 1))
        bar.set_postfix_str("", refresh=False)
        _wait_for_all(store, process, bar, present)
    report = {"busy": busy / max(time.monotonic() - started, 1e-9), "failures": failures}
    reports = _exchange(store, process, report)
    reasons = {name: reason for one in reports for name, reason in one["failures"].items()}
    return SweepResult(
        present=present,
        finished=len(pending) - len(reasons),
        failures=tuple((item.name, reasons[item.name]) for item in items if item.name in reasons),
        busy=tuple(one["busy"] for one in reports),
    )


def _attempt(item: WorkItem) -> str | None:
    """Run an item and return the reason if it failed; raise what would stop every other item too."""
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
    """Return every process's report, by rank. The main process, which may keep the store, leaves last."""
    store.set(f"report {process.rank}", json.dumps(report))
    reports = [json.loads(store.get(f"report {rank}")) for rank in range(process.count)]
    store.add("left", 1)
    while process.is_main and store.add("left", 0) < process.count:
        time.sleep(_POLL_SECONDS)
    return reports


def report_sweep(result: SweepResult, process: Process, timing: bool = False) -> int:
    """Print what became of a sweep on the main process and return the exit status: 1 if an item failed, else 0.

    `timing` also prints each process's share of busy time.
    """
    if process.is_main:
        print(f"{result.finished} done, {result.present} were there already, {len(result.failures)} failed")
        if timing:
            shares = ", ".join(f"process {rank} {share:.0%}" for rank, share in enumerate(result.busy))
            print(f"share of the time busy: {shares}")
        names: dict[str, list[str]] = defaultdict(list)
        for name, reason in result.failures:
            names[reason].append(name)
        for reason, failed in names.items():
            more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
            print(f"error: {reason} (failed: {failed[0]}{more})", file=sys.stderr)
    return 1 if result.failures else 0
