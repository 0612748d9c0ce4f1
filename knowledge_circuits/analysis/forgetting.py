"""Forgetting: what becomes of old facts and their circuits while a finished model is trained on other facts.

A forgetting run goes on from the last checkpoint of an original run with biographies of new people, a share of which
(the replay ratio) is replaced by biographies of the original people (`replay`). It is a run like any other, whose
checkpoint-0 is the original model. An experiment is a folder of such runs, one for each ratio:

    outputs/forget/<model>/replay_<r>/checkpoints/checkpoint-<step>/

Every table here is one of `learning_tables` or `circuit_tables` over all of the experiment's runs, with a column
`ratio`. Circuits are of two kinds:

    rediscovered   discovered anew at each checkpoint
    transferred    the original model's circuits in the weights of each checkpoint (circuit_eval.py --circuit_from)

(Ou et al. 2025, the forgetting experiment.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from knowledge_circuits.analysis import circuit_tables, components, learning_tables, run_circuits, timeline
from knowledge_circuits.analysis.circuit_settings import GROUP_COLUMNS
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.analysis.statistics import over_runs
from knowledge_circuits.engine import topology
from knowledge_circuits.files import InputError
from knowledge_circuits.paths import REPOSITORY
from knowledge_circuits.run_config import Flags, read_run_config
from knowledge_circuits.runs import Checkpoint, Run
from knowledge_circuits.study import Group

_PREFIX = "replay_"
SHAPE_COLUMNS = ["ratio", "step", "epoch", *GROUP_COLUMNS, "edges", "entropy", "edge_jaccard", "node_jaccard"]
ACTIVATION_COLUMNS = ["ratio", "step", "epoch", *GROUP_COLUMNS, "layer", "activation", "change"]
SUMMARY_COLUMNS = [
    *("replay ratio", "known before", "known after", "lowest", "at step", "change, low", "change, high", "lost"),
    *("gained", "first token after", "loss after", "edge Jaccard", "faithfulness, rediscovered"),
    *("faithfulness, transferred", "Hit@10, rediscovered", "Hit@10, transferred"),
]


class CircuitKind(StrEnum):
    """How a circuit came to be evaluated at a checkpoint."""

    REDISCOVERED = "rediscovered"
    TRANSFERRED = "transferred"


@dataclass(frozen=True)
class ForgettingRun:
    """One run of the experiment.

    Attributes:
        ratio: the share of training documents that replayed ones replace.
        start: the original run's checkpoint that it went on from; None where its configuration does not say.
    """

    ratio: float
    run: Run
    start: Checkpoint | None


@dataclass(frozen=True)
class Experiment:
    """Runs that went on from the same model with different replay ratios.

    Attributes:
        folder: where they lie.
        runs: by rising ratio, at least one.
    """

    folder: Path
    runs: tuple[ForgettingRun, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(part.ratio for part in self.runs)

    @property
    def original(self) -> Run | None:
        """The run whose last checkpoint is trained on, by the first configuration that tells; it may be gone."""
        start = next((part.start for part in self.runs if part.start), None)
        return Run(Path(start.path).parent.parent) if start else None

    @property
    def name(self) -> str:
        """How figures call the experiment."""
        folder = self.folder.resolve()
        name = f"{folder.parent.name}/{folder.name}"
        return f"{name}, which continues {timeline.run_name(self.original)}" if self.original else name


def find_experiment(path: str) -> Experiment:
    """Return the experiment that a notebook is about.

    Args:
        path: the folder of its runs; a relative one is looked up from the working folder, then from the repository's
            root.

    Raises:
        InputError: no such experiment, or runs of it that went on from different checkpoints.
    """
    wanted = Path(path).expanduser()
    for folder in (wanted, REPOSITORY / wanted):
        runs = tuple(sorted(_runs_in(folder), key=lambda part: part.ratio))
        if runs:
            starts = {part.start.path for part in runs if part.start}
            if len(starts) > 1:
                raise InputError(f"{folder}: the runs continue different checkpoints: {', '.join(sorted(starts))}")
            return Experiment(folder, runs)
    raise InputError(
        f"{wanted}: no forgetting runs ({_PREFIX}<ratio>/checkpoints) in it; run scripts/nano/forget.sh, or set RUN to"
        " a folder of them"
    )


def _runs_in(folder: Path) -> list[ForgettingRun]:
    runs = []
    for checkpoints in sorted(folder.glob(f"{_PREFIX}*/checkpoints")):
        run = Run(checkpoints.parent)
        flags = read_run_config(run).arguments
        runs.append(ForgettingRun(_ratio(run, flags), run, _start(flags)))
    return runs


def _ratio(run: Run, flags: Flags) -> float:
    """Return the replay ratio by the run's configuration or, without one, by its folder's name."""
    if flags.replay_ratio is not None:
        return flags.replay_ratio
    try:
        ratio = float(run.path.name.removeprefix(_PREFIX))
    except ValueError:
        ratio = math.nan
    if not 0 <= ratio <= 1:
        raise InputError(f"{run.path}: neither run_config.json nor the folder's name tells a replay ratio from 0 to 1")
    return ratio


def _start(flags: Flags) -> Checkpoint | None:
    path = flags.model_name_or_path
    checkpoint = Checkpoint(path, Path(path)) if path is not None else None
    return checkpoint if checkpoint and checkpoint.step is not None else None


# --- tables -----------------------------------------------------------------------------------------------------------


def evaluations(experiment: Experiment) -> pd.DataFrame:
    """Return every evaluation on the original's validation biographies: `learning_tables.evaluations` and ratio."""
    return _over(experiment, lambda part: learning_tables.evaluations(part.run))


