"""A run's circuits read back: their membership and measures are those of the graphs on disk."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from synthetic_run import Truth, scored_graph

from knowledge_circuits.analysis import circuit_tables, run_circuits
from knowledge_circuits.engine import topology
from knowledge_circuits.engine.graph_files import write_graph
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.files import InputError
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Attribute, Band, Group, KnowledgeType

TRUTH = Truth()
GROUP = Group(Attribute.CITY, KnowledgeType.REVISED, Band.HIGH)


def test_circuits_have_the_shape_of_the_graphs_on_disk(synthetic_run: Run) -> None:
    circuits = run_circuits.read_circuits(synthetic_run)
    assert circuits is not None
    table = circuits.table
    assert list(table) == run_circuits.CIRCUIT_COLUMNS
    assert circuits.epochs == [float(epoch) for epoch in range(TRUTH.epochs + 1)]
    row = table[
        (table["step"] == 30) & (table["task"] == "city") & (table["type"] == "revised") & (table["band"] == "high")
    ]
    graph = prune(top_n(scored_graph(TRUTH, GROUP, 3.0), TRUTH.topn))
    assert row["entropy"].item() == pytest.approx(topology.circuit_entropy(graph))
    assert row["edges"].item() == graph.n_edges
    assert row["nodes"].item() == graph.n_nodes
    assert circuits.activation[row.index[0]] == pytest.approx(topology.edge_activation_ratio(graph))


def test_entropy_read_from_graphs_is_that_of_the_results(synthetic_run: Run) -> None:
    keys = ["step", "task", "type", "band"]
    circuits = run_circuits.read_circuits(synthetic_run)
    assert circuits is not None
    both = circuit_tables.results(synthetic_run).merge(circuits.table, on=keys)
    assert both["edge_entropy"].to_numpy() == pytest.approx(both["entropy"].to_numpy(), rel=1e-5)


def test_each_group_is_compared_with_its_own_last_circuit(synthetic_run: Run) -> None:
    circuits = run_circuits.read_circuits(synthetic_run)
    assert circuits is not None
    last = circuits.table[circuits.table["step"] == 80]
    assert (last["edge_jaccard"] == 1).all()
    assert (last["node_jaccard"] == 1).all()
    assert (circuits.table.loc[circuits.table["step"] == 0, "edge_jaccard"] < 0.9).all()


def test_the_similarity_map_has_the_last_column_of_the_table(synthetic_run: Run) -> None:
    circuits = run_circuits.read_circuits(synthetic_run)
    assert circuits is not None
    matrix = circuits.similarity()
    by_step = circuits.table.groupby("step")["edge_jaccard"].mean()
    assert matrix[:, -1] == pytest.approx(by_step.to_numpy())
    assert matrix == pytest.approx(matrix.T)


def test_the_similarity_map_leaves_out_groups_that_a_checkpoint_lacks(copied_run: Run) -> None:
    tables_folder = copied_run.checkpoints()[0].output
    shutil.rmtree(tables_folder / "circuit_30" / "type_new")
    circuits = run_circuits.read_circuits(copied_run)
    assert circuits is not None
    rows = circuits.table
    revised = rows[(rows["step"] == 0) & (rows["type"] == "revised")]
    assert circuits.similarity()[0, -1] == pytest.approx(revised["edge_jaccard"].mean())


def test_compressed_graphs_are_read_alike(copied_run: Run) -> None:
    plain = run_circuits.read_circuits(copied_run)
    folder = copied_run.checkpoints()[0].circuit_folder(30, GROUP, "EAP-IG")
    graph = prune(top_n(scored_graph(TRUTH, GROUP, 0.0), TRUTH.topn))
    folder.circuit(TRUTH.topn).unlink()
    write_graph(folder.circuit(TRUTH.topn, ".json.gz"), graph)
    packed = run_circuits.read_circuits(copied_run)
    assert plain is not None and packed is not None
    assert packed.table["entropy"].to_numpy() == pytest.approx(plain.table["entropy"].to_numpy())


def test_the_graph_of_another_model_in_a_run_is_an_error(copied_run: Run) -> None:
    other = Truth(layout=type(TRUTH.layout)(2, 2))
    path = copied_run.checkpoints()[-1].circuit_folder(30, GROUP, "EAP-IG").circuit(TRUTH.topn)
    write_graph(path, scored_graph(other, GROUP, 0.0))
    with pytest.raises(InputError, match="another model"):
        run_circuits.read_circuits(copied_run)


def test_circuits_are_found_by_the_epoch_nearest_to_the_one_asked_for(synthetic_run: Run) -> None:
    found = run_circuits.circuits_at(synthetic_run, GROUP, [0, 3.2, float("inf")])
    assert list(found) == ["epoch 0", "epoch 3", "epoch 8"]
    graph = prune(top_n(scored_graph(TRUTH, GROUP, 3.0), TRUTH.topn))
    assert (found["epoch 3"].in_graph == graph.in_graph).all()


def test_membership_rows_are_the_edges_in_row_major_order(synthetic_run: Run) -> None:
    circuits = run_circuits.read_circuits(synthetic_run)
    assert circuits is not None
    assert circuits.edges.shape == (len(circuits.table), circuits.layout.n_edges)
    assert np.array_equal(circuits.edges.sum(axis=1), circuits.table["edges"])
