"""Matrix products, by the faster of the kernels that PyTorch brings.

In float32 on a CPU, PyTorch leaves products to its BLAS (MKL), and in float16 and bfloat16 to oneDNN. On AMD processors
oneDNN is faster in float32 too, most of all with few rows (docs/benchmarks.md); there `linear` calls the operator
that compiled models use for their linear layers. Small products stay with BLAS, whose calls cost less.
`torch.backends.mkldnn.enabled = False` leaves all of them to BLAS.
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
    """Whether oneDNN multiplies x [n, in] and weight [in, out].

    It keeps no graph for autograd, and is a thousand times slower for weights that are columns of larger ones.
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
