"""Curves over epochs: smoothing, area, break point, and when half of a change is done.

    smooth            centred moving average over 3 checkpoints that narrows at the ends
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

#: Half-width of a normal 95% interval in standard deviations.
NORMAL_95 = 1.96
#: A two-segment fit has four parameters; fewer points than this cannot tell it from a line.
FEWEST_POINTS = 6
#: A comparison of shapes fits up to six parameters.
FEWEST_FOR_SHAPES = 10
_GRID = 400


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


def smooth(values: ArrayLike, window: int = 3) -> Floats:
    """Return a curve's moving average [n], which begins and ends where the curve does: there the window narrows.

    Args:
        values: [n] in epoch order; NaN where missing.
        window: an odd number of points.
    """
    points = np.asarray(values, dtype=np.float64)
    center = moving_average(points, window)
    for margin in range(min(window, len(points)) // 2):
        narrow = moving_average(points, 2 * margin + 1)
        for index in (margin, -1 - margin):
            center[index] = narrow[index] if np.isfinite(narrow[index]) else center[index]
    return center


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
        at_edge: whether the break lies at the edge of the search (`at_edge`).
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

    Break points lie on a grid. At least three points lie on either side of the break, or on it, so that no single
    checkpoint makes a segment.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < FEWEST_POINTS:
        raise ValueError(f"a two-segment fit needs at least {FEWEST_POINTS} checkpoints, not {len(x)}")
    means = y.mean(axis=-1).reshape(-1)
    rows = y.reshape(-1, len(x)) - means[:, None]
    breaks, designs = _bends(x, _GRID)
    best = _residuals(designs, rows).argmin(axis=1)
    weights = (np.linalg.pinv(designs[best]) @ rows[:, :, None])[:, :, 0]
    level, shape = means + weights[:, 0] + weights[:, 1] * breaks[best], y.shape[:-1]
    return TwoSegmentFit(
        break_point=breaks[best].reshape(shape),
        level=level.reshape(shape),
        slope_before=weights[:, 1].reshape(shape),
        slope_after=(weights[:, 1] + weights[:, 2]).reshape(shape),
        at_edge=at_edge(x, breaks[best]).reshape(shape),
    )


def at_edge(x: Floats, break_point: ArrayLike) -> NDArray[np.bool_]:
    """Return whether breaks lie within half of a checkpoint's distance of the first or last that can be fitted.

    Such a break may stand for one outside of the search: it does not tell when the curve bends.

    Args:
        x: [n] epochs, n of at least 6.
        break_point: [...] epochs.
    """
    breaks = np.asarray(break_point, dtype=np.float64)
    return np.asarray((breaks < (x[2] + x[3]) / 2) | (breaks > (x[-3] + x[-4]) / 2))


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
    """How well each shape describes each curve.

    Attributes:
        bic: by shape, in the shape of the curves' leading axes; smaller is better.
    """

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
    """Fit every shape to each curve y [..., n] over x [n] by maximum likelihood.

    Non-linear parameters are taken from grids. n is at least `FEWEST_FOR_SHAPES`.
    """
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

    def stack(*columns: Floats) -> Floats:
        return np.stack(np.broadcast_arrays(np.ones_like(x), *columns), axis=-1)

    decay = np.exp(-time / np.geomspace(gap / 2, 3 * span, 160)[:, None])
    exponent, scale = _pairs(np.geomspace(0.1, 3, 16), np.geomspace(gap / 2, span / 2, 16))
    middle, width = _pairs(np.linspace(x[0], x[-1], 48), np.geomspace(gap / 2, span / 3, 24))
    return {
        Shape.LINE: stack(x)[None],
        Shape.DECAY: stack(decay),
        Shape.DRIFT: stack(x, decay),
        Shape.POWER: stack((1 + time / scale) ** -exponent),
        Shape.LOGISTIC: stack(special.expit((x - middle) / width)),
        Shape.BEND: _bends(x, 80)[1],
    }


def _pairs(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Return all pairs of two parameters' values as two columns [t, 1]."""
    one, two = np.meshgrid(first, second)
    return one.reshape(-1, 1), two.reshape(-1, 1)


def _bends(x: Floats, count: int) -> tuple[Floats, Floats]:
    """Break points [t] between the third and the last but two epochs, and their designs [t, n, 3]."""
    breaks = np.linspace(x[2], x[-3], count)
    hinge = np.maximum(0, x - breaks[:, None])
    return breaks, np.stack(np.broadcast_arrays(np.ones_like(x), x, hinge), axis=-1)


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
    """Return the first epoch [...] at which each curve y [..., n] over x [n] has made half of its way.

    Its way goes from its first to its last value. Between two checkpoints the curve is taken as straight. A curve that
    ends where it began has no such epoch (NaN).
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

    NaN where a curve ends within 1.96 standard deviations of its smoothing residuals of where it began.
    """
    y = np.asarray(y, dtype=np.float64)
    smoothed = moving_average(y)
    noise = NORMAL_95 * (y - smoothed).std(axis=-1, ddof=1)
    change = np.abs(smoothed[..., -1] - smoothed[..., 0])
    return np.where(change > noise, half_change(x, smoothed), np.nan)
