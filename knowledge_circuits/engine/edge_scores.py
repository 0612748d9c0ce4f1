"""Edge scores of one layer's targets: gradients summed over runs, their products with D, and sums over prompts.

The closed form of `attribution`, steps 3 and 4: what all runs of a batch say about a layer's targets is reduced to
`LayerTargets`, whose product with the sources' differences D gives scores per cell (all positions of a batch, one
prompt's, or one position each). `ScoreSums` adds cells up in total, per prompt and per token span.

Shapes: b items, p positions, d d_model, h heads, g key/value heads, e d_head, m runs that count, u sources, v targets,
u' and t some of them, c cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from knowledge_circuits.engine.backward import HeadGradients, LayerGradients
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import Normalized, among_last
from knowledge_circuits.engine.graph import Layout
from knowledge_circuits.engine.products import batched_product, linear
from knowledge_circuits.engine.prompts import Batch, PromptPairs
from knowledge_circuits.files import InputError

#: Per layer the folded query, key and value projections transposed, [h or g, e, d] each.
Projections = tuple[tuple[Tensor, Tensor, Tensor], ...]


@dataclass(frozen=True)
class ScoreSums:
    """Scores summed over prompts.

    Attributes:
        total: [u, v] in float64.
        weights: [rows, items] the weight of each prompt in each row of `by_prompt`.
        by_prompt: [rows, u, v], or None.
        members: [spans, items, p] which positions, counted from the prompt's end, each span has.
        by_span: [spans, u, v], or None.
    """

    total: Tensor
    weights: Tensor | None = None
    by_prompt: Tensor | None = None
    members: Tensor | None = None
    by_span: Tensor | None = None

    @classmethod
    def of(
        cls, decoder: Decoder, layout: Layout, pairs: PromptPairs, per_prompt: bool | Tensor, by_span: bool
    ) -> ScoreSums:
        """Start at zero.

        Raises:
            InputError: weights that are not one column per prompt.
        """
        dtype, device = torch.promote_types(decoder.dtype, torch.float32), decoder.device
        shape = (layout.n_sources, layout.n_targets)
        sums = cls(torch.zeros(shape, dtype=torch.float64, device=device))
        if isinstance(per_prompt, Tensor) or per_prompt:
            weights = per_prompt if isinstance(per_prompt, Tensor) else torch.eye(len(pairs))
            if weights.ndim != 2 or weights.shape[1] != len(pairs):
                raise InputError(f"weights are [rows, {len(pairs)} prompts], not {tuple(weights.shape)}")
            rows = torch.zeros(len(weights), *shape, dtype=dtype, device=device)
            sums = replace(sums, weights=weights.to(device, dtype), by_prompt=rows)
        if by_span:
            members = torch.zeros(len(pairs.span_names), len(pairs), pairs.longest, dtype=decoder.dtype)
            for number, spans in enumerate(pairs.spans):
                offset = pairs.longest - len(pairs.clean[number])
                for name, (start, stop) in spans.items():
                    members[pairs.span_names.index(name), number, offset + start : offset + stop] = 1
            rows = torch.zeros(len(members), *shape, dtype=dtype, device=device)
            sums = replace(sums, members=members.to(device), by_span=rows)
        return sums

    @property
    def whole(self) -> bool:
        """Whether only the total is kept."""
        return self.by_prompt is None and self.by_span is None

    def cells(self, items: int, positions: int) -> int:
        """Return into how many cells a batch's items x positions are divided: one, one per item or per position."""
        if self.by_span is not None:
            return items * positions
        return 1 if self.by_prompt is None else items

    def add(self, batch: Batch, sources: slice, targets: slice, scores: Tensor, start: int = -1) -> None:
        """Add scores [c, u', t] of a batch's cells.

        Args:
            start: the first of the cells' positions, counted from the prompt's end (-1 is the last one).
        """
        self.total[sources, targets] += scores.sum(0)
        if self.whole:
            return
        per_item = scores.unflatten(0, (len(batch.index), -1))  # [b, positions or 1, u', t]
        if self.weights is not None and self.by_prompt is not None:
            weights = self.weights[:, batch.index]
            rows = weights.any(1).nonzero().flatten()
            wide = per_item.sum(1).to(weights.dtype)
            self.by_prompt[rows, sources, targets] += torch.tensordot(weights[rows], wide, 1)
        if self.members is not None and self.by_span is not None:
            first = self.members.shape[2] + start
            members = self.members[:, batch.index, first : first + per_item.shape[1]]
            self.by_span[:, sources, targets] += torch.tensordot(members, per_item, 2)


@dataclass(frozen=True)
class ProjectionGradients:
    """Gradients at one kind of projection, summed over runs.

    Attributes:
        gradient: [b, h, q, e] at its output, times the norm's inverse deviation of each run.
        weight: [h or g, e, d] the projection.
        along: [m, b, h, q] what multiplies xhat_s in the sum, or None.
    """

    gradient: Tensor
    weight: Tensor
    along: Tensor | None


