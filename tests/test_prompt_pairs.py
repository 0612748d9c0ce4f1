"""Clean and corrupted prompts: alike in length, different in person, labelled by the value's first token."""

from __future__ import annotations

import io
import json
import runpy
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from knowledge_circuits.corpus.folder import DataFolder
from knowledge_circuits.corpus.people import Person
from knowledge_circuits.corpus.prompt_pairs import SPANS, circuit_data, group_pairs, in_group
from knowledge_circuits.files import InputError, read_jsonl, write_jsonl
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.records import shape
from knowledge_circuits.study import TASKS, Attribute, groups

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(params=["tiny_gpt2_folder", "tiny_llama_folder"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """One tokenizer that adds nothing to a text and one that opens it with BOS."""
    return AutoTokenizer.from_pretrained(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def people() -> list[Person]:
    return [shape(Person).check(row, "tiny") for row in tiny.entities(200)]


def count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("task", TASKS)
def test_clean_and_corrupted_differ_in_person_and_not_in_length(
    task: Attribute, people: list[Person], tokenizer: PreTrainedTokenizerBase
) -> None:
    data = circuit_data(people, task, tokenizer, 300, seed=0)
    assert len(data.pairs) > 100
    for pair in data.pairs:
        assert pair.clean != pair.corrupted
        assert pair.corrupted in people
        names = pair.clean.full_name, pair.corrupted.full_name
        assert count(tokenizer, names[0]) == count(tokenizer, names[1])
        assert count(tokenizer, task.prompt(names[0])) == count(tokenizer, task.prompt(names[1]))


def test_a_person_has_the_same_corrupted_partner_in_every_task(
    people: list[Person], tokenizer: PreTrainedTokenizerBase
) -> None:
    partners = [
        {pair.clean.full_name: pair.corrupted.full_name for pair in circuit_data(people, task, tokenizer, 8, 0).pairs}
        for task in TASKS
    ]
    everybody = {name for part in partners for name in part}
    assert all(len({part[name] for part in partners if name in part}) == 1 for name in everybody)


def test_corrupted_subjects_come_from_all_groups(people: list[Person], tokenizer: PreTrainedTokenizerBase) -> None:
    data = circuit_data(people, Attribute.CITY, tokenizer, 300, seed=0)
    mixed = [pair for pair in data.pairs if pair.clean.type != pair.corrupted.type]
    assert len(data.pairs) / 4 < len(mixed) < 3 * len(data.pairs) / 4
    assert any(pair.clean.band != pair.corrupted.band for pair in data.pairs)


def test_a_label_is_the_first_token_after_the_prompt(people: list[Person], tokenizer: PreTrainedTokenizerBase) -> None:
    for task in TASKS:
        for pair in circuit_data(people, task, tokenizer, 20, seed=0).pairs:
            for person, label, index in (
                (pair.clean, pair.clean_label, pair.clean_label_idx),
                (pair.corrupted, pair.corrupted_label, pair.corrupted_label_idx),
            ):
                assert label == f" {person.value(task)}"
                whole = tokenizer(task.prompt(person.full_name) + label, add_special_tokens=False)["input_ids"]
                assert whole[count(tokenizer, task.prompt(person.full_name))] == index
                assert label.startswith(tokenizer.decode([index]))


def test_a_rare_name_length_is_dropped_and_said(people: list[Person], tokenizer: PreTrainedTokenizerBase) -> None:
    # characters that the tokenizer never saw are three byte tokens each
    odd = [replace(people[i], full_name=chr(0x5C71 + i) * 15) for i in range(5)]
    length = count(tokenizer, odd[0].full_name)
    data = circuit_data([*people, *odd], Attribute.CITY, tokenizer, 300, seed=0)
    assert data.rare_lengths[length] == 5
    assert not any(pair.clean in odd or pair.corrupted in odd for pair in data.pairs)
    assert len(data.pairs) + sum(data.rare_lengths.values()) + data.uneven == len(people) + len(odd)
    sixth = replace(odd[0], full_name="山田太郎花" * 3)
    data = circuit_data([*people, *odd, sixth], Attribute.CITY, tokenizer, 300, seed=0)
    assert length not in data.rare_lengths
    assert all(any(pair.clean == one for pair in data.pairs) for one in [*odd, sixth])


def test_pairs_with_one_first_token_are_kept_and_counted(
    people: list[Person], tokenizer: PreTrainedTokenizerBase
) -> None:
    same = [replace(person, city="Austin, TX") for person in people]
    data = circuit_data(same, Attribute.CITY, tokenizer, 300, seed=0)
    assert data.same_label == len(data.pairs) > 100
    data = circuit_data(people, Attribute.CITY, tokenizer, 300, seed=0)
    assert data.same_label == sum(pair.clean_label_idx == pair.corrupted_label_idx for pair in data.pairs)


def test_a_group_gives_at_most_circuit_n_pairs(people: list[Person], tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = circuit_data(people, Attribute.MAJOR, tokenizer, 7, seed=0).pairs
    assert set(Counter((pair.clean.type, pair.clean.band) for pair in pairs).values()) == {7}


def test_pairs_are_a_function_of_the_seed(people: list[Person], tokenizer: PreTrainedTokenizerBase) -> None:
    first = circuit_data(people, Attribute.CITY, tokenizer, 20, seed=0)
    assert first == circuit_data(people, Attribute.CITY, tokenizer, 20, seed=0)
    assert first != circuit_data(people, Attribute.CITY, tokenizer, 20, seed=1)


def test_prompts_that_differ_in_length_though_the_names_do_not_are_dropped_and_counted(people: list[Person]) -> None:
    # one token a character, but a k joins the space after it
    characters = sorted({character for person in people for character in Attribute.CITY.prompt(str(person.to_row()))})
    vocabulary = {token: index for index, token in enumerate(["<eos>", *characters, "k "])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[("k", " ")])), eos_token="<eos>"
    )
    names = [f"Ad{first}{last}" for first in "abcdef" for last in "nk"]
    data = circuit_data(
        [replace(person, full_name=name) for person, name in zip(people, names, strict=False)],
        *(Attribute.CITY, tokenizer, 300),
        seed=0,
    )
    assert data.uneven == 12 - len(data.pairs) > 0
    assert data.pairs
    assert all(pair.clean.full_name[-1] == pair.corrupted.full_name[-1] for pair in data.pairs)


def test_a_tokenizer_without_a_start_token_is_refused(people: list[Person]) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither a BOS nor an EOS"):
        circuit_data(people, Attribute.CITY, tokenizer, 10, seed=0)


def run_program(folder: Path, tokenizer: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the program in this process, as `python data/circuits_data_generation.py` would."""
    program = str(ROOT / "data" / "circuits_data_generation.py")
    command = [program, "--N", "200", "--data_dir", str(folder), "--model", "tiny", "--circuit_n", "8"]
    command += ["--model_name_or_path", str(tokenizer), *flags]
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(program, run_name="__main__")
    return subprocess.CompletedProcess(command, int(str(ended.value.code)), out.getvalue(), error.getvalue())


def test_the_program_writes_one_file_a_task_with_the_agreed_keys(
    people: list[Person], tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    folder = DataFolder.of(str(tmp_path), 200)
    write_jsonl(folder.test, (person.to_row() for person in people))
    done = run_program(tmp_path, tiny_gpt2_folder)
    assert done.returncode == 0, done.stderr
    for task in TASKS:
        rows = read_jsonl(folder.circuit(8, "tiny", task))
        assert len(rows) == 48
        for row in rows:
            assert tuple(row) == (
                *("clean_subject", "clean_label", "clean_label_idx"),
                *("corrupted_subject", "corrupted_label", "corrupted_label_idx", "frequency", "type"),
            )
    assert "same first token" in done.stdout
    config = json.loads(folder.config.read_text(encoding="utf-8"))
    assert config["circuits_data_generation tiny 8"]["circuit_n"] == 8


def test_people_of_whom_nobody_can_be_paired_are_refused(
    people: list[Person], tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    folder = DataFolder.of(str(tmp_path), 200)
    write_jsonl(folder.test, (person.to_row() for person in people[:5]))
    done = run_program(tmp_path, tiny_gpt2_folder)
    assert done.returncode == 1 and "nobody is paired; ask more people" in done.stderr
    assert not folder.circuit(8, "tiny", TASKS[0]).exists()


def test_data_of_another_tokenizer_are_not_replaced_unasked_nor_used(
    people: list[Person], tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    folder = DataFolder.of(str(tmp_path), 200)
    write_jsonl(folder.test, (person.to_row() for person in people))
    assert run_program(tmp_path, tiny_gpt2_folder, "--task", "city").returncode == 0
    path = folder.circuit(8, "tiny", Attribute.CITY)
    before = path.read_bytes()
    other = tmp_path / "other"
    tiny.byte_level_tokenizer(330).save_pretrained(other)
    done = run_program(tmp_path, other, "--task", "city")
    assert (done.returncode, path.read_bytes()) == (1, before)
    assert "made with another tokenizer; give another --model, or --overwrite" in done.stderr
    assert run_program(tmp_path, other, "--task", "city", "--overwrite").returncode == 0
    assert path.read_bytes() != before


def test_a_label_id_that_is_not_the_first_token_of_its_label_is_refused(
    tiny_gpt2_folder: Path, people, tmp_path
) -> None:
    tokenizer = load_tokenizer(str(tiny_gpt2_folder))
    rows = [pair.to_row() for pair in circuit_data(people, Attribute.CITY, tokenizer, 8, 0).pairs]
    group = next(g for g in groups() if g.task == Attribute.CITY and any(in_group(row, g) for row in rows))
    assert len(group_pairs(rows, group, tokenizer)) > 0
    for row in rows:
        row["clean_label_idx"] = (row["clean_label_idx"] + 1) % len(tokenizer)
    with pytest.raises(InputError, match=r"item \d+: token \d+ .* is not the first of .* the model's own"):
        group_pairs(rows, group, tokenizer)


def test_the_program_answers_mistakes_with_one_sentence(tiny_gpt2_folder: Path, tmp_path: Path) -> None:
    done = run_program(tmp_path, tiny_gpt2_folder)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("run data/query_data_generation.py with the same --N and --data_dir first")
    done = run_program(tmp_path, tiny_gpt2_folder, "--task", "town")
    assert done.returncode == 2
    assert "'town' is not one of: city, company, major" in done.stderr
    DataFolder.of(str(tmp_path), 200).test.parent.mkdir()
    DataFolder.of(str(tmp_path), 200).test.write_text("{}\n{", encoding="utf-8")
    done = run_program(tmp_path, tiny_gpt2_folder)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "test.jsonl, line 1: no key" in done.stderr


def test_a_querys_spans_are_its_subject_and_its_relation(
    people: list[Person], tokenizer: PreTrainedTokenizerBase
) -> None:
    data = circuit_data(people, Attribute.CITY, tokenizer, 20, seed=0)
    rows = [pair.to_row() for pair in data.pairs]
    group = next(one for one in groups() if any(in_group(row, one) for row in rows))
    pairs = group_pairs(rows, group, tokenizer)
    for ids, row, spans in zip(pairs.clean, pairs.rows, pairs.spans, strict=True):
        assert list(spans) == [name for name in SPANS if name in spans]
        assert spans["start token"] == (0, 1) and spans["last token"] == (len(ids) - 1, len(ids))
        text = {name: tokenizer.decode(ids[start:stop]).strip() for name, (start, stop) in spans.items()}
        first = tokenizer.decode(ids[1 : spans["subject's last token"][1]]).strip()
        assert first == row["clean_subject"]
        assert text["relation"] and Attribute.CITY.relation.strip().startswith(text["relation"])
