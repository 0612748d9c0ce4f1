"""Edge attribution (EAP, EAP-IG and variants) in closed form, without per-head copies of the residual stream.

    score(u->v) = mean over items of sum over positions of <z_u(corrupted) - z_u(clean), g_v>

with g_v the gradient of the loss at v's residual input, averaged over the runs that the method names (`Method`).
(EAP: Syed et al. 2023; EAP-IG: Hanna et al. 2024; the paper's section 3.3.) Per batch:

1. The corrupted run and the m interpolated runs go through as one batch; step m is the clean run itself. Positions
   where clean and corrupted prefixes agree are run once and left out.
2. The differences z_u(corrupted) - z_u(clean) form one matrix D [sources, items x positions x d].
3. `backward` gives the gradients dq_s at every head's projections for every run s. At head h's own residual input the
   gradient is J_s^T W' dq_s, whose sum over runs needs one product with W' instead of m:

       sum_s J_s^T W' dq_s = W' (sum_s r_s dq_s) - (1/d) sum_s xhat_s r_s <dq_s, q_s - b'>

   xhat_s is the input as the norm leaves it, r_s the norm's inverse deviation and J_s its Jacobian in run s, W' and b'
   the projection with the norm's scale and shift folded in, so that q_s = xhat_s W' + b' (docs/engine.md, section 3).
   Rules that hold norm scales constant (GIM, RelP) drop the second term.
4. A layer's scores are one matrix product of D's first rows with these gradients (`edge_scores`). With `per_prompt` or
   `by_span` the product is taken per prompt or per position instead (a *cell*), and cells are summed into rows.

Shapes: b items, p positions, d d_model, h heads, g key/value heads, e d_head, m runs that count, u sources, v targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from knowledge_circuits.engine.backward import SECANT_STABILIZER, Backward, BackwardRules
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.edge_scores import (
    LayerTargets,
    Projections,
    ScoreSums,
    layer_scores,
    layer_targets,
    projections_of,
)
from knowledge_circuits.engine.exact import exact_effects
from knowledge_circuits.engine.forward import (
    Prefix,
    Prefixes,
    Substitution,
    Trace,
    among_last,
    at_least_float32,
    cap_slope,
    embed,
    forward,
    logits_of,
)
from knowledge_circuits.engine.graph import Graph, Layout, layout_of
from knowledge_circuits.engine.memory import (
    AttributionPlan,
    budget_bytes,
    plan_attribution,
    reuse_freed_memory,
    workspace,
)
from knowledge_circuits.engine.metrics import MetricFunction, as_metric, losses, metric_name, pairs_for, read
from knowledge_circuits.engine.options import GradientRule, Method, Metric
from knowledge_circuits.engine.products import batched_product
from knowledge_circuits.engine.prompts import Batch, PromptPairs
from knowledge_circuits.files import InputError


@dataclass(frozen=True)
class EmbeddingPath:
    """Runs along the straight line from the corrupted (0) to the clean embedding (1).

    Attributes:
        points: s/m for each run; the first is 0 and the last 1.
        weights: the weight of each run's gradient; they add up to 1.
    """

    points: tuple[float, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, method: Method, ig_steps: int, first_step: int) -> EmbeddingPath:
        """Return the path of a method that interpolates embeddings."""
        if method is Method.EAP:
            return cls((0.0, 1.0), (0.0, 1.0))
        if method is Method.CLEAN_CORRUPTED:
            return cls((0.0, 1.0), (0.5, 0.5))
        points = tuple(step / ig_steps for step in range(ig_steps + 1))
        share = 1 / ig_steps
        return cls(points, (0.0, *[share] * ig_steps) if first_step == 1 else (*[share] * ig_steps, 0.0))

    @property
    def active(self) -> slice:
        """The runs whose gradient counts, which are adjacent."""
        counting = [run for run, weight in enumerate(self.weights) if weight]
        return slice(counting[0], counting[-1] + 1)


def attribute(
    decoder: Decoder,
    pairs: PromptPairs,
    method: Method | str = Method.EAP_IG,
    ig_steps: int = 5,
    first_step: int = 1,
    metric: Metric | str | MetricFunction = Metric.LOGIT_DIFFERENCE,
    gradient: GradientRule | str | BackwardRules = GradientRule.STANDARD,
    batch_size: int = 64,
    memory_gb: float | None = None,
    progress: bool = False,
    per_prompt: bool | Tensor = False,
    by_span: bool = False,
) -> Graph:
    """Score every edge of the model's graph on the given prompts.

    Args:
        pairs: clean and corrupted prompts with their labels; `answer_log_probability` needs their whole answers.
        method: where gradients are taken.
        ig_steps: m, the steps of integrated gradients (EAP-IG and EAP-IG-activations).
        first_step: 1 for steps 1..m (the paper), 0 for steps 0..m-1 (EAP-IG 2.0).
        metric: the loss; a custom metric takes (logits [b, n], clean logits [b, n], labels [b, 2]) -> [b] and is
            differentiable in the first.
        gradient: the rule of the backward pass, orthogonal to the method, or `BackwardRules` of one's own. EAP under
            `gim` takes one gradient pass; in docs/methods.md its CMD is EAP-IG's or lower within the spread, its CPR
            lower on two of five tasks. The default is the paper's.
        batch_size: most prompts per pass; memory may make it fewer. Scores do not depend on it.
        memory_gb: memory for one pass beside the weights; default: a share of what is available.
        progress: show a progress bar.
        per_prompt: also keep each prompt's scores (`Graph.prompt_scores` [items, u, v]), or, where memory does not
            allow that, sums of them with the given weights [rows, items] (`stability.Resampling.weights`).
        by_span: also keep the scores per token span (`Graph.span_scores` [spans, u, v], which add up to the scores);
            the pairs name the spans. An edge stays within a position, except into keys and values: these are counted
            at the source's position.

    Returns:
        A `Graph` with every edge in it; scores [u, v] on the CPU, float64 for a float64 model, else float32.

    Raises:
        InputError: an unknown option, `by_span` without spans or with `exact`, no prompts, prompts that the model or
            the metric cannot take, a custom metric without gradient (except with `exact`), or scores that are not
            finite.
    """
    method, metric, rules = Method(method), as_metric(metric), BackwardRules.of(gradient)
    if not len(pairs):
        raise InputError("there are no prompts to attribute")
    if ig_steps < 1:
        raise InputError(f"integrated gradients takes at least one step, not {ig_steps}")
    if first_step not in (0, 1):
        raise InputError(f"the path starts at step 0 or 1, not {first_step}")
    if method is Method.EXACT and rules != BackwardRules():
        raise InputError("the method exact takes no gradient, so it has no gradient rule; leave `gradient` at standard")
    if rules.secant_activations:
        decoder = replace(decoder, activation_stabilizer=SECANT_STABILIZER)
    pairs = pairs_for(metric, pairs)
    pairs.check_fits(decoder.d_vocab, decoder.max_positions)
    layout = layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
    path = EmbeddingPath.of(method, ig_steps, first_step)
    budget = budget_bytes(memory_gb, decoder.device)
    attribution = _Attribution(decoder, layout, method, path, metric, Backward(decoder, rules), budget)
    if by_span and (method is Method.EXACT or not pairs.spans):
        raise InputError("scores by span need pairs with `spans` and a method other than exact")
    sums = ScoreSums.of(decoder, layout, pairs, per_prompt, by_span)
    reuse_freed_memory()
    with torch.no_grad(), tqdm(total=len(pairs), unit="prompt", disable=not progress, desc=str(method)) as bar:
        for batch in pairs.batches(batch_size):
            positions = batch.clean.shape[1]
            cells = 0 if sums.whole else sums.cells(1, positions)
            size = positions, len(batch.index), len(path.points)
            plan = plan_attribution(decoder, layout, *size, budget, cells, batch.queries)
            for part in batch.split(plan.items):
                attribution.add(part.to(decoder.device), plan, sums)
                bar.update(len(part.index))
    scores = torch.where(layout.real_edges, sums.total.cpu() / len(pairs), 0.0)
    if not bool(torch.isfinite(scores).all()):
        source, target = (~torch.isfinite(scores)).nonzero()[0].tolist()
        raise InputError(f"the score of {layout.sources[source]}->{layout.targets[target]} is not a finite number")
    if decoder.dtype != torch.float64:
        scores = scores.float()
    return Graph(
        layout,
        scores,
        layout.real_edges.clone(),
        decoder.d_model,
        provenance(pairs, decoder.dtype, method, ig_steps, first_step, metric, rules),
        prompt_scores=None if sums.by_prompt is None else sums.by_prompt.cpu().mul_(layout.real_edges),
        span_scores=None if sums.by_span is None else sums.by_span.cpu().mul_(layout.real_edges).div_(len(pairs)),
        spans=pairs.span_names if by_span else (),
    )


def provenance(
    pairs: PromptPairs,
    dtype: torch.dtype,
    method: Method | str = Method.EAP_IG,
    ig_steps: int = 5,
    first_step: int = 1,
    metric: Metric | str | MetricFunction = Metric.LOGIT_DIFFERENCE,
    gradient: GradientRule | str | BackwardRules = GradientRule.STANDARD,
) -> dict[str, Any]:
    """Return what `attribute` writes into a graph's meta: everything but the weights that its scores depend on.

    The gradient rule is stated only if it is not the standard one, so that older graphs compare equal.
    """
    method, metric, rules = Method(method), as_metric(metric), BackwardRules.of(gradient)
    return {
        "method": str(method),
        "ig_steps": ig_steps if method.uses_steps else None,
        "first_step": first_step if method.uses_steps else None,
        "metric": metric_name(metric),
        "examples": len(pairs),
        "prompts": pairs_for(metric, pairs).digest,
        "dtype": str(dtype).removeprefix("torch."),
        **({} if rules == BackwardRules() else {"gradient": rules.description}),
    }


@dataclass(frozen=True)
class _Runs:
    """Runs whose gradients count; rows are ordered run by run.

    Attributes:
        trace: their forward pass, [m b] rows.
        gradient: [m b, q, d] of the weighted loss at the final residual.
        count: m.
        prefix, substitution: the forward pass's.
        constant_input: the node `input` is a constant, so a target that reads nothing else has no gradient.
    """

    trace: Trace
    gradient: Tensor
    count: int
    prefix: Prefix | None
    substitution: Substitution | None = None
    constant_input: bool = False


@dataclass(frozen=True)
class _Outputs:
    """The outputs of every source in one run.

    Attributes:
        embedded: [b, p, d].
        z: per layer [b, q, h e] the heads' outputs before w_o.
        mlp_outputs: per layer [b, q, d].
        final: [b, q, d] the final norm's output at the last positions.
    """

    embedded: Tensor
    z: tuple[Tensor, ...]
    mlp_outputs: tuple[Tensor, ...]
    final: Tensor

    @classmethod
    def of(cls, trace: Trace, rows: slice) -> _Outputs:
        """Return the outputs of some rows of a forward pass."""
        return cls(
            trace.embedded[rows],
            tuple(layer.z[rows] for layer in trace.layers),
            tuple(layer.mlp_output[rows] for layer in trace.layers),
            trace.final_normalized.value[rows],
        )


class _Differences:
    """D, some positions at a time; held if it is one part, else computed for each pass over it.

    Args:
        positions: of D at once.
    """

    def __init__(self, attribution: _Attribution, corrupted: _Outputs, clean: _Outputs, positions: int) -> None:
        total = clean.embedded.shape[1]
        self._parts = [slice(start, min(start + positions, total)) for start in range(0, total, positions)]
        self._of = partial(attribution.differences, corrupted, clean)
        self._whole = self._of(self._parts[0]) if len(self._parts) == 1 else None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for part in self._parts:
            yield part, self._of(part) if self._whole is None else self._whole


def _replaced_groups(
    corrupted: _Outputs, clean: _Outputs, points: Sequence[float]
) -> Iterator[tuple[Tensor, Substitution | None]]:
    """Yield for each source group the embeddings and constants of the runs that interpolate it, run by run."""

    def between(low: Tensor, high: Tensor) -> Tensor:
        return torch.cat([torch.lerp(low, high, point) for point in points])

    yield between(corrupted.embedded, clean.embedded), None
    embedded = clean.embedded.repeat(len(points), 1, 1)
    for layer, (low, high) in enumerate(zip(corrupted.z, clean.z, strict=True)):
        yield embedded, Substitution(layer, heads=between(low, high))
        outputs = between(corrupted.mlp_outputs[layer], clean.mlp_outputs[layer])
        yield embedded, Substitution(layer, mlp_output=outputs)


@dataclass(frozen=True)
class _Attribution:
    """Everything that is the same for all batches of one call of `attribute`."""

    decoder: Decoder
    layout: Layout
    method: Method
    path: EmbeddingPath
    metric: Metric | MetricFunction
    backward: Backward
    budget: float

    @cached_property
    def _prefixes(self) -> Prefixes:
        return Prefixes(self.decoder)

    @cached_property
    def _projections(self) -> Projections:
        return projections_of(self.decoder)

    @cached_property
    def _input_only(self) -> Tensor:
        """Which targets read nothing but the node `input`, [v]."""
        return (self.layout.real_edges.sum(0) == 1).to(self.decoder.device)

    def add(self, batch: Batch, plan: AttributionPlan, sums: ScoreSums) -> None:
        """Add a batch's scores."""
        if self.method is Method.EXACT:
            for source, target, effects in exact_effects(self.decoder, self.layout, batch, self.metric, self.budget):
                edge = slice(source, source + 1), slice(target, target + 1)
                sums.add(batch, *edge, effects[:, None, None])
        elif self.method is Method.EAP_IG_ACTIVATIONS:
            self._add_activation_path(batch, plan, sums)
        else:
            self._add_embedding_path(batch, plan, sums)

    def _add_embedding_path(self, batch: Batch, plan: AttributionPlan, sums: ScoreSums) -> None:
        """Methods that interpolate token embeddings."""
        decoder, path = self.decoder, self.path
        items, offset = len(batch.index), batch.shared_prefix
        shared = self._prefixes.of(batch.clean[:, :offset])
        clean, corrupted = embed(decoder, batch.clean[:, offset:]), embed(decoder, batch.corrupted[:, offset:])

        def run(points: Sequence[float]) -> tuple[Trace, Prefix | None]:
            embedded = torch.cat([torch.lerp(corrupted, clean, point) for point in points])
            prefix = shared.repeat(len(points)) if shared else None
            return forward(decoder, embedded, prefix, batch.queries), prefix

        at_once = plan.runs >= len(path.points)
        trace, prefix = run(path.points if at_once else (0.0, 1.0))
        ends = _Outputs.of(trace, slice(0, items)), _Outputs.of(trace, slice(-items, None))
        differences, clean_logits = _Differences(self, *ends, plan.positions), self._clean_logits(ends[1])
        points, weights = path.points[path.active], path.weights[path.active]
        if at_once:
            rows = slice(path.active.start * items, path.active.stop * items)
            trace, prefix = trace.rows(rows), prefix.rows(rows) if prefix else None
            self._add_runs(batch, differences, self._runs(trace, prefix, clean_logits, batch.targets, weights), sums)
            return
        del trace, prefix
        for start in range(0, len(points), plan.runs):
            part = slice(start, start + plan.runs)
            runs = self._runs(*run(points[part]), clean_logits, batch.targets, weights[part])
            self._add_runs(batch, differences, runs, sums)
            del runs

    def _add_activation_path(self, batch: Batch, plan: AttributionPlan, sums: ScoreSums) -> None:
        """EAP-IG-activations: one clean pass per source group and step, the group's outputs held at constants."""
        decoder = self.decoder
        items, offset = len(batch.index), batch.shared_prefix
        shared = self._prefixes.of(batch.clean[:, :offset])
        ids = torch.cat((batch.corrupted[:, offset:], batch.clean[:, offset:]))
        trace = forward(decoder, embed(decoder, ids), shared.repeat(2) if shared else None, batch.queries)
        first, last = _Outputs.of(trace, slice(0, items)), _Outputs.of(trace, slice(items, None))
        del trace
        differences, clean_logits = _Differences(self, first, last, plan.positions), self._clean_logits(last)
        points = self.path.points[self.path.active]
        weight = 1 / (len(points) * (2 * decoder.n_layers + 1))
        for start in range(0, len(points), plan.runs):
            chosen = points[start : start + plan.runs]
            prefix = shared.repeat(len(chosen)) if shared else None
            for embedded, substitution in _replaced_groups(first, last, chosen):
                trace = forward(decoder, embedded, prefix, batch.queries, substitution)
                runs = self._runs(trace, prefix, clean_logits, batch.targets, [weight] * len(chosen), substitution)
                self._add_runs(batch, differences, runs, sums)
                del trace, runs

    def _clean_logits(self, clean: _Outputs) -> Tensor | None:
        """Return the clean run's logits [b, n] if the metric reads them."""
        if self.metric in (Metric.LOGIT_DIFFERENCE, Metric.ANSWER_LOG_PROBABILITY):
            return None
        return logits_of(self.decoder, read(self.metric, clean.final))

    def _runs(
        self,
        trace: Trace,
        prefix: Prefix | None,
        clean_logits: Tensor | None,
        targets: Tensor,
        weights: Sequence[float],
        substitution: Substitution | None = None,
    ) -> _Runs:
        """Return runs whose gradients count, with the gradient that each starts from."""
        gradient = self._final_gradient(trace, clean_logits, targets, weights)
        # A learned positional embedding is a parameter: it keeps the gradient of a target without sources alive.
        constant_input = (
            self.method is Method.EAP_IG_ACTIVATIONS and substitution is None and self.decoder.positions is None
        )
        return _Runs(trace, gradient, len(weights), prefix, substitution, constant_input)

    def _final_gradient(
        self, trace: Trace, clean_logits: Tensor | None, targets: Tensor, weights: Sequence[float]
    ) -> Tensor:
        """Return the gradient [m b, q, d] of the weighted loss at the final residual of the positions that are read.

        For the logit difference only two columns of the unembedding matter.
        """
        decoder, normalized, runs = self.decoder, trace.final_normalized, len(weights)
        if self.metric is Metric.LOGIT_DIFFERENCE:
            columns = decoder.unembedding.T[targets]  # [b, 2, d]
            if decoder.logit_cap is None:
                parts = [columns[:, 1] - columns[:, 0]] * runs
            else:
                parts = [self._capped_difference(columns, targets, value) for value in normalized.value.chunk(runs)]
        else:
            with torch.enable_grad():
                final = read(self.metric, normalized.value)
                logits = at_least_float32(logits_of(decoder, final)).detach().requires_grad_()
                clean = logits.detach() if clean_logits is None else clean_logits.repeat(runs, 1)
                values = losses(self.metric, logits, clean, targets.repeat(runs, 1))
                if not values.requires_grad:
                    raise InputError(
                        f"the metric {metric_name(self.metric)!r} has no gradient with respect to the logits, which"
                        f" {self.method} needs; give a differentiable one (without argmax or detach), or use the method"
                        f" {Method.EXACT}"
                    )
                (at_logits,) = torch.autograd.grad(values.sum(), logits)
            if decoder.logit_cap is not None:
                at_logits = at_logits * (1 - (logits.detach() / decoder.logit_cap).square())
            parts = list((at_logits.to(decoder.dtype) @ decoder.unembedding.T).chunk(runs))
        at_norm = torch.cat([part * weight for part, weight in zip(parts, weights, strict=True)])
        return self.backward.norm(normalized, at_norm.view_as(normalized.value))

    def _capped_difference(self, columns: Tensor, labels: Tensor, normalized: Tensor) -> Tensor:
        """Return the logit difference's gradient [b, d] at the final norm's output [b, 1, d] under a soft cap.

        Args:
            columns: [b, 2, d] the labels' columns of the unembedding.
        """
        assert self.decoder.logit_cap is not None
        logits = (columns @ normalized[:, -1, :, None])[..., 0] + self.decoder.unembedding_bias[labels]
        slopes = cap_slope(logits, self.decoder.logit_cap)[..., None]
        return (columns * slopes)[:, 1] - (columns * slopes)[:, 0]

    def differences(self, corrupted: _Outputs, clean: _Outputs, positions: slice) -> Tensor:
        """Return D: z_u(corrupted) - z_u(clean) at some positions, [u, b, p', d].

        The last layer's sources are computed, and read, at the last positions only; elsewhere their rows are 0.
        """
        decoder, layout = self.decoder, self.layout
        b, p, d = clean.embedded.shape
        count = positions.stop - positions.start
        out = workspace((layout.n_sources, b, count, d), clean.embedded)
        out[layout.head_sources(decoder.n_layers - 1).start :] = 0
        out[0] = (corrupted.embedded - clean.embedded)[:, positions]
        for layer, block in enumerate(decoder.blocks):
            low, high = corrupted.z[layer], clean.z[layer]
            chosen = among_last(positions, p, high.shape[1])
            queries = chosen.stop - chosen.start
            if not queries:
                continue
            per_head = (low - high)[:, chosen].reshape(b * queries, decoder.n_heads, decoder.d_head).transpose(0, 1)
            w_o = block.attention.w_o.view(decoder.n_heads, decoder.d_head, d)
            rows = out[layout.head_sources(layer)]
            if queries == count:
                batched_product(per_head, w_o, rows.view(-1, b * queries, d))
            else:
                rows[:, :, -queries:] = (per_head @ w_o).view(-1, b, queries, d)
            difference = corrupted.mlp_outputs[layer] - clean.mlp_outputs[layer]
            out[layout.mlp_source(layer), :, -queries:] = difference[:, chosen]
        return out

    def _add_runs(self, batch: Batch, differences: _Differences, runs: _Runs, sums: ScoreSums) -> None:
        """Run the backward pass and add D G, layer by layer and some positions at a time."""
        layout = self.layout
        positions, gradient = runs.trace.embedded.shape[1], runs.gradient.unflatten(0, (runs.count, -1)).sum(0)
        logits = slice(layout.logits_target, layout.logits_target + 1)
        at_logits = LayerTargets(layout.n_sources, (logits,), (), None, gradient)
        everything = [at_logits]
        for layer in self.backward.layers(runs.trace, runs.gradient, runs.prefix, runs.substitution):
            normalized = runs.trace.layers[layer.layer].attention_input
            everything += layer_targets(layout, self._projections, layer, normalized, runs.count)
        for part, rows in differences:
            for targets in everything:
                chosen = targets.of_positions(part, positions)
                if chosen is None:
                    continue
                count = chosen.stop - chosen.start
                cells = sums.cells(len(gradient), count)
                scores = layer_scores(rows[: targets.sources, :, -count:], targets, chosen, cells)
                for columns, here in zip(targets.columns, scores.split(targets.widths, 2), strict=True):
                    if runs.constant_input:
                        here.masked_fill_(self._input_only[columns], 0)
                    sums.add(batch, slice(0, targets.sources), columns, here, part.stop - count - positions)
