"""The backward pass, written out: gradients at every target's input, without an autograd graph and without copies.

From the last layer to the first, `Backward.layers` yields per layer

- the gradient at the MLP's residual input (through its norm), and
- the gradients at the query, key and value projections' outputs of every query head (before rotary positions and
  query/key norm); under grouped queries a key's gradient is separate for each query head that reads it.

`attribution` turns the latter into gradients at each head's own residual input, by a product with the head's weights
and the norm's Jacobian. Parameters get no gradients.

`BackwardRules` replaces the derivative of single operations by an attribution rule; `GradientRule` names its presets.

Shapes: r rows (runs x items), p positions, o positions of the prefix, q queries (p, or those of a metric in the last
layer), d d_model, h heads, g key/value heads, e d_head, f MLP width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from knowledge_circuits.engine.decoder import GELU, MLP, Activation, Attention, Decoder
from knowledge_circuits.engine.forward import (
    Heads,
    LayerTrace,
    Normalized,
    Prefix,
    Rotary,
    Rotations,
    Substitution,
    Trace,
    apply_activation,
    cap_slope,
    head_scale,
    normalize_heads,
    secant,
)
from knowledge_circuits.engine.options import GradientRule
from knowledge_circuits.engine.products import linear


@dataclass(frozen=True)
class BackwardRules:
    """What the backward pass does where it departs from the gradient; the defaults are the gradient.

    Attributes:
        constant_norms: treat every norm's scale as a constant.
        temperature: take the softmax's backward pass at softmax(scores / temperature), without the factor
            1 / temperature.
        query_key_factor: factor on the gradients at queries and keys.
        value_factor: factor on the gradient at values.
        gate_factor: factor on the gradients at gate and up projection of a gated MLP.
        hidden_factor: factor on the gradient at the pre-activations of an MLP without a gate.
        secant_activations: pass f(x) / x instead of f'(x) through an activation (ReLU: the same); `attribute` then
            runs the forward pass with the same stabilizer, as RelP does.
        constant_patterns: treat attention patterns as constants: no gradient reaches queries and keys (RelP's AH rule).
    """

    constant_norms: bool = False
    temperature: float = 1.0
    query_key_factor: float = 1.0
    value_factor: float = 1.0
    gate_factor: float = 1.0
    hidden_factor: float = 1.0
    secant_activations: bool = False
    constant_patterns: bool = False

    @classmethod
    def of(cls, gradient: GradientRule | str | BackwardRules) -> BackwardRules:
        """Return the rules that a preset's name stands for; rules are returned as they are.

        Raises:
            InputError: no such preset.
        """
        return gradient if isinstance(gradient, BackwardRules) else _PRESETS[GradientRule(gradient)]

    @property
    def description(self) -> str | dict[str, Any]:
        """The preset's name, or the fields of rules that are no preset."""
        return next((str(name) for name, preset in _PRESETS.items() if preset == self), asdict(self))


_PRESETS = {
    GradientRule.STANDARD: BackwardRules(),
    GradientRule.GIM: BackwardRules(
        constant_norms=True,
        temperature=2.0,
        query_key_factor=0.25,
        value_factor=0.5,
        gate_factor=0.5,
        hidden_factor=0.5,  # the reference implementation halves an MLP's pre-activations with and without a gate
    ),
    GradientRule.RELP: BackwardRules(constant_norms=True, gate_factor=0.5, secant_activations=True),
}

#: Keeps f(x) / x finite near 0: RelP's value.
SECANT_STABILIZER = 1e-6


@dataclass(frozen=True)
class HeadGradients:
    """Gradients at one kind of projection (query, key or value) of one layer.

    Attributes:
        output: [r, h, p, e] at the projection's output.
        projected: [r, h, p] its inner product with the projection's output less bias, W'^T xhat; None where norm scales
            are constant and nothing needs it.
    """

    output: Tensor
    projected: Tensor | None


@dataclass(frozen=True)
class LayerGradients:
    """One layer's gradients: at the MLP's residual input [r, q, d], then at queries, keys and values."""

    layer: int
    mlp_input: Tensor
    q: HeadGradients
    k: HeadGradients
    v: HeadGradients


@dataclass(frozen=True)
class Backward:
    """The backward pass of a decoder under some rules."""

    decoder: Decoder
    rules: BackwardRules = BackwardRules()

    def layers(
        self,
        trace: Trace,
        gradient: Tensor,
        prefix: Prefix | None = None,
        substitution: Substitution | None = None,
    ) -> Iterator[LayerGradients]:
        """Walk from the last layer to the first.

        Args:
            trace: a forward pass of r rows.
            gradient: [r, q, d] at its final residual.
            prefix: the forward pass's (r rows).
            substitution: the forward pass's; no gradient passes through the constants.
        """
        decoder = self.decoder
        offset = prefix.length if prefix else 0
        rotary = Rotations.at(decoder, offset, trace.embedded.shape[1])
        for layer in reversed(range(decoder.n_layers)):
            block, activations = decoder.blocks[layer], trace.layers[layer]
            gradient = gradient.to(block.device)
            constants = substitution if substitution and substitution.layer == layer else None
            mlp_input = self._mlp(block.mlp, activations, gradient)
            if constants and constants.mlp_output is not None:
                mlp_input = torch.zeros_like(mlp_input)
            at_attention = gradient if decoder.parallel else gradient + mlp_input
            d_z = self._through_output(block.attention, activations, at_attention)
            if constants and constants.heads is not None:
                d_z = torch.zeros_like(d_z)
            whole = activations.heads.behind(prefix, layer)
            q, k, v = self._attention(block.attention, activations, whole, d_z, rotary.of(layer))
            yield LayerGradients(layer, mlp_input, q, k, v)
            if layer:
                at_norm = self._into_norm(block.attention, q.output, k.output, v.output)
                through = self.input_norm(activations.attention_input, at_norm)
                through[:, -gradient.shape[1] :] += gradient + mlp_input
                gradient = through

    def input_norm(self, normalized: Normalized, gradient: Tensor) -> Tensor:
        """Return `norm` of what attention and MLP read, or the gradient itself without pre-norms."""
        return self.norm(normalized, gradient) if self.decoder.pre_norm else gradient

    def _through_output(self, attention: Attention, activations: LayerTrace, gradient: Tensor) -> Tensor:
        """Return the gradient [r, q, h e] at z, before a post-norm, from that [r, q, d] at the attention's output."""
        if attention.w_o_plain is None or attention.post_norm is None or activations.attention_post is None:
            return linear(gradient, attention.w_o.T)
        return linear(self.norm(activations.attention_post, gradient * attention.post_norm), attention.w_o_plain.T)

    def norm(self, normalized: Normalized, gradient: Tensor) -> Tensor:
        """Return J^T gradient of a norm: r (g - xhat mean(xhat g)), or r g with constant scales; g is already centred.

        Args:
            normalized: the norm's output [..., d].
            gradient: [..., d] at that output.
        """
        if self.rules.constant_norms:
            return gradient * normalized.inverse_scale
        value = normalized.value
        along = torch.linalg.vecdot(value, gradient).unsqueeze(-1) / value.shape[-1]
        return torch.addcmul(gradient, value, along, value=-1).mul_(normalized.inverse_scale)

    def _mlp(self, mlp: MLP, activations: LayerTrace, gradient: Tensor) -> Tensor:
        """Return the gradient [r, q, d] at the MLP's residual input."""
        if mlp.post_norm is not None and activations.mlp_post is not None:
            gradient = self.norm(activations.mlp_post, gradient * mlp.post_norm)
        d_activated = linear(gradient, mlp.w_out.T)
        if mlp.gated:
            d_activated = _scaled(d_activated, self.rules.gate_factor)
            gate, up = activations.hidden.chunk(2, -1)
            d_up = d_activated * apply_activation(self.decoder, gate)
            d_hidden = torch.cat((self._activation(d_activated * up, gate), d_up), -1)
        else:
            d_activated = _scaled(d_activated, self.rules.hidden_factor)
            d_hidden = self._activation(d_activated, activations.hidden)
        return self.input_norm(activations.mlp_input, linear(d_hidden, mlp.w_in.T))

    def _activation(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Return the gradient at the activation's input x; derivatives by the kernels that autograd uses."""
        activation = self.decoder.activation
        if activation is Activation.RELU:
            return torch.ops.aten.threshold_backward(gradient, x, 0)
        if self.rules.secant_activations:
            return secant(self.decoder, x).mul_(gradient)
        if activation is Activation.SILU:
            return torch.ops.aten.silu_backward(gradient, x)
        return torch.ops.aten.gelu_backward(gradient, x, approximate=GELU[activation])

    def _attention(
        self,
        attention: Attention,
        activations: LayerTrace,
        whole: Heads,
        d_z: Tensor,
        rotary: Rotary | None,
    ) -> tuple[HeadGradients, HeadGradients, HeadGradients]:
        """Return gradients at the projections' outputs from the gradient [r, q, h e] at z.

        Args:
            whole: the heads behind their prefix, with keys and values [r, g, o + p, e].
        """
        heads, pattern = activations.heads, activations.pattern
        r, h, queries, e = heads.q.shape
        n_kv, p = heads.k.shape[1], heads.k.shape[2]
        d_z = d_z.view(r, queries, h, e).transpose(1, 2).contiguous()
        d_v = _scaled(pattern[..., -p:].transpose(-1, -2) @ d_z, self.rules.value_factor)
        if self.rules.constant_patterns:
            d_q, d_k = torch.zeros_like(heads.q), torch.zeros_like(d_v)
        else:
            d_pattern = (d_z.view(r, n_kv, -1, e) @ whole.v.transpose(-1, -2)).view_as(pattern)
            d_scores = self._softmax(d_pattern, pattern).mul_(e**-0.5 * self.rules.query_key_factor)
            if self.decoder.attention_cap is not None:
                scores = (heads.q.reshape(r, n_kv, -1, e) @ whole.k.transpose(-1, -2)).view_as(pattern) * e**-0.5
                d_scores *= cap_slope(scores, self.decoder.attention_cap)
            d_q = (d_scores.view(r, n_kv, -1, whole.k.shape[2]) @ whole.k).view(r, h, queries, e)
            d_k = d_scores[..., -p:].transpose(-1, -2) @ heads.q
        b_q, b_k, b_v = attention.b_qkv.split((h * e, n_kv * e, n_kv * e))
        return (
            self._at_projection(d_q, heads.q, heads.q_plain, attention.q_norm, b_q, rotary),
            self._at_projection(d_k, heads.k, heads.k_plain, attention.k_norm, b_k, rotary),
            self._at_projection(d_v, heads.v, None, None, b_v, None),
        )

    def _softmax(self, gradient: Tensor, pattern: Tensor) -> Tensor:
        """Return the gradient at the softmax's input.

        softmax(scores / T) is the pattern to the power 1 / T, normalized.
        """
        if self.rules.temperature != 1:
            pattern = pattern.pow(1 / self.rules.temperature)
            pattern = pattern / pattern.sum(-1, keepdim=True)
        return torch.ops.aten._softmax_backward_data(gradient, pattern, -1, gradient.dtype)

    def _at_projection(
        self,
        gradient: Tensor,
        used: Tensor,
        plain: Tensor | None,
        norm: Tensor | None,
        bias: Tensor,
        rotary: Rotary | None,
    ) -> HeadGradients:
        """Take a gradient [r, h, p, e] at `used` [r, h or g, p, e] back to the projection's output.

        A rotation keeps inner products, so without a query/key norm <gradient, used> is the one at the output too.

        Args:
            plain, norm: the projection's output before a query/key norm and the norm's scale, or None.
            bias: [(h or g) e] of the projection.
        """
        group = gradient.shape[1] // used.shape[1]
        output = gradient if rotary is None else rotary.rotate(gradient, inverse=True)
        if plain is not None and norm is not None:
            plain = plain.repeat_interleave(group, 1)
            output = self._head_norm(plain, norm, output)
        if self.rules.constant_norms or not self.decoder.pre_norm:
            return HeadGradients(output, None)
        if plain is not None:
            product = torch.linalg.vecdot(output, plain)
        else:
            product = torch.linalg.vecdot(gradient, used if group == 1 else used.repeat_interleave(group, 1))
        per_head = bias.view(used.shape[1], -1).repeat_interleave(group, 0)
        return HeadGradients(output, product - (output @ per_head.unsqueeze(-1)).squeeze(-1))

    def _head_norm(self, plain: Tensor, scale: Tensor, gradient: Tensor) -> Tensor:
        """Take a gradient [r, h, p, e] through a query/key norm of `plain`, whose key heads are repeated."""
        normalized = normalize_heads(plain, scale, self.decoder.qk_norm_eps)
        gradient = gradient * head_scale(scale, plain)
        if scale.numel() == plain.shape[-1] or self.rules.constant_norms:
            return self.norm(normalized, gradient)
        along = (normalized.value * gradient).mean((1, 3), keepdim=True)
        return (gradient - normalized.value * along) * normalized.inverse_scale

    def _into_norm(self, attention: Attention, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> Tensor:
        """Return the gradient [r, p, d] at the attention norm's output from those at the projections [r, h, p, e]."""
        n_kv = self.decoder.n_kv_heads
        width = self.decoder.n_heads * self.decoder.d_head
        at_q = _merge_heads(d_q)
        at_kv = torch.cat([_merge_heads(_sum_groups(part, n_kv)) for part in (d_k, d_v)], -1)
        queries = at_q.shape[1]
        if queries == at_kv.shape[1]:
            return linear(torch.cat((at_q, at_kv), -1), attention.w_qkv.T)
        at_norm = linear(at_kv, attention.w_qkv[:, width:].T)
        at_norm[:, -queries:] += linear(at_q, attention.w_qkv[:, :width].T)
        return at_norm


def _scaled(x: Tensor, factor: float) -> Tensor:
    """Multiply a fresh tensor in place; 1 costs nothing."""
    return x if factor == 1 else x.mul_(factor)


def _merge_heads(x: Tensor) -> Tensor:
    """Return [r, h, p, e] as [r, p, h e]."""
    return x.transpose(1, 2).flatten(2)


def _sum_groups(x: Tensor, n_kv: int) -> Tensor:
    """Sum the query heads that share a key/value head: [r, h, p, e] -> [r, g, p, e]."""
    r, h, p, e = x.shape
    return x if h == n_kv else x.view(r, n_kv, h // n_kv, p, e).sum(2)
