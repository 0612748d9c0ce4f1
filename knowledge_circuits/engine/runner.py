"""Run circuits: every target reads a circuit's edges from this run and all other edges from a reference.

    x_v = x_v(reference) + sum over edges u->v in the circuit of (z_u - z_u(reference))

The reference is the corrupted run (`patching`), zero outputs (`zero`; biases and positional embeddings stay) or mean
outputs (`mean`). Each layer takes one dense product with the membership matrix, whatever the circuit's size. Heads and
MLPs outside the circuit are not run.

Several circuits may run together, as if their prompts were one batch: a pass of few rows spends most of its time on
calls. Random circuits, the other sizes of `--floors` and the circuits of `exact` do. What is in any of them is run for
all; where it is not in a circuit, its membership is 0.

Where heads share a norm's scale (a post-norm, or OLMo 2's query/key norm), the scale is that of this run: all heads of
a layer with any head in the circuit are run, each on its own input.

The run's terms are rows of one matrix [1 + u, d] per position: the reference's residual and, for each source that is
run, z_u - z_u(reference). Before a layer norm they are centred, so that the inputs they add up to are: a norm is then
a factor per input, from its length, and is applied behind the projection. Where memory is short, positions are run some
at a time, each part with the keys and values of those before it.

Shapes: c circuits, b items, p positions, q queries (p, or those of a metric in the last layer), n positions of all
items together, d d_model, h heads, a heads that are run, g key/value heads, e d_head, u sources that are run, u' the
first few of them, t targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from knowledge_circuits.engine.decoder import Attention, Decoder
from knowledge_circuits.engine.forward import (
    Heads,
    Prefix,
    Rotary,
    Rotations,
    among_last,
    attend,
    logits_of,
    mlp_output,
    normalize,
    normalize_input,
    post_normalize,
    prepare_heads,
    run_layers,
)
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.memory import workspace
from knowledge_circuits.engine.products import batched_product, linear
from knowledge_circuits.engine.prompts import Batch

#: Bytes of inputs summed and projected at a time on a CPU, so that they stay in its cache.
_BLOCK_BYTES = 8e6
#: The weights of a circuit's heads are copies; where the projections have more bytes, each pass makes them again.
_KEPT_BYTES = 1e9
#: Rows of a pass (circuits x items x positions) up to which circuits run together. On a CPU more gain nothing; on other
#: devices, where a call costs more and a row less, this is an estimate.
_SHARED_ROWS = {"cpu": 512}
_SHARED_ROWS_ELSEWHERE = 4096
#: Share of the sources that are run which circuits that run together need on average, at least.
_NEEDED = 0.75


@dataclass(frozen=True)
class Reference:
    """The outputs on edges outside the circuit. Each tensor broadcasts to the shape given.

    Attributes:
        embedded: [b, p, d] in place of the node `input`.
        z: per layer [b, q, h e] in place of the heads' outputs (before w_o, with a post-norm's inverse deviation).
        attention_outputs: per layer [b, q, d] what the heads and the bias add to the residual stream.
        mlp_outputs: per layer [b, q, d].
    """

    embedded: Tensor
    z: tuple[Tensor, ...]
    attention_outputs: tuple[Tensor, ...]
    mlp_outputs: tuple[Tensor, ...]

    @classmethod
    def of_run(
        cls,
        decoder: Decoder,
        embedded: Tensor,
        prefix: Prefix | None = None,
        rows: slice = slice(None),
        queries: int = 1,
    ) -> tuple[Reference, Tensor]:
        """Run the decoder (patching).

        Args:
            embedded: [r, p, d] token embeddings.
            prefix: the positions before.
            rows: the rows whose outputs are the reference.
            queries: how many last positions a metric reads.

        Returns:
            The reference, and the final norm's output [r, queries, d] of all rows there.
        """
        z, attention_outputs, mlp_outputs, final = [], [], [], embedded
        for layer in run_layers(decoder, embedded, prefix, queries):
            z.append(layer.trace.z[rows])
            attention_outputs.append(layer.attention_output[rows])
            mlp_outputs.append(layer.trace.mlp_output[rows])
            final = layer.after
        reference = cls(embedded[rows], tuple(z), tuple(attention_outputs), tuple(mlp_outputs))
        return reference, normalize(final.to(decoder.device), decoder).value

    @classmethod
    def of_means(
        cls, decoder: Decoder, embedded: Tensor, z: Sequence[Tensor], mlp_outputs: Sequence[Tensor]
    ) -> Reference:
        """Return the reference with given outputs, [1, p or 1, ...] each."""
        attention = [block.attention for block in decoder.blocks]
        outputs = tuple(linear(part, layer.w_o, layer.b_o) for part, layer in zip(z, attention, strict=True))
        return cls(embedded, tuple(z), outputs, tuple(mlp_outputs))

    @classmethod
    def zero(cls, decoder: Decoder) -> Reference:
        """Return zero outputs; biases and positional embeddings stay."""
        d, width = decoder.d_model, decoder.n_heads * decoder.d_head
        biases = tuple(block.attention.b_o[None, None] for block in decoder.blocks)
        z = tuple(bias.new_zeros(1, 1, width) for bias in biases)
        return cls(decoder.embedding.new_zeros(1, 1, d), z, biases, tuple(bias.new_zeros(1, 1, d) for bias in biases))

    def at(self, positions: slice, total: int) -> Reference:
        """Return the reference at some of all positions."""
        if positions.stop - positions.start == total:
            return self

        def cut(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
            # What has one position has the same at all of them, or is of the last one.
            cuts = (among_last(positions, total, part.shape[1]) for part in parts)
            return tuple(part if part.shape[1] == 1 else part[:, cut] for part, cut in zip(parts, cuts, strict=True))

        (embedded,) = cut((self.embedded,))
        return Reference(embedded, cut(self.z), cut(self.attention_outputs), cut(self.mlp_outputs))


@dataclass(frozen=True)
class _Targets:
    """Some inputs of a layer that are read at the same positions.

    Attributes:
        membership: [c, t, 1 + u'] of edges into the heads' inputs, kind by kind, then into the MLP's if it is among
            them, behind a column of ones for the reference's residual.
        weights: [a, d, e] and biases: [a, 1, e] of the heads' projections, one per kind (query, key, value).
    """

    membership: Tensor
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


@dataclass(frozen=True)
class _LayerCircuit:
    """One layer's part of some circuits, on the model's device.

    Attributes:
        heads: [a] the heads in any circuit, or all heads of the layer if they share a norm's scale.
        kv_heads: [a] the key/value heads that they read.
        rows: the heads' rows among the terms.
        everywhere: the inputs read at every position, with the sources that attention reads.
        at_last: those read at the last positions only: in the last layer, queries and MLP.
        own_heads: [c, a] membership of edges from the layer's heads into its MLP; None under parallel attention and
            MLP.
        mlp_row: the MLP's row among the terms, or None if it is outside all circuits.
        w_o: [a, e, d], centred before a layer norm.
    """

    heads: Tensor
    kv_heads: Tensor
    rows: slice
    everywhere: _Targets
    at_last: _Targets | None
    own_heads: Tensor | None
    mlp_row: int | None
    w_o: Tensor


class CircuitRunner:
    """Circuits prepared to run together in a model's weights.

    Args:
        circuits: graphs of the model's layout.

    Raises:
        ValueError: a graph is of another model shape.
    """

    def __init__(self, decoder: Decoder, circuits: Sequence[Graph]) -> None:
        self._runs = torch.stack([_sources_run(decoder, circuit) for circuit in circuits]).any(0)
        self.decoder = decoder
        self.layout = layout = circuits[0].layout
        self._membership = torch.stack([circuit.in_graph & layout.real_edges for circuit in circuits])
        self._n_terms = 1 + int(self._runs.sum())
        self._logits = self._with_base(self._membership[:, :, layout.logits_target, None])
        projections = sum(block.attention.w_qkv.nbytes for block in decoder.blocks)
        self._kept = tuple(self._layers()) if projections < _KEPT_BYTES else None

    def _layers(self) -> Iterable[_LayerCircuit]:
        return map(self._prepare, range(self.layout.n_layers))

    def _rows_before(self, source: int) -> int:
        """Return how many terms there are before a source's."""
        return 1 + int(self._runs[:source].sum())

    def _with_base(self, membership: Tensor) -> Tensor:
        """Return membership [c, sources, t] as numbers behind a column of ones for the residual: [c, t, 1 + u']."""
        chosen = membership[:, self._runs[: membership.shape[1]]]
        rows = torch.cat((torch.ones_like(membership[:, :1]), chosen), 1)
        return rows.transpose(1, 2).to(self.decoder.device, self.decoder.dtype).contiguous()

    def _prepare(self, layer: int) -> _LayerCircuit:
        decoder, layout, membership = self.decoder, self.layout, self._membership
        h, n_kv, e, d = decoder.n_heads, decoder.n_kv_heads, decoder.d_head, decoder.d_model
        attention = decoder.blocks[layer].attention
        sources, reads = layout.head_sources(layer), layout.attention_reads(layer)
        heads = self._runs[sources].nonzero().flatten()
        kv_heads = heads // (h // n_kv)
        split = (h * e, n_kv * e, n_kv * e)
        weights, biases = [], []
        for weight, bias, chosen in zip(
            attention.w_qkv.split(split, 1), attention.b_qkv.split(split), (heads, kv_heads, kv_heads), strict=True
        ):
            weights.append(_chosen(weight.view(d, -1, e).transpose(0, 1), chosen))
            biases.append(_chosen(bias.view(-1, 1, e), chosen))
        into_heads = membership[:, :reads, layout.head_targets(layer)].unflatten(2, (3, h))[..., heads]
        into_mlp = membership[:, :, layout.mlp_target(layer), None]
        mlp = layout.mlp_source(layer)
        mlp_runs = bool(self._runs[mlp])

        def targets(*kinds: int, with_mlp: bool) -> _Targets:
            columns = [into_heads[:, :, kind] for kind in kinds] + [into_mlp[:, :reads]] * with_mlp
            return _Targets(
                self._with_base(torch.cat(columns, 2)),
                tuple(weights[kind] for kind in kinds),
                tuple(biases[kind] for kind in kinds),
            )

        last = layer == layout.n_layers - 1
        w_o = attention.w_o.view(h, e, d)
        first = self._rows_before(sources.start)
        return _LayerCircuit(
            heads=heads.to(w_o.device),
            kv_heads=kv_heads.to(w_o.device),
            rows=slice(first, first + len(heads)),
            everywhere=targets(1, 2, with_mlp=False) if last else targets(0, 1, 2, with_mlp=mlp_runs),
            at_last=targets(0, with_mlp=mlp_runs) if last else None,
            own_heads=None if decoder.parallel else into_mlp[:, sources, 0][:, heads].to(decoder.device, decoder.dtype),
            mlp_row=self._rows_before(mlp) if mlp_runs else None,
            w_o=_chosen(self._centred(w_o), heads),
        )

    def _centred(self, x: Tensor) -> Tensor:
        """Return x [..., d] less its mean before a layer norm, which does not see it, else x."""
        return x - x.mean(-1, keepdim=True) if self.decoder.centred else x

    def logits(self, embedded: Tensor, reference: Reference, positions: int | None = None, queries: int = 1) -> Tensor:
        """Return the circuits' logits [c, b, queries, vocabulary] at the last positions; arguments as for `final`."""
        return logits_of(self.decoder, self.final(embedded, reference, positions=positions, queries=queries))

    def final(
        self,
        embedded: Tensor,
        reference: Reference,
        prefix: Prefix | None = None,
        positions: int | None = None,
        queries: int = 1,
    ) -> Tensor:
        """Run the circuits.

        Args:
            embedded: [b, p, d] token embeddings of the prompts.
            reference: see `Reference`.
            prefix: the positions before, at which run and reference agree (patching only).
            positions: how many of the p positions are run at once; default all. The result does not depend on it.
            queries: how many last positions are read.

        Returns:
            [c, b, queries, d] the final norm's output at the last positions, without scale and shift.
        """
        count, (b, total, _) = len(self._membership), embedded.shape
        if prefix is not None and count > 1:
            prefix = prefix.repeat(count)
        past: dict[int, Prefix] = {}
        finals = []
        for start in range(0, total, positions or total):
            part = slice(start, min(start + (positions or total), total))
            rows = self._run(embedded, reference, prefix, past, part, queries)
            if rows is not None:
                finals.append((self._logits[:, None] @ rows).view(count, b, -1, rows.shape[-1]))
        return normalize(torch.cat(finals, 2), self.decoder).value

    def _run(
        self,
        embedded: Tensor,
        reference: Reference,
        prefix: Prefix | None,
        past: dict[int, Prefix],
        part: slice,
        queries: int,
    ) -> Tensor | None:
        """Run adjacent positions; return the terms [c, b q, 1 + u, d] at the q of them that are read, None without any.

        Where none is read, the last layer's keys and values are all that is needed.

        Args:
            embedded, reference, queries: of the prompts.
            prefix: of the prompts, once for each circuit.
            past: by layer, keys and values of the circuits' heads at all positions before, to which these are added.
            part: the positions.
        """
        decoder, count, total = self.decoder, len(self._membership), embedded.shape[1]
        offset = part.start + (prefix.length if prefix else 0)
        chosen = among_last(part, total, queries)
        read, is_end = chosen.stop - chosen.start, part.stop == total
        embedded, reference = embedded[:, part], reference.at(part, total)
        b, p, d = embedded.shape
        rotary = Rotations.at(decoder, offset, p)
        base = reference.embedded
        if decoder.positions is not None:
            base = base + decoder.positions[offset : offset + p]
        terms = workspace((count, b, p, self._n_terms, d), embedded)
        if bool(self._runs[0]):
            terms[..., 1, :] = self._centred(embedded - reference.embedded)
        for index, (layer, block) in enumerate(zip(self._kept or self._layers(), decoder.blocks, strict=True)):
            here = p if layer.at_last is None else read
            terms[..., 0, :] = self._centred(base)
            rows = terms.flatten(1, 2)
            parts, x = self._read(rows, layer.everywhere)
            if layer.at_last is not None:
                rows = terms[:, :, p - read :].flatten(0, 2).view(count, b * read, self._n_terms, d)
                # Before what is read nothing asks: the keys stand in for the queries.
                query, x = self._read(rows, layer.at_last) if read else (parts[:1], None)
                parts = query + parts
            if len(layer.heads):
                heads = self._heads(layer, index, parts, count * b, rotary.of(index), prefix, past.get(index))
                if not is_end:
                    past[index] = Prefix((heads.k,), (heads.v,))
            if not here:
                return None
            if len(layer.heads):
                z = self._attend(block.attention, heads).view(count, -1, here, len(layer.heads), decoder.d_head)
                outside = reference.z[index].unflatten(-1, (decoder.n_heads, -1))
                if len(layer.heads) < decoder.n_heads:
                    outside = outside[:, :, layer.heads]
                differences = (z - outside).flatten(0, 2).transpose(0, 1)
                batched_product(differences, layer.w_o, rows.flatten(0, 1)[:, layer.rows].transpose(0, 1))
            if x is not None and layer.mlp_row is not None:
                x = x.view(count, b, here, d)
                if layer.own_heads is not None:
                    x += reference.attention_outputs[index].to(x.device)
                    if len(layer.heads):
                        x += (layer.own_heads[:, None, None] @ rows[:, :, layer.rows]).view(x.shape)
                x = x.to(block.device)
                hidden = linear(normalize_input(x, decoder).value, block.mlp.w_in, block.mlp.b_in)
                output, _ = mlp_output(decoder, block.mlp, hidden)
                rows[:, :, layer.mlp_row] = self._centred(output - reference.mlp_outputs[index]).flatten(1, 2)
            for output in (reference.attention_outputs[index], reference.mlp_outputs[index]):
                base = base[:, -here:] + output.to(base.device)
        rows.unflatten(1, (b, read))[..., 0, :] = self._centred(base)
        return rows

    def _read(self, rows: Tensor, targets: _Targets) -> tuple[list[Tensor], Tensor | None]:
        """Sum the inputs of some targets and project the heads'.

        Args:
            rows: [c, n, 1 + u, d] the terms.

        Returns:
            The projections' outputs [a, c n, e], one per kind, and the MLP's input [c, n, d] if it is among the
            targets.
        """
        decoder, membership = self.decoder, targets.membership
        (count, n, _, d), (_, t, before) = rows.shape, membership.shape
        a = len(targets.weights[0])
        heads = a * len(targets.weights)
        parts = [weight.new_empty(a, count, n, decoder.d_head) for weight in targets.weights]
        mlp = rows.new_empty(count, n, d) if t > heads else None
        step = n
        if rows.device.type == "cpu":
            step = min(n, max(1, int(_BLOCK_BYTES // max(1, count * t * d * rows.element_size()))))
        block = rows.new_empty(count * step, t, d)
        for start in range(0, n, step):
            chosen = slice(start, min(start + step, n))
            size = chosen.stop - start
            x = block[: count * size]
            for circuit, inputs in enumerate(x.view(count, size, t, d)):
                torch.bmm(membership[circuit].expand(size, -1, -1), rows[circuit, chosen, :before], out=inputs)
            scale = self._inverse_scale(x[:, :heads]).T.unsqueeze(-1)
            for kind, (weight, bias, part) in enumerate(zip(targets.weights, targets.biases, parts, strict=True)):
                kinds = slice(kind * a, (kind + 1) * a)
                inputs, scales = (one.to(part.device) for one in (x[:, kinds].transpose(0, 1), scale[kinds]))
                product, scales = (one.unflatten(1, (count, size)) for one in (torch.bmm(inputs, weight), scales))
                torch.addcmul(bias[:, None], product, scales, out=part[:, :, chosen])
            if mlp is not None:
                mlp[:, chosen] = x[:, -1].view(count, size, d)
        return [part.flatten(1, 2) for part in parts], mlp

    def _inverse_scale(self, x: Tensor) -> Tensor:
        """Return the norm's inverse deviation [n, t] of centred inputs [n, t, d]; ones without a pre-norm."""
        decoder = self.decoder
        if not decoder.pre_norm:
            return x.new_ones(x.shape[:-1])
        length = torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
        return (length.square() / decoder.d_model + decoder.norm_eps).rsqrt().to(x.dtype)

    def _heads(
        self,
        layer: _LayerCircuit,
        index: int,
        parts: Sequence[Tensor],
        b: int,
        rotary: Rotary | None,
        prefix: Prefix | None,
        past: Prefix | None,
    ) -> Heads:
        """Return queries of these positions, and keys and values of these and all before, of the circuit's heads.

        Args:
            parts: the projections' outputs [a, c n, e].
            b: c b, as many prompts as there are.
            prefix: of the prompts; `past` has it already.
            past: see `_run`.
        """
        decoder = self.decoder
        q, k, v = (part.unflatten(1, (b, -1)).transpose(0, 1) for part in parts)
        if past is None and prefix is not None:
            past = Prefix((prefix.keys[index][:, layer.kv_heads],), (prefix.values[index][:, layer.kv_heads],))
        return prepare_heads(decoder, decoder.blocks[index].attention, q, k, v, rotary).behind(past, 0)

    def _attend(self, attention: Attention, heads: Heads) -> Tensor:
        """Return z [c b, q, a e] of the circuits' heads of one layer (see `LayerTrace`)."""
        _, z = attend(self.decoder, heads)
        post = post_normalize(z, attention, self.decoder)
        return z if post is None else z * post.inverse_scale


def circuits_at_once(decoder: Decoder, batch: Batch, fitting: int) -> int:
    """Return how many circuits may run together on a batch, of whose prompts `fitting` fit the memory at once."""
    rows = _SHARED_ROWS.get(decoder.device.type, _SHARED_ROWS_ELSEWHERE)
    return max(1, min(rows // batch.clean.numel(), fitting // len(batch.index)))


def shared_runners(decoder: Decoder, circuits: Sequence[Graph], most: int) -> list[tuple[list[int], CircuitRunner]]:
    """Return runners of all circuits, each of at most `most` that need nearly the same sources, with their indices."""
    runs = [_sources_run(decoder, circuit) for circuit in circuits]
    groups: list[list[int]] = []
    for index in sorted(range(len(circuits)), key=lambda index: int(runs[index].sum())):
        if groups and len(groups[-1]) < most:
            together = torch.stack([runs[member] for member in (*groups[-1], index)])
            if together.sum() >= _NEEDED * len(together) * together.any(0).sum():
                groups[-1].append(index)
                continue
        groups.append([index])
    return [(group, CircuitRunner(decoder, [circuits[index] for index in group])) for group in groups]


def _sources_run(decoder: Decoder, circuit: Graph) -> Tensor:
    """Return which sources a circuit runs, [sources].

    Raises:
        ValueError: the circuit is of another model shape.
    """
    layout = circuit.layout
    shape = (decoder.n_layers, decoder.n_heads, decoder.parallel)
    if (layout.n_layers, layout.n_heads, layout.parallel) != shape:
        raise ValueError(f"a circuit of {layout} does not fit a model of {shape} (layers, heads, parallel)")
    runs = (circuit.in_graph & layout.real_edges).any(1)
    for layer, block in enumerate(decoder.blocks):
        heads = layout.head_sources(layer)
        if block.attention.couples_heads and bool(runs[heads].any()):
            runs[heads] = True
    return runs


def _chosen(x: Tensor, heads: Tensor) -> Tensor:
    """Return some heads of x [heads, ...]; all of them without a copy."""
    if len(heads) == len(x) and torch.equal(heads, torch.arange(len(x))):
        return x
    return x[heads.to(x.device)]
