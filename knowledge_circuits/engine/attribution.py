"""Edge attribution (EAP, EAP-IG and their kin) in closed form, exact, without per-head copies of the residual stream.

    score(u->v) = mean over items of sum over positions of <z_u(corrupted) - z_u(clean), g_v>

with g_v the gradient of the loss at v's residual input, averaged over the runs that the method names (`Method`).
(EAP: Syed et al. 2023; EAP-IG: Hanna et al. 2024; the paper's section 3.3.) Per batch:

1. The corrupted run and the m interpolated runs go through as one batch; step m is the clean run itself. Positions
   where clean and corrupted prefixes agree are run once and left out.
2. The differences z_u(corrupted) - z_u(clean) form one matrix D [sources, items x positions x d].
3. `backward` gives the gradients dq_k at every head's projections for every run k. At head h's own residual input the
   gradient is J_k^T W' dq_k, whose sum over runs needs one product with W' instead of m:

       sum_k J_k^T W' dq_k = W' (sum_k r_k dq_k) - (1/d) sum_k xhat_k r_k <dq_k, q_k - b'>

   xhat_k is the input as the norm leaves it, r_k the norm's inverse deviation and J_k its Jacobian in run k, W' and b'
   the projection with the norm's scale and shift folded in, so that q_k = xhat_k W' + b' (docs/engine.md, section 3).

4. A layer's scores are one matrix product of D's first rows with these gradients.

Shapes: b items, p positions, d d_model, h heads, e d_head, u sources, v targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from knowledge_circuits.engine.backward import HeadGradients, backward, norm_backward
from knowledge_circuits.engine.decoder import Attention, Decoder
from knowledge_circuits.engine.exact import add_exact_scores
from knowledge_circuits.engine.forward import (
    Normalized,
    Prefix,
    Substitution,
    Trace,
    at_least_float32,
    embed,
    forward,
    logits_of,
    prefix_of,
)
from knowledge_circuits.engine.graph import Graph, Layout, layout_of
from knowledge_circuits.engine.memory import AttributionPlan, budget_bytes, plan_attribution
from knowledge_circuits.engine.metrics import MetricFunction, metric_function
from knowledge_circuits.engine.options import Method, Metric
from knowledge_circuits.engine.prompts import Batch, PromptPairs
from knowledge_circuits.files import InputError


@dataclass(frozen=True)
class EmbeddingPath:
    """Runs along the straight line from the corrupted (0) to the clean embedding (1).

    Attributes:
        points: k/m for each run; the first is 0 and the last 1.
        weights: how much each run's gradient counts; they add up to 1.
    """

    points: tuple[float, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, method: Method, ig_steps: int, first_step: int) -> EmbeddingPath:
        """The path of a method that interpolates embeddings."""
        if method is Method.EAP:
            return cls((0.0, 1.0), (0.0, 1.0))
        if method is Method.CLEAN_CORRUPTED:
            return cls((0.0, 1.0), (0.5, 0.5))
        points = tuple(k / ig_steps for k in range(ig_steps + 1))
        share = 1 / ig_steps
        return cls(points, (0.0, *[share] * ig_steps) if first_step == 1 else (*[share] * ig_steps, 0.0))

    @property
    def active(self) -> slice:
        """The runs that count, which stand together."""
        counting = [run for run, weight in enumerate(self.weights) if weight]
        return slice(counting[0], counting[-1] + 1)


def attribute(
    decoder: Decoder,
    pairs: PromptPairs,
    method: Method = Method.EAP_IG,
    ig_steps: int = 5,
    first_step: int = 1,
    metric: Metric | MetricFunction = Metric.LOGIT_DIFFERENCE,
    batch_size: int = 64,
    memory_gb: float | None = None,
    progress: bool = False,
) -> Graph:
    """Score every edge of the model's graph on the given prompts.

    Args:
        decoder: the model.
        pairs: clean and corrupted prompts with their labels; for the scores of a single prompt, `pairs.select([i])`.
        method: where gradients are taken.
        ig_steps: m, the steps of integrated gradients (EAP-IG and EAP-IG-activations).
        first_step: 1 for k = 1..m (the paper), 0 for k = 0..m-1 (EAP-IG 2.0).
        metric: the loss; a function of your own takes (logits [b, n], clean logits [b, n], labels [b, 2]) -> [b].
        batch_size: most prompts per pass; memory may make it fewer. Scores do not depend on it.
        memory_gb: what one pass may take beside the weights; found when None.
        progress: show a progress bar.

    Returns:
        A `Graph` with every real edge in it; scores [u, v] on the CPU, float64 for a float64 model, else float32.

    Raises:
        InputError: no prompts, prompts that the model cannot take, or scores that are not finite.
    """
    if not len(pairs):
        raise InputError("there are no prompts to attribute")
    if ig_steps < 1:
        raise InputError(f"integrated gradients takes at least one step, not {ig_steps}")
    if first_step not in (0, 1):
        raise InputError(f"the path starts at step 0 or 1, not {first_step}")
    pairs.check_fits(decoder.d_vocab, decoder.max_positions)
    layout = layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
    total = torch.zeros(layout.n_sources, layout.n_targets, dtype=torch.float64, device=decoder.device)
    score_batch = _batch_scorer(decoder, layout, method, ig_steps, first_step, metric)
    runs = (1 if method is Method.EAP_IG_ACTIVATIONS else 0) + (ig_steps + 1 if method.uses_steps else 2)
    budget = budget_bytes(memory_gb, decoder.device)
    with torch.no_grad(), tqdm(total=len(pairs), unit="prompt", disable=not progress, desc=str(method)) as bar:
        for batch in pairs.batches(batch_size):
            plan = plan_attribution(decoder, layout, batch.clean.shape[1], len(batch.index), runs, budget)
            for part in batch.split(plan.items):
                score_batch(part.to(decoder.device), plan, total)
                bar.update(len(part.index))
    scores = torch.where(layout.real_edges, total.cpu() / len(pairs), 0.0)
    if not bool(torch.isfinite(scores).all()):
        source, target = (~torch.isfinite(scores)).nonzero()[0].tolist()
        raise InputError(f"the score of {layout.sources[source]}->{layout.targets[target]} is not a finite number")
    if decoder.dtype != torch.float64:
        scores = scores.float()
    meta = provenance(pairs, decoder.dtype, method, ig_steps, first_step, metric)
    return Graph(layout, scores, layout.real_edges.clone(), decoder.d_model, meta)


def provenance(
    pairs: PromptPairs,
    dtype: torch.dtype,
    method: Method = Method.EAP_IG,
    ig_steps: int = 5,
    first_step: int = 1,
    metric: Metric | MetricFunction = Metric.LOGIT_DIFFERENCE,
) -> dict[str, Any]:
    """What a graph's meta says of how `attribute` scored it: everything but the weights that its scores depend on."""
    return {
        "method": str(method),
        "ig_steps": ig_steps if method.uses_steps else None,
        "first_step": first_step if method.uses_steps else None,
        "metric": str(metric) if isinstance(metric, Metric) else getattr(metric, "__name__", "custom"),
        "examples": len(pairs),
        "prompts": pairs.digest,
        "dtype": str(dtype).removeprefix("torch."),
    }


