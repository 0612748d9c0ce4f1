"""A fact is held after probes in a row; what the run's end leaves open is called so."""

from __future__ import annotations

import numpy as np
import pytest

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
    table = acquisition.loss_correlations(loss, known).set_index("of")
    assert table["points"].tolist() == [7, 6, 8, 7]
    without = np.corrcoef(np.diff(loss)[1:], np.diff(known)[1:])[0, 1]
    assert table.loc["changes without the first", "correlation"] == pytest.approx(without)
    assert acquisition.loss_correlations(loss[:4], known[:4])["correlation"].isna().tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_loss_and_knowledge_have_no_p_since_unrelated_curves_that_flatten_out_correlate() -> None:
    generator, epochs, found = np.random.default_rng(0), np.arange(11), []
    for _ in range(200):
        loss, unknown = np.exp(-epochs / generator.uniform(1, 6, size=(2, 1))) + 0.02 * generator.normal(size=(2, 11))
        table = acquisition.loss_correlations(loss, 1 - unknown)
        assert set(table) == {"of", "correlation", "points"}
        found.append(table["correlation"])
    assert (np.median(found, axis=0) < -0.7).all()
