"""A query is the protocol's prompt, and an answer is judged as the protocol says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from memorizing import persons

from knowledge_circuits.corpus.queries import build_queries, is_correct
from knowledge_circuits.models.tokenization import encode_prompt, label_token_id, load_tokenizer


@pytest.mark.parametrize(
    ("output", "value", "correct"),
    [
        (" Austin, TX", "Austin, TX", True),
        (" Austin, TX.", "Austin, TX", True),
        ("Austin, TX. She was", "Austin, TX", True),
        ("\nAustin, TX\nmore", "Austin, TX", True),
        (" St. Louis, MO. He", "St. Louis, MO", True),
        (" St. Louis, MO", "St", True),
        (" Austin, TX and", "Austin, TX", False),
        (" Austin, TXs", "Austin, TX", False),
        (" in Austin, TX", "Austin, TX", False),
        (" austin, tx", "Austin, TX", False),
        ("", "Austin, TX", False),
        ("  ", "Austin, TX", False),
    ],
)
def test_an_answer_begins_with_the_value_and_ends_there_or_at_a_stop_or_line(output: str, value: str, correct: bool):
    assert is_correct(output, value) is correct


@pytest.mark.parametrize("folder", ["tiny_gpt2_folder", "tiny_llama_folder"])
def test_a_query_is_the_protocol_s_prompt_with_one_start_token_and_its_label(folder: str, request):
    tokenizer = load_tokenizer(str(request.getfixturevalue(folder)))
    people = persons(6)
    people[0] = replace(people[0], full_name='Zoë "Z{0}" 李 😀 O\'Neill')
    for query in build_queries(people, tokenizer):
        assert list(query.prompt_ids) == encode_prompt(tokenizer, query.prompt)
        assert query.answer_ids[0] == label_token_id(tokenizer, query.prompt, query.value)
        assert tokenizer.decode(query.answer_ids).strip() == query.value