_BatchScorer = Callable[[Batch, AttributionPlan, Tensor], None]


def _batch_scorer(
    decoder: Decoder,
    layout: Layout,
    method: Method,
    ig_steps: int,
    first_step: int,
    metric: Metric | MetricFunction,
) -> _BatchScorer:
    """A function that adds one batch's scores (summed over items) to a [u, v] tensor."""
    if method is Method.EXACT:
        function = metric_function(metric)
        return lambda batch, plan, total: add_exact_scores(decoder, layout, batch, function, total)
    path = EmbeddingPath.of(method, ig_steps, first_step)
    if method is Method.EAP_IG_ACTIVATIONS:
        return lambda batch, plan, total: _add_activation_scores(decoder, layout, path, metric, batch, plan, total)
    return lambda batch, plan, total: _add_path_scores(decoder, layout, path, metric, batch, plan, total)


@dataclass(frozen=True)
class _Runs:
    """Runs whose gradients count, rows ordered run by run.

    Attributes:
        trace: their forward pass, [runs x items] rows.
        gradient: [runs x items, 1, d] of the weighted loss at the final residual.
        count: how many runs.
        prefix, substitution: of the forward pass.
    """

    trace: Trace
    gradient: Tensor
    count: int
    prefix: Prefix | None
    substitution: Substitution | None = None


