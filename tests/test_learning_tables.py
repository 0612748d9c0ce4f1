"""A run's evaluations and answers read back as tables: what was written is what is counted."""

from __future__ import annotations

from synthetic_run import Truth

from knowledge_circuits.analysis import learning_tables
from knowledge_circuits.files import read_jsonl, write_json, write_jsonl
from knowledge_circuits.runs import Run
from knowledge_circuits.study import TASKS, Attribute, KnowledgeType

TRUTH = Truth()


def test_first_token_accuracy_is_tidy_by_type(synthetic_run: Run) -> None:
    table = learning_tables.first_token_accuracy(synthetic_run)
    rows = read_jsonl(synthetic_run.evaluations)
    written = {row["epoch"]: row["revised_first_token_attribute_accuracy"] for row in rows}
    revised = table[table["type"] == "revised"].set_index("epoch")["accuracy"]
    assert revised.to_dict() == written


def test_every_query_of_every_checkpoint_is_a_row(synthetic_run: Run) -> None:
    table = learning_tables.predictions(synthetic_run)
    assert list(table) == learning_tables.PREDICTION_COLUMNS
    assert len(table) == (TRUTH.epochs + 1) * 2 * 3 * TRUTH.people * len(Attribute)
    assert set(table.groupby("band")["frequency"].unique().map(tuple)) == {(1,), (3,), (8,)}


def test_facts_that_only_the_past_told_are_not_counted_as_learned(copied_run: Run) -> None:
    everything = learning_tables.predictions(copied_run)
    assert set(everything["attribute"]) == set(Attribute) and learning_tables.past_predictions(copied_run).empty
    write_json(copied_run.config, {"data": {"generated": {"mirrored_data_generation": {"mirror": "a"}}}})
    assert set(learning_tables.predictions(copied_run)["attribute"]) == set(TASKS)
    past = learning_tables.past_predictions(copied_run)
    assert set(past["attribute"]) == set(Attribute) - set(TASKS) and set(past["type"]) == {"revised"}
    assert len(past) + len(learning_tables.predictions(copied_run)) == len(everything) * (1 - 2 / 5 / 2)


def test_frequencies_written_as_text_are_understood(copied_run: Run) -> None:
    path = copied_run.checkpoints()[-1].predictions
    write_jsonl(path, [{**row, "frequency": str(row["frequency"])} for row in read_jsonl(path)])
    assert set(learning_tables.predictions(copied_run)["band"]) == {"low", "medium", "high"}


def test_attributes_known_are_counted_person_by_person(synthetic_run: Run) -> None:
    table = learning_tables.attributes_known(learning_tables.predictions(synthetic_run))
    path = synthetic_run.checkpoints()[5].predictions
    name = table["full_name"].iloc[0]
    answered = sum(row["correct"] for row in read_jsonl(path) if row["full_name"] == name)
    assert table.set_index("full_name").loc[name, 5.0] == answered
    assert len(table) == 2 * 3 * TRUTH.people


def test_published_curves_exist_for_the_papers_models_only() -> None:
    table = learning_tables.published_first_token_accuracy("gpt2")
    last = table[table["type"] == KnowledgeType.REVISED].iloc[-1]
    assert last["epoch"] == 24
    assert 0.9 < last["accuracy"] < 0.95
    assert learning_tables.published_first_token_accuracy("nano").empty
