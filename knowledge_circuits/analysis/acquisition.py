"""When a fact is held, and what its acquisition has to do with the loss: measures that a lucky probe cannot make.

A fact is *held* from the first of `hold` probes in a row that find it known. A fact that is known at the last probe but
at fewer than `hold` before the end is *right-censored*: the run ended before it could be told. Both depend on `hold`,
so `hold_table` gives them for 1 to 8. Being known at the last probe says nothing of staying known.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Probes in a row that make a fact held.
HOLD = 5


def held_epochs(known: Mask, epochs: ArrayLike, hold: int = HOLD) -> Floats:
    """Return the epoch from which each fact is first known at `hold` probes in a row.

    Args:
        known: [facts, probes].
        epochs: [probes].
        hold: at least 1.

    Returns:
        [facts]; NaN for a fact that never is.
    """
    if hold < 1:
        raise ValueError(f"a fact is held after at least 1 probe, not {hold}")
    if known.shape[1] < hold:
        return np.full(len(known), np.nan)
    whole: Mask = np.asarray(np.lib.stride_tricks.sliding_window_view(known, hold, axis=1).all(axis=2))
    return np.where(whole.any(axis=1), np.asarray(epochs, dtype=np.float64)[whole.argmax(axis=1)], np.nan)


def known_in_a_row(known: Mask) -> NDArray[np.int64]:
    """Return at how many probes in a row, counted from the end, each fact of `known` [facts, probes] is known."""
    return np.logical_and.accumulate(known[:, ::-1], axis=1).sum(axis=1)


def share_of_ever_known(known: Mask, counts: ArrayLike) -> float:
    """Return the sum of facts' counts [facts] over the number of facts known at some probe; NaN without any."""
    ever = int(known.any(axis=1).sum())
    return float(np.sum(counts) / ever) if ever else np.nan


def hold_table(known: Mask, holds: Iterable[int] = range(1, 9)) -> pd.DataFrame:
    """Return how many facts are held, by the number of probes in a row that it takes.

    Args:
        known: [facts, probes].
        holds: the numbers to try.

    Returns:
        One row per number: hold; held (ever), held_at_end (known at the last `hold` probes), lost (held once, not at
        the end), censored (known at the last probe, at fewer than `hold` in a row): all shares of the facts that were
        known at some probe. A fact that was held, was lost and is known again at the end is censored and not lost.
    """
    in_a_row = known_in_a_row(known)
    rows = []
    for hold in holds:
        held = np.isfinite(held_epochs(known, np.arange(known.shape[1]), hold))
        counts = {
            "held": held,
            "held_at_end": in_a_row >= hold,
            "lost": held & (in_a_row == 0),
            "censored": (in_a_row > 0) & (in_a_row < hold),
        }
        rows.append({"hold": hold} | {name: share_of_ever_known(known, facts) for name, facts in counts.items()})
    return pd.DataFrame(rows)


def loss_correlations(loss: ArrayLike, known: ArrayLike) -> pd.DataFrame:
    """Pearson's correlations of loss and knowledge over the probes.

    The first change, from the untrained state, is larger than all others and can decide the sign, so changes are
    correlated with and without it. No correlation has a p: both series follow training time, and so do any two
    unrelated curves that flatten out. Their levels and their changes correlate too.

    Args:
        loss: [probes] validation loss.
        known: [probes] share of facts known.

    Returns:
        One row each for "changes", "changes without the first", "levels", "levels without the first": of, correlation
        (NaN for fewer than 4 points or a series that does not change), points.
    """
    levels = np.asarray(loss, dtype=np.float64), np.asarray(known, dtype=np.float64)
    series = {"changes": tuple(np.diff(level) for level in levels), "levels": levels}
    rows = []
    for name, both in series.items():
        for start, words in ((0, name), (1, f"{name} without the first")):
            pairs = np.stack(both)[:, start:]
            pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
            told = pairs.shape[1] > 3 and (np.ptp(pairs, axis=1) > 0).all()
            correlation = float(np.corrcoef(pairs)[0, 1]) if told else np.nan
            rows.append({"of": words, "correlation": correlation, "points": pairs.shape[1]})
    return pd.DataFrame(rows)
