"""Divide the work so that a pass fits the memory: fewer items at a time, then fewer runs, then fewer positions.

Bytes are counted from the shapes, not measured: every tensor that lives through a pass, plus a share for temporary
ones. Dividing changes the number of passes and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil
import torch
from torch import Tensor

from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.graph import Layout
from knowledge_circuits.files import InputError

_SHARE_OF_FREE = 0.6
_SHORT_LIVED = 1.3
#: Numbers held per logit: itself, its exponential, its gradient and a copy of the latter.
_PER_LOGIT = 4
#: Larger activations are slower on a CPU: the allocator returns them to the system (`reuse_freed_memory`).
_FAST_BYTES = 16_000_000
#: The most bytes of a block that is kept for the next pass.
_KEPT_WORKSPACE = 512_000_000
#: Names of glibc's malloc options (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Limit, usage and the key of cached files in memory.stat, for control groups of version 2 and 1.
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@lru_cache
def reuse_freed_memory() -> None:
    """Make glibc keep freed blocks for the next pass, unless MALLOC_ variables in the environment say otherwise.

    By default it returns large blocks to the system, which clears every page of the next block: measured, that takes
    a tenth of the time of a pass. Blocks of more than 32 MB are still returned, and so is what exceeds 1 GB.
    """
    if sys.platform == "linux" and not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)
            mallopt(_M_TRIM_THRESHOLD, 1 << 30)


class _Workspace(threading.local):
    """Memory that passes use in turn, and the tensor that uses it; each thread has its own."""

    def __init__(self) -> None:
        self.block = torch.empty(0, dtype=torch.uint8)
        self.user: Callable[[], Tensor | None] = lambda: None


_workspace = _Workspace()


def workspace(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialized tensor of a shape, with the dtype and device of another.

    On a CPU it lies in a block that is kept, unless the tensor of an earlier call lies there still: fresh memory of
    this size takes ten times as long to write.
    """
    count = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or count > _KEPT_WORKSPACE or _workspace.user() is not None:
        return like.new_empty(shape)
    if len(_workspace.block) < count:
        _workspace.block = torch.empty(count, dtype=torch.uint8)
    tensor = _workspace.block[:count].view(like.dtype).view(shape)
    _workspace.user = weakref.ref(tensor)
    return tensor


def budget_bytes(memory_gb: float | None, device: torch.device) -> float:
    """Return the stated budget in bytes, or 60% of the device's free memory, shared by a launcher's processes.

    Raises:
        InputError: the budget is not positive.
    """
    if memory_gb is not None:
        if not memory_gb > 0:
            raise InputError(f"a memory budget is a positive number of gigabytes, not {memory_gb}")
        return memory_gb * 1e9
    if device.type == "cuda":
        # The allocator's cache is free too; the driver counts it as used.
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return _SHARE_OF_FREE * (torch.cuda.mem_get_info(device)[0] + reusable)
    return _SHARE_OF_FREE * min(psutil.virtual_memory().available, control_group_room()) / _processes_here()


def control_group_room(system: Path = Path("/")) -> float:
    """Return the bytes left under this process's control groups (a container's or a Slurm job's limit), or inf.

    Cached files are dropped when memory is needed, so they count as free.

    Args:
        system: the root of the file system.
    """
    room = math.inf
    for limit, usage, cache in _MEMORY_FILES:
        for folder in _control_groups(system):
            try:
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / usage).read_text()) - int(statistics[cache])
                room = min(room, int((folder / limit).read_text()) - used)
            except (OSError, ValueError, KeyError):
                continue  # no such group, or "max": no limit
    return max(room, 0)


