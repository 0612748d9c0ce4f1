"""What benchmarks measure with: times, a machine's matrix-product peak, the most memory that a process has held.

Imports torch only, so that it also works in the environment of `peers.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def best_seconds(work: Callable[[], Any], repeats: int, device: str = "cpu", warm_up: bool = True) -> float:
    """The least time of several runs, after one that is not counted."""
    if warm_up:
        work()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def matrix_peak(
    device: str,
    dtype: torch.dtype,
    seconds: float = 3.0,
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.mm,
) -> float:
    """The most operations per second that square matrix products of several sizes reach."""
    sizes = (512, 1024, 1536, 2048, 3072) if device == "cpu" else (2048, 4096, 8192, 12288)
    best = 0.0
    for size in sizes:
        multiply = partial(product, *(torch.randn(size, size, device=device).to(dtype) for _ in range(2)))
        deadline = time.perf_counter() + seconds / len(sizes)
        multiply()
        while time.perf_counter() < deadline:
            best = max(best, 2 * size**3 / best_seconds(multiply, 3, device, False))
    return best


def status_bytes(name: str) -> int:
    """An amount of memory in this process's status, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def resident_peak() -> int:
    """The most memory this process has held since `reset_peak`, in bytes (Linux), else since it began."""
    try:
        return status_bytes("VmHWM")
    except (OSError, StopIteration):
        import resource

        scale = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def reset_peak(device: str) -> int:
    """Let `memory_peak` count anew and return the bytes held now, freed memory given back to the system first."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's keeps what was freed
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):  # elsewhere than on Linux the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")
    return resident_peak()


def memory_peak(device: str) -> int:
    """The most bytes held on the device (on a CPU: by this process) since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else resident_peak()


def random_prompts(
    generator: random.Random, batch: int, positions: int, vocabulary: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Clean and corrupted token ids that begin with the same token and end with the same relation, as the study's."""

    def tokens(count: int) -> list[int]:
        return [generator.randrange(1, vocabulary) for _ in range(count)]

    subject = max(1, (positions - 1) // 3)
    relations = [tokens(positions - 1 - subject) for _ in range(batch)]
    clean, corrupted = ([[0, *tokens(subject), *relation] for relation in relations] for _ in range(2))
    return clean, corrupted


def processor(device: str) -> str:
    """The name of the processor, or of the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table_row(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def table_head(*columns: object) -> str:
    """The first two lines of a Markdown table."""
    return f"{table_row(*columns)}\n{table_row(*['---'] * len(columns))}"


class AnonymousPeak:
    """The most anonymous memory that a block of code adds, sampled every millisecond (Linux).

    Pages of a mapped file, such as a checkpoint's, are not counted: the system drops them when memory is needed.
    """

    def __init__(self) -> None:
        self.start = self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def added(self) -> int:
        """Bytes beyond what was held when the block began."""
        return self.peak - self.start

    def __enter__(self) -> AnonymousPeak:
        self.start = self.peak = status_bytes("RssAnon")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.001):
            self.peak = max(self.peak, status_bytes("RssAnon"))
