"""Matrix products: the same numbers by either kernel, and gradients where they are asked for."""

from __future__ import annotations

import families
import pytest
import torch
from test_attribution_oracles import prompt_pairs

from knowledge_circuits.engine import products
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.evaluation import evaluate, standalone
from knowledge_circuits.engine.products import linear
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.weights import decoder_from_model

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
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 200, generator=generator, requires_grad=True)
    weight = torch.randn(200, 300, generator=generator)
    linear(x, weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), weight.double().sum(1).expand(64, -1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi"])
def test_scores_and_evaluations_by_onednn_are_those_in_double_precision(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = prompt_pairs(families.random_pairs((7, 10, 7), seed=3))
    config = families.FAMILIES[family]()
    single, double = (
        decoder_from_model(families.random_model(config, 0, torch.float32).to(dtype))
        for dtype in (torch.float32, torch.float64)
    )
    expected = attribute(double, pairs, ig_steps=2)
    circuit = prune(top_n(expected, expected.n_edges // 3))
    monkeypatch.setattr(products, "_ONEDNN_FROM", 0)  # tiny models have no larger products
    scores = attribute(single, pairs, ig_steps=2).scores
    torch.testing.assert_close(scores.double(), expected.scores, rtol=1e-4, atol=1e-5 * expected.scores.abs().max())
    (found,), (exact,) = evaluate(single, [circuit], pairs), evaluate(double, [circuit], pairs)
    torch.testing.assert_close(found.circuit, exact.circuit, rtol=1e-4, atol=1e-5)
    alone, alone_exact = standalone(single, circuit, pairs), standalone(double, circuit, pairs)
    torch.testing.assert_close(alone.token_prob, alone_exact.token_prob, rtol=1e-4, atol=1e-6)