def first_token_accuracy(experiment: Experiment) -> pd.DataFrame:
    """First-token accuracy on the original's validation biographies: columns step, epoch, type, accuracy, ratio."""
    return _over(experiment, lambda part: learning_tables.first_token_accuracy(part.run))


def predictions(experiment: Experiment) -> pd.DataFrame:
    """Return each checkpoint's answers about the original people: `learning_tables.predictions` and ratio."""
    return _over(experiment, lambda part: learning_tables.predictions(part.run))


def results(experiment: Experiment) -> pd.DataFrame:
    """Return every circuit's faithfulness: `circuit_tables.results`, ratio and kind (see `CircuitKind`)."""
    return _over(experiment, lambda part: with_kind(circuit_tables.results(part.run, kind=Group), part.start))


def circuit_predictions(experiment: Experiment) -> pd.DataFrame:
    """Return what every circuit answers alone on its own group's test items, with columns ratio and kind."""
    read = circuit_tables.circuit_predictions
    table = _over(experiment, lambda part: with_kind(read(part.run, kind=Group), part.start))
    return circuit_tables.on_own_group(table).reset_index(drop=True)


def with_kind(table: pd.DataFrame, start: Checkpoint | None) -> pd.DataFrame:
    """Return the rows about rediscovered circuits and about those of the original checkpoint, with a column `kind`.

    Args:
        table: of one run, with columns step and circuit_step.
        start: the original checkpoint; None takes every transferred circuit as its own.
    """
    own = table["circuit_step"] == table["step"]
    transferred = ~own if start is None else ~own & (table["circuit_step"] == start.step)
    named = table.assign(kind=np.where(own, str(CircuitKind.REDISCOVERED), str(CircuitKind.TRANSFERRED)))
    return named[own | transferred]


def read_circuits(experiment: Experiment) -> dict[float, Circuits]:
    """Return the rediscovered circuits of every run, by ratio; runs without circuits are left out."""
    by_ratio = {part.ratio: run_circuits.read_circuits(part.run, kind=Group) for part in experiment.runs}
    return {ratio: circuits for ratio, circuits in by_ratio.items() if circuits is not None}


def shapes(circuits: Mapping[float, Circuits]) -> pd.DataFrame:
    """Entropy of the rediscovered circuits and their similarity with the original model's; see SHAPE_COLUMNS.

    Args:
        circuits: by ratio; a group's circuit at step 0 is the original model's.

    Returns:
        One row per ratio, step and group. Jaccard similarities are NaN for a group without a circuit at step 0.
    """
    parts = []
    for ratio, own in circuits.items():
        original, has_original = _original_rows(own)
        table = own.table.assign(ratio=ratio)
        for name, members in (("edge_jaccard", own.edges), ("node_jaccard", own.nodes)):
            table[name] = np.where(has_original, topology.jaccard(members, members[original]), np.nan)
        parts.append(table[SHAPE_COLUMNS])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=SHAPE_COLUMNS)


