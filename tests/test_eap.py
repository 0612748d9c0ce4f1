"""`knowledge_circuits.eap` gives EAP-IG's users the numbers of EAP-IG 2.0 under its names."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from families import FAMILIES, random_model, random_pairs, save_family, word_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from knowledge_circuits import eap
from knowledge_circuits.eap import Graph, attribute, evaluate_baseline, evaluate_graph
from knowledge_circuits.engine import graph_files
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError

GOLDEN = Path(__file__).parent / "golden"

#: EAP-IG's method -> golden array.
SCORES = {
    "EAP": "eap",
    "EAP-IG-inputs": "eap_ig_v2",
    "EAP-IG-activations": "eap_ig_activations_v2",
    "clean-corrupted": "clean_corrupted",
}

Batch = tuple[list[Any], list[Any], list[list[int]]]


def logit_difference(logits: Tensor, clean_logits: Tensor, input_length: Tensor, labels: Any) -> Tensor:
    """A metric as EAP-IG's users write it: mean over the batch, negative as a loss."""
    last = logits[torch.arange(len(logits)), input_length - 1]
    picked = last.gather(-1, torch.tensor(labels))
    return -(picked[:, 0] - picked[:, 1]).mean()


def positive(*arguments: Any) -> Tensor:
    return -logit_difference(*arguments)


