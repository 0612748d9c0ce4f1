"""What the engine loads: an architecture is computed exactly or refused with the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import families
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CohereConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertDecoderConfig,
    OpenAIGPTConfig,
    Qwen3_5TextConfig,
)

from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.forward import all_logits, embed, forward
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import decoder_from_model, load_decoder
from knowledge_circuits.files import InputError

SIZES = {
    "vocab_size": families.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": families.POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("family", families.REFUSED)
def test_an_unsupported_architecture_is_refused_with_the_reason_before_its_weights_are_read(
    tmp_path: Path, family: str
) -> None:
    config, reason = families.REFUSED[family]
    config().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=f"{tmp_path}: the architecture .* is not supported: {re.escape(reason)}$"):
        load_decoder(str(tmp_path))


def test_the_documents_table_of_families_is_this_list() -> None:
    assert families.table() in Path(__file__).parents[1].joinpath("docs", "engine.md").read_text()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_residual_streams_difference_is_the_sum_of_the_sources_differences(family: str) -> None:
    # Under a post-norm each head's output is scaled by its own run's deviation, not by one of the two.
    decoder = decoder_from_model(families.random_model(families.FAMILIES[family](), dtype=torch.float64))
    ids = torch.randint(families.VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    trace = forward(decoder, embed(decoder, ids), queries=None)
    outputs = [trace.embedded]
    for block, layer in zip(decoder.blocks, trace.layers, strict=True):
        w_o = block.attention.w_o.view(decoder.n_heads, decoder.d_head, -1)
        outputs += torch.einsum("bphe,hed->hbpd", layer.z.unflatten(-1, w_o.shape[:2]), w_o)
        outputs.append(layer.mlp_output)
    difference = trace.final[0] - trace.final[1]
    torch.testing.assert_close(sum(output[0] - output[1] for output in outputs), difference, rtol=0, atol=1e-9)


def test_an_architecture_that_only_its_logits_give_away_is_refused_too() -> None:
    # Cohere's rotary positions pair neighbours and its logits are scaled; its configuration names neither as such.
    model = families.random_model(CohereConfig(**SIZES, use_qk_norm=False))
    with pytest.raises(InputError, match=r"logits differ .* so the architecture 'cohere' is not supported"):
        decoder_from_model(model)


FOUR_LAYERS = {**SIZES, "num_hidden_layers": 4}
#: Architectures that only reading them gives away, and what reading raises.
UNREADABLE = {
    "openai-gpt": (OpenAIGPTConfig(vocab_size=90, n_embd=32, n_layer=2, n_head=4), "AttributeError: .*'ln_final'"),
    "qwen3_5_text": (Qwen3_5TextConfig(**FOUR_LAYERS, num_key_value_heads=2, head_dim=8), "AttributeError: .*'attn'"),
    "modernbert-decoder": (ModernBertDecoderConfig(**FOUR_LAYERS), "RuntimeError: mat1 and mat2 shapes"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_architecture_that_cannot_be_read_is_refused_with_the_models_name_and_the_cause(kind: str) -> None:
    config, cause = UNREADABLE[kind]
    said = f"models/x: the architecture '{kind}' is not supported: reading it fails .{cause}"
    with pytest.raises(InputError, match=said) as error:
        decoder_from_model(families.random_model(config), "models/x")
    assert error.value.__cause__ is not None


def test_a_prompt_longer_than_the_sliding_window_is_refused() -> None:
    decoder = decoder_from_model(families.random_model(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4)))
    labels = [(5, 6)]
    assert attribute(decoder, PromptPairs([[0, 1, 2, 3]], [[0, 4, 2, 3]], labels)).n_edges == decoder_edges(2, 4)
    with pytest.raises(InputError, match="sliding window"):
        attribute(decoder, PromptPairs([[0, 1, 2, 3, 7]], [[0, 4, 2, 3, 7]], labels))


def decoder_edges(layers: int, heads: int) -> int:
    """Edges of a sequential decoder, counted one layer after the other."""
    total, sources = 0, 1
    for _ in range(layers):
        total += 3 * heads * sources + sources + heads
        sources += heads + 1
    return total + sources


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotary_positions_give_the_hugging_face_models_logits(rope: dict[str, float]) -> None:
    config = LlamaConfig(**SIZES, rope_parameters=rope)
    ids = torch.randint(families.VOCABULARY, (2, families.POSITIONS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = families.random_model(config)(ids).logits
        plain = families.random_model(LlamaConfig(**SIZES))(ids).logits
    found = all_logits(decoder_from_model(families.random_model(config)), ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (plain - expected).abs().max() > 1e-2  # the scaling is not nothing


def test_weights_that_are_not_numbers_are_named() -> None:
    model = families.random_model(families.FAMILIES["gpt2"]())
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"layer 1's mlp w_in holds NaN"):
        decoder_from_model(model)


def test_a_folder_without_weights_and_one_that_is_no_checkpoint_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_decoder(str(tmp_path))
    families.FAMILIES["gpt2"]().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="without weights"):
        load_decoder(str(tmp_path))
    with pytest.raises(InputError, match="no such checkpoint folder"):
        load_decoder(str(tmp_path / "elsewhere"))


def test_a_kernel_of_the_hub_is_refused(tmp_path: Path) -> None:
    families.save_family(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "attn_implementation": "someone/kernel"}))
    with pytest.raises(InputError, match=r"'attn_implementation' is 'someone/kernel', code of the hub"):
        load_decoder(str(tmp_path))


@pytest.mark.parametrize(
    ("weight", "reason"),
    [("transformer.h.0.mlp.c_fc.weight", "mlp w_in holds NaN or infinite"), ("transformer.ln_f.weight", "not finite")],
)
def test_weights_near_the_largest_number_are_named_and_not_taken_for_another_architecture(tmp_path, weight, reason):
    folder = tiny.save_tiny_gpt2(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights[weight] = torch.full_like(weights[weight], 3e38)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=reason):
        load_decoder(str(folder))