def activation(circuits: Mapping[float, Circuits]) -> pd.DataFrame:
    """Edge activation ratio by layer of circuits by replay ratio, and its change since step 0; ACTIVATION_COLUMNS."""
    parts = []
    for ratio, own in circuits.items():
        original, has_original = _original_rows(own)
        change = np.where(has_original[:, None], own.activation - own.activation[original], np.nan)
        table = own.activation_table().rename(columns={"ratio": "activation"})
        parts.append(table.assign(ratio=ratio, change=change.T.reshape(-1))[ACTIVATION_COLUMNS])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=ACTIVATION_COLUMNS)


def _original_rows(own: Circuits) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each circuit the row of its group's first circuit, and whether that is the one of step 0; [n] each."""
    table = own.table.reset_index(drop=True)
    rows = table.groupby(GROUP_COLUMNS)["step"].transform("idxmin").to_numpy()
    return rows, table["step"].to_numpy()[rows] == 0


def logit_lens(experiment: Experiment) -> tuple[pd.DataFrame, str]:
    """Return the logit lens on the original people's prompts at every checkpoint, with the column ratio.

    Returns:
        The table and, where it is empty, why.
    """
    analyses = {part.ratio: components.analyse_run(part.run) for part in experiment.runs}
    parts = [analysis.lens.assign(ratio=ratio) for ratio, analysis in analyses.items() if len(analysis.lens)]
    if not parts:
        return pd.DataFrame(columns=[*components.LENS_COLUMNS, "ratio"]), next(iter(analyses.values())).missing
    return pd.concat(parts, ignore_index=True), ""


def _over(experiment: Experiment, read: Callable[[ForgettingRun], pd.DataFrame]) -> pd.DataFrame:
    """Return one run's table after the other, with their ratios."""
    parts = [read(part).assign(ratio=part.ratio) for part in experiment.runs]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


# --- numbers ----------------------------------------------------------------------------------------------------------


def summary(
    predictions: pd.DataFrame,
    evaluations: pd.DataFrame,
    shapes: pd.DataFrame,
    results: pd.DataFrame,
    circuit_predictions: pd.DataFrame,
) -> pd.DataFrame:
    """Return one row per replay ratio with the state before and after; see SUMMARY_COLUMNS.

    "known" is the share of queries about the original people that are answered (its lowest value too, and the step).
    Its change has a 95% t interval over people; "lost" and "gained" are numbers of queries. Everything else is about
    the last checkpoint. Faithfulness is the median of the groups, what is left their mean. NaN where something was not
    measured. The arguments are the tables of their names.
    """
    every = (predictions, evaluations, shapes, results, circuit_predictions)
    rows = []
    for ratio in sorted({ratio for table in every for ratio in table.get("ratio", ())}):
        known, evaluated, shape, result, hits = (table[table["ratio"] == ratio] for table in every)
        curve = known.groupby("step")["correct"].mean()
        last = evaluated.tail(1)
        first_token = last[[name for name in last if str(name).endswith("_first_token_attribute_accuracy")]]
        row = [
            ratio,
            *((curve.iloc[0], curve.iloc[-1], curve.min(), curve.idxmin()) if len(curve) else (np.nan,) * 4),
            *_changes(known),
            float(first_token.mean(axis=None)) if first_token.size else np.nan,
            float(last["loss"].iloc[0]) if len(last) else np.nan,
            _at_end(shape)["edge_jaccard"].mean(),
            *(_at_end(result[result["kind"] == kind])["faithfulness"].median() for kind in CircuitKind),
            *(_at_end(hits[hits["kind"] == kind])["hit"].mean() for kind in CircuitKind),
        ]
        rows.append(row)
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def _changes(known: pd.DataFrame) -> tuple[float, float, float, float]:
    """Return the 95% t interval over people of the change in their share of known facts, and how many facts are lost
    and gained, from the first checkpoint to the last; NaN without two."""
    wide = known.pivot_table(index=["full_name", "attribute"], columns="step", values="correct", aggfunc="first")
    if wide.shape[1] < 2:
        return math.nan, math.nan, math.nan, math.nan
    change = wide.iloc[:, -1].astype(float) - wide.iloc[:, 0].astype(float)
    people = over_runs(change.groupby("full_name").mean().dropna().to_numpy())
    return float(people.low), float(people.high), float((change < 0).sum()), float((change > 0).sum())


def _at_end(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["step"] == table["step"].max()]
