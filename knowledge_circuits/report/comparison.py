"""Several runs on one page: what each shows of the findings, and how settings compare.

Each finding's main statistics with 95% intervals from within each run; the same for what was learned at the last
checkpoint. Runs that differ in nothing but their seeds make an experiment, over which means and standard deviations
(n - 1) are taken. Runs of different experiments are shown side by side and never averaged. Runs are read one at a time.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from knowledge_circuits.analysis import circuit_tables, learning_tables, timeline
from knowledge_circuits.analysis.circuit_settings import Setting, main_setting
from knowledge_circuits.analysis.findings import Finding, Statistic, describe
from knowledge_circuits.analysis.run_circuits import read_circuits
from knowledge_circuits.figures import style
from knowledge_circuits.files import InputError
from knowledge_circuits.report.findings import card
from knowledge_circuits.report.page import configuration, render, write_page
from knowledge_circuits.report.section import TextTable, embed
from knowledge_circuits.run_config import RunConfig, read_run_config
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Band, Group, KnowledgeType
from knowledge_circuits.training.resume import RECIPE
from knowledge_circuits.training.strategies import chosen as strategy_flags

_MEASURES = {
    "accuracy": "query accuracy",
    "first_token": "first-token accuracy",
    "hit": "Hit@10",
    "faithfulness": "faithfulness",
    "entropy": "entropy (nats)",
}
#: Rows of a run's configuration that may differ between runs of one experiment.
_NOT_COMPARED = {"Trained from", "Training file", "Seed of the data", "Seed of the training", "Probes", "Versions"}
#: "Tokens an epoch" depends on the people, who depend on the seed.
_NOT_COMPARED |= {"Tokens an epoch"}
#: Flags of the recipe that stand among these rows, are of the seed, or name a path (see `_start_of`).
_SHOWN_OR_SEEDED = {"learning_rate", "lr_scheduler_type", "seed", "data_seed", "model_name_or_path", "skill_examples"}
#: Of what made random weights, what depends on the seed.
_SEEDED = {"seed", "texts"}


@dataclass(frozen=True)
class RunSummary:
    """What a comparison needs of a run.

    Attributes:
        data_seed, training_seed: as its configuration tells; "" where it does not.
        last: the 18 groups' numbers at the last checkpoint (`circuit_tables.last_numbers`).
        settings: everything but the seeds that makes the run what it is, in words (`settings_of`).
        start_unknown: its configuration does not tell from which weights it started.
    """

    name: str
    data_seed: str
    training_seed: str
    settings: dict[str, str]
    start_unknown: bool
    findings: tuple[Finding, ...]
    last: pd.DataFrame


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in nothing but their seeds; the name ("" for only one) tells the page's experiments apart."""

    name: str
    runs: tuple[RunSummary, ...]


@dataclass(frozen=True)
class Spread:
    """One finding over the runs of an experiment.

    Attributes:
        rows: each run with its statistics (None where it has not measured one).
        means: per statistic (mean, standard deviation, runs that measured it).
    """

    experiment: Experiment
    rows: list[tuple[RunSummary, list[Statistic | None]]]
    means: list[tuple[float, float, int]]


@dataclass(frozen=True)
class FindingSpread:
    """One finding over several runs: the names of its deciding statistics, their numbers by experiment."""

    title: str
    claim: str
    names: list[str]
    experiments: list[Spread]


def summarize(run: Run) -> RunSummary:
    """Read a run and describe the findings on it."""
    config = read_run_config(run)
    predictions, past = learning_tables.predictions(run), learning_tables.past_predictions(run)
    circuit_predictions = circuit_tables.circuit_predictions(run, kind=Group)
    return RunSummary(
        name=timeline.run_name(run),
        data_seed=_seed(config.data.seed),
        training_seed=_seed(config.arguments.seed),
        settings=settings_of(config, main_setting(run)),
        start_unknown="starting_weights" not in config.as_dict(),
        findings=describe(predictions, circuit_predictions, read_circuits(run, kind=Group), past),
        last=circuit_tables.last_numbers(circuit_tables.results(run, kind=Group), circuit_predictions, predictions),
    )


