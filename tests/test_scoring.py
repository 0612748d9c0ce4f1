"""One teacher-forced pass gives what token by token arithmetic gives."""

from __future__ import annotations

import math

import pytest
import torch
from memorizing import memorizing_model

from knowledge_circuits.corpus.queries import build_queries
from knowledge_circuits.models.scoring import mean_loss, score_continuations


def test_scores_equal_those_of_one_sequence_at_a_time_without_padding():
    model, tokenizer, people = memorizing_model()
    queries = build_queries(people[::4], tokenizer)
    scores = score_continuations(model, [q.prompt_ids for q in queries], [q.answer_ids for q in queries])
    for query, score in zip(queries, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*query.prompt_ids, *query.answer_ids]])).logits[0]
        rows = logits[len(query.prompt_ids) - 1 :].log_softmax(dim=-1)
        expected = sum(float(rows[i, token]) for i, token in enumerate(query.answer_ids))
        assert score.log_prob == pytest.approx(expected, abs=1e-4)
        assert score.first_prob == pytest.approx(math.exp(rows[0, query.answer_ids[0]]), abs=1e-5)
        assert score.first_rank == int((rows[0] > rows[0, query.answer_ids[0]]).sum())
        assert score.greedy == tuple(rows.argmax(dim=-1).tolist())


def test_an_empty_prompt_or_continuation_is_refused():
    model, _, _ = memorizing_model()
    with pytest.raises(ValueError, match="at least one token"):
        score_continuations(model, [[1]], [[]])


def test_the_loss_of_a_text_is_the_mean_over_its_tokens_in_blocks_that_open_afresh():
    model, tokenizer, _ = memorizing_model()
    ids = tokenizer("Ada A. Holt lives in the city of Austin, TX. She majors in History and in Physics.")["input_ids"]
    losses = []
    for at in range(0, len(ids), 7):
        block = torch.tensor([[0, *ids[at : at + 7]]])
        with torch.no_grad():
            log_probs = model(block).logits[0, :-1].log_softmax(dim=-1)
        losses += [-float(log_probs[i, token]) for i, token in enumerate(block[0, 1:])]
    assert len(losses) == len(ids)
    assert mean_loss(model, [ids], 0, block_size=7) == pytest.approx(sum(losses) / len(ids), abs=1e-4)