def _control_groups(system: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, of either version, and of all that contain them."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            group = Path(path.lstrip("/"))
            for part in (group, *group.parents):
                yield system / "sys/fs/cgroup" / controllers / part


def _processes_here() -> int:
    """Return how many processes a launcher (torchrun, accelerate) has started on this machine."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(count)) if count.isdecimal() else 1


@dataclass(frozen=True)
class AttributionPlan:
    """How one batch is divided.

    Attributes:
        items: prompts per pass.
        runs: runs per pass; the clean and the corrupted run are repeated if they are fewer than all.
        positions: positions at which D and a layer's G are held at once.
    """

    items: int
    runs: int
    positions: int


#: Positions at once below which runs are divided rather than positions: products of fewer are slow.
_FEW_POSITIONS = 64


def plan_attribution(
    decoder: Decoder,
    layout: Layout,
    positions: int,
    items: int,
    runs: int,
    budget: float,
    cells: int = 0,
    queries: int = 1,
) -> AttributionPlan:
    """Divide a batch of `items` prompts of one length and `runs` runs each to fit the budget (bytes).

    Items are divided first; if even one does not fit, then runs, so far that `_FEW_POSITIONS` fit, then positions. One
    run at one position is always tried. On a CPU a pass takes no more items than are fast.

    Args:
        cells: into how many cells an item's scores are divided; 0 if they are summed over items.
        queries: how many last positions a metric reads.
    """
    size = decoder.embedding.element_size()
    per_run = activation_bytes(decoder, positions) * _SHORT_LIVED + logit_bytes(decoder, queries)
    held = target_bytes(decoder, positions)
    at_position = (layout.n_sources + 3 * layout.n_heads + 1) * decoder.d_model * size
    scores = cells * layout.n_sources * (3 * layout.n_heads + 1) * size
    fitting = int(budget // (per_run * runs + held + at_position * positions + scores))
    if fitting >= 1:
        fast = int(min(items, _fast_items(decoder, runs * positions)))
        return AttributionPlan(min(fast, fitting), runs, positions)
    held += scores + output_bytes(decoder, positions)
    few = min(positions, _FEW_POSITIONS)
    runs = min(runs, max(1, int((budget - held - at_position * few) // per_run)))
    fitting = int((budget - held - per_run * runs) // at_position)
    return AttributionPlan(1, runs, min(positions, max(1, fitting)))


def activation_bytes(decoder: Decoder, positions: int) -> float:
    """Return the bytes that a forward pass keeps per row."""
    attention, mlp = decoder.blocks[0].attention, decoder.blocks[0].mlp
    per_position = (
        4 * decoder.d_model
        + attention.w_qkv.shape[1]
        + attention.w_o.shape[0]
        + mlp.w_in.shape[1]
        + decoder.n_heads * positions
        + (2 * decoder.d_model if mlp.post_norm is not None else 0)
    )
    return decoder.n_layers * per_position * positions * decoder.embedding.element_size()


def logit_bytes(decoder: Decoder, positions: int) -> float:
    """Return the bytes of one row's logits and their gradient at several positions; those of one are short-lived."""
    return _PER_LOGIT * (positions - 1) * decoder.d_vocab * max(4, decoder.embedding.element_size())


def target_bytes(decoder: Decoder, positions: int) -> float:
    """Return the bytes of all layers' gradients at projections and MLPs, summed over runs, for one item."""
    per_position = 3 * decoder.n_heads * decoder.d_head + decoder.d_model
    return decoder.n_layers * per_position * positions * decoder.embedding.element_size()


def output_bytes(decoder: Decoder, positions: int) -> float:
    """Return the bytes of the heads' and MLPs' outputs in the clean and the corrupted run of one item."""
    per_position = decoder.n_heads * decoder.d_head + decoder.d_model
    return 2 * decoder.n_layers * per_position * positions * decoder.embedding.element_size()


def plan_circuit(decoder: Decoder, positions: int, budget: float, queries: int = 1) -> tuple[int, int]:
    """Return how many prompts of one length a circuit run takes within the budget (bytes), and positions at once.

    One prompt is always tried, some positions at a time if all of them do not fit. `queries` as for `plan_attribution`.
    """
    layout = Layout(decoder.n_layers, decoder.n_heads, decoder.parallel)
    size = decoder.embedding.element_size()
    # The clean and the corrupted run keep one layer's activations; the reference keeps what each source adds.
    held = 2 * activation_bytes(decoder, positions) / decoder.n_layers + output_bytes(decoder, positions)
    held += logit_bytes(decoder, queries)
    terms_and_patterns = layout.n_sources * decoder.d_model + decoder.n_heads * positions
    gradients = (3 * decoder.n_heads + 1) * decoder.d_model  # of one layer's targets
    at_position = (3 * gradients + terms_and_patterns) * size
    fitting = int(budget // (held + at_position * positions))
    if fitting >= 1:
        return int(min(fitting, _fast_items(decoder, 2 * positions))), positions
    # Keys and values of all heads at the positions before.
    held += 2 * decoder.n_layers * decoder.n_heads * decoder.d_head * positions * size
    return 1, min(positions, max(1, int((budget - held) // at_position)))


def _fast_items(decoder: Decoder, rows: int) -> float:
    """Return the most items of a pass, with `rows` rows each, whose widest activation a CPU's allocator reuses."""
    if decoder.device.type != "cpu":
        return math.inf
    widest = max(decoder.blocks[0].mlp.w_in.shape[1], decoder.blocks[0].attention.w_qkv.shape[1])
    return max(1, _FAST_BYTES // (rows * widest * decoder.embedding.element_size()))