def golden(name: str) -> tuple[list[Batch], dict[str, Any], dict[str, Tensor]]:
    """The golden prompts in batches of four, which hold prompts of several lengths; the facts and the arrays."""
    facts = json.loads((GOLDEN / name / "golden.json").read_text())
    with numpy.load(GOLDEN / name / "golden.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return loader(facts["items"]), facts, arrays


def loader(items: list[dict[str, Any]], size: int = 4) -> list[Batch]:
    return [
        tuple(
            [item[key] for item in items[start : start + size]] for key in ("clean_ids", "corrupted_ids", "label_ids")
        )
        for start in range(0, len(items), size)
    ]


def texts(batches: list[Batch]) -> list[Batch]:
    """The same batches as texts of `word_tokenizer`, without the start token."""
    return [
        (
            [" ".join(f"t{i}" for i in ids[1:]) for ids in clean],
            [" ".join(f"t{i}" for i in ids[1:]) for ids in corrupted],
            labels,
        )
        for clean, corrupted, labels in batches
    ]


def random_items(count: int = 3) -> list[dict[str, Any]]:
    return [vars(pair) for pair in random_pairs((6, 6, 8)[:count])]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(str(GOLDEN / "gpt2"), dtype=torch.float64)


@pytest.fixture(scope="module")
def scored(decoder: Decoder) -> Graph:
    graph = Graph.from_model(decoder)
    batches, facts, _ = golden("gpt2")
    attribute(decoder, graph, batches, logit_difference, "EAP-IG-inputs", ig_steps=facts["ig_steps"], quiet=True)
    return graph


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi", "gpt_neox"])
@pytest.mark.parametrize("method", SCORES)
def test_scores_are_those_of_eap_ig_2(name: str, method: str) -> None:
    batches, facts, arrays = golden(name)
    model = load_decoder(str(GOLDEN / name), dtype=torch.float64)
    graph = Graph.from_model(model)
    attribute(model, graph, batches, logit_difference, method, ig_steps=facts["ig_steps"], quiet=True)
    torch.testing.assert_close(graph.scores, arrays[SCORES[method]], rtol=0, atol=1e-8)


def test_exact_scores_are_the_losses_with_one_edge_out_of_the_graph(decoder: Decoder) -> None:
    batches = loader(random_items(2))
    graph = Graph.from_model(decoder)
    attribute(decoder, graph, batches, logit_difference, "exact", quiet=True)
    baseline = evaluate_baseline(decoder, batches, logit_difference, quiet=True).mean()
    for name in ("input->a0.h1<v>", "a1.h2->m1", "m2->logits"):
        whole = Graph.from_model(decoder)
        whole.reset(empty=False)
        whole.edges[name].in_graph = False
        effect = evaluate_graph(decoder, whole, batches, logit_difference, quiet=True).mean() - baseline
        assert float(graph.edges[name].score) == pytest.approx(float(effect), abs=1e-9)


def test_a_circuits_performance_is_that_of_eap_ig_2(decoder: Decoder, scored: Graph) -> None:
    batches, facts, arrays = golden("gpt2")
    graph = Graph.from_model(decoder)
    graph.scores = arrays["eap_ig"]
    graph.apply_topn(facts["topn"], True)
    assert torch.equal(graph.in_graph, arrays["circuit_edges"])
    for intervention, suffix in (("patching", ""), ("zero", "_zero")):
        values = evaluate_graph(decoder, graph, batches, positive, quiet=True, intervention=intervention)
        torch.testing.assert_close(values, arrays[f"circuit_logit_diff{suffix}"], rtol=0, atol=1e-8)
    first, second = evaluate_baseline(decoder, batches, [positive, logit_difference], quiet=True)
    torch.testing.assert_close(first, arrays["clean_logit_diff"], rtol=0, atol=1e-8)
    torch.testing.assert_close(second, -first)
    corrupted = evaluate_baseline(decoder, batches, positive, run_corrupted=True, quiet=True)
    torch.testing.assert_close(corrupted, arrays["corrupted_logit_diff"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox", "llama"])
def test_a_bridge_a_hugging_face_model_and_a_decoder_give_the_same_scores(family: str, tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    folder = str(save_family(tmp_path / family, family))
    batches = loader(random_items())
    expected = Graph.from_model(load_decoder(folder))
    attribute(load_decoder(folder), expected, batches, logit_difference, "EAP", quiet=True)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([batches[0][0][0]])
    before = model(ids).logits
    bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    for other in (model, bridge):
        graph = Graph.from_model(other)
        attribute(other, graph, texts(batches), logit_difference, "EAP", quiet=True)
        torch.testing.assert_close(graph.scores, expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(ids).logits, before)


def test_scores_do_not_depend_on_the_loaders_batches(decoder: Decoder) -> None:
    scores = []
    for size in (1, 3):
        graph = Graph.from_model(decoder)
        attribute(decoder, graph, loader(random_items(), size), logit_difference, "EAP", quiet=True)
        scores.append(graph.scores)
    torch.testing.assert_close(*scores)


def test_prompts_of_text_need_a_tokenizer(decoder: Decoder) -> None:
    batches = texts(loader(random_items(1)))
    graph = Graph.from_model(decoder)
    with pytest.raises(InputError, match="give it as `tokenizer`"):
        attribute(decoder, graph, batches, logit_difference, "EAP", quiet=True)
    attribute(decoder, graph, batches, logit_difference, "EAP", quiet=True, tokenizer=word_tokenizer())
    assert graph.scores.any()


def test_a_metric_that_reads_another_position_than_the_last_is_refused(decoder: Decoder) -> None:
    def first_position(logits: Tensor, clean: Tensor, lengths: Tensor, labels: Any) -> Tensor:
        return logits[:, 0, 1]

    with pytest.raises(InputError, match="not a finite number"):
        evaluate_baseline(decoder, loader(random_items(1)), first_position, quiet=True)


def test_edges_are_read_and_set_by_name(decoder: Decoder) -> None:
    graph = Graph.from_model(decoder)
    edge = graph.edges["a0.h1->a1.h0<k>"]
    assert (edge.parent.name, edge.child.name, edge.qkv) == ("a0.h1", "a1.h0", "k")
    edge.score, edge.in_graph = 2.5, True
    row, column = graph.layout.sources.index("a0.h1"), graph.layout.targets.index("a1.h0<k>")
    assert graph.scores[row, column] == 2.5 and graph.count_included_edges() == 1
    assert len(graph.edges) == graph.layout.n_edges and list(graph.nodes) == list(graph.layout.nodes)
    assert graph.nodes["m0"] in graph.nodes["a0.h1"].children
    with pytest.raises(KeyError):
        graph.edges["m1->m0"]


def test_selections(scored: Graph) -> None:
    scored.apply_topn(30, True, prune=False)
    assert scored.count_included_edges() == 30
    weakest = scored.scores[scored.in_graph].abs().min()
    scored.apply_threshold(float(weakest), prune=False)
    assert scored.count_included_edges() == 30
    scored.apply_topn(30, False, prune=False)
    signed = scored.in_graph.clone()
    scored.apply_threshold(float(scored.scores[signed].min()), absolute=False, prune=False)
    assert torch.equal(scored.in_graph, signed)
    scored.prune()
    assert scored.count_included_edges() < 30
    assert scored.count_included_nodes() == sum(scored.nodes[name].in_graph for name in scored.layout.sources)


def test_the_signed_greedy_selection_takes_the_largest_scores_that_lead_into_the_graph(scored: Graph) -> None:
    scored.apply_greedy(1, absolute=False)
    into_logits = scored.scores[:, scored.layout.logits_target]
    assert scored.in_graph.nonzero().tolist() in ([], [[int(into_logits.argmax()), scored.layout.logits_target]])
    scored.apply_greedy(40, absolute=False, prune=False)
    chosen, reached = scored.in_graph, {scored.layout.n_sources}
    for _, target in chosen.nonzero().tolist():
        node = int(scored.layout.target_nodes[target])
        assert node in reached or bool(chosen[node].any())


@pytest.mark.parametrize("suffix", ["json", "pt"])
def test_files_hold_the_graph(scored: Graph, tmp_path: Path, suffix: str) -> None:
    scored.apply_topn(50)
    path = tmp_path / f"graph.{suffix}"
    (scored.to_json if suffix == "json" else scored.to_pt)(path)
    read = (Graph.from_json if suffix == "json" else Graph.from_pt)(path)
    torch.testing.assert_close(read.scores, scored.scores)
    assert torch.equal(read.in_graph, scored.in_graph) and torch.equal(read.nodes_in_graph, scored.nodes_in_graph)
    assert read.cfg == scored.cfg


@pytest.mark.parametrize("suffix", ["json", "pt"])
def test_new_scores_of_a_graph_from_a_circuits_own_file_are_written(scored: Graph, tmp_path: Path, suffix: str) -> None:
    path, again = tmp_path / f"circuit.{suffix}", tmp_path / f"again.{suffix}"
    graph_files.write_graph(path, prune(top_n(scored.engine, 30)), edges="circuit")
    circuit = Graph.from_json(path)
    circuit.to_json(again)
    assert graph_files.read_graph(again).meta["edges"] == "circuit"  # the other scores are still unknown
    circuit.scores = scored.scores.clone()
    circuit.apply_topn(50)
    circuit.to_json(again)
    read = Graph.from_json(again)
    torch.testing.assert_close(read.scores, scored.scores)
    assert torch.equal(read.in_graph, circuit.in_graph) and "edges" not in read.meta
    circuit = Graph.from_json(path)
    name = next(name for name, edge in circuit.edges.items() if not edge.in_graph)
    circuit.edges[name].score = 2.5
    circuit.to_json(again)
    assert Graph.from_json(again).edges[name].score == 2.5


def test_an_image_without_graphviz_is_refused_in_one_sentence(
    scored: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="Graphviz's program dot"):
        scored.to_image(tmp_path / "graph.png")
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n/bin/cat > "$2"\n')
    program.chmod(0o755)
    scored.to_image(tmp_path / "graph.svg")
    assert (tmp_path / "graph.svg").read_text() == scored.engine.to_dot()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "information-flow-routes"}, "does not have the method"),
        ({"method": "EAP", "intervention": "optimal"}, "no optimal ablation"),
        ({"method": "EAP", "intervention": "mean"}, "patching effects only"),
        ({"method": "EAP", "aggregation": "max"}, "sum or mean"),
    ],
)
def test_what_the_engine_cannot_do_is_said(decoder: Decoder, arguments: dict[str, str], message: str) -> None:
    graph = Graph.from_model(decoder)
    with pytest.raises(InputError, match=message):
        attribute(decoder, graph, loader(random_items(1)), logit_difference, quiet=True, **arguments)


