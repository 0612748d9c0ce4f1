"""What the command line programs share: errors in one line, types of flags, help texts.

A program ends with `if __name__ == "__main__": run_program(main)`; the library raises `InputError` where a bad value
enters.

Imports: `--help` and a mistyped flag answer within a second, and Ctrl-C prints one line at any time. Therefore a
program's top imports only light modules: this one, `files`, `paths`, `study`, `runs`, `records`, `engine.options`,
`models.shape`, `sweeps.flags`, `training.flags`, and the corpus without its tokenizers. Whatever imports torch,
transformers, pandas or matplotlib is imported inside `main`, after `parse_args`. A choice or a default that a flag
states lives in a light module, and the heavy module imports it from there. `tests/test_command_line.py` checks this
for every program.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from enum import StrEnum
from typing import Any, TypeVar

from knowledge_circuits.files import BOUNDS, Bounds, InputError

Choice = TypeVar("Choice", bound=StrEnum)
Number = TypeVar("Number", int, float)


def run_program(main: Callable[[], int | None]) -> None:
    """Call `main` and exit with its status; errors that a user can correct are one line on standard error, status 1."""
    try:
        status = main()
    except InputError as error:
        status = _complain(str(error))
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        status = 130
    except OSError as error:
        if not is_mendable(error):
            raise
        path = error.filename or "the output folder"
        status = _complain(f"{path}: {_MENDABLE[error.errno or 0]}; files that were complete before are untouched")
    sys.exit(status or 0)


_MENDABLE = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ELOOP: "a symbolic link leads back to itself",
    errno.ENAMETOOLONG: "the name is too long for the file system",
}


def is_mendable(error: OSError) -> bool:
    """Return whether the user can correct it and further writes would fail alike: no space, no permission."""
    return error.errno in _MENDABLE


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


#: More threads than any machine has cores; beyond it `--threads` is a mistake.
MOST_THREADS = 4096

#: The data types that `--dtype` offers, by their names in torch.
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64")


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def positive(text: str) -> int:
    """Parse an integer of at least 1: an argparse type."""
    return _number(text, int, "a whole number of at least 1", lambda number: number >= 1)


def natural(text: str) -> int:
    """Parse an integer of at least 0: an argparse type."""
    return _number(text, int, "a whole number of at least 0", lambda number: number >= 0)


def thread_count(text: str) -> int:
    """Parse a number of CPU threads from 1 to `MOST_THREADS`: an argparse type."""
    number = positive(text)
    if number > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MOST_THREADS} threads")
    return number


def gigabytes(text: str) -> float:
    """Parse a finite amount of memory above 0: an argparse type."""
    return _number(text, float, "a number of gigabytes above 0", lambda number: 0 < number < math.inf)


def share(text: str) -> float:
    """Parse a share from 0 to 1: an argparse type."""
    return _number(text, float, "a share from 0 to 1", lambda number: 0 <= number <= 1)


def positive_share(text: str) -> float:
    """Parse a share above 0 and at most 1: an argparse type."""
    return _number(text, float, "a share above 0 and at most 1", lambda number: 0 < number <= 1)


def _number(text: str, kind: Callable[[str], Number], what: str, fits: Callable[[Number], bool]) -> Number:
    with suppress(ValueError):
        number = kind(text)
        if fits(number):
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not {what}")


class _SetBound(argparse.Action):
    """Set one of the process's `BOUNDS`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(BOUNDS, self.dest, values)


def program_parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Return a program's parser, which has the flags that bound the sizes of files.

    Args:
        description: the program's docstring, shown as it is written.
        options: of `argparse.ArgumentParser`; `formatter_class` for one that adds the flags' defaults.
    """
    options = {"formatter_class": argparse.RawDescriptionHelpFormatter} | options
    parser = argparse.ArgumentParser(description=description, **options)
    group = parser.add_argument_group(Bounds._argument_group_name)
    for bound in fields(Bounds):
        group.add_argument(
            f"--{bound.name}",
            type=positive if isinstance(bound.default, int) else gigabytes,
            action=_SetBound,
            default=argparse.SUPPRESS,
            help=f"{bound.metadata['help'][0].lower()}{bound.metadata['help'][1:-1]}; default {bound.default}",
        )
    return parser


_OUTPUT_HELP = (
    "folder of the results, one folder per checkpoint if there are several; default: the checkpoint folders, of a hub"
    " name outputs/hub/<name>, of a training history outputs/history/<name>"
)
_REVISIONS_HELP = (
    "a public model's training history: its revisions (or, in a local folder, subfolders) such as step0 step512, or log"
    " for steps that double; results go to outputs/history/"
)


def add_work_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every program that computes results of checkpoints: existing results, device, threads."""
    add = parser.add_argument
    add("--output_dir", help=_OUTPUT_HELP)
    add("--revisions", nargs="+", default=[], metavar="NAME", help=_REVISIONS_HELP)
    add(
        "--step_pattern",
        help=r"regular expression whose first group is the step in a revision's name; default step[-_]?(\d+)",
    )
    add("--delete_downloads", action="store_true", help="delete each hub revision from the cache when it is done")
    add("--overwrite", action="store_true", help="recompute existing results; files that their manifests list go")
    add(
        "--adopt",
        action="store_true",
        help="take results of older versions (no manifest, or a digest of some bytes of the weights only) as made with "
        "these flags and weights",
    )
    add(
        "--verify",
        action="store_true",
        help="compare every byte of existing results with their manifests, not only sizes",
    )
    add("--device", default="auto", help="auto (CUDA if there is one), cpu, mps, cuda, cuda:<number>; default auto")
    add("--dtype", choices=DTYPE_NAMES, default="float32", help="of weights and activations; default float32")
    add("--threads", type=thread_count, help="CPU threads of a process; default: one per 5 MB of weights")
    add("--timing", action="store_true", help="print each process's share of busy time at the end")
    add("--trust_remote_code", action="store_true", help="run code that comes with a model; default off")


def choice(kind: type[Choice], members: Sequence[Choice] = ()) -> Callable[[str], Choice]:
    """Return an argparse type for an enum, or for some of its members; errors name the valid ones."""
    valid = list(members or kind)

    def parse(text: str) -> Choice:
        if text not in valid:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of: {', '.join(valid)}")
        return kind(text)

    return parse


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is written; each flag's text with its default, unless that is None or the text tells it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or "; default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)
