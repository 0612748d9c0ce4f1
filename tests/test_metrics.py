"""Metrics worked by hand on a vocabulary of two tokens."""

from __future__ import annotations

import math

import pytest
import torch
from families import FAMILIES, random_model

from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.metrics import metric_function
from knowledge_circuits.engine.options import Metric
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.files import InputError

#: Logits whose probabilities are (3/4, 1/4) in the run and (1/2, 1/2) in the clean run; the clean label is token 0.
RUN = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
CLEAN = torch.zeros(1, 2, dtype=torch.float64)
LABELS = torch.tensor([[0, 1]])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (Metric.LOGIT_DIFFERENCE, -math.log(3)),
        (Metric.PROBABILITY_DIFFERENCE, -0.5),
        (Metric.KL_DIVERGENCE, 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)),
        (
            Metric.JS_DIVERGENCE,  # the middle is (5/8, 3/8)
            0.5 * (0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375))
            + 0.5 * (0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375)),
        ),
    ],
)
def test_a_metric_is_the_loss_that_its_name_says(metric: Metric, expected: float) -> None:
    assert metric_function(metric)(RUN, CLEAN, LABELS).tolist() == pytest.approx([expected])


def test_a_whole_answer_is_the_mean_over_its_own_tokens() -> None:
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]] * 2, dtype=torch.float64)
    answers = torch.tensor([[1, 0], [-1, 0]])  # the second one has a single token
    loss = metric_function(Metric.ANSWER_LOG_PROBABILITY)(logits, logits, answers)
    assert loss.tolist() == pytest.approx([-(math.log(0.25) + math.log(0.5)) / 2, -math.log(0.5)])


@pytest.mark.parametrize("metric", [Metric.KL_DIVERGENCE, Metric.JS_DIVERGENCE])
def test_a_run_that_is_the_clean_one_diverges_by_nothing(metric: Metric) -> None:
    assert metric_function(metric)(RUN, RUN, LABELS).tolist() == pytest.approx([0.0])


@pytest.mark.parametrize(
    "metric", [lambda run, clean, labels: run.argmax(-1).float(), lambda run, clean, labels: clean[:, 0]]
)
def test_attribution_needs_a_metric_with_a_gradient_and_exact_effects_do_not(metric) -> None:
    decoder = decoder_from_model(random_model(FAMILIES["gpt2"]()))
    pairs = PromptPairs([[0, 3]], [[0, 9]], [(3, 4)])
    with pytest.raises(InputError, match=r"'<lambda>' has no gradient .* which EAP-IG needs; .* use the method exact"):
        attribute(decoder, pairs, metric=metric)
    assert attribute(decoder, pairs, "exact", metric=metric).n_edges
