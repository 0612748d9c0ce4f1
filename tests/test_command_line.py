"""Programs end with a status and one sentence, never with a traceback for what a user can mend."""

from __future__ import annotations

import argparse
import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from knowledge_circuits import command_line, runs
from knowledge_circuits.command_line import choice, gigabytes, run_program
from knowledge_circuits.files import InputError
from knowledge_circuits.runs import STEP_PATTERN
from knowledge_circuits.study import Band


def ending(error: BaseException | None, status: int | None = None) -> int:
    """The exit status of a program that raises or returns."""

    def main() -> int | None:
        if error is not None:
            raise error
        return status

    with pytest.raises(SystemExit) as exit_:
        run_program(main)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_a_program_exits_with_its_status():
    assert ending(None) == 0
    assert ending(None, 3) == 3


def test_bad_input_is_one_line_on_standard_error(capsys):
    assert ending(InputError("a.jsonl, line 3: no key 'type'")) == 1
    assert capsys.readouterr().err == "error: a.jsonl, line 3: no key 'type'\n"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.ENOTDIR, "a file stands where a folder is needed"),
    ],
)
def test_what_the_disk_refuses_is_one_line_with_the_place(number, reason, capsys):
    assert ending(OSError(number, "refused", "out/graph.json")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: out/graph.json: ") and reason in said and said.count("\n") == 1


def test_other_errors_are_bugs_and_keep_their_traceback():
    with pytest.raises(OSError):
        run_program(lambda: (_ for _ in ()).throw(OSError(errno.EBADF, "bug")))
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 // 0)


def test_an_interruption_says_how_to_go_on(capsys):
    assert ending(KeyboardInterrupt()) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_help_states_the_defaults_that_the_code_has(monkeypatch):
    parser = argparse.ArgumentParser()
    command_line.add_work_flags(parser)
    texts = {action.dest: action.help for action in parser._actions}
    assert texts["step_pattern"].endswith(f"default {STEP_PATTERN}")
    monkeypatch.setattr(runs, "_hub_branches", lambda name: ["step1"])
    for revisions, folder in (([], "outputs/hub/"), (["step1"], "outputs/history/")):
        (checkpoint,) = runs.checkpoints("some/model", revisions=revisions)
        assert folder + "<name>" in texts["output_dir"] and str(checkpoint.output).startswith(f"{folder}some--model")


def test_a_choice_is_parsed_or_answered_with_the_valid_ones():
    assert choice(Band)("low") is Band.LOW
    with pytest.raises(argparse.ArgumentTypeError, match="'lo' is not one of: low, medium, high"):
        choice(Band)("lo")


@pytest.mark.parametrize("text", ["inf", "nan", "0", "-1", "much"])
def test_memory_is_a_finite_number_of_gigabytes(text):
    assert gigabytes("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number of gigabytes above 0"):
        gigabytes(text)


ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "pandas", "matplotlib", "scipy", "datasets"}
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.py", "data/*.py", "knowledge_circuits/**/*.py")
    for path in ROOT.glob(pattern)
    if re.search(r"^    run_program\(", path.read_text(), re.MULTILINE)
)


def ends_before_heavy_imports(status: int, program: str, *flags: str) -> None:
    """Check that a program ends with this status before it imports anything heavy."""
    after = (
        f"import runpy, sys; sys.argv = {[program, *flags]!r}\n"
        f"try: runpy.run_path({program!r}, run_name='__main__')\n"
        f"except SystemExit as end: print(end.code, *sorted(set(sys.modules) & {HEAVY}))"
    )
    process = subprocess.run([sys.executable, "-c", after], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == str(status), process.stdout[-500:] + process.stderr


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("flag", "status"), [("--help", 0), ("--no_such_flag", 2)])
def test_help_and_a_mistyped_flag_answer_before_anything_heavy_is_imported(program, flag, status):
    if program == "train.py":  # its own check of the flags: status 1 as for any other bad input
        status = min(status, 1)
    ends_before_heavy_imports(status, program, flag)


@pytest.mark.parametrize(
    ("program", "data"),
    [("circuit_discovery.py", "--data_file"), ("circuit_eval.py", "--eval_data_file"), ("predict.py", "--input_file")],
)
def test_a_missing_model_folder_is_refused_before_anything_heavy_is_imported(program, data):
    model = ["--model_name_or_path"] if program == "predict.py" else ["--model", "tiny", "--model_path"]
    ends_before_heavy_imports(1, program, *model, "./nowhere", data, "pairs.csv")
