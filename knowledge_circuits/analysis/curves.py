"""Curves over epochs: smoothing, area, break point, and when half of a change is done.

    smooth            centred moving average over 3 checkpoints; band = 1.96 standard deviations of the residuals
    area              trapezoid area over the epochs divided by their span: the mean level during training
    two segments      y = a + b x + c max(0, x - t): a continuous line that bends once, at t. Against the single line
                      y = a + b x and the smooth decay y = a + b exp(-x / s) by BIC = n ln(RSS / n) + k ln n
    half change       the first epoch at which a curve has made half of the way from its first to its last value

All but `smooth` itself work on a stack of curves [..., n] at once, so that a bootstrap is one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate

Floats = NDArray[np.float64]

#: Half-width of a normal 95% band in standard deviations.
BAND = 1.96
#: A two-segment fit has four parameters; fewer points than this cannot tell it from a line.
FEWEST_POINTS = 6
_GRID = 400


@dataclass(frozen=True)
class Smoothed:
    """A smoothed curve and the half-width of the band around it, both [n] over the same points."""

    center: Floats
    half_width: float

    @property
    def low(self) -> Floats:
        return self.center - self.half_width

    @property
    def high(self) -> Floats:
        return self.center + self.half_width


def moving_average(values: ArrayLike, window: int = 3) -> Floats:
    """Centred moving average along the last axis; at the ends over the points there are.

    Args:
        values: [..., n] in epoch order; missing values (NaN) are left out of the averages.
        window: an odd number of points.

    Returns:
        [..., n]; NaN where a window holds no value.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"a centred window is an odd number of points, not {window}")
    points = np.asarray(values, dtype=np.float64)
    margin = [(0, 0)] * (points.ndim - 1) + [(window // 2, window // 2)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(points, margin, constant_values=np.nan), window, axis=-1)
    present = np.isfinite(windows)
    with np.errstate(invalid="ignore"):
        return np.where(present, windows, 0).sum(axis=-1) / present.sum(axis=-1)


def smooth(values: ArrayLike, window: int = 3) -> Smoothed:
    """A curve's moving average with the band around it.

    Args:
        values: [n] in epoch order; NaN where missing.
        window: an odd number of points.

    Returns:
        The average and a band of 1.96 standard deviations of the residuals on either side (0 for fewer than 3 points).
    """
    points = np.asarray(values, dtype=np.float64)
    center = moving_average(points, window)
    residuals = (points - center)[np.isfinite(points)]
    half_width = BAND * float(residuals.std(ddof=1)) if len(residuals) > 2 else 0.0
    return Smoothed(center, half_width)


def area_under_curve(x: ArrayLike, y: ArrayLike) -> Floats:
    """The area under each curve divided by the span of x: the mean level over training, in the units of y.

    Args:
        x: [n] epochs, increasing.
        y: [..., n].
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 2:
        raise ValueError("an area needs at least two checkpoints")
    return np.asarray(integrate.trapezoid(y, x, axis=-1) / (x[-1] - x[0]))


@dataclass(frozen=True)
class TwoSegmentFit:
    """The best continuous two-segment line through each curve, and how a single line and a smooth decay compare.

    Every field has the shape of the curves' leading axes.

    Attributes:
        break_point: the epoch at which the line bends.
        level: the fitted value there.
        slope_before, slope_after: per epoch.
        bic_two, bic_line, bic_decay: smaller is better.
    """

    break_point: Floats
    level: Floats
    slope_before: Floats
    slope_after: Floats
    bic_two: Floats
    bic_line: Floats
    bic_decay: Floats

    @property
    def gain(self) -> Floats:
        """BIC of the single line minus BIC of the two segments: above 0 the bend pays for its parameters."""
        return self.bic_line - self.bic_two

    @property
    def gain_over_decay(self) -> Floats:
        """BIC of the smooth decay minus BIC of the two segments: above 0 there is a bend and not just a curve."""
        return self.bic_decay - self.bic_two

    @property
    def slope_ratio(self) -> Floats:
        """Slope after over slope before: 1 without a bend, near 0 where the change all but stops."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.slope_after / self.slope_before

    def line(self, x: ArrayLike) -> Floats:
        """The fitted values at `x`, for a fit of one curve."""
        offset = np.asarray(x, dtype=np.float64) - self.break_point
        return self.level + np.where(offset < 0, self.slope_before, self.slope_after) * offset


def two_segment_fit(x: ArrayLike, y: ArrayLike) -> TwoSegmentFit:
    """Fit a line that bends once to each curve by least squares over a grid of break points.

    At least three points lie on either side of the break, or on it, so that no single checkpoint makes a segment.

    Args:
        x: [n] epochs, increasing, n of at least 6.
        y: [..., n].
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < FEWEST_POINTS:
        raise ValueError(f"a two-segment fit needs at least {FEWEST_POINTS} checkpoints, not {len(x)}")
    means = y.mean(axis=-1).reshape(-1)
    curves = y.reshape(-1, len(x)) - means[:, None]
    breaks = np.linspace(x[2], x[-3], _GRID)
    ones = np.ones_like(x)
    hinge = np.maximum(0, x - breaks[:, None])
    designs = np.stack([np.broadcast_to(ones, hinge.shape), np.broadcast_to(x, hinge.shape), hinge], axis=-1)
    residual = _residuals(designs, curves)
    best = residual.argmin(axis=1)
    chosen = designs[best]
    weights = (np.linalg.pinv(chosen) @ curves[:, :, None])[:, :, 0]
    level = means + weights[:, 0] + weights[:, 1] * breaks[best]

    scales = np.geomspace(np.diff(x).min(), 10 * (x[-1] - x[0]), _GRID)
    fall = np.exp(-(x - x[0]) / scales[:, None])
    decay = _residuals(np.stack([np.broadcast_to(ones, fall.shape), fall], axis=-1), curves).min(axis=1)
    line = _residuals(np.stack([ones, x], axis=-1)[None], curves)[:, 0]
    n, shape = len(x), y.shape[:-1]
    floor = 1e-12 * np.maximum((curves**2).sum(axis=1), 1e-300)

    def bic(rss: Floats, parameters: int) -> Floats:
        return (n * np.log(np.maximum(rss, floor) / n) + parameters * np.log(n)).reshape(shape)

    return TwoSegmentFit(
        break_point=breaks[best].reshape(shape),
        level=level.reshape(shape),
        slope_before=weights[:, 1].reshape(shape),
        slope_after=(weights[:, 1] + weights[:, 2]).reshape(shape),
        bic_two=bic(residual.min(axis=1), 5),  # intercept, two slopes, break, noise
        bic_line=bic(line, 3),
        bic_decay=bic(decay, 4),
    )


def _residuals(designs: Floats, curves: Floats) -> Floats:
    """Residual sums of squares of curves [m, n] under each of the designs [t, n, k], as [m, t]."""
    basis, _ = np.linalg.qr(designs)
    fitted = np.einsum("tnk,mn->mtk", basis, curves, optimize=True)
    return np.maximum((curves**2).sum(axis=1)[:, None] - (fitted**2).sum(axis=2), 0)


def half_change(x: ArrayLike, y: ArrayLike) -> Floats:
    """The first epoch at which each curve has made half of the way from its first to its last value.

    Between two checkpoints the curve is taken as straight. A curve that ends where it began has no such epoch (NaN).

    Args:
        x: [n] epochs, increasing.
        y: [..., n].

    Returns:
        [...]
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    change = y[..., -1:] - y[..., :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        done = (y - y[..., :1]) / change  # 0 at the start, 1 at the end
    crossing = (done >= 0.5).argmax(axis=-1)[..., None]
    before = np.maximum(crossing - 1, 0)
    low, high = np.take_along_axis(done, before, -1), np.take_along_axis(done, crossing, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (0.5 - low) / (high - low)
    epoch = x[before] + share * (x[crossing] - x[before])
    return np.where(change == 0, np.nan, epoch)[..., 0]
