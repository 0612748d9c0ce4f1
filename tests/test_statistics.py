"""Intervals, permutation tests and corrections: against scipy, worked examples and their own nulls."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from knowledge_circuits.analysis import statistics


def test_a_mean_over_runs_has_the_interval_and_p_of_students_t() -> None:
    values = np.random.default_rng(0).normal(0.5, 1, size=(3, 6))
    found = statistics.over_runs(values)
    for i, row in enumerate(values):
        test = stats.ttest_1samp(row, 0)
        assert found.p[i] == pytest.approx(test.pvalue)
        assert (found.low[i], found.high[i]) == pytest.approx(tuple(test.confidence_interval(0.95)))


@pytest.mark.parametrize("runs", [3, 5])
def test_t_intervals_contain_the_mean_as_often_as_they_say_if_runs_scatter_normally(runs: int) -> None:
    generator = np.random.default_rng(4)
    for draw, mean, share in ((generator.normal, 0, 0.95), (generator.exponential, 1, 0.88)):
        found = statistics.over_runs(draw(size=(20000, runs)))
        assert ((found.low < mean) & (mean < found.high)).mean() == pytest.approx(share, abs=0.01)


def test_one_run_has_no_interval_and_runs_that_agree_exactly_a_point() -> None:
    one = statistics.over_runs([0.3])
    assert np.isnan(one.low) and one.p == 1
    same, zero = statistics.over_runs([0.3, 0.3]), statistics.over_runs([0.0, 0.0])
    assert same.low == same.high == pytest.approx(0.3) and same.p == 0
    assert zero.p == 1


def test_swapped_labels_give_the_exact_p_of_the_sign_test_by_enumeration() -> None:
    differences, weights = np.array([1.0, 2.0, 3.0, 4.0]), np.full(4, 0.25)
    # Of the 16 assignments of signs only all plus and all minus reach the observed mean.
    assert statistics.label_swap_p(differences, weights) == pytest.approx(2 / 16, abs=0.01)
    assert statistics.label_swap_p(-differences, weights) == pytest.approx(2 / 16, abs=0.01)


def test_label_swaps_are_calibrated_and_stacks_are_as_one_by_one() -> None:
    differences = np.random.default_rng(1).normal(size=(500, 40))
    weights = np.full(40, 1 / 40)
    p = statistics.label_swap_p(differences, weights, resamples=399)
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.03)  # 3 standard errors of 500 draws
    assert statistics.label_swap_p(differences[0], weights, resamples=399) == p[0]


def test_the_correlation_with_depth_is_spearmans_over_the_layers_there_are() -> None:
    epochs = np.random.default_rng(0).random((5, 7))
    epochs[0, 2] = np.nan
    for row, value in zip(epochs, statistics.depth_correlation(epochs), strict=True):
        there = np.isfinite(row)
        assert value == pytest.approx(stats.spearmanr(row[there], np.arange(7)[there]).statistic)
    assert np.isnan(statistics.depth_correlation([1.0, np.nan, 2.0, np.nan]))


def test_permuted_layers_have_the_exact_p_by_enumeration() -> None:
    # One run of four layers in order: 2 of 24 orders have a correlation of 1 or -1.
    assert statistics.permuted_layers_p(np.array([[1.0, 2, 3, 4]])) == pytest.approx(2 / 24, abs=0.01)


def test_layers_that_change_at_the_same_time_have_no_order_and_no_p() -> None:
    assert np.isnan(statistics.permuted_layers_p(np.array([[2.0, 2, 2, 2]])))


def test_more_runs_in_the_same_order_make_it_less_likely_by_chance() -> None:
    epochs = np.array([[1.0, 3, 2, 5, 4, 6]])
    one, three = (statistics.permuted_layers_p(np.repeat(epochs, n, axis=0)) for n in (1, 3))
    assert three < one / 3


def test_circular_shifts_keep_the_autocorrelation_that_an_ordinary_test_takes_for_evidence() -> None:
    generator = np.random.default_rng(2)
    ordinary, shifted = [], []
    for _ in range(300):
        noise = generator.normal(size=(2, 130))
        x, y = (np.convolve(row, np.ones(20), mode="valid")[:100] for row in noise)
        ordinary.append(stats.pearsonr(x, y).pvalue < 0.05)
        shifted.append(statistics.circular_shift_correlation(x, y)[1] < 0.05)
    assert np.mean(ordinary) > 0.3
    assert np.mean(shifted) < 0.1


def test_a_correlation_by_circular_shifts_is_pearsons() -> None:
    x, y = np.random.default_rng(3).normal(size=(2, 12))
    y[3] = np.nan
    correlation, p = statistics.circular_shift_correlation(x, x + y)
    there = np.isfinite(y)
    assert correlation == pytest.approx(stats.pearsonr(x[there], (x + y)[there]).statistic)
    assert 1 / 11 <= p <= 1
    assert np.isnan(statistics.circular_shift_correlation([1.0, 1, 1, 1], [1.0, 2, 3, 4])).all()


def test_two_of_three_is_bonferroni_without_the_smallest() -> None:
    p = [0.2, 0.001, 0.01]
    assert statistics.partial_conjunction(p, 1) == pytest.approx(0.003)
    assert statistics.partial_conjunction(p, 2) == pytest.approx(0.02)
    assert statistics.partial_conjunction(p, 3) == pytest.approx(0.2)


def test_holm_is_that_of_statsmodels() -> None:
    p = np.random.default_rng(4).random((3, 6)) ** 3
    wanted = [multipletests(row, method="holm")[1] for row in p]
    assert statistics.holm(p) == pytest.approx(np.array(wanted))
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert len(statistics.holm([])) == 0
