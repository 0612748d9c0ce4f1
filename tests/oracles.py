"""Slow and obviously right: the computation graph of a decoder written out node by node, in float64, with autograd.

A model is read straight from a Hugging Face state dict. `run` walks the graph: every head of every layer reads its own
query, key and value input, every MLP its own input, and each such target sums the outputs of all earlier sources anew.
Two callbacks make it every oracle that the tests need: `read(v, x, sources)` may change what target v reads, and
`write(u, z)` what source u puts out. From them follow, by their definitions, the attribution methods (the gradient
with respect to a zero added at every target's input), `exact` (one edge corrupted at a time) and circuits under
intervention.

Shapes: b items, p positions, d width of the residual stream, u sources, v targets; no padding anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from families import Pair
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

Read = Callable[[int, Tensor, list[Tensor]], Tensor]
Write = Callable[[int, Tensor], Tensor]
#: ell(logits [b, vocabulary], clean logits [vocabulary], (clean label, corrupted label)) -> [b]; of whole answers
#: ell(logits [b, t, vocabulary], clean logits [t, vocabulary], the answer's t tokens) -> [b]
Metric = Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]
#: The positions whose logits a metric takes: the last one, or slice(-t, None).
Positions = int | slice


# --- The model as its weights say ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Affine:
    """x W^T + b, with W [out, in]."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """Layer norm, or root-mean-square norm where there is no centring."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float
    centred: bool
    constant_scale: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        x = x / self.deviation(x) * self.weight
        return x if self.bias is None else x + self.bias

    def deviation(self, x: Tensor) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt()
        return scale.detach() if self.constant_scale else scale


@dataclass(frozen=True)
class Layer:
    """One block: per query head its projections (keys and values repeated for grouped queries), and the MLP.

    A query/key norm with a weight for every head is one norm over all heads.
    """

    attention_norm: Norm | None
    mlp_norm: Norm | None
    q: list[Affine]
    k: list[Affine]
    v: list[Affine]
    o: list[Affine]
    o_bias: Tensor | float
    mlp_in: Affine
    mlp_out: Affine
    mlp_gate: Affine | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    attention_post: Norm | None = None
    mlp_post: Norm | None = None
    rotary_theta: float | None = None
    rotary_factor: float = 1.0


