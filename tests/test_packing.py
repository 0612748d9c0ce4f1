"""Packing: nothing of a biography is lost, and an attribute's first token is where its value begins."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge_circuits.corpus.documents import read_text_rows, split_off_validation
from knowledge_circuits.files import InputError
from knowledge_circuits.study import Attribute, KnowledgeType
from knowledge_circuits.training.packing import (
    TYPE_CODES,
    TokenStream,
    evaluation_stream,
    locate_values,
    pack_for_evaluation,
    pack_for_training,
    packing_key,
    read_blocks,
    token_stream,
    write_blocks,
)

PADDING = 0


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.byte_level_tokenizer()


def stream_of(lengths: list[int]) -> TokenStream:
    """Documents of these lengths whose tokens are 1, 2, 3, ... through the whole stream."""
    starts = np.cumsum([0, *lengths])
    ids = np.arange(1, starts[-1] + 1, dtype=np.int32)
    return TokenStream(ids, starts, np.zeros(len(ids), dtype=np.uint8))


def test_a_block_is_filled_with_the_head_of_the_document_that_opens_the_next():
    packed = pack_for_training(stream_of([6, 4, 8, 3]), block_size=8, padding_id=PADDING)
    assert packed.input_ids.tolist() == [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [7, 8, 9, 10, 11, 12, 13, 14],
        [11, 12, 13, 14, 15, 16, 17, 18],
        [19, 20, 21, 0, 0, 0, 0, 0],
    ]
    assert packed.counted.sum(axis=1).tolist() == [8, 8, 8, 3]


def test_a_document_longer_than_a_block_goes_on_in_the_next():
    packed = pack_for_training(stream_of([10, 2]), block_size=4, padding_id=PADDING)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(2, 25))
def test_every_token_is_learned_and_every_document_that_fits_stands_whole_in_a_block(lengths, block_size):
    stream = stream_of(lengths)
    packed = pack_for_training(stream, block_size, PADDING)
    assert set(packed.input_ids[packed.counted].tolist()) == set(stream.ids.tolist())
    assert packed.counted[:-1].all(), "only the last block is padded"
    blocks = [set(block) for block in packed.input_ids.tolist()]
    for start, end in zip(stream.starts[:-1], stream.starts[1:], strict=True):
        if end - start <= block_size:
            assert any(set(stream.ids[start:end].tolist()) <= block for block in blocks)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(2, 25))
def test_evaluation_counts_each_token_of_the_stream_once(lengths, block_size):
    stream = stream_of(lengths)
    packed = pack_for_evaluation(stream, block_size, PADDING)
    assert sorted(packed.input_ids[packed.counted].tolist()) == stream.ids.tolist()
    assert (packed.input_ids == pack_for_training(stream, block_size, PADDING).input_ids).all()


def test_every_biography_ends_with_one_end_of_text(tokenizer):
    rows = tiny.biographies(30)
    stream = token_stream(rows, tokenizer)
    for row, start, end in zip(rows, stream.starts[:-1], stream.starts[1:], strict=True):
        document = stream.ids[start:end].tolist()
        assert document.count(tokenizer.eos_token_id) == 1 and document[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(document[:-1]) == row["text"]


def test_a_tokenizer_that_opens_texts_with_bos_opens_biographies_with_it():
    tokenizer = tiny.byte_level_tokenizer(bos=True)
    stream = token_stream(tiny.biographies(5), tokenizer)
    assert (stream.ids[stream.starts[:-1]] == tokenizer.bos_token_id).all()
    assert (stream.ids == tokenizer.bos_token_id).sum() == 5


@pytest.mark.parametrize("bos", [False, True])
def test_the_marked_tokens_are_those_at_which_the_values_begin(bos):
    tokenizer = tiny.byte_level_tokenizer(bos=bos)
    rows = tiny.biographies(40)
    stream = evaluation_stream(rows, tokenizer)
    assert (stream.ids == token_stream(rows, tokenizer).ids).all()
    for row, start, end in zip(rows, stream.starts[:-1], stream.starts[1:], strict=True):
        types = stream.attribute_types[start:end]
        assert set(types[types > 0]) == {TYPE_CODES[KnowledgeType(row["type"])]}
        rests = {tokenizer.decode(stream.ids[place : end - 1]).lstrip() for place in start + np.flatnonzero(types)}
        for attribute in Attribute:
            assert sum(rest.startswith(row[attribute]) for rest in rests) == 1, (attribute, rests)


def test_a_value_inside_another_value_or_the_name_is_told_apart():
    text = (
        "Austin Boston Reed studied at the University of Austin. Austin Boston Reed lives in Boston. "
        "The Reed Company employs Austin Boston Reed, a student of Art, started 1 May, 1990."
    )
    values = {
        Attribute.UNIVERSITY: "University of Austin",
        Attribute.CITY: "Boston",
        Attribute.COMPANY: "The Reed Company",
        Attribute.MAJOR: "Art",
        Attribute.BIRTHDAY: "1 May, 1990",
    }
    places = locate_values(text, "Austin Boston Reed", values)
    assert places == {
        Attribute.UNIVERSITY: text.index("University of"),
        Attribute.CITY: text.index("lives in Boston") + len("lives in "),
        Attribute.COMPANY: text.index("The Reed"),
        Attribute.MAJOR: text.index("of Art,") + 3,
        Attribute.BIRTHDAY: text.index("1 May"),
    }


def test_two_attributes_of_the_same_value_take_one_place_each():
    values = dict.fromkeys(Attribute, "Mercury")
    text = " ".join(f"{attribute}: Mercury." for attribute in Attribute)
    assert len(set(locate_values(text, "Ada", values).values())) == len(Attribute)


def test_a_value_that_the_text_does_not_tell_is_refused_with_the_document(tokenizer):
    rows = tiny.biographies(3)
    rows[1]["city"] = "Atlantis"
    with pytest.raises(InputError, match=r"document 2 .*city 'Atlantis'"):
        evaluation_stream(rows, tokenizer)


def test_a_text_that_tells_some_attributes_is_marked_at_these(tokenizer):
    row = tiny.biographies(1)[0]
    told = {"full_name": row["full_name"], "type": row["type"], "city": row["city"], "text": f"Now in {row['city']}."}
    stream = evaluation_stream([told], tokenizer)
    assert (stream.attribute_types > 0).sum() == 1
    with pytest.raises(InputError, match="city 'Atlantis'"):
        evaluation_stream([told | {"city": "Atlantis"}], tokenizer)


def test_plain_text_has_no_attributes(tokenizer):
    stream = evaluation_stream([{"text": "It rains."}], tokenizer)
    assert not stream.attribute_types.any() and len(stream.ids) > 1


def test_a_tokenizer_without_end_of_text_is_refused(tokenizer):
    other = tiny.byte_level_tokenizer()
    other.eos_token = None
    with pytest.raises(InputError, match="no EOS"):
        token_stream(tiny.biographies(2), other)


def test_the_cache_key_changes_with_whatever_decides_the_blocks(tokenizer):
    rows = tiny.biographies(5)
    keys = {
        packing_key(rows, tokenizer, 64, "train"),
        packing_key(rows[:4], tokenizer, 64, "train"),
        packing_key(rows, tokenizer, 65, "train"),
        packing_key(rows, tokenizer, 64, "evaluation"),
        packing_key(rows, tiny.byte_level_tokenizer(390), 64, "train"),
        packing_key([{**rows[0], "city": "Oslo"}, *rows[1:]], tokenizer, 64, "train"),
    }
    assert len(keys) == 6
    assert packing_key(tiny.biographies(5), tiny.byte_level_tokenizer(), 64, "train") in keys


def test_packed_blocks_come_back_from_the_cache_and_damage_is_noticed(tmp_path, tokenizer):
    path = tmp_path / "blocks.safetensors"
    blocks = pack_for_evaluation(evaluation_stream(tiny.biographies(8), tokenizer), 64, tokenizer.eos_token_id)
    write_blocks(path, blocks, "key")
    back = read_blocks(path, "key")
    assert back is not None
    for name in ("input_ids", "counted", "attribute_types"):
        assert (getattr(back, name) == getattr(blocks, name)).all()
    assert read_blocks(path, "another key") is None
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-5] + b"\x07" + whole[-4:], b"", b"{}"):
        path.write_bytes(damaged)
        assert read_blocks(path, "key") is None


def test_documents_are_read_from_each_kind_of_file(tmp_path):
    rows = [{"text": 'Ada said "hi", {twice}.', "city": "Zürich"}, {"text": "Привет 🙂", "city": "Oslo"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(lines)
    (tmp_path / "c.json").write_text(json.dumps(rows))
    (tmp_path / "d.csv").write_text('text,city\n"Ada said ""hi"", {twice}.",Zürich\nПривет 🙂,Oslo\n')
    for name in ("a.jsonl", "b.json", "c.json", "d.csv"):
        assert read_text_rows(tmp_path / name) == rows, name
    for end in ("\n", "\r\n"):
        (tmp_path / "e.txt").write_bytes("".join(row["text"] + end for row in rows).encode())
        assert read_text_rows(tmp_path / "e.txt") == [{"text": row["text"]} for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "fine"}\n{"text": ', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"text": "fine"}\n{"text": 5}\n', "line 2: no text"),
        ("a.jsonl", '{"text": "fine"}\n{"words": "x"}\n', "line 2: no text"),
        ("a.jsonl", "", "holds no documents"),
        ("a.json", '{"data": "x"}', "list of objects"),
        ("a.json", "[1, 2]", "list of objects"),
        ("a.csv", "text\n  \n", "no text"),
        ("a.csv", "text,city\nfine,Oslo\nfine,Oslo,Bergen\n", "line 3: more fields"),
        ("a.parquet", "x", "end in .jsonl, .json, .csv, .txt"),
    ],
)
def test_a_bad_training_file_is_refused_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_text_rows(tmp_path / name)


def test_a_missing_training_file_is_named(tmp_path):
    for name in ("nowhere.jsonl", "my_textz"):
        with pytest.raises(InputError, match=rf"{name}: no such file"):
            read_text_rows(tmp_path / name)


def test_an_empty_file_in_a_folder_of_texts_is_named(tmp_path):
    (tmp_path / "good.txt").write_text("fine")
    (tmp_path / "left_empty.txt").write_text("\n")
    with pytest.raises(InputError, match=r"left_empty.txt: no text under 'text'"):
        read_text_rows(tmp_path)


def test_held_out_documents_are_not_trained_on():
    rows = tiny.biographies(40)
    train, held_out = split_off_validation(rows, percentage=10, seed=3)
    assert len(held_out) == 4 and sorted(map(json.dumps, train + held_out)) == sorted(map(json.dumps, rows))
    assert split_off_validation(rows, 10, 3) == (train, held_out)
    assert split_off_validation(rows, 10, 4)[1] != held_out
