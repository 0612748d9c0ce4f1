"""The logit lens: its last point is the model; every point is what Hugging Face's hidden states give."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import torch

from knowledge_circuits.analysis.logit_lens import lens_logits, logit_lens, residual_points
from knowledge_circuits.engine.forward import Trace, all_logits, embed, forward
from knowledge_circuits.engine.weights import decoder_from_model

IDS = torch.tensor([[0, 5, 9, 33, 7, 60, 2], [0, 71, 14, 8, 7, 60, 2], [0, 3, 3, 45, 11, 60, 2]])
TARGETS = torch.tensor([17, 80, 4])
SUBJECT = torch.tensor([[0, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]).bool()
FAMILIES = ["gpt2", "llama", "phi", "gpt-neox"]


def lens_run(decoder) -> Trace:
    with torch.no_grad():
        return forward(decoder, embed(decoder, IDS), queries=None, keep_residuals=True)


def hidden_state_logits(model) -> torch.Tensor:
    """[l + 1, b, p, n] from the library's own hidden states; its last one has the final norm already."""
    final_norm = model.transformer.ln_f if hasattr(model, "transformer") else None
    for name in ("model", "gpt_neox"):
        if hasattr(model, name):
            body = getattr(model, name)
            final_norm = next(
                getattr(body, norm) for norm in ("norm", "final_layernorm", "final_layer_norm") if hasattr(body, norm)
            )
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
        normed = [final_norm(state) for state in states[:-1]] + [states[-1]]
        return torch.stack([model.get_output_embeddings()(state) for state in normed])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_is_the_final_norm_and_unembedding_of_the_hidden_state(family: str) -> None:
    config = families.FAMILIES[family]()
    expected = hidden_state_logits(families.random_model(config, dtype=torch.float64))
    decoder = decoder_from_model(families.random_model(config, dtype=torch.float64))
    points = residual_points(lens_run(decoder))
    assert len(points) == decoder.n_layers + 1
    for point, logits in zip(points, expected, strict=True):
        torch.testing.assert_close(lens_logits(decoder, point), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_point_is_the_model(family: str) -> None:
    decoder = decoder_from_model(families.random_model(families.FAMILIES[family](), dtype=torch.float64))
    reading = logit_lens(decoder, lens_run(decoder), TARGETS, SUBJECT)
    logits = all_logits(decoder, IDS)[:, -1]
    torch.testing.assert_close(reading.prob[:, -1], logits.softmax(-1)[range(3), TARGETS])
    order = logits.argsort(-1, descending=True)
    assert reading.rank[:, -1].tolist() == [
        row.tolist().index(t) for row, t in zip(order, TARGETS.tolist(), strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_and_probabilities_are_those_of_the_hidden_states(family: str) -> None:
    config = families.FAMILIES[family]()
    logits = hidden_state_logits(families.random_model(config, dtype=torch.float64))
    decoder = decoder_from_model(families.random_model(config, dtype=torch.float64))
    reading = logit_lens(decoder, lens_run(decoder), TARGETS, SUBJECT)
    for item, target in enumerate(TARGETS.tolist()):
        ranks = (logits[:, item] > logits[:, item, :, target, None]).sum(-1)  # [l + 1, p]
        assert reading.rank[item].tolist() == ranks[:, -1].tolist()
        assert reading.subject_rank[item].tolist() == ranks[:, SUBJECT[item]].min(1).values.tolist()
        torch.testing.assert_close(reading.prob[item], logits[:, item, -1].softmax(-1)[:, target], rtol=1e-4, atol=1e-9)


def test_the_subjects_best_rank_looks_at_the_subject_alone() -> None:
    decoder = decoder_from_model(families.random_model(families.FAMILIES["gpt2"](), dtype=torch.float64))
    trace = lens_run(decoder)
    everywhere = torch.ones_like(SUBJECT)
    best = logit_lens(decoder, trace, TARGETS, everywhere).subject_rank
    narrower = logit_lens(decoder, trace, TARGETS, SUBJECT).subject_rank
    assert bool((best <= narrower).all()) and bool((best < narrower).any())


def test_a_pass_without_its_residuals_is_refused() -> None:
    decoder = decoder_from_model(families.random_model(families.FAMILIES["gpt2"](), dtype=torch.float64))
    trace = lens_run(decoder)
    with pytest.raises(ValueError, match="keep_residuals=True"):
        residual_points(replace(trace, residuals=()))
    with pytest.raises(ValueError, match="queries=None"):
        residual_points(forward(decoder, embed(decoder, IDS), keep_residuals=True))


def test_a_prompt_without_a_subject_is_refused() -> None:
    decoder = decoder_from_model(families.random_model(families.FAMILIES["gpt2"](), dtype=torch.float64))
    nobody = SUBJECT.clone()
    nobody[1] = False
    with pytest.raises(ValueError, match="no position"):
        logit_lens(decoder, lens_run(decoder), TARGETS, nobody)