@dataclass(frozen=True)
class Model:
    """A decoder in float64."""

    embedding: Tensor
    layers: list[Layer]
    final_norm: Norm
    unembedding: Affine
    activation: Callable[[Tensor], Tensor]
    parallel: bool
    positions: Tensor | None = None
    rotary_dimensions: int = 0
    rotary_theta: float = 10000.0
    neighbours_rotate: bool = False
    score_divisor: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    softmax: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(-1)
    query_key_factor: float = 1.0
    value_factor: float = 1.0
    gate_factor: float = 1.0
    hidden_factor: float = 1.0

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        return len(self.layers[0].q)

    @property
    def n_sources(self) -> int:
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_targets(self) -> int:
        return self.n_layers * (3 * self.n_heads + 1) + 1

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token embeddings [1, p, d]."""
        return self.embedding[torch.tensor(ids)][None]

    def readable(self) -> Tensor:
        """Which edges exist, [u, v]: found by watching which sources every target is offered."""
        edges = torch.zeros(self.n_sources, self.n_targets, dtype=torch.bool)

        def watch(v: int, x: Tensor, sources: list[Tensor]) -> Tensor:
            edges[: len(sources), v] = True
            return x

        run(self, self.embed([0]), read=watch)
        return edges


@dataclass
class _Reader:
    """A state dict in float64, read by module name."""

    state: dict[str, Tensor]
    epsilon: float
    centred: bool
    offset: float = 0.0

    def affine(self, name: str, transposed: bool = False) -> Affine:
        weight = self.state[f"{name}.weight"]
        return Affine(weight.T if transposed else weight, self.state.get(f"{name}.bias"))

    def norm(self, name: str) -> Norm:
        weight = self.state[f"{name}.weight"] + self.offset
        return Norm(weight, self.state.get(f"{name}.bias"), self.epsilon, self.centred)

    def optional_norm(self, name: str) -> Norm | None:
        return self.norm(name) if f"{name}.weight" in self.state else None


def _rows(affine: Affine, start: int, count: int) -> Affine:
    """Some output rows of an affine map."""
    bias = None if affine.bias is None else affine.bias[start : start + count]
    return Affine(affine.weight[start : start + count], bias)


def _heads(affine: Affine, width: int, heads: int) -> list[Affine]:
    """An output split by head; a map with fewer heads is repeated head by head (grouped queries)."""
    own = [_rows(affine, start, width) for start in range(0, affine.weight.shape[0], width)]
    return [head for head in own for _ in range(heads // len(own))]


def _output_heads(affine: Affine, heads: int) -> list[Affine]:
    return [Affine(part) for part in affine.weight.chunk(heads, dim=1)]


def from_hugging_face(model: PreTrainedModel) -> Model:
    """Read a model of one of the families from its state dict, in float64, with value biases in the output bias."""
    config = model.config
    state = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    readers = {
        "gpt2": _read_gpt2,
        "phi": _read_phi,
        "gpt_neox": _read_gpt_neox,
        "gptj": _read_gptj,
        "opt": _read_opt,
        "falcon": _read_falcon,
    }
    read = readers.get(config.model_type, _read_llama)
    plain = read(config, state)
    return replace(plain, layers=[_without_value_biases(layer) for layer in plain.layers])


def _without_value_biases(layer: Layer) -> Layer:
    """The same layer with what the value biases put out, b_V W_O of every head, in the output bias."""
    bias = layer.o_bias
    for v, o in zip(layer.v, layer.o, strict=True):
        if v.bias is not None:
            bias = bias + o(v.bias)
    return replace(layer, v=[Affine(v.weight) for v in layer.v], o_bias=bias)


def _bias(affine: Affine) -> Tensor | float:
    return 0.0 if affine.bias is None else affine.bias


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
}


def _read_gpt2(config, state: dict[str, Tensor]) -> Model:
    reader = _Reader(state, config.layer_norm_epsilon, centred=True)
    heads, width = config.n_head, config.n_embd // config.n_head
    layers = []
    for index in range(config.n_layer):
        name = f"transformer.h.{index}"
        qkv = reader.affine(f"{name}.attn.c_attn", transposed=True)
        q, k, v = (_rows(qkv, part * config.n_embd, config.n_embd) for part in range(3))
        out = reader.affine(f"{name}.attn.c_proj", transposed=True)
        layers.append(
            Layer(
                attention_norm=reader.norm(f"{name}.ln_1"),
                mlp_norm=reader.norm(f"{name}.ln_2"),
                q=_heads(q, width, heads),
                k=_heads(k, width, heads),
                v=_heads(v, width, heads),
                o=_output_heads(out, heads),
                o_bias=_bias(out),
                mlp_in=reader.affine(f"{name}.mlp.c_fc", transposed=True),
                mlp_out=reader.affine(f"{name}.mlp.c_proj", transposed=True),
            )
        )
    return Model(
        embedding=state["transformer.wte.weight"],
        positions=state["transformer.wpe.weight"],
        layers=layers,
        final_norm=reader.norm("transformer.ln_f"),
        unembedding=reader.affine("lm_head"),
        activation=_ACTIVATIONS[config.activation_function],
        parallel=False,
    )


def _read_llama(config, state: dict[str, Tensor]) -> Model:
    """Read a model with Llama's names of modules: Mistral, Qwen, Gemma, OLMo, Phi-3 and StableLM too."""
    kind = config.model_type
    gemma = kind.startswith("gemma")
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    _split_fused_projections(config, state, width)
    if kind == "olmo":  # its norms have no weights
        ones = torch.ones(config.hidden_size, dtype=torch.float64)
        layer_norms = ("input_layernorm", "post_attention_layernorm")
        state["model.norm.weight"] = ones
        state |= {
            f"model.layers.{i}.{name}.weight": ones for i in range(config.num_hidden_layers) for name in layer_norms
        }
    epsilon = 1e-5 if kind == "olmo" else getattr(config, "rms_norm_eps", None) or config.layer_norm_eps
    reader = _Reader(state, epsilon, centred=kind in ("olmo", "stablelm"), offset=1.0 if gemma else 0.0)
    post = kind in ("gemma2", "gemma3_text", "olmo2")
    layers = []
    for index in range(config.num_hidden_layers):
        name = f"model.layers.{index}"
        out = reader.affine(f"{name}.self_attn.o_proj")
        k_norm = reader.optional_norm(f"{name}.self_attn.k_norm")
        if k_norm is not None and kind == "olmo2":
            k_norm = replace(k_norm, weight=_repeated(k_norm.weight, width, heads))
        rope = config.rope_parameters
        if "rope_theta" not in rope:
            rope = rope[config.layer_types[index]]
        layers.append(
            Layer(
                attention_norm=reader.optional_norm(f"{name}.input_layernorm"),
                mlp_norm=reader.optional_norm(f"{name}.{'pre_feedforward' if post else 'post_attention'}_layernorm"),
                q=_heads(reader.affine(f"{name}.self_attn.q_proj"), width, heads),
                k=_heads(reader.affine(f"{name}.self_attn.k_proj"), width, heads),
                v=_heads(reader.affine(f"{name}.self_attn.v_proj"), width, heads),
                o=_output_heads(out, heads),
                o_bias=_bias(out),
                mlp_in=reader.affine(f"{name}.mlp.up_proj"),
                mlp_gate=reader.affine(f"{name}.mlp.gate_proj"),
                mlp_out=reader.affine(f"{name}.mlp.down_proj"),
                q_norm=reader.optional_norm(f"{name}.self_attn.q_norm"),
                k_norm=k_norm,
                attention_post=reader.norm(f"{name}.post_attention_layernorm") if post else None,
                mlp_post=reader.norm(f"{name}.post_feedforward_layernorm") if post else None,
                rotary_theta=rope["rope_theta"],
                rotary_factor=rope.get("factor", 1.0),
            )
        )
    return Model(
        embedding=state["model.embed_tokens.weight"] * (config.hidden_size**0.5 if gemma else 1.0),
        layers=layers,
        final_norm=reader.norm("model.norm"),
        unembedding=reader.affine("lm_head"),
        activation=_ACTIVATIONS[getattr(config, "hidden_act", None) or config.hidden_activation],
        parallel=False,
        rotary_dimensions=int(width * rope.get("partial_rotary_factor", 1.0)),
        score_divisor=math.sqrt(getattr(config, "query_pre_attn_scalar", width)),
        attention_cap=getattr(config, "attn_logit_softcapping", None),
        logit_cap=getattr(config, "final_logit_softcapping", None),
    )


