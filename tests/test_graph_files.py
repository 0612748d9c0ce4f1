"""Graph files: EAP-IG 2.0's schema, three formats with one content, and refusals that say what is wrong."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from knowledge_circuits.command_line import program_parser
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.graph_files import read_details, read_graph, write_details, write_graph
from knowledge_circuits.engine.stability import Details, Resampling, resampled, stability
from knowledge_circuits.files import BOUNDS, InputError

HAND_WRITTEN = Path(__file__).parent / "fixtures" / "hand_written_graph.json"
SUFFIXES = (".json", ".json.gz", ".pt")


def random_graph(dtype: torch.dtype = torch.float32, layout: Layout | None = None) -> Graph:
    layout = layout or Layout(2, 3)
    generator = torch.Generator().manual_seed(1)
    shape = layout.real_edges.shape
    scores = torch.randn(shape, generator=generator, dtype=dtype) * layout.real_edges
    membership = (torch.rand(shape, generator=generator) < 0.5) & layout.real_edges
    return Graph(layout, scores, membership, 16, {"method": "EAP-IG", "dtype": str(dtype).removeprefix("torch.")})


def test_a_graph_written_by_hand_in_eap_igs_schema_loads() -> None:
    graph = read_graph(HAND_WRITTEN)
    layout = graph.layout
    assert (layout.n_layers, layout.n_heads, layout.parallel, graph.d_model) == (1, 1, False, 8)

    def at(source: str, target: str) -> tuple[int, int]:
        return layout.sources.index(source), layout.targets.index(target)

    assert graph.scores[at("input", "a0.h0<k>")] == -0.25
    assert graph.in_graph[at("input", "a0.h0<k>")]
    assert graph.scores[at("m0", "logits")] == 2
    assert not graph.in_graph[at("a0.h0", "m0")]
    assert graph.n_edges == 5


def test_eap_ig_1s_nodes_load_too(tmp_path: Path) -> None:
    content = json.loads(HAND_WRITTEN.read_text())
    content["nodes"] = {name: value["in_graph"] for name, value in content["nodes"].items()}
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert torch.equal(read_graph(tmp_path / "old.json").in_graph, read_graph(HAND_WRITTEN).in_graph)


def test_what_we_write_has_the_schemas_keys_and_meta(tmp_path: Path) -> None:
    write_graph(tmp_path / "g.json", random_graph())
    ours, theirs = json.loads((tmp_path / "g.json").read_text()), json.loads(HAND_WRITTEN.read_text())
    assert set(ours) == {*theirs, "meta"}
    assert set(ours["cfg"]) == set(theirs["cfg"])
    assert set(next(iter(ours["edges"].values()))) == set(next(iter(theirs["edges"].values()))) == {"score", "in_graph"}
    assert ours["nodes"]["input"] == {"in_graph": True}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_graph_comes_back_exactly(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    graph = random_graph(dtype)
    write_graph(tmp_path / f"g{suffix}", graph)
    again = read_graph(tmp_path / f"g{suffix}")
    assert torch.equal(again.scores, graph.scores)
    assert again.scores.dtype == dtype
    assert torch.equal(again.in_graph, graph.in_graph)
    assert (again.layout, again.d_model, again.meta) == (graph.layout, graph.d_model, graph.meta)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_graph_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        write_graph(tmp_path / f"{name}{suffix}", random_graph())
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_edges_in_another_order_mean_the_same(tmp_path: Path) -> None:
    write_graph(tmp_path / "g.json", random_graph())
    content = json.loads((tmp_path / "g.json").read_text())
    content["edges"] = dict(reversed(content["edges"].items()))
    (tmp_path / "r.json").write_text(json.dumps(content))
    assert torch.equal(read_graph(tmp_path / "r.json").scores, random_graph().scores)


def test_a_score_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    graph = random_graph()
    graph.scores[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        write_graph(tmp_path / "g.json", graph)
    assert not list(tmp_path.iterdir())


def _set(path: list[str], value: object):  # type: ignore[no-untyped-def]
    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        if value is None:
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(["cfg"], None), "no 'cfg'"),
        (_set(["cfg", "n_heads"], 3), "edges where a model of this shape has|does not match"),
        (_set(["cfg", "n_heads"], 10**9), "layers of 1000000000 heads are more than"),
        (_set(["cfg", "n_layers"], True), "not a positive whole number"),
        (_set(["edges", "input->m0"], None), "edges where"),
        (_set(["edges", "input->m0", "score"], "high"), "edge 'input->m0'"),
        (_set(["edges", "input->m0", "score"], 10**400), "edge 'input->m0'"),
        (_set(["edges", "input->m0", "score"], 1e39), "too large"),
        (_set(["edges", "input->m0", "in_graph"], 1), "edge 'input->m0'"),
        (_set(["edges", "input->m0"], []), "edge 'input->m0'"),
        (_set(["nodes", "m0"], None), "node 'm0'"),
        (_set(["nodes", "m0"], "yes"), "node 'm0'"),
        (_set(["meta"], []), "meta"),
    ],
)
def test_a_damaged_graph_is_refused_with_the_reason(tmp_path: Path, change, reason: str) -> None:  # type: ignore[no-untyped-def]
    content = json.loads(HAND_WRITTEN.read_text())
    change(content)
    (tmp_path / "g.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=reason):
        read_graph(tmp_path / "g.json")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_circuits_own_edges_come_back_exactly_and_others_score_nothing(
    tmp_path: Path, suffix: str, dtype: torch.dtype
) -> None:
    graph = random_graph(dtype)
    write_graph(tmp_path / f"c{suffix}", graph, edges="circuit")
    again = read_graph(tmp_path / f"c{suffix}")
    assert torch.equal(again.in_graph, graph.in_graph)
    assert torch.equal(again.scores, graph.scores * graph.in_graph) and again.scores.dtype == dtype
    assert again.meta == {**graph.meta, "edges": "circuit"}
    write_graph(tmp_path / f"d{suffix}", again)
    assert torch.equal(read_graph(tmp_path / f"d{suffix}").scores, again.scores)


def test_a_circuits_file_is_smaller_by_the_edges_that_it_leaves_out(tmp_path: Path) -> None:
    graph = random_graph(layout=Layout(4, 8))
    circuit = graph.with_edges(graph.in_graph & (graph.scores.abs() > 2))
    for suffix in SUFFIXES:
        write_graph(tmp_path / f"whole{suffix}", circuit)
        write_graph(tmp_path / f"circuit{suffix}", circuit, edges="circuit")
        sizes = [(tmp_path / f"{name}{suffix}").stat().st_size for name in ("whole", "circuit")]
        assert sizes[1] < sizes[0] / 2
    assert len(json.loads((tmp_path / "circuit.json").read_text())["edges"]) == circuit.n_edges


def test_a_damaged_circuits_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds all edges or the circuit's"):
        write_graph(tmp_path / "c.json", random_graph(), edges="some")  # type: ignore[arg-type]
    write_graph(tmp_path / "c.json", random_graph(), edges="circuit")
    content = json.loads((tmp_path / "c.json").read_text())
    content["edges"]["m1->m0"] = {"score": 1.0, "in_graph": True}
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no edge 'm1->m0'"):
        read_graph(tmp_path / "c.json")
    write_graph(tmp_path / "c.pt", random_graph(), edges="circuit")
    tensors = torch.load(tmp_path / "c.pt", weights_only=True)
    count = len(tensors["edges"])
    for key, value, reason in (
        ("edges", torch.full((count, 2), 99), "does not exist"),
        ("edges", torch.full((count, 2), -1), "does not exist"),
        ("edges", tensors["edges"][1:], "with a score for each"),
        ("edges_scores", torch.full((count,), torch.nan), "not a finite number"),
        ("edges_scores", [1.0], "no 'edges_scores'"),
    ):
        torch.save({**tensors, key: value}, tmp_path / "c.pt")
        with pytest.raises(InputError, match=reason):
            read_graph(tmp_path / "c.pt")


def test_a_strange_edge_is_named(tmp_path: Path) -> None:
    content = json.loads(HAND_WRITTEN.read_text())
    content["edges"]["m0->m0"] = content["edges"].pop("input->m0")
    (tmp_path / "g.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no edge 'm0->m0'"):
        read_graph(tmp_path / "g.json")


@pytest.mark.parametrize("name", ["g.json", "g.json.gz", "g.pt"])
def test_half_a_file_is_refused(tmp_path: Path, name: str) -> None:
    write_graph(tmp_path / name, random_graph())
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=name):
        read_graph(tmp_path / name)


def test_a_name_without_a_known_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ends in"):
        write_graph(tmp_path / "g.txt", random_graph())


def test_a_tensor_file_that_would_run_code_does_not(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"cfg": Harm()}, tmp_path / "g.pt")
    with pytest.raises(InputError, match="not a graph"):
        read_graph(tmp_path / "g.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(("layers", "heads"), [(300_000, 1), (300, 300)])
def test_a_graph_larger_than_any_model_s_is_refused_before_memory_is_taken(tmp_path, layers, heads):
    cfg = {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": False, "d_model": 8}
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"cfg": cfg, "nodes": {}, "edges": {}}))
    with pytest.raises(InputError, match=r"more than 160 of 160; .* raise --max_layers and --max_heads"):
        read_graph(path)


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".pt"])
def test_a_graph_beyond_the_bounds_is_refused_until_the_flags_raise_them(tmp_path, suffix, monkeypatch):
    layout = Layout(3, 2)
    graph = Graph(layout, torch.where(layout.real_edges, 0.5, 0.0), layout.real_edges, 8, {})
    write_graph(tmp_path / f"graph{suffix}", graph)
    monkeypatch.setattr(BOUNDS, "max_layers", 2)
    monkeypatch.setattr(BOUNDS, "max_heads", 2)
    with pytest.raises(InputError, match="3 layers of 2 heads are more than 2 of 2"):
        read_graph(tmp_path / f"graph{suffix}")
    program_parser(None).parse_args(["--max_layers", "3"])
    assert torch.equal(read_graph(tmp_path / f"graph{suffix}").scores, graph.scores)


def test_a_tensor_file_whose_parts_unpack_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    path, bomb = tmp_path / "graph.pt", tmp_path / "bomb.pt"
    layout = Layout(2, 2)
    write_graph(path, Graph(layout, torch.zeros(layout.real_edges.shape), layout.real_edges, 8, {}))
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
        packed.writestr("archive/data/9", bytes(5_000_000))
    assert bomb.stat().st_size < 20_000
    monkeypatch.setattr(BOUNDS, "max_unpacked_gb", 0.004)
    with pytest.raises(InputError, match=r"bomb.pt: unpacks to more than 0.004 GB"):
        read_graph(bomb)
    assert read_graph(path).layout == layout


def test_a_tensor_that_repeats_one_number_is_refused(tmp_path):
    layout = Layout(2, 2)
    content = {
        "cfg": {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8},
        "src_nodes": list(layout.sources),
        "dst_nodes": list(layout.targets),
        "edges_scores": torch.zeros(1).expand(layout.n_sources, layout.n_targets),
        "edges_in_graph": torch.ones(layout.n_sources, layout.n_targets, dtype=torch.bool),
        "nodes_in_graph": torch.ones(layout.n_sources, dtype=torch.bool),
    }
    torch.save(content, tmp_path / "graph.pt")
    with pytest.raises(InputError, match="holds fewer numbers than its shape"):
        read_graph(tmp_path / "graph.pt")


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_scores_of_single_neurons_are_refused(tmp_path: Path, suffix: str) -> None:
    """Its edges alone would be another circuit than the file's."""
    path = tmp_path / f"g{suffix}"
    write_graph(path, random_graph())
    if suffix == ".json":
        content = json.loads(path.read_text())
        content["nodes"]["a0.h0"]["neurons"] = [True] * 16
        path.write_text(json.dumps(content))
    else:
        torch.save(torch.load(path, weights_only=True) | {"neurons_scores": torch.zeros(9, 16)}, path)
    with pytest.raises(InputError, match="single neurons, which the engine has not"):
        read_graph(path)