def _add_path_scores(
    decoder: Decoder,
    layout: Layout,
    path: EmbeddingPath,
    metric: Metric | MetricFunction,
    batch: Batch,
    plan: AttributionPlan,
    total: Tensor,
) -> None:
    """Methods that interpolate token embeddings."""
    items, offset = len(batch.index), batch.shared_prefix
    shared = prefix_of(decoder, batch.clean[:, :offset])
    prefix = shared.repeat(len(path.points)) if shared else None
    clean, corrupted = embed(decoder, batch.clean[:, offset:]), embed(decoder, batch.corrupted[:, offset:])
    inner = [torch.lerp(corrupted, clean, point) for point in path.points[1:-1]]
    trace = forward(decoder, torch.cat([corrupted, *inner, clean]), prefix)
    first, last = trace.rows(slice(0, items)), trace.rows(slice(-items, None))
    rows = slice(path.active.start * items, path.active.stop * items)
    active, weights = trace.rows(rows), path.weights[path.active]
    clean_logits = logits_of(decoder, last.final_normalized.value[:, 0]) if _needs_logits(metric) else None
    gradient = _final_gradient(decoder, active, metric, clean_logits, batch.labels, weights)
    runs = _Runs(active, gradient, len(weights), prefix.rows(rows) if prefix else None)
    for sources in plan.source_slices(layout.n_sources):
        differences = output_differences(decoder, layout, first, last, sources)
        _add_scores(decoder, layout, differences, sources, runs, total)


def _add_activation_scores(
    decoder: Decoder,
    layout: Layout,
    path: EmbeddingPath,
    metric: Metric | MetricFunction,
    batch: Batch,
    plan: AttributionPlan,
    total: Tensor,
) -> None:
    """EAP-IG-activations: one clean pass per source group and step, the group's outputs held at constants."""
    items, offset = len(batch.index), batch.shared_prefix
    shared = prefix_of(decoder, batch.clean[:, :offset])
    ids = torch.cat((batch.corrupted[:, offset:], batch.clean[:, offset:]))
    trace = forward(decoder, embed(decoder, ids), shared.repeat(2) if shared else None)
    first, last = trace.rows(slice(0, items)), trace.rows(slice(-items, None))
    clean_logits = logits_of(decoder, last.final_normalized.value[:, 0]) if _needs_logits(metric) else None
    points = path.points[path.active]
    weights = [1 / (len(points) * (2 * decoder.n_layers + 1))] * len(points)
    prefix = shared.repeat(len(points)) if shared else None

    def between(low: Tensor, high: Tensor) -> Tensor:
        """Each run's constants, run by run: [runs x items, ...]."""
        return torch.cat([torch.lerp(low, high, point) for point in points])

    clean_runs = last.embedded.repeat(len(points), 1, 1)
    starts: list[tuple[Tensor, Substitution | None]] = [(between(first.embedded, last.embedded), None)]
    for layer, (low, high) in enumerate(zip(first.layers, last.layers, strict=True)):
        starts.append((clean_runs, Substitution(layer, heads=between(low.z, high.z))))
        starts.append((clean_runs, Substitution(layer, mlp_output=between(low.mlp_output, high.mlp_output))))
    for embedded, substitution in starts:
        active = forward(decoder, embedded, prefix, substitution=substitution)
        gradient = _final_gradient(decoder, active, metric, clean_logits, batch.labels, weights)
        runs = _Runs(active, gradient, len(points), prefix, substitution)
        part = torch.zeros_like(total)
        for sources in plan.source_slices(layout.n_sources):
            differences = output_differences(decoder, layout, first, last, sources)
            _add_scores(decoder, layout, differences, sources, runs, part)
        if substitution is None and decoder.positions is None:
            # As in EAP-IG 2.0, no gradient reaches a target whose whole input is a replaced constant; a learned
            # positional embedding in that input keeps it alive, for it is a parameter.
            part.masked_fill_((layout.real_edges.sum(0) == 1).to(part.device, non_blocking=True), 0)
        total += part


