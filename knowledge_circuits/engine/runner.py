"""Run a circuit: every target reads the circuit's edges from this run and all other edges from a reference.

    x_v = x_v(reference) + sum over edges u->v in the circuit of (z_u - z_u(reference))

The reference is the corrupted run (`patching`), zero outputs (`zero`; biases and positional embeddings stay) or mean
outputs (`mean`). Each layer takes one dense product with the membership matrix, whatever the circuit's size. Heads and
MLPs outside the circuit are not run.

Where heads share a norm's scale (a post-norm, or OLMo 2's query/key norm), the scale is that of this run: all heads of
a layer with any head in the circuit are run, each on its own input.

Shapes: b items, p positions, q queries (p, or 1 in the last layer), d d_model, h heads, a heads in the circuit,
g key/value heads, e d_head, n vocabulary, u sources, u' the first few of them, t targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import (
    Prefix,
    Rotary,
    Rotations,
    Trace,
    attend,
    linear,
    logits_of,
    mlp_output,
    normalize,
    normalize_input,
    post_normalize,
    prepare_heads,
)
from knowledge_circuits.engine.graph import Graph


@dataclass(frozen=True)
class Reference:
    """The outputs on edges outside the circuit. Each tensor broadcasts to the shape given.

    Attributes:
        embedded: [b, p, d] in place of the node `input`.
        z: per layer [b, q, h e] in place of the heads' outputs (before w_o, with a post-norm's inverse deviation).
        mlp_outputs: per layer [b, q, d].
    """

    embedded: Tensor
    z: tuple[Tensor, ...]
    mlp_outputs: tuple[Tensor, ...]

    @classmethod
    def of_trace(cls, trace: Trace) -> Reference:
        """Return the outputs of a forward pass (patching)."""
        return cls(
            trace.embedded,
            tuple(layer.z for layer in trace.layers),
            tuple(layer.mlp_output for layer in trace.layers),
        )

    @classmethod
    def zero(cls, decoder: Decoder) -> Reference:
        """Return zero outputs; biases and positional embeddings stay."""
        d, width = decoder.d_model, decoder.n_heads * decoder.d_head
        empty = decoder.embedding.new_zeros
        n = decoder.n_layers
        return cls(empty(1, 1, d), (empty(1, 1, width),) * n, (empty(1, 1, d),) * n)


@dataclass(frozen=True)
class _LayerCircuit:
    """One layer's part of a circuit, on the model's device.

    Attributes:
        heads: [a] the heads in the circuit, or all heads of the layer if they share a norm's scale.
        attention: [1 + u', 3a] membership of edges into their query, key and value inputs, under a row of ones.
        mlp: [1 + u'] the same of edges into the MLP, or None if it is outside the circuit.
        weights: three [a, d, e] and biases: three [a, 1, e] of the heads' projections.
        w_o: [a, e, d].
    """

    heads: Tensor
    attention: Tensor
    mlp: Tensor | None
    weights: tuple[Tensor, Tensor, Tensor]
    biases: tuple[Tensor, Tensor, Tensor]
    w_o: Tensor


class CircuitRunner:
    """A circuit prepared to run in a model's weights.

    Args:
        circuit: a graph of the model's layout.

    Raises:
        ValueError: the graph is of another model shape.
    """

    def __init__(self, decoder: Decoder, circuit: Graph) -> None:
        layout = circuit.layout
        shape = (decoder.n_layers, decoder.n_heads, decoder.parallel)
        if (layout.n_layers, layout.n_heads, layout.parallel) != shape:
            raise ValueError(f"a circuit of {layout} does not fit a model of {shape} (layers, heads, parallel)")
        self.decoder = decoder
        self.layout = layout
        membership = (circuit.in_graph & layout.real_edges).to(decoder.device)
        self._layers = tuple(self._prepare(membership, layer) for layer in range(layout.n_layers))
        self._logits = self._with_base(membership[:, layout.logits_target])
        # Sources that are not run get zero rows: 0 times uninitialized memory might not be 0.
        self._unused_sources = (~membership.any(1)).nonzero().flatten()

    def _with_base(self, membership: Tensor) -> Tensor:
        """Return membership [u', ...] as numbers under a row of ones for the reference's residual: [1 + u', ...]."""
        return torch.cat((torch.ones_like(membership[:1]), membership)).to(self.decoder.dtype)

    def _prepare(self, membership: Tensor, layer: int) -> _LayerCircuit:
        decoder, layout = self.decoder, self.layout
        h, n_kv, e, d = decoder.n_heads, decoder.n_kv_heads, decoder.d_head, decoder.d_model
        attention = decoder.blocks[layer].attention
        in_circuit = membership[layout.head_sources(layer)].any(1)
        if attention.couples_heads and bool(in_circuit.any()):
            in_circuit = torch.ones_like(in_circuit)
        heads = in_circuit.nonzero().flatten()
        into_heads = membership[: layout.attention_reads(layer), layout.head_targets(layer)].view(-1, 3, h)
        split = (h * e, n_kv * e, n_kv * e)
        kv_heads = heads // (h // n_kv)
        weights, biases = [], []
        for weight, bias, chosen in zip(
            attention.w_qkv.split(split, 1), attention.b_qkv.split(split), (heads, kv_heads, kv_heads), strict=True
        ):
            weights.append(weight.view(d, -1, e).transpose(0, 1)[chosen].contiguous())
            biases.append(bias.view(-1, 1, e)[chosen])
        mlp_runs = bool(membership[layout.mlp_source(layer)].any())
        into_mlp = membership[: layout.mlp_reads(layer), layout.mlp_target(layer)]
        return _LayerCircuit(
            heads=heads,
            attention=self._with_base(into_heads[:, :, heads].flatten(1)),
            mlp=self._with_base(into_mlp) if mlp_runs else None,
            weights=(weights[0], weights[1], weights[2]),
            biases=(biases[0], biases[1], biases[2]),
            w_o=attention.w_o.view(h, e, d)[heads],
        )

    def logits(self, embedded: Tensor, reference: Reference, prefix: Prefix | None = None) -> Tensor:
        """Return the circuit's logits [b, n] at the last position; arguments as for `final`."""
        return logits_of(self.decoder, self.final(embedded, reference, prefix))

    def final(self, embedded: Tensor, reference: Reference, prefix: Prefix | None = None) -> Tensor:
        """Run the circuit.

        Args:
            embedded: [b, p, d] token embeddings of the prompts.
            reference: see `Reference`.
            prefix: the positions before, at which run and reference agree (patching only).

        Returns:
            [b, d] the final norm's output at the last position, without scale and shift.
        """
        decoder = self.decoder
        b, p, d = embedded.shape
        offset = prefix.length if prefix else 0
        rotary = Rotations.at(decoder, offset, p)
        base = reference.embedded.expand(b, p, d)
        if decoder.positions is not None:
            base = base + decoder.positions[offset : offset + p]
        run = _Contributions(embedded.new_empty(1 + self.layout.n_sources, b, p, d))
        run.rows[1 + self._unused_sources] = 0
        run.rows[1] = embedded - reference.embedded
        for index, (layer, block) in enumerate(zip(self._layers, decoder.blocks, strict=True)):
            queries = 1 if index == decoder.n_layers - 1 else p
            reference_z = reference.z[index]
            run.rows[0] = base
            if len(layer.heads):
                z = self._attend(layer, index, run, queries, rotary.of(index), prefix)
                run.set_heads(self, index, layer, z, reference_z)
            before = base[:, -queries:]
            after = before + block.attention.b_o + linear(reference_z, block.attention.w_o)
            if layer.mlp is not None:
                run.rows[0, :, -queries:] = before if decoder.parallel else after
                x = run.sum(layer.mlp, queries)
                hidden = linear(normalize_input(x, decoder).value, block.mlp.w_in, block.mlp.b_in)
                output, _ = mlp_output(decoder, block.mlp, hidden)
                mlp = 1 + self.layout.mlp_source(index)
                run.rows[mlp, :, -queries:] = output - reference.mlp_outputs[index]
            base = after + reference.mlp_outputs[index]
        run.rows[0, :, -1:] = base[:, -1:]
        return normalize(run.sum(self._logits, 1)[:, 0], decoder).value

    def _attend(
        self,
        layer: _LayerCircuit,
        index: int,
        run: _Contributions,
        queries: int,
        rotary: Rotary | None,
        prefix: Prefix | None,
    ) -> Tensor:
        """Return z [a, b, q, e] of the circuit's heads of one layer (see `LayerTrace`)."""
        decoder, a = self.decoder, len(layer.heads)
        x = normalize_input(run.sums(layer.attention), decoder).value  # [3a, b, p, d]
        b, d = x.shape[1], x.shape[3]
        parts = []
        for kind, (weight, bias) in enumerate(zip(layer.weights, layer.biases, strict=True)):
            rows = x[kind * a : (kind + 1) * a]
            if kind == 0:
                rows = rows[:, :, -queries:]
            flat = torch.baddbmm(bias, rows.reshape(a, -1, d), weight)
            parts.append(flat.view(a, b, -1, decoder.d_head).transpose(0, 1))
        q, k, v = parts
        attention = decoder.blocks[index].attention
        heads = prepare_heads(decoder, attention, q, k, v, rotary)
        own = _prefix_of_heads(prefix, index, layer.heads // (decoder.n_heads // decoder.n_kv_heads))
        _, z = attend(decoder, heads, own, 0)
        post = post_normalize(z, attention, decoder)
        if post is not None:
            z = z * post.inverse_scale
        return z.view(b, queries, a, decoder.d_head).permute(2, 0, 1, 3)


@dataclass(frozen=True)
class _Contributions:
    """The terms that targets sum: rows [1 + u, b, p, d].

    Row 0 is the reference's residual at the next targets; the others are z_u - z_u(reference) of the sources run so
    far. The last layer's sources are computed, and read, at the last position only.
    """

    rows: Tensor

    @cached_property
    def _flat(self) -> Tensor:
        return self.rows.view(len(self.rows), -1)

    def sums(self, membership: Tensor) -> Tensor:
        """Return the inputs of several targets: membership [1 + u', t] -> [t, b, p, d]."""
        return (membership.T @ self._flat[: len(membership)]).view(-1, *self.rows.shape[1:])

    def sum(self, membership: Tensor, queries: int) -> Tensor:
        """Return the input of one target at the last `queries` positions: membership [1 + u'] -> [b, queries, d]."""
        rows = self.rows[: len(membership), :, -queries:]
        return (membership @ rows.reshape(len(membership), -1)).view(rows.shape[1:])

    def set_heads(
        self, runner: CircuitRunner, index: int, layer: _LayerCircuit, z: Tensor, reference_z: Tensor
    ) -> None:
        """Set the heads' rows: z [a, b, q, e] less the reference's [b, q, h e], times their slices of w_o."""
        a, b, queries, e = z.shape
        reference = reference_z.view(*reference_z.shape[:2], -1, e)[:, :, layer.heads].permute(2, 0, 1, 3)
        outputs = torch.bmm((z - reference).reshape(a, -1, e), layer.w_o).view(a, b, queries, -1)
        start = 1 + runner.layout.head_sources(index).start
        self.rows[start + layer.heads, :, -queries:] = outputs


def _prefix_of_heads(prefix: Prefix | None, layer: int, kv_heads: Tensor) -> Prefix | None:
    """Return one layer's prefix with the given key/value heads, repeated where they repeat."""
    if prefix is None:
        return None
    return Prefix((prefix.keys[layer][:, kv_heads],), (prefix.values[layer][:, kv_heads],))
