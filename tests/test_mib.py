"""Submissions of the Mechanistic Interpretability Benchmark, and rows of its data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from families import word_tokenizer

from knowledge_circuits import mib
from knowledge_circuits.engine.graph import Graph, layout_of
from knowledge_circuits.engine.graph_files import write_graph
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.files import InputError


def scored(parallel: bool = False) -> Graph:
    layout = layout_of(2, 3, parallel)
    scores = torch.randn(layout.real_edges.shape, generator=torch.Generator().manual_seed(0))
    graph = Graph(layout, torch.where(layout.real_edges, scores, 0.0), layout.real_edges.clone(), 24)
    return top_n(graph, 20)


def mibs_graph(cfg: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Nodes and edges that MIB's loader makes from `cfg` before it looks up each name of the file."""
    nodes, edges, stream = {"input"}, set(), ["input"]
    for layer in range(cfg["n_layers"]):
        heads, mlp = [f"a{layer}.h{head}" for head in range(cfg["n_heads"])], f"m{layer}"
        edges |= {f"{source}->{head}<{kind}>" for source in stream for head in heads for kind in "qkv"}
        into_mlp = stream if cfg["parallel_attn_mlp"] else [*stream, *heads]
        edges |= {f"{source}->{mlp}" for source in into_mlp}
        stream = [*stream, *heads, mlp]
        nodes |= {*heads, mlp}
    return nodes | {"logits"}, edges | {f"{source}->logits" for source in stream}


@pytest.mark.parametrize("parallel", [False, True])
def test_a_submission_has_what_mibs_loader_looks_up(tmp_path: Path, parallel: bool) -> None:
    path = mib.write_submission(tmp_path, "arc_easy", "llama3", scored(parallel))
    assert path == tmp_path / "arc-easy_llama3" / "importances.json"
    content = json.loads(path.read_text())
    assert content["cfg"] == {"n_layers": 2, "n_heads": 3, "parallel_attn_mlp": parallel, "d_model": 24}
    nodes, edges = mibs_graph(content["cfg"])
    assert set(content["nodes"]) == nodes and set(content["edges"]) == edges
    assert all(type(node["in_graph"]) is bool for node in content["nodes"].values())
    assert all(type(e["score"]) is float and type(e["in_graph"]) is bool for e in content["edges"].values())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    mib.write_submission(tmp_path, "ioi", "gpt2", scored())
    write_graph(tmp_path / "mcqa_qwen2.5.pt", scored(True))
    (tmp_path / "mcqa_qwen2.5").mkdir()
    (tmp_path / "mcqa_qwen2.5.pt").rename(tmp_path / "mcqa_qwen2.5" / "importances.pt")
    graphs = mib.read_submission(tmp_path)
    assert set(graphs) == {("ioi", "gpt2"), ("mcqa", "qwen2.5")}
    assert torch.equal(graphs["ioi", "gpt2"][0].scores, scored().scores)
    assert torch.equal(graphs["ioi", "gpt2"][0].in_graph, scored().in_graph)


def test_a_graph_without_meta_as_mib_writes_it_is_read(tmp_path: Path) -> None:
    path = mib.write_submission(tmp_path, "ioi", "gpt2", scored())
    content = json.loads(path.read_text())
    del content["meta"]
    path.write_text(json.dumps(content))
    assert torch.equal(mib.read_submission(tmp_path)["ioi", "gpt2"][0].scores, scored().scores)