def _split_fused_projections(config, state: dict[str, Tensor], width: int) -> None:
    """Give Phi-3's fused projections the names of their parts."""
    for index in range(config.num_hidden_layers):
        name = f"model.layers.{index}"
        if f"{name}.self_attn.qkv_proj.weight" in state:
            sizes = [width * config.num_attention_heads, *[width * config.num_key_value_heads] * 2]
            for part, weight in zip("qkv", state[f"{name}.self_attn.qkv_proj.weight"].split(sizes), strict=True):
                state[f"{name}.self_attn.{part}_proj.weight"] = weight
            for part, weight in zip(("gate", "up"), state[f"{name}.mlp.gate_up_proj.weight"].chunk(2), strict=True):
                state[f"{name}.mlp.{part}_proj.weight"] = weight


def _repeated(weight: Tensor, width: int, heads: int) -> Tensor:
    """A weight per key head, repeated for the query heads that share it."""
    own = weight.view(-1, width)
    return own.repeat_interleave(heads // len(own), 0).flatten()


def _read_gptj(config, state: dict[str, Tensor]) -> Model:
    reader = _Reader(state, config.layer_norm_epsilon, centred=True)
    heads, width = config.n_head, config.n_embd // config.n_head
    layers = []
    for index in range(config.n_layer):
        name = f"transformer.h.{index}"
        norm, out = reader.norm(f"{name}.ln_1"), reader.affine(f"{name}.attn.out_proj")
        q, k, v = (_heads(reader.affine(f"{name}.attn.{part}_proj"), width, heads) for part in "qkv")
        layers.append(
            Layer(
                attention_norm=norm,
                mlp_norm=norm,
                q=q,
                k=k,
                v=v,
                o=_output_heads(out, heads),
                o_bias=_bias(out),
                mlp_in=reader.affine(f"{name}.mlp.fc_in"),
                mlp_out=reader.affine(f"{name}.mlp.fc_out"),
            )
        )
    return Model(
        embedding=state["transformer.wte.weight"],
        layers=layers,
        final_norm=reader.norm("transformer.ln_f"),
        unembedding=reader.affine("lm_head"),
        activation=_ACTIVATIONS[config.activation_function],
        parallel=True,
        rotary_dimensions=config.rotary_dim,
        neighbours_rotate=True,
    )


def _read_opt(config, state: dict[str, Tensor]) -> Model:
    reader = _Reader(state, 1e-5, centred=True)
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    layers = []
    for index in range(config.num_hidden_layers):
        name = f"model.decoder.layers.{index}"
        out = reader.affine(f"{name}.self_attn.out_proj")
        q, k, v = (_heads(reader.affine(f"{name}.self_attn.{part}_proj"), width, heads) for part in "qkv")
        layers.append(
            Layer(
                attention_norm=reader.norm(f"{name}.self_attn_layer_norm"),
                mlp_norm=reader.norm(f"{name}.final_layer_norm"),
                q=q,
                k=k,
                v=v,
                o=_output_heads(out, heads),
                o_bias=_bias(out),
                mlp_in=reader.affine(f"{name}.fc1"),
                mlp_out=reader.affine(f"{name}.fc2"),
            )
        )
    return Model(
        embedding=state["model.decoder.embed_tokens.weight"],
        positions=state["model.decoder.embed_positions.weight"][2:],
        layers=layers,
        final_norm=reader.norm("model.decoder.final_layer_norm"),
        unembedding=reader.affine("lm_head"),
        activation=_ACTIVATIONS[config.activation_function],
        parallel=False,
    )


def _read_falcon(config, state: dict[str, Tensor]) -> Model:
    """Falcon with one key/value head and one norm for attention and MLP."""
    reader = _Reader(state, config.layer_norm_epsilon, centred=True)
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    layers = []
    for index in range(config.num_hidden_layers):
        name = f"transformer.h.{index}"
        norm, out = reader.norm(f"{name}.input_layernorm"), reader.affine(f"{name}.self_attention.dense")
        parts = _heads(reader.affine(f"{name}.self_attention.query_key_value"), width, heads + 2)
        layers.append(
            Layer(
                attention_norm=norm,
                mlp_norm=norm,
                q=parts[:heads],
                k=[parts[heads]] * heads,
                v=[parts[heads + 1]] * heads,
                o=_output_heads(out, heads),
                o_bias=_bias(out),
                mlp_in=reader.affine(f"{name}.mlp.dense_h_to_4h"),
                mlp_out=reader.affine(f"{name}.mlp.dense_4h_to_h"),
            )
        )
    return Model(
        embedding=state["transformer.word_embeddings.weight"],
        layers=layers,
        final_norm=reader.norm("transformer.ln_f"),
        unembedding=reader.affine("lm_head"),
        activation=_ACTIVATIONS[config.activation],
        parallel=True,
        rotary_dimensions=width,
        rotary_theta=config.rope_parameters["rope_theta"],
    )


def _read_phi(config, state: dict[str, Tensor]) -> Model:
    reader = _Reader(state, config.layer_norm_eps, centred=True)
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    layers = []
    for index in range(config.num_hidden_layers):
        name = f"model.layers.{index}"
        norm, out = reader.norm(f"{name}.input_layernorm"), reader.affine(f"{name}.self_attn.dense")
        layers.append(
            Layer(
                attention_norm=norm,
                mlp_norm=norm,
                q=_heads(reader.affine(f"{name}.self_attn.q_proj"), width, heads),
                k=_heads(reader.affine(f"{name}.self_attn.k_proj"), width, heads),
                v=_heads(reader.affine(f"{name}.self_attn.v_proj"), width, heads),
                o=_output_heads(out, heads),
                o_bias=_bias(out),
                mlp_in=reader.affine(f"{name}.mlp.fc1"),
                mlp_out=reader.affine(f"{name}.mlp.fc2"),
            )
        )
    return Model(
        embedding=state["model.embed_tokens.weight"],
        layers=layers,
        final_norm=reader.norm("model.final_layernorm"),
        unembedding=reader.affine("lm_head"),
        activation=_ACTIVATIONS[config.hidden_act],
        parallel=True,
        rotary_dimensions=int(width * config.rope_parameters["partial_rotary_factor"]),
        rotary_theta=config.rope_parameters["rope_theta"],
    )


def _read_gpt_neox(config, state: dict[str, Tensor]) -> Model:
    reader = _Reader(state, config.layer_norm_eps, centred=True)
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    layers = []
    for index in range(config.num_hidden_layers):
        name = f"gpt_neox.layers.{index}"
        parts = _heads(reader.affine(f"{name}.attention.query_key_value"), width, 3 * heads)  # q, k, v of each head
        out = reader.affine(f"{name}.attention.dense")
        layers.append(
            Layer(
                attention_norm=reader.norm(f"{name}.input_layernorm"),
                mlp_norm=reader.norm(f"{name}.post_attention_layernorm"),
                q=parts[0::3],
                k=parts[1::3],
                v=parts[2::3],
                o=_output_heads(out, heads),
                o_bias=_bias(out),
                mlp_in=reader.affine(f"{name}.mlp.dense_h_to_4h"),
                mlp_out=reader.affine(f"{name}.mlp.dense_4h_to_h"),
            )
        )
    return Model(
        embedding=state["gpt_neox.embed_in.weight"],
        layers=layers,
        final_norm=reader.norm("gpt_neox.final_layer_norm"),
        unembedding=reader.affine("embed_out" if "embed_out.weight" in state else "lm_head"),
        activation=_ACTIVATIONS[config.hidden_act],
        parallel=config.use_parallel_residual,
        rotary_dimensions=int(width * config.rope_parameters["partial_rotary_factor"]),
        rotary_theta=config.rope_parameters["rope_theta"],
    )


# --- The walk over the graph -----------------------------------------------------------------------------------------


@dataclass
class Run:
    """What a walk leaves: every source's output [u, b, p, d] and the logits at every position [b, p, vocabulary]."""

    sources: list[Tensor] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def outputs(self) -> Tensor:
        return torch.stack(self.sources)


def _unchanged_input(v: int, x: Tensor, sources: list[Tensor]) -> Tensor:
    return x


def _unchanged_output(u: int, z: Tensor) -> Tensor:
    return z


def run(model: Model, embedding: Tensor, read: Read = _unchanged_input, write: Write = _unchanged_output) -> Run:
    """Walk the graph from token embeddings [b, p, d]; sources and targets are numbered as the design orders them."""
    constant = torch.zeros_like(embedding[:, :, :])
    if model.positions is not None:
        constant = constant + model.positions[: embedding.shape[1]]
    sources = [write(0, embedding)]
    heads, v = model.n_heads, 0

    def residual(target: int) -> Tensor:
        return read(target, constant + torch.stack(sources).sum(0), sources)

    for layer in model.layers:
        inputs = [[residual(v + part * heads + h) for h in range(heads)] for part in range(3)]
        outputs = [write(len(sources) + h, z) for h, z in enumerate(_attention(model, layer, *inputs))]
        v += 3 * heads
        if model.parallel:  # the MLP reads what the heads read
            mlp_input = residual(v)
        sources = sources + outputs
        constant = constant + layer.o_bias
        if not model.parallel:
            mlp_input = residual(v)
        v += 1
        sources = [*sources, write(len(sources), _mlp(model, layer, mlp_input))]
    return Run(sources, _capped(model.unembedding(model.final_norm(residual(v))), model.logit_cap))


def _capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)


