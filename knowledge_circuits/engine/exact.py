"""The exact effect of every edge by activation patching: one edge corrupted at a time.

    score(u->v) = mean over items of  ell(v's input reads z_u(corrupted))  -  ell(clean)

One circuit run per edge: slow, and the reference for the gradient methods.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import embed
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.metrics import Metric, MetricFunction, losses, read
from knowledge_circuits.engine.prompts import Batch
from knowledge_circuits.engine.runner import CircuitRunner, Reference


def exact_effects(
    decoder: Decoder, layout: Layout, batch: Batch, metric: Metric | MetricFunction
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield every edge's source, target and effect on the loss, [b]."""
    corrupted, _ = Reference.of_run(decoder, embed(decoder, batch.corrupted), queries=batch.queries)
    clean = embed(decoder, batch.clean)
    edges = layout.real_edges

    def logits_without(*edge: int) -> Tensor:
        membership = edges.clone()
        if edge:
            membership[edge] = False
        circuit = Graph(layout, torch.zeros(edges.shape), membership, decoder.d_model)
        return read(metric, CircuitRunner(decoder, circuit).logits(clean, corrupted, queries=batch.queries))

    clean_logits = logits_without()
    baseline = losses(metric, clean_logits, clean_logits, batch.targets)
    for source, target in edges.nonzero().tolist():
        yield source, target, losses(metric, logits_without(source, target), clean_logits, batch.targets) - baseline