def details(layout: Layout) -> Details:
    generator, resampling = torch.Generator().manual_seed(2), Resampling(splits=2, resamples=4)
    scores = torch.randn(6, *layout.real_edges.shape, generator=generator) * layout.real_edges
    measured = stability(layout, resampled(scores, resampling), 20, resampling)
    return Details(20, measured, scores[:2] / 6, ("subject", "last token"))


def test_details_come_back(tmp_path: Path) -> None:
    layout, path = Layout(2, 3), tmp_path / "city_details.safetensors"
    written = details(layout)
    write_details(path, layout, written)
    read = read_details(path, layout)
    assert (read.topn, read.spans) == (20, ("subject", "last token"))
    assert read.stability is not None and written.stability is not None
    assert torch.equal(read.span_scores, written.span_scores)
    for name in ("inclusion", "same_sign", "split_half_jaccard", "rank_correlation"):
        assert torch.equal(getattr(read.stability, name), getattr(written.stability, name).float())
    write_details(path, layout, Details(0, None, written.span_scores, written.spans))
    assert read_details(path, layout).stability is None
    circuit = read.attached(random_graph(layout=layout))
    assert circuit.spans == read.spans and torch.equal(circuit.inclusion, read.stability.inclusion)


def test_damaged_details_are_refused(tmp_path: Path) -> None:
    layout, path = Layout(2, 3), tmp_path / "city_details.safetensors"
    write_details(path, layout, details(layout))
    with pytest.raises(InputError, match="of 2 layers x 3 heads, and the graph has 2 layers x 2"):
        read_details(path, Layout(2, 2))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a graph's details"):
        read_details(path, layout)