def test_means_are_taken_over_the_evaluated_prompts_alone(decoder: Decoder, scored: Graph) -> None:
    batches = [(torch.tensor(clean), corrupted, labels) for clean, corrupted, labels in loader(random_items(2))]
    means = {
        same: evaluate_graph(
            decoder, scored, batches, positive, True, "mean", intervention_dataloader=batches if same else None
        )
        for same in (True, False)
    }
    assert torch.equal(means[True], means[False])
    with pytest.raises(InputError, match="not over another data loader"):
        evaluate_graph(decoder, scored, batches, positive, True, "mean", intervention_dataloader=copy.deepcopy(batches))


def test_neurons_nodes_and_strange_models_are_refused(decoder: Decoder, scored: Graph) -> None:
    with pytest.raises(InputError, match="neither neurons nor nodes"):
        Graph.from_model(decoder, neuron_level=True)
    with pytest.raises(InputError, match="no neuron level"):
        scored.apply_topn(3, level="neuron")
    with pytest.raises(InputError, match="not int"):
        evaluate_baseline(7, loader(random_items(1)), logit_difference)
    with pytest.raises(InputError, match="over the evaluated prompts"):
        evaluate_graph(
            decoder, scored, loader(random_items(1)), logit_difference, True, "mean", loader(random_items(2))
        )


def test_a_configuration_is_enough_for_a_graph() -> None:
    cfg = {"n_layers": 2, "n_heads": 3, "parallel_attn_mlp": True, "d_model": 24}
    graph = Graph.from_model(cfg)
    assert graph.cfg == cfg and graph.cfg.n_layers == 2 and not hasattr(graph.cfg, "n_neurons")
    with pytest.raises(InputError, match="d_model"):
        Graph.from_model({"n_layers": 2, "n_heads": 3})


def test_the_graph_of_another_model_is_refused(decoder: Decoder) -> None:
    from knowledge_circuits.engine.weights import decoder_from_model

    other = Graph.from_model(decoder_from_model(random_model(FAMILIES["qwen2"]())))
    with pytest.raises(InputError, match="another model"):
        attribute(decoder, other, loader(random_items(1)), logit_difference, "EAP", quiet=True)


def test_every_public_name_is_there() -> None:
    assert all(hasattr(eap, name) for name in eap.__all__)