@dataclass(frozen=True)
class LayerTargets:
    """Gradients at some targets of one layer, small enough to be held for all layers.

    Attributes:
        sources: how many first sources these targets read.
        columns: the targets, in adjacent columns each.
        parts: some of query, key and value.
        normalized: [m b, q, d] the attention norm's output in all runs, or None.
        mlp: [b, q, d] the gradient at the MLP's (or the logits') input, or None.
    """

    sources: int
    columns: tuple[slice, ...]
    parts: tuple[ProjectionGradients, ...]
    normalized: Tensor | None
    mlp: Tensor | None

    @property
    def widths(self) -> list[int]:
        return [columns.stop - columns.start for columns in self.columns]

    @property
    def count(self) -> int:
        return sum(self.widths)

    def of_positions(self, part: slice, total: int) -> slice | None:
        """Return which of these targets' positions, all or the last few, are in a part of all; None if none is."""
        own = self.parts[0].gradient.shape[2] if self.mlp is None else self.mlp.shape[1]
        here = among_last(part, total, own)
        return here if here.start < here.stop else None


def projections_of(decoder: Decoder) -> Projections:
    """Return views of the decoder's weights as `Projections`."""
    h, n_kv, e, d = decoder.n_heads, decoder.n_kv_heads, decoder.d_head, decoder.d_model
    layers = []
    for block in decoder.blocks:
        q, k, v = block.attention.w_qkv.T.split((h * e, n_kv * e, n_kv * e))
        layers.append((q.view(h, e, d), k.view(n_kv, e, d), v.view(n_kv, e, d)))
    return tuple(layers)


def layer_targets(
    layout: Layout, projections: Projections, layer: LayerGradients, normalized: Normalized, runs: int
) -> list[LayerTargets]:
    """Return what one layer's scores need; for the last layer apart for the last positions and for all.

    Args:
        layer: the gradients of all runs, run by run.
        normalized: the attention norm's output in all runs.
        runs: m.
    """
    h = layout.n_heads
    query, key, value = (
        _summed(part, weight, normalized, runs)
        for part, weight in zip((layer.q, layer.k, layer.v), projections[layer.layer], strict=True)
    )
    at_mlp = layer.mlp_input.unflatten(0, (runs, -1)).sum(0)
    sources, start = layout.mlp_source(layer.layer), layout.head_targets(layer.layer).start
    mlp = layout.mlp_target(layer.layer)
    if query.gradient.shape[2] == key.gradient.shape[2]:
        parts = query, key, value
        return [LayerTargets(sources, (slice(start, mlp + 1),), parts, normalized.value, at_mlp)]
    # In the last layer queries and MLP exist at the last positions only.
    at_last = slice(start, start + h), slice(mlp, mlp + 1)
    everywhere = slice(start + h, start + 3 * h)
    return [
        LayerTargets(sources, at_last, (query,), normalized.value[:, -query.gradient.shape[2] :], at_mlp),
        LayerTargets(sources, (everywhere,), (key, value), normalized.value, None),
    ]


def _products(differences: Tensor, gradients: Tensor, cells: int) -> Tensor:
    """Return the inner products [c, u', t] of differences [u', b, p, d] and gradients [t, b, p, d] in each cell.

    The b p positions, in order, are divided into c cells of one size: all of them, one item each, or one position each.
    """
    if cells == 1:
        return linear(differences.flatten(1), gradients.flatten(1).T).unsqueeze(0)
    right = differences.reshape(len(differences), cells, -1).permute(1, 2, 0)
    return (gradients.reshape(len(gradients), cells, -1).transpose(0, 1) @ right).transpose(1, 2)


def _summed(part: HeadGradients, weight: Tensor, normalized: Normalized, runs: int) -> ProjectionGradients:
    """Sum gradients [m b, h, q, e] at the outputs of the projection `weight` [h or g, e, d] over the runs."""
    _, h, q, e = part.output.shape
    inverse = normalized.inverse_scale[:, -q:].view(runs, -1, 1, q, 1)
    summed = (part.output.view(runs, -1, h, q, e) * inverse).sum(0)
    along = None if part.projected is None else part.projected.view(runs, -1, h, q) * inverse.squeeze(-1)
    return ProjectionGradients(summed, weight, along)


def layer_scores(differences: Tensor, targets: LayerTargets, positions: slice, cells: int) -> Tensor:
    """Return the scores [c, u', t] of sources' differences [u', b, p, d] on one layer's targets.

    Args:
        positions: the differences' p positions among those of the targets.
    """
    _, b, p, d = differences.shape
    parts, mlp = targets.parts, targets.mlp
    gradients = differences.new_empty(targets.count, b, p, d)
    for index, part in enumerate(parts):
        h, e = part.gradient.shape[1], part.gradient.shape[3]
        # Query heads that share a key/value head are adjacent: its weights need no copies.
        by_group = part.gradient[:, :, positions].transpose(0, 1).reshape(len(part.weight), -1, e)
        rows = gradients[index * h : (index + 1) * h]
        batched_product(by_group, part.weight, rows.view(len(part.weight), -1, d))
    coefficients = [part.along[..., positions] for part in parts if part.along is not None]
    if coefficients and targets.normalized is not None:
        # The part along xhat: at each position [t, m] coefficients times [m, d].
        along = torch.cat(coefficients, 2).to(differences.device).permute(1, 3, 2, 0).flatten(0, 1)
        xhat = targets.normalized.to(differences.device).unflatten(0, (along.shape[2], b))[:, :, positions]
        heads = gradients[: along.shape[1]].view(-1, b * p, d).transpose(0, 1)
        heads.baddbmm_(along, xhat.permute(1, 2, 0, 3).flatten(0, 1), alpha=-1 / d)
    if mlp is not None:
        gradients[-1] = mlp[:, positions]
    return _products(differences, gradients, cells)
