"""The size of the nano model. It is not in `nano` because programs offer it as flags before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from knowledge_circuits.files import InputError


@dataclass(frozen=True)
class Shape:
    """A GPT-2's size (layers, attention heads, width d_model, context length in tokens) and its weights' scale.

    At width 160 weights of the usual standard deviation 0.02 start small: with 0.05 the loss after 120 steps of nano's
    prior is 3.8 instead of 4.4.
    """

    layers: int = 6
    heads: int = 5
    width: int = 160
    positions: int = 256
    initializer_range: float = 0.05

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InputError(f"a width of {self.width} cannot be shared among {self.heads} heads; choose a multiple")
