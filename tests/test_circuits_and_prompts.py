"""What circuits owe to their prompts, in tables, figures, report: stability, token spans, transfer between groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_run import Truth, scored_graph

from knowledge_circuits.analysis.circuit_settings import Setting
from knowledge_circuits.analysis.run_circuits import read_circuits
from knowledge_circuits.analysis.transferred_circuits import cross_groups
from knowledge_circuits.engine.graph_files import read_details, read_graph, write_details, write_graph
from knowledge_circuits.engine.stability import Details, Resampling, resampled, stability
from knowledge_circuits.figures import stability as figures
from knowledge_circuits.figures.vector import svg_element
from knowledge_circuits.files import InputError, read_json, write_json
from knowledge_circuits.report.material import read_material
from knowledge_circuits.report.page import report_html
from knowledge_circuits.report.run_sections import PROMPTS
from knowledge_circuits.report.section import draw_sections
from knowledge_circuits.runs import Run, selection_name
from knowledge_circuits.study import Attribute, Band, Group, KnowledgeType, groups

GROUP = Group(Attribute.CITY, KnowledgeType.REVISED, Band.HIGH)
RESAMPLING = Resampling(splits=2, resamples=10)


@pytest.fixture
def measured(copied_run: Run) -> Run:
    """A run with details of one group at its last checkpoint, two thirds of whose scores are the subject's."""
    graph = scored_graph(Truth(), GROUP, 8.0)
    noise = torch.randn(12, *graph.scores.shape, generator=torch.Generator().manual_seed(0))
    prompts = graph.scores * (1 + 0.3 * noise)
    found = stability(graph.layout, resampled(prompts, RESAMPLING), Truth().topn, RESAMPLING)
    spans = torch.stack([graph.scores * 2 / 3, graph.scores / 3])
    details = Details(Truth().topn, found, spans, ("subject", "last token"))
    write_details(details_of(copied_run), graph.layout, details)
    return copied_run


def details_of(run: Run) -> Path:
    return run.checkpoints()[-1].circuit_folder(30, GROUP, "EAP-IG").details


def write_matrix(run: Run) -> Path:
    """Own prompts 0.9, another band 0.8, type 0.6, task 0.3, anything else 0."""
    order = list(groups())

    def value(one: Group, other: Group) -> float | None:
        differing = (one.band != other.band, one.type != other.type, one.task != other.task)
        if sum(differing) > 1:
            return 0.0
        return 0.9 if not any(differing) else [0.8, 0.6, 0.3][differing.index(True)]

    content = {
        "groups": [{"task": str(one.task), **dict(one.columns)} for one in order],
        "edges": [200] * 18,
        "faithfulness": [[value(one, other) for other in order] for one in order],
        "shared": {"edges": 50, "nodes": 9, "faithfulness": [None, *[0.5] * 17], "same_size": [0.75] * 18},
    }
    checkpoint = run.checkpoints()[-1]
    path = checkpoint.output / "circuit_30" / "method_EAP-IG" / f"topn_{Truth().topn}" / "cross_groups.json"
    write_json(path, content)
    return path


def test_a_circuit_has_its_stability_and_spans_where_they_were_measured(measured: Run) -> None:
    seen = {}
    found = read_circuits(measured, visit=lambda step, _, group, graph: seen.update({(step, group): graph}))
    assert found is not None
    names = {"step": 80, "task": str(GROUP.task), "type": str(GROUP.type), "band": str(GROUP.band)}
    own = (found.table[list(names)] == list(names.values())).all(axis=1)
    row = found.table[own].iloc[0]
    assert found.table.loc[~own, ["split_half_jaccard", "rank_correlation", "inclusion"]].isna().all(axis=None)
    circuit = seen[80, GROUP]
    assert (
        row["inclusion"] == pytest.approx(float(circuit.inclusion[circuit.in_graph].mean())) and row["inclusion"] > 0.5
    )
    assert 0 < row["split_half_jaccard"] < 1 and 0 < row["rank_correlation"] < 1
    assert dict(zip(found.spans["span"], found.spans["share"], strict=True)) == pytest.approx(
        {"subject": 2 / 3, "last token": 1 / 3}
    )


