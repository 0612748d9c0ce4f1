"""Files are written atomically, and readers name the line that is wrong."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import socket
from pathlib import Path

import pytest

from knowledge_circuits.command_line import program_parser
from knowledge_circuits.files import (
    BOUNDS,
    Bounds,
    InputError,
    atomic_write,
    parse_json,
    read_bytes,
    read_json,
    read_jsonl,
    read_text,
    write_json,
    write_jsonl,
)


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "rows.txt"
    with atomic_write(path) as file:
        file.write("half")
        file.flush()
        assert not path.exists()
    assert path.read_text() == "half" and os.listdir(path.parent) == ["rows.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["rows.txt"]


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path):
    path = tmp_path / "rows.txt"
    host = socket.gethostname()
    ended = multiprocessing.get_context("spawn").Process(target=len, args=("",))
    ended.start()
    ended.join()
    stale = tmp_path / f".rows.txt.{host}-{ended.pid}.partial"
    living = tmp_path / f".rows.txt.{host}-{os.getppid()}.partial"
    elsewhere = tmp_path / ".rows.txt.other-host-1.partial"
    for partial in (stale, living, elsewhere):
        partial.write_text("part")
    with atomic_write(path) as file:
        file.write("whole")
    assert not stale.exists() and living.exists() and elsewhere.exists()


def test_json_and_json_lines_come_back_as_they_were(tmp_path):
    rows = [{"name": 'Zoë "Q" 李 😀', "rank": 0, "share": 0.1}, {}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_json(tmp_path / "rows.json", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows == read_json(tmp_path / "rows.json")


def test_numbers_that_no_reader_would_take_are_not_written(tmp_path):
    for write in (write_json, lambda path, value: write_jsonl(path, [{"x": value}])):
        with pytest.raises(ValueError, match=r"[Oo]ut of range"):
            write(tmp_path / "x", float("nan"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("NaN", "NaN is not a number that JSON knows"),
        ("[-Infinity]", "Infinity is not a number"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        ('["\\ud800"]', "surrogates not allowed"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 5_000, "not valid JSON"),
    ],
)
def test_bad_json_is_refused_with_the_place_and_the_reason(text, reason):
    with pytest.raises(InputError, match="somewhere: .*" + reason):
        parse_json(text, "somewhere")


def test_whole_surrogate_pairs_are_text():
    assert parse_json('"\\ud83d\\ude00"', "here") == "😀"


def test_lines_are_counted_with_the_blank_ones(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"b": 2}\n[]\n')
    with pytest.raises(InputError, match=r"rows\.jsonl, line 3: no key 'a'"):
        read_jsonl(path, keys=("a",))
    with pytest.raises(InputError, match=r"rows\.jsonl, line 4: a JSON object is wanted, not list"):
        read_jsonl(path)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="absent: no such file"):
        read_text(tmp_path / "absent")
    with pytest.raises(InputError, match="is a folder, not a file"):
        read_text(tmp_path)
    latin = tmp_path / "latin"
    latin.write_bytes(b"Zo\xeb")
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 2\)"):
        read_text(latin)


def test_compressed_files_are_read_and_damaged_ones_refused(tmp_path: Path):
    path = tmp_path / "x.gz"
    whole = gzip.compress(b"content" * 100)
    path.write_bytes(whole)
    assert read_bytes(path) == b"content" * 100
    for damaged in (whole[:-4], whole[:20] + b"\xff" + whole[21:], b"plain"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not a whole gzip file"):
            read_bytes(path)


def test_a_compressed_file_that_unpacks_beyond_the_bound_is_refused_before_memory_is_full(tmp_path, monkeypatch):
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b"0" * 5_000_000))
    monkeypatch.setattr(BOUNDS, "max_unpacked_gb", 0.004)
    with pytest.raises(InputError, match=r"unpacks to more than 0.004 GB; if it is right, raise --max_unpacked_gb"):
        read_bytes(path)
    program_parser(None).parse_args(["--max_unpacked_gb", "0.005"])
    assert len(read_bytes(path)) == 5_000_000


@pytest.mark.parametrize("flag", ["--max_layers", "--max_heads", "--max_unpacked_gb"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_bound_is_a_number_above_0(flag, value, capsys):
    with pytest.raises(SystemExit):
        program_parser(None).parse_args([flag, value])
    assert repr(value) in capsys.readouterr().err
    with pytest.raises(InputError, match=flag):
        Bounds(**{flag[2:]: float(value)})
