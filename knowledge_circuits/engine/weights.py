"""Read a Hugging Face checkpoint into a `Decoder`.

`load_decoder` reads the weights through TransformerLens 4's `TransformerBridge`, which names them alike for every
architecture, and folds each norm's scale and shift into the projections that read it and value biases into the output
bias (see `decoder`). The result's logits are compared with the Hugging Face model's own on a probe batch. A difference
beyond the tolerance is an error.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from knowledge_circuits.engine.architecture import activation, max_positions, refuse_unsupported, rotary_frequencies
from knowledge_circuits.engine.decoder import MLP, Attention, Block, Decoder
from knowledge_circuits.engine.forward import all_logits, at_least_float32
from knowledge_circuits.files import InputError, first_line
from knowledge_circuits.models.loading import (
    TOLERANCE,
    find_device,
    merge_adapter,
    read_checkpoint,
    read_config,
    relative_difference,
)


def load_decoder(
    path: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    revision: str = "main",
    adapter: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> Decoder:
    """Load a Hugging Face checkpoint in the form that `attribute` and `evaluate` take.

    Args:
        path: a checkpoint folder or hub name of a decoder-only language model.
        dtype: float32, bfloat16 or float64.
        device: where the weights are placed.
        trust_remote_code: run code from the checkpoint; off by default.
        revision: a hub model's branch, tag or commit.
        adapter: a folder of peft with an adapter of this model (LoRA, for example); it is merged into the weights.
        device_map: in place of `device` for a model larger than one: `auto` spreads the layers over the devices that
            there are (as accelerate does), or the device of each module by its name, such as {"model.layers.0":
            "cuda:1", "": "cuda:0"}. Activations go to a layer's device before it runs; embeddings, sources'
            differences and scores are on the embedding's.

    Raises:
        InputError: a map that names no device for a layer, one that is not there, or the disk; no weights, damaged or
            non-finite weights, an architecture that the engine does not support, a kernel of the hub, or an adapter
            that does not fit the model.
    """
    if device_map is not None:
        device_map = checked_map(device_map)
    config = read_config(path, trust_remote_code, revision)
    with _reading(config, path):
        refuse_unsupported(config, path)
    model = read_checkpoint(path, config, dtype, trust_remote_code, revision)
    if adapter is not None:
        model = merge_adapter(model, adapter)
    if device_map is None:
        decoder = _decoder_of(model.to(device), path, release=True)
    else:
        decoder = _decoder_of(model, path, release=True, devices=_devices(model, device_map))
    del model
    gc.collect()  # the model and its bridges refer to each other; a sweep must not hold two of them
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
    with _reading(model.config, name):
        refuse_unsupported(model.config, name)
    return _decoder_of(model, name, release=False)


def checked_map(device_map: str | Mapping[str, Any]) -> str | dict[str, torch.device]:
    """Return `auto` as it is, or the devices of a map of modules' names to devices, which are names or CUDA's numbers.

    Raises:
        InputError: an unknown word, or a device that this machine does not have.
    """
    if isinstance(device_map, str):
        if device_map != "auto":
            raise InputError(f"device map {device_map!r}: it is auto or the device of each module by its name")
        return device_map
    names = {module: f"cuda:{device}" if isinstance(device, int) else device for module, device in device_map.items()}
    return {module: find_device(str(name), "device map") for module, name in names.items()}


def _devices(model: Any, device_map: str | dict[str, torch.device]) -> list[torch.device]:
    """Return where a map of `checked_map` puts a model: its embeddings, then each layer.

    Raises:
        InputError: a layer without a device, or one on disk.
    """
    if isinstance(device_map, str):
        from accelerate import infer_auto_device_map
        from accelerate.utils import get_balanced_memory

        whole = {"no_split_module_classes": list(model._no_split_modules or ())}
        memory = get_balanced_memory(model, dtype=model.dtype, **whole)
        given: dict[str, Any] = dict(infer_auto_device_map(model, memory, dtype=model.dtype, **whole))
    else:
        given = device_map
    names = {module: name for name, module in model.named_modules()}

    def device_of(module: torch.nn.Module) -> torch.device:
        name = names[module]
        parts = name.split(".")
        prefixes = [".".join(parts[:count]) for count in range(len(parts), -1, -1)]
        device = next((given[prefix] for prefix in prefixes if prefix in given), None)
        if device is None or device == "disk":
            reason = "names no device for" if device is None else "leaves no memory but the disk for"
            raise InputError(f"the device map {reason} {name}; a larger device or a smaller --dtype may help")
        return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)

    _, _, layers = _layers_of(model)
    return [device_of(part) for part in (model.get_input_embeddings(), *layers)]


def _moved(weights: Any, device: torch.device) -> Any:
    """Return a part of a layer, or the whole decoder, with its tensors on a device."""
    tensors = {name: part.to(device) for name, part in vars(weights).items() if isinstance(part, Tensor)}
    return replace(weights, **tensors)


def _decoder_of(model: Any, name: str, release: bool, devices: Sequence[torch.device] | None = None) -> Decoder:
    """Read the weights of a model.

    Args:
        release: let each layer give up its weights as soon as it is read.
        devices: where they go (see `_devices`); None leaves them where they are.
    """
    model.eval().requires_grad_(False)
    with torch.no_grad(), _reading(model.config, name):
        probe = _probe_ids(model)
        expected = model(probe).logits
        decoder = _read_weights(model, release, devices)
        kind = model.config.model_type
        return _checked(decoder, probe.to(decoder.device), expected.to(decoder.device), name, kind)


def decoder_from_bridge(bridge: Any, name: str = "the model") -> Decoder:
    """Read the weights of TransformerLens's `TransformerBridge`, which is not changed; else as `decoder_from_model`."""
    model = bridge.original_model
    with torch.no_grad(), _reading(model.config, name):
        refuse_unsupported(model.config, name)
        probe = _probe_ids(model)
        reader = _Reader.of(bridge, model)
        decoder = reader.decoder(bridge, [reader.block(block) for block in bridge.blocks], release=False)
        return _checked(decoder, probe, bridge(probe), name, model.config.model_type)


