"""Circuits in a model's weights: the full one is the model, the empty one the corruption, and what lies between."""

from __future__ import annotations

from itertools import chain

import families
import pytest
import torch
from families import FAMILIES
from test_attribution_oracles import prompt_pairs

from knowledge_circuits.engine import evaluation, runner
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import (
    Evaluation,
    Intervention,
    Standalone,
    evaluate,
    faithfulness_curve,
    mean_outputs,
    standalone,
    standalones,
)
from knowledge_circuits.engine.floors import random_circuits
from knowledge_circuits.engine.forward import Prefixes, all_logits, embed, forward
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.files import InputError

PAIRS = prompt_pairs(families.random_pairs((7, 10, 7, 9), seed=4))


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen3", "phi", "gpt-neox-sequential"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return decoder_from_model(families.random_model(FAMILIES[request.param](), 0, torch.float64))


def graph_of(decoder: Decoder, members: str) -> Graph:
    layout = Layout(decoder.n_layers, decoder.n_heads, decoder.parallel)
    real = layout.real_edges
    membership = real.clone() if members == "all" else torch.zeros_like(real)
    return Graph(layout, torch.zeros(real.shape), membership, decoder.d_model)


def test_the_full_circuit_is_the_clean_run_and_the_empty_one_the_corrupted_run(decoder: Decoder) -> None:
    full, empty = evaluate(decoder, [graph_of(decoder, "all"), graph_of(decoder, "none")], PAIRS)
    assert torch.allclose(full.circuit, full.clean, atol=1e-10)
    assert torch.allclose(empty.circuit, empty.corrupted, atol=1e-10)
    assert full.faithfulness == pytest.approx(1, abs=1e-9)
    assert empty.faithfulness == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("intervention", [Intervention.ZERO, Intervention.MEAN, Intervention.MEAN_POSITIONAL])
def test_the_full_circuit_is_the_clean_run_under_every_intervention(
    decoder: Decoder, intervention: Intervention
) -> None:
    (full,) = evaluate(decoder, [graph_of(decoder, "all")], PAIRS, intervention)
    assert torch.allclose(full.circuit, full.clean, atol=1e-10)


def test_clean_and_corrupted_are_the_models_own_logit_differences(decoder: Decoder) -> None:
    (found,) = evaluate(decoder, [graph_of(decoder, "none")], PAIRS)
    for number, (clean, corrupted, labels) in enumerate(zip(PAIRS.clean, PAIRS.corrupted, PAIRS.labels, strict=True)):
        for ids, value in ((clean, found.clean[number]), (corrupted, found.corrupted[number])):
            last = all_logits(decoder, torch.tensor([list(ids)]))[0, -1]
            assert value == pytest.approx(float(last[labels[0]] - last[labels[1]]), abs=1e-10)


def test_several_circuits_at_once_are_each_alone_and_batches_change_nothing(decoder: Decoder) -> None:
    scored = attribute(decoder, PAIRS)
    circuits = [prune(top_n(scored, n)) for n in (20, 60)]
    together = evaluate(decoder, circuits, PAIRS, together=circuits[::-1])
    for circuit, result in zip([*circuits, *circuits[::-1]], together, strict=True):
        (alone,) = evaluate(decoder, [circuit], PAIRS, batch_size=1, memory_gb=1e-6)
        assert torch.allclose(alone.circuit, result.circuit, atol=1e-10)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi", "gemma2", "olmo2"])
