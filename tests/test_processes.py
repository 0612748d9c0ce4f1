"""A sweep shares a list of work items out over processes, goes on past failures, and redoes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import distributed

from knowledge_circuits.command_line import cores
from knowledge_circuits.files import InputError, atomic_write
from knowledge_circuits.manifest import State, Status, check, finish
from knowledge_circuits.sweeps.processes import (
    Existing,
    Process,
    WorkItem,
    pick_device,
    report_sweep,
    sweep,
    this_process,
)

ROOT = Path(__file__).parents[1]


def writer(folder: Path, name: str, batch: str = "one", cost: float = 1.0, log: list[str] | None = None) -> WorkItem:
    """An item that writes its own name into a file and notes that it ran."""

    def run() -> None:
        if log is not None:
            log.append(name)
        with atomic_write(folder / name) as file:
            file.write(name)

    return WorkItem(name, batch, cost, lambda: [present(folder / name)], run)


def present(path: Path) -> State:
    return State(Status.WHOLE if path.exists() else Status.MISSING, path)


MISSING = [State(Status.MISSING, Path("x"))]


def failing(name: str, error: BaseException, batch: str = "one") -> WorkItem:
    def run() -> None:
        raise error

    return WorkItem(name, batch, 1.0, lambda: MISSING, run)


def alone() -> Process:
    return Process(0, 1, 0, distributed.HashStore())


def in_threads(lists: list[list[WorkItem]], title: str = "items") -> list:
    """Sweep as several processes would, each with its own list of the same items, over one store."""
    store = distributed.HashStore()
    results: list = [None] * len(lists)

    def work(rank: int) -> None:
        with contextlib.suppress(InputError):
            results[rank] = sweep(lists[rank], Process(rank, len(lists), rank, store), title)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(lists))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


def test_a_single_process_does_everything(tmp_path):
    result = sweep([writer(tmp_path, name) for name in "abc"], alone(), "items")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert (result.present, result.finished, result.failures) == (0, 3, ())
    assert len(result.busy) == 1 and 0 <= result.busy[0] <= 1


def test_finished_items_are_skipped(tmp_path):
    (tmp_path / "b").write_text("from before")
    log: list[str] = []
    result = sweep([writer(tmp_path, name, log=log) for name in "abc"], alone(), "items")
    assert sorted(log) == ["a", "c"]
    assert (tmp_path / "b").read_text() == "from before"
    assert (result.present, result.finished) == (1, 2)


def test_batches_keep_their_order_and_the_longest_item_of_a_batch_comes_first(tmp_path):
    log: list[str] = []
    items = [
        writer(tmp_path, "small 1", "small", 1, log),
        writer(tmp_path, "large 2", "large", 2, log),
        writer(tmp_path, "large 9", "large", 9, log),
        writer(tmp_path, "small 5", "small", 5, log),
    ]
    sweep(items, alone(), "items")
    assert log == ["small 5", "small 1", "large 9", "large 2"]


def in_state(folder: Path, name: str, status: Status, log: list[str], adopted: bool = False) -> WorkItem:
    """An item whose unit is in a state until it is run or adopted."""
    states = [State(status, folder / name / "manifest.json", f"detail of {name}")]

    def become_whole() -> None:
        states[0] = State(Status.WHOLE, states[0].path)

    def run() -> None:
        log.append(name)
        become_whole()

    return WorkItem(name, "one", 1.0, lambda: states, run, become_whole if adopted else lambda: None)


def test_damaged_units_are_made_again_with_one_line(tmp_path, capsys):
    log: list[str] = []
    items = [in_state(tmp_path, name, Status.DAMAGED, log) for name in "abc"]
    assert sweep(items, alone(), "items").finished == 3 and log == ["a", "b", "c"]
    said = capsys.readouterr().out
    assert "3 results are damaged and made again, the first" in said and "detail of a" in said


def test_units_of_other_settings_are_refused_with_the_remedy_and_recomputed_with_overwrite(tmp_path):
    log: list[str] = []
    items = [in_state(tmp_path, "a", Status.MISSING, log), in_state(tmp_path, "b", Status.OTHER, log)]
    with pytest.raises(InputError, match=r"1 result is made from other settings.*detail of b; --overwrite recomputes"):
        sweep(items, alone(), "items")
    assert log == []
    assert sweep(items, alone(), "again", Existing(overwrite=True)).finished == 2 and log == ["a", "b"]


def test_units_without_a_manifest_are_refused_adopted_or_recomputed(tmp_path):
    log: list[str] = []
    items = [in_state(tmp_path, name, Status.UNKNOWN, log, adopted=name == "a") for name in "ab"]
    with pytest.raises(InputError, match=r"2 results are without a manifest.*--adopt takes them.*--overwrite"):
        sweep(items, alone(), "items")
    result = sweep(items, alone(), "again", Existing(adopt=True))
    assert (result.present, result.finished, log) == (1, 1, ["b"]), "b lacks a part and is made"


def test_units_with_an_earlier_versions_digest_of_weights_are_refused_adopted_or_recomputed(tmp_path):
    graph, now = tmp_path / "graph.json", {"weights": "a1" * 16}
    graph.write_text("{}")
    manifest = tmp_path / "manifest.json"
    finish(manifest, "graph", {"weights": "0f" * 8, "ig_steps": 5}, [graph])
    log: list[str] = []
    item = WorkItem("a", "one", 1.0, lambda: [check(manifest, now)], lambda: log.append("a"))
    said = "1 result is of an earlier version, which compared some bytes of the weights only, .*--adopt .*--overwrite"
    with pytest.raises(InputError, match=said):
        sweep([item], alone(), "items")
    assert sweep([item], alone(), "again", Existing(adopt=True)).present == 1 and not log
    assert check(manifest, {**now, "ig_steps": 5}).is_whole


def test_two_programs_do_not_work_in_one_folder(tmp_path):
    refusals: list[str] = []

    def run() -> None:
        with pytest.raises(InputError) as refusal:
            sweep([failing("b", RuntimeError())], alone(), "items", Existing(folders=[tmp_path], work="discovery"))
        refusals.append(str(refusal.value))

    item = WorkItem("a", "one", 1.0, lambda: MISSING, run)
    sweep([item], alone(), "items", Existing(folders=[tmp_path, tmp_path], work="discovery"))
    assert len(refusals) == 1 and f"discovery is under way here in process {os.getpid()}" in refusals[0]
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_in_the_main_process_ends_all(tmp_path):
    lists = [[in_state(tmp_path, "a", Status.OTHER, [])] for _ in range(2)]
    assert in_threads(lists) == [None, None]


def test_a_failed_item_is_named_and_the_others_go_on(tmp_path, capsys):
    items = [
        writer(tmp_path, "a"),
        failing("b", InputError("b.jsonl, line 3: no key 'type'")),
        failing("c", RuntimeError("shape mismatch")),
        writer(tmp_path, "d"),
    ]
    result = sweep(items, alone(), "items")
    assert (tmp_path / "a").exists() and (tmp_path / "d").exists()
    assert result.failures == (("b", "b.jsonl, line 3: no key 'type'"), ("c", "RuntimeError: shape mismatch"))
    assert report_sweep(result, alone()) == 1
    assert "error: b.jsonl, line 3: no key 'type' (failed: b)" in capsys.readouterr().err


def test_too_little_gpu_memory_is_a_sentence_with_the_remedy(tmp_path, capsys):
    items = [failing("a", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")), writer(tmp_path, "b")]
    ((name, reason),) = sweep(items, alone(), "items").failures
    assert name == "a" and "--batch_size" in reason
    assert (tmp_path / "b").exists() and "Traceback" not in capsys.readouterr().err


def test_a_full_disk_ends_the_sweep(tmp_path):
    log: list[str] = []
    items = [failing("a", OSError(errno.ENOSPC, "No space left on device")), writer(tmp_path, "b", cost=0.5, log=log)]
    with pytest.raises(OSError, match="No space left"):
        sweep(items, alone(), "items")
    assert log == []


def test_several_processes_do_each_item_once_and_all_see_the_whole_result(tmp_path):
    logs: list[list[str]] = [[], [], []]
    names = [f"{batch}{number}" for batch in "abcd" for number in range(10)]
    lists = [[writer(tmp_path, name, name[0], log=log) for name in names] for log in logs]
    results = in_threads(lists)
    assert sorted(name for log in logs for name in log) == sorted(names)
    assert results[0] == results[1] == results[2]
    assert results[0].finished == 40 and len(results[0].busy) == 3


def test_the_items_of_one_batch_are_shared(tmp_path):
    """Two items that wait for each other can only end in two processes."""
    together = threading.Barrier(2, timeout=30)

    def item(number: int) -> WorkItem:
        return WorkItem(f"item {number}", "the only batch", 1.0, lambda: MISSING, together.wait)

    results = in_threads([[item(0), item(1)], [item(0), item(1)]])
    assert results[0].finished == 2 and not results[0].failures


def test_many_failures_of_one_kind_are_one_line_and_a_count(tmp_path, capsys):
    items = [failing(f"item {number}", InputError("no weights")) for number in range(54)]
    assert report_sweep(sweep(items, alone(), "items"), alone()) == 1
    said = capsys.readouterr()
    assert said.err.count("no weights") == 1 and "error: no weights (failed: item 0 and 53 more)" in said.err
    assert "busy" not in said.out


def test_a_failure_in_one_process_is_known_to_all(tmp_path):
    items = [failing("bad", ValueError("no"), "one"), writer(tmp_path, "good", "two")]
    results = in_threads([items, items])
    assert [result.failures for result in results] == [(("bad", "ValueError: no"),)] * 2


def test_names_must_differ(tmp_path):
    with pytest.raises(ValueError, match="different names"):
        sweep([writer(tmp_path, "a"), writer(tmp_path, "a")], alone(), "items")


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    process = this_process()
    assert (process.rank, process.count, process.is_main) == (0, 1, True)


def test_processes_that_cannot_find_each_other_are_told_how(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        InputError, match="RANK, MASTER_ADDR, MASTER_PORT is not set; start the program with accelerate"
    ):
        this_process()


def test_devices_by_name():
    assert pick_device("cpu", alone()) == torch.device("cpu")
    for name, reason in (("gpu", "no such device"), ("mps", "has none"), ("meta", "has none")):
        with pytest.raises(InputError, match=reason):
            pick_device(name, alone())
    assert cores() >= 1


PROGRAM = """
import sys, time
from pathlib import Path
from knowledge_circuits.command_line import run_program
from knowledge_circuits.files import InputError, atomic_write
from knowledge_circuits.manifest import State, Status
from knowledge_circuits.sweeps.processes import WorkItem, report_sweep, sweep, this_process

