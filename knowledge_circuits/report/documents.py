"""A study of documents as one HTML page: the claims one by one, then strategies, costs and checkpoints.

The page reads the study's folder of runs (`analysis.documents`) and shows what they have. Where circuits or references
are missing it says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from knowledge_circuits.analysis.document_claims import judge_claims
from knowledge_circuits.analysis.document_tables import choice_table, cost_table, reference_table
from knowledge_circuits.analysis.documents import DocumentStudy, read_document_study
from knowledge_circuits.analysis.findings import Finding
from knowledge_circuits.figures import documents as figures
from knowledge_circuits.report.page import render, write_page
from knowledge_circuits.report.section import DrawnFigure, TextTable, embed, number, save_and_embed


def write_documents_report(folder: Path, output: Path | None = None) -> Path:
    """Judge the claims on a study of documents, write its page and return the page's path.

    Args:
        folder: of runs, or one run's own.
        output: where to; None means report.html in the folder. The figures also go to figures/ beside it.

    Raises:
        InputError: no probed run, a broken file, or runs that do not belong together.
    """
    study, page = read_document_study(folder), output or folder / "report.html"
    claims = judge_claims(study)
    drawn = save_and_embed(_figures(study), page.parent / "figures")
    return write_page(page, _page(study, claims, drawn))


def _page(study: DocumentStudy, claims: Sequence[Finding], drawn: dict[str, DrawnFigure]) -> str:
    count = len(study.seeds)
    settings = {name: value for run in study.runs for name, value in run.settings.items()}
    return render(
        "documents.html.j2",
        name=study.name,
        strategies=len(study.strategies),
        units=f"Intervals are the wider of those over {count} seeds and over entities; where each seed has documents "
        "of its own or a number is not of entities, they are over seeds."
        if count > 1
        else "With one seed intervals are over entities and hold for that seed; a number that is not of entities has "
        "no interval, and its claim no verdict.",
        claims=[
            (claim, embed(figures.by_strategy(claim, study.name), f"{claim.title}: {claim.claim}"), claim_table(claim))
            for claim in claims
        ],
        figures=drawn,
        tables=tables_of(study),
        settings=[(name, str(value)) for name, value in settings.items() if name != "learning_rate"],
    )


def claim_table(claim: Finding) -> TextTable:
    """Return all numbers of a claim by strategy."""
    rows = [[s.name, s.place, s.interval, s.claim] for s in claim.statistics]
    return TextTable(f"{claim.title}: all numbers", ["number", "strategy", "[95% interval]", "claim"], rows, words=2)


def tables_of(study: DocumentStudy) -> dict[str, TextTable]:
    """Return the page's tables: runs, what was learned at which cost, references, and which checkpoint a rule picks."""
    runs = pd.DataFrame(
        {
            "run": [run.name for run in study.runs],
            "strategy": [run.strategy for run in study.runs],
            "seed": [run.seed for run in study.runs],
            "learning rate": [run.settings.get("learning_rate", "") for run in study.runs],
            "probes": [len(run.records) for run in study.runs],
            "checkpoints with circuits": [run.circuits["step"].nunique() for run in study.runs],
        }
    )
    return {
        "runs": _text("Runs", runs, 2),
        "cost": _text("What was learned, and what it cost (mean over seeds; minutes without the probes)",
                      cost_table(study), 1),
        "references": _text("Answers without training", reference_table(study), 1),
        "choices": _text("Which checkpoint each rule picks", choice_table(study), 3),
    }  # fmt: skip


def _text(caption: str, table: pd.DataFrame, words: int) -> TextTable:
    rows = [
        [number(value, ".3g") if isinstance(value, float) else str(value) for value in row]
        for row in table.itertuples(index=False)
    ]
    return TextTable(caption, [str(name).replace("_", " ") for name in table.columns], rows, words)


def _figures(study: DocumentStudy) -> Iterator[tuple[str, Figure, str]]:
    """Yield the figures: name, figure, caption."""
    yield "over_epochs", figures.over_epochs(study), (
        "Knowledge, loss and skill at every probe. A dashed line is what the model answers without training: alone, "
        "with the document that answers in its prompt, with all documents of the entity, or with retrieved ones. The "
        "dotted line is the floor of recall, which takes no knowledge of the entity: the same answers, scored against "
        "the accepted answers to questions of the same kind about other entities. It is missing where the file of "
        "questions is not there. Guessing gives the skills that come with the project an accuracy of 0.26."
    )  # fmt: skip
    yield "learned_and_forgotten", figures.learned_and_forgotten(study), (
        "Entities that are learned at a probe: those that were learned at the probe before (kept) and those that were "
        "not (newly learned). Below the axis, those that were learned at the probe before and are not now."
    )  # fmt: skip
    yield (
        "cost",
        figures.cost(study),
        "The same recall may cost more or fewer documents. Minutes compare only if nothing else used the machine.",
    )
    yield "exposure", figures.exposure(study), (
        "Entities with one document or few (light) and with more (dark). A grey line is the recall before training."
    )  # fmt: skip
    yield "reconfiguration", figures.reconfiguration(study), (
        "1 - edge Jaccard of one half of the prompts before and the other half after, and of the two halves at one "
        "checkpoint: what the choice of prompts alone would give."
    )  # fmt: skip
