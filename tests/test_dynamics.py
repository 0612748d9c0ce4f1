"""Knowledge dynamics, each measure on an example worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge_circuits.analysis.acquisition import share_of_ever_known
from knowledge_circuits.analysis.dynamics import (
    acquisition_epochs,
    acquisition_window,
    describe_facts,
    describe_groups,
    fact_history,
    forgetting_events,
    known_to_end_epochs,
    read_dynamics,
    run_dynamics,
)
from knowledge_circuits.analysis.relations import probe_table
from knowledge_circuits.files import InputError, write_json
from knowledge_circuits.runs import Run

EPOCHS = [0, 1, 2, 3, 4]
# Five facts at five probes: learned for good, learned and lost, on and off, never, known before and lost and back.
KNOWN = np.array(
    [
        [0, 0, 1, 1, 1],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0],
        [1, 0, 0, 0, 1],
    ],
    dtype=bool,
)


def test_a_fact_is_acquired_at_the_first_probe_that_finds_it_known():
    np.testing.assert_array_equal(acquisition_epochs(KNOWN, EPOCHS), [2, 1, 1, math.nan, 0])


def test_a_fact_is_known_to_the_end_from_the_epoch_after_which_it_is_never_unknown():
    np.testing.assert_array_equal(known_to_end_epochs(KNOWN, EPOCHS), [2, math.nan, math.nan, math.nan, 4])
    assert known_to_end_epochs(np.ones((1, 5), dtype=bool), EPOCHS).tolist() == [0]


def test_two_of_four_ever_known_facts_are_known_at_the_end():
    assert share_of_ever_known(KNOWN, KNOWN[:, -1]) == 2 / 4
    assert math.isnan(share_of_ever_known(KNOWN[3:4], KNOWN[3:4, -1]))


def test_every_fall_from_known_to_unknown_is_a_forgetting_event():
    assert forgetting_events(KNOWN).tolist() == [0, 1, 2, 0, 1]
    assert share_of_ever_known(KNOWN, forgetting_events(KNOWN) > 0) == 3 / 4
    assert math.isnan(share_of_ever_known(KNOWN[3:4], forgetting_events(KNOWN[3:4]) > 0))


def test_the_window_holds_the_acquisitions_from_a_tenth_to_nine_tenths():
    # Ten facts acquired at epochs 1, 2, 2, 2, 3, 3, 3, 4, 4, 5: the first makes 10%, the ninth 90%.
    epochs = list(range(6))
    at = [1, 2, 2, 2, 3, 3, 3, 4, 4, 5]
    known = np.array([[epoch >= start for epoch in epochs] for start in at])
    assert acquisition_window(known, epochs) == (1, 4)
    assert acquisition_window(known[1:], epochs) == (2, 5)  # of nine facts, the first makes 10% and the last 90%
    assert acquisition_window(KNOWN[:1], EPOCHS) == (2, 2)


def test_what_was_known_before_training_was_not_acquired_in_it():
    assert acquisition_window(KNOWN, EPOCHS) == (1, 2)
    assert all(math.isnan(end) for end in acquisition_window(KNOWN[4:], EPOCHS))


# --- files ----------------------------------------------------------------------------------------------------------


def records_of(known: np.ndarray = KNOWN, probs: list[float] | None = None) -> list[dict[str, Any]]:
    """Probe records of `known`: five facts of five people, new and revised in turn, frequencies 1, 2, 9, 1, 2."""
    rows: list[dict[str, Any]] = []
    for probe, epoch in enumerate(EPOCHS[: known.shape[1]]):
        when = {"step": probe * 10, "epoch": float(epoch)}
        for fact in range(len(known)):
            rows.append(
                {"kind": "fact", **when, "full_name": f"Person {fact}", "attribute": "city",
                 "type": ("new", "revised")[fact % 2], "frequency": (1, 2, 9)[fact % 3],
                 "correct": bool(known[fact, probe]), "token_prob": (probs or [0.1] * len(known))[fact],
                 "token_rank": 0, "answer_log_prob": -1.5}
            )  # fmt: skip
        accuracy = 0.8 - 0.2 * probe if probe < 4 else 0.9
        rows.append({"kind": "skill", **when, "skill": "arithmetic", "accuracy": accuracy, "examples": 10})
        rows.append({"kind": "text", **when, "text": "held_out", "perplexity": 20.0 + probe})
    return rows


def write_records(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_records_become_tables_and_the_matrix_of_known_facts(tmp_path: Path):
    dynamics = read_dynamics(write_records(tmp_path / "d.jsonl", records_of()))
    assert len(dynamics.facts) == 25 and len(dynamics.skills) == len(dynamics.texts) == 5
    history = fact_history(dynamics.facts)
    np.testing.assert_array_equal(history.known, KNOWN)
    assert history.steps.tolist() == [0, 10, 20, 30, 40] and history.epochs.tolist() == EPOCHS
    assert history.facts["band"].tolist() == ["low", "medium", "high", "low", "medium"]
    assert history.facts["type"].tolist() == ["new", "revised", "new", "revised", "new"]


def test_only_facts_that_training_tells_count(tmp_path: Path):
    run = Run(tmp_path)
    rows = [row | {"attribute": "birthday"} if row.get("full_name") == "Person 0" else row for row in records_of()]
    write_records(run.knowledge_dynamics, rows)
    assert len(run_dynamics(run).facts) == 25
    write_json(run.config, {"data": {"generated": {"mirrored_data_generation": {}}}})
    facts = run_dynamics(run).facts
    assert len(facts) == 20 and "Person 0" not in set(facts["full_name"])
    assert len(run_dynamics(run).skills) == 5


def test_an_empty_file_gives_empty_tables(tmp_path: Path):
    dynamics = read_dynamics(write_records(tmp_path / "d.jsonl", []))
    assert dynamics.facts.empty and dynamics.skills.empty and dynamics.texts.empty


@pytest.mark.parametrize(
    ("line", "change", "reason"),
    [
        (1, {"kind": "facts"}, "line 1: 'kind' must be one of 'fact', 'skill', 'text', not 'facts'"),
        (2, {"step": -1}, "line 2: 'step' must be at least 0, not -1"),
        (2, {"step": 1.5}, "line 2: 'step' must be a whole number"),
        (2, {"epoch": 10**400}, "line 2: 'epoch' must be a number, not 1000"),
        (2, {"epoch": "1"}, "line 2: 'epoch' must be a number, not '1'"),
        (3, {"attribute": "town"}, "line 3: 'attribute' must be 'birthday', 'city', .* not 'town'"),
        (3, {"type": "newer"}, "line 3: 'type' must be 'new' or 'revised', not 'newer'"),
        (3, {"frequency": 0}, "line 3: 'frequency' must be at least 1, not 0"),
        (3, {"correct": 1}, "line 3: 'correct' must be true or false"),
        (3, {"token_prob": 1.2}, "line 3: 'token_prob' must be at most 1.0001, not 1.2"),
        (3, {"answer_log_prob": None}, "line 3: 'answer_log_prob' must be a number"),
        (3, {"full_name": "Person 0"}, "line 3: the same probe at the same step already stands on line 1"),
        (3, {"full_name": "Somebody"}, "do not all ask for the same facts"),
        (6, {"accuracy": 1.5}, "line 6: 'accuracy' must be at most 1, not 1.5"),
        (7, {"perplexity": True}, "line 7: 'perplexity' must be a number"),
        (7, {"kind": "skill"}, "line 7: no key 'skill'"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused_with_its_line(line: int, change: dict, reason: str, tmp_path: Path):
    rows = records_of()
    rows[line - 1] |= change
    with pytest.raises(InputError, match=reason):
        read_dynamics(write_records(tmp_path / "d.jsonl", rows))


def test_a_probe_that_lacks_a_fact_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="same facts"):
        read_dynamics(write_records(tmp_path / "d.jsonl", records_of()[1:]))


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_value_is_read_or_refused_with_the_file(tmp_path_factory, data):
    rows = records_of()[:14]
    line = data.draw(st.integers(0, len(rows) - 1))
    key = data.draw(st.sampled_from(sorted(rows[line])))
    rows[line] = rows[line] | {key: data.draw(_VALUES)}
    path = write_records(tmp_path_factory.getbasetemp() / "fuzzed.jsonl", rows)
    try:
        dynamics = read_dynamics(path)
    except InputError as error:
        assert "fuzzed.jsonl" in str(error)
    else:
        assert sum(map(len, (dynamics.facts, dynamics.skills, dynamics.texts))) == len(rows)
        probe_table(dynamics)


# --- tables ---------------------------------------------------------------------------------------------------------


def test_each_fact_is_described_by_its_own_measures(tmp_path: Path):
    table = describe_facts(fact_history(read_dynamics(write_records(tmp_path / "d.jsonl", records_of())).facts))
    assert table["ever_known"].tolist() == [True, True, True, False, True]
    assert table["known_at_end"].tolist() == [True, False, False, False, True]
    assert table["forgetting_events"].tolist() == [0, 1, 2, 0, 1]


def test_groups_are_described_in_the_study_s_order(tmp_path: Path):
    history = fact_history(read_dynamics(write_records(tmp_path / "d.jsonl", records_of())).facts)
    bands = describe_groups(history, ["band"])
    assert bands["band"].tolist() == ["low", "medium", "high"]
    assert bands["facts"].tolist() == [2, 2, 1]
    assert bands["ever_known"].tolist() == [0.5, 1, 1]
    assert bands["known_at_end"].tolist() == [0.5, 0.5, 0]
    assert bands["forgetting_events"].tolist() == [0, 1, 2]
    assert bands["acquisition"].tolist() == [2, 0.5, 1]
    everything = describe_groups(history, [])
    assert everything["facts"].tolist() == [5] and everything["known_to_end"].tolist() == [0.5]
    assert (
        len(describe_groups(history)) == 5
    )  # (new, low), (new, medium), (new, high), (revised, low), (revised, medium)