folder, bad, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

def item(name):
    def run():
        time.sleep(seconds)
        if name == bad:
            raise InputError("a bad item")
        with atomic_write(folder / name) as file:
            file.write(name)
    state = State(Status.WHOLE if (folder / name).exists() else Status.MISSING, folder / name)
    return WorkItem(name, name[0], 1.0, lambda: [state], run)

def main():
    process = this_process()
    return report_sweep(sweep([item(f"{b}{i}") for b in "ab" for i in range(6)], process, "items"), process)

run_program(main)
"""


def launch(folder: Path, bad: str = "", seconds: float = 0.0, processes: int = 2) -> subprocess.Popen[str]:
    script = folder.parent / "program.py"
    script.write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*(launcher if processes > 1 else [sys.executable]), str(script), str(folder), bad, str(seconds)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run that was started in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_torchrun_shares_the_items_and_a_failure_stops_nobody(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    out, err = (program := launch(folder, bad="a3", seconds=0.02)).communicate(timeout=120)
    assert program.returncode != 0
    assert "error: a bad item (failed: a3)" in err
    assert "11 done, 0 were there already, 1 failed" in out
    assert len(list(folder.iterdir())) == 11
    out, err = (program := launch(folder)).communicate(timeout=120)
    assert program.returncode == 0, err
    assert "1 done, 11 were there already, 0 failed" in out


def test_a_killed_sweep_leaves_nothing_that_blocks_the_next(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    program = launch(folder, seconds=0.2)
    deadline = time.monotonic() + 60
    while not list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = psutil.Process(program.pid).children(recursive=True)
    for killed in (*workers, program):
        killed.kill()
    program.communicate(timeout=60)
    out, err = (again := launch(folder, processes=1)).communicate(timeout=120)
    assert again.returncode == 0, err
    done, present = map(int, re.findall(r"(\d+) done, (\d+) were there", out)[0])
    assert done + present == 12 and 0 < present < 12
    assert len([path for path in folder.iterdir() if not path.name.startswith(".")]) == 12


def test_processes_end_when_the_launcher_is_killed(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    program = launch(folder, seconds=0.5)
    while {path.name[0] for path in folder.iterdir()} != {"a", "b"}:  # both processes are at work
        time.sleep(0.02)
    program.kill()
    _, err = program.communicate(timeout=30)  # returns when the last process that holds the pipe has ended
    assert "cannot be reached; run the same command again" in err


def test_ctrl_c_ends_with_one_sentence(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    program = launch(folder, seconds=0.2, processes=1)
    while not list(folder.iterdir()):
        time.sleep(0.02)
    os.killpg(program.pid, signal.SIGINT)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 130
    assert "run the same command again to go on" in err and "Traceback" not in err
