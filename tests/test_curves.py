"""Worked examples for smoothing, areas, break points and half changes."""

from __future__ import annotations

import numpy as np
import pytest

from knowledge_circuits.analysis import curves


def test_smoothing_averages_three_neighbours_and_two_at_the_ends() -> None:
    assert curves.smooth([0, 3, 6, 0]).center == pytest.approx([1.5, 3, 3, 3])


def test_the_band_is_1_96_standard_deviations_of_the_residuals() -> None:
    points = np.array([0.0, 3, 6, 0])
    residuals = points - [1.5, 3, 3, 3]
    smoothed = curves.smooth(points)
    assert smoothed.half_width == pytest.approx(1.96 * residuals.std(ddof=1))
    assert smoothed.high - smoothed.low == pytest.approx(2 * smoothed.half_width)


def test_a_missing_point_is_left_out_of_the_averages() -> None:
    assert curves.smooth([1, np.nan, 3]).center == pytest.approx([1, 2, 3])


def test_a_window_has_a_middle() -> None:
    with pytest.raises(ValueError, match="odd"):
        curves.smooth([1, 2, 3], window=2)


def test_curves_smoothed_together_are_as_smoothed_one_by_one() -> None:
    stack = np.random.default_rng(0).random((4, 9))
    assert curves.moving_average(stack) == pytest.approx(np.stack([curves.smooth(row).center for row in stack]))


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
    assert fit.gain > 10
    assert fit.line(x) == pytest.approx(bent(x), abs=0.1)


def test_a_straight_line_does_not_pay_for_a_bend() -> None:
    x = np.arange(19.0)
    noise = np.random.default_rng(1).normal(0, 0.05, (200, len(x)))
    gains = curves.two_segment_fit(x, 8 - 0.2 * x + noise).gain
    assert (gains < 0).mean() > 0.8


def test_a_smooth_decay_is_told_from_a_bend() -> None:
    x = np.arange(19.0)
    noise = np.random.default_rng(2).normal(0, 0.02, len(x))
    decay = curves.two_segment_fit(x, 6 + 2 * np.exp(-x / 4) + noise)
    assert decay.gain > 0  # better than a line, which is why the decay is laid beside it
    assert decay.gain_over_decay < 0
    assert curves.two_segment_fit(x, bent(x) + noise).gain_over_decay > 0


def test_the_residuals_of_the_fit_are_those_of_ordinary_least_squares() -> None:
    x, y = np.arange(12.0), np.random.default_rng(3).normal(size=12)
    fit = curves.two_segment_fit(x, y)
    design = np.stack([np.ones(12), x, np.maximum(x - float(fit.break_point), 0)], axis=1)
    rss = np.linalg.lstsq(design, y)[1][0]
    assert fit.bic_two == pytest.approx(12 * np.log(rss / 12) + 5 * np.log(12))
    rss_line = np.polyfit(x, y, 1, full=True)[1][0]
    assert fit.bic_line == pytest.approx(12 * np.log(rss_line / 12) + 3 * np.log(12))


def test_curves_fitted_together_are_as_fitted_one_by_one() -> None:
    x = np.arange(10.0)
    stack = np.random.default_rng(4).normal(size=(3, 10))
    together = curves.two_segment_fit(x, stack)
    alone = [curves.two_segment_fit(x, row) for row in stack]
    assert together.break_point == pytest.approx([float(fit.break_point) for fit in alone])
    assert together.gain == pytest.approx([float(fit.gain) for fit in alone])


def test_a_constant_curve_is_fitted_without_complaint() -> None:
    fit = curves.two_segment_fit(np.arange(8.0), np.full(8, 3.0))
    assert fit.gain < 0
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