def test_stability_of_another_circuit_size_is_not_the_circuits(measured: Run) -> None:
    graph = read_graph(measured.checkpoints()[-1].circuit_folder(30, GROUP, "EAP-IG").circuit(Truth().topn))
    scores = torch.randn(14, *graph.scores.shape) * graph.layout.real_edges
    other = stability(graph.layout, scores, 10, RESAMPLING)
    write_details(details_of(measured), graph.layout, Details(10, other))
    found = read_circuits(measured)
    assert found is not None and found.table["inclusion"].isna().all()


def test_a_circuit_of_stable_signs_has_the_inclusion_of_its_edges_and_no_split_half(measured: Run) -> None:
    for checkpoint in measured.checkpoints():
        plain = checkpoint.circuit_folder(30, GROUP, "EAP-IG")
        circuit = read_graph(plain.circuit(Truth().topn))
        thinned = circuit.with_edges(circuit.in_graph & (torch.arange(circuit.in_graph.shape[1]) % 2 == 0))
        folder = checkpoint.circuit_folder(30, GROUP, selection_name("EAP-IG", 0.9))
        write_graph(folder.circuit(Truth().topn), thinned)
    setting = Setting(30, "EAP-IG_sign0.9", Truth().topn)
    seen = []
    found = read_circuits(measured, setting, lambda *shown: seen.append(shown[-1]))
    inclusion = read_details(plain.details, circuit.layout).stability.inclusion[thinned.in_graph].mean()
    row = found.table.iloc[-1]
    assert row["inclusion"] == pytest.approx(float(inclusion)) and 0 < row["rank_correlation"] < 1
    assert np.isnan(row["split_half_jaccard"]) and found.table["inclusion"].iloc[:-1].isna().all()
    assert seen[-1].spans == ("subject", "last token") and set(found.spans["span"]) == set(seen[-1].spans)
    assert "no data" in str(svg_element(figures.stability(found, "nano"), "stability"))


def test_a_matrix_of_groups_is_summed_up_by_what_prompts_differ_in(measured: Run) -> None:
    assert cross_groups(measured) is None
    path = write_matrix(measured)
    matrix = cross_groups(measured)
    assert matrix is not None and (matrix.epoch, matrix.core_edges) == (8, 50) and np.isnan(matrix.core[0])
    expected = {"own": 0.9, "other frequency": 0.8, "other type": 0.6, "other task": 0.3}
    assert matrix.by_difference() == pytest.approx(expected)
    assert "share 50 edges (25% of a circuit), whose faithfulness is 0.50" in matrix.sentence
    assert matrix.sentence.endswith("as many, have 0.75.")
    content = read_json(path)
    for damage in ({"edges": [1]}, {"faithfulness": [*content["faithfulness"][:-1], [1.0]]}):
        write_json(path, content | damage)
        with pytest.raises(InputError, match="a row and a column for each of its 18 groups"):
            cross_groups(measured)
    write_json(path, content | {"groups": "all"})
    with pytest.raises(InputError, match="groups"):
        cross_groups(measured)


def test_the_reports_section_shows_what_was_measured_and_says_what_was_not(measured: Run) -> None:
    matrix = write_matrix(measured)
    page = report_html(read_material(measured))
    section = page[page.index('<section id="prompts">') : page.index('<section id="components">')]
    assert section.count("<figure") == 3 and "last token" in section and "shared core (50 edges)" in section
    assert "Halves agree" in page
    matrix.unlink()
    details_of(measured).unlink()
    ((_, lacking, drawn),) = draw_sections(read_material(measured), (PROMPTS,))
    assert "--cross_groups" in lacking and not drawn
    only = svg_element(figures.cross_groups(None, "nano"), "nothing")
    assert "circuit_eval.py --cross_groups" in str(only)
