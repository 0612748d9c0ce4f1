"""A study's page says its verdicts with every seed's numbers, and needs nothing but itself."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from test_study_findings import circuits, facts

from benchmarks import verdicts
from knowledge_circuits.analysis import findings
from knowledge_circuits.analysis.study_findings import decide_phase_shift
from knowledge_circuits.analysis.study_tables import StudyKind, StudyRun, write_study_run
from knowledge_circuits.figures import study as figures
from knowledge_circuits.report.study import write_study_report


def write_study(folder: Path, kind: StudyKind, table: pd.DataFrame) -> Path:
    keys = ["seed", "mirror", "dose"] if kind == StudyKind.RELEVANCE else ["seed"]
    for values, rows in table.groupby(keys):
        run = StudyRun(study=kind, **dict(zip(keys, values, strict=True)), settings={"rate": 0.0015})
        write_study_run(folder, run, rows.drop(columns=keys).replace({"band": dict.fromkeys("012345", "low")}))
    return folder


@pytest.fixture(scope="module")
def relevance(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_study(tmp_path_factory.mktemp("relevance"), StudyKind.RELEVANCE, facts(1.0, doses=(3, 8)))
    page = write_study_report(folder).read_text(encoding="utf-8")
    assert {path.name for path in (folder / "figures").iterdir()} == {"learning.png", "relevance_by_seed.png"}
    return page


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> str:
    table = circuits("exponential decay")
    table["type"] = ["new" if band in "012" else "revised" for band in table["band"]]
    table["task"] = [{"0": "city", "1": "company", "2": "major"}[str(int(band) % 3)] for band in table["band"]]
    folder = write_study(tmp_path_factory.mktemp("depth"), StudyKind.DEPTH, table)
    return write_study_report(folder).read_text(encoding="utf-8")


def test_the_relevance_page_has_its_verdict_the_seeds_and_the_curves(relevance: str) -> None:
    assert '<p class="verdict">holds</p>' in relevance
    assert relevance.count('<svg class="drawing"') == 2
    assert relevance.count('<td class="word">seed_') == 4 * 2 * 2  # seeds, mirrors, doses
    assert "the past&#39;s facts known, lowest checkpoint" in relevance


def test_the_depth_page_says_what_the_curves_are(depth: str) -> None:
    assert re.findall(r'<p class="verdict">(.*?)</p>', depth)[0] == "does not hold"
    assert "circuit entropy is saturating" in depth.lower()
    assert depth.count('<svg class="drawing"') == 4


def test_seeds_that_break_at_the_edge_of_the_search_are_drawn_open() -> None:
    table = circuits()
    early = table["seed"] == 2
    table.loc[early, "entropy"] = verdicts.bend(table.loc[early, "epoch"].to_numpy(), 1.0)
    finding = decide_phase_shift(table)
    forest, evolution = figures.forest(finding, "depth"), figures.evolution(table, finding, "depth")
    for figure, marker in ((forest, "o"), (evolution, "D")):
        faces = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == marker]
        assert [face == "white" for face in faces] == [False, False, True, False]
        assert findings.EDGE in figure.legends[0].get_texts()[1].get_text()
    assert not figures.forest(decide_phase_shift(circuits()), "depth").legends
    dashed = [line for ax in forest.axes for line in ax.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [2.0] * 3  # the claim's line of the BIC


def test_every_verdict_has_a_colour_on_its_card(depth: str) -> None:
    for verdict in findings.Verdict:
        assert re.search(rf"\.card\.{verdict.name.lower()}\b[^}}]*--tone", depth), verdict


def test_effect_sizes_come_before_p(relevance: str) -> None:
    header = relevance[relevance.index("<thead>") :]
    assert header.index("95% interval") < header.index(">p<")


def test_a_study_s_page_loads_nothing(relevance: str, depth: str) -> None:
    for page in (relevance, depth):
        for reference in re.findall(r"""(?:src|href|action|data|srcset)\s*=\s*["']([^"']*)""", page):
            assert reference.startswith(("data:", "#")), reference[:60]
