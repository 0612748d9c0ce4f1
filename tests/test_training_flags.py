"""train.py answers for its flags from their source, as the real parser would."""

from __future__ import annotations

import pytest
from transformers import HfArgumentParser

from knowledge_circuits.command_line import program_parser
from knowledge_circuits.files import Bounds, InputError
from knowledge_circuits.training.arguments import DataArguments, ModelArguments, RunArguments
from knowledge_circuits.training.flags import answer_without_torch, stated_flags
from knowledge_circuits.training.probes import ProbeArguments
from knowledge_circuits.training.strategies import StrategyArguments


def test_the_flags_in_the_source_are_those_of_the_parser() -> None:
    parser = HfArgumentParser([ModelArguments, DataArguments, RunArguments, ProbeArguments, StrategyArguments, Bounds])
    real = {option: action for action in parser._actions for option in action.option_strings if option.startswith("--")}
    del real["--help"]
    stated = {option: flag for _, flags in stated_flags() for flag in flags for option in flag.options}
    assert set(stated) == set(real)
    for option, flag in stated.items():
        action = real[option]
        if "--no" not in option:
            assert flag.help == action.help, option
            assert flag.default is None or flag.default == action.default, option
    bounds = program_parser(None)  # HfArgumentParser changes the types of a dataclass's fields in place
    for option in (
        option for option in stated if option.startswith("--max") and option in bounds._option_string_actions
    ):
        assert (stated[option].help or "")[1:-1] in (bounds._option_string_actions[option].help or "")
    titles = {group.title for group in parser._action_groups}
    assert {title for title, _ in stated_flags() if title} <= titles


def test_help_lists_every_flag_with_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer_without_torch(["--help"], "Trains a model.")
    said = capsys.readouterr().out
    assert "Trains a model." in said and "--probe_file" in said and "--learning_rate" in said
    assert "The initial learning rate" in said


def test_a_mistyped_flag_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"no flag is called --learning_rat; did you mean --learning_rate\?"):
        answer_without_torch(["--run", "a", "--learning_rat=1"], None)
    assert not answer_without_torch(["--learning-rate", "-1", "--no_load_data_from_cache"], None)
    assert not answer_without_torch(["flags.json"], None)
