"""Prompt pairs: what they refuse, and whom their messages name."""

from __future__ import annotations

import pytest

from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.files import InputError

ADA = {"clean_subject": "Ada Lovelace"}


def test_a_message_names_the_prompt_and_whom_it_asks_about() -> None:
    with pytest.raises(InputError, match=r"^prompt 2 \(Ada Lovelace\): token id 7 is outside the model's vocabulary"):
        PromptPairs([[1, 2], [1, 2]], [[1, 3], [1, 7]], [(1, 2)] * 2, [{}, ADA]).check_fits(5, 10)
    with pytest.raises(InputError, match=r"^prompt 1: its 3 tokens are more than the model's context"):
        PromptPairs([[1, 2, 3]], [[1, 3, 2]], [(1, 2)]).check_fits(5, 2)


@pytest.mark.parametrize(
    ("clean", "corrupted", "rows", "reason"),
    [
        ([[]], [[1]], [ADA], r"prompt 1 \(Ada Lovelace\) is empty"),
        ([[1, 2]], [[1]], [], "prompt 1: .* of one length"),
        ([[1]], [], [], "one of each is wanted"),
        ([[1]], [[2]], [ADA, ADA], "2 rows for 1 prompts"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(clean: list, corrupted: list, rows: list, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        PromptPairs(clean, corrupted, [(1, 2)] * len(clean), rows)
