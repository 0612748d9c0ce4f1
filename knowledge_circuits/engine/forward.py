"""The decoder's forward pass, keeping the activations that the backward pass and circuit runs need.

The residual stream of a batch is [r, p, d]: r rows are runs x items (or items alone), p positions. Clean and corrupted
prompts agree on their first tokens, at least on BOS. These positions are run once; a `Prefix` holds their keys and
values. A metric reads the logits of the last position, or of the last few, which predict a whole answer: the last
layer's queries and MLP are computed there alone (`queries`).

Shapes: r rows, p positions, o positions of the prefix, q queries (p, or those of a metric in the last layer),
d d_model, h query heads, g key/value heads, e d_head, f MLP width, n vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from knowledge_circuits.engine.decoder import GELU, MLP, Activation, Attention, Decoder
from knowledge_circuits.engine.products import linear


@dataclass(frozen=True)
class _Rows:
    """Tensors that begin with the rows, in fields and in what these hold."""

    def rows(self, rows: slice | Tensor) -> Self:
        """Return some rows; of a slice a view."""
        return replace(self, **{name: _chosen_rows(part, rows) for name, part in vars(self).items()})


def _chosen_rows(part: Any, rows: slice | Tensor) -> Any:
    if isinstance(part, _Rows):
        return part.rows(rows)
    if isinstance(part, tuple):
        return tuple(_chosen_rows(one, rows) for one in part)
    return None if part is None else part[rows.to(part.device) if isinstance(rows, Tensor) else rows]


@dataclass(frozen=True)
class Normalized(_Rows):
    """A norm's output without scale and shift: value [r, p, d] and its inverse deviation [r, p, 1]."""

    value: Tensor
    inverse_scale: Tensor


@dataclass(frozen=True)
class Heads(_Rows):
    """Queries, keys and values of one layer, as attention uses them (rotary and query/key norm applied).

    Attributes:
        q: [r, h, q, e].
        k, v: [r, g, p, e], prefix excluded.
        q_plain, k_plain: the projections' outputs [r, h, q, e] and [r, g, p, e] before a query/key norm, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_plain: Tensor | None = None
    k_plain: Tensor | None = None

    def behind(self, prefix: Prefix | None, layer: int) -> Heads:
        """Return the same with a layer's keys and values of the prefix before these."""
        if prefix is None:
            return self
        k, v = (torch.cat(parts, 2) for parts in ((prefix.keys[layer], self.k), (prefix.values[layer], self.v)))
        return replace(self, k=k, v=v)


@dataclass(frozen=True)
class LayerTrace(_Rows):
    """One layer's activations.

    Attributes:
        attention_input, mlp_input: the norms' outputs; attention_input has all positions.
        heads: queries, keys and values.
        pattern: [r, h, q, o + p] attention probabilities.
        z: [r, q, h e] the heads' outputs before w_o, times a post-norm's inverse deviation.
        hidden: [r, q, f or 2f] the MLP's pre-activations.
        mlp_output: [r, q, d], behind a post-norm.
        attention_post, mlp_post: the post-norms' outputs without their scale; None without post-norms.
    """

    attention_input: Normalized
    heads: Heads
    pattern: Tensor
    z: Tensor
    mlp_input: Normalized
    hidden: Tensor
    mlp_output: Tensor
    attention_post: Normalized | None = None
    mlp_post: Normalized | None = None


