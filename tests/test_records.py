"""Records are checked where they are read: a wrong value is named with its file, line, key and what it must be."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

import pytest
from pydantic import Field, create_model
from typing_extensions import TypedDict

from knowledge_circuits.files import InputError
from knowledge_circuits.records import (
    PROBE_RECORD,
    RECORD,
    AttributeName,
    Count,
    Digits,
    Frequency,
    Share,
    Text,
    TypeName,
    shape,
)


class Rank(TypedDict):
    __pydantic_config__ = RECORD
    token_rank: Count
    faithfulness: NotRequired[float | None]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (float, [0, -1, 2.5, 1e300], [True, None, "1", float("nan"), float("inf"), 10**400, []]),
        (Count, [0, 7], [-1, 2.0, True, "3", 2**63]),
        (bool, [True, False], [0, 1, None, "true"]),
        (Text, ["x"], ["", " ", None, 1, ["x"]]),
        (Share, [0, 0.5, 1], [-0.1, 1.1, "1", float("nan")]),
        (Frequency, [1, "7", " 7 ", 1_000_000], [0, "0", -1, 1.0, True, "x", 1_000_001, None]),
        (Digits, ["4", 4, "4th"], [True, 4.0, "", None]),
        (TypeName, ["new", "revised"], ["newer", 1, None, ["new"]]),
        (AttributeName, ["city"], ["town", None]),
    ],
)
def test_each_kind_takes_its_values_and_no_others(kind: Any, good: list[Any], bad: list[Any]):
    row = create_model("row", __config__=RECORD, key=(kind, ...))
    for value in good:
        shape(row).check({"key": value}, "here")
    for value in bad:
        with pytest.raises(InputError, match="here: 'key' must"):
            shape(row).check({"key": value}, "here")


def test_a_missing_key_is_an_error_where_it_is_required():
    with pytest.raises(InputError, match="line 3: no key 'token_rank'"):
        shape(Rank).check({"faithfulness": 1.0}, "line 3")
    shape(Rank).check({"token_rank": 1}, "line 3")


def test_null_is_a_value_only_where_it_may_be():
    shape(Rank).check({"token_rank": 1, "faithfulness": None}, "here")
    with pytest.raises(InputError, match="'token_rank' must be a whole number, not None"):
        shape(Rank).check({"token_rank": None}, "here")


def test_keys_that_a_record_does_not_name_are_kept_and_all_keep_their_order():
    row = {"note": [{"by": "me"}], "faithfulness": 1.0, "token_rank": 1}
    assert list(shape(Rank).check(row, "here").items()) == list(row.items())


def test_the_line_of_a_wrong_record_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"token_rank": 1}\n\n{"token_rank": "x"}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl, line 3: 'token_rank' must be a whole number, not 'x'"):
        shape(Rank).lines(path)


def test_a_file_that_holds_no_object_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(InputError, match=r"results\.json: a JSON object is wanted, not list"):
        shape(Rank).file(path)
    path.write_text('{"token_rank": 4}')
    assert shape(Rank).file(path) == {"token_rank": 4}


def test_the_entry_of_a_list_is_named():
    with pytest.raises(InputError, match=r"pool\.json: entry 1 must be a text, not 3"):
        shape(Annotated[list[Text], Field(min_length=1)]).check(["a", 3], "pool.json")


def test_a_record_says_by_its_kind_what_it_must_hold():
    with pytest.raises(InputError, match="'kind' must be one of 'fact', 'skill', 'text', not 'facts'"):
        shape(PROBE_RECORD).check({"kind": "facts"}, "here")
    with pytest.raises(InputError, match="no key 'kind'"):
        shape(PROBE_RECORD).check({}, "here")
    with pytest.raises(InputError, match="a JSON object is wanted, not list"):
        shape(PROBE_RECORD).check([], "here")


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(InputError) as error:
        shape(Rank).check({"token_rank": "y" * 10_000}, "here")
    assert len(str(error.value)) < 200
