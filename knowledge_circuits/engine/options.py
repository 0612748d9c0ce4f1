"""The engine's closed sets of choices, by the names that flags and files give them.

A function that takes a choice also takes its name: `Method(method)` is the member for either, and names the valid
choices where there is none. This module imports neither torch nor transformers, so that programs can offer the choices
before the engine is loaded.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NoReturn

from knowledge_circuits.files import InputError


class Option(StrEnum):
    """A choice that is spelled as its value."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise InputError(f"no {cls.__name__.lower()} is called {value!r}; choose one of: {', '.join(cls)}")


class Method(Option):
    """Where the gradient g_v is taken."""

    EAP = "EAP"
    """In the clean run."""
    EAP_IG = "EAP-IG"
    """Mean over runs whose token embedding is corrupted + k/m (clean - corrupted)."""
    CLEAN_CORRUPTED = "clean-corrupted"
    """Mean of the clean and the corrupted run."""
    EAP_IG_ACTIVATIONS = "EAP-IG-activations"
    """Mean over source groups and k of the clean run with the group's outputs replaced by interpolated constants."""
    EXACT = "exact"
    """No gradient: the loss with that one edge corrupted, minus the clean loss. Slow; the oracle."""

    @property
    def uses_steps(self) -> bool:
        """Whether it integrates gradients, so that `ig_steps` and `first_step` count."""
        return self in (Method.EAP_IG, Method.EAP_IG_ACTIVATIONS)


class Intervention(Option):
    """What stands in for edges outside the circuit."""

    PATCHING = "patching"
    """The corrupted prompt's outputs."""
    ZERO = "zero"
    """Nothing; biases and positional embeddings stay."""
    MEAN = "mean"
    """The mean output over all positions of the clean prompts."""
    MEAN_POSITIONAL = "mean-positional"
    """The mean output per position of the clean prompts."""


class Metric(Option):
    """The metrics that have names; `metrics.metric_function` gives their functions."""

    LOGIT_DIFFERENCE = "logit_difference"
    PROBABILITY_DIFFERENCE = "probability_difference"
    KL_DIVERGENCE = "kl_divergence"
    JS_DIVERGENCE = "js_divergence"
