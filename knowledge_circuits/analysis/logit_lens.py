"""The logit lens: what the residual stream would answer if the model ended after each layer.

    lens at point i = unembed(final norm(residual after i layers)),    i = 0 (embeddings, positional included) .. L

Point L is the model itself. In: a forward pass that kept its residuals. Out: rank (0 is best) and probability of a
token at the last position, and its best rank over the subject's positions, which tells whether the answer is already
looked up there. (nostalgebraist 2020; Ou et al. 2025, section 5.)

Shapes: b items, p positions, l layers, d d_model, n vocabulary, m rows of any origin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import Trace, at_least_float32, logits_of, normalize

#: Most logits held at once.
_MAX_LOGITS = 1 << 25


@dataclass(frozen=True)
class LensReading:
    """What the lens says of one token per item, at the L + 1 points.

    Attributes:
        rank: [b, l + 1] how many tokens score higher at the last position.
        prob: [b, l + 1] the token's probability there.
        subject_rank: [b, l + 1] the best rank over the subject's positions.
    """

    rank: Tensor
    prob: Tensor
    subject_rank: Tensor


def residual_points(trace: Trace) -> tuple[Tensor, ...]:
    """Return the residual stream at the L + 1 points, each [b, p, d].

    Raises:
        ValueError: the pass did not keep its residuals, or left positions out of the last layer.
    """
    if len(trace.residuals) != len(trace.layers) or trace.final.shape[1] != trace.embedded.shape[1]:
        raise ValueError("the lens needs every residual: run forward with keep_residuals=True, queries=None")
    return (*trace.residuals, trace.final)


def lens_logits(decoder: Decoder, residual: Tensor) -> Tensor:
    """Logits [..., n] that the model would give if residual [..., d] were its last; float32 for half precision."""
    return at_least_float32(logits_of(decoder, normalize(residual, decoder).value))


def logit_lens(decoder: Decoder, trace: Trace, targets: Tensor, subject: Tensor) -> LensReading:
    """Look for one token per item in every point of the residual stream.

    Args:
        trace: a pass with `keep_residuals=True` and `queries=None`.
        targets: [b] the token that is looked for.
        subject: [b, p] True at the subject's tokens, at least one in each row.
    """
    if not bool(subject.any(1).all()):
        raise ValueError("a prompt has no position that is the subject's")
    items, positions = subject.nonzero(as_tuple=True)  # [m] each, item by item
    points = []
    for residual in residual_points(trace):
        rank, probability = _look_for(decoder, residual[:, -1], targets)
        at_subject, _ = _look_for(decoder, residual[items, positions], targets[items])
        best = torch.zeros_like(rank).scatter_reduce(0, items, at_subject, "amin", include_self=False)
        points.append((rank, probability, best))
    return LensReading(*(torch.stack(values, 1) for values in zip(*points, strict=True)))


def _look_for(decoder: Decoder, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Rank [m] and probability [m] of targets [m] in the lens's logits of rows [m, d]."""
    ranks, probabilities = [], []
    size = max(1, _MAX_LOGITS // decoder.d_vocab)
    for part, wanted in zip(rows.split(size), targets.split(size), strict=True):
        logits = lens_logits(decoder, part)
        own = logits.gather(1, wanted[:, None])
        ranks.append((logits > own).sum(1))
        probabilities.append((own[:, 0] - logits.logsumexp(1)).exp())
    return torch.cat(ranks), torch.cat(probabilities)
