"""What a page shows of a circuit is the circuit: its nodes, its strongest edges, its numbers."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_run import Truth, scored_graph

from knowledge_circuits.analysis.circuit_tables import results
from knowledge_circuits.analysis.run_circuits import read_circuits
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.figures.circuit_graph import strongest_edges
from knowledge_circuits.report.circuit_browser import MOST_EDGES, CircuitBrowser, node_strengths, picture
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Attribute, Band, Group, KnowledgeType, groups

GROUP = Group(Attribute.CITY, KnowledgeType.REVISED, Band.HIGH)


def chain() -> Graph:
    """input -> a0.h0<v> (score 3) -> logits (-1), and input -> logits (0.5), of a model with one layer of one head."""
    layout = Layout(1, 1)
    names = {name: at for at, name in enumerate(layout.targets)}
    scores = torch.zeros(layout.n_sources, layout.n_targets)
    scores[0, names["a0.h0<v>"]], scores[1, names["logits"]], scores[0, names["logits"]] = 3.0, -1.0, 0.5
    return Graph(layout, scores, scores != 0, d_model=4)


def test_a_node_is_as_strong_as_the_scores_of_its_edges_together() -> None:
    # input 3.5, a0.h0 3 + 1 = 4, m0 nothing, logits 1.5
    assert node_strengths(chain()).tolist() == [3.5 / 4, 1.0, 0.0, 1.5 / 4]


def test_the_strongest_edges_come_first_whatever_their_sign() -> None:
    layout = chain().layout
    named = [(layout.sources[u], layout.targets[v]) for u, v in strongest_edges(chain(), 2)]
    assert named == [("input", "a0.h0<v>"), ("a0.h0", "logits")]


def test_edges_outside_the_circuit_are_not_drawn() -> None:
    graph = prune(top_n(scored_graph(Truth(), GROUP, 8.0), 40))
    edges = strongest_edges(graph, 1000)
    assert len(edges) == graph.n_edges
    assert graph.in_graph[edges[:, 0], edges[:, 1]].all()


def test_a_picture_tells_absent_nodes_from_weak_ones() -> None:
    graph = chain()
    weak = graph.with_edges(torch.ones_like(graph.in_graph) & graph.layout.real_edges)  # m0 is in it, with no score
    assert picture(graph, 0, 0.0).node_bytes.tolist()[2] == 0
    assert picture(weak, 0, 0.0).node_bytes.tolist()[2] == 1


def test_a_circuit_without_scores_has_a_picture() -> None:
    graph = Graph(chain().layout, torch.zeros_like(chain().scores), chain().in_graph, d_model=4)
    assert picture(graph, 0, 0.0).edge_numbers[:, 2].tolist() == [0, 0, 0]


def test_the_page_s_bytes_are_those_of_the_run_s_circuits(synthetic_run: Run) -> None:
    browser = CircuitBrowser()
    found = read_circuits(synthetic_run, visit=browser.add)
    assert found is not None
    data = browser.page_data(found.table, results(synthetic_run))
    assert (data["layers"], data["heads"], data["omitted"], len(data["groups"])) == (5, 2, 0, 18)
    assert [group["band"] for group in data["groups"][:3]] == ["low", "medium", "high"]  # in the study's order
    names = {"task": str(GROUP.task), "type": str(GROUP.type), "band": str(GROUP.band)}
    group = next(each for each in data["groups"] if names.items() <= each.items())
    graph = prune(top_n(scored_graph(Truth(), GROUP, 8.0), Truth().topn))
    step, epoch, edges, nodes, entropy, faithfulness, levels, packed, spans = group["rows"][-1]
    assert spans == []
    assert (step, epoch, edges, nodes) == (80, 8.0, graph.n_edges, graph.n_nodes)
    row = found.table[(found.table["step"] == 80) & (found.table[list(names)] == list(names.values())).all(axis=1)]
    assert entropy == pytest.approx(row["entropy"].item(), rel=1e-3)
    assert faithfulness == pytest.approx(0.95 - 0.6 * np.exp(-4), rel=1e-3)
    present = np.frombuffer(base64.b64decode(levels), np.uint8) > 0
    assert (present == graph.nodes_in_graph.numpy()).all()
    numbers = np.frombuffer(base64.b64decode(packed), "<i2").reshape(-1, 4)
    assert (numbers[:, :2] == strongest_edges(graph, MOST_EDGES)).all()
    drawn = graph.scores.numpy()[numbers[:, 0], numbers[:, 1]]
    assert np.allclose(numbers[:, 2] / 32767, drawn / abs(drawn).max(), atol=1e-4)
    assert group["rows"][0][5] is None  # faithfulness is not defined before training


def test_a_page_that_would_grow_too_large_leaves_out_epochs_evenly() -> None:
    browser, graph = CircuitBrowser(), chain()
    for step in range(0, 101, 10):
        for group in groups():
            browser.add(step, step / 10, group, graph)
    assert browser.shown_steps() == list(range(0, 101, 10))
    one = browser.shown_steps(1) == [0, 100]
    assert one
    half = browser.shown_steps(18 * 6 * 100)
    assert half[0] == 0 and half[-1] == 100 and 3 <= len(half) < 11
    nothing = pd.DataFrame(columns=["step", "circuit_step", "task", "type", "band", "entropy", "faithfulness"])
    data = browser.page_data(nothing, nothing, most_bytes=1)
    assert data["omitted"] == 9
    assert data["groups"][0]["rows"][0][4:6] == [None, None]


def test_no_circuits_are_no_data() -> None:
    assert CircuitBrowser().page_data(None, pd.DataFrame()) == {}


def test_a_span_s_picture_is_of_its_scores_and_unstable_edges_say_so() -> None:
    graph = chain()
    scores = torch.stack([graph.scores * (graph.scores > 0), graph.scores * (graph.scores < 0)])
    known = replace(graph, span_scores=scores, spans=("subject", "last"), inclusion=graph.in_graph * 0.5)
    shown = picture(known, 0, 0.0)
    assert shown.edge_numbers[:, 3].tolist() == [round(32767 * 0.5)] * 3
    assert picture(graph, 0, 0.0).edge_numbers[:, 3].tolist() == [-1] * 3
    _, last = shown.spans["last"]
    assert (graph.layout.sources[last[0, 0]], graph.layout.targets[last[0, 1]]) == ("a0.h0", "logits")
    assert last[:, 2].tolist() == [-32767, 0, 0]
    browser = CircuitBrowser()
    browser.add(0, 0.0, GROUP, known)
    browser.add(10, 1.0, GROUP, replace(known, span_scores=scores[:1], spans=("last",)))
    nothing = pd.DataFrame(columns=["step", "circuit_step", "task", "type", "band", "entropy", "faithfulness"])
    data = browser.page_data(nothing, nothing)
    assert data["spans"] == ["subject", "last"]
    first, second = (row[8] for row in data["groups"][0]["rows"])
    assert None not in first and second[0] is None and len(second[1]) == 2
