"""The rule that ends training on knowledge rather than on loss.

Facts count that were known at the last `HOLD` probes, twice in a row. Training ends when the number of such facts has
not grown for a few probes, or when general skill has fallen too far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knowledge_circuits.files import InputError

#: Which facts were known at which probes: bool [facts, probes].
Known = NDArray[np.bool_]

#: How many probes in a row a fact must be known to count.
HOLD = 2


def known_in_a_row_counts(known: Known, hold: int = HOLD) -> NDArray[np.int64]:
    """Count at each probe the facts that are known there and at the `hold` - 1 probes before.

    Args:
        known: [facts, probes].

    Returns:
        [probes]; 0 at the first hold - 1 probes.
    """
    held = known.copy()
    for back in range(1, hold):
        held[:, back:] &= known[:, :-back]
        held[:, :back] = False
    return held.sum(axis=0)


@dataclass(frozen=True)
class StoppingRule:
    """Ends training on knowledge rather than loss.

    Attributes:
        patience: end when the number of facts known twice in a row has not grown for so many probes.
        skill_drop: also end when mean skill accuracy fell by more than this share of the base model's; None: never.
        min_share: end no earlier than when this share of the facts is known twice in a row, since learning begins late.
    """

    patience: int = 3
    skill_drop: float | None = None
    min_share: float = 0.1

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise InputError(f"--patience must be at least 1, not {self.patience}")
        for flag, share in (("--skill_drop", self.skill_drop), ("--stop_min_share", self.min_share)):
            if share is not None and not 0 <= share <= 1:
                raise InputError(f"{flag} is a share from 0 to 1, not {share}")

    def reason(self, known: Known, skill: ArrayLike) -> str | None:
        """Why training should end after the last probe; None to go on.

        Args:
            known: [facts, probes] so far.
            skill: [probes] mean accuracy; NaN where there are no skills.
        """
        accuracy = np.asarray(skill, dtype=float)
        lost = float(skill_lost(accuracy)[-1]) if len(accuracy) else math.nan
        if self.skill_drop is not None and lost > self.skill_drop:
            return f"general skill fell by {lost:.0%}, more than {self.skill_drop:.0%}"
        counts = known_in_a_row_counts(known)
        if not counts.size or counts.max() == 0 or counts.max() < self.min_share * len(known):
            return None
        since = len(counts) - 1 - int(counts.argmax())
        if since < self.patience:
            return None
        return f"facts known twice in a row have not grown beyond {counts.max()} of {len(known)} for {since} probes"


def skill_lost(skill: ArrayLike) -> NDArray[np.float64]:
    """Return the share of the base model's skill that each probe lacks; 0 where skill grew, NaN where there was none.

    Args:
        skill: [probes] accuracy, the base model's first.
    """
    accuracy = np.asarray(skill, dtype=np.float64)
    if not accuracy.size or not accuracy[0] > 0:
        return np.full(accuracy.shape, np.nan)
    return np.maximum(1 - accuracy / accuracy[0], 0)
