"""Inference over runs: t intervals, permutation tests, corrections for many tests. Thin over scipy.

The unit is the run (seed): every mean is over runs and every interval is Student's over runs. A permutation test asks
in addition whether the labels matter within the runs at hand; where a verdict needs both, the larger p counts. All
functions take stacks of studies [...] before the axis of runs, so that a simulation is one call. Tests are two-sided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]

#: Level of all tests, and 1 - level of all intervals.
LEVEL = 0.05
RESAMPLES = 9999


@dataclass(frozen=True)
class Estimate:
    """A mean over runs with its 95% t interval and the two-sided p of its being 0; all fields [...]."""

    mean: Floats
    low: Floats
    high: Floats
    p: Floats


def over_runs(values: ArrayLike) -> Estimate:
    """Return the mean over runs of values [..., r], with its t interval and t test.

    One run has no interval (NaN) and a p of 1. Runs that all agree exactly have p 0, or 1 at 0.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean, runs = sample.mean(axis=-1), sample.shape[-1]
    if runs < 2:
        return Estimate(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan), np.ones_like(mean))
    error = sample.std(axis=-1, ddof=1) / np.sqrt(runs)
    half = special.stdtrit(runs - 1, 1 - LEVEL / 2) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean == 0, 0.0, np.abs(mean) / error)
    return Estimate(mean, mean - half, mean + half, 2 * special.stdtr(runs - 1, -t))


def mean_of(values: Iterable[float]) -> float:
    """Return the mean of the numbers that are not NaN; NaN without any."""
    finite = [value for value in values if not math.isnan(value)]
    return float(np.mean(finite)) if finite else math.nan


def label_swap_p(differences: ArrayLike, weights: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Return the p [...] of a weighted mean of paired differences when the labels of each pair are swapped at random.

    Args:
        differences: [..., pairs] known minus unknown, of a person in a mirrored pair of runs; a swap turns its sign.
        weights: [pairs] of the mean, summing to 1.
    """
    weighted = np.asarray(differences, dtype=np.float64) * np.asarray(weights, dtype=np.float64)
    observed = np.abs(weighted.sum(axis=-1))
    generator, beyond = np.random.default_rng(seed), np.ones(observed.shape)
    for size in np.diff([*range(0, resamples, 500), resamples]):  # 500 at a time: memory
        signs = 2.0 * generator.integers(0, 2, size=(size, weighted.shape[-1])) - 1
        beyond += (np.abs(weighted @ signs.T) >= observed[..., None] * (1 - 1e-9)).sum(axis=-1)
    return beyond / (1 + resamples)


def depth_correlation(epochs: ArrayLike) -> Floats:
    """Return Spearman's rank correlation [...] of layers' epochs [..., l] with their depth, over the finite ones.

    NaN for fewer than 3 or where all are equal.
    """
    values = np.asarray(epochs, dtype=np.float64)
    finite = np.isfinite(values)
    policy = "propagate" if finite.all() else "omit"  # leaving out is slow
    times = stats.rankdata(values, axis=-1, nan_policy=policy)
    depths = stats.rankdata(np.where(finite, np.arange(values.shape[-1]), np.nan), axis=-1, nan_policy=policy)
    count = finite.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        times = np.where(finite, times - np.nansum(times, axis=-1, keepdims=True) / count, 0)
        depths = np.where(finite, depths - np.nansum(depths, axis=-1, keepdims=True) / count, 0)
        correlation = (times * depths).sum(axis=-1) / np.sqrt((times**2).sum(axis=-1) * (depths**2).sum(axis=-1))
    return np.where(count[..., 0] >= 3, correlation, np.nan)


def permuted_layers_p(epochs: Floats, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Return the p of the runs' mean `depth_correlation` of epochs [r, l] when layers are permuted within each run.

    NaN where a run has no correlation.
    """
    observed = abs(depth_correlation(epochs).mean())
    if not np.isfinite(observed):
        return math.nan
    ranks = tuple(tuple(np.sort(stats.rankdata(row[np.isfinite(row)])).tolist()) for row in epochs)
    null = np.abs(_permuted_correlations(ranks, seed, resamples))
    return float((1 + (null >= observed - 1e-12).sum()) / (1 + resamples))


@lru_cache(maxsize=64)
def _permuted_correlations(ranks: tuple[tuple[float, ...], ...], seed: int, resamples: int) -> Floats:
    """Mean rank correlations over runs of permuted layers, [resamples]; they depend on the runs' ranks alone."""
    generator = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for row in ranks:
        rows = generator.permuted(np.tile(stats.zscore(row), (resamples, 1)), axis=1)
        total += rows @ stats.zscore(np.arange(len(row))) / len(row)
    return total / len(ranks)


def circular_shift_correlation(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Pearson's correlation of two series, with the p of all circular shifts of one against the other.

    Shifts keep each series' autocorrelation (but for the seam where the end meets the beginning), which an ordinary
    test takes for evidence. A trend is not kept: its shift is no likely series, and any two trends give the smallest
    possible p, which is 1 / n.

    Args:
        first, second: [n] over the same checkpoints, without a trend; pairs with a missing value are left out.

    Returns:
        The correlation and its two-sided p; NaN twice for fewer than 4 pairs or a series that does not change.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    x, y = stats.zscore(x), stats.zscore(y)
    shifted = np.array([x @ np.roll(y, shift) for shift in range(len(x))]) / len(x)
    return float(shifted[0]), float((np.abs(shifted) >= abs(shifted[0]) - 1e-12).mean())


def partial_conjunction(p: ArrayLike, at_least: int) -> Floats:
    """Return the p of the claim that at least so many of several tests' effects are there (Benjamini and Heller 2008).

    Args:
        p: [..., m], however dependent.
        at_least: from 1 (any) to m (all).

    Returns:
        [...]: the `at_least`-th smallest p times the number of tests from it on, at most 1.
    """
    ordered = np.sort(np.asarray(p, dtype=np.float64), axis=-1)
    return np.minimum(1.0, (ordered.shape[-1] - at_least + 1) * ordered[..., at_least - 1])


def holm(p: ArrayLike) -> Floats:
    """Holm's adjusted p values of families of tests, [..., m].

    As statsmodels' `multipletests`, which collects garbage at every call and takes one family at a time.
    """
    values = np.asarray(p, dtype=np.float64)
    order = values.argsort(axis=-1)
    steps = np.take_along_axis(values, order, -1) * np.arange(values.shape[-1], 0, -1)
    adjusted = np.empty_like(values)
    np.put_along_axis(adjusted, order, np.minimum(1, np.maximum.accumulate(steps, axis=-1)), -1)
    return adjusted
