"""The metric of whole answers: the mean log probability of the clean answer's tokens, teacher-forced.

Oracles that share no code with the engine: the Hugging Face model's own log softmax, and the graph written out node by
node with autograd (tests/oracles.py), both run on each prompt alone with its answer behind it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import families
import oracles
import pytest
import torch
from families import Pair
from test_attribution_oracles import assert_scores_agree, hugging_face
from test_circuit_oracles import random_circuit

from knowledge_circuits.engine import evaluation
from knowledge_circuits.engine.attribution import Method, attribute
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import Intervention, evaluate, standalone
from knowledge_circuits.engine.graph import Graph, layout_of
from knowledge_circuits.engine.options import Metric
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError

METRIC = Metric.ANSWER_LOG_PROBABILITY
#: Grouped queries; a soft cap on logits and post-norms; attention and MLP side by side.
FEW = ["gpt2", "llama", "gemma2", "phi"]


def answered(lengths: tuple[tuple[int, int], ...], seed: int) -> PromptPairs:
    """Random pairs: tokens of each prompt, and of its answer."""
    generator = random.Random(seed)
    items = families.random_pairs(tuple(length for length, _ in lengths), seed)
    answers = [
        [item.label_ids[0], *(generator.randrange(1, families.VOCABULARY) for _ in range(count - 1))]
        for item, (_, count) in zip(items, lengths, strict=True)
    ]
    return PromptPairs(
        [item.clean_ids for item in items],
        [item.corrupted_ids for item in items],
        [item.label_ids for item in items],
        answers=answers,
    )


#: Three answers of different lengths that are one batch, one of another length, and one of a single token.
PAIRS = answered(((6, 4), (9, 1), (8, 2), (7, 2), (6, 1)), seed=11)


def with_answers(pairs: PromptPairs) -> list[Pair]:
    """Each prompt with all tokens of its answer but the last; the labels are the answer's tokens."""
    return [
        Pair([*clean, *answer[:-1]], [*corrupted, *answer[:-1]], tuple(answer))
        for clean, corrupted, answer in zip(pairs.clean, pairs.corrupted, pairs.answers, strict=True)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: families.save_family(root / family, family, seed=5) for family in FEW}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, oracles.Model]:
    return {family: oracles.from_hugging_face(hugging_face(folder)) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def decoders(folders: dict[str, Path]) -> dict[str, Decoder]:
    return {family: load_decoder(str(folder), dtype=torch.float64) for family, folder in folders.items()}


def graph_of(decoder: Decoder, everything: bool) -> Graph:
    layout = layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
    edges = layout.real_edges if everything else torch.zeros_like(layout.real_edges)
    return Graph(layout, torch.zeros(edges.shape), edges, decoder.d_model)


@pytest.mark.parametrize("family", FEW)
def test_the_value_is_the_mean_log_softmax_of_the_hugging_face_model(family: str, folders, decoders) -> None:
    (found,) = evaluate(decoders[family], [graph_of(decoders[family], everything=False)], PAIRS, metric=METRIC)
    model = hugging_face(folders[family])
    for number, item in enumerate(with_answers(PAIRS)):
        for ids, value in ((item.clean_ids, found.clean[number]), (item.corrupted_ids, found.corrupted[number])):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -len(item.label_ids) :]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(item.label_ids)[:, None]).mean()
            assert value == pytest.approx(float(expected), abs=1e-5)  # Hugging Face's softmax and norms are float32


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("method", Method)
def test_scores_are_the_oracles(family: str, method: Method, models, decoders) -> None:
    # Answers of four, one and two tokens, the first two in one batch.
    pairs = PAIRS.select([0] if method is Method.EXACT else [0, 1, 3])
    expected = [
        oracles.attribute(
            models[family],
            [item],
            method,
            steps=2,
            metric=oracles.answer_loss,
            positions=slice(-len(item.label_ids), None),
        )
        for item in with_answers(pairs)
    ]
    scores = attribute(decoders[family], pairs, method, ig_steps=2, metric=METRIC).scores
    assert_scores_agree(scores, torch.stack(expected).mean(0), 1e-8)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prompts_may_differ_in_their_last_token_or_not_at_all(family: str, models, decoders) -> None:
    # Then all that both prompts share is run once, up to the first position that is read.
    (ids, answer) = (PAIRS.clean[0], PAIRS.answers[0])
    pairs = PromptPairs([ids], [[*ids[:-1], 77]], [(1, 2)], answers=[answer])
    (item,) = with_answers(pairs)
    expected = oracles.attribute(models[family], [item], "EAP-IG", 2, 1, oracles.answer_loss, slice(-len(answer), None))
    assert_scores_agree(attribute(decoders[family], pairs, ig_steps=2, metric=METRIC).scores, expected, 1e-8)
    circuit = random_circuit(decoders[family], 0.5)
    (found,) = evaluate(decoders[family], [circuit], pairs, metric=METRIC)
    losses = oracles.circuit_answer_losses(models[family], [item], circuit.in_graph, "patching")
    torch.testing.assert_close(found.circuit, -losses, rtol=0, atol=1e-8)
    same = replace(pairs, corrupted=pairs.clean)
    assert not attribute(decoders[family], same, metric=METRIC).scores.any()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("rule", ["gim", "relp"])