@dataclass(frozen=True)
class Trace(_Rows):
    """The activations of a forward pass.

    Attributes:
        embedded: [r, p, d] token embeddings.
        layers: per layer.
        final: [r, q, d] the final residual.
        final_normalized: its norm.
        residuals: the residual stream before each layer, [r, p, d] each; empty without `keep_residuals`.
    """

    embedded: Tensor
    layers: tuple[LayerTrace, ...]
    final: Tensor
    final_normalized: Normalized
    residuals: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Prefix(_Rows):
    """Keys and values, [r, g, o, e] per layer, of the positions before those that are run."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]

    def repeat(self, runs: int) -> Prefix:
        """Return the same prefix for each of `runs` runs (rows ordered run by run)."""
        return Prefix(
            tuple(key.repeat(runs, 1, 1, 1) for key in self.keys),
            tuple(value.repeat(runs, 1, 1, 1) for value in self.values),
        )


@dataclass(frozen=True)
class Substitution:
    """One source group's outputs replaced by constants (the method EAP-IG-activations).

    Attributes:
        layer: the group's layer.
        heads: [r, q, h e] in place of z, or None.
        mlp_output: [r, q, d] in place of the MLP's output, or None.
    """

    layer: int
    heads: Tensor | None = None
    mlp_output: Tensor | None = None


class LayerRun(NamedTuple):
    """One layer of a run.

    Attributes:
        trace: its activations.
        before, after: the residual stream before it [r, p, d] and behind it [r, q, d].
        attention_output: [r, q, d] what its attention adds to the residual stream.
    """

    trace: LayerTrace
    before: Tensor
    attention_output: Tensor
    after: Tensor


def embed(decoder: Decoder, ids: Tensor) -> Tensor:
    """Return token embeddings [..., d] of ids [...]: the node `input` (no positional embedding)."""
    return decoder.embedding[ids]


def forward(
    decoder: Decoder,
    embedded: Tensor,
    prefix: Prefix | None = None,
    queries: int | None = 1,
    substitution: Substitution | None = None,
    keep_residuals: bool = False,
) -> Trace:
    """Run the decoder and keep its activations.

    Args:
        embedded, prefix, queries, substitution: see `run_layers`.
        keep_residuals: keep the residual stream before each layer.
    """
    layers, residuals, final = [], [], embedded
    for layer in run_layers(decoder, embedded, prefix, queries, substitution):
        layers.append(layer.trace)
        if keep_residuals:
            residuals.append(layer.before)
        final = layer.after
    final = final.to(decoder.device)
    return Trace(embedded, tuple(layers), final, normalize(final, decoder), tuple(residuals))


def run_layers(
    decoder: Decoder,
    embedded: Tensor,
    prefix: Prefix | None = None,
    queries: int | None = 1,
    substitution: Substitution | None = None,
) -> Iterator[LayerRun]:
    """Run the decoder layer by layer; what the caller does not keep is freed as the pass goes on.

    Args:
        embedded: [r, p, d] token embeddings of the positions that are run.
        prefix: the positions before them.
        queries: at how many last positions the last layer's queries and MLP are computed, whose outputs are then
            [r, queries, d]; None: at all, [r, p, d].
        substitution: constants in place of one group of sources.
    """
    offset = prefix.length if prefix else 0
    n_positions = embedded.shape[1]
    rotary = Rotations.at(decoder, offset, n_positions)
    residual = embedded if decoder.positions is None else embedded + decoder.positions[offset : offset + n_positions]
    for index, block in enumerate(decoder.blocks):
        residual = residual.to(block.device)
        here = n_positions if queries is None or index < decoder.n_layers - 1 else queries
        attention_input = normalize_input(residual, decoder)
        heads = project_heads(decoder, block.attention, attention_input.value, here, rotary.of(index))
        pattern, z = attend(decoder, heads.behind(prefix, index))
        attention_post = post_normalize(z, block.attention, decoder)
        if attention_post is not None:
            z = z * attention_post.inverse_scale
        constants = substitution if substitution and substitution.layer == index else None
        if constants and constants.heads is not None:
            z = constants.heads
        before, at_queries = residual, residual[:, -here:]
        attention_output = linear(z, block.attention.w_o, block.attention.b_o)
        after = at_queries + attention_output
        mlp_input = normalize_input(at_queries if decoder.parallel else after, decoder)
        hidden = linear(mlp_input.value, block.mlp.w_in, block.mlp.b_in)
        output, mlp_post = mlp_output(decoder, block.mlp, hidden)
        if constants and constants.mlp_output is not None:
            output = constants.mlp_output
        residual = after + output
        trace = LayerTrace(attention_input, heads, pattern, z, mlp_input, hidden, output, attention_post, mlp_post)
        yield LayerRun(trace, before, attention_output, residual)


class Prefixes:
    """The prefixes of one call's batches: each distinct one is run once, and not again for the next batch."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._last: tuple[Tensor, Prefix] | None = None

    def of(self, ids: Tensor) -> Prefix | None:
        """Return the keys and values of ids [r, o]; None for o = 0."""
        if ids.shape[1] == 0:
            return None
        distinct, rows = torch.unique(ids, dim=0, return_inverse=True)
        if self._last is None or not torch.equal(self._last[0], distinct):
            heads = [layer.trace.heads for layer in run_layers(self._decoder, embed(self._decoder, distinct))]
            self._last = distinct, Prefix(tuple(part.k for part in heads), tuple(part.v for part in heads))
        return self._last[1].rows(rows)


def all_logits(decoder: Decoder, ids: Tensor) -> Tensor:
    """Return logits [r, p, n] at every position of ids [r, p]."""
    trace = forward(decoder, embed(decoder, ids), queries=None)
    return logits_of(decoder, trace.final_normalized.value)


