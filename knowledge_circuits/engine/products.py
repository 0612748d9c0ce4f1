"""Matrix products, by the faster of the kernels that PyTorch brings.

In float32 on a CPU, PyTorch uses its BLAS library (MKL), and in float16 and bfloat16 oneDNN. On the processor of
docs/benchmarks.md oneDNN is faster in float32 too, most of all with few rows. `linear` therefore calls the oneDNN
operator of compiled models, on every CPU. Small products use BLAS, whose calls cost less.
`torch.backends.mkldnn.enabled = False` makes all products use BLAS.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Multiplications from which oneDNN's call is worth its cost.
_ONEDNN_FROM = 1_500_000
_HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [..., in] times weight [in, out], plus bias [out] if there is one."""
    rows = x.reshape(-1, x.shape[-1])
    if _for_onednn(rows, weight):
        product = torch.ops.mkldnn._linear_pointwise(rows, weight.T, bias, "none", [], "")
    else:
        product = rows @ weight if bias is None else torch.addmm(bias, rows, weight)
    return product.view(*x.shape[:-1], weight.shape[1])


def _for_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN multiplies x [n, in] and weight [in, out].

    Not where autograd needs a graph, and not for a weight that is a block of columns of a larger one, for which oneDNN
    took a thousand times as long as BLAS.
    """
    return (
        _HAS_ONEDNN
        and bool(torch.backends.mkldnn.enabled)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and len(x) * weight.numel() >= _ONEDNN_FROM
        and (weight.is_contiguous() or weight.T.is_contiguous())
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    )


def batched_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write left [k, n, i] times right [k, i, o] to `out` [k, n, o], which may be on another device."""
    if out.device == left.device:
        torch.bmm(left, right, out=out)
    else:
        out.copy_(left @ right)