def test_gradient_rules_start_from_every_token_of_the_answer(family: str, rule: str, models, decoders) -> None:
    model = oracles.under_rule(models[family], rule)
    for method in (Method.EAP, Method.EAP_IG):
        expected = [
            oracles.attribute(model, [item], method, 2, 1, oracles.answer_loss, slice(-len(item.label_ids), None))
            for item in with_answers(PAIRS.select([0, 1]))
        ]
        scores = attribute(decoders[family], PAIRS.select([0, 1]), method, 2, metric=METRIC, gradient=rule).scores
        assert_scores_agree(scores, torch.stack(expected).mean(0), 1e-8)


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("intervention", Intervention)
def test_circuits_perform_as_the_oracle_says(family: str, intervention: Intervention, models, decoders) -> None:
    circuit = random_circuit(decoders[family], 0.5)
    (found,) = evaluate(decoders[family], [circuit], PAIRS, intervention, METRIC)
    expected = -oracles.circuit_answer_losses(models[family], with_answers(PAIRS), circuit.in_graph, intervention)
    torch.testing.assert_close(found.circuit, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", FEW)
def test_the_full_circuit_is_the_clean_run_and_the_empty_one_the_corrupted_run(family: str, decoders) -> None:
    decoder = decoders[family]
    full, empty = evaluate(decoder, [graph_of(decoder, True), graph_of(decoder, False)], PAIRS, metric=METRIC)
    torch.testing.assert_close(full.circuit, full.clean, rtol=0, atol=1e-10)
    torch.testing.assert_close(empty.circuit, empty.corrupted, rtol=0, atol=1e-10)
    assert full.faithfulness == pytest.approx(1) and empty.faithfulness == pytest.approx(0)


def test_an_answer_of_one_token_is_scored_by_its_log_probability(decoders) -> None:
    one = replace(PAIRS, answers=[answer[:1] for answer in PAIRS.answers]).select([0, 2])

    def surprise(logits: torch.Tensor, clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -logits.log_softmax(-1).gather(1, labels[:, :1])[:, 0]

    scores = [attribute(decoders["llama"], one, ig_steps=2, metric=metric).scores for metric in (METRIC, surprise)]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-12)
    circuit = random_circuit(decoders["llama"], 0.5)
    (found,), (expected,) = (
        evaluate(decoders["llama"], [circuit], one, metric=metric) for metric in (METRIC, surprise)
    )
    torch.testing.assert_close(found.circuit, -expected.circuit, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("method", [Method.EAP_IG, Method.EAP_IG_ACTIVATIONS])
def test_batches_and_memory_change_nothing(family: str, method: Method, decoders) -> None:
    expected = attribute(decoders[family], PAIRS, method, ig_steps=2, metric=METRIC)
    for options in ({"batch_size": 1}, {"memory_gb": 1e-6}):
        found = attribute(decoders[family], PAIRS, method, ig_steps=2, metric=METRIC, **options)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("intervention", Intervention)
def test_positions_run_some_at_a_time_change_nothing(
    intervention: Intervention, decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("gpt2", "llama"):
        circuit = random_circuit(decoders[family], 0.5)
        (whole,) = evaluate(decoders[family], [circuit], PAIRS, intervention, METRIC)
        for positions in (1, 2, 3):
            with monkeypatch.context() as patch:
                patch.setattr(evaluation, "plan_circuit", lambda *_, positions=positions: (2, positions))
                (parts,) = evaluate(decoders[family], [circuit], PAIRS, intervention, METRIC)
            torch.testing.assert_close(parts.circuit, whole.circuit, rtol=0, atol=1e-10)


def test_the_answers_tokens_are_a_span_of_their_own(decoders) -> None:
    pairs = PAIRS.with_spans()
    graph = attribute(decoders["gpt2"], pairs, ig_steps=2, metric=METRIC, by_span=True, per_prompt=True, memory_gb=1e-4)
    assert graph.spans == (*pairs.span_names, "answer")
    torch.testing.assert_close(graph.span_scores.sum(0), graph.scores, rtol=0, atol=1e-12)
    torch.testing.assert_close(graph.prompt_scores.mean(0), graph.scores, rtol=0, atol=1e-12)
    answer = graph.span_scores[graph.spans.index("answer")]
    assert answer[:, -1].abs().max() > 1e-4, "the answer's tokens but the last predict the next ones"
    assert answer[0].abs().max() < 1e-12, "both prompts go on with the same answer, so its embeddings are the same"
    one_token = attribute(decoders["gpt2"], pairs.select([1, 4]), metric=METRIC, by_span=True)
    assert "answer" not in one_token.spans
    taken = replace(pairs.select([1]), spans=[{"answer": (0, 9)}])
    with pytest.raises(InputError, match="a span has the name 'answer', that of the answer's tokens"):
        attribute(decoders["gpt2"], taken, metric=METRIC, by_span=True)


def test_other_metrics_do_not_depend_on_the_answers(decoders) -> None:
    plain = replace(PAIRS, answers=[])
    for metric in (Metric.LOGIT_DIFFERENCE, Metric.KL_DIVERGENCE):
        found, expected = (attribute(decoders["gpt2"], pairs, metric=metric) for pairs in (PAIRS, plain))
        assert torch.equal(found.scores, expected.scores) and found.meta == expected.meta
    other = replace(PAIRS, answers=[[*answer, 1] for answer in PAIRS.answers])
    found, expected = (attribute(decoders["gpt2"], pairs, metric=METRIC) for pairs in (other, PAIRS))
    assert found.meta["prompts"] != expected.meta["prompts"]


def test_text_gives_whole_answers() -> None:
    tokenizer = families.word_tokenizer()
    prompts = {"t1 t2": "t3 t4 t5", "t6 t7": "t8"}
    pairs, _ = PromptPairs.match_lengths(tokenizer, prompts)
    assert [list(answer) for answer in pairs.answers] == [[3, 4, 5], [8]] and pairs.labels == [(3, 8), (8, 3)]
    forced = PromptPairs.joined([pairs.select([1]), pairs.select([0])]).teacher_forced()
    assert forced.clean == [[0, 6, 7], [0, 1, 2, 3, 4]] and forced.corrupted == [[0, 1, 2], [0, 6, 7, 3, 4]]
    assert forced.teacher_forced() is forced


def test_pairs_that_the_metric_cannot_take_are_refused_in_a_sentence(decoders) -> None:
    decoder, tokenizer = decoders["gpt2"], families.word_tokenizer()
    ids = PromptPairs.from_text(tokenizer, ["t1 t2"], ["t6 t7"], [(3, "t8")])
    mixed = PromptPairs.joined([PromptPairs.from_text(tokenizer, ["t6 t7"], ["t1 t2"], [("t8 t9", 3)]), ids])
    for pairs, reason in (
        (mixed, r"prompt 2 \(t1 t2\): only the first token of its answer is known"),
        (replace(PAIRS, answers=[]), "prompt 1: only the first token of its answer is known"),
        (answered(((30, 4),), 0), "its 33 tokens, the answer included, are more than the model's context"),
        (replace(PAIRS.select([0]), answers=[[1, families.VOCABULARY]]), "token id 90 is outside the model's vocab"),
    ):
        with pytest.raises(InputError, match=reason):
            attribute(decoder, pairs, metric="answer_log_probability")
        with pytest.raises(InputError, match=reason):
            evaluate(decoder, [graph_of(decoder, True)], pairs, metric="answer_log_probability")
    for call in (
        lambda pairs: attribute(decoder, pairs),
        lambda pairs: standalone(decoder, graph_of(decoder, True), pairs),
    ):
        with pytest.raises(InputError, match="teacher-forced pairs are for the metric answer_log_probability"):
            call(PAIRS.teacher_forced())
    with pytest.raises(InputError, match="4 answers for 5 prompts"):
        replace(PAIRS, answers=PAIRS.answers[1:])
