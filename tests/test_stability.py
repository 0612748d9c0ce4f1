"""Scores per prompt and per span add up to the scores, and stability says what resampling prompts does to a circuit."""

from __future__ import annotations

import dataclasses

import families
import pytest
import torch
from families import FAMILIES
from test_attribution_oracles import prompt_pairs

from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import mean_scores, top_n
from knowledge_circuits.engine.stability import Resampling, keep_stable_signs, mean_resampled, resampled, stability
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.files import InputError

METHODS = ["EAP", "EAP-IG", "EAP-IG-activations"]


def with_spans(pairs: PromptPairs) -> PromptPairs:
    """Start, subject (three tokens), relation, last token; the relation's length differs, and short prompts lack it."""
    spans = []
    for ids in pairs.clean:
        named = {"start": (0, 1), "subject": (1, 4), "relation": (4, len(ids) - 1), "last": (len(ids) - 1, len(ids))}
        spans.append({name: span for name, span in named.items() if span[0] < span[1]})
    return dataclasses.replace(pairs, spans=spans)


PAIRS = with_spans(prompt_pairs(families.random_pairs((5, 8, 5, 7, 8, 5, 9), seed=6)))


@pytest.fixture(scope="module", params=["gpt2", "llama", "phi"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return decoder_from_model(families.random_model(FAMILIES[request.param](), 0, torch.float64))


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_the_prompts_scores_is_the_score_and_each_is_that_of_the_prompt_alone(decoder, method) -> None:
    graph = attribute(decoder, PAIRS, method, ig_steps=2, per_prompt=True)
    plain = attribute(decoder, PAIRS, method, ig_steps=2)
    torch.testing.assert_close(graph.scores, plain.scores, rtol=0, atol=1e-12)
    torch.testing.assert_close(graph.prompt_scores.mean(0), plain.scores, rtol=0, atol=1e-12)
    alone = attribute(decoder, PAIRS.select([3]), method, ig_steps=2)
    torch.testing.assert_close(graph.prompt_scores[3], alone.scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_span_scores_add_up_and_are_those_of_positions(decoder, method) -> None:
    graph = attribute(decoder, PAIRS, method, ig_steps=2, by_span=True, gradient="gim")
    plain = attribute(decoder, PAIRS, method, ig_steps=2, gradient="gim")
    assert graph.spans == ("start", "subject", "last", "relation")
    torch.testing.assert_close(graph.span_scores.sum(0), plain.scores, rtol=0, atol=1e-12)
    # Prompts agree at the start, and the logits are read at the last position alone.
    assert graph.span_scores[0].abs().max() == 0
    assert graph.span_scores[:, :, -1].abs().sum(1).nonzero().flatten().tolist() == [2]
    # Between embeddings that differ in the subject only, an edge from `input` lies there.
    assert graph.span_scores[[2, 3], 0].abs().max() < 1e-12 < graph.span_scores[1, 0].abs().max()


def test_prompts_and_spans_at_once_and_a_small_memory_budget_change_nothing(decoder) -> None:
    both = attribute(decoder, PAIRS, ig_steps=2, per_prompt=True, by_span=True, memory_gb=1e-6)
    for name, flags in (("prompt_scores", {"per_prompt": True}), ("span_scores", {"by_span": True})):
        alone = getattr(attribute(decoder, PAIRS, ig_steps=2, **flags), name)
        torch.testing.assert_close(getattr(both, name), alone, rtol=0, atol=1e-12)


def test_exact_effects_are_kept_per_prompt() -> None:
    decoder = decoder_from_model(families.random_model(FAMILIES["qwen2"](), 0, torch.float64))
    graph = attribute(decoder, PAIRS.select([0, 2]), "exact", per_prompt=True)
    torch.testing.assert_close(graph.prompt_scores.mean(0), graph.scores, rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="by span need pairs with `spans` and a method other than exact"):
        attribute(decoder, PAIRS, "exact", by_span=True)


def test_sums_accumulated_on_the_way_are_those_of_the_prompts_scores(decoder) -> None:
    resampling = Resampling(splits=2, resamples=3)
    weights = resampling.weights(len(PAIRS))
    sums = attribute(decoder, PAIRS, ig_steps=2, per_prompt=weights, batch_size=2).prompt_scores
    scores = attribute(decoder, PAIRS, ig_steps=2, per_prompt=True).prompt_scores
    torch.testing.assert_close(sums, resampled(scores, resampling), rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="7 prompts"):
        attribute(decoder, PAIRS, per_prompt=weights[:, :4])


def test_weights_are_means_over_halves_and_over_resamples() -> None:
    weights = Resampling(splits=3, resamples=40, seed=1).weights(9)
    assert weights.shape == (46, 9)
    torch.testing.assert_close(weights.sum(1), torch.ones(46, dtype=torch.float64))
    for first, second in zip(weights[:6:2], weights[1:6:2], strict=True):
        assert ((first > 0) != (second > 0)).all() and (first > 0).sum() == 4
    counts = 9 * weights[6:]
    torch.testing.assert_close(counts, counts.round())
    with pytest.raises(InputError, match="at least two prompts"):
        Resampling().weights(1)


def prompts_scores(noise: float, layout: Layout, prompts: int = 40) -> torch.Tensor:
    """Edges of evenly spaced mean scores of both signs, with noise per prompt."""
    generator = torch.Generator().manual_seed(0)
    means = torch.linspace(-1, 1, layout.n_edges, dtype=torch.float64)
    scores = torch.zeros(prompts, layout.n_sources, layout.n_targets, dtype=torch.float64)
    drawn = torch.randn(prompts, layout.n_edges, generator=generator, dtype=torch.float64)
    scores[:, layout.real_edges] = means + noise * drawn
    return scores


def test_prompts_that_agree_are_perfectly_stable_and_pure_noise_is_as_alike_as_chance() -> None:
    layout, resampling = Layout(3, 4), Resampling(splits=20, resamples=50)
    n = layout.n_edges // 4
    agreeing = stability(layout, resampled(prompts_scores(0, layout), resampling), n, resampling)
    assert agreeing.split_half_jaccard.tolist() == [1.0] * 20
    assert agreeing.rank_correlation.min() == pytest.approx(1)
    assert agreeing.inclusion[layout.real_edges].sum() == pytest.approx(n)
    noise = prompts_scores(1, layout) - prompts_scores(0, layout)
    chance = stability(layout, resampled(noise, resampling), n, resampling)
    assert float(chance.split_half_jaccard.mean()) == pytest.approx(1 / 7, abs=0.05)  # n^2 / E over 2n - n^2 / E
    assert float(chance.rank_correlation.mean()) == pytest.approx(0, abs=0.1)


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")  # of scores that are all 0
@pytest.mark.parametrize("absolute", [True, False])
def test_edges_of_score_0_are_never_among_the_strongest(absolute: bool) -> None:
    layout, resampling = Layout(3, 4), Resampling(splits=1, resamples=2)
    scores = torch.zeros(4, layout.n_edges)
    scores[1:3, 7] = 1.0  # the second half and the first resample have one edge, the others none
    found = stability(layout, layout.matrix(scores), 50, resampling, absolute)
    assert found.split_half_jaccard.tolist() == [0.0]
    assert found.inclusion[layout.real_edges].nonzero().flatten().tolist() == [7]
    assert float(found.inclusion.sum()) == 0.5


def test_edges_of_uncertain_sign_are_dropped_and_strong_ones_are_kept() -> None:
    layout, resampling = Layout(3, 4), Resampling()
    scores = prompts_scores(1, layout)
    result = stability(layout, resampled(scores, resampling), 50, resampling)
    means = torch.zeros(layout.real_edges.shape, dtype=torch.float64)
    means[layout.real_edges] = torch.linspace(-1, 1, layout.n_edges, dtype=torch.float64)
    strong, weak = means.abs() > 0.9, layout.real_edges & (means.abs() < 0.1)
    assert result.same_sign[strong].min() > 0.9
    assert result.same_sign[weak].mean() < 0.85
    graph = Graph(layout, scores.mean(0), layout.real_edges.clone(), 8)
    chosen = keep_stable_signs(graph, result, 0.95)
    assert chosen.in_graph[strong].float().mean() > 0.9 and chosen.in_graph[weak].float().mean() < 0.5
    assert keep_stable_signs(top_n(graph, 50), result, 0.0).n_edges == 50


def test_an_ensembles_resamples_are_those_of_its_mean_whatever_the_methods_scales() -> None:
    layout, resampling = Layout(3, 4), Resampling(splits=3, resamples=5)
    prompts = [prompts_scores(noise, layout) for noise in (0.5, 2)]
    graphs = [
        Graph(layout, one.mean(0), layout.real_edges.clone(), 8, prompt_scores=resampled(one, resampling))
        for one in prompts
    ]
    mean = mean_resampled(graphs)
    for weights, row in zip(resampling.weights(40), mean.prompt_scores, strict=True):
        drawn = [dataclasses.replace(graphs[0], scores=torch.tensordot(weights, one, 1)) for one in prompts]
        torch.testing.assert_close(row, mean_scores(drawn).scores)
    torch.testing.assert_close(mean.scores, mean_scores(graphs).scores)
    first = graphs[0]
    larger = dataclasses.replace(first, scores=1000 * first.scores, prompt_scores=1000 * first.prompt_scores)
    torch.testing.assert_close(mean_resampled([larger, graphs[1]]).prompt_scores, mean.prompt_scores)
    silent = dataclasses.replace(first, prompt_scores=first.prompt_scores * (torch.arange(11) > 0)[:, None, None])
    halved = mean_resampled([silent, graphs[1]]).prompt_scores[0]
    torch.testing.assert_close(2 * halved, mean_resampled([graphs[1]]).prompt_scores[0])
    with pytest.raises(InputError, match="score with per_prompt"):
        mean_resampled([graphs[0], dataclasses.replace(graphs[1], prompt_scores=None)])


def test_spans_that_do_not_cover_a_prompt_are_refused() -> None:
    with pytest.raises(InputError, match=r"prompt 1: its spans .* do not cover its 3 tokens once each"):
        PromptPairs([[0, 1, 2]], [[0, 4, 2]], [(5, 6)], spans=[{"start": (0, 1), "rest": (2, 3)}])
    with pytest.raises(InputError, match="for all or for none"):
        PromptPairs([[0, 1], [0, 2]], [[0, 4], [0, 5]], [(5, 6)] * 2, spans=[{"all": (0, 2)}])
    assert PromptPairs.joined([PAIRS, PAIRS.select([1])]).spans[-1] == PAIRS.spans[1]


def test_prompts_without_spans_are_divided_by_what_differs() -> None:
    clean, corrupted = [0, 5, 6, 7, 8, 9], [0, 5, 1, 7, 2, 9]
    pairs = PromptPairs([clean, [0, 5, 6], [3]], [corrupted, [0, 5, 7], [4]], [(5, 6)] * 3).with_spans()
    assert pairs.spans[0] == {
        "start token": (0, 1),
        "before the change": (1, 2),
        "changed": (2, 5),
        "last token": (5, 6),
    }
    assert pairs.spans[1] == {"start token": (0, 1), "before the change": (1, 2), "last token": (2, 3)}
    assert pairs.spans[2] == {"last token": (0, 1)}
    assert PAIRS.with_spans() is PAIRS
