"""The engine's closed sets of choices, by the names that flags and files give them.

A function that takes a choice also takes its name: `Method(method)` returns the member for either and raises InputError
with the valid names for anything else. This module imports neither torch nor transformers, so that programs can offer
the choices before the engine is loaded.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NoReturn

from knowledge_circuits.files import InputError


class Option(StrEnum):
    """A choice that is spelled as its value."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()
        raise InputError(f"no {kind} is called {value!r}; choose one of: {', '.join(cls)}")


class Method(Option):
    """Where the gradient g_v is taken."""

    EAP = "EAP"
    """In the clean run."""
    EAP_IG = "EAP-IG"
    """Mean over runs whose token embedding is corrupted + s/m (clean - corrupted)."""
    CLEAN_CORRUPTED = "clean-corrupted"
    """Mean of the clean and the corrupted run."""
    EAP_IG_ACTIVATIONS = "EAP-IG-activations"
    """Mean over source groups and steps s of the clean run with the group's outputs at interpolated constants."""
    EXACT = "exact"
    """No gradient: the loss with that one edge corrupted, minus the clean loss. Slow; the reference."""

    @property
    def uses_steps(self) -> bool:
        """Whether it integrates gradients, so that `ig_steps` and `first_step` matter."""
        return self in (Method.EAP_IG, Method.EAP_IG_ACTIVATIONS)


class GradientRule(Option):
    """How the backward pass is taken; `backward.BackwardRules` defines each rule."""

    STANDARD = "standard"
    """The gradient."""
    GIM = "gim"
    """GIM (arXiv 2505.17630): norm scales constant, softmax at temperature 2, gradients shared among factors."""
    RELP = "relp"
    """RelP (arXiv 2508.21258): norm scales constant, activations pass f(x)/x, gradients of gate and up halved."""


class Intervention(Option):
    """What replaces the outputs on edges outside the circuit."""

    PATCHING = "patching"
    """The corrupted prompt's outputs."""
    ZERO = "zero"
    """Zero; biases (value biases included) and positional embeddings stay."""
    MEAN = "mean"
    """The mean output over all positions of the clean prompts."""
    MEAN_POSITIONAL = "mean-positional"
    """The mean output per position of the clean prompts."""


class Metric(Option):
    """The built-in metrics; `metrics.metric_function` gives their losses."""

    LOGIT_DIFFERENCE = "logit_difference"
    """logit[clean label] - logit[corrupted label]; the loss is its negative."""
    PROBABILITY_DIFFERENCE = "probability_difference"
    """The same of probabilities."""
    KL_DIVERGENCE = "kl_divergence"
    """KL(clean run || this run) in nats."""
    JS_DIVERGENCE = "js_divergence"
    """Jensen-Shannon divergence from the clean run in nats."""
    ANSWER_LOG_PROBABILITY = "answer_log_probability"
    """Mean over the clean answer's tokens of each one's log probability (nats), the tokens before it given; the loss is
    its negative. The other metrics read the prompt's last position."""
