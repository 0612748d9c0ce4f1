"""Several runs of one experiment on one page: do the findings hold whatever the seed?

For each finding every run's verdict, deciding statistics and 95% intervals, and over the runs their mean and standard
deviation (n - 1); the same for what was learned at the last checkpoint. Runs are read one at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from knowledge_circuits.analysis import tables
from knowledge_circuits.analysis.findings import Finding, Statistic, Verdict, judge
from knowledge_circuits.figures import style as figure_style
from knowledge_circuits.figures.findings import VERDICT_COLORS
from knowledge_circuits.files import InputError
from knowledge_circuits.report.findings import card
from knowledge_circuits.report.page import render, write_page
from knowledge_circuits.report.section import TextTable, embed
from knowledge_circuits.run_config import read_run_config
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Band, KnowledgeType

_MEASURES = {
    "accuracy": "query accuracy",
    "first_token": "first-token accuracy",
    "hit": "Hit@10",
    "faithfulness": "faithfulness",
    "entropy": "entropy (nats)",
}


@dataclass(frozen=True)
class RunSummary:
    """What a comparison needs of a run.

    Attributes:
        name: the run's name.
        data_seed, training_seed: as its configuration tells; "" where it does not.
        findings: the three verdicts.
        last: the 18 groups' numbers at the last checkpoint (`tables.last_numbers`).
    """

    name: str
    data_seed: str
    training_seed: str
    findings: tuple[Finding, ...]
    last: pd.DataFrame


@dataclass(frozen=True)
class FindingSpread:
    """One finding over several runs.

    Attributes:
        title, claim: the finding's.
        counts: how many runs have each verdict, in words.
        names: the deciding statistics.
        rows: per run its name, verdict and statistics (None where it has not measured one).
        spread: per statistic (mean, standard deviation, runs that measured it).
    """

    title: str
    claim: str
    counts: str
    names: list[str]
    rows: list[tuple[RunSummary, Verdict, list[Statistic | None]]]
    spread: list[tuple[float, float, int]]


def summarize(run: Run) -> RunSummary:
    """Read a run and judge the findings on it."""
    config = read_run_config(run)
    predictions, circuit_predictions = tables.predictions(run), tables.circuit_predictions(run)
    return RunSummary(
        name=tables.run_name(run),
        data_seed=_seed(config.data.seed),
        training_seed=_seed(config.arguments.seed),
        findings=judge(predictions, circuit_predictions, tables.circuits(run)),
        last=tables.last_numbers(tables.results(run), circuit_predictions, predictions),
    )


def _seed(seed: int | None) -> str:
    return "" if seed is None else str(seed)


def spread(runs: Sequence[RunSummary]) -> list[FindingSpread]:
    """Arrange the runs' findings one by one, with mean and standard deviation of each deciding statistic."""
    found = []
    for index, finding in enumerate(runs[0].findings):
        headlines = [{s.name: s for s in card(run.findings[index]).headlines} for run in runs]
        names = list(dict.fromkeys(name for each in headlines for name in each))
        rows = [
            (run, run.findings[index].verdict, [each.get(name) for name in names])
            for run, each in zip(runs, headlines, strict=True)
        ]
        verdicts = Counter(run.findings[index].verdict for run in runs)
        counts = ", ".join(
            f"{verdict} in {verdicts[verdict]} of {len(runs)}" for verdict in Verdict if verdicts[verdict]
        )
        spreads = [_spread([each[name].estimate for each in headlines if name in each]) for name in names]
        found.append(FindingSpread(finding.title, finding.claim, counts, names, rows, spreads))
    return found


