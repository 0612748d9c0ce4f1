"""A designed study as one HTML page: a verdict per finding, every seed's numbers, and the curves behind them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from knowledge_circuits.analysis.findings import Finding
from knowledge_circuits.analysis.study_findings import judge_study
from knowledge_circuits.analysis.study_tables import Study, StudyKind, read_study
from knowledge_circuits.figures import study as figures
from knowledge_circuits.report.page import render, write_page
from knowledge_circuits.report.section import DrawnFigure, TextTable, save_and_embed

_QUESTIONS = {
    StudyKind.RELEVANCE: "Are new facts learned better about people who were known before?",
    StudyKind.DEPTH: "Do circuits form in two phases, and in deep layers before shallow ones?",
}


def write_study_report(folder: Path, output: Path | None = None) -> Path:
    """Judge the study of a folder (`study_tables`), write its page and return the page's path.

    Args:
        output: where to; None means report.html in the study's folder. The figures also go to figures/ beside it.

    Raises:
        InputError: the study has no finished run, or a broken one.
    """
    study, page = read_study(folder), output or folder / "report.html"
    findings = judge_study(study)
    drawn = save_and_embed(_figures(study, findings), page.parent / "figures")
    return write_page(page, _page(study, findings, drawn))


def _page(study: Study, findings: tuple[Finding, ...], drawn: dict[str, DrawnFigure]) -> str:
    forests = [drawn.pop(_forest_name(finding)) for finding in findings]
    return render(
        "study.html.j2",
        kind=str(study.kind),
        question=_QUESTIONS[study.kind],
        runs=runs_table(study),
        seeds=study.seeds,
        findings=[(f, forest, statistics_table(f)) for f, forest in zip(findings, forests, strict=True)],
        figures=tuple(drawn.values()),
        settings=[(name, "–" if value is None else str(value)) for name, value in sorted(study.settings.items())],
    )  # fmt: skip


def statistics_table(finding: Finding) -> TextTable:
    """Return all statistics of a finding: effect sizes with intervals first, p after."""
    rows = [
        [s.name, s.place, s.interval, s.claim, *(f"{p:.2g}" if p == p else "" for p in (s.p, s.adjusted))]
        for s in finding.statistics
    ]
    header = ["statistic", "where", "mean over seeds [95% interval]", "claim", "p", "p, corrected"]
    caption = f"{finding.title}: all statistics ({finding.tests} of them tested)"
    return TextTable(caption, header, rows, words=2)


def runs_table(study: Study) -> TextTable:
    """Return the runs of the study with their rows and epochs."""
    table, rows = study.table, []
    for run in study.runs:
        same_dose = table["dose"].isna() if run.dose is None else table["dose"] == run.dose
        of_run = table[(table["seed"] == run.seed) & (table["mirror"] == run.mirror) & same_dose]
        dose = "" if run.dose is None else f"{run.dose:g}"
        rows.append([run.name, str(run.seed), run.mirror, dose, f"{of_run['epoch'].max():g}", f"{len(of_run):,}"])
    return TextTable("Runs", ["run", "seed", "mirror", "dose", "epochs", "rows"], rows)


def _forest_name(finding: Finding) -> str:
    return f"{finding.title.lower().replace(' ', '_')}_by_seed"


def _figures(study: Study, findings: tuple[Finding, ...]) -> Iterator[tuple[str, Figure, str]]:
    """Yield the figures of a study: name, figure, caption; a forest plot per finding, then the curves behind them."""
    kind = str(study.kind)
    for finding in findings:
        caption = (
            f"{finding.title}, seed by seed. The claim lies to the side of the line that each panel names, dashed "
            "where it is not 0."
        )
        yield _forest_name(finding), figures.forest(finding, kind), caption
    if study.kind == StudyKind.RELEVANCE:
        caption = (
            "New facts of people who stood in the past and of people who did not, the same people in mirrored runs. "
            "The comparison means something as long as the past's facts stay above the dashed line."
        )
        yield "learning", figures.learning(study.table, kind), caption
        return
    caption = (
        "Each seed's curves. Two segments have a break point whatever the curve is; the verdict says whether there is "
        "a bend. An open one lies at the edge of the search, which leaves three checkpoints on either side; it counts "
        "for no phase shift."
    )
    yield "evolution", figures.evolution(study.table, findings[0], kind), caption
    caption = (
        "What the circuits of taught people show beyond random circuits of the same size, circuits of people who are "
        "never taught, and the noise of the prompts."
    )
    yield "floors", figures.floors(study.table, kind), caption
