"""Prompt pairs: what they refuse, and whom their messages name."""

from __future__ import annotations

import numpy
import pytest
import tiny
import torch
from families import FAMILIES, random_model

from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.files import InputError
from knowledge_circuits.models.tokenization import encode_prompt, label_token_id

ADA = {"clean_subject": "Ada Lovelace"}


def test_a_message_names_the_prompt_and_whom_it_asks_about() -> None:
    with pytest.raises(InputError, match=r"^prompt 2 \(Ada Lovelace\): token id 7 is outside the model's vocabulary"):
        PromptPairs([[1, 2], [1, 2]], [[1, 3], [1, 7]], [(1, 2)] * 2, [{}, ADA]).check_fits(5, 10)
    with pytest.raises(InputError, match=r"^prompt 1: its 3 tokens are more than the model's context"):
        PromptPairs([[1, 2, 3]], [[1, 3, 2]], [(1, 2)]).check_fits(5, 2)
    long = {"clean": "word " * 300}
    with pytest.raises(InputError, match=r"^prompt 1 \(word [word ]{70,}\.\.\.\): its 3 tokens") as caught:
        PromptPairs([[1, 2, 3]], [[1, 3, 2]], [(1, 2)], [long]).check_fits(5, 2)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("clean", "corrupted", "rows", "reason"),
    [
        ([[]], [[1]], [ADA], r"prompt 1 \(Ada Lovelace\) is empty"),
        ([[1, 2]], [[1]], [], "prompt 1: the clean prompt has 2 tokens and the corrupted one 1;"),
        ([[1]], [], [], "one of each is wanted"),
        ([[1]], [[2]], [ADA, ADA], "2 rows for 1 prompts"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(clean: list, corrupted: list, rows: list, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        PromptPairs(clean, corrupted, [(1, 2)] * len(clean), rows)


def test_a_pair_that_is_not_there_cannot_be_selected() -> None:
    for pairs in (PromptPairs([], [], []), PromptPairs([[1, 2]], [[1, 3]], [(1, 2)])):
        assert not pairs.select([])
        with pytest.raises(IndexError):
            pairs.select([1])


IDS = [[0, 3, 4], [0, 5, 6]], [[0, 9, 4], [0, 8, 6]], [(3, 4), (5, 6)]


@pytest.mark.parametrize("made", [torch.tensor, numpy.array, lambda rows: [torch.tensor(row) for row in rows]])
def test_token_ids_may_be_tensors_or_arrays(made) -> None:
    decoder = decoder_from_model(random_model(FAMILIES["gpt2"]()))
    listed, given = PromptPairs(*IDS), PromptPairs(*map(made, IDS))
    assert given == listed and given.digest == listed.digest
    assert torch.equal(attribute(decoder, given).scores, attribute(decoder, listed).scores)
    assert type(given.labels[0]) is tuple and type(given.clean[0][0]) is int


@pytest.mark.parametrize(
    ("clean", "labels", "reason"),
    [
        (torch.tensor([[0.0, 3.0]]), [(3, 4)], "clean is tensor.*; for each pair a list of token ids"),
        (torch.tensor([0, 3]), [(3, 4)], "clean is tensor.*; for each pair a list of token ids"),
        (["Ada lives"], [(3, 4)], "clean is .'Ada lives'.; for each pair a list of token ids"),
        ([[0, 3]], [(3,)], r"prompt 1: its labels are \[3\]; the first tokens of the clean and"),
    ],
)
def test_what_is_not_token_ids_is_refused_in_one_sentence(clean, labels, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        PromptPairs(clean, [[0, 5]], labels)


TOKENIZER = tiny.byte_level_tokenizer()
CITIES = {
    "Ada lives in the city of": "Austin, TX",
    "Bob lives in the city of": "Boston, MA",
    "Cyd lives in the city of": "Austin, TX",
    "Maximiliana lives in the city of": "Fresno, CA",
}


def test_prompts_and_answers_of_text_become_the_tokens_that_a_model_reads() -> None:
    clean, corrupted = "Ada lives in the city of", "Bob lives in the city of"
    pairs = PromptPairs.from_text(TOKENIZER, [clean], [corrupted], [("Austin, TX", "Boston, MA")])
    assert (pairs.clean, pairs.corrupted) == ([encode_prompt(TOKENIZER, clean)], [encode_prompt(TOKENIZER, corrupted)])
    label = (label_token_id(TOKENIZER, clean, "Austin, TX"), label_token_id(TOKENIZER, corrupted, "Boston, MA"))
    assert pairs.labels == [label]
    assert PromptPairs.from_text(TOKENIZER, [clean], [corrupted], [label]).labels == [label]
    assert pairs.name(0) == f"prompt 1 ({clean})"


def test_prompts_of_different_lengths_are_shown_with_their_tokens() -> None:
    clean, corrupted = "Ada lives in the city of", "Maximiliana lives in the city of"
    counts = [len(encode_prompt(TOKENIZER, text)) for text in (clean, corrupted)]
    assert counts[0] < counts[1]
    with pytest.raises(InputError) as refused:
        PromptPairs.from_text(TOKENIZER, [clean], [corrupted], [("Austin, TX", "Fresno, CA")])
    said = str(refused.value)
    assert f"{clean!r} has {counts[0]} tokens (A | d" in said and f"{corrupted!r} has {counts[1]} tokens (" in said
    with pytest.raises(InputError, match="1 clean prompts, 1 corrupted ones and 0 pairs of labels"):
        PromptPairs.from_text(TOKENIZER, [clean], [clean], [])


def test_every_prompt_gets_a_partner_of_its_length_with_another_answer() -> None:
    pairs, unpaired = PromptPairs.match_lengths(TOKENIZER, CITIES, seed=3)
    assert unpaired == ["Maximiliana lives in the city of"]
    assert [row["clean"] for row in pairs.rows] == list(CITIES)[:3]
    for row in pairs.rows:
        assert CITIES[row["clean"]] != CITIES[row["corrupted"]]
    assert pairs.digest == PromptPairs.match_lengths(TOKENIZER, CITIES, seed=3)[0].digest
    with pytest.raises(InputError, match="no two prompts have the same number of tokens and answers with different"):
        PromptPairs.match_lengths(TOKENIZER, dict(list(CITIES.items())[2:]))
    with pytest.raises(InputError, match="there is no prompt"):
        PromptPairs.match_lengths(TOKENIZER, {})