@contextmanager
def _reading(config: Any, name: str) -> Iterator[None]:
    """Raise InputError with the model, its architecture and the cause for whatever its reading raises.

    An architecture that neither TransformerLens nor the engine knows can fail anywhere. Errors of memory and files,
    which say nothing of the architecture, stay what they are.
    """
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError, OSError):
        raise
    except Exception as error:
        raise InputError(
            f"{name}: the architecture {config.model_type!r} is not supported: reading it fails"
            f" ({type(error).__name__}: {first_line(error)})"
        ) from error


def _checked(decoder: Decoder, probe: Tensor, expected: Tensor, name: str, kind: str) -> Decoder:
    """Return the decoder if its weights are finite and its logits are the model's."""
    for part, tensor in decoder.tensors():
        if not all(bool(torch.isfinite(limit)) for limit in torch.aminmax(tensor)):  # NaN spreads to both
            raise InputError(f"{name}: {part} holds NaN or infinite numbers")
    if not bool(torch.isfinite(expected).all()):
        raise InputError(f"{name}: its logits are not finite; its weights are damaged or too large for {decoder.dtype}")
    difference = relative_difference(all_logits(decoder, probe), expected)
    if not difference <= TOLERANCE[decoder.dtype]:
        raise InputError(
            f"{name}: the engine's logits differ from the Hugging Face model's by {difference:.1e} (relative), so the"
            f" architecture {kind!r} is not supported"
        )
    return decoder


def _probe_ids(model: Any) -> Tensor:
    config = getattr(model.config, "text_config", model.config)
    generator = torch.Generator().manual_seed(0)
    length = min(9, max_positions(config))
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
        if not model.config.architectures:  # a model that was never saved; the bridge picks its adapter by this name
            model.config.architectures = [type(model).__name__]
        name = model.config._name_or_path or type(model).__name__
        return TransformerBridge.boot_transformers(
            name, hf_model=model, tokenizer=tokenizer, dtype=model.dtype, device=model.device
        )


