"""Curves over epochs: smoothing, area, break point, and when half of a change is done.

    smooth            centred moving average over 3 checkpoints that begins and ends where the curve does
    area              trapezoid area over the epochs divided by their span: the mean level during training
    two segments      y = a + b x + c max(0, x - t): a continuous line that bends once, at t; three checkpoints at least
                      on either side, so a bend outside of these is found at the edge of the search, if at all
    shapes            the two segments against a line, exponential decay (alone and with a drift), power law and
                      logistic curve by BIC = n ln(RSS / n) - ln(1 - r^2) + k ln n, the residuals autoregressive with
                      coefficient r. With independent residuals a smooth curve of few, correlated checkpoints would
                      pass for a bend
    half change       the first epoch at which a curve has made half of the way from its first to its last value

All but `smooth` itself work on a stack of curves at once, so that a bootstrap is one call: y [..., n] over the epochs
x [n], which increase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, special

Floats = NDArray[np.float64]

#: A two-segment fit has four parameters; fewer points than this cannot tell it from a line.
FEWEST_POINTS = 6
#: A comparison of shapes fits up to six parameters.
FEWEST_FOR_SHAPES = 10


def moving_average(values: ArrayLike) -> Floats:
    """Return the centred moving average over 3 points along the last axis; at the ends over the points there are.

    Args:
        values: [..., n] in epoch order; missing values (NaN) are left out of the averages.

    Returns:
        [..., n]; NaN where all three are missing.
    """
    points = np.asarray(values, dtype=np.float64)
    margin = [(0, 0)] * (points.ndim - 1) + [(1, 1)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(points, margin, constant_values=np.nan), 3, axis=-1)
    present = np.isfinite(windows)
    with np.errstate(invalid="ignore"):
        return np.where(present, windows, 0).sum(axis=-1) / present.sum(axis=-1)


def smooth(values: ArrayLike) -> Floats:
    """Return a curve's moving average [n], which begins and ends where the curve [n] does unless it is NaN there."""
    points = np.asarray(values, dtype=np.float64)
    smoothed = moving_average(points)
    for end in (0, -1):
        if np.isfinite(points[end]):
            smoothed[end] = points[end]
    return smoothed


def area_under_curve(x: ArrayLike, y: ArrayLike) -> Floats:
    """Return the area under each curve y [..., n] over the span of x [n]: the mean level over training [...], in the
    units of y."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 2:
        raise ValueError("an area needs at least two checkpoints")
    return np.asarray(integrate.trapezoid(y, x, axis=-1) / (x[-1] - x[0]))


@dataclass(frozen=True)
class TwoSegmentFit:
    """The best continuous two-segment line through each curve, by least squares.

    Every field has the shape of the curves' leading axes.

    Attributes:
        break_point: the epoch at which the line bends.
        level: the fitted value there.
        slope_before, slope_after: per epoch.
        at_edge: whether the break lies at the edge of the search, within half of a checkpoint's distance of the first
            or last that can be fitted: it may stand for one outside and does not tell when the curve bends.
    """

    break_point: Floats
    level: Floats
    slope_before: Floats
    slope_after: Floats
    at_edge: NDArray[np.bool_]

    @property
    def slope_ratio(self) -> Floats:
        """Slope after over slope before: 1 without a bend, near 0 where the change all but stops."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.slope_after / self.slope_before

    def line(self, x: ArrayLike) -> Floats:
        """Return the fitted values at `x`, for a fit of one curve."""
        offset = np.asarray(x, dtype=np.float64) - self.break_point
        return self.level + np.where(offset < 0, self.slope_before, self.slope_after) * offset