def _seed(seed: int | None) -> str:
    return "" if seed is None else str(seed)


def settings_of(config: RunConfig, setting: Setting | None) -> dict[str, str]:
    """Return what must be equal in two runs if their numbers are to be averaged: all settings but seeds and paths."""
    chosen = {name: value for name, value in configuration(config) if name not in _NOT_COMPARED}
    flags = config.arguments.as_dict()
    recipe = {flag: flags[flag] for flag in RECIPE if flag in flags and flag not in _SHOWN_OR_SEEDED}
    chosen |= {f"--{flag}": json.dumps(value) for flag, value in {**recipe, **strategy_flags(flags)}.items()}
    for program, flags in config.data.generated.items():
        for flag, value in flags.items() if isinstance(flags, dict) else ():
            if flag != "seed" and not flag.endswith(("_dir", "_file", "_path")):
                chosen[f"{program} --{flag}"] = json.dumps(value)
    return chosen | _start_of(config) | {"Circuits": str(setting) if setting else "none"}


def _start_of(config: RunConfig) -> dict[str, str]:
    """Return what must be equal in the weights that two runs start from.

    Weights that this program made may differ by their seed: how they were made counts. All others are told apart by
    their digest, weights of a hub by their name and revision.
    """
    made, flags = config.starting_model, config.arguments.as_dict()
    if made is not None and made.configuration is not None:
        made_like = settings_of(made.configuration, None) | {"Epoch": "" if made.epoch is None else f"{made.epoch:.3g}"}
        return {f"Starting model: {name}": value for name, value in made_like.items() if name != "Circuits"}
    if made is not None:
        known = {flag: value for flag, value in made.made_from.items() if flag not in _SEEDED}
        return {f"Starting model: --{flag}": json.dumps(value) for flag, value in known.items()}
    if config.starting_weights is not None:
        return {"Starting weights": config.starting_weights}
    name = flags.get("model_name_or_path") if "starting_weights" in config.as_dict() else None
    return {"Starting weights": f"{name}, revision {flags.get('model_revision')}"} if name else {}


def experiments(runs: Sequence[RunSummary]) -> list[Experiment]:
    """Gather the runs that differ in nothing but their seeds, in the order in which they are named."""
    gathered: dict[str, list[RunSummary]] = {}
    for run in runs:
        gathered.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    return [
        Experiment("; ".join(f"{name}: {alike[0].settings.get(name, 'not set')}" for name in differing), tuple(alike))
        for alike in gathered.values()
    ]


def spread(runs: Sequence[RunSummary]) -> list[FindingSpread]:
    """Arrange the runs' findings one by one, with mean and standard deviation within each experiment."""
    alike, arranged = experiments(runs), []
    for index, finding in enumerate(runs[0].findings):
        deciding = {run.name: {s.name: s for s in card(run.findings[index]).headlines} for run in runs}
        names = list(dict.fromkeys(name for statistics in deciding.values() for name in statistics))
        spreads = []
        for experiment in alike:
            rows = [(run, [deciding[run.name].get(name) for name in names]) for run in experiment.runs]
            columns = zip(*(statistics for _, statistics in rows), strict=True)
            means = [_spread([s.estimate for s in column if s is not None]) for column in columns]
            spreads.append(Spread(experiment, rows, means))
        arranged.append(FindingSpread(finding.title, finding.claim, names, spreads))
    return arranged


