"""Replay: a share of the training examples is replaced by documents of an earlier corpus.

With N new documents and ratio r, round(r N) of them make room for replayed ones, so that the number of training
examples stays N whatever the ratio (Ou et al. 2025, forgetting experiment). The positions are the head of one seeded
permutation, so a larger ratio replaces what a smaller one does, and more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from knowledge_circuits.corpus.documents import Row
from knowledge_circuits.files import InputError


def mix_replay(new: Sequence[Row], replayed: Sequence[Row], ratio: float, seed: int) -> list[Row]:
    """Replace a share of the new documents by replayed ones.

    Args:
        replayed: documents of the earlier corpus; where they are fewer than needed, they come round again.
        seed: fixes which positions are replaced and by which documents.

    Returns:
        As many documents as `new`; the new ones that stay keep their positions.

    Raises:
        InputError: the ratio is not a share, or there is nothing to replay.
    """
    if not 0 <= ratio <= 1:
        raise InputError(f"--replay_ratio {ratio}: a share between 0 and 1 is wanted")
    count = round(ratio * len(new))
    if count and not replayed:
        raise InputError(f"--replay_ratio {ratio} needs documents to replay; give --replay_file")
    generator = random.Random(f"replay {seed}")
    positions = generator.sample(range(len(new)), len(new))[:count]
    mixed = list(new)
    order: list[int] = []
    for position in positions:
        if not order:
            order = generator.sample(range(len(replayed)), len(replayed))
        mixed[position] = replayed[order.pop()]
    return mixed
