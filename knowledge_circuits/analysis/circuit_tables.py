"""What a run's circuits can do, as tidy tables: evaluation of each circuit, and its predictions on test items.

One row per observation, `step` and `epoch` in every table. A group of the study is named by task, type and band (plain
strings with the values of `study`), a group of one's own facts by task (the name of its file) and group. A table of
something that the run does not have yet is empty, with its columns. `setting` and `kind`: see `circuit_settings`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from knowledge_circuits.analysis.circuit_settings import (
    FACT_GROUP_COLUMNS,
    GROUP_COLUMNS,
    Kind,
    Setting,
    circuit_files,
    group_columns,
    main_kind,
    metric_of,
    names_of_groups,
)
from knowledge_circuits.analysis.learning_tables import answers
from knowledge_circuits.analysis.run_circuits import STABILITY_COLUMNS, Circuits
from knowledge_circuits.files import InputError
from knowledge_circuits.records import CircuitPrediction, CircuitResults, shape
from knowledge_circuits.runs import Content, Run
from knowledge_circuits.study import AnyGroup, FactGroup, groups

#: Hit@10: the label's first token is among the ten most probable (rank 0 is best).
HIT_RANK = 9

RESULT_NUMBERS = list(CircuitResults.__annotations__)
#: Of the study's groups; those of one's own facts have FACT_GROUP_COLUMNS in place of GROUP_COLUMNS.
RESULT_COLUMNS = ["step", "epoch", "circuit_step", *GROUP_COLUMNS, *RESULT_NUMBERS, "metric"]
#: The same; groups of one's own facts have target_group in place of target_type and target_band.
CIRCUIT_PREDICTION_COLUMNS = [
    *("step", "epoch", "circuit_step", *GROUP_COLUMNS, "target_type", "target_band"),
    *("full_name", "token_prob", "token_rank", "hit"),
]
_FACT_NUMBERS = [
    *("clean_baseline_performance", "corrupted_baseline_performance", "circuit_performance"),
    *("edges_num", "nodes_num", "edge_entropy", "faithfulness", "hit", "edge_jaccard", *STABILITY_COLUMNS),
]
FACT_CIRCUIT_COLUMNS = ["step", "epoch", "task", "group", *_FACT_NUMBERS]


def results(run: Run, setting: Setting | None = None, kind: Kind | None = None) -> pd.DataFrame:
    """Return the evaluation of every circuit; see RESULT_COLUMNS. faithfulness is NaN where clean equals corrupted.

    `circuit_step` is the circuit's origin: `step` itself unless the circuit was transferred. `metric` is what was
    measured, a value of `Metric`.
    """
    kind = kind or main_kind(run, setting)
    names = FACT_GROUP_COLUMNS if kind is FactGroup else GROUP_COLUMNS
    rows = [
        {**shape(CircuitResults).file(file.path), **file.columns, "metric": str(metric_of(file.coordinates))}
        for file in circuit_files(run, setting, Content.RESULTS, kind)
    ]
    columns = ["step", "epoch", "circuit_step", *names, *RESULT_NUMBERS, "metric"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(RESULT_NUMBERS, float))


def is_certain(results: pd.DataFrame) -> pd.Series:
    """Return whether there is something to restore in each row: clean minus corrupted is not 0 by its interval.

    True where the interval was not measured.
    """
    low, high = results["clean_minus_corrupted_low"], results["clean_minus_corrupted_high"]
    return ~((low <= 0) & (high >= 0))


def circuit_predictions(run: Run, setting: Setting | None = None, kind: Kind | None = None) -> pd.DataFrame:
    """Return every standalone circuit's predictions on test items; see CIRCUIT_PREDICTION_COLUMNS.

    type and band are the circuit's group, target_type and target_band the test items'. hit is 1.0 where the label's
    first token is among the ten most probable. full_name is the person, or the prompt of one's own facts.

    Raises:
        InputError: a file is damaged, or its folders name no group of test items.
    """
    rows: list[dict[str, Any]] = []
    kind = kind or main_kind(run, setting)
    names = FACT_GROUP_COLUMNS if kind is FactGroup else GROUP_COLUMNS
    for file in circuit_files(run, setting, Content.PREDICTIONS, kind):
        target: AnyGroup | None = file.coordinates.study_target
        if kind is FactGroup and file.coordinates.target:
            target = FactGroup(file.coordinates.task, file.coordinates.target)
        if target is None:
            folders = "target_<column>_<value>" if kind is FactGroup else "target_type_<type>/target_frequency_<band>"
            raise InputError(f"{file.path}: a prediction lies below {folders}")
        about = file.columns | {f"target_{name}": value for name, value in group_columns(target).items()}
        for item in shape(CircuitPrediction).lines(file.path):
            named = (item.get(key) for key in ("full_name", "clean_subject", "prompt", "clean"))
            prob, rank = float(item["token_prob"]), int(item["token_rank"])
            measured = {"token_prob": prob, "token_rank": rank, "hit": float(rank <= HIT_RANK)}
            rows.append({**about, "full_name": str(next(filter(None, named), "")), **measured})
    targets = [f"target_{name}" for name in names[1:]]
    columns = ["step", "epoch", "circuit_step", *names, *targets, *CIRCUIT_PREDICTION_COLUMNS[-4:]]
    return pd.DataFrame(rows, columns=columns)


def fact_circuits(results: pd.DataFrame, circuit_predictions: pd.DataFrame, circuits: Circuits | None) -> pd.DataFrame:
    """Return the evaluated circuits of groups of one's own facts; see FACT_CIRCUIT_COLUMNS.

    hit is Hit@10 of the circuit alone on its own group's test items, edge_jaccard the similarity to the group's circuit
    at its last step, the STABILITY_COLUMNS as in `read_circuits`; NaN where a part is missing. Transferred circuits are
    left out.

    Args:
        results, circuit_predictions, circuits: of groups of facts (`kind`).
    """
    keys = ["step", *FACT_GROUP_COLUMNS]
    hits = own_circuit_hits(circuit_predictions).groupby(keys, as_index=False)["hit"].mean()
    table = own_circuits(results).merge(hits, on=keys, how="left")
    columns = [*keys, "edge_jaccard", *STABILITY_COLUMNS]
    found = pd.DataFrame(columns=columns) if circuits is None else circuits.table[columns]
    found = found.drop_duplicates(keys)  # --group_by columns may share their values
    table = table.merge(found, on=keys, how="left")
    return table[FACT_CIRCUIT_COLUMNS].astype(dict.fromkeys(_FACT_NUMBERS, float))


def last_checkpoint(run: Run) -> pd.DataFrame:
    """Return the groups' numbers at the run's last checkpoint with results; see `last_numbers`."""
    return last_numbers(results(run), circuit_predictions(run), answers(run))


def last_numbers(results: pd.DataFrame, circuit_predictions: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the 18 groups' numbers at the last checkpoint that each table has, or those of one's own groups of facts.

    Returns:
        columns task, type, band (of one's own facts: task, group), prompts, edges, nodes, entropy, faithfulness,
        edges_for_90, hit (Hit@10 of the circuit on its own group's test items), accuracy and first_token (of the task's
        queries), of facts also recall (of questions); NaN where a part is missing.
    """
    edges = {"edges_num": "edges", "nodes_num": "nodes", "edge_entropy": "entropy"}
    answered = {"attribute": "task", "correct": "accuracy", "first_token_correct": "first_token"}
    parts = {
        (*edges.values(), "faithfulness", "prompts", "edges_for_90"): own_circuits(results).rename(columns=edges),
        ("hit",): own_circuit_hits(circuit_predictions),
        ("accuracy", "first_token", "recall"): predictions.rename(columns=answered),
    }
    names = next((names_of_groups(part) for part in parts.values() if len(part)), GROUP_COLUMNS)
    facts = names is FACT_GROUP_COLUMNS
    parts = {wanted: part if set(names) <= set(part) else part.iloc[:0] for wanted, part in parts.items()}
    filled = [part[names] for part in parts.values() if len(part)]
    table = pd.concat(filled).drop_duplicates() if facts else pd.DataFrame([group_columns(group) for group in groups()])
    for wanted, part in parts.items():
        columns = [name for name in wanted if name != "recall" or facts]
        if part.empty:
            table[columns] = np.nan
            continue
        # The questions of probes and the prompts of a file may have been asked at different steps.
        newest = part.groupby("task")["step"].transform("max") if facts else part["step"].max()
        last = part[part["step"] == newest].astype(dict.fromkeys(columns, float))
        means = last.groupby(names, as_index=False)[columns].mean()
        table = table.merge(means, on=names, how="left")
    return table.reset_index(drop=True)


def own_circuits(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `results` or `circuit_predictions` about a checkpoint's own circuits, not transferred ones."""
    return table[table["circuit_step"] == table["step"]]


def own_circuit_hits(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `circuit_predictions` where a checkpoint's own circuit runs on its own group's test items."""
    return on_own_group(own_circuits(table))


def on_own_group(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `circuit_predictions` where a circuit runs on the test items of its own group."""
    names = names_of_groups(table)[1:]
    own = (table[names].to_numpy() == table[[f"target_{name}" for name in names]].to_numpy()).all(axis=1)
    return table[own]
