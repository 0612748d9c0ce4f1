"""Circuit evaluation: faithfulness, standalone performance, and faithfulness over circuit sizes.

    faithfulness = (circuit - corrupted) / (clean - corrupted)

each the mean of a metric, by default the logit difference with the clean item's labels, the circuit run under patching
by default (the paper's section 3.3). Standalone performance runs the circuit under `zero` ablation without a corrupted
prompt: probability and rank (0 is best) of the label's first token. `runner` runs a circuit.

Shapes: b items, p positions, d d_model, n vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import Prefixes, at_least_float32, capped, embed, logits_of, run_layers
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.memory import budget_bytes, plan_circuit, reuse_freed_memory
from knowledge_circuits.engine.metrics import MetricFunction, as_metric, losses, metric_name, pairs_for, read, reported
from knowledge_circuits.engine.options import Intervention, Metric
from knowledge_circuits.engine.prompts import Batch, PromptPairs
from knowledge_circuits.engine.runner import CircuitRunner, Reference, circuits_at_once, shared_runners
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.files import InputError


@dataclass(frozen=True)
class Evaluation:
    """A metric's values for the whole model and a circuit, [b] each, in the pairs' order.

    A difference is positive where the clean label leads, a log probability is the clean answer's. A divergence is the
    loss itself; its clean values are 0, so faithfulness is 1 - circuit / corrupted.
    """

    clean: Tensor
    corrupted: Tensor
    circuit: Tensor

    @property
    def faithfulness(self) -> float | None:
        """(circuit - corrupted) / (clean - corrupted) of the means; None if clean equals corrupted."""
        clean, corrupted, circuit = (float(part.mean()) for part in (self.clean, self.corrupted, self.circuit))
        return None if clean == corrupted else (circuit - corrupted) / (clean - corrupted)


@dataclass(frozen=True)
class Standalone:
    """The clean label's first token under a circuit run alone, in the pairs' order.

    Attributes:
        token_prob: [b] probability.
        token_rank: [b] how many tokens score higher; 0 is best.
    """

    token_prob: Tensor
    token_rank: Tensor

    @property
    def hit_at_10(self) -> float:
        """Share of items whose rank is at most 9."""
        return float((self.token_rank <= 9).double().mean())


def evaluate(
    decoder: Decoder,
    circuits: Sequence[Graph],
    pairs: PromptPairs,
    intervention: Intervention | str = Intervention.PATCHING,
    metric: Metric | str | MetricFunction = Metric.LOGIT_DIFFERENCE,
    batch_size: int = 64,
    memory_gb: float | None = None,
    progress: bool = False,
    together: Sequence[Graph] = (),
) -> list[Evaluation]:
    """Evaluate circuits on the same prompts; the clean and the corrupted run are shared.

    Args:
        circuits: graphs of the model's layout.
        intervention: what replaces the outputs on edges outside the circuit.
        metric: what is measured, for example the metric that the circuit was attributed with; a custom metric takes
            (logits [b, n], clean logits [b, n], labels [b, 2]) -> [b].
        batch_size: most prompts per pass. Results do not depend on it.
        memory_gb: memory for one pass beside the weights; default: a share of what is available.
        progress: show a progress bar.
        together: more circuits. These share passes, which is faster for few prompts; their values then depend on one
            another by rounding, whereas those of `circuits` are the same bits alone or beside others.

    Returns:
        One `Evaluation` per circuit, first of `circuits`, then of `together`.

    Raises:
        InputError: an unknown option, no prompts, a graph of another model, or values that are not finite.
    """
    intervention, metric = Intervention(intervention), as_metric(metric)
    pairs = pairs_for(metric, pairs)
    _check(decoder, pairs)
    passes = _passes(decoder, pairs, batch_size, memory_gb)
    runners = _runners(decoder, circuits, together, passes)
    patching = intervention is Intervention.PATCHING
    outside = None if patching else _outside(decoder, pairs, intervention, batch_size, memory_gb)
    prefixes = Prefixes(decoder)
    results = torch.zeros(2 + len(circuits) + len(together), len(pairs), dtype=torch.float64)
    with torch.inference_mode():
        for batch, positions in _run(decoder, passes, progress, "evaluation"):
            values = torch.stack(_values(decoder, prefixes, runners, batch, positions, metric, outside))
            results[:, batch.index] = values.double().cpu()
    _refuse_infinite(results, metric_name(metric).replace("_", " "), pairs)
    return [Evaluation(results[0], results[1], circuit) for circuit in results[2:]]


def standalone(
    decoder: Decoder,
    circuit: Graph,
    pairs: PromptPairs,
    intervention: Intervention | str = Intervention.ZERO,
    batch_size: int = 64,
    memory_gb: float | None = None,
    progress: bool = False,
) -> Standalone:
    """Run a circuit on the clean prompts alone and measure the clean label's token.

    Args:
        intervention: `zero` (the original's) or a mean.

    Raises:
        InputError: `patching`, which needs the corrupted prompt, or what `evaluate` raises.
    """
    return standalones(decoder, [circuit], pairs, intervention, batch_size, memory_gb, progress)[0]


def standalones(
    decoder: Decoder,
    circuits: Sequence[Graph],
    pairs: PromptPairs,
    intervention: Intervention | str = Intervention.ZERO,
    batch_size: int = 64,
    memory_gb: float | None = None,
    progress: bool = False,
) -> list[Standalone]:
    """Run several circuits on the clean prompts as `standalone` runs one; they share passes (see `evaluate`)."""
    intervention = Intervention(intervention)
    if intervention is Intervention.PATCHING:
        raise InputError("a circuit on its own has no corrupted prompt to patch from; use zero or mean")
    _check(decoder, pairs_for(Metric.LOGIT_DIFFERENCE, pairs))
    passes = _passes(decoder, pairs, batch_size, memory_gb)
    runners = _runners(decoder, (), circuits, passes)
    outside = _outside(decoder, pairs, intervention, batch_size, memory_gb)
    probabilities = torch.zeros(len(circuits), len(pairs), dtype=torch.float64)
    ranks = torch.zeros(len(circuits), len(pairs), dtype=torch.long)
    with torch.inference_mode():
        for batch, positions in _run(decoder, passes, progress, "standalone"):
            reference = _cut(outside, batch)
            clean, label = embed(decoder, batch.clean), batch.labels[:, :1]
            for members, runner in runners:
                together = at_least_float32(runner.logits(clean, reference, positions)[:, :, -1])
                for circuit, logits in zip(members, together, strict=True):
                    probability = logits.softmax(-1).gather(1, label)[:, 0]
                    probabilities[circuit, batch.index] = probability.double().cpu()
                    ranks[circuit, batch.index] = (logits > logits.gather(1, label)).sum(1).cpu()
    _refuse_infinite(probabilities, "probability", pairs)
    return [Standalone(*measured) for measured in zip(probabilities, ranks, strict=True)]


#: Circuit sizes of the MIB benchmark's curve (arXiv 2504.13151), as shares of all edges.
CURVE_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class FaithfulnessCurve:
    """Faithfulness over circuit sizes, with its areas.

    Attributes:
        shares: of all edges, one per circuit, in any order.
        faithfulness: one per circuit.
        edges: each circuit's edges after pruning.
    """

    shares: tuple[float, ...]
    faithfulness: tuple[float, ...]
    edges: tuple[int, ...]

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the area under faithfulness over the share of edges (higher is better).

        MIB takes it from the curve of the signed top-n.
        """
        return self._area(np.asarray(self.faithfulness))

    @property
    def cmd(self) -> float:
        """Circuit-model distance: the area under |1 - faithfulness| over the share of edges (0 is best).

        MIB takes it from the curve of the top-n by |score|.
        """
        return self._area(np.abs(1 - np.asarray(self.faithfulness)))

    def _area(self, values: np.ndarray) -> float:
        """Return the area under one value per circuit, from the smallest share to the largest."""
        shares = np.asarray(self.shares)
        order = shares.argsort(kind="stable")
        return float(np.trapezoid(values[order], shares[order]))


def faithfulness_curve(
    decoder: Decoder,
    scored: Graph,
    pairs: PromptPairs,
    shares: Sequence[float] = CURVE_SHARES,
    absolute: bool = True,
    intervention: Intervention | str = Intervention.PATCHING,
    metric: Metric | str | MetricFunction = Metric.LOGIT_DIFFERENCE,
    batch_size: int = 64,
    memory_gb: float | None = None,
) -> FaithfulnessCurve:
    """Measure the faithfulness of pruned top-n circuits of several sizes, as MIB does: n = int(share x edges).

    Args:
        shares: of all edges, each from 0 to 1, in any order.
        absolute: select edges by |score| (for CMD); False selects by the signed score (for CPR).

    Raises:
        InputError: a share outside [0, 1], or clean and corrupted prompts with the same mean, so that faithfulness is
            undefined.
    """
    for share in shares:
        if not 0 <= share <= 1:
            raise InputError(f"a circuit of the share {share} of all edges; a share is a number from 0 to 1")
    circuits = [prune(top_n(scored, int(share * scored.layout.n_edges), absolute)) for share in shares]
    evaluations = evaluate(decoder, circuits, pairs, intervention, metric, batch_size, memory_gb)
    values = tuple(one.faithfulness for one in evaluations if one.faithfulness is not None)
    if len(values) < len(circuits):
        name = metric_name(as_metric(metric)).replace("_", " ")
        raise InputError(f"clean and corrupted prompts have the same mean {name}, so faithfulness is undefined")
    return FaithfulnessCurve(tuple(shares), values, tuple(circuit.n_edges for circuit in circuits))


def _outside(
    decoder: Decoder, pairs: PromptPairs, intervention: Intervention, batch_size: int, memory_gb: float | None
) -> Reference:
    """Return the outputs on edges outside a circuit that are the same for all prompts: zero or means."""
    if intervention is Intervention.ZERO:
        return Reference.zero(decoder)
    positional = intervention is Intervention.MEAN_POSITIONAL
    return mean_outputs(decoder, pairs, positional, batch_size, memory_gb)


def mean_outputs(
    decoder: Decoder, pairs: PromptPairs, positional: bool, batch_size: int = 64, memory_gb: float | None = None
) -> Reference:
    """Return every source's mean on clean prompts, over all positions [1, 1, ...] or per position [1, p, ...]."""
    longest = pairs.longest
    sums: dict[int, Tensor] = {}
    # bfloat16 counts exactly only to 256.
    wide = torch.promote_types(decoder.dtype, torch.float32)
    counts = torch.zeros(longest, dtype=wide, device=decoder.device)

    def add(index: int, output: Tensor) -> None:
        if index not in sums:
            sums[index] = output.new_zeros(longest, output.shape[-1], dtype=wide)
        sums[index][: output.shape[1]] += output.sum(0, dtype=wide)

    n = decoder.n_layers
    with torch.no_grad():
        for batch, _ in _run(decoder, _passes(decoder, pairs, batch_size, memory_gb), False, "means"):
            embedded = embed(decoder, batch.clean)
            add(0, embedded)
            for index, layer in enumerate(run_layers(decoder, embedded, queries=None)):
                add(1 + index, layer.trace.z)
                add(1 + n + index, layer.trace.mlp_output)
            counts[: embedded.shape[1]] += len(batch.index)
    totals = [total for _, total in sorted(sums.items())]
    if positional:
        means = [(total / counts[:, None].to(total.device))[None] for total in totals]
    else:
        means = [(total.sum(0) / counts.sum().to(total.device))[None, None] for total in totals]
    means = [mean.to(decoder.dtype) for mean in means]
    return Reference.of_means(decoder, means[0], means[1 : 1 + n], means[1 + n :])


def _check(decoder: Decoder, pairs: PromptPairs) -> None:
    if not len(pairs):
        raise InputError("there are no prompts to evaluate")
    pairs.check_fits(decoder.d_vocab, decoder.max_positions)


def _refuse_infinite(values: Tensor, what: str, pairs: PromptPairs) -> None:
    """Raise InputError naming the first item (last dimension) with a value that is not a finite number."""
    if not bool(torch.isfinite(values).all()):
        item = int((~torch.isfinite(values)).nonzero()[:, -1].min())
        raise InputError(f"{pairs.name(item)}: its {what} is not a finite number; a wider --dtype may help")


class _Pass(NamedTuple):
    """Prompts that are run together, on the CPU.

    Attributes:
        positions: how many of their positions a circuit runs at once.
        circuits: how many circuits may run together.
    """

    batch: Batch
    positions: int
    circuits: int


def _passes(decoder: Decoder, pairs: PromptPairs, batch_size: int, memory_gb: float | None) -> list[_Pass]:
    """Divide prompts into passes that fit the memory."""
    budget = budget_bytes(memory_gb, decoder.device)
    passes = []
    for batch in pairs.batches(batch_size):
        items, positions = plan_circuit(decoder, batch.clean.shape[1], budget, batch.queries)
        for part in batch.split(items):
            passes.append(_Pass(part, positions, circuits_at_once(decoder, part, items)))
    return passes


def _runners(
    decoder: Decoder, alone: Sequence[Graph], together: Sequence[Graph], passes: Sequence[_Pass]
) -> list[tuple[list[int], CircuitRunner]]:
    """Return runners of circuits that run alone and of those that share passes, with the circuits' indices."""
    try:
        runners = [([index], CircuitRunner(decoder, [circuit])) for index, circuit in enumerate(alone)]
        for members, runner in shared_runners(decoder, together, min(one.circuits for one in passes)):
            runners.append(([len(alone) + member for member in members], runner))
        return runners
    except ValueError as error:
        raise InputError(f"the graph is of another model: {error}") from None


def _run(decoder: Decoder, passes: Sequence[_Pass], progress: bool, what: str) -> Iterator[tuple[Batch, int]]:
    """Yield each pass's prompts on the model's device, with how many positions a circuit runs at once."""
    reuse_freed_memory()
    with tqdm(total=sum(len(one.batch.index) for one in passes), unit="prompt", disable=not progress, desc=what) as bar:
        for batch, positions, _ in passes:
            yield batch.to(decoder.device), positions
            bar.update(len(batch.index))


def _values(
    decoder: Decoder,
    prefixes: Prefixes,
    runners: Sequence[tuple[list[int], CircuitRunner]],
    batch: Batch,
    positions: int,
    metric: Metric | MetricFunction,
    outside: Reference | None,
) -> list[Tensor]:
    """Return the metric's values [b] of the clean run, the corrupted run and each circuit."""
    items, queries = len(batch.index), batch.queries
    offset = batch.shared_prefix
    shared = prefixes.of(batch.clean[:, :offset])
    embedded = embed(decoder, torch.cat((batch.clean[:, offset:], batch.corrupted[:, offset:])))
    corrupted, normalized = Reference.of_run(
        decoder, embedded, shared.repeat(2) if shared else None, slice(items, None), queries
    )
    if outside is None:
        # The circuit's run equals the corrupted one where the prompts agree, so the shared prefix is left out.
        run = partial(CircuitRunner.final, embedded=embedded[:items], reference=corrupted, prefix=shared)
    else:
        run = partial(CircuitRunner.final, embedded=embed(decoder, batch.clean), reference=_cut(outside, batch))
    circuits: dict[int, Tensor] = {}
    for members, runner in runners:
        circuits |= zip(members, run(runner, positions=positions, queries=queries), strict=True)
    in_order = [output for _, output in sorted(circuits.items())]
    outputs = [read(metric, output) for output in (normalized[:items], normalized[items:], *in_order)]
    if metric is Metric.LOGIT_DIFFERENCE:
        return [_logit_difference(decoder, output, batch.labels) for output in outputs]
    clean_logits = logits_of(decoder, outputs[0])
    return [
        reported(metric, losses(metric, logits_of(decoder, output), clean_logits, batch.targets)) for output in outputs
    ]


def _logit_difference(decoder: Decoder, normalized: Tensor, labels: Tensor) -> Tensor:
    """Return logit[clean label] - logit[corrupted label], [b], of the final norm's output [b, d]."""
    columns = decoder.unembedding.T[labels]  # [b, 2, d]
    biases = decoder.unembedding_bias[labels]
    if decoder.logit_cap is not None:
        logits = capped(torch.linalg.vecdot(normalized[:, None], columns) + biases, decoder.logit_cap)
        return logits[:, 0] - logits[:, 1]
    return torch.linalg.vecdot(normalized, columns[:, 0] - columns[:, 1]) + biases[:, 0] - biases[:, 1]


def _cut(given: Reference, batch: Batch) -> Reference:
    """Return `_outside`'s outputs for a batch's prompts; the last layer's are of the positions that a metric reads."""
    length = batch.clean.shape[1]

    def cut(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return *(part[:, :length] for part in parts[:-1]), parts[-1][:, :length][:, -batch.queries :]

    return Reference(given.embedded[:, :length], cut(given.z), cut(given.attention_outputs), cut(given.mlp_outputs))
