"""General skills are scored by likelihood, and their files are read or refused with the place."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memorizing import memorizing_model

from knowledge_circuits.corpus.arithmetic import LARGEST_OPERAND
from knowledge_circuits.files import InputError
from knowledge_circuits.models.scoring import mean_loss
from knowledge_circuits.models.tokenization import plain_ids, start_token_id
from knowledge_circuits.study import Attribute
from knowledge_circuits.training.probes import Probe
from knowledge_circuits.training.skills import (
    SkillExample,
    SkillScore,
    SkillTest,
    arithmetic_examples,
    fewer_examples,
    held_out_text,
    read_skill_file,
)


def test_the_arithmetic_set_has_four_different_options_and_every_sum_at_most_once():
    examples = arithmetic_examples(10**6)
    assert len(examples) == len({example.prompt for example in examples}) == (LARGEST_OPERAND + 1) ** 2
    assert all(len(set(example.options)) == 4 for example in examples)
    assert {example.answer for example in examples} == {0, 1, 2, 3}
    assert all(int(option[:-1]) >= 0 for example in examples for option in example.options)


def test_the_arithmetic_set_is_a_function_of_its_seed():
    assert arithmetic_examples(20, seed=1) == arithmetic_examples(20, seed=1)
    assert arithmetic_examples(20, seed=1) != arithmetic_examples(20, seed=2)


def test_fewer_examples_of_each_skill_are_evenly_spaced():
    examples = [SkillExample(name, str(at), ("a", "b"), 0) for at in range(10) for name in ("long", "short")[: 10 - at]]
    assert fewer_examples(examples, None) == fewer_examples(examples, 10) == examples
    chosen = [(example.skill, example.prompt) for example in fewer_examples(examples, 3)]
    assert [prompt for skill, prompt in chosen if skill == "long"] == ["0", "3", "6"]
    assert [prompt for skill, prompt in chosen if skill == "short"] == ["0", "3", "6"]
    with pytest.raises(InputError, match="--skill_examples 0: at least one example"):
        fewer_examples(examples, 0)


def test_a_model_chooses_the_option_that_it_finds_likeliest():
    model, tokenizer, people = memorizing_model()
    examples = [
        SkillExample("learned", Attribute.CITY.prompt(p.full_name), (p.city, "Quito"), 0) for p in people[:10]
    ] + [SkillExample("wrong", Attribute.CITY.prompt(p.full_name), ("Quito", p.city), 0) for p in people[:4]]
    scores = SkillTest(examples, tokenizer).scores(model)
    assert scores == {"learned": SkillScore(1.0, 10), "wrong": SkillScore(0.0, 4)}


def test_the_choice_is_by_the_sum_of_the_options_log_probabilities():
    model, tokenizer, _ = memorizing_model()

    def log_prob(prompt: str, option: str) -> float:
        before, after = ([0, *tokenizer(text)["input_ids"]] for text in (prompt, f"{prompt} {option}"))
        with torch.no_grad():
            rows = model(torch.tensor([after])).logits[0].log_softmax(dim=-1)
        return sum(float(rows[i - 1, after[i]]) for i in range(len(before), len(after)))

    examples = arithmetic_examples(12)
    right = sum(
        max(example.options, key=lambda option, e=example: log_prob(e.prompt, option))
        == example.options[example.answer]
        for example in examples
    )
    assert SkillTest(examples, tokenizer).scores(model)["arithmetic"] == SkillScore(right / 12, 12)


def test_a_text_that_was_learned_is_less_perplexing_than_another():
    model, tokenizer, people = memorizing_model()
    learned = f"{people[0].full_name} lives in the city of {people[0].city}"
    texts = {"learned": learned, "other": "Zebras yodel quietly over wax", "held_out": held_out_text()}
    found = Probe(tokenizer, (), texts, max_tokens=500).perplexities(model, 0)
    assert 1 < found["learned"] < 5 < found["other"]
    assert math.isfinite(found["held_out"])
    loss = mean_loss(model, [plain_ids(tokenizer, texts["other"])], start_token_id(tokenizer))
    assert found["other"] == pytest.approx(math.exp(loss))


def test_a_text_without_tokens_is_refused_before_any_probe():
    with pytest.raises(InputError, match="at least one token"):
        Probe(tiny.byte_level_tokenizer(), (), {"empty": ""})


def test_the_held_out_text_is_long_and_holds_nothing_of_the_study():
    text = held_out_text()
    assert 2000 < len(text.split()) < 5000
    for attribute in Attribute:
        assert attribute.relation not in text


def _write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_skill_file_names_the_answer_by_its_text_or_its_index(tmp_path: Path):
    rows = [
        {"prompt": "Grass is", "options": ["pink", "green"], "answer": "green"},
        {"prompt": "Snow is", "options": ["white", "black"], "answer": 0, "skill": "winter"},
    ]
    assert read_skill_file(_write(tmp_path / "colours.jsonl", *rows)) == [
        SkillExample("colours", "Grass is", ("pink", "green"), 1),
        SkillExample("winter", "Snow is", ("white", "black"), 0),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "blue"}, "line 2: the answer 'blue' is not among the options"),
        ({"answer": 2}, r"line 2: 'answer' must be an option or its index \(0 to 1\), not 2"),
        ({"answer": True}, "line 2: 'answer' must be"),
        ({"answer": None}, "line 2: 'answer' must be"),
        ({"options": ["green"]}, "line 2: 'options' must have at least 2 items"),
        ({"options": "green"}, "line 2: 'options' must be a list"),
        ({"options": ["green", 3]}, "line 2: 'options' entry 1 must be a text, not 3"),
        ({"options": ["green", "green"]}, "line 2: an option stands twice"),
        ({"prompt": ""}, "line 2: 'prompt' must be a text"),
        ({"skill": 5}, "line 2: 'skill' must be a text"),
    ],
)
def test_a_skill_example_that_makes_no_sense_is_refused_with_its_line(change: dict, reason: str, tmp_path: Path):
    row = {"prompt": "Grass is", "options": ["pink", "green"], "answer": "green"}
    with pytest.raises(InputError, match=reason):
        read_skill_file(_write(tmp_path / "skill.jsonl", row, row | change))


def test_an_empty_skill_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no examples"):
        read_skill_file(_write(tmp_path / "skill.jsonl"))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(prompt=_JSON, options=_JSON | st.lists(st.text(), max_size=4), answer=_JSON, skill=_JSON)
def test_any_skill_line_is_read_rightly_or_refused(prompt, options, answer, skill, tmp_path_factory):
    row = {"prompt": prompt, "options": options, "answer": answer, "skill": skill}
    path = _write(tmp_path_factory.getbasetemp() / "any.jsonl", row)
    try:
        (example,) = read_skill_file(path)
    except InputError as error:
        assert "any.jsonl, line 1" in str(error)
    else:
        assert (example.prompt, list(example.options), example.skill) == (prompt, options, skill)
        assert example.options[example.answer] == (answer if isinstance(answer, str) else options[answer])
        SkillTest([example], tiny.byte_level_tokenizer())