def _attention(model: Model, layer: Layer, xq: list[Tensor], xk: list[Tensor], xv: list[Tensor]) -> list[Tensor]:
    """Every head's output [b, p, d] from the heads' three inputs; a post-norm's scale is that of the heads' sum."""

    def project(maps: list[Affine], inputs: list[Tensor], norm: Norm | None = None) -> list[Tensor]:
        read = layer.attention_norm or (lambda x: x)
        parts = [affine(read(x)) for affine, x in zip(maps, inputs, strict=True)]
        if norm is None:
            return parts
        if norm.weight.numel() == parts[0].shape[-1]:
            return [norm(part) for part in parts]
        return list(norm(torch.cat(parts, -1)).chunk(len(parts), -1))

    heads = zip(
        project(layer.q, xq, layer.q_norm), project(layer.k, xk, layer.k_norm), project(layer.v, xv), strict=True
    )
    outputs = [_head(model, layer, h, *parts) for h, parts in enumerate(heads)]
    if layer.attention_post is None:
        return outputs
    deviation = layer.attention_post.deviation(sum(outputs) + layer.o_bias)
    return [output / deviation * layer.attention_post.weight for output in outputs]


def _head(model: Model, layer: Layer, h: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head's output [b, p, d] from its query, key and value."""
    if model.rotary_dimensions:
        q, k = _rotate(model, layer, q), _rotate(model, layer, k)
    q, k = (_ScaledGradient.apply(x, model.query_key_factor) for x in (q, k))
    v = _ScaledGradient.apply(v, model.value_factor)
    scores = _capped(q @ k.mT / (model.score_divisor or math.sqrt(q.shape[-1])), model.attention_cap)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return layer.o[h](model.softmax(scores.masked_fill(future, -math.inf)) @ v)


def _rotate(model: Model, layer: Layer, x: Tensor) -> Tensor:
    """Rotary embedding: among the first r dimensions i is paired with i + r/2, or 2i with 2i + 1."""
    r = model.rotary_dimensions
    theta = layer.rotary_theta or model.rotary_theta
    frequencies = theta ** (-torch.arange(0, r, 2, dtype=x.dtype) / r) / layer.rotary_factor
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if model.neighbours_rotate:
        even, odd = x[..., 0:r:2], x[..., 1:r:2]
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
        return torch.cat([turned, x[..., r:]], -1)
    first, second, rest = x[..., : r // 2], x[..., r // 2 : r], x[..., r:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _mlp(model: Model, layer: Layer, x: Tensor) -> Tensor:
    x = x if layer.mlp_norm is None else layer.mlp_norm(x)
    hidden = layer.mlp_in(x)
    if layer.mlp_gate is not None:
        gate, up = (_ScaledGradient.apply(part, model.gate_factor) for part in (layer.mlp_gate(x), hidden))
        output = layer.mlp_out(model.activation(gate) * up)
    else:
        output = layer.mlp_out(model.activation(_ScaledGradient.apply(hidden, model.hidden_factor)))
    return output if layer.mlp_post is None else layer.mlp_post(output)


# --- Gradient rules, by autograd functions with their own backward pass ----------------------------------------------


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient * ctx.factor, None


class _WarmSoftmax(torch.autograd.Function):
    """The softmax, whose backward pass is that of softmax(scores / 2) without the factor 1/2."""

    @staticmethod
    def forward(ctx, scores: Tensor) -> Tensor:
        ctx.save_for_backward((scores / 2).softmax(-1))
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (warm,) = ctx.saved_tensors
        return torch.einsum(
            "...j,...ij->...i", gradient, torch.diag_embed(warm) - warm[..., :, None] * warm[..., None, :]
        )


class _Secant(torch.autograd.Function):
    """An activation f as x times f(x) / x, stabilized near 0, whose second factor is a constant."""

    @staticmethod
    def forward(ctx, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        secant = activation(x) / (x + 1e-6 * x.sign())
        ctx.save_for_backward(secant)
        return secant * x

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient * ctx.saved_tensors[0], None


def under_rule(model: Model, rule: str) -> Model:
    """The same function with another backward pass: "gim", "relp", or "relp-ah", RelP with patterns constant too."""

    def constant(norm: Norm | None) -> Norm | None:
        return None if norm is None else replace(norm, constant_scale=True)

    names = ("attention_norm", "mlp_norm", "q_norm", "k_norm", "attention_post", "mlp_post")
    layers = [replace(layer, **{name: constant(getattr(layer, name)) for name in names}) for layer in model.layers]
    model = replace(model, layers=layers, final_norm=constant(model.final_norm), gate_factor=0.5)
    if rule == "gim":
        return replace(model, softmax=_WarmSoftmax.apply, query_key_factor=0.25, value_factor=0.5, hidden_factor=0.5)
    activation = model.activation
    model = replace(model, activation=lambda x: _Secant.apply(x, activation))
    return replace(model, softmax=lambda scores: scores.softmax(-1).detach()) if rule == "relp-ah" else model


# --- Metrics ---------------------------------------------------------------------------------------------------------


def logit_difference(logits: Tensor, clean: Tensor, labels: tuple[int, int]) -> Tensor:
    return -(logits[:, labels[0]] - logits[:, labels[1]])


def probability_difference(logits: Tensor, clean: Tensor, labels: tuple[int, int]) -> Tensor:
    return logit_difference(logits.softmax(-1), clean, labels)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(-1)


def kl_divergence(logits: Tensor, clean: Tensor, labels: tuple[int, int]) -> Tensor:
    """KL(clean distribution || this distribution)."""
    return _divergence(clean.softmax(-1), logits.softmax(-1))


def js_divergence(logits: Tensor, clean: Tensor, labels: tuple[int, int]) -> Tensor:
    p, q = clean.softmax(-1), logits.softmax(-1)
    middle = (p + q) / 2
    return (_divergence(p, middle) + _divergence(q, middle)) / 2


def answer_loss(logits: Tensor, clean: Tensor, answer: tuple[int, ...]) -> Tensor:
    """Minus the mean log probability of an answer's tokens, one position each."""
    return -torch.stack([logits[:, i].log_softmax(-1)[:, token] for i, token in enumerate(answer)]).mean(0)


# --- Attribution by its definition -----------------------------------------------------------------------------------


def _gradients(
    model: Model, embedding: Tensor, ell: Callable[[Tensor], Tensor], write: Write, positions: Positions
) -> Tensor:
    """The gradient of ell at every target's input, [b, v, p, d], in b runs of one item, from embeddings [b, p, d]."""
    nothing = [torch.zeros_like(embedding, requires_grad=True) for _ in range(model.n_targets)]
    outcome = run(model, embedding, read=lambda v, x, _: x + nothing[v], write=write)
    loss = ell(outcome.logits[:, positions]).sum()
    found = torch.autograd.grad(loss, nothing, allow_unused=True, materialize_grads=True)
    return torch.stack(found, dim=1)


def attribute(
    model: Model,
    pairs: Sequence[Pair],
    method: str,
    steps: int = 5,
    first_step: int = 1,
    metric: Metric = logit_difference,
    positions: Positions = -1,
) -> Tensor:
    """Scores [u, v]: the mean over items of the sum over positions of <z(corrupted) - z(clean), g>.

    Args:
        method: "EAP", "EAP-IG", "clean-corrupted", "EAP-IG-activations" or "exact".
        steps: m, the number of interpolation steps.
        first_step: 1 for k = 1..m, 0 for k = 0..m-1.
        positions: whose logits the metric takes.
    """
    options = (method, steps, first_step, metric, positions)
    return torch.stack([_attribute_one(model, pair, *options) for pair in pairs]).mean(0)


def _attribute_one(
    model: Model, pair: Pair, method: str, steps: int, first_step: int, metric: Metric, positions: Positions
) -> Tensor:
    clean_embedding, corrupted_embedding = model.embed(pair.clean_ids), model.embed(pair.corrupted_ids)
    clean, corrupted = run(model, clean_embedding), run(model, corrupted_embedding)
    clean_logits = clean.logits[0, positions]
    if method == "exact":
        return _exact_one(model, pair, metric, positions)

    def ell(logits: Tensor) -> Tensor:
        return metric(logits, clean_logits, pair.label_ids)

    shares = torch.arange(first_step, first_step + steps, dtype=torch.float64)[:, None, None] / steps
    if method == "EAP":
        runs: list[tuple[Tensor, Write]] = [(clean_embedding, _unchanged_output)]
    elif method == "clean-corrupted":
        runs = [(torch.cat([clean_embedding, corrupted_embedding]), _unchanged_output)]
    elif method == "EAP-IG":
        runs = [(corrupted_embedding + shares * (clean_embedding - corrupted_embedding), _unchanged_output)]
    elif method == "EAP-IG-activations":
        between = corrupted.outputs + shares * (clean.outputs - corrupted.outputs)  # [u, steps, p, d]
        starts = clean_embedding.expand(steps, -1, -1)
        runs = [(starts, _replacing(group, between)) for group in _source_groups(model)]
    else:
        raise ValueError(method)
    gradients = torch.stack([_gradients(model, embedding, ell, write, positions) for embedding, write in runs])
    if method == "EAP-IG-activations" and model.positions is None:
        # As in EAP-IG 2.0, a target whose whole input is a replaced constant is one that no gradient reaches. A learned
        # positional embedding in that input keeps it alive: it is a parameter, not a constant.
        gradients[0, :, model.readable().sum(0) == 1] = 0
    gradient = gradients.flatten(0, 1).mean(0)
    differences = (corrupted.outputs - clean.outputs)[:, 0]
    return torch.einsum("upd,vpd->uv", differences, gradient) * model.readable()


def _source_groups(model: Model) -> list[range]:
    """`input`; then per layer all heads together; then its MLP."""
    groups = [range(0, 1)]
    for layer in range(model.n_layers):
        start = 1 + layer * (model.n_heads + 1)
        groups += [range(start, start + model.n_heads), range(start + model.n_heads, start + model.n_heads + 1)]
    return groups


def _replacing(group: range, constants: Tensor) -> Write:
    return lambda u, z: constants[u] if u in group else z


def _exact_one(model: Model, pair: Pair, metric: Metric, positions: Positions) -> Tensor:
    """ell with one edge corrupted, minus ell clean, for every edge of one item; one target's edges are one batch."""
    embedding = model.embed(pair.clean_ids)
    clean, corrupted = run(model, embedding), run(model, model.embed(pair.corrupted_ids))
    clean_logits = clean.logits[0, positions]
    base = metric(clean.logits[:, positions], clean_logits, pair.label_ids)
    differences = (corrupted.outputs - clean.outputs)[:, 0]
    scores = torch.zeros(model.n_sources, model.n_targets, dtype=embedding.dtype)
    for target, count in enumerate(model.readable().sum(0).tolist()):
        outcome = run(
            model,
            embedding.expand(count, -1, -1),
            read=lambda v, x, _, target=target, count=count: x + differences[:count] if v == target else x,
        )
        scores[:count, target] = metric(outcome.logits[:, positions], clean_logits, pair.label_ids) - base
    return scores


# --- Circuits by their definition ------------------------------------------------------------------------------------


def circuit_logits(
    model: Model, ids: Sequence[int], circuit: Tensor, replacement: Tensor, positions: Positions = -1
) -> Tensor:
    """Logits [vocabulary] at the last position, or [t, vocabulary] at some, of a prompt run through a circuit.

    Args:
        circuit: which edges are in, [u, v] bool.
        replacement: what an edge outside carries, [u, p, d] or [u, 1, d].
    """

    def read(v: int, x: Tensor, sources: list[Tensor]) -> Tensor:
        largest = x.abs().max()
        for u, z in enumerate(sources):
            if not circuit[u, v]:
                x = x + replacement[u] - z
        # What is left of sums that cancel is rounding; norms behind norms would amplify it a thousandfold each.
        return torch.where(x.abs() < 1e-13 * largest, 0.0, x)

    with torch.no_grad():
        return run(model, model.embed(ids), read=read).logits[0, positions]


def source_outputs(model: Model, ids: Sequence[int]) -> Tensor:
    """Every source's output in a plain run, [u, p, d]."""
    with torch.no_grad():
        return run(model, model.embed(ids)).outputs[:, 0]


def circuit_logit_differences(
    model: Model, pairs: Sequence[Pair], circuit: Tensor, intervention: str = "patching"
) -> Tensor:
    """Per item, logit[clean label] - logit[corrupted label] of the clean prompt run through a circuit."""
    found = zip(_circuit_outcomes(model, pairs, circuit, intervention, [-1] * len(pairs)), pairs, strict=True)
    return torch.stack([logits[pair.label_ids[0]] - logits[pair.label_ids[1]] for logits, pair in found])


def circuit_answer_losses(model: Model, pairs: Sequence[Pair], circuit: Tensor, intervention: str) -> Tensor:
    """Per item, `answer_loss` of the clean prompt, which ends with its answer (`label_ids`), run through a circuit."""
    positions = [slice(-len(pair.label_ids), None) for pair in pairs]
    found = zip(_circuit_outcomes(model, pairs, circuit, intervention, positions), pairs, strict=True)
    return torch.cat([answer_loss(logits[None], logits, pair.label_ids) for logits, pair in found])


def _circuit_outcomes(
    model: Model, pairs: Sequence[Pair], circuit: Tensor, intervention: str, positions: Sequence[Positions]
) -> list[Tensor]:
    """Each clean prompt's logits, at its positions, run through a circuit.

    Args:
        intervention: "patching" (the corrupted prompt's outputs), "zero", "mean" (over all positions of the clean
            prompts) or "mean-positional" (per position, over the clean prompts that reach it).
    """
    clean = [source_outputs(model, pair.clean_ids) for pair in pairs]
    results = []
    for pair, read in zip(pairs, positions, strict=True):
        if intervention == "patching":
            replacement = source_outputs(model, pair.corrupted_ids)
        elif intervention == "zero":
            replacement = torch.zeros_like(clean[0][:, :1])
        elif intervention == "mean":
            replacement = torch.cat(clean, dim=1).mean(1, keepdim=True)
        else:
            at = [[outputs[:, p] for outputs in clean if outputs.shape[1] > p] for p in range(len(pair.clean_ids))]
            replacement = torch.stack([torch.stack(outputs).mean(0) for outputs in at], dim=1)
        results.append(circuit_logits(model, pair.clean_ids, circuit, replacement, read))
    return results


def standalone(model: Model, pairs: Sequence[Pair], circuit: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and rank of the clean label in the circuit run alone, under zero ablation: two [b] tensors."""
    nothing = torch.zeros(model.n_sources, 1, model.embedding.shape[1], dtype=model.embedding.dtype)
    logits = torch.stack([circuit_logits(model, pair.clean_ids, circuit, nothing) for pair in pairs])
    label = torch.tensor([pair.label_ids[0] for pair in pairs])[:, None]
    rank = (logits > logits.gather(1, label)).sum(1)
    return logits.softmax(-1).gather(1, label)[:, 0], rank
