"""Runs a program with FSDP's sharding between CPU processes: `python fsdp_on_cpu.py program.py arguments...`.

PyTorch shards on CPUs as it does on GPUs (gloo gathers the parts), but accelerate leaves `ACCELERATE_USE_FSDP` unheeded
where there is no accelerator. This says afterwards what accelerate says itself where there is one.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_initialize = AcceleratorState.__init__


def _with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    _initialize(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = _with_fsdp
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
