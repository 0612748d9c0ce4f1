"""Direct logit attribution by source position, on every family: parts sum to the logit; kinds follow from the parts."""

from __future__ import annotations

from dataclasses import replace

import families
import numpy as np
import pytest
import torch
from torch import Tensor

from knowledge_circuits.analysis.head_kinds import (
    HeadKind,
    VocabularySums,
    direct_logit_attribution,
    head_kinds,
    original_ratio,
    split_by_source,
    without_vocabulary_mean,
)
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import Trace, all_logits, embed, forward
from knowledge_circuits.engine.weights import decoder_from_model

IDS = torch.tensor([[0, 5, 9, 33, 7, 60, 2], [0, 71, 14, 8, 7, 60, 2], [0, 3, 3, 45, 11, 60, 2]])
TARGETS = torch.tensor([17, 80, 4])
SUBJECT = torch.tensor([[0, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]).bool()


def double(family: str) -> Decoder:
    return decoder_from_model(families.random_model(families.FAMILIES[family](), dtype=torch.float64))


def run(decoder: Decoder, queries: int | None = None) -> Trace:
    with torch.no_grad():
        return forward(decoder, embed(decoder, IDS), queries=queries)


def logits_before_cap(decoder: Decoder) -> Tensor:
    """The last position's logits as the unembedding gives them: parts add up to those, not to soft-capped ones."""
    return all_logits(replace(decoder, logit_cap=None), IDS)[:, -1]


def sum_of_parts(decoder: Decoder, trace: Trace) -> Tensor:
    """The heads' parts of the targets' logits, and what embeddings, MLPs and biases add to them."""
    others = trace.embedded[:, -1] + (0 if decoder.positions is None else decoder.positions[IDS.shape[1] - 1])
    for block, layer in zip(decoder.blocks, trace.layers, strict=True):
        others = others + layer.mlp_output[:, -1] + block.attention.b_o
    direction = decoder.unembedding[:, TARGETS].T * trace.final_normalized.inverse_scale[:, -1]
    heads = direct_logit_attribution(decoder, trace, TARGETS)
    return heads.sum((1, 2, 3)) + (direction * others).sum(-1) + decoder.unembedding_bias[TARGETS]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_without_the_vocabulary_mean_parts_sum_to_the_logit_minus_the_mean_logit(family: str) -> None:
    decoder = double(family)
    logits = logits_before_cap(decoder)
    parts = sum_of_parts(without_vocabulary_mean(decoder), run(decoder))
    expected = logits[range(3), TARGETS] - logits.mean(-1)
    torch.testing.assert_close(parts, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_parts_of_a_logit_sum_to_it(family: str) -> None:
    decoder = double(family)
    expected = logits_before_cap(decoder).gather(1, TARGETS[:, None])[:, 0]
    torch.testing.assert_close(sum_of_parts(decoder, run(decoder)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi"])
def test_one_source_position_is_what_is_lost_when_the_head_does_not_read_it(family: str) -> None:
    """Against Hugging Face's weights by hand: remove A[last, s] v[s] from one head's z in the last layer's input."""
    decoder = double(family)
    trace = run(decoder)
    heads = direct_logit_attribution(decoder, trace, TARGETS)
    layer, head, source = decoder.n_layers - 1, 2, 3
    block, kept = decoder.blocks[layer], trace.layers[layer]
    value = kept.heads.v[:, head // (decoder.n_heads // decoder.n_kv_heads), source]
    rows = slice(head * decoder.d_head, (head + 1) * decoder.d_head)
    written = kept.pattern[:, head, -1, source, None] * value @ block.attention.w_o[rows]
    scale = trace.final_normalized.inverse_scale[:, -1]
    centred = written - written.mean(-1, keepdim=True) if decoder.centred else written
    expected = ((centred * scale) @ decoder.unembedding).gather(1, TARGETS[:, None])[:, 0]
    torch.testing.assert_close(heads[:, layer, head, source], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("queries", [1, None])
def test_parts_do_not_need_the_last_layers_other_positions(queries: int | None) -> None:
    decoder = double("phi")
    parts = sum_of_parts(decoder, run(decoder, queries))
    torch.testing.assert_close(parts, all_logits(decoder, IDS)[range(3), -1, TARGETS], rtol=0, atol=1e-10)


def test_the_start_token_is_in_neither_part() -> None:
    decoder = double("llama")
    heads = direct_logit_attribution(decoder, run(decoder), TARGETS)
    split = split_by_source(heads, SUBJECT)
    torch.testing.assert_close(split.subject + split.relation, heads[..., 1:].sum(-1))
    torch.testing.assert_close(split.subject[1], heads[1, :, :, 1:4].sum(-1))
    torch.testing.assert_close(split.relation[2], heads[2, :, :, 2:].sum(-1))


def test_kinds_follow_from_the_ratio() -> None:
    subject = [11.0, -11.0, 1.0, 1.0, -0.05, 0.0, 10.0, 2.0, 0.0, np.nan]
    relation = [1.0, 1.0, -1.0, 11.0, 1.0, 3.0, 1.0, 0.0, 0.0, 1.0]
    mover, relational, mixture = HeadKind.MOVER, HeadKind.RELATION, HeadKind.MIXTURE
    expected = [mover, mover, mixture, relational, relational, relational, mixture, mover]
    expected += [HeadKind.NONE, HeadKind.NONE]
    assert head_kinds(subject, relation).tolist() == expected


def original_by_hand(model: torch.nn.Module, trace: Trace, decoder: Decoder) -> tuple[Tensor, Tensor]:
    """The original's ratios as its paper code states them: loops, and whole vocabularies of logits."""
    head = model.get_output_embeddings()
    weight, bias = head.weight.T, torch.zeros(1) if head.bias is None else head.bias
    ratios = torch.zeros(2, len(IDS), decoder.n_layers, decoder.n_heads, dtype=torch.float64)
    for item in range(len(IDS)):
        places = {True: SUBJECT[item].nonzero()[:, 0].tolist()}
        places[False] = [s for s in range(1, IDS.shape[1]) if s not in places[True]]
        for layer, block in enumerate(decoder.blocks):
            for h in range(decoder.n_heads):
                rows = slice(h * decoder.d_head, (h + 1) * decoder.d_head)
                outputs = trace.layers[layer].z[item, :, rows] @ block.attention.w_o[rows]  # [p, d]
                whole = (outputs.sum(0) @ weight + bias).sum()
                for row, part in enumerate((True, False)):
                    read = trace.layers[layer].pattern[item, h, -1, places[part]] @ outputs[places[part]]
                    ratios[row, item, layer, h] = (read @ weight + bias).sum() / whole
    return ratios[0], ratios[1]


@pytest.mark.parametrize("family", ["gpt2", "phi"])
def test_the_originals_ratio_is_its_formula(family: str) -> None:
    config = families.FAMILIES[family]()
    model = families.random_model(config, dtype=torch.float64)
    decoder = decoder_from_model(families.random_model(config, dtype=torch.float64))
    trace = run(decoder)
    with torch.no_grad():
        found = original_ratio(decoder, trace, SUBJECT, VocabularySums.of(model))
        subject, relation = original_by_hand(model, trace, decoder)
    torch.testing.assert_close(found.subject, subject, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.relation, relation, rtol=1e-7, atol=1e-9)


def test_the_originals_ratio_needs_all_positions() -> None:
    decoder = double("gpt2")
    sums = VocabularySums(torch.ones(decoder.d_model, dtype=torch.float64), 0.0)
    with pytest.raises(ValueError, match="queries=None"):
        original_ratio(decoder, run(decoder, queries=1), SUBJECT, sums)


def test_the_two_measures_can_disagree() -> None:
    """They are different questions, not two roundings of one."""
    model = families.random_model(families.FAMILIES["gpt2"](), dtype=torch.float64)
    sums = VocabularySums.of(model)
    decoder = decoder_from_model(model)
    trace = run(decoder)
    exact = split_by_source(direct_logit_attribution(decoder, trace, TARGETS), SUBJECT)
    original = original_ratio(decoder, trace, SUBJECT, sums)
    ratios = [np.asarray(parts.subject.mean(0) / parts.relation.mean(0)).ravel() for parts in (exact, original)]
    assert abs(np.corrcoef(ratios)[0, 1]) < 0.9
