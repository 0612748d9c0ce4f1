"""Worked examples for smoothing, areas, break points and half changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks import verdicts
from knowledge_circuits.analysis import curves


def test_smoothing_averages_three_neighbours_and_begins_and_ends_where_the_curve_does() -> None:
    assert curves.smooth([0, 3, 6, 0]) == pytest.approx([0, 3, 3, 0])
    assert curves.moving_average([0, 3, 6, 0]) == pytest.approx([1.5, 3, 3, 3])


def test_a_missing_point_is_left_out_of_the_averages() -> None:
    assert curves.smooth([1, np.nan, 3]) == pytest.approx([1, 2, 3])
    assert curves.smooth([np.nan, 1, 4, 2]) == pytest.approx([1, 2.5, 7 / 3, 2])


def test_curves_averaged_together_are_as_averaged_one_by_one() -> None:
    stack = np.random.default_rng(0).random((4, 9))
    assert curves.moving_average(stack) == pytest.approx(np.stack([curves.moving_average(row) for row in stack]))


def test_area_is_the_mean_level_over_the_epochs() -> None:
    assert curves.area_under_curve([0, 1, 3], [0, 1, 1]) == pytest.approx(2.5 / 3)
    assert curves.area_under_curve([0, 2, 10], [[0.4, 0.4, 0.4], [0, 1, 1]]) == pytest.approx([0.4, 0.9])


def test_an_area_needs_two_checkpoints() -> None:
    with pytest.raises(ValueError, match="two"):
        curves.area_under_curve([1], [1])


def bent(x: np.ndarray, at: float = 7.0, before: float = -0.4, after: float = -0.05) -> np.ndarray:
    return 8 + before * np.minimum(x, at) + after * np.maximum(x - at, 0)


def test_a_bent_line_is_found_where_it_bends() -> None:
    x = np.arange(19.0)
    noise = np.random.default_rng(0).normal(0, 0.02, len(x))
    fit = curves.two_segment_fit(x, bent(x) + noise)
    assert fit.break_point == pytest.approx(7, abs=0.3)
    assert fit.slope_before == pytest.approx(-0.4, abs=0.02)
    assert fit.slope_ratio == pytest.approx(0.125, abs=0.05)
    assert fit.line(x) == pytest.approx(bent(x), abs=0.1)


def test_a_break_at_the_edge_of_the_search_is_told_from_one_within_it() -> None:
    x = np.arange(11.0)
    curves_by_break = np.stack([bent(x, at, -0.4, 0.0) for at in (1, 2, 2.3, 2.7, 5, 7.3, 7.7, 9)])
    fit = curves.two_segment_fit(x, curves_by_break)
    assert fit.at_edge.tolist() == [True, True, True, False, False, False, True, True]
    assert fit.break_point[0] == 2 and fit.break_point[-1] == 8  # the first and last that can be fitted


def noisy(curve: np.ndarray, seed: int, scale: float = 0.02, count: int = 200) -> np.ndarray:
    return curve + np.random.default_rng(seed).normal(0, scale, (count, len(curve)))


def test_a_straight_line_does_not_pay_for_a_bend() -> None:
    x = np.arange(19.0)
    gains = curves.compare_shapes(x, noisy(8 - 0.2 * x, 1)).bend_gain
    assert (gains < 0).mean() > 0.8


@pytest.mark.parametrize(
    ("shape", "curve"),
    [
        (curves.Shape.LINE, lambda x: 8 - 0.2 * x),
        (curves.Shape.DECAY, lambda x: 6 + 2 * np.exp(-x / 4)),
        (curves.Shape.DRIFT, lambda x: 6 + 2 * np.exp(-x / 1.5) - 0.05 * x),
        (curves.Shape.POWER, lambda x: 6 + 2 / (1 + x) ** 0.5),
        (curves.Shape.LOGISTIC, lambda x: 6 + 2 / (1 + np.exp(x - 9))),
        (curves.Shape.BEND, lambda x: bent(x)),
    ],
)
def test_each_shape_is_told_from_the_others(shape: curves.Shape, curve: Callable[[np.ndarray], np.ndarray]) -> None:
    x = np.arange(19.0)
    weights = curves.compare_shapes(x, noisy(curve(x), 2)).weights()
    means = {name: float(weight.mean()) for name, weight in weights.items()}
    assert max(means, key=lambda name: means[name]) == shape
    assert sum(means.values()) == pytest.approx(1)


def test_autocorrelated_noise_does_not_make_a_bend_of_a_decay() -> None:
    x = np.arange(19.0)
    noise = np.random.default_rng(3).normal(0, 0.03, (300, len(x)))
    for place in range(1, len(x)):
        noise[:, place] += 0.6 * noise[:, place - 1]
    assert (curves.compare_shapes(x, 6 + 2 * np.exp(-x / 4) + noise).bend_gain > 2).mean() < 0.05


def test_the_likelihood_of_a_line_is_that_of_generalized_least_squares() -> None:
    x, y = np.arange(12.0), np.random.default_rng(3).normal(size=12)
    design, best = np.stack([np.ones(12), x], axis=1), np.inf
    for r in (0.0, 0.2, 0.4, 0.6, 0.8):
        covariance = r ** np.abs(np.subtract.outer(np.arange(12), np.arange(12))) / (1 - r**2)
        weights = np.linalg.inv(covariance)
        residual = y - design @ np.linalg.solve(design.T @ weights @ design, design.T @ weights @ y)
        best = min(best, 12 * np.log(residual @ weights @ residual / 12) + np.linalg.slogdet(covariance)[1])
    assert curves.compare_shapes(x, y).bic[curves.Shape.LINE] == pytest.approx(best + 4 * np.log(12))


def test_nine_checkpoints_are_too_few_to_compare_shapes() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        curves.compare_shapes(np.arange(9.0), np.arange(9.0))


def test_curves_fitted_together_are_as_fitted_one_by_one() -> None:
    x = np.arange(10.0)
    stack = np.random.default_rng(4).normal(size=(3, 10))
    together = curves.two_segment_fit(x, stack)
    alone = [curves.two_segment_fit(x, row) for row in stack]
    assert together.break_point == pytest.approx([float(fit.break_point) for fit in alone])
    gains = [float(curves.compare_shapes(x, row).bend_gain) for row in stack]
    assert curves.compare_shapes(x, stack).bend_gain == pytest.approx(gains)


def test_a_constant_curve_is_fitted_without_complaint() -> None:
    fit = curves.two_segment_fit(np.arange(8.0), np.full(8, 3.0))
    assert curves.compare_shapes(np.arange(10.0), np.full(10, 3.0)).bend_gain < 0
    assert fit.level == pytest.approx(3)


def test_five_checkpoints_are_too_few_for_a_bend() -> None:
    with pytest.raises(ValueError, match="at least 6"):
        curves.two_segment_fit(np.arange(5.0), np.arange(5.0))


def test_half_of_the_change_is_reached_between_the_checkpoints_around_it() -> None:
    assert curves.half_change([0, 1, 2, 4], [0, 0, 1, 4]) == pytest.approx(2 + 2 / 3)
    assert curves.half_change([0, 1, 2], [1, 0.9, 0]) == pytest.approx(1 + 0.4 / 0.9)


def test_the_first_time_counts_where_half_of_the_change_is_reached_twice() -> None:
    assert curves.half_change([0, 1, 2, 3], [0, 2, 0, 2]) == pytest.approx(0.5)


def test_a_curve_that_ends_where_it_began_has_no_half_change() -> None:
    assert np.isnan(curves.half_change([0, 1, 2], [[1, 5, 1], [0, 1, 2]])).tolist() == [True, False]


def test_a_change_within_the_noise_has_no_half() -> None:
    x = np.arange(20.0)
    noise = np.random.default_rng(5).normal(0, 0.1, (2, 20))
    found = curves.half_change_above_scatter(x, np.stack([noise[0], noise[1] + 1 / (1 + np.exp(7 - x))]))
    assert np.isnan(found[0]) and found[1] == pytest.approx(7, abs=0.5)


@pytest.mark.parametrize(("correlation", "passes"), [(0.0, 0.14), (0.5, 0.41), (0.8, 0.64)])
def test_the_scatter_criterion_is_no_test_of_change(correlation: float, passes: float):
    # docs/statistics.md gives these shares: curves without change that pass, on the depth study's checkpoints
    noise = verdicts.autoregressive(np.random.default_rng(0), (4000, len(verdicts.EPOCHS)), correlation)
    found = curves.half_change_above_scatter(verdicts.EPOCHS, noise)
    assert np.isfinite(found).mean() == pytest.approx(passes, abs=0.03)