def logits_of(decoder: Decoder, normalized: Tensor) -> Tensor:
    """Return logits [..., n] of the final norm's output [..., d]."""
    return capped(linear(normalized, decoder.unembedding, decoder.unembedding_bias), decoder.logit_cap)


def among_last(part: slice, total: int, count: int) -> slice:
    """Return which of the last `count` of `total` positions are in a part of all, counted from the first of them."""
    before = total - count
    return slice(max(part.start - before, 0), max(part.stop - before, 0))


def capped(x: Tensor, cap: float | None) -> Tensor:
    """Return c tanh(x / c), or x without a cap c."""
    return x if cap is None else torch.tanh(x / cap) * cap


def cap_slope(x: Tensor, cap: float) -> Tensor:
    """Return the derivative of `capped` at x, before the cap."""
    return 1 - torch.tanh(x / cap).square()


def normalize(x: Tensor, decoder: Decoder) -> Normalized:
    """Normalize x [..., d] without scale and shift, which are folded into the weights that follow."""
    if not decoder.centred:
        return normalize_rms(x, decoder.norm_eps)
    wide = at_least_float32(x)
    value, _, inverse = torch.native_layer_norm(wide, wide.shape[-1:], None, None, decoder.norm_eps)
    return Normalized(value.to(x.dtype), inverse.to(x.dtype))


def normalize_input(x: Tensor, decoder: Decoder) -> Normalized:
    """Return what attention and MLP read: `normalize`, or x [..., d] itself without pre-norms."""
    return normalize(x, decoder) if decoder.pre_norm else Normalized(x, torch.ones_like(x[..., :1]))


def post_normalize(z: Tensor, attention: Attention, decoder: Decoder) -> Normalized | None:
    """Return the attention's normalized output without its scale, from z [..., h e]; None without a post-norm."""
    return None if attention.w_o_plain is None else normalize_rms(linear(z, attention.w_o_plain), decoder.norm_eps)


def mlp_output(decoder: Decoder, mlp: MLP, hidden: Tensor) -> tuple[Tensor, Normalized | None]:
    """Return the MLP's output [..., d] of its pre-activations, and the output of its post-norm without the scale."""
    output = linear(activate(mlp, decoder, hidden), mlp.w_out, mlp.b_out)
    if mlp.post_norm is None:
        return output, None
    post = normalize_rms(output, decoder.norm_eps)
    return post.value * mlp.post_norm, post


def normalize_heads(x: Tensor, scale: Tensor, eps: float) -> Normalized:
    """Normalize queries or keys x [r, h, p, e] without the scale: head by head, or over heads too if it spans them."""
    return normalize_rms(x, eps, -1 if scale.numel() == x.shape[-1] else (1, 3))