def _needs_logits(metric: Metric | MetricFunction) -> bool:
    return metric is not Metric.LOGIT_DIFFERENCE


def _final_gradient(
    decoder: Decoder,
    trace: Trace,
    metric: Metric | MetricFunction,
    clean_logits: Tensor | None,
    labels: Tensor,
    weights: Sequence[float],
) -> Tensor:
    """Gradient [runs x items, 1, d] of the weighted loss at the final residual of the last position.

    For the logit difference only two columns of the unembedding matter.
    """
    normalized = trace.final_normalized
    runs, items = len(weights), len(labels)
    if clean_logits is None:
        columns = decoder.unembedding.T[labels]  # [b, 2, d]
        parts = [columns[:, 1] - columns[:, 0]] * runs
    else:
        function = metric_function(metric)
        with torch.enable_grad():
            logits = at_least_float32(logits_of(decoder, normalized.value[:, -1])).detach().requires_grad_()
            losses = function(logits, at_least_float32(clean_logits).repeat(runs, 1), labels.repeat(runs, 1))
            if losses.shape != (runs * items,):
                raise InputError(f"a metric gives one number per item; this one gave the shape {tuple(losses.shape)}")
            (at_logits,) = torch.autograd.grad(losses.sum(), logits)
        parts = list((at_logits.to(decoder.dtype) @ decoder.unembedding.T).chunk(runs))
    at_norm = torch.cat([part * weight for part, weight in zip(parts, weights, strict=True)])
    return norm_backward(normalized, at_norm[:, None])


def output_differences(decoder: Decoder, layout: Layout, corrupted: Trace, clean: Trace, sources: slice) -> Tensor:
    """D: z_u(corrupted) - z_u(clean), [sources in the slice, b, p, d].

    The last layer's sources are known, and needed, at the last position only; elsewhere their rows are 0.
    """
    b, p, d = clean.embedded.shape
    out = clean.embedded.new_zeros(sources.stop - sources.start, b, p, d)
    if sources.start == 0:
        out[0] = corrupted.embedded - clean.embedded
    for layer, (low, high) in enumerate(zip(corrupted.layers, clean.layers, strict=True)):
        heads = layout.head_sources(layer)
        start, stop = max(heads.start, sources.start), min(heads.stop, sources.stop)
        queries = high.z.shape[1]
        if start < stop:
            chosen = slice(start - heads.start, stop - heads.start)
            per_head = (low.z - high.z).view(b * queries, decoder.n_heads, decoder.d_head)[:, chosen].transpose(0, 1)
            w_o = decoder.blocks[layer].attention.w_o.view(decoder.n_heads, decoder.d_head, d)[chosen]
            rows = out[start - sources.start : stop - sources.start]
            if queries == p:
                torch.bmm(per_head, w_o, out=rows.view(-1, b * p, d))
            else:
                rows[:, :, -queries:] = (per_head @ w_o).view(-1, b, queries, d)
        mlp = layout.mlp_source(layer)
        if sources.start <= mlp < sources.stop:
            out[mlp - sources.start, :, -queries:] = low.mlp_output - high.mlp_output
    return out