def _spread(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean and standard deviation (NaN for fewer than two) of the finite values, and how many there are."""
    finite = pd.Series(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()), float(finite.std()), len(finite)


def learned_table(experiment: Experiment) -> TextTable:
    """Return mean and standard deviation over an experiment's runs of what was learned, by type and band."""
    runs = experiment.runs
    means = pd.concat(
        [run.last.groupby(["type", "band"])[list(_MEASURES)].mean() for run in runs], keys=range(len(runs))
    )
    rows = []
    for knowledge in reversed(KnowledgeType):
        for band in reversed(Band):
            group = means.xs((str(knowledge), str(band)), level=("type", "band"))
            rows.append([knowledge.symbol, str(band), *(_plus_minus(*_spread(group[name])) for name in _MEASURES)])
    what = f"mean ± standard deviation over {len(runs)} runs" if len(runs) > 1 else runs[0].name
    caption = f"Last checkpoints: {what} (mean of the tasks){experiment.name and '. '}{experiment.name}"
    return TextTable(caption, ["type", "band", *_MEASURES.values()], rows, words=2)


def _plus_minus(mean: float, deviation: float, count: int) -> str:
    if count == 0:
        return "–"
    return f"{mean:.2f} ± {deviation:.2f}" if count > 1 else f"{mean:.2f}"


@style.styled
def spread_figure(findings: Sequence[FindingSpread]) -> Figure:
    """Draw each deciding statistic in a panel of its own: a point and interval per run, each experiment's mean."""
    panels = [(one, index, name) for one in findings for index, name in enumerate(one.names)]
    labels = [row[0].name for part in findings[0].experiments for row in part.rows]
    if not panels:
        return style.missing("Spread over runs", "No run has measured anything yet.", ", ".join(labels))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    height = 0.7 + rows * (1.05 + 0.27 * len(labels))
    title, note = "The main statistics of every run", "95% intervals; dashed: mean of runs that differ in the seed only"
    figure, axes = style.grid(title, f"{len(labels)} runs", rows, columns, height=height, note=note)
    for ax, (finding, index, name) in zip(axes.flat, panels, strict=False):
        ax.set_title(f"{finding.title}: {name.removeprefix('circuit entropy: ')}", fontsize=8.5)
        row = 0
        for part in finding.experiments:
            mean, _, count = part.means[index]
            if count > 1:
                ends = [row - 0.4, row + len(part.rows) - 0.6]
                ax.plot([mean, mean], ends, color=style.BLACK, linewidth=0.9, linestyle="--")
            for _, statistics in part.rows:
                _draw_interval(ax, statistics[index], row)
                row += 1
        ax.set_yticks(range(len(labels)), [style.plain(label) for label in labels])
        ax.set_ylim(len(labels) - 0.5, -0.5)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    return figure


def _draw_interval(ax: Axes, statistic: Statistic | None, row: int) -> None:
    if statistic is not None and np.isfinite(statistic.estimate):
        ax.plot([statistic.low, statistic.high], [row, row], color=style.BLUE, linewidth=2.2)
        face = "white" if statistic.note else style.BLUE
        ax.plot(statistic.estimate, row, "o", color=style.BLUE, markerfacecolor=face, markersize=5)


def comparison_html(runs: Sequence[RunSummary]) -> str:
    """Return the page of several runs."""
    findings, alike = spread(runs), experiments(runs)
    caption = (
        "Intervals are from within each run: they say how exactly its own numbers are known. The spread between "
        "runs that differ in the seed alone says what another seed may give."
    )
    return render(
        "comparison.html.j2",
        runs=runs,
        experiments=alike,
        start_unknown=[run.name for run in runs if run.start_unknown],
        findings=findings,
        learned=[learned_table(experiment) for experiment in alike],
        figure_of_all=embed(spread_figure(findings), caption),
    )


def write_comparison(runs: Sequence[Run], output: Path | None = None) -> Path:
    """Write the page on several runs' spread.

    Args:
        output: where to; None means comparison.html in the runs' common folder.

    Raises:
        InputError: fewer than two runs, or one of them twice.
    """
    paths = [run.path.resolve() for run in runs]
    twice = [str(path) for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]}: named twice; a comparison needs different runs")
    if len(runs) < 2:
        raise InputError("--runs takes two runs or more; --run writes the page of one")
    beside = Path(os.path.commonpath(paths)) / "comparison.html"
    summaries = [summarize(run) for run in tqdm(runs, desc="reading runs", unit="run", delay=2)]
    return write_page(output or beside, comparison_html(summaries))
