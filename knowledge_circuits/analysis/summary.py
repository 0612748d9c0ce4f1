"""What a run learned, as a small table of text: the last words of scripts/reproduce.sh.

One row per type and frequency band: first-token accuracy of the queries at the first, the middle and the last
checkpoint, whole-answer accuracy at the last one, and there the mean faithfulness of the tasks' circuits. Where only
the past told some facts, their rows follow: whether the people whom the model knew are still known. The table is
printed and saved as summary.txt in the run.
"""

from __future__ import annotations

import pandas as pd

from knowledge_circuits.analysis.circuit_tables import last_checkpoint
from knowledge_circuits.analysis.learning_tables import past_predictions, predictions
from knowledge_circuits.analysis.timeline import run_name
from knowledge_circuits.files import InputError
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Band, KnowledgeType

_KEYS = ["type", "band"]


def learning_table(run: Run) -> pd.DataFrame:
    """Accuracy and faithfulness by type and band.

    Returns:
        Rows indexed by (type, band), high bands first. Columns: `epoch <e>` for the first, the middle and the last
        epoch with predictions (first-token accuracy of the queries), `whole answer` and `faithfulness` (both at the
        last; faithfulness is NaN where no circuit was evaluated). `people` counts the people of the queries.

    Raises:
        InputError: the run has no predictions.
    """
    answers = predictions(run)
    if answers.empty:
        raise InputError(f"{run.path}: no predictions in its checkpoints; run predict.py first")
    table = _accuracies(answers)
    table["faithfulness"] = last_checkpoint(run).groupby(_KEYS)["faithfulness"].mean()
    return table


def _accuracies(answers: pd.DataFrame) -> pd.DataFrame:
    """People, first-token accuracy at three epochs and whole answers at the last, by type and band."""
    steps = sorted(answers["step"].unique())
    last = answers[answers["step"] == steps[-1]]
    table = pd.DataFrame({"people": last.groupby(_KEYS)["full_name"].nunique()})
    for step in dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1])):
        at_step = answers[answers["step"] == step]
        table[f"epoch {at_step['epoch'].iloc[0]:g}"] = at_step.groupby(_KEYS)["first_token_correct"].mean()
    table["whole answer"] = last.groupby(_KEYS)["correct"].mean()
    order = [(str(kind), str(band)) for kind in KnowledgeType for band in reversed(Band)]
    return table.reindex([key for key in order if key in table.index])


def summary_text(run: Run) -> str:
    """`learning_table` laid out for a terminal, with a heading that says what the columns are."""
    table, answers, past = learning_table(run), predictions(run), past_predictions(run)
    epochs = [column for column in table if column.startswith("epoch ")]
    lines = [
        f"What {run_name(run)} learned. First-token accuracy of the queries ({', '.join(epochs)}); at the last epoch",
        "also whole answers, and the mean faithfulness of the city, company and major circuits.",
        "",
    ]
    if len(past):
        lines += [f"New facts ({_named(answers)}): told in training, about everybody; never before", ""]
    lines += _rows(table)
    if len(past):
        heading = f"Past facts ({_named(past)}): told before training, about K_rel people only; some texts are replayed"
        lines += ["", heading, "", *_rows(_accuracies(past))]
    return "\n".join(lines) + "\n"


def _named(answers: pd.DataFrame) -> str:
    return ", ".join(sorted(set(answers["attribute"])))


def _rows(table: pd.DataFrame) -> list[str]:
    """Return the lines of a table, the head first."""
    lines = [f"{'type':8} {'band':7} {'people':>6}" + "".join(f" {column:>12}" for column in table.columns[1:])]
    for (kind, band), row in table.iterrows():
        cells = "".join(f" {'-' if pd.isna(value) else format(value, '.2f'):>12}" for value in row.iloc[1:])
        lines.append(f"{KnowledgeType(kind).symbol:8} {band:7} {int(row['people']):6d}{cells}")
    return lines
