"""Read a Hugging Face checkpoint into a `Decoder`.

`load_decoder` reads the weights through TransformerLens 4's `TransformerBridge`, which names them alike for every
architecture, and folds each norm's scale and shift into the projections that read it and value biases into the output
bias (see `decoder`). The result's logits are compared with the Hugging Face model's own on a probe batch. A difference
beyond the tolerance is an error.
"""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from knowledge_circuits.engine.decoder import MLP, Activation, Attention, Block, Decoder
from knowledge_circuits.engine.forward import all_logits
from knowledge_circuits.files import InputError, first_line
from knowledge_circuits.models.loading import context_length, merge_adapter, require_weights

_ACTIVATIONS = {
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "relu": Activation.RELU,
}


def load_decoder(
    path: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    revision: str = "main",
    adapter: str | None = None,
) -> Decoder:
    """Load a Hugging Face checkpoint in the form that `attribute` and `evaluate` take.

    Args:
        path: a checkpoint folder or hub name of a decoder-only language model.
        dtype: float32, bfloat16 or float64.
        device: where the weights are placed.
        trust_remote_code: run code from the checkpoint; off by default.
        revision: a hub model's branch, tag or commit.
        adapter: a folder of peft with an adapter of this model (LoRA, for example); it is merged into the weights.

    Raises:
        InputError: no weights, damaged or non-finite weights, an architecture that the engine does not support, or an
            adapter that does not fit the model.
    """
    require_weights(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:  # a damaged folder can make the library raise anything
        raise InputError(f"{path}: its config cannot be read ({first_line(error)})") from error
    refuse_unsupported(config, path)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            revision=revision,
            output_loading_info=True,
        )
    except Exception as error:
        raise InputError(f"{path}: its weights cannot be loaded ({first_line(error)})") from error
    missing = [*info["missing_keys"], *(str(key) for key in info.get("mismatched_keys", ()))]
    if missing:
        raise InputError(f"{path}: the weights lack {missing[0]} ({len(missing)} tensors in all)")
    if adapter is not None:
        model = merge_adapter(model, adapter)
    decoder = decoder_from_model(model.to(device), path)
    del model
    gc.collect()  # the model and its bridge refer to each other; a sweep must not hold two of them
    return decoder


def decoder_from_model(model: Any, name: str = "the model") -> Decoder:
    """Read the weights of a Hugging Face causal language model; its parameters are not changed.

    Args:
        model: a loaded `AutoModelForCausalLM`, in the wanted dtype and on the wanted device. TransformerLens wraps it,
            so do not use it afterwards.
        name: its name in error messages.

    Raises:
        InputError: unsupported architecture, non-finite weights, or logits that differ from the model's own.
    """
    refuse_unsupported(model.config, name)
    model.eval().requires_grad_(False)
    probe = _probe_ids(model)
    with torch.no_grad():
        expected = model(probe).logits
        decoder = _read_weights(model)
    return _checked(decoder, probe, expected, name)


def decoder_from_bridge(bridge: Any, name: str = "the model") -> Decoder:
    """Read the weights of TransformerLens's `TransformerBridge`, which is not changed; else as `decoder_from_model`."""
    model = bridge.original_model
    refuse_unsupported(model.config, name)
    probe = _probe_ids(model)
    with torch.no_grad():
        return _checked(_read_bridge(bridge, model), probe, bridge(probe), name)


def _checked(decoder: Decoder, probe: Tensor, expected: Tensor, name: str) -> Decoder:
    """Return the decoder if its weights are finite and its logits are the model's."""
    for part, tensor in decoder.tensors():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name}: {part} holds NaN or infinite numbers")
    _compare_logits(decoder, probe, expected, name)
    return decoder