def _add_scores(
    decoder: Decoder, layout: Layout, differences: Tensor, sources: slice, runs: _Runs, total: Tensor
) -> None:
    """Run the backward pass and add D G, layer by layer, to total [u, v], for the given rows of D."""
    at_logits = runs.gradient.unflatten(0, (runs.count, -1)).sum(0)  # [b, 1, d]
    total[sources, layout.logits_target] += differences[:, :, -1].flatten(1) @ at_logits.flatten()
    for layer in backward(decoder, runs.trace, runs.gradient, runs.prefix, runs.substitution):
        index = layer.layer
        count = min(layout.mlp_source(index), sources.stop) - sources.start
        if count <= 0:
            continue
        rows = slice(sources.start, sources.start + count)
        kept = runs.trace.layers[index].attention_input
        attention = decoder.blocks[index].attention
        block = differences[:count]
        mlp = layer.mlp_input.unflatten(0, (runs.count, -1)).sum(0)  # [b, q, d]
        columns = slice(layout.head_targets(index).start, layout.mlp_target(index) + 1)
        if layer.q.output.shape[2] == layer.k.output.shape[2]:
            parts = (layer.q, layer.k, layer.v)
            total[rows, columns] += _layer_scores(decoder, attention, block, parts, kept, runs.count, mlp)
            continue
        # In the last layer queries and MLP exist at the last position only.
        h, start = layout.n_heads, columns.start
        last = Normalized(kept.value[:, -1:], kept.inverse_scale[:, -1:])
        query_and_mlp = _layer_scores(decoder, attention, block[:, :, -1:], (layer.q,), last, runs.count, mlp)
        total[rows, start : start + h] += query_and_mlp[:, :h]
        total[rows, columns.stop - 1] += query_and_mlp[:, h]
        keys_and_values = _layer_scores(decoder, attention, block, (layer.k, layer.v), kept, runs.count, None)
        total[rows, start + h : start + 3 * h] += keys_and_values


def _layer_scores(
    decoder: Decoder,
    attention: Attention,
    differences: Tensor,
    parts: Sequence[HeadGradients],
    normalized: Normalized,
    runs: int,
    mlp: Tensor | None,
) -> Tensor:
    """Scores [n, len(parts) h (+ 1)] of sources' differences [n, b, p, d] on one layer's targets.

    Args:
        parts: some of query, key, value gradients, in that order; the last is always the value's or the only one.
        normalized: the attention's input of all runs.
        mlp: [b, p, d] summed gradient at the MLP's input, or None.
    """
    n, b, p, d = differences.shape
    h, e = decoder.n_heads, decoder.d_head
    inverse = normalized.inverse_scale.view(runs, b, 1, p, 1)
    gradients = differences.new_empty(len(parts) * h + (mlp is not None), b * p, d)
    coefficients = []
    for place, (part, weight) in enumerate(zip(parts, _weights(decoder, attention, parts), strict=True)):
        summed = (part.output.view(runs, b, h, p, e) * inverse).sum(0)
        torch.bmm(summed.transpose(0, 1).reshape(h, b * p, e), weight, out=gradients[place * h : (place + 1) * h])
        coefficients.append(part.projected.view(runs, b, h, p) * inverse.squeeze(-1))
    if mlp is not None:
        gradients[-1] = mlp.reshape(b * p, d)
    scores = differences.reshape(n, -1) @ gradients.view(len(gradients), -1).T
    # The part along xhat: sum over runs and rows of <D, xhat_k> times the coefficient.
    along = torch.bmm(
        differences.reshape(n, b * p, d).transpose(0, 1), normalized.value.reshape(runs, b * p, d).permute(1, 2, 0)
    )  # [b p, n, runs]
    weights = torch.stack(coefficients).view(len(parts), runs, b, h, p).permute(2, 4, 1, 0, 3).reshape(b * p * runs, -1)
    scores[:, : weights.shape[1]] -= along.transpose(0, 1).reshape(n, -1) @ weights / d
    return scores


def _weights(decoder: Decoder, attention: Attention, parts: Sequence[HeadGradients]) -> list[Tensor]:
    """The folded projections transposed, [h, e, d] each, key/value heads repeated per query head."""
    h, k, e = decoder.n_heads, decoder.n_kv_heads, decoder.d_head
    d = attention.w_qkv.shape[0]
    kinds = attention.w_qkv.T.split((h * e, k * e, k * e))
    chosen = {3: kinds, 2: kinds[1:], 1: kinds[:1]}[len(parts)]
    heads = [kind.view(-1, e, d) for kind in chosen]
    return [weight if len(weight) == h else weight.repeat_interleave(h // k, 0) for weight in heads]
