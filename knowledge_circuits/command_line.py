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
import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeVar

from knowledge_circuits.files import InputError

Choice = TypeVar("Choice", bound=StrEnum)


def run_program(main: Callable[[], int | None]) -> None:
    """Call `main` and exit with its status; errors a user can mend become one line on standard error and status 1."""
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
        place = error.filename or "the output folder"
        status = _complain(f"{place}: {_MENDABLE[error.errno or 0]}; files that were complete before are untouched")
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
    """Whether the user can mend it, and further writes would meet it too: no space, no permission, no such place."""
    return error.errno in _MENDABLE


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


#: The data types that `--dtype` offers, by their names in torch.
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64")


def cores() -> int:
    """Return how many CPU cores this process may use: the default of `--threads`, however many processes there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def positive(text: str) -> int:
    """Parse an integer of at least 1: an argparse type."""
    return _at_least(text, 1)


def natural(text: str) -> int:
    """Parse an integer of at least 0: an argparse type."""
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return number


def choice(kind: type[Choice], members: Sequence[Choice] = ()) -> Callable[[str], Choice]:
    """An argparse type for an enum, or for some of its members; a misspelling is answered with the valid names."""
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
