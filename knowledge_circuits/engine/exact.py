"""The exact effect of every edge, by corrupting one edge at a time: slow, and the oracle for the gradient methods.

score(u->v) = mean over items of  ell(v's input reads z_u(corrupted))  -  ell(clean)
"""

from __future__ import annotations

import torch
from torch import Tensor

from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import at_least_float32, embed, forward
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.metrics import MetricFunction
from knowledge_circuits.engine.prompts import Batch
from knowledge_circuits.engine.runner import CircuitRunner, Reference


def add_exact_scores(decoder: Decoder, layout: Layout, batch: Batch, metric: MetricFunction, total: Tensor) -> None:
    """Add each edge's exact effect, summed over the batch's items, to total [u, v]."""
    corrupted = Reference.of_trace(forward(decoder, embed(decoder, batch.corrupted)))
    clean = embed(decoder, batch.clean)
    everything = layout.real_edges

    def loss(membership: Tensor, clean_logits: Tensor | None) -> tuple[Tensor, Tensor]:
        circuit = Graph(layout, torch.zeros(membership.shape), membership, decoder.d_model)
        logits = at_least_float32(CircuitRunner(decoder, circuit).logits(clean, corrupted))
        return metric(logits, logits if clean_logits is None else clean_logits, batch.labels).sum(), logits

    baseline, clean_logits = loss(everything, None)
    for source, target in everything.nonzero().tolist():
        membership = everything.clone()
        membership[source, target] = False
        total[source, target] += loss(membership, clean_logits)[0] - baseline