@pytest.mark.parametrize("positions", [100, 3])
def test_circuits_that_run_together_are_each_alone(
    family: str, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_from_model(families.random_model(FAMILIES[family](), 0, torch.float64))
    scored = attribute(decoder, PAIRS)
    drawn = random_circuits(scored.layout, 30, decoder.d_model, count=2)
    circuits = [
        *drawn,
        graph_of(decoder, "none"),
        *(prune(top_n(scored, n)) for n in (60, 10)),
        graph_of(decoder, "all"),
    ]
    alone = [[evaluate(decoder, [circuit], PAIRS, kind)[0] for circuit in circuits] for kind in Intervention]
    hits = [standalone(decoder, circuit, PAIRS) for circuit in circuits]
    monkeypatch.setattr(runner, "_NEEDED", 0.0)  # whatever sources they need
    monkeypatch.setattr(evaluation, "plan_circuit", lambda *_: (100, positions))
    assert [len(members) for members, _ in runner.shared_runners(decoder, circuits, 4)] == [4, 2]
    for kind, expected in zip(Intervention, alone, strict=True):
        for one, together in zip(expected, evaluate(decoder, [], PAIRS, kind, together=circuits), strict=True):
            assert torch.allclose(one.circuit, together.circuit, rtol=0, atol=1e-10)
    for one, together in zip(hits, standalones(decoder, circuits, PAIRS), strict=True):
        assert torch.allclose(one.token_prob, together.token_prob, rtol=0, atol=1e-12)
        assert torch.equal(one.token_rank, together.token_rank)


def test_circuits_run_together_that_need_nearly_the_same_sources(decoder: Decoder) -> None:
    scored = attribute(decoder, PAIRS)
    sized = [prune(top_n(scored, n)) for n in (scored.layout.n_edges, 3, 3, scored.layout.n_edges, 0)]
    groups = [sorted(members) for members, _ in runner.shared_runners(decoder, sized, 8)]
    assert [0, 3] in groups and sorted(chain.from_iterable(groups)) == [0, 1, 2, 3, 4]
    assert all(len(members) == 1 for members, _ in runner.shared_runners(decoder, sized, 1))


def test_the_size_of_a_block_changes_nothing(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = top_n(attribute(decoder, PAIRS), 60)
    (whole,) = evaluate(decoder, [circuit], PAIRS)
    monkeypatch.setattr(runner, "_BLOCK_BYTES", 1)  # one position at a time
    (blocks,) = evaluate(decoder, [circuit], PAIRS)
    assert torch.allclose(whole.circuit, blocks.circuit, atol=1e-10)


@pytest.mark.parametrize("intervention", tuple(Intervention))
def test_positions_run_some_at_a_time_and_weights_copied_anew_change_nothing(
    decoder: Decoder, intervention: Intervention, monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit = prune(top_n(attribute(decoder, PAIRS), 60))
    (whole,) = evaluate(decoder, [circuit], PAIRS, intervention)
    monkeypatch.setattr(runner, "_KEPT_BYTES", 0)
    for positions in (1, 2, 3):
        monkeypatch.setattr(evaluation, "plan_circuit", lambda *_, positions=positions: (2, positions))
        (parts,) = evaluate(decoder, [circuit], PAIRS, intervention)
        assert torch.allclose(whole.circuit, parts.circuit, atol=1e-10)


def test_a_prefix_is_that_of_its_own_row_whatever_came_before(decoder: Decoder) -> None:
    prefixes = Prefixes(decoder)
    assert prefixes.of(torch.zeros(3, 0, dtype=torch.long)) is None
    for ids in (torch.tensor([[1, 2], [1, 3], [1, 2]]), torch.tensor([[1, 3]]), torch.tensor([[1, 3], [1, 3]])):
        together = prefixes.of(ids)
        assert together is not None and together.length == 2
        for row, one in enumerate(ids):
            layers = forward(decoder, embed(decoder, one[None])).layers
            for layer, keys, values in zip(layers, together.keys, together.values, strict=True):
                assert torch.allclose(layer.heads.k[0], keys[row], atol=1e-12)
                assert torch.allclose(layer.heads.v[0], values[row], atol=1e-12)


def test_adding_an_edge_that_is_already_inside_changes_nothing(decoder: Decoder) -> None:
    circuit = prune(top_n(attribute(decoder, PAIRS), 40))
    source, target = circuit.in_graph.nonzero()[3].tolist()
    again = circuit.in_graph.clone()
    again[source, target] = True
    first, second = evaluate(decoder, [circuit, circuit.with_edges(again)], PAIRS)
    assert torch.equal(first.circuit, second.circuit)


def test_pruning_a_circuit_changes_nothing_that_it_computes(decoder: Decoder) -> None:
    chosen = top_n(attribute(decoder, PAIRS), 25)
    unpruned, pruned = evaluate(decoder, [chosen, prune(chosen)], PAIRS)
    assert torch.allclose(unpruned.circuit, pruned.circuit, atol=1e-10)


def test_a_circuit_alone_needs_no_corrupted_prompt(decoder: Decoder) -> None:
    circuit = prune(top_n(attribute(decoder, PAIRS), 60))
    alone = standalone(decoder, circuit, PAIRS)
    other = PromptPairs(PAIRS.clean, PAIRS.clean, PAIRS.labels)
    assert torch.equal(alone.token_prob, standalone(decoder, circuit, other).token_prob)
    with pytest.raises(InputError, match="no corrupted prompt"):
        standalone(decoder, circuit, PAIRS, Intervention.PATCHING)


def test_the_whole_model_alone_gives_its_own_probabilities_and_ranks(decoder: Decoder) -> None:
    alone = standalone(decoder, graph_of(decoder, "all"), PAIRS)
    for number, (ids, (label, _)) in enumerate(zip(PAIRS.clean, PAIRS.labels, strict=True)):
        logits = all_logits(decoder, torch.tensor([list(ids)]))[0, -1]
        assert alone.token_prob[number] == pytest.approx(float(logits.softmax(-1)[label]), rel=1e-9)
        assert alone.token_rank[number] == sorted(logits.tolist(), reverse=True).index(float(logits[label]))


def test_rank_nine_is_a_hit_at_ten_and_rank_ten_is_not() -> None:
    assert Standalone(torch.zeros(4), torch.tensor([0, 9, 10, 500])).hit_at_10 == 0.5


def test_means_over_many_prompts_do_not_lose_count_in_bfloat16() -> None:
    # bfloat16 counts to 256: beyond it, one prompt more changes no sum.
    decoder = decoder_from_model(families.random_model(FAMILIES["gpt2"](), 0, torch.bfloat16))
    few, many = PAIRS.select([0, 1]), PAIRS.select([0] * 600 + [1] * 600)
    for positional in (False, True):
        once = mean_outputs(decoder, few, positional, batch_size=1)
        often = mean_outputs(decoder, many, positional, batch_size=7)
        for one, other in zip((once.embedded, *once.z), (often.embedded, *often.z), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_a_circuit_is_judged_by_the_metric_that_is_named(decoder: Decoder) -> None:
    full, empty, half = evaluate(
        decoder,
        [graph_of(decoder, "all"), graph_of(decoder, "none"), prune(top_n(attribute(decoder, PAIRS), 60))],
        PAIRS,
        metric="kl_divergence",
    )
    assert torch.allclose(full.clean, torch.zeros(len(PAIRS), dtype=torch.float64), atol=1e-10)
    assert full.faithfulness == pytest.approx(1, abs=1e-9)
    assert empty.faithfulness == pytest.approx(0, abs=1e-9)
    assert half.faithfulness == pytest.approx(1 - float(half.circuit.mean() / half.corrupted.mean()))
    for number, (clean, corrupted) in enumerate(zip(PAIRS.clean, PAIRS.corrupted, strict=True)):
        p, q = (all_logits(decoder, torch.tensor([list(ids)]))[0, -1].log_softmax(-1) for ids in (clean, corrupted))
        assert half.corrupted[number] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-10)


def test_a_probability_difference_is_reported_as_the_clean_labels_lead(decoder: Decoder) -> None:
    (outcome,) = evaluate(decoder, [graph_of(decoder, "none")], PAIRS, metric="probability_difference")
    probabilities = all_logits(decoder, torch.tensor([list(PAIRS.clean[0])]))[0, -1].softmax(-1)
    clean, corrupted = PAIRS.labels[0]
    assert outcome.clean[0] == pytest.approx(float(probabilities[clean] - probabilities[corrupted]), abs=1e-10)


def test_options_are_taken_by_name_and_nonsense_is_refused_with_the_valid_names(decoder: Decoder) -> None:
    circuit = prune(top_n(attribute(decoder, PAIRS), 60))
    by_name, by_member = (evaluate(decoder, [circuit], PAIRS, choice)[0] for choice in ("zero", Intervention.ZERO))
    assert torch.equal(by_name.circuit, by_member.circuit)
    (patched,) = evaluate(decoder, [circuit], PAIRS, "patching")
    assert not torch.allclose(patched.circuit, by_name.circuit)
    with pytest.raises(InputError, match=r"'nonsense'; choose one of: patching, zero, mean, mean-positional"):
        evaluate(decoder, [circuit], PAIRS, "nonsense")
    with pytest.raises(InputError, match=r"'nonsense'; choose one of: logit_difference"):
        evaluate(decoder, [circuit], PAIRS, metric="nonsense")
    with pytest.raises(InputError, match="no intervention is called 'nonsense'"):
        standalone(decoder, circuit, PAIRS, "nonsense")


def test_faithfulness_is_undefined_where_clean_equals_corrupted() -> None:
    same = torch.tensor([1.0, 2.0])
    assert Evaluation(same, same, same).faithfulness is None


def test_a_curve_ends_near_the_model_and_its_areas_are_trapezoids(decoder: Decoder) -> None:
    curve = faithfulness_curve(decoder, attribute(decoder, PAIRS), PAIRS, shares=(0.1, 0.5, 1.0))
    assert curve.faithfulness[-1] == pytest.approx(1, abs=1e-9)
    a, b, c = curve.faithfulness
    assert curve.cpr == pytest.approx(0.4 * (a + b) / 2 + 0.5 * (b + c) / 2)
    assert curve.cmd == pytest.approx(0.4 * (abs(1 - a) + abs(1 - b)) / 2 + 0.5 * (abs(1 - b) + abs(1 - c)) / 2)


def test_the_areas_of_a_curve_do_not_depend_on_the_order_of_its_shares(decoder: Decoder) -> None:
    scored = attribute(decoder, PAIRS)
    rising, falling = (
        faithfulness_curve(decoder, scored, PAIRS, order) for order in ((0.1, 0.5, 1.0), (1.0, 0.5, 0.1))
    )
    assert falling.faithfulness == rising.faithfulness[::-1]
    assert (falling.cpr, falling.cmd) == (rising.cpr, rising.cmd) and rising.cpr > 0


@pytest.mark.parametrize("share", [1.5, -0.1, float("nan")])
def test_a_share_of_edges_outside_0_to_1_is_refused(decoder: Decoder, share: float) -> None:
    with pytest.raises(InputError, match=f"share {share} of all edges; a share is a number from 0 to 1"):
        faithfulness_curve(decoder, graph_of(decoder, "all"), PAIRS, (0.5, share))


def test_numbers_that_are_not_finite_are_refused_with_their_item() -> None:
    decoder = decoder_from_model(families.random_model(FAMILIES["gpt2"](), 0, torch.float32))
    token = next(ids for ids in PAIRS.clean[2] if all(ids not in other for other in PAIRS.clean[:2]))
    decoder.embedding[token] = torch.inf
    for run in (
        lambda: evaluate(decoder, [graph_of(decoder, "all")], PAIRS),
        lambda: standalone(decoder, graph_of(decoder, "all"), PAIRS),
    ):
        with pytest.raises(InputError, match="is not a finite number"):
            run()


def test_a_circuit_of_another_model_is_refused(decoder: Decoder) -> None:
    layout = Layout(1, 2)
    other = Graph(layout, torch.zeros(layout.real_edges.shape), layout.real_edges, 8)
    with pytest.raises(InputError, match="of another model"):
        evaluate(decoder, [other], PAIRS)