def head_scale(scale: Tensor, x: Tensor) -> Tensor:
    """Return a query/key norm's scale so that it broadcasts to x [r, h, p, e]; key heads repeat for their queries."""
    e = x.shape[-1]
    per_head = scale.view(-1, 1, e)
    return scale if len(per_head) == 1 else per_head.repeat_interleave(x.shape[1] // len(per_head), 0)


def normalize_rms(x: Tensor, eps: float, over: int | tuple[int, ...] = -1) -> Normalized:
    """Normalize x [..., d] by its root mean square over some dimensions, without a scale."""
    wide = at_least_float32(x)
    inverse = (wide.square().mean(over, keepdim=True) + eps).rsqrt()
    return Normalized((wide * inverse).to(x.dtype), inverse.to(x.dtype))


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if it has half precision, else x."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Rotary:
    """Rotary positions in half-split form: cos and sin [p, rotary_dim / 2]."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor, inverse: bool = False) -> Tensor:
        """Rotate x [..., p, e] (p may be the last few positions); `inverse` applies the transpose instead."""
        p = x.shape[-2]
        cos, sin = self.cos[-p:].to(x.device), self.sin[-p:].to(x.device)
        if inverse:
            sin = -sin
        half = cos.shape[-1]
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


@dataclass(frozen=True)
class Rotations:
    """Each layer's rotary positions: one for all layers, one per layer, or none."""

    layers: tuple[Rotary, ...]

    @classmethod
    def at(cls, decoder: Decoder, start: int, count: int) -> Rotations:
        """Return the rotations of positions start .. start + count - 1."""
        if decoder.inverse_frequencies is None:
            return cls(())
        steps = torch.arange(start, start + count, dtype=torch.float64, device=decoder.device)
        angles = steps[:, None] * decoder.inverse_frequencies.view(-1, 1, decoder.inverse_frequencies.shape[-1])
        scale = decoder.rotary_scale
        cos, sin = ((part * scale).to(decoder.dtype) for part in (angles.cos(), angles.sin()))
        return cls(tuple(Rotary(*parts) for parts in zip(cos, sin, strict=True)))

    def of(self, layer: int) -> Rotary | None:
        """Return a layer's rotation; None for a model without rotary positions."""
        return self.layers[min(layer, len(self.layers) - 1)] if self.layers else None


def project_heads(
    decoder: Decoder, attention: Attention, normalized: Tensor, queries: int, rotary: Rotary | None
) -> Heads:
    """Return queries (of the last `queries` positions), keys and values of normalized [r, p, d]."""
    r, p, _ = normalized.shape
    width = decoder.n_heads * decoder.d_head
    if queries == p:
        parts = linear(normalized, attention.w_qkv, attention.b_qkv)
        q, kv = parts[..., :width], parts[..., width:]
    else:
        q = linear(normalized[:, -queries:], attention.w_qkv[:, :width], attention.b_qkv[:width])
        kv = linear(normalized, attention.w_qkv[:, width:], attention.b_qkv[width:])
    q = q.reshape(r, queries, decoder.n_heads, decoder.d_head).transpose(1, 2)
    kv = kv.reshape(r, p, 2, decoder.n_kv_heads, decoder.d_head)
    k, v = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
    return prepare_heads(decoder, attention, q, k, v, rotary)


def prepare_heads(
    decoder: Decoder, attention: Attention, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary | None
) -> Heads:
    """Apply query/key norm and rotary positions to q, k [r, h, p, e]."""
    q_plain = k_plain = None
    if attention.q_norm is not None and attention.k_norm is not None:
        q_plain, k_plain = q, k
        q = normalize_heads(q, attention.q_norm, decoder.qk_norm_eps).value * head_scale(attention.q_norm, q)
        k = normalize_heads(k, attention.k_norm, decoder.qk_norm_eps).value * head_scale(attention.k_norm, k)
    if rotary is not None:
        q, k = rotary.rotate(q), rotary.rotate(k)
    return Heads(q, k, v, q_plain, k_plain)


def attend(decoder: Decoder, heads: Heads) -> tuple[Tensor, Tensor]:
    """Return the attention pattern [r, h, q, o + p] and z [r, q, h e] of heads `behind` their prefix."""
    r, h, queries, e = heads.q.shape
    n_kv, keys = heads.k.shape[1], heads.k.shape[2]
    # Query heads that share a key head are adjacent, so keys need no copies.
    scores = heads.q.reshape(r, n_kv, -1, e) @ heads.k.transpose(-1, -2)
    scores = capped(scores.view(r, h, queries, keys).mul_(e**-0.5), decoder.attention_cap)
    if queries > 1:
        scores.masked_fill_(_future(queries, keys, scores.device), -torch.inf)
    pattern = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    z = (pattern.view(r, n_kv, -1, keys) @ heads.v).view(r, h, queries, e)
    return pattern, z.transpose(1, 2).reshape(r, queries, h * e)


def _future(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return [queries, keys], True where a key comes after the query; the last query reads all keys."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)


def activate(mlp: MLP, decoder: Decoder, hidden: Tensor) -> Tensor:
    """Return the MLP's activations [..., f] of its pre-activations [..., f or 2f]."""
    if mlp.gated:
        gate, up = hidden.chunk(2, -1)
        return apply_activation(decoder, gate) * up
    return apply_activation(decoder, hidden)


def apply_activation(decoder: Decoder, x: Tensor) -> Tensor:
    """Return the decoder's activation at x."""
    if decoder.activation_stabilizer and decoder.activation is not Activation.RELU:
        return secant(decoder, x).mul_(x)
    return _activation(decoder.activation, x)


def secant(decoder: Decoder, x: Tensor) -> Tensor:
    """Return f(x) / (x + s sign x) with the decoder's stabilizer s."""
    stabilizer = torch.full((), decoder.activation_stabilizer, dtype=x.dtype, device=x.device)
    return _activation(decoder.activation, x).div_(stabilizer.copysign(x).add_(x))


def _activation(activation: Activation, x: Tensor) -> Tensor:
    if activation is Activation.SILU:
        return F.silu(x)
    if activation is Activation.RELU:
        return F.relu(x)
    return F.gelu(x, approximate=GELU[activation])
