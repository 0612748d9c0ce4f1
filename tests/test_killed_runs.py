"""A stage that is killed at any moment and started again ends with the files of an undisturbed run.

SIGKILL leaves no time to clean up. Whatever the moment: every file under its final name is whole, and running the
same command again completes the rest, byte for byte as if nothing had happened. The fast set kills the short stages
twice in a row; the slow one kills all of them, twenty times. Full disks and read-only folders end with one sentence and
nothing lost.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import tiny
from stages import STAGES, Stage, contents, duplicate, final_files, finish, read_whole, start

Undisturbed = Callable[[str], tuple[Path, Path, float]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Of a stage: the workspace before it, the workspace after it, and how long it took in seconds."""
    base = tmp_path_factory.mktemp("undisturbed")
    tiny.save_tiny_gpt2(base / "start" / "models" / "tiny")
    start("data/datapoint_generation.py --help", base, base / "log").join()  # the first start of all is slow

    @cache
    def run(name: str) -> tuple[Path, Path, float]:
        stage = STAGES[name]
        before = run(stage.after)[1] if stage.after else base / "start"
        after = duplicate(before, base / name)
        started = time.monotonic()
        status, output = finish(stage, after, base / "log")
        assert status == 0, output
        return before, after, time.monotonic() - started

    return run


def kill_somewhere(stage: Stage, folder: Path, duration: float, generator: random.Random, log: Path) -> bool:
    """Start a stage and kill it at a random moment of its work; whether it was still at work then."""
    deadline = time.monotonic() + generator.random() * duration
    for command in stage.programs:
        process = start(command, folder, log)
        process.join(timeout=max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
            return True
        assert process.exitcode == 0, log.read_text()
    return False


def disturb(name: str, rounds: int, undisturbed: Undisturbed, tmp_path: Path, seed: int) -> None:
    """Kill a stage twice in a row, then let it finish; so many times."""
    stage = STAGES[name]
    before, after, duration = undisturbed(name)
    generator = random.Random(f"{name} {seed}")
    for round_ in range(rounds):
        folder = duplicate(before, tmp_path / f"round-{round_}")
        while not kill_somewhere(stage, folder, duration, generator, tmp_path / "log"):
            duration /= 2  # it was slower when it was timed: the tests beside it had the cores
            shutil.rmtree(folder)
            folder = duplicate(before, folder)
        assert_files_are_whole(folder)
        kill_somewhere(stage, folder, duration, generator, tmp_path / "log")  # may find little left to do
        assert_files_are_whole(folder)
        status, output = finish(stage, folder, tmp_path / "log")
        assert status == 0, output
        expected, found = contents(after, stage.unequal), contents(folder, stage.unequal)
        assert found.keys() == expected.keys()
        assert [path for path in expected if found[path] != expected[path]] == []
        shutil.rmtree(folder)


def assert_files_are_whole(folder: Path) -> None:
    """Every file under its final name can be read to its end."""
    for path in final_files(folder):
        read_whole(path)


#: Stages of more than a few seconds.
LONG = ("report", "adapter", "answers", "mirrored", "relevance", "depth")
SMALL = [name for name in STAGES if name not in LONG]
STUDIES = [pytest.param(name, marks=pytest.mark.slow) for name in ("relevance", "depth")]  # their files are small
names = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]


@pytest.mark.parametrize("name", names)
def test_a_stage_killed_twice_ends_with_the_files_of_an_undisturbed_run(name, undisturbed, tmp_path):
    disturb(name, 1, undisturbed, tmp_path, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_killed_at_twenty_moments_ends_the_same(name, undisturbed, tmp_path):
    disturb(name, 10, undisturbed, tmp_path, seed=1)


# --- full disks and read-only folders --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path, room: int) -> Path:
    """Fill a file system up to `room` bytes; the file that does it."""
    ballast = disk / "ballast"
    space = os.statvfs(disk)
    with open(ballast, "wb") as file:
        file.write(bytes(max(0, space.f_bavail * space.f_frsize - room)))
    return ballast


@pytest.mark.parametrize("name", [name for name in names if name not in STUDIES])
def test_a_full_disk_ends_with_a_sentence_and_nothing_is_lost(name, undisturbed, small_disk, tmp_path):
    stage = STAGES[name]
    before, after, _ = undisturbed(name)
    folder = duplicate(before, small_disk / "workspace")
    ballast = fill(small_disk, room=40_000)
    complete = contents(folder)
    status, output = finish(stage, folder, tmp_path / "log")
    assert status != 0
    assert "no space left" in output.lower() and "Traceback" not in output, output
    left = contents(folder)
    assert complete.items() <= left.items()
    assert_files_are_whole(folder)
    assert not list(folder.rglob("*.partial"))
    ballast.unlink()
    status, output = finish(stage, folder, tmp_path / "log")
    assert status == 0, output
    assert contents(folder, stage.unequal) == contents(after, stage.unequal)


@pytest.mark.parametrize("name", names)
def test_a_read_only_folder_ends_with_a_sentence_and_nothing_is_lost(name, undisturbed, small_disk, tmp_path):
    stage = STAGES[name]
    folder = duplicate(undisturbed(name)[0], small_disk / "workspace")
    complete = contents(folder)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    status, output = finish(stage, folder, tmp_path / "log")
    assert status != 0
    assert "read-only" in output.lower() and "Traceback" not in output, output
    assert contents(folder) == complete
