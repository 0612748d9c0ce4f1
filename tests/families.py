"""Tiny random checkpoints of every supported decoder family, and random prompt pairs for them.

Weights are drawn so that every term matters: projections keep the residual stream's scale, norm weights stray from one
and biases from zero, head widths differ from `d_model / heads` where the family allows it. All is a function of seeds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
    T5Config,
)

VOCABULARY = 90
POSITIONS = 32
_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
_ROTARY = {**_COMMON, "hidden_size": 32, "max_position_embeddings": POSITIONS}


_TWO_LAYERS = {**_ROTARY, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4}
_PADDED = {**_TWO_LAYERS, "pad_token_id": 0}
_HALF_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_NEOX = {**_TWO_LAYERS, "intermediate_size": 64, "rope_parameters": _HALF_ROTARY}
#: Falcon 7B's form: one key/value head, one norm for attention and MLP.
_FALCON = {
    **{**_ROTARY, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 56},
    **{"multi_query": True, "parallel_attn": True, "alibi": False},
}
_GEMMA3_ROTARY = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
_GEMMA3_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
_OPT_SIZES = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 56, "max_position_embeddings": POSITIONS}


def _of(kind: type[PreTrainedConfig], sizes: dict[str, Any], **more: Any) -> Callable[[], PreTrainedConfig]:
    """The maker of a configuration."""
    return lambda: kind(**{**sizes, **more})


#: Every family that the engine claims to support, by a name for test ids. Gemma 2's caps are so low that scores and
#: logits reach them.
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": _of(GPT2Config, _COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=POSITIONS),
    "llama": _of(
        LlamaConfig,
        _TWO_LAYERS,
        num_hidden_layers=3,
        num_key_value_heads=2,
        head_dim=10,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    ),
    "llama-biases-tied": _of(
        LlamaConfig, _TWO_LAYERS, num_key_value_heads=4, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "mistral": _of(MistralConfig, _TWO_LAYERS, num_key_value_heads=1, sliding_window=None),
    "mistral-long-window": _of(MistralConfig, _TWO_LAYERS, num_key_value_heads=2, sliding_window=POSITIONS),
    "qwen2": _of(Qwen2Config, _TWO_LAYERS, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": _of(Qwen3Config, _TWO_LAYERS, num_key_value_heads=2, head_dim=12),
    "phi": _of(PhiConfig, _NEOX, num_hidden_layers=3),
    "gpt-neox": _of(GPTNeoXConfig, _NEOX, use_parallel_residual=True),
    "gpt-neox-sequential": _of(GPTNeoXConfig, _NEOX, use_parallel_residual=False),
    "gemma": _of(GemmaConfig, _PADDED, num_key_value_heads=2, head_dim=10),
    "gemma2": _of(
        Gemma2Config,
        _PADDED,
        num_key_value_heads=2,
        head_dim=10,
        query_pre_attn_scalar=7,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        sliding_window=POSITIONS,
    ),
    "gemma3": _of(
        Gemma3TextConfig,
        _PADDED,
        num_hidden_layers=3,
        num_key_value_heads=2,
        head_dim=10,
        query_pre_attn_scalar=7,
        sliding_window=POSITIONS,
        layer_types=_GEMMA3_LAYERS,
        rope_parameters=_GEMMA3_ROTARY,
    ),
    "olmo": _of(OlmoConfig, _PADDED, num_key_value_heads=2),
    "olmo2": _of(Olmo2Config, _PADDED, num_key_value_heads=2),
    "phi3": _of(Phi3Config, _PADDED, num_key_value_heads=2),
    "gptj": _of(GPTJConfig, _COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS, rotary_dim=4),
    "opt": _of(OPTConfig, {**_COMMON, **_OPT_SIZES}, num_hidden_layers=2, num_attention_heads=4, pad_token_id=1),
    "falcon": _of(FalconConfig, _FALCON),
    "stablelm": _of(StableLmConfig, _PADDED, num_key_value_heads=2, use_qkv_bias=True, rope_parameters=_HALF_ROTARY),
}

_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}

#: Architectures that the engine refuses, by what they are, with the reason that it states.
REFUSED: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "encoder-decoder (T5)": (T5Config, "it is an encoder-decoder"),
    "mixture of experts (Mixtral)": (MixtralConfig, "it is a mixture of experts"),
    "Granite": (lambda: GraniteConfig(residual_multiplier=0.5), "it scales its residual stream"),
    "Phi with query/key layer norm": (
        lambda: PhiConfig(qk_layernorm=True),
        "it normalizes queries and keys with a layer norm",
    ),
    "Gemma 2, Gemma 3 or OLMo 2 with attention biases": (
        lambda: Gemma2Config(attention_bias=True),
        "it has biases before a post-norm",
    ),
    "Gemma 3 with images": (Gemma3Config, "it reads images too"),
    "OLMo 3": (Olmo3Config, "TransformerLens names its norms otherwise (OLMo 3)"),
    "OLMo with clipped projections": (lambda: OlmoConfig(clip_qkv=8.0), "its queries, keys and values are clipped"),
    "OPT 350M": (
        lambda: OPTConfig(word_embed_proj_dim=8, hidden_size=32),
        "its embedding has another width than its residual stream",
    ),
    "OPT with norms after attention and MLP": (
        lambda: OPTConfig(do_layer_norm_before=False),
        "its norms follow the residual stream",
    ),
    "MPT and BLOOM": (MptConfig, "its positions are linear biases of the attention (ALiBi)"),
    "Mamba and RWKV": (MambaConfig, "its configuration names no attention heads"),
    "Falcon with ALiBi": (
        _of(FalconConfig, _FALCON, alibi=True),
        "its positions are linear biases of the attention (ALiBi)",
    ),
    "Falcon 40B and 180B": (
        _of(FalconConfig, _FALCON, new_decoder_architecture=True, num_kv_heads=2),
        "TransformerLens splits its grouped queries otherwise (Falcon 40B)",
    ),
    "GPT-2 that scales attention by layer": (
        lambda: GPT2Config(scale_attn_by_inverse_layer_idx=True),
        "it scales attention by layer index",
    ),
    "GPT-2 that does not scale attention": (
        lambda: GPT2Config(scale_attn_weights=False),
        "it does not scale attention",
    ),
    "other activations": (
        lambda: GPT2Config(activation_function="quick_gelu"),
        "its activation 'quick_gelu' is unknown",
    ),
    "YaRN and other rotary scaling than linear and llama3": (
        lambda: LlamaConfig(rope_parameters=_YARN),
        "its rotary positions are of type 'yarn'",
    ),
}


def table() -> str:
    """The table of docs/engine.md: every family and what becomes of it."""
    rows = [f"| {family} | exact |" for family in FAMILIES]
    rows += [f"| {what} | refused: {reason} |" for what, (_, reason) in REFUSED.items()]
    return "\n".join(["| family | exact or refused |", "| --- | --- |", *rows])


def random_model(config: PreTrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of the configuration's architecture with random weights of healthy scale, in evaluation mode.

    Weights are drawn in float32 whatever the dtype, so that a float64 model has the float32 checkpoint's values.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    transposed = config.model_type == "gpt2"  # its projections are stored [in, out]
    offset = config.model_type.startswith("gemma")  # its norms scale by 1 + weight
    with torch.no_grad():
        for name, weight in sorted(dict(model.named_parameters()).items()):
            draw = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(0.1 * draw if name.endswith("bias") or offset else 1 + 0.2 * draw)
            elif any(part in name for part in ("embed_tokens", "embed_in", "wte", "wpe")):
                weight.copy_(0.5 * draw)
            else:
                weight.copy_(draw / math.sqrt(weight.shape[0 if transposed else 1]))
    return model.to(dtype).eval()


def word_tokenizer(vocabulary_size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is the word `t<i>`; token 0 is both BOS and EOS."""
    words = {("<s>" if index == 0 else f"t{index}"): index for index in range(vocabulary_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="<s>")


def save_checkpoint(folder: Path, config: PreTrainedConfig, seed: int = 0) -> Path:
    """Write a random checkpoint (float32 weights, configuration and tokenizer) as a folder, and return the folder."""
    random_model(config, seed).save_pretrained(folder)
    word_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder


def save_family(folder: Path, family: str, seed: int = 0) -> Path:
    """`save_checkpoint` for one of `FAMILIES`."""
    return save_checkpoint(folder, FAMILIES[family](), seed)


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupted prompt of equal length, and the ids of the clean and the corrupted label."""

    clean_ids: list[int]
    corrupted_ids: list[int]
    label_ids: tuple[int, int]

    @classmethod
    def of(cls, item: dict[str, Any]) -> Pair:
        """A pair from an object with the three keys."""
        return cls(list(item["clean_ids"]), list(item["corrupted_ids"]), tuple(item["label_ids"]))


def random_pairs(
    lengths: tuple[int, ...] = (7, 10, 7, 9, 10), seed: int = 0, vocabulary: int = VOCABULARY
) -> list[Pair]:
    """Random pairs: BOS, a subject of three tokens that differs, then a shared relation up to the given length."""
    generator = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(1, vocabulary) for _ in range(count)]

    pairs = []
    for length in lengths:
        relation = tokens(length - 4)
        clean, corrupted = generator.sample(range(1, vocabulary), 2)
        pairs.append(Pair([0, *tokens(3), *relation], [0, *tokens(3), *relation], (clean, corrupted)))
    return pairs
