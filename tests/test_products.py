"""Matrix products: the same numbers by either kernel, and gradients where they are asked for."""

from __future__ import annotations

import pytest
import torch

from knowledge_circuits.engine import products
from knowledge_circuits.engine.products import linear

WEIGHTS = {
    "as it is": lambda w: w,
    "transposed": lambda w: w.T.contiguous().T,
    "columns of a larger one": lambda w: torch.cat((w, w), 1)[:, : w.shape[1]],
    "rows of a larger one, transposed": lambda w: torch.cat((w.T, w.T), 1)[:, : w.shape[0]].T,
}


@pytest.mark.parametrize("rows", [1, 7, 60])
@pytest.mark.parametrize("layout", WEIGHTS)
@pytest.mark.parametrize("biased", [True, False])
def test_linear_agrees_with_float64(rows: int, layout: str, biased: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(2, rows, 3, 96, generator=generator)[:, :, -1]  # the last of three positions: not contiguous
    weight, bias = torch.randn(96, 640, generator=generator), torch.randn(640, generator=generator)
    product = linear(x, WEIGHTS[layout](weight), bias if biased else None)
    expected = x.double() @ weight.double() + (bias.double() if biased else 0)
    assert product.shape == (2, rows, 640)
    torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_which_products_onednn_makes() -> None:
    x, weight = torch.randn(64, 200), torch.randn(200, 300)
    assert products._for_onednn(x, weight)
    assert products._for_onednn(x, weight.T.contiguous().T)
    assert not products._for_onednn(x[:8], weight)  # too small
    assert not products._for_onednn(x.double(), weight.double())
    assert not products._for_onednn(x, torch.randn(200, 600)[:, :300])
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products._for_onednn(x, weight)


def test_a_product_that_autograd_follows_has_a_gradient() -> None:
    x = torch.randn(64, 200, requires_grad=True)
    weight = torch.randn(200, 300)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(1).expand(64, -1))
