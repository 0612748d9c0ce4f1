"""The backward pass written out: gradients at every target's input, without an autograd graph and without copies.

From the last layer down, `backward` yields per layer

- the gradient at the MLP's residual input (through its norm), and
- the gradients at the query, key and value projections' outputs of every query head (rotary and query/key norm
  undone); under grouped queries a key's gradient is kept apart for each query head that reads it.

What a head's gradient is at its own residual input follows from these by a product with the head's weights and the
norm's Jacobian; see `attribution`. Parameters get no gradients.

Shapes: r rows (runs x items), p positions, q queries (p, or 1 in the last layer), h heads, k key/value heads, e d_head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from knowledge_circuits.engine.decoder import MLP, Activation, Attention, Decoder
from knowledge_circuits.engine.forward import (
    LayerTrace,
    Normalized,
    Prefix,
    Rotary,
    Substitution,
    Trace,
    apply_activation,
    linear,
    normalize_rms,
)


@dataclass(frozen=True)
class HeadGradients:
    """Gradients at one kind of projection (query, key or value) of one layer.

    Attributes:
        output: [r, h, p, e] at the projection's output.
        projected: [r, h, p] its inner product with the projection's output less bias, W'^T xhat.
    """

    output: Tensor
    projected: Tensor


@dataclass(frozen=True)
class LayerGradients:
    """One layer's gradients: the MLP's residual input [r, q, d], then queries, keys and values."""

    layer: int
    mlp_input: Tensor
    q: HeadGradients
    k: HeadGradients
    v: HeadGradients


def backward(
    decoder: Decoder,
    trace: Trace,
    gradient: Tensor,
    prefix: Prefix | None = None,
    substitution: Substitution | None = None,
) -> Iterator[LayerGradients]:
    """Walk from the last layer to the first.

    Args:
        decoder: the model.
        trace: a forward pass of r rows with `last_position_only`.
        gradient: [r, 1, d] at the final residual of the last position.
        prefix: the one that the forward pass had (r rows).
        substitution: the one that the forward pass had; no gradient goes through the constants.
    """
    offset = prefix.length if prefix else 0
    n_positions = trace.embedded.shape[1]
    rotary = Rotary.at(decoder, offset, n_positions)
    for layer in reversed(range(decoder.n_layers)):
        block, kept = decoder.blocks[layer], trace.layers[layer]
        put = substitution if substitution and substitution.layer == layer else None
        mlp_input = _mlp_backward(decoder, block.mlp, kept, gradient)
        if put and put.mlp_output is not None:
            mlp_input = torch.zeros_like(mlp_input)
        at_attention = gradient if decoder.parallel else gradient + mlp_input
        d_z = linear(at_attention, block.attention.w_o.T)
        if put and put.heads is not None:
            d_z = torch.zeros_like(d_z)
        q, k, v = _attention_backward(decoder, block.attention, kept, prefix, layer, d_z, rotary)
        yield LayerGradients(layer, mlp_input, q, k, v)
        if layer:
            through = _into_residual(decoder, block.attention, kept.attention_input, q, k, v)
            queries = gradient.shape[1]
            through[:, -queries:] += gradient + mlp_input
            gradient = through


def norm_backward(normalized: Normalized, gradient: Tensor) -> Tensor:
    """J^T gradient for a norm whose output is `normalized`: r (g - xhat mean(xhat g)), g already centred if need be."""
    value = normalized.value
    along = torch.linalg.vecdot(value, gradient).unsqueeze(-1) / value.shape[-1]
    return torch.addcmul(gradient, value, along, value=-1).mul_(normalized.inverse_scale)


def _mlp_backward(decoder: Decoder, mlp: MLP, kept: LayerTrace, gradient: Tensor) -> Tensor:
    """The gradient [r, q, d] at the MLP's residual input."""
    d_activated = linear(gradient, mlp.w_out.T)
    if mlp.gated:
        gate, up = kept.hidden.chunk(2, -1)
        d_hidden = torch.cat(
            (
                activation_backward(decoder.activation, d_activated * up, gate),
                d_activated * apply_activation(decoder.activation, gate),
            ),
            -1,
        )
    else:
        d_hidden = activation_backward(decoder.activation, d_activated, kept.hidden)
    return norm_backward(kept.mlp_input, linear(d_hidden, mlp.w_in.T))


def activation_backward(activation: Activation, gradient: Tensor, x: Tensor) -> Tensor:
    """gradient times the activation's derivative at x, by the kernels that autograd itself uses."""
    if activation is Activation.SILU:
        return torch.ops.aten.silu_backward(gradient, x)
    if activation is Activation.RELU:
        return torch.ops.aten.threshold_backward(gradient, x, 0)
    approximate = "tanh" if activation is Activation.GELU_TANH else "none"
    return torch.ops.aten.gelu_backward(gradient, x, approximate=approximate)