def refuse_unsupported(config: Any, name: str) -> None:
    """Raise InputError with the reason if the engine does not compute the architecture exactly."""
    text = getattr(config, "text_config", config)

    def has(*keys: str) -> bool:
        return any(getattr(text, key, None) for key in keys)

    kind = getattr(config, "model_type", "unknown")
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    reasons = {
        "it is an encoder-decoder": bool(getattr(config, "is_encoder_decoder", False)),
        "it soft-caps logits": has("attn_logit_softcapping", "final_logit_softcapping"),
        "it is a mixture of experts": has("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
        "it normalizes after attention and MLP (post-norms)": kind.startswith(("gemma2", "gemma3", "olmo2", "olmo3")),
        "it normalizes queries and keys with a layer norm": has("qk_layernorm"),
        f"its rotary positions are of type {rope!r}": rope not in ("default", "linear", "llama3"),
        "it scales attention by layer index": has("scale_attn_by_inverse_layer_idx"),
        "it does not scale attention": getattr(text, "scale_attn_weights", True) is False,
        "it scales its residual stream": has("residual_multiplier", "embedding_multiplier", "logits_scaling"),
        f"its activation {_activation_name(text)!r} is unknown": _activation_name(text) not in _ACTIVATIONS,
    }
    for reason, applies in reasons.items():
        if applies:
            raise InputError(f"{name}: the architecture {kind!r} is not supported: {reason}")


def _activation_name(config: Any) -> str:
    names = (getattr(config, key, None) for key in ("hidden_act", "activation_function", "hidden_activation"))
    return next((name for name in names if name), "gelu")


def _probe_ids(model: Any) -> Tensor:
    config = getattr(model.config, "text_config", model.config)
    generator = torch.Generator().manual_seed(0)
    length = min(9, _max_positions(config))
    return torch.randint(config.vocab_size, (2, length), generator=generator).to(model.device)


def _boot_bridge(model: Any) -> Any:
    """Wrap the model. The bridge requires a tokenizer that was loaded from a folder, whatever it is."""
    # Imported here because it takes seconds and only this function needs it.
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        stand_in = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=stand_in, bos_token="a", eos_token="a").save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        name = model.config._name_or_path or model.config.model_type
        return TransformerBridge.boot_transformers(
            name, hf_model=model, tokenizer=tokenizer, dtype=model.dtype, device=model.device
        )


def _read_weights(model: Any) -> Decoder:
    """Read every weight through a bridge that is booted for it."""
    try:
        bridge = _boot_bridge(model)
    except Exception as error:
        kind = model.config.model_type
        raise InputError(
            f"the architecture {kind!r} is not supported by TransformerLens ({first_line(error)})"
        ) from error
    return _read_bridge(bridge, model)


def _read_bridge(bridge: Any, model: Any) -> Decoder:
    """Read every weight of a bridged model and fold the norms."""
    config = getattr(model.config, "text_config", model.config)
    cfg = bridge.cfg
    n_heads, n_kv_heads = cfg.n_heads, cfg.n_key_value_heads or cfg.n_heads
    centred = cfg.normalization_type == "LN"
    fold = _Folder(centred)
    blocks = []
    for block in bridge.blocks:
        # Where attention and MLP share one norm (Phi) the bridge has no second one.
        mlp_norm = block.ln2 if hasattr(block, "ln2") else block.ln1
        blocks.append(Block(_read_attention(block.attn, block.ln1, fold), _read_mlp(block.mlp, mlp_norm, fold)))
    frequencies, rotary_scale = (None, 1.0)
    if not hasattr(bridge, "pos_embed"):
        frequencies, rotary_scale = _rotary_frequencies(config, cfg.d_head, model.device)
    unembedding, unembedding_bias = fold(bridge.ln_final, bridge.unembed.W_U, getattr(bridge.unembed, "b_U", None))
    return Decoder(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=cfg.d_head,
        activation=_ACTIVATIONS[_activation_name(config)],
        centred=centred,
        parallel=bool(cfg.parallel_attn_mlp) and bool(getattr(config, "use_parallel_residual", True)),
        norm_eps=float(cfg.eps),
        qk_norm_eps=float(getattr(config, "rms_norm_eps", 0.0)),
        max_positions=_max_positions(config),
        embedding=bridge.embed.W_E.detach().clone(),
        positions=bridge.pos_embed.W_pos.detach().clone() if hasattr(bridge, "pos_embed") else None,
        inverse_frequencies=frequencies,
        rotary_scale=rotary_scale,
        blocks=tuple(blocks),
        unembedding=unembedding,
        unembedding_bias=unembedding_bias,
    )


