"""The exact effect of every edge by activation patching: one edge corrupted at a time.

    score(u->v) = mean over items of  ell(v's input reads z_u(corrupted))  -  ell(clean)

One circuit per edge: slow, and the reference for the gradient methods.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import embed
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.memory import plan_circuit
from knowledge_circuits.engine.metrics import Metric, MetricFunction, losses, read
from knowledge_circuits.engine.prompts import Batch
from knowledge_circuits.engine.runner import CircuitRunner, Reference, circuits_at_once


def exact_effects(
    decoder: Decoder, layout: Layout, batch: Batch, metric: Metric | MetricFunction, budget: float
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield every edge's source, target and effect on the loss, [b]; the budget (bytes) is that of a pass."""
    corrupted, _ = Reference.of_run(decoder, embed(decoder, batch.corrupted), queries=batch.queries)
    clean = embed(decoder, batch.clean)
    edges = layout.real_edges

    def logits_without(*missing: list[int]) -> Tensor:
        membership = edges.expand(max(1, len(missing)), -1, -1).clone()
        for circuit, (source, target) in enumerate(missing):
            membership[circuit, source, target] = False
        circuits = [Graph(layout, torch.zeros(edges.shape), members, decoder.d_model) for members in membership]
        return CircuitRunner(decoder, circuits).logits(clean, corrupted, queries=batch.queries)

    (whole,) = logits_without()
    clean_logits = read(metric, whole)
    baseline = losses(metric, clean_logits, clean_logits, batch.targets)
    fitting, _ = plan_circuit(decoder, batch.clean.shape[1], budget, batch.queries)
    every, count = edges.nonzero().tolist(), circuits_at_once(decoder, batch, fitting)
    for start in range(0, len(every), count):
        chosen = every[start : start + count]
        for (source, target), logits in zip(chosen, logits_without(*chosen), strict=True):
            yield source, target, losses(metric, read(metric, logits), clean_logits, batch.targets) - baseline