def test_the_program_exports_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_graph(tmp_path / "graph.json.gz", scored())
    export = [
        "export",
        str(tmp_path / "graph.json.gz"),
        "--task",
        "ioi",
        "--model",
        "gpt2",
        "--to",
        str(tmp_path / "to"),
    ]
    assert mib.main(export) == mib.main(["list", str(tmp_path / "to")]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("ioi gpt2: Graph(2 layers x 3 heads: 20 of")


def test_the_second_form_has_a_circuit_within_each_share_of_the_edges(tmp_path: Path) -> None:
    layout = layout_of(4, 6, False)
    scores = torch.randn(layout.real_edges.shape, generator=torch.Generator().manual_seed(1)) * layout.real_edges
    graph = Graph(layout, scores, layout.real_edges.clone(), 48)
    write_graph(tmp_path / "graph.pt", graph)
    flags = ["--task", "arc_easy", "--model", "llama3", "--circuits"]
    for absolute, folder in ((False, tmp_path / "signed"), (True, tmp_path / "absolute")):
        how = ["--absolute"] if absolute else []
        assert mib.main(["export", str(tmp_path / "graph.pt"), *flags, "--to", str(folder), *how]) == 0
        circuits = mib.read_submission(folder)["arc-easy", "llama3"]
        assert len(circuits) == 9
        for share, circuit in zip(mib.SHARES, circuits, strict=True):
            expected = prune(top_n(graph, int(share * layout.n_edges), absolute))
            assert torch.equal(circuit.in_graph, expected.in_graph) and circuit.n_edges <= share * layout.n_edges
    content = json.loads((folder / "arc-easy_llama3" / "circuit_0.5.json").read_text())
    assert {edge["score"] for edge in content["edges"].values()} == {0}


def test_a_folder_takes_one_form_of_a_submission(tmp_path: Path) -> None:
    write_graph(tmp_path / "graph.pt", scored())
    export = ["export", str(tmp_path / "graph.pt"), "--task", "ioi", "--model", "gpt2", "--to"]
    for folder, first, second, left in (
        ("scores", [], ["--circuits"], "holds importances.json"),
        ("circuits", ["--circuits"], [], "holds circuit_0.1.json"),
    ):
        to = [*export, str(tmp_path / folder)]
        assert mib.main([*to, *first]) == mib.main([*to, *first]) == 0, "the same form replaces its files"
        with pytest.raises(InputError, match=f"{left}.*export to another folder"):
            mib.main([*to, *second])
        assert mib.main(["list", str(tmp_path / folder)]) == 0
    with pytest.raises(InputError, match="it goes with --circuits only"):
        mib.main([*export, str(tmp_path / "third"), "--absolute"])
    assert not (tmp_path / "third").exists()


def test_what_mib_could_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hyphens"):
        mib.write_submission(tmp_path, "ioi", "gpt2_small", scored())
    with pytest.raises(InputError, match="all edges"):
        mib.write_submission(tmp_path, "ioi", "gpt2", scored().with_meta(edges="circuit"))
    with pytest.raises(InputError, match="no such folder"):
        mib.read_submission(tmp_path / "absent")
    (tmp_path / "ioi").mkdir()
    with pytest.raises(InputError, match="not <task>_<model>"):
        mib.read_submission(tmp_path)
    (tmp_path / "ioi").rename(tmp_path / "ioi_gpt2")
    with pytest.raises(InputError, match=r"0 \.json"):
        mib.read_submission(tmp_path)


def choices(prompt: str, key: int, labels: str = "t5 t6") -> dict[str, Any]:
    return {"prompt": prompt, "choices": {"label": labels.split()}, "answerKey": key}


def ioi(io: str, subject: str, third: str, flipped: str) -> dict[str, Any]:
    names = {"indirect_object": io, "subject": subject, "random_c": third}
    return {"prompt": "t1 t2 t1", "s2_io_flip_counterfactual": {"prompt": flipped}, "metadata": names}


def arithmetic(label: str, other: str | None, operator: str) -> dict[str, Any]:
    counterfactual = None if other is None else {"prompt": "t4 t5 t6", "label": other}
    return {"prompt": "t1 t2 t3", "label": label, "operator": operator, "random_counterfactual": counterfactual}


ROWS: dict[str, tuple[list[dict[str, Any]], list[tuple[int, int]]]] = {
    "ioi": (
        [ioi("t1", "t2", "t3", "t1 t2 t2"), ioi("t1 t4", "t2", "t3", "t1 t2 t2"), ioi("t1", "t2", "t3", "t1 t2")],
        [(1, 2)],
    ),
    "mcqa": ([choices("t1 t2", 0) | {"symbol_counterfactual": choices("t1 t3", 1)}], [(5, 6)]),
    "arc_easy": ([choices("t1 t2", 1) | {"symbol_counterfactual": choices("t1 t3", 0, "t7 t8")}], [(6, 7)]),
    "arithmetic_subtraction": (
        [
            arithmetic("t7", "t8", "-"),
            arithmetic("t7", "t8", "+"),
            arithmetic("t7 t7", "t8 t8", "-"),
            arithmetic("t7", None, "-"),
        ],
        [(7, 8)],
    ),
}


@pytest.mark.parametrize("task", ROWS)
def test_rows_of_mibs_data_become_pairs_and_what_mib_drops_is_dropped(task: str) -> None:
    rows, labels = ROWS[task]
    pairs = mib.prompt_pairs(rows, task, word_tokenizer())
    assert list(pairs.labels) == labels
    assert all(ids[0] == 0 for ids in (*pairs.clean, *pairs.corrupted))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("task", ROWS)
def test_files_with_the_columns_of_mibs_data_sets_are_loaded(task: str, ending: str, tmp_path: Path) -> None:
    folder, (rows, labels) = tmp_path / mib.DATA_SETS[task], ROWS[task]
    folder.mkdir()
    for split, chosen in (("train", rows), ("validation", rows[::-1])):
        data = datasets.Dataset.from_list(chosen)
        (data.to_json if ending == "jsonl" else data.to_parquet)(folder / f"{split}.{ending}")
        found = mib.load_rows(task, split, tmp_path, tmp_path / "cache")
        assert len(found) == len(rows)
        assert list(mib.prompt_pairs(found, task, word_tokenizer()).labels) == labels
    with pytest.raises(InputError, match=r"cannot be loaded: Unknown split"):
        mib.load_rows(task, "test", tmp_path, tmp_path / "cache")


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the data set 'mib-bench/ioi' cannot be loaded"):
        mib.load_rows("ioi", "train", cache_dir=tmp_path)
    with pytest.raises(InputError, match="choose one of: ioi, mcqa, arc_easy"):
        mib.load_rows("winogrande", "train", tmp_path)


def test_rows_without_the_tasks_columns_are_refused() -> None:
    with pytest.raises(InputError, match=r"row 1 of ioi: no column 's2_io_flip_counterfactual'"):
        mib.prompt_pairs([{"prompt": "t1"}], "ioi", word_tokenizer())
    with pytest.raises(InputError, match="no task of MIB"):
        mib.prompt_pairs([], "winogrande", word_tokenizer())
    with pytest.raises(InputError, match="fits this tokenizer"):
        mib.prompt_pairs([], "ioi", word_tokenizer())