def _attention_backward(
    decoder: Decoder,
    attention: Attention,
    kept: LayerTrace,
    prefix: Prefix | None,
    layer: int,
    d_z: Tensor,
    rotary: Rotary | None,
) -> tuple[HeadGradients, HeadGradients, HeadGradients]:
    """Gradients at the projections' outputs from the gradient [r, q, h e] at z."""
    heads = kept.heads
    r, h, queries, e = heads.q.shape
    n_kv, p = heads.k.shape[1], heads.k.shape[2]
    k = torch.cat((prefix.keys[layer], heads.k), 2) if prefix else heads.k
    v = torch.cat((prefix.values[layer], heads.v), 2) if prefix else heads.v
    d_z = d_z.view(r, queries, h, e).transpose(1, 2).contiguous()
    grouped = (r, n_kv, -1, e)
    d_pattern = (d_z.view(grouped) @ v.transpose(-1, -2)).view_as(kept.pattern)
    d_scores = torch.ops.aten._softmax_backward_data(d_pattern, kept.pattern, -1, d_pattern.dtype).mul_(e**-0.5)
    d_q = (d_scores.view(r, n_kv, -1, k.shape[2]) @ k).view(r, h, queries, e)
    d_k = d_scores[..., -p:].transpose(-1, -2) @ heads.q
    d_v = kept.pattern[..., -p:].transpose(-1, -2) @ d_z

    width = h * e
    b_q, b_k, b_v = attention.b_qkv.split((width, n_kv * e, n_kv * e))
    return (
        _undo(decoder, d_q, heads.q, heads.q_plain, attention.q_norm, b_q, rotary),
        _undo(decoder, d_k, heads.k, heads.k_plain, attention.k_norm, b_k, rotary),
        _undo(decoder, d_v, heads.v, None, None, b_v, None),
    )


def _undo(
    decoder: Decoder,
    gradient: Tensor,
    used: Tensor,
    plain: Tensor | None,
    norm: Tensor | None,
    bias: Tensor,
    rotary: Rotary | None,
) -> HeadGradients:
    """Take a gradient [r, h, p, e] at `used` [r, h or k, p, e] back to the projection's output.

    A rotation keeps inner products, so without a query/key norm <gradient, used> is the one at the output too.
    """
    group = gradient.shape[1] // used.shape[1]
    output = gradient if rotary is None else rotary.rotate(gradient, inverse=True)
    if plain is not None and norm is not None:
        plain = plain.repeat_interleave(group, 1)
        output = norm_backward(normalize_rms(plain, decoder.qk_norm_eps), output * norm)
        product = torch.linalg.vecdot(output, plain)
    else:
        product = torch.linalg.vecdot(gradient, used if group == 1 else used.repeat_interleave(group, 1))
    per_head = bias.view(used.shape[1], -1).repeat_interleave(group, 0)
    return HeadGradients(output, product - (output @ per_head.unsqueeze(-1)).squeeze(-1))


def _into_residual(
    decoder: Decoder,
    attention: Attention,
    normalized: Normalized,
    q: HeadGradients,
    k: HeadGradients,
    v: HeadGradients,
) -> Tensor:
    """The gradient [r, p, d] that attention's inputs give the residual stream."""
    n_kv = decoder.n_kv_heads
    width = decoder.n_heads * decoder.d_head
    d_q = _side_by_side(q.output)
    d_kv = torch.cat([_side_by_side(_sum_groups(part.output, n_kv)) for part in (k, v)], -1)
    queries, p = d_q.shape[1], d_kv.shape[1]
    if queries == p:
        at_norm = linear(torch.cat((d_q, d_kv), -1), attention.w_qkv.T)
    else:
        at_norm = linear(d_kv, attention.w_qkv[:, width:].T)
        at_norm[:, -queries:] += linear(d_q, attention.w_qkv[:, :width].T)
    return norm_backward(normalized, at_norm)


def _side_by_side(x: Tensor) -> Tensor:
    """[r, h, p, e] -> [r, p, h e]."""
    return x.transpose(1, 2).flatten(2)


def _sum_groups(x: Tensor, n_kv: int) -> Tensor:
    """Sum the query heads that share a key/value head: [r, h, p, e] -> [r, k, p, e]."""
    r, h, p, e = x.shape
    return x if h == n_kv else x.view(r, n_kv, h // n_kv, p, e).sum(2)
