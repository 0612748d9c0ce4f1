"""What a run's circuits can do, as tidy tables: evaluation of each circuit, and its predictions on test items.

One row per observation, `step` and `epoch` in every table; types, bands and tasks are plain strings with the values of
`study`. A table of something that the run does not have yet is empty, with its columns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knowledge_circuits.analysis.circuit_settings import (
    GROUP_COLUMNS,
    Setting,
    circuit_files,
    files_by_checkpoint,
    group_columns,
)
from knowledge_circuits.analysis.learning_tables import predictions
from knowledge_circuits.analysis.run_circuits import STABILITY_COLUMNS, Visitor, details_of, stability_columns
from knowledge_circuits.engine import topology
from knowledge_circuits.engine.graph_files import read_graph
from knowledge_circuits.files import InputError
from knowledge_circuits.records import CircuitPrediction, CircuitResults, shape
from knowledge_circuits.runs import Content, Run
from knowledge_circuits.study import FactGroup, groups

#: Hit@10: the label's first token is among the ten most probable (rank 0 is best).
HIT_RANK = 9

_RESULT_NUMBERS = list(CircuitResults.__annotations__)
RESULT_COLUMNS = ["step", "epoch", "circuit_step", *GROUP_COLUMNS, *_RESULT_NUMBERS]
CIRCUIT_PREDICTION_COLUMNS = [
    *("step", "epoch", "circuit_step", *GROUP_COLUMNS, "target_type", "target_band"),
    *("full_name", "token_prob", "token_rank", "hit"),
]
_FACT_NUMBERS = [
    *("clean_baseline_performance", "corrupted_baseline_performance", "circuit_performance"),
    *("edges_num", "nodes_num", "edge_entropy", "faithfulness", "hit", "edge_jaccard", *STABILITY_COLUMNS),
]
FACT_CIRCUIT_COLUMNS = ["step", "epoch", "task", "group", *_FACT_NUMBERS]


def results(run: Run, setting: Setting | None = None) -> pd.DataFrame:
    """Return the evaluation of every circuit; see RESULT_COLUMNS. faithfulness is NaN where clean equals corrupted.

    `circuit_step` is the circuit's origin: `step` itself unless the circuit was transferred.
    """
    rows = [
        {**shape(CircuitResults).file(file.path), **file.columns, "circuit_step": file.circuit_step}
        for file in circuit_files(run, setting, Content.RESULTS)
    ]
    return pd.DataFrame(rows, columns=RESULT_COLUMNS).astype(dict.fromkeys(_RESULT_NUMBERS, float))


def is_certain(results: pd.DataFrame) -> pd.Series:
    """Return whether there is something to restore in each row: clean minus corrupted is not 0 by its interval.

    True where the interval was not measured.
    """
    low, high = results["clean_minus_corrupted_low"], results["clean_minus_corrupted_high"]
    return ~((low <= 0) & (high >= 0))


def circuit_predictions(run: Run, setting: Setting | None = None) -> pd.DataFrame:
    """Return every standalone circuit's predictions on test items; see CIRCUIT_PREDICTION_COLUMNS.

    type and band are the circuit's group, target_type and target_band the test items'. hit is 1.0 where the label's
    first token is among the ten most probable.

    Raises:
        InputError: a file is damaged, or its folders name no group of test items.
    """
    rows: list[dict[str, Any]] = []
    files, lengths = [], []
    for file in circuit_files(run, setting, Content.PREDICTIONS):
        items = shape(CircuitPrediction).lines(file.path)
        rows += items
        lengths.append(len(items))
        target = file.coordinates.study_target
        if target is None:
            raise InputError(f"{file.path}: a prediction lies below target_type_<type>/target_frequency_<band>")
        of_target = {"target_type": str(target.type), "target_band": str(target.band)}
        files.append({**file.columns, "circuit_step": file.circuit_step, **of_target})
    if not rows:
        return pd.DataFrame(columns=CIRCUIT_PREDICTION_COLUMNS)
    table = pd.DataFrame(files).loc[np.repeat(np.arange(len(files)), lengths)].reset_index(drop=True)
    table["full_name"] = [row.get("full_name", row.get("clean_subject", "")) for row in rows]
    table["token_prob"] = [float(row["token_prob"]) for row in rows]
    table["token_rank"] = [int(row["token_rank"]) for row in rows]
    table["hit"] = (table["token_rank"] <= HIT_RANK).astype(float)
    return table[CIRCUIT_PREDICTION_COLUMNS]


def fact_circuits(run: Run, setting: Setting | None = None, visit: Visitor | None = None) -> pd.DataFrame:
    """Return the evaluated circuits of groups of one's own facts; see FACT_CIRCUIT_COLUMNS.

    hit is Hit@10 of the circuit alone on its own group's test items, edge_jaccard the similarity to the group's circuit
    at its last step, the STABILITY_COLUMNS as in `read_circuits`; NaN where a part is missing. Transferred circuits are
    left out.

    Args:
        visit: as in `read_circuits`.
    """
    rows: list[dict[str, Any]] = []
    edges: dict[tuple[str, str], list[tuple[int, NDArray[np.bool_]]]] = {}  # by task and group: row and membership
    for step, epoch, files in files_by_checkpoint(run, setting):
        for (key, content), path in files.items():
            group = key.any_group
            if content is not Content.RESULTS or key.origin is not None or not isinstance(group, FactGroup):
                continue
            names = {"step": step, "epoch": epoch, "task": group.task, "group": group.name}
            row = {**shape(CircuitResults).file(path), **names}
            own = files.get((replace(key, target=key.group), Content.PREDICTIONS))
            if own is not None:
                ranks = [item["token_rank"] for item in shape(CircuitPrediction).lines(own)]
                row["hit"] = float(np.mean(np.array(ranks) <= HIT_RANK)) if ranks else np.nan
            circuit = files.get((key, Content.GRAPH))
            if circuit is not None:
                graph = read_graph(circuit)
                edges.setdefault((group.task, group.name), []).append((len(rows), topology.membership(graph)))
                details = details_of(key, circuit, graph.layout)
                row |= stability_columns(details, graph)
                if visit is not None:
                    visit(step, epoch, group, details.attached(graph))
            rows.append(row)
    table = pd.DataFrame(rows, columns=FACT_CIRCUIT_COLUMNS)
    for members in edges.values():
        for index, member in members:
            table.loc[index, "edge_jaccard"] = float(topology.jaccard(member, members[-1][1]))
    return table.astype(dict.fromkeys(_FACT_NUMBERS, float))


def last_checkpoint(run: Run, setting: Setting | None = None) -> pd.DataFrame:
    """Return the 18 groups' numbers at the run's last checkpoint with results; see `last_numbers`."""
    return last_numbers(results(run, setting), circuit_predictions(run, setting), predictions(run))


def last_numbers(results: pd.DataFrame, circuit_predictions: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the 18 groups' numbers at the last checkpoint that each table has.

    Returns:
        columns task, type, band, prompts, edges, nodes, entropy, faithfulness, edges_for_90, hit (Hit@10 of the
        circuit on its own group's test items), accuracy and first_token (of the task's queries); NaN where a part is
        missing.
    """
    edges = {"edges_num": "edges", "nodes_num": "nodes", "edge_entropy": "entropy"}
    answers = {"attribute": "task", "correct": "accuracy", "first_token_correct": "first_token"}
    parts = {
        (*edges.values(), "faithfulness", "prompts", "edges_for_90"): own_circuits(results).rename(columns=edges),
        ("hit",): own_circuit_hits(circuit_predictions),
        ("accuracy", "first_token"): predictions.rename(columns=answers),
    }
    table = pd.DataFrame([group_columns(group) for group in groups()])
    for columns, part in parts.items():
        last = part[part["step"] == part["step"].max()].astype(dict.fromkeys(columns, float))
        means = last.groupby(GROUP_COLUMNS, as_index=False)[list(columns)].mean()
        table = table.merge(means, on=GROUP_COLUMNS, how="left")
    return table


def own_circuits(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `results` or `circuit_predictions` about a checkpoint's own circuits, not transferred ones."""
    return table[table["circuit_step"] == table["step"]]


def own_circuit_hits(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `circuit_predictions` where a checkpoint's own circuit runs on its own group's test items."""
    own = own_circuits(table)
    return own[(own["type"] == own["target_type"]) & (own["band"] == own["target_band"])]