def two_segment_fit(x: ArrayLike, y: ArrayLike) -> TwoSegmentFit:
    """Fit a line that bends once to each curve y [..., n] over x [n], n of at least 6, by least squares.

    Break points lie on a grid, with three points at least on either side.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < FEWEST_POINTS:
        raise ValueError(f"a two-segment fit needs at least {FEWEST_POINTS} checkpoints, not {len(x)}")
    means = y.mean(axis=-1).reshape(-1)
    rows = y.reshape(-1, len(x)) - means[:, None]
    breaks, designs = _bends(x, 400)
    best = _residuals(designs, rows).argmin(axis=1)
    weights = (np.linalg.pinv(designs[best]) @ rows[:, :, None])[:, :, 0]
    at, before, after = breaks[best], weights[:, 1], weights[:, 1] + weights[:, 2]
    at_edge = (at < (x[2] + x[3]) / 2) | (at > (x[-3] + x[-4]) / 2)
    fields = (at, means + weights[:, 0] + before * at, before, after, at_edge)
    return TwoSegmentFit(*(field.reshape(y.shape[:-1]) for field in fields))


class Shape(StrEnum):
    """What a curve over epochs may be; the text completes "the curve is"."""

    LINE = "a straight line"
    DECAY = "saturating (exponential decay)"
    DRIFT = "saturating with a drift"
    POWER = "a power law"
    LOGISTIC = "S-shaped (logistic)"
    BEND = "two segments with a bend"


#: Parameters of each shape: those of the mean, the residuals' scale and their autocorrelation.
_PARAMETERS = {Shape.LINE: 4, Shape.DECAY: 5, Shape.DRIFT: 6, Shape.POWER: 6, Shape.LOGISTIC: 6, Shape.BEND: 6}
#: Autocorrelations of the residuals that are tried.
_CORRELATIONS = (0.0, 0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class ShapeComparison:
    """The BIC of each shape for each curve, in the shape of the curves' leading axes; smaller is better."""

    bic: Mapping[Shape, Floats]

    @property
    def bend_gain(self) -> Floats:
        """BIC of the best smooth shape minus BIC of the two segments: above 0 there is a bend and not just a curve."""
        return np.min([bic for shape, bic in self.bic.items() if shape != Shape.BEND], axis=0) - self.bic[Shape.BEND]

    @property
    def best_smooth(self) -> Shape:
        """The shape of a single curve without a bend that has the smallest BIC."""
        return min((shape for shape in self.bic if shape != Shape.BEND), key=lambda shape: float(self.bic[shape]))

    def weights(self) -> dict[Shape, Floats]:
        """BIC weights: each shape's share of exp(-BIC / 2), 1 in all."""
        share = special.softmax(-np.stack(list(self.bic.values())) / 2, axis=0)
        return dict(zip(self.bic, share, strict=True))


def compare_shapes(x: ArrayLike, y: ArrayLike) -> ShapeComparison:
    """Fit every shape to each curve y [..., n] over x [n], n of at least `FEWEST_FOR_SHAPES`, by maximum likelihood
    over grids of non-linear parameters."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = len(x)
    if n < FEWEST_FOR_SHAPES:
        raise ValueError(f"a comparison of shapes needs at least {FEWEST_FOR_SHAPES} checkpoints, not {n}")
    rows = y.reshape(-1, n) - y.mean(axis=-1).reshape(-1, 1)
    floor = 1e-12 * np.maximum((rows**2).sum(axis=1), 1e-300)
    bic = {}
    for shape, designs in _shape_designs(x).items():
        deviance = [
            n * np.log(np.maximum(_residuals(_whiten(designs, r), _whiten(rows, r)).min(axis=1), floor) / n)
            - np.log(1 - r**2)
            for r in _CORRELATIONS
        ]
        bic[shape] = (np.min(deviance, axis=0) + _PARAMETERS[shape] * np.log(n)).reshape(y.shape[:-1])
    return ShapeComparison(bic)


def fitted(x: ArrayLike, y: ArrayLike, shape: Shape) -> Floats:
    """Return the least-squares fit of a shape to one curve [n] at its epochs, [n]."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    designs = _shape_designs(x)[shape]
    design = designs[int(_residuals(designs, (y - y.mean())[None])[0].argmin())]
    return np.asarray(design @ np.linalg.lstsq(design, y, rcond=None)[0])


