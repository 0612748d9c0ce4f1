"""What a circuit is for: losses of the last position's logits.

Every metric is a loss ell (lower is better), one number per item: with the sign of the score formula
`score(u->v) = <z_u(corrupted) - z_u(clean), d ell / d input_v>`, a positive score says that corrupting the edge hurts.
A metric of your own is any function of the same three arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from knowledge_circuits.engine.options import Metric

#: (logits [b, n] at the last position, the clean run's [b, n], labels [b, 2]) -> loss [b], differentiable in the first.
#: Logits come in float32 (from a bfloat16 model too) or float64.
MetricFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def label_difference(values: Tensor, labels: Tensor) -> Tensor:
    """values[clean label] - values[corrupted label]: [b] of values [b, n] and labels [b, 2]."""
    picked = values.gather(1, labels)
    return picked[:, 0] - picked[:, 1]


def _logit_difference(logits: Tensor, clean_logits: Tensor, labels: Tensor) -> Tensor:
    return -label_difference(logits, labels)


def _probability_difference(logits: Tensor, clean_logits: Tensor, labels: Tensor) -> Tensor:
    return -label_difference(logits.softmax(-1), labels)


def _kl_divergence(logits: Tensor, clean_logits: Tensor, labels: Tensor) -> Tensor:
    """KL(clean || run) in nats."""
    clean = clean_logits.log_softmax(-1)
    return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)


def _js_divergence(logits: Tensor, clean_logits: Tensor, labels: Tensor) -> Tensor:
    """Jensen-Shannon divergence from the clean distribution in nats."""
    clean, run = clean_logits.log_softmax(-1), logits.log_softmax(-1)
    middle = torch.logaddexp(clean, run) - math.log(2)
    return 0.5 * (clean.exp() * (clean - middle) + run.exp() * (run - middle)).sum(-1)


_FUNCTIONS: dict[Metric, MetricFunction] = {
    Metric.LOGIT_DIFFERENCE: _logit_difference,
    Metric.PROBABILITY_DIFFERENCE: _probability_difference,
    Metric.KL_DIVERGENCE: _kl_divergence,
    Metric.JS_DIVERGENCE: _js_divergence,
}


def metric_function(metric: Metric | str | MetricFunction) -> MetricFunction:
    """The function of a named metric; a function of one's own is returned as it is.

    Raises:
        InputError: no metric has that name.
    """
    return _FUNCTIONS[Metric(metric)] if isinstance(metric, str) else metric
