"""A fact is held after probes in a row; what the run's end leaves open is called so."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import verdicts
from knowledge_circuits.analysis import acquisition

KNOWN = np.array(
    [
        [0, 1, 1, 1, 1, 1],  # held from the second probe on, at the end too
        [0, 1, 0, 0, 0, 1],  # two lucky probes
        [1, 1, 1, 0, 0, 0],  # held and lost
        [0, 0, 0, 0, 1, 1],  # known at the end, for how long nobody saw
        [0, 0, 0, 0, 0, 0],
    ],
    dtype=bool,
)
EPOCHS = np.arange(6) / 2


def test_a_fact_is_held_from_the_first_of_enough_probes_in_a_row() -> None:
    np.testing.assert_array_equal(acquisition.held_epochs(KNOWN, EPOCHS, 3), [0.5, np.nan, 0.0, np.nan, np.nan])
    assert np.isnan(acquisition.held_epochs(KNOWN, EPOCHS, 7)).all()
    with pytest.raises(ValueError, match="not 0"):
        acquisition.held_epochs(KNOWN, EPOCHS, 0)


def test_the_table_over_the_number_of_probes_says_what_is_held_lost_and_censored() -> None:
    table = acquisition.hold_table(KNOWN).set_index("hold")
    assert table.index.tolist() == list(range(1, 9))
    assert table.loc[1].tolist() == [1.0, 0.75, 0.25, 0.0]  # of the four that were ever known
    assert table.loc[3].tolist() == [0.5, 0.25, 0.25, 0.5]
    assert table.loc[8].tolist() == [0.0, 0.0, 0.0, 0.75]


def test_nothing_known_has_no_shares() -> None:
    assert acquisition.hold_table(KNOWN[4:])["held"].isna().all()


def test_the_first_change_can_decide_the_sign_of_a_correlation_and_is_taken_out() -> None:
    loss = np.array([9.0, 4, 3.9, 3.6, 3.5, 3.1, 3.0, 2.9])
    known = np.array([0.0, 0.1, 0.2, 0.25, 0.4, 0.42, 0.5, 0.6])
    table = acquisition.loss_correlations(np.arange(8), loss, known).set_index("of")
    assert table["points"].tolist() == [7, 6, 8, 7, 0, 0]  # eight probes are too few for a trend
    without = np.corrcoef(np.diff(loss)[1:], np.diff(known)[1:])[0, 1]
    assert table.loc["changes without the first", "correlation"] == pytest.approx(without)
    few = acquisition.loss_correlations(np.arange(4), loss[:4], known[:4])
    assert few["correlation"].isna().tolist() == [True, True, False, True, True, True]


def flattening(generator: np.random.Generator, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss and knowledge that have nothing to do with one another but the time that they take."""
    noise = 0.02 * verdicts.autoregressive(generator, (2, len(epochs)), 0.5)
    loss, unknown = np.exp(-epochs / generator.uniform(1, 6, size=(2, 1))) + noise
    return loss, 1 - unknown


def test_unrelated_curves_that_flatten_out_correlate() -> None:
    generator, epochs = np.random.default_rng(0), np.arange(9)
    tables = [acquisition.loss_correlations(epochs, *flattening(generator, epochs)) for _ in range(200)]
    assert (np.median([table["correlation"][:4] for table in tables], axis=0) < -0.7).all()
    assert all(table["p"].isna().all() for table in tables)


def test_changes_beyond_the_trends_have_a_p_that_unrelated_curves_rarely_make_small() -> None:
    generator, epochs = np.random.default_rng(0), np.arange(26)
    tables = [acquisition.loss_correlations(epochs, *flattening(generator, epochs)) for _ in range(200)]
    assert (np.mean([table["p"][4:] < 0.05 for table in tables], axis=0) < 0.08).all()


def test_a_loss_that_falls_whenever_more_facts_are_learned_is_told_beyond_the_trends() -> None:
    generator, epochs = np.random.default_rng(0), np.arange(26)
    noise = 0.05 * generator.normal(size=26)
    table = acquisition.loss_correlations(epochs, np.exp(-epochs / 4) - noise, 1 - np.exp(-epochs / 7) + noise)
    assert (table["correlation"][4:] < -0.8).all() and (table["p"][4:] == 1 / table["points"][4:]).all()


def test_a_series_that_its_trend_explains_wholly_has_nothing_beyond_it() -> None:
    epochs = np.arange(12.0)
    table = acquisition.loss_correlations(epochs, 5 - epochs, np.zeros(12)).set_index("of")
    assert table["correlation"].isna().all()
    moved = acquisition.loss_correlations(epochs, 5 - epochs, np.sin(epochs)).set_index("of")
    assert np.isnan(moved.loc[acquisition.BEYOND_TRENDS, "correlation"])