@dataclass(frozen=True)
class _Folder:
    """Folds a norm into the projection that reads it, in at least float32."""

    centred: bool

    def __call__(self, norm: Any, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """(W', b') of weight [d, n] and bias [n] behind `norm`."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        wide = weight.to(dtype)
        shift = getattr(norm, "bias", None)
        folded_bias = torch.zeros_like(wide[0]) if bias is None else bias.to(dtype)
        if shift is not None:
            folded_bias = folded_bias + shift.to(dtype) @ wide
        folded = norm.weight.to(dtype)[:, None] * wide
        if self.centred:
            folded = folded - folded.mean(0)
        return folded.to(weight.dtype).contiguous(), folded_bias.to(weight.dtype)


def _read_attention(attention: Any, norm: Any, fold: _Folder) -> Attention:
    weights, biases = [], []
    for name in "QKV":
        weight = getattr(attention, f"W_{name}")  # [heads, d, e]
        heads, d_model, d_head = weight.shape
        weights.append(weight.permute(1, 0, 2).reshape(d_model, heads * d_head))
        bias = _optional(attention, f"b_{name}")
        biases.append(weight.new_zeros(heads * d_head) if bias is None else bias.reshape(-1))
    # The value bias goes to the output bias instead.
    w_qkv, b_qkv = fold(norm, torch.cat(weights, 1), torch.cat((*biases[:2], torch.zeros_like(biases[2]))))
    w_o = attention.W_O
    n_heads, d_head, d_model = w_o.shape
    w_o = w_o.reshape(-1, d_model).detach().clone()
    b_o = _optional(attention, "b_O")
    b_o = w_o.new_zeros(d_model) if b_o is None else b_o.detach().clone()
    b_v = biases[-1].view(-1, d_head)
    b_o += b_v.repeat_interleave(n_heads // len(b_v), 0).flatten() @ w_o
    return Attention(
        w_qkv=w_qkv,
        b_qkv=b_qkv,
        w_o=w_o,
        b_o=b_o,
        q_norm=_norm_scale(attention, "q_norm"),
        k_norm=_norm_scale(attention, "k_norm"),
    )


def _norm_scale(attention: Any, name: str) -> Tensor | None:
    norm = getattr(attention, name, None)
    return None if norm is None else norm.weight.detach().clone()


def _read_mlp(mlp: Any, norm: Any, fold: _Folder) -> MLP:
    gate = _optional(mlp, "W_gate")
    weights = [mlp.W_in] if gate is None else [gate, mlp.W_in]
    names = ["b_in"] if gate is None else ["b_gate", "b_in"]
    biases = []
    for weight, name in zip(weights, names, strict=True):
        bias = _optional(mlp, name)
        biases.append(weight.new_zeros(weight.shape[1]) if bias is None else bias)
    w_in, b_in = fold(norm, torch.cat(weights, 1), torch.cat(biases))
    w_out = mlp.W_out.detach().clone().contiguous()
    b_out = _optional(mlp, "b_out")
    return MLP(
        w_in=w_in,
        b_in=b_in,
        w_out=w_out,
        b_out=w_out.new_zeros(w_out.shape[1]) if b_out is None else b_out.detach().clone(),
        gated=gate is not None,
    )


def _optional(component: Any, name: str) -> Tensor | None:
    """Return a weight, or None where the model has none; the bridge raises for some absent weights."""
    try:
        return getattr(component, name)
    except AttributeError:
        return None


def _rotary_frequencies(config: Any, d_head: int, device: torch.device) -> tuple[Tensor, float]:
    """Return inverse frequencies [rotary_dim / 2] in float64 and the scale of cos and sin.

    They are read from `config.rope_parameters`: the bridge's own `rotary_base` and `rotary_dim` can be wrong.
    """
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind != "default":
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, device)
        return frequencies.double(), float(scale)
    fraction = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    rotary_dim = int(d_head * fraction)
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / rotary_dim
    return rope["rope_theta"] ** -exponents, 1.0


def _max_positions(config: Any) -> int:
    """Return the longest prompt with full attention: the context, or a shorter sliding window."""
    length = context_length(config)
    if length is None:
        raise InputError("the configuration names no context length (max_position_embeddings)")
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return length
    return min(length, int(window))


def _compare_logits(decoder: Decoder, ids: Tensor, expected: Tensor, name: str) -> None:
    difference = (all_logits(decoder, ids) - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    if not difference <= _TOLERANCE[decoder.dtype]:
        raise InputError(
            f"{name}: the engine's logits differ from the Hugging Face model's by {difference:.1e} (relative), so this"
            " architecture is not supported"
        )


#: Largest accepted difference of logits, relative to the largest logit. Hugging Face computes rotary cos and sin in
#: float32 even for a float64 model.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
