"""What a Hugging Face configuration says of an architecture: whether the engine computes it, and how."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from knowledge_circuits.engine.decoder import Activation
from knowledge_circuits.files import InputError
from knowledge_circuits.models.loading import context_length

_ACTIVATIONS = {
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "relu": Activation.RELU,
}
_POST_NORM = ("gemma2", "gemma3", "olmo2")
_ALIBI = ("bloom", "mpt")  # whatever their configuration says
_ROPE_TYPES = ("default", "linear", "llama3")


def refuse_unsupported(config: Any, name: str) -> None:
    """Raise InputError with the reason if the engine does not compute the architecture exactly."""
    text = getattr(config, "text_config", config)

    def has(*keys: str) -> bool:
        return any(getattr(text, key, None) for key in keys)

    kind = getattr(config, "model_type", "unknown")
    rope = next(
        (one["rope_type"] for one in _rope_parameters(text) if one.get("rope_type", "default") not in _ROPE_TYPES),
        "default",
    )
    reasons = {
        "it is an encoder-decoder": bool(getattr(config, "is_encoder_decoder", False)),
        "its configuration names no attention heads": getattr(text, "num_attention_heads", None) is None,
        "it is a mixture of experts": has("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
        "it normalizes queries and keys with a layer norm": has("qk_layernorm"),
        "it has biases before a post-norm": kind.startswith(_POST_NORM) and has("attention_bias"),
        "it reads images too": getattr(config, "vision_config", None) is not None,
        "TransformerLens names its norms otherwise (OLMo 3)": kind.startswith("olmo3"),
        "TransformerLens splits its grouped queries otherwise (Falcon 40B)": has("new_decoder_architecture"),
        "its attention looks ahead": has("use_bidirectional_attention"),
        f"its rotary positions are of type {rope!r}": rope not in _ROPE_TYPES,
        "its positions are linear biases of the attention (ALiBi)": has("alibi") or kind in _ALIBI,
        "its queries, keys and values are clipped": has("clip_qkv"),
        "its norms follow the residual stream": getattr(text, "do_layer_norm_before", True) is False,
        "its embedding has another width than its residual stream": _embedding_width(text) is not None,
        "it scales attention by layer index": has("scale_attn_by_inverse_layer_idx"),
        "it does not scale attention": getattr(text, "scale_attn_weights", True) is False,
        "it scales its residual stream": has("residual_multiplier", "embedding_multiplier", "logits_scaling"),
        f"its activation {_activation_name(text)!r} is unknown": _activation_name(text) not in _ACTIVATIONS,
        "its configuration names no context length (max_position_embeddings)": context_length(config) is None,
    }
    for reason, applies in reasons.items():
        if applies:
            raise InputError(f"{name}: the architecture {kind!r} is not supported: {reason}")


def is_parallel(config: Any) -> bool:
    """Return whether attention and MLP run side by side in an architecture that `refuse_unsupported` accepts."""
    named = getattr(config, "use_parallel_residual", getattr(config, "parallel_attn", None))
    return config.model_type in ("phi", "gptj") if named is None else bool(named)


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Return the parameters of rotary positions: one for all layers, one for each layer, or none."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if kinds and all(kind in rope for kind in kinds):
        return [rope[kind] for kind in config.layer_types]
    return [rope] if rope else []


def _embedding_width(config: Any) -> int | None:
    """Return OPT's width of token embeddings where it is not the residual stream's."""
    width = getattr(config, "word_embed_proj_dim", None)
    return None if width in (None, config.hidden_size) else int(width)


def _activation_name(config: Any) -> str:
    names = (getattr(config, key, None) for key in ("hidden_act", "activation_function", "hidden_activation"))
    return next((name for name in names if name), "gelu")


def activation(config: Any) -> Activation:
    """Return the MLP's activation of a configuration that `refuse_unsupported` accepts."""
    return _ACTIVATIONS[_activation_name(config)]


def rotary_frequencies(config: Any, d_head: int, device: torch.device) -> tuple[Tensor, float]:
    """Return inverse frequencies [rotary_dim / 2], [l, rotary_dim / 2] where layers differ, and cos' and sin's scale.

    They are in float64, and read from `config.rope_parameters`: the bridge's own `rotary_base` and `rotary_dim` can be
    wrong.
    """
    layers, scales = [], set()
    for index, rope in enumerate(_rope_parameters(config) or [{}]):
        kind = rope.get("rope_type", "default")
        if kind not in ("default", "linear"):
            layer_type = getattr(config, "layer_types", None) if rope is not config.rope_parameters else None
            options = {"layer_type": layer_type[index]} if layer_type else {}
            frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, device, **options)
            layers.append(frequencies.double())
            scales.add(float(scale))
            continue
        fraction = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
        rotary_dim = getattr(config, "rotary_dim", None) or int(d_head * fraction)
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / rotary_dim
        layers.append(rope.get("rope_theta", 10000.0) ** -exponents / rope.get("factor", 1.0))
        scales.add(1.0)
    (scale,) = scales
    return (layers[0] if len(layers) == 1 else torch.stack(layers)), scale


def max_positions(config: Any) -> int:
    """Return the longest prompt with full attention: the context, or a shorter sliding window.

    Args:
        config: one that `refuse_unsupported` accepts.
    """
    length = context_length(config)
    assert length is not None
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if (
        not window
        or getattr(config, "use_sliding_window", True) is False
        or (kinds and "sliding_attention" not in kinds)
    ):
        return length
    return min(length, int(window))
