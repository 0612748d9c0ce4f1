"""Devices that only exist in their labels, so that a model spread over several runs on any machine.

Under `TwoDevices` a tensor on `meta:0` or `meta:1` has its numbers on the CPU. An operation on tensors of two devices
is an error, as it is with real ones; copies from one to the other are not.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

FIRST, SECOND = torch.device("meta", 0), torch.device("meta", 1)
_COPIES = ("aten.copy_.default", "aten._to_copy.default", "aten._local_scalar_dense.default")


class Placed(Tensor):
    """A tensor that says it is on a device while its numbers are on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Placed:
        placed = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        placed.inner = inner
        return placed

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return TwoDevices.run(function, args, kwargs or {})


class TwoDevices(TorchDispatchMode):
    """Runs operations on placed tensors, and makes new ones where a device is named.

    PyTorch has no inference mode for tensors such as `Placed`; `no_grad` stands in.
    """

    def __enter__(self) -> Self:
        self._inference_mode = torch.inference_mode
        torch.inference_mode = torch.no_grad
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        torch.inference_mode = self._inference_mode
        super().__exit__(*raised)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(function, args, kwargs or {})

    @staticmethod
    def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        flat, _ = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        devices = {tensor.device for tensor in tensors if tensor.ndim or isinstance(tensor, Placed)}
        if len(devices) > 1 and str(function) not in _COPIES:
            raise RuntimeError(f"{function} on tensors of {sorted(map(str, devices))}")
        device = kwargs.get("device") or (tensors[0].device if tensors else torch.device("cpu"))
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        originals = {id(leaf.inner): leaf for leaf in tensors if isinstance(leaf, Placed)}
        inner_args, inner_kwargs = tree_map(
            lambda leaf: leaf.inner if isinstance(leaf, Placed) else leaf, (args, kwargs)
        )
        result = function(*inner_args, **inner_kwargs)
        if device.type != "meta":
            return result
        leaves, structure = tree_flatten(result)
        wrapped = [_placed(leaf, device, originals) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tree_unflatten(wrapped, structure)


def _placed(inner: Tensor, device: torch.device, originals: dict[int, Placed]) -> Placed:
    """Return the tensor on the device: one of the arguments where the operation wrote to it."""
    return originals[id(inner)] if id(inner) in originals else Placed(inner, device)
