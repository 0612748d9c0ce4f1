"""Records are checked where they are read: a wrong value is named with its file, line, key and what was wanted."""

from __future__ import annotations

import pytest

from knowledge_circuits.files import InputError
from knowledge_circuits.records import Field, Kind, check_record, checked_json, checked_jsonl

RANK = Field("token_rank", Kind.COUNT)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Kind.NUMBER, [0, -1, 2.5, 1e300], [True, None, "1", float("nan"), float("inf"), 10**30, []]),
        (Kind.COUNT, [0, 7], [-1, 2.0, True, "3", 2**63]),
        (Kind.FLAG, [True, False], [0, 1, None, "true"]),
        (Kind.TEXT, ["", "x"], [None, 1, ["x"]]),
    ],
)
def test_each_kind_takes_its_values_and_no_others(kind, good, bad):
    for value in good:
        check_record({"key": value}, [Field("key", kind)], "here")
    for value in bad:
        with pytest.raises(InputError, match=f"here: 'key' is .* which is not {kind}"):
            check_record({"key": value}, [Field("key", kind)], "here")


def test_a_missing_key_is_an_error_where_it_is_required():
    with pytest.raises(InputError, match="line 3: no key 'token_rank'"):
        check_record({}, [RANK], "line 3")
    check_record({}, [Field("token_rank", Kind.COUNT, required=False)], "line 3")


def test_null_is_a_value_only_where_it_may_be():
    check_record({"faithfulness": None}, [Field("faithfulness", Kind.NUMBER, nullable=True)], "here")
    with pytest.raises(InputError, match="'token_rank' is None"):
        check_record({"token_rank": None}, [RANK], "here")


def test_the_line_of_a_wrong_record_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"token_rank": 1}\n\n{"token_rank": "x"}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl, line 3: 'token_rank' is 'x'"):
        list(checked_jsonl(path, [RANK]))


def test_a_file_that_holds_no_object_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(InputError, match="a JSON object is wanted, not list"):
        checked_json(path, [RANK])
    path.write_text('{"token_rank": 4}')
    assert checked_json(path, [RANK]) == {"token_rank": 4}


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(InputError) as error:
        check_record({"token_rank": "y" * 10_000}, [RANK], "here")
    assert len(str(error.value)) < 200