def _shape_designs(x: Floats) -> dict[Shape, Floats]:
    """Return the linear designs [t, n, k] of each shape, one for each value t of its non-linear parameters."""
    time, span, gap = x - x[0], x[-1] - x[0], np.diff(x).min()
    decay = np.exp(-time / np.geomspace(gap / 2, 3 * span, 160)[:, None])
    exponent, scale = np.geomspace(0.1, 3, 16)[:, None], np.geomspace(gap / 2, span / 2, 16)[:, None, None]
    middle, width = np.linspace(x[0], x[-1], 48)[:, None], np.geomspace(gap / 2, span / 3, 24)[:, None, None]
    return {
        Shape.LINE: _designs(x),
        Shape.DECAY: _designs(decay),
        Shape.DRIFT: _designs(x, decay),
        Shape.POWER: _designs((1 + time / scale) ** -exponent),
        Shape.LOGISTIC: _designs(special.expit((x - middle) / width)),
        Shape.BEND: _bends(x, 80)[1],
    }


def _bends(x: Floats, count: int) -> tuple[Floats, Floats]:
    """Break points [t] between the third and the last but two epochs, and their designs [t, n, 3]."""
    breaks = np.linspace(x[2], x[-3], count)
    return breaks, _designs(x, np.maximum(0, x - breaks[:, None]))


def _designs(*columns: Floats) -> Floats:
    """Stack a constant and columns [..., n] to designs [t, n, k], with one axis t for all parameters."""
    stacked = np.stack(np.broadcast_arrays(1.0, *columns), axis=-1)
    return stacked.reshape(-1, *stacked.shape[-2:])


def _whiten(values: Floats, correlation: float) -> Floats:
    """Subtract what the value before predicts along n of [m, n, ...]: autoregressive residuals get independent."""
    first = np.sqrt(1 - correlation**2) * values[:, :1]
    return np.concatenate((first, values[:, 1:] - correlation * values[:, :-1]), axis=1)


def _residuals(designs: Floats, curves: Floats) -> Floats:
    """Residual sums of squares of curves [m, n] under each of the designs [t, n, k], as [m, t]."""
    basis, _ = np.linalg.qr(designs)
    left = np.repeat((curves**2).sum(axis=1)[:, None], len(designs), axis=1)
    for vectors in np.moveaxis(basis, 2, 0):
        left -= (curves @ vectors.T) ** 2
    return np.maximum(left, 0)


def half_change(x: ArrayLike, y: ArrayLike) -> Floats:
    """Return the first epoch [...] at which each curve y [..., n] over x [n] has made half of its change.

    It is straight between checkpoints. NaN where it ends where it began.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    change = y[..., -1:] - y[..., :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        done = (y - y[..., :1]) / change  # 0 at the start, 1 at the end
        crossing = (done >= 0.5).argmax(axis=-1)[..., None]
        before = np.maximum(crossing - 1, 0)
        low, high = np.take_along_axis(done, before, -1), np.take_along_axis(done, crossing, -1)
        share = (0.5 - low) / (high - low)
    epoch = x[before] + share * (x[crossing] - x[before])
    return np.where(change == 0, np.nan, epoch)[..., 0]


def half_change_above_scatter(x: ArrayLike, y: ArrayLike) -> Floats:
    """Half-change epochs [...] of curves y [..., n] over x [n] smoothed over 3 checkpoints.

    NaN where a curve ends within 1.96 standard deviations (normal 95%) of its smoothing residuals of where it began.
    """
    y = np.asarray(y, dtype=np.float64)
    smoothed = moving_average(y)
    noise = 1.96 * (y - smoothed).std(axis=-1, ddof=1)
    change = np.abs(smoothed[..., -1] - smoothed[..., 0])
    return np.where(change > noise, half_change(x, smoothed), np.nan)
