"""When a fact is held, and what its acquisition has to do with the loss: measures that a lucky probe cannot make.

A fact is *held* from the first of `hold` probes in a row that find it known. A fact that is known at the last probe but
at fewer than `hold` before the end is *right-censored*: the run ended before it could be told. Both depend on `hold`,
so `hold_table` gives them for 1 to 8. Being known at the last probe says nothing of staying known.

Shapes: `known` [facts, probes], `epochs` [probes].
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from knowledge_circuits.analysis import curves
from knowledge_circuits.analysis.statistics import circular_shift_correlation

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Probes in a row that make a fact held.
HOLD = 5
#: What of loss and knowledge may be tested (`loss_correlations`).
BEYOND_TRENDS = "changes beyond the trends"


def held_epochs(known: Mask, epochs: ArrayLike, hold: int) -> Floats:
    """Return the epoch [facts] from which each fact is first known at `hold` probes in a row; NaN if it never is."""
    if hold < 1:
        raise ValueError(f"a fact is held after at least 1 probe, not {hold}")
    if known.shape[1] < hold:
        return np.full(len(known), np.nan)
    whole: Mask = np.asarray(np.lib.stride_tricks.sliding_window_view(known, hold, axis=1).all(axis=2))
    return np.where(whole.any(axis=1), np.asarray(epochs, dtype=np.float64)[whole.argmax(axis=1)], np.nan)


def known_in_a_row(known: Mask) -> NDArray[np.int64]:
    """Return at how many probes in a row, counted from the end, each fact is known."""
    return np.logical_and.accumulate(known[:, ::-1], axis=1).sum(axis=1)


def share_of_ever_known(known: Mask, counts: ArrayLike) -> float:
    """Return the sum of facts' counts [facts] over the number of facts known at some probe; NaN without any."""
    ever = int(known.any(axis=1).sum())
    return float(np.sum(counts) / ever) if ever else np.nan


def hold_table(known: Mask) -> pd.DataFrame:
    """Return how many facts are held, by the number of probes in a row that it takes.

    Returns:
        One row per number: hold; held (ever), held_at_end (known at the last `hold` probes), lost (held once, not at
        the end), censored (known at the last probe, at fewer than `hold` in a row): all shares of the facts that were
        known at some probe. A fact that was held, was lost and is known again at the end is censored and not lost.
    """
    in_a_row = known_in_a_row(known)
    rows = []
    for hold in range(1, 9):
        held = np.isfinite(held_epochs(known, np.arange(known.shape[1]), hold))
        counts = {
            "held": held,
            "held_at_end": in_a_row >= hold,
            "lost": held & (in_a_row == 0),
            "censored": (in_a_row > 0) & (in_a_row < hold),
        }
        rows.append({"hold": hold} | {name: share_of_ever_known(known, facts) for name, facts in counts.items()})
    return pd.DataFrame(rows)


def loss_correlations(epochs: ArrayLike, loss: ArrayLike, known: ArrayLike) -> pd.DataFrame:
    """Pearson's correlations of loss and knowledge over the probes.

    The first change, from the untrained state, is larger than all others and can decide the sign, so changes are
    correlated with and without it. Both series follow training time, and so do any two unrelated curves that flatten
    out: their levels and their changes correlate too. Only changes beyond the trends, each series' best smooth curve,
    have a p, of circular shifts, which keep autocorrelation.

    Args:
        epochs, loss, known: [probes]; validation loss, share of facts known.

    Returns:
        One row each for "changes", "levels" and "changes beyond the trends", and for each without the first: of,
        correlation (NaN for fewer than 4 points or a series that does not change; beyond the trends, for fewer than
        `curves.FEWEST_FOR_SHAPES` probes), p (never below 1 / points), points.
    """
    x, *levels = (np.asarray(values, dtype=np.float64) for values in (epochs, loss, known))
    changes = [np.diff(level) for level in levels]
    beyond = [np.diff(_beyond_trend(x, level)) for level in levels]
    rows = []
    for name, (first, second) in {"changes": changes, "levels": levels, BEYOND_TRENDS: beyond}.items():
        for start, words in ((0, name), (1, f"{name} without the first")):
            correlation, p = circular_shift_correlation(first[start:], second[start:])
            points = int((np.isfinite(first[start:]) & np.isfinite(second[start:])).sum())
            rows.append((words, correlation, p if name == BEYOND_TRENDS else np.nan, points))
    return pd.DataFrame(rows, columns=["of", "correlation", "p", "points"])


def _beyond_trend(epochs: Floats, values: Floats) -> Floats:
    """Return what a series' best smooth curve leaves of it, [probes]; NaN where it is missing or that is nothing."""
    left, there = np.full(len(values), np.nan), np.isfinite(values)
    if there.sum() >= curves.FEWEST_FOR_SHAPES:
        x, y = epochs[there], values[there]
        residuals = y - curves.fitted(x, y, curves.compare_shapes(x, y).best_smooth)
        if np.ptp(residuals) > 1e-9 * np.ptp(y):
            left[there] = residuals
    return left
