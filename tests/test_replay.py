"""Replay replaces a share of the training documents, and nothing else changes."""

from __future__ import annotations

from itertools import pairwise

import pytest

from knowledge_circuits.files import InputError
from knowledge_circuits.training.replay import mix_replay

NEW = [{"text": f"new {index}"} for index in range(50)]
OLD = [{"text": f"old {index}"} for index in range(80)]


@pytest.mark.parametrize(("ratio", "replayed"), [(0, 0), (0.1, 5), (0.33, 16), (0.4, 20), (1, 50)])
def test_the_share_of_replayed_documents_is_the_ratio_and_their_number_stays(ratio, replayed):
    mixed = mix_replay(NEW, OLD, ratio, seed=1)
    assert len(mixed) == len(NEW)
    assert sum(document in OLD for document in mixed) == replayed
    assert all(document == NEW[place] for place, document in enumerate(mixed) if document not in OLD)


def test_no_document_is_replayed_twice_before_all_were():
    mixed = mix_replay(NEW, OLD[:20], 1, seed=1)
    counts = [mixed.count(document) for document in OLD[:20]]
    assert set(counts) == {2, 3} and sum(counts) == 50


def test_a_larger_ratio_replaces_what_a_smaller_one_does():
    places = [
        {place for place, document in enumerate(mix_replay(NEW, OLD, ratio, seed=5)) if document in OLD}
        for ratio in (0.1, 0.2, 0.4, 1)
    ]
    assert all(smaller < larger for smaller, larger in pairwise(places))


def test_the_mixture_is_a_function_of_the_seed():
    assert mix_replay(NEW, OLD, 0.4, seed=1) == mix_replay(NEW, OLD, 0.4, seed=1)
    assert mix_replay(NEW, OLD, 0.4, seed=1) != mix_replay(NEW, OLD, 0.4, seed=2)


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(InputError, match="between 0 and 1"):
        mix_replay(NEW, OLD, ratio, seed=1)


def test_replay_without_documents_names_the_flag():
    with pytest.raises(InputError, match="--replay_file"):
        mix_replay(NEW, [], 0.2, seed=1)
    assert mix_replay(NEW, [], 0, seed=1) == NEW
