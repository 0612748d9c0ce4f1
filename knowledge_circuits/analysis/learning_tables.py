"""What a run learned, as tidy tables: its evaluations in training, its checkpoints' answers to queries, its probes.

One row per observation, `step` and `epoch` in every table; types, bands and attributes are plain strings with the
values of `study`. A table of something that the run does not have yet is empty, with its columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from knowledge_circuits.analysis.timeline import with_epochs
from knowledge_circuits.corpus.questions import UNMENTIONED
from knowledge_circuits.files import read_json
from knowledge_circuits.paths import PUBLISHED_ACCURACY
from knowledge_circuits.records import Evaluation, FactPrediction, Prediction, QuestionProbeRecord, shape
from knowledge_circuits.run_config import read_run_config, taught_attributes
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Band, KnowledgeType

EVALUATION_COLUMNS = ["step", "epoch", "loss", "accuracy"]
PREDICTION_COLUMNS = [
    *("step", "epoch", "full_name", "attribute", "type", "band", "frequency"),
    *("correct", "first_token_correct"),
]
FACT_PREDICTION_COLUMNS = ["step", "epoch", "task", "group", "prompt", "correct", "first_token_correct", "recall"]
#: The task of the questions of probes, which have no file of predictions.
QUESTIONS = "questions"


def evaluations(run: Run) -> pd.DataFrame:
    """Return all evaluations in step order; first-token accuracy in columns <type>_first_token_attribute_accuracy."""
    rows = shape(Evaluation).optional_lines(run.evaluations)
    table = pd.DataFrame(rows, columns=None if rows else EVALUATION_COLUMNS)
    return table.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)


def first_token_accuracy(run: Run) -> pd.DataFrame:
    """First-token accuracy on the validation biographies: columns step, epoch, type, accuracy."""
    columns = {f"{kind}_first_token_attribute_accuracy": str(kind) for kind in KnowledgeType}
    table = evaluations(run).rename(columns=columns).reindex(columns=["step", "epoch", *columns.values()])
    table = table.melt(["step", "epoch"], var_name="type", value_name="accuracy")
    return table.dropna(subset=["accuracy"], ignore_index=True)


def published_first_token_accuracy(model: str) -> pd.DataFrame:
    """Return the curves that the original published for a model (docs/reference): columns epoch, type, accuracy.

    Empty for a model that is not one of the paper's four. Epochs are evenly spaced from 0 to the last one.
    """
    curves = read_json(PUBLISHED_ACCURACY).get(model)
    if not isinstance(curves, dict):
        return pd.DataFrame(columns=["epoch", "type", "accuracy"])
    parts = []
    for knowledge in KnowledgeType:
        values = curves[knowledge.symbol]
        grid = np.linspace(0, curves["last_epoch"], len(values))
        parts.append(pd.DataFrame({"epoch": grid, "type": str(knowledge), "accuracy": values}))
    return pd.concat(parts, ignore_index=True)


def predictions(run: Run) -> pd.DataFrame:
    """Return every checkpoint's answers to queries about facts that training tells; see PREDICTION_COLUMNS."""
    table = _answers(run)
    return table[table["attribute"].isin(taught_attributes(read_run_config(run)))].reset_index(drop=True)


def past_predictions(run: Run) -> pd.DataFrame:
    """Return the answers to queries about facts that only the past told, of people whom the model knew (K_rel).

    Empty for a run whose training tells all attributes; what such a model knew before is not asked for.
    """
    table = _answers(run)
    past = ~table["attribute"].isin(taught_attributes(read_run_config(run)))
    return table[past & (table["type"] == KnowledgeType.REVISED)].reset_index(drop=True)


def _answers(run: Run) -> pd.DataFrame:
    """Return every checkpoint's answers to the query prompts; see PREDICTION_COLUMNS."""
    parts = []
    for checkpoint, step, epoch in with_epochs(run):
        if rows := shape(Prediction).optional_lines(checkpoint.predictions):
            parts.append(pd.DataFrame(rows).reindex(columns=PREDICTION_COLUMNS).assign(step=step, epoch=epoch))
    if not parts:
        return pd.DataFrame(columns=PREDICTION_COLUMNS)
    table = pd.concat(parts, ignore_index=True)
    table["band"] = table["frequency"].map({f: str(Band.of(f)) for f in table["frequency"].unique()})
    return table.astype({"frequency": int, "correct": float, "first_token_correct": float})


def answers(run: Run) -> pd.DataFrame:
    """Return `predictions`, or `fact_predictions` for a run that has only these."""
    table = predictions(run)
    own = fact_predictions(run) if table.empty else table
    return own if len(own) else table


def fact_predictions(run: Run) -> pd.DataFrame:
    """Return the answers about one's own facts: to prompts (`predict.py`), and to the questions of probes.

    Returns:
        FACT_PREDICTION_COLUMNS, correct as 1.0. A prompt has no recall. A question is correct where its answer matches
        exactly; its group is its kind and, where there are several, its entity's frequency. Questions about entities
        that no document mentions are left out.
    """
    rows = [
        {"step": step, "epoch": epoch, "task": task, **row}
        for checkpoint, step, epoch in with_epochs(run)
        for task, path in checkpoint.fact_prediction_files().items()
        for row in shape(FactPrediction).lines(path)
    ]
    table = pd.DataFrame([*rows, *_question_rows(run)], columns=FACT_PREDICTION_COLUMNS)
    return table.astype({"correct": float, "first_token_correct": float, "recall": float})


def _question_rows(run: Run) -> list[dict[str, Any]]:
    """Return the answers to the questions of all probes."""
    probes = shape(QuestionProbeRecord).optional_lines(run.question_probes)
    asked = [(probe, row) for probe in probes for row in probe["questions"] if row["frequency"] != UNMENTIONED]
    several = len({row["frequency"] for _, row in asked}) > 1
    return [
        {
            **{"step": probe["step"], "epoch": probe["epoch"], "task": QUESTIONS, "prompt": row["id"]},
            "group": " / ".join(part for part in (row["kind"], row["frequency"] if several else None) if part) or "all",
            **{"correct": row["exact"], "first_token_correct": np.nan, "recall": row["recall"]},
        }
        for probe, row in asked
    ]


def facts_known(table: pd.DataFrame) -> pd.DataFrame:
    """Return how well each of one's own facts in `fact_predictions` is answered over training.

    Returns:
        columns task, group, prompt, then one column per epoch: a question's recall; of a prompt 1.0 where the whole
        answer is right, else 0.0; NaN where it was not asked.
    """
    level = table.assign(level=table["recall"].fillna(table["correct"]))
    return level.pivot_table(index=["task", "group", "prompt"], columns="epoch", values="level").reset_index()


def attributes_known(table: pd.DataFrame) -> pd.DataFrame:
    """Return how many of each person's attributes in `predictions` each checkpoint answers.

    Returns:
        columns type, band, frequency, full_name, then one column per epoch: an integer from 0 on.
    """
    keys = ["type", "band", "frequency", "full_name"]
    if table.empty:
        return pd.DataFrame(columns=keys)
    wide = table.pivot_table(index=keys, columns="epoch", values="correct", aggfunc="sum")
    return wide.fillna(0).astype(int).reset_index()