#: Layers per bridge while a model's weights are released. A bridge copies joint projections of queries, keys and values
#: (a quarter of GPT-2's weights), so one for all layers would hold a quarter of the model twice.
_LAYERS_AT_ONCE = 2


def _read_weights(model: Any, release: bool, devices: Sequence[torch.device] | None) -> Decoder:
    """Read every weight through bridges that hold a part of the layers each; arguments as for `_decoder_of`.

    With `release` there is never a second copy of all weights.
    """
    parent, name, layers = _layers_of(model)
    blocks: list[Block] = []
    decoder = None
    length = _LAYERS_AT_ONCE if release else len(layers)
    for start in range(0, len(layers), length):
        part = layers[start : start + length]
        setattr(parent, name, torch.nn.ModuleList(part))
        model.config.get_text_config().num_hidden_layers = len(part)
        bridge = _boot_bridge(model)
        reader = _Reader.of(bridge, model)
        if decoder is None:  # a second bridge wraps the first one's embedding
            decoder = reader.decoder(bridge, [], release)
            decoder = _moved(decoder, devices[0]) if devices else decoder
        for block in bridge.blocks:
            read = reader.block(block)
            if devices:
                device = devices[1 + len(blocks)]
                read = Block(_moved(read.attention, device), _moved(read.mlp, device))
            blocks.append(read)
            if release:
                _release(block)
    setattr(parent, name, torch.nn.ModuleList(layers))
    model.config.get_text_config().num_hidden_layers = len(layers)
    assert decoder is not None
    return replace(decoder, blocks=tuple(blocks))


def _layers_of(model: Any) -> tuple[torch.nn.Module, str, list[torch.nn.Module]]:
    """Return the module that holds the list of layers, the list's name in it, and the layers."""
    count = model.config.get_text_config().num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            parent, _, name = path.rpartition(".")
            return model.get_submodule(parent), name, list(module)
    raise InputError(
        f"{model.name_or_path or type(model).__name__}: the architecture {model.config.model_type!r} is not supported:"
        " it has no list of layers"
    )


def _release(module: torch.nn.Module) -> None:
    """Give up the memory of a module's parameters."""
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty((0,) * parameter.ndim)  # a second bridge transposes them


def _embedding_scale(embed: Any) -> float:
    """Return the factor on token embeddings (Gemma's sqrt(d)), 1 for most."""
    module = getattr(embed, "original_component", embed)
    return float(getattr(module, "scalar_embed_scale", 1.0))


