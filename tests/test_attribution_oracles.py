"""For every decoder family, the engine's logits and scores equal those of oracles that share no code with it.

Three oracles: the graph written out node by node with autograd (tests/oracles.py) for all families; the hook-based way
on `TransformerBridge` with an input per head where its hooks suffice; and the latter on a grouped-query model whose
key and value weights are repeated per query head.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import families
import oracles
import pytest
import torch
from families import FAMILIES, Pair
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import hook_based
from knowledge_circuits.engine.attribution import Method, attribute
from knowledge_circuits.engine.backward import BackwardRules
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import all_logits
from knowledge_circuits.engine.options import GradientRule, Metric
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import load_decoder

PAIRS = families.random_pairs((7, 10, 7, 9), seed=1)
METRICS = {
    Metric.LOGIT_DIFFERENCE: oracles.logit_difference,
    Metric.PROBABILITY_DIFFERENCE: oracles.probability_difference,
    Metric.KL_DIVERGENCE: oracles.kl_divergence,
    Metric.JS_DIVERGENCE: oracles.js_divergence,
}
#: The bridge has a hook at every input of these; its grouped queries have one per key/value head.
HOOKED = ["gpt2", "gpt-neox", "gpt-neox-sequential", "llama-biases-tied"]
GROUPED = ["llama", "mistral", "qwen2", "qwen3"]


def prompt_pairs(pairs: list[Pair]) -> PromptPairs:
    return PromptPairs(
        [pair.clean_ids for pair in pairs],
        [pair.corrupted_ids for pair in pairs],
        [pair.label_ids for pair in pairs],
    )


def assert_scores_agree(scores: Tensor, expected: Tensor, tolerance: float) -> None:
    """The largest difference is small beside the largest score."""
    assert expected.abs().max() > 1e-5
    assert (scores.double() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: families.save_family(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, oracles.Model]:
    return {family: oracles.from_hugging_face(hugging_face(folder)) for family, folder in folders.items()}


def hugging_face(folder: Path, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def decoders(folders: dict[str, Path]) -> dict[str, Decoder]:
    return {family: load_decoder(str(folder), dtype=torch.float64) for family, folder in folders.items()}


def hook_based_scores(model: PreTrainedModel, folder: Path, pairs: list[Pair], steps: int) -> Tensor:
    """EAP-IG scores on the bridge, one prompt pair at a time."""
    from transformers import AutoTokenizer

    model.config.save_pretrained(folder)
    bridge = hook_based.boot(model, AutoTokenizer.from_pretrained(folder), str(folder))
    scores = [
        hook_based.attribute(
            bridge,
            torch.tensor([pair.clean_ids]),
            torch.tensor([pair.corrupted_ids]),
            torch.tensor([pair.label_ids]),
            steps,
        )
        for pair in pairs
    ]
    return torch.stack(scores).mean(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_hugging_face_models(family: str, folders: dict[str, Path], models) -> None:
    model = hugging_face(folders[family], torch.float32)
    decoder = load_decoder(str(folders[family]), dtype=torch.float32)
    for pair in PAIRS:
        ids = torch.tensor([pair.clean_ids])
        with torch.no_grad():
            expected = model(ids).logits
        torch.testing.assert_close(all_logits(decoder, ids), expected, rtol=0, atol=1e-4)
        oracle_logits = oracles.run(models[family], models[family].embed(pair.clean_ids)).logits
        torch.testing.assert_close(oracle_logits.float(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", Method)
def test_scores_are_the_oracles_in_double_precision(family: str, method: Method, models, decoders) -> None:
    pairs = PAIRS[:1] if method is Method.EXACT else PAIRS[:3]
    scores = attribute(decoders[family], prompt_pairs(pairs), method, ig_steps=3).scores
    assert_scores_agree(scores, oracles.attribute(models[family], pairs, method, steps=3), 1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_oracles_in_single_precision(family: str, folders: dict[str, Path], models) -> None:
    decoder = load_decoder(str(folders[family]), dtype=torch.float32)
    scores = attribute(decoder, prompt_pairs(PAIRS), ig_steps=3).scores
    assert_scores_agree(scores, oracles.attribute(models[family], PAIRS, "EAP-IG", steps=3), 1e-4)


RULES = {
    "gim": "gim",
    "relp": GradientRule.RELP,
    "relp-ah": dataclasses.replace(BackwardRules.of("relp"), constant_patterns=True),
}


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "phi", "gpt-neox", "gemma2", "gemma3", "olmo2"])
@pytest.mark.parametrize("rule", RULES)
def test_gradient_rules_are_those_of_autograd_functions(family: str, rule: str, models, decoders) -> None:
    model = oracles.under_rule(models[family], rule)
    for method in (Method.EAP, Method.EAP_IG, Method.EAP_IG_ACTIVATIONS):
        scores = attribute(decoders[family], prompt_pairs(PAIRS[:2]), method, ig_steps=3, gradient=RULES[rule]).scores
        assert_scores_agree(scores, oracles.attribute(model, PAIRS[:2], method, steps=3), 1e-8)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi"])
@pytest.mark.parametrize("method", [Method.EAP_IG, Method.EAP_IG_ACTIVATIONS])
def test_the_path_may_start_at_the_corrupted_prompt(family: str, method: Method, models, decoders) -> None:
    scores = attribute(decoders[family], prompt_pairs(PAIRS[:2]), method, ig_steps=3, first_step=0).scores
    assert_scores_agree(scores, oracles.attribute(models[family], PAIRS[:2], method, steps=3, first_step=0), 1e-8)


@pytest.mark.parametrize("family", ["llama-biases-tied", "qwen3", "gpt-neox", "gemma2"])
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_attributed(family: str, metric: Metric, models, decoders) -> None:
    # One step at the clean prompt would say nothing of a divergence: its gradient there is 0.
    for method, pairs in ((Method.EAP_IG, PAIRS[:2]), (Method.EXACT, PAIRS[:1])):
        scores = attribute(decoders[family], prompt_pairs(pairs), method, ig_steps=3, metric=metric).scores
        expected = oracles.attribute(models[family], pairs, method, steps=3, metric=METRICS[metric])
        assert_scores_agree(scores, expected, 1e-8)


@pytest.mark.parametrize("family", HOOKED)
def test_scores_are_those_of_the_hook_based_way(family: str, folders: dict[str, Path], decoders, tmp_path) -> None:
    families.word_tokenizer().save_pretrained(tmp_path)
    expected = hook_based_scores(hugging_face(folders[family]), tmp_path, PAIRS, steps=3)
    # Hugging Face computes rotary positions, RMS norms and softmax in float32 even for a float64 model.
    assert_scores_agree(attribute(decoders[family], prompt_pairs(PAIRS), ig_steps=3).scores, expected, 1e-5)


@pytest.mark.parametrize("family", GROUPED)
def test_grouped_queries_score_as_with_keys_and_values_repeated(
    family: str, folders: dict[str, Path], decoders, tmp_path
) -> None:
    families.word_tokenizer().save_pretrained(tmp_path)
    grouped = hugging_face(folders[family])
    twin = hook_based.ungrouped(grouped)
    ids = torch.tensor([PAIRS[0].clean_ids])
    with torch.no_grad():
        torch.testing.assert_close(twin(ids).logits, grouped(ids).logits)
    expected = hook_based_scores(twin, tmp_path, PAIRS, steps=3)
    assert_scores_agree(attribute(decoders[family], prompt_pairs(PAIRS), ig_steps=3).scores, expected, 1e-5)
