"""Losses of the logits that a metric reads, which attribution differentiates and `evaluate` reports.

Every metric is a loss ell (lower is better), one number per item. With the score

    score(u->v) = <z_u(corrupted) - z_u(clean), d ell / d input_v>

a positive score means that corrupting the edge raises the loss. A custom metric is a function of the same arguments.
Metrics read the last position; that of whole answers reads the last q, which predict the answer's tokens.

Shapes: b items, q positions that a metric reads, d d_model, n vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from knowledge_circuits.engine.forward import at_least_float32
from knowledge_circuits.engine.options import Metric
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.files import InputError

#: (logits [b, n] at the last position, the clean run's [b, n], labels [b, 2]) -> loss [b], differentiable in the first.
#: Logits are float32 (for a bfloat16 model too) or float64.
MetricFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def as_metric(metric: Metric | str | MetricFunction) -> Metric | MetricFunction:
    """Return the metric that a name stands for; a function is returned as it is.

    Raises:
        InputError: no such metric.
    """
    return metric if callable(metric) else Metric(metric)


def metric_name(metric: Metric | MetricFunction) -> str:
    """Return a metric's name, for a graph's meta."""
    return str(metric) if isinstance(metric, Metric) else getattr(metric, "__name__", "custom")


def metric_function(metric: Metric | str | MetricFunction) -> MetricFunction:
    """Return the loss that a metric or its name stands for; a function is returned as it is.

    Raises:
        InputError: no such metric.
    """
    return metric if callable(metric) else _FUNCTIONS[Metric(metric)]


def pairs_for(metric: Metric | MetricFunction, pairs: PromptPairs) -> PromptPairs:
    """Return the pairs as a metric's runs take them: teacher-forced for whole answers, else as they are.

    Raises:
        InputError: a whole answer is not known, or teacher-forced pairs are given to another metric.
    """
    if metric is Metric.ANSWER_LOG_PROBABILITY:
        return pairs.teacher_forced()
    if pairs.forced:
        raise InputError(f"teacher-forced pairs are for the metric {Metric.ANSWER_LOG_PROBABILITY}; give the prompts")
    return pairs


def read(metric: Metric | MetricFunction, final: Tensor) -> Tensor:
    """Return what a metric reads of outputs [b, q, d] at the last q positions: [b, q, d], or the last one's [b, d]."""
    return final if metric is Metric.ANSWER_LOG_PROBABILITY else final[:, -1]


def losses(metric: Metric | MetricFunction, logits: Tensor, clean_logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss [b] of logits [b, n], or [b, q, n] of whole answers, computed in at least float32.

    Args:
        targets: `Batch.targets`.

    Raises:
        InputError: a custom metric does not give one number per item.
    """
    values = metric_function(metric)(at_least_float32(logits), at_least_float32(clean_logits), targets)
    if values.shape != logits.shape[:1]:
        raise InputError(f"a metric gives one number per item; this one gave the shape {tuple(values.shape)}")
    return values


def reported(metric: Metric | MetricFunction, values: Tensor) -> Tensor:
    """Return losses [b] as `evaluate` reports them: divergences as they are, other built-in metrics negated."""
    return -values if isinstance(metric, Metric) and metric not in _DIVERGENCES else values


def label_difference(values: Tensor, labels: Tensor) -> Tensor:
    """Return values[clean label] - values[corrupted label], [b], of values [b, n] and labels [b, 2]."""
    picked = values.gather(1, labels)
    return picked[:, 0] - picked[:, 1]


def _logit_difference(logits: Tensor, clean_logits: Tensor, labels: Tensor) -> Tensor:
    return -label_difference(logits, labels)


def _probability_difference(logits: Tensor, clean_logits: Tensor, labels: Tensor) -> Tensor:
    return -label_difference(logits.softmax(-1), labels)


def _kl_divergence(logits: Tensor, clean_logits: Tensor, labels: Tensor) -> Tensor:
    clean = clean_logits.log_softmax(-1)
    return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)


def _js_divergence(logits: Tensor, clean_logits: Tensor, labels: Tensor) -> Tensor:
    clean, run = clean_logits.log_softmax(-1), logits.log_softmax(-1)
    middle = torch.logaddexp(clean, run) - math.log(2)
    return 0.5 * (clean.exp() * (clean - middle) + run.exp() * (run - middle)).sum(-1)


def _answer_log_probability(logits: Tensor, clean_logits: Tensor, answers: Tensor) -> Tensor:
    """Return the mean over an answer's tokens of -log p, [b], of logits [b, q, n] and answers [b, q]."""
    outside = answers < 0
    chosen = logits.gather(2, answers.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(-1)
    return -chosen.masked_fill(outside, 0).sum(1) / (~outside).sum(1)


_DIVERGENCES = (Metric.KL_DIVERGENCE, Metric.JS_DIVERGENCE)
_FUNCTIONS: dict[Metric, MetricFunction] = {
    Metric.LOGIT_DIFFERENCE: _logit_difference,
    Metric.PROBABILITY_DIFFERENCE: _probability_difference,
    Metric.KL_DIVERGENCE: _kl_divergence,
    Metric.JS_DIVERGENCE: _js_divergence,
    Metric.ANSWER_LOG_PROBABILITY: _answer_log_probability,
}