def _own(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if it is a part of a larger storage, such as a file."""
    tensor = tensor.detach()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


#: Elements of a weight that are folded at once in at least float32, beside the whole weight.
_FOLDED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class _Folder:
    """Folds a norm into the projection that reads it, in at least float32.

    Attributes:
        centred: whether the norms centre what they read.
        offset: what is added to a norm's weight to give its scale (1 for Gemma).
    """

    centred: bool
    offset: float

    def scale(self, norm: Any) -> Tensor | None:
        """Return a norm's scale in at least float32; None without a norm or a weight in it."""
        weight = getattr(norm, "weight", None)
        if weight is None:
            return None
        return at_least_float32(weight.detach()) + self.offset

    def __call__(self, norm: Any, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """(W', b') of weights [d, n_i] and biases [n_i] behind `norm`, side by side; as they are without a norm."""
        widths = [weight.shape[1] for weight in weights]
        folded, folded_bias = weights[0].new_empty(len(weights[0]), sum(widths)), weights[0].new_zeros(sum(widths))
        for weight, bias, out, out_bias in zip(
            weights, biases, folded.split(widths, 1), folded_bias.split(widths), strict=True
        ):
            if bias is not None:
                out_bias += bias
            columns = max(1, _FOLDED_AT_ONCE // len(weight) // 16) * 16
            for start in range(0, weight.shape[1], columns):
                part = slice(start, start + columns)
                self._fold(norm, weight[:, part], out[:, part])
            self._add_shift(norm, weight, out_bias)
        return folded, folded_bias

    def _add_shift(self, norm: Any, weight: Tensor, bias: Tensor) -> None:
        """Add what the norm's shift gives behind weight [d, n] to bias [n]."""
        shift = getattr(norm, "bias", None)
        if shift is not None:
            dtype = torch.promote_types(weight.dtype, torch.float32)
            bias.copy_(bias.to(dtype) + shift.to(dtype) @ weight.to(dtype))

    def _fold(self, norm: Any, weight: Tensor, out: Tensor) -> None:
        """Write W' [d, n] to `out`."""
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        scale = self.scale(norm)
        if scale is not None:
            wide *= scale[:, None]
        if self.centred and norm is not None:
            wide -= wide.mean(0)
        out.copy_(wide)


@dataclass(frozen=True)
class _Reader:
    """Reads the parts of a bridged model.

    Attributes:
        config: the model's own configuration.
        cfg: the bridge's.
        fold: of its norms.
    """

    config: Any
    cfg: Any
    fold: _Folder

    @classmethod
    def of(cls, bridge: Any, model: Any) -> _Reader:
        cfg = bridge.cfg
        offset = 1.0 if getattr(cfg, "rmsnorm_uses_offset", False) else 0.0
        return cls(model.config.get_text_config(), cfg, _Folder(cfg.normalization_type == "LN", offset))

    def decoder(self, bridge: Any, blocks: Sequence[Block], release: bool) -> Decoder:
        """Return the decoder with the given layers, and read all that is not in a layer.

        Args:
            release: let the model give up the weights that were read.
        """
        config, cfg = self.config, self.cfg
        frequencies, rotary_scale = (None, 1.0)
        if not hasattr(bridge, "pos_embed"):
            frequencies, rotary_scale = rotary_frequencies(config, cfg.d_head, bridge.embed.W_E.device)
        unembedding = self.fold(bridge.ln_final, [bridge.unembed.W_U], [getattr(bridge.unembed, "b_U", None)])
        embedding, scale = bridge.embed.W_E.detach(), _embedding_scale(bridge.embed)
        own = _own(embedding) if release else embedding.clone()
        decoder = Decoder(
            n_heads=cfg.n_heads,
            n_kv_heads=cfg.n_key_value_heads or cfg.n_heads,
            d_head=cfg.d_head,
            activation=activation(config),
            centred=self.fold.centred,
            parallel=bool(cfg.parallel_attn_mlp) and bool(getattr(config, "use_parallel_residual", True)),
            norm_eps=float(cfg.eps),
            qk_norm_eps=float(getattr(config, "rms_norm_eps", 0.0)),
            max_positions=max_positions(config),
            embedding=own if scale == 1 else own * scale,
            positions=self._positions(bridge),
            inverse_frequencies=frequencies,
            rotary_scale=rotary_scale,
            blocks=tuple(blocks),
            unembedding=unembedding[0],
            unembedding_bias=unembedding[1],
            pre_norm=hasattr(bridge.blocks[0], "ln1"),
            attention_cap=getattr(config, "attn_logit_softcapping", None) if config.model_type == "gemma2" else None,
            logit_cap=getattr(config, "final_logit_softcapping", None),
        )
        if release:
            _release(bridge.embed)
            _release(bridge.unembed)
        return decoder

    def _positions(self, bridge: Any) -> Tensor | None:
        """Return the learned positional embedding [context, d]; OPT's first two rows belong to padding."""
        if not hasattr(bridge, "pos_embed"):
            return None
        positions: Tensor = bridge.pos_embed.W_pos.detach().clone()
        return positions[2:] if self.config.model_type == "opt" else positions

    def block(self, block: Any) -> Block:
        """Read one layer."""
        # Where attention and MLP share one norm (Phi) the bridge has no second one.
        norm = getattr(block, "ln1", None)
        attention = self._attention(block.attn, norm, getattr(block, "ln1_post", None))
        return Block(attention, self._mlp(block.mlp, getattr(block, "ln2", norm), getattr(block, "ln2_post", None)))

    def _attention(self, attention: Any, norm: Any, post_norm: Any) -> Attention:
        """Read one layer's attention."""
        # A factor on queries, for scores that are not divided by sqrt(e).
        query_scale = (
            self.cfg.d_head / (getattr(self.config, "query_pre_attn_scalar", None) or self.cfg.d_head)
        ) ** 0.5
        # How many dimensions of a head rotary positions turn in neighbouring pairs (GPT-J); None for halves.
        pairs = self.config.rotary_dim if self.config.model_type == "gptj" else None
        weights, biases = [], []
        for name in "QKV":
            weight = getattr(attention, f"W_{name}")  # [heads, d, e]
            heads, d_model, d_head = weight.shape
            bias = getattr(attention, f"b_{name}", None)
            bias = weight.new_zeros(heads, d_head) if bias is None else bias.reshape(heads, d_head)
            if pairs is not None and name != "V":
                order = [*range(0, pairs, 2), *range(1, pairs, 2), *range(pairs, d_head)]
                weight, bias = weight[..., order], bias[..., order]
            weights.append(weight.permute(1, 0, 2).reshape(d_model, heads * d_head))
            biases.append(bias.reshape(-1))
        q_norm, k_norm = (self._head_norm(attention, name) for name in ("q_norm", "k_norm"))
        if q_norm is not None:
            q_norm = q_norm * query_scale
        else:
            weights[0], biases[0] = weights[0] * query_scale, biases[0] * query_scale
        # The value bias goes to the output bias instead.
        b_qkv = torch.cat((*biases[:2], torch.zeros_like(biases[2])))
        w_qkv, b_qkv = self.fold(norm, [torch.cat(weights, 1)], [b_qkv])
        w_o = attention.W_O
        n_heads, d_head, d_model = w_o.shape
        w_o = w_o.reshape(-1, d_model).detach().clone()
        b_o = getattr(attention, "b_O", None)
        b_o = w_o.new_zeros(d_model) if b_o is None else b_o.detach().clone()
        b_v = biases[-1].view(-1, d_head)
        b_o += b_v.repeat_interleave(n_heads // len(b_v), 0).flatten() @ w_o
        scale = self.fold.scale(post_norm)
        return Attention(
            w_qkv=w_qkv,
            b_qkv=b_qkv,
            w_o=w_o if scale is None else (w_o * scale).to(w_o.dtype),
            b_o=b_o,
            q_norm=q_norm,
            k_norm=k_norm,
            w_o_plain=None if scale is None else w_o,
            post_norm=None if scale is None else scale.to(w_o.dtype),
        )

    def _head_norm(self, attention: Any, name: str) -> Tensor | None:
        """Return the scale of a query/key norm in the weights' data type, or None."""
        scale = self.fold.scale(getattr(attention, name, None))
        return None if scale is None else scale.to(attention.W_O.dtype)

    def _mlp(self, mlp: Any, norm: Any, post_norm: Any) -> MLP:
        """Read one layer's MLP."""
        gate = getattr(mlp, "W_gate", None)
        weights = [mlp.W_in] if gate is None else [gate, mlp.W_in]
        names = ["b_in"] if gate is None else ["b_gate", "b_in"]
        w_in, b_in = self.fold(norm, weights, [getattr(mlp, name, None) for name in names])
        w_out = mlp.W_out.detach().clone().contiguous()
        b_out = getattr(mlp, "b_out", None)
        scale = self.fold.scale(post_norm)
        return MLP(
            w_in=w_in,
            b_in=b_in,
            w_out=w_out,
            b_out=w_out.new_zeros(w_out.shape[1]) if b_out is None else b_out.detach().clone(),
            gated=gate is not None,
            post_norm=None if scale is None else scale.to(w_out.dtype),
        )