def _spread(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean and standard deviation (NaN for fewer than two) of the finite values, and how many there are."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    mean = float(finite.mean()) if len(finite) else float("nan")
    return mean, float(finite.std(ddof=1)) if len(finite) > 1 else float("nan"), len(finite)


def learned_table(runs: Sequence[RunSummary]) -> TextTable:
    """Mean and standard deviation over the runs of what was learned, by type and band (mean of the tasks)."""
    means = pd.concat(
        [run.last.groupby(["type", "band"])[list(_MEASURES)].mean() for run in runs], keys=range(len(runs))
    )
    rows = []
    for knowledge in reversed(KnowledgeType):
        for band in reversed(Band):
            group = means.xs((str(knowledge), str(band)), level=("type", "band"))
            rows.append([knowledge.symbol, str(band), *(_plus_minus(*_spread(group[name])) for name in _MEASURES)])
    caption = f"Last checkpoints: mean ± standard deviation over {len(runs)} runs (mean of the tasks)"
    return TextTable(caption, ["type", "band", *_MEASURES.values()], rows, words=2)


def _plus_minus(mean: float, deviation: float, count: int) -> str:
    if count == 0:
        return "–"
    return f"{mean:.2f} ± {deviation:.2f}" if count > 1 else f"{mean:.2f}"


@figure_style.styled
def spread_figure(found: Sequence[FindingSpread]) -> Figure:
    """Each deciding statistic in a panel of its own: a point and interval per run, the mean as a line."""
    panels = [
        (one.title, name, [row[2][index] for row in one.rows], one.spread[index][0])
        for one in found
        for index, name in enumerate(one.names)
    ]
    labels = [run.name for run, _, _ in found[0].rows]
    if not panels:
        return figure_style.missing("Spread over runs", "No run has measured anything yet.", ", ".join(labels))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = figure_style.grid(
        "The deciding statistics of every run", ", ".join(labels), rows, columns,
        height=0.7 + rows * (1.05 + 0.27 * len(labels)), note="95% intervals; dashed: mean",
    )  # fmt: skip
    for ax, panel in zip(axes.flat, panels, strict=False):
        title, name, statistics, mean = panel
        ax.set_title(f"{title}: {name.removeprefix('circuit entropy: ')}", fontsize=8.5)
        for place, statistic in enumerate(statistics):
            if statistic is not None and np.isfinite(statistic.estimate):
                color = VERDICT_COLORS[statistic.verdict] if statistic.verdict else figure_style.BLUE
                ax.plot([statistic.low, statistic.high], [place, place], color=color, linewidth=2.2)
                ax.plot(statistic.estimate, place, "o", color=color, markersize=5)
        if np.isfinite(mean):
            ax.axvline(mean, color=figure_style.BLACK, linewidth=0.9, linestyle="--")
        ax.set_yticks(range(len(labels)), labels)
        ax.set_ylim(len(labels) - 0.5, -0.5)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    return figure


def comparison_html(runs: Sequence[RunSummary]) -> str:
    """The page of several runs."""
    found = spread(runs)
    caption = (
        "Green: the run's interval lies on the finding's side; vermilion: it speaks against it; grey: undecided; blue: "
        "only reported. Where intervals overlap, chance may be all that tells runs apart."
    )
    return render(
        "comparison.html.j2", runs=runs, findings=found, learned=learned_table(runs),
        figure_of_all=embed(spread_figure(found), caption),
    )  # fmt: skip


def write_comparison(runs: Sequence[Run], output: Path | None = None) -> Path:
    """Write the page on several runs' spread.

    Args:
        runs: at least two, of one experiment.
        output: where to; None means comparison.html in the runs' common folder.

    Raises:
        InputError: fewer than two runs, or one of them twice.
    """
    paths = [run.path.resolve() for run in runs]
    twice = [str(path) for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]}: named twice; a spread needs different runs")
    if len(runs) < 2:
        raise InputError("--runs takes two runs or more; --run writes the page of one")
    place = Path(os.path.commonpath(paths)) / "comparison.html"
    summaries = [summarize(run) for run in tqdm(runs, desc="reading runs", unit="run", delay=2)]
    return write_page(output or place, comparison_html(summaries))
