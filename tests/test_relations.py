"""Knowledge beside loss, skill and circuits, and the choice of a checkpoint, on examples worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_dynamics import records_of, write_records

from knowledge_circuits.analysis.dynamics import fact_history, read_dynamics
from knowledge_circuits.analysis.relations import (
    loss_knowledge_correlation,
    prior_exposure,
    probe_table,
    select_checkpoints,
)


def test_a_probe_s_row_says_what_was_gained_and_lost_beside_loss_and_skill(tmp_path: Path):
    dynamics = read_dynamics(write_records(tmp_path / "d.jsonl", records_of()))
    evaluations = pd.DataFrame({"step": [10, 20, 40], "loss": [3.0, 2.0, 1.0]})
    table = probe_table(dynamics, evaluations)
    assert table["known"].tolist() == [1, 2, 2, 2, 2]
    assert table["gained"].tolist() == [0, 2, 1, 1, 1]
    assert table["lost"].tolist() == [0, 1, 1, 1, 1]
    np.testing.assert_allclose(table["skill"], [0.8, 0.6, 0.4, 0.2, 0.9])
    np.testing.assert_array_equal(table["loss"], [math.nan, 3, 2, math.nan, 1])
    np.testing.assert_array_equal(table["perplexity"], [20, 21, 22, 23, 24])


def test_likelier_facts_that_are_learned_earlier_give_a_negative_rank_correlation(tmp_path: Path):
    known = np.array([[0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=bool)
    rows = records_of(known, probs=[0.5, 0.4, 0.3, 0.2, 0.1])
    found = prior_exposure(fact_history(read_dynamics(write_records(tmp_path / "d.jsonl", rows)).facts))
    assert found["acquisition ~ base_prob"].value == pytest.approx(-1)
    assert found["acquisition ~ base_prob"].pairs == 5
    assert found["known_at_end ~ base_prob"].value == pytest.approx(math.sqrt(0.5))  # one tied group of 4 against 1
    assert set(found) == {
        f"{outcome} ~ {cause}" for outcome in ("acquisition", "known_at_end") for cause in ("base_prob", "frequency")
    }


def test_facts_of_one_person_do_not_count_as_many_in_a_p_value(tmp_path: Path):
    known = np.array([[0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=bool)
    once = records_of(known, probs=[0.5, 0.3, 0.4, 0.2, 0.1])
    again = [{**row, "attribute": other} for row in once if row["kind"] == "fact" for other in ("company", "major")]
    alone, thrice = (
        prior_exposure(fact_history(read_dynamics(write_records(tmp_path / f"{len(rows)}.jsonl", rows)).facts))
        for rows in (once, [*once, *again])
    )
    for name, correlation in alone.items():
        assert thrice[name].pairs == 3 * correlation.pairs
        assert thrice[name].p_value == pytest.approx(correlation.p_value, nan_ok=True)


def test_loss_that_falls_exactly_as_facts_are_gained_correlates_with_minus_one():
    assert loss_knowledge_correlation([5, 4, 2, 1.5], [0, 10, 30, 35]).value == pytest.approx(-1)
    assert loss_knowledge_correlation([5, 4, 2, 1.5], [0, 10, 30, 35]).pairs == 3


def test_a_loss_that_falls_evenly_tells_nothing_of_knowledge():
    result = loss_knowledge_correlation([4, 3, 2, 1], [0, 0, 5, 50])
    assert math.isnan(result.value) and result.pairs == 3
    assert loss_knowledge_correlation([math.nan, 3, 2, 1], [0, 0, 5, 50]).pairs == 2


def _probes(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"step": [0, 10, 20, 30], "epoch": [0, 1, 2, 3]} | columns)


def test_each_rule_picks_its_checkpoint_and_says_what_it_costs():
    probes = _probes(
        loss=[9, 2.0, 1.0, 1.5], known_share=[0, 0.3, 0.5, 0.6], known_twice=[0, 20, 40, 55], skill=[1, 0.9, 0.5, 0.4]
    )
    table = select_checkpoints(probes).set_index("rule")
    assert table["step"].to_dict() == {
        "lowest validation loss": 20,
        "most facts known twice in a row": 30,
        "knowledge minus skill lost": 10,  # 0.3 - 0.1 against 0.5 - 0.5 and 0.6 - 0.6
    }
    np.testing.assert_allclose(table["loss_excess"], [0, 0.5, 1])
    np.testing.assert_allclose(table["facts_forgone"], [15, 0, 35])
    np.testing.assert_allclose(table["skill_forgone"], [0.4, 0.5, 0])


def test_only_saved_checkpoints_are_chosen_and_rules_without_numbers_are_left_out():
    probes = _probes(
        loss=[math.nan] * 4, known_share=[0, 0.3, 0.5, 0.6], known_twice=[0, 20, 40, 55], skill=[math.nan] * 4
    )
    table = select_checkpoints(probes, saved_steps=[10, 20])
    assert table["rule"].tolist() == ["most facts known twice in a row"]
    assert table["step"].tolist() == [20]
