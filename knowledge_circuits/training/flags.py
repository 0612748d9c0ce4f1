"""The flags of train.py, read from the source text of the dataclasses that define them.

Importing transformers' TrainingArguments takes several seconds, because it imports torch and accelerate. `--help` and
a mistyped flag need the flags' names, texts and defaults only, which stand as literals in the source. A default that
is not a literal (a member of an enum) is left out of the help. A test compares the flags with those of the real parser.
"""

from __future__ import annotations

import argparse
import ast
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from knowledge_circuits.command_line import HelpFormatter
from knowledge_circuits.files import InputError

USAGE = "%(prog)s [--flag value ...], or %(prog)s flags.json"

_TRAINER = ("transformers", "training_args.py", "TrainingArguments")
#: The classes of train.py's flags, each with the classes that it inherits from first.
_CLASSES = (
    (("knowledge_circuits", "training/arguments.py", "ModelArguments"),),
    (("knowledge_circuits", "training/arguments.py", "DataArguments"),),
    (_TRAINER, ("knowledge_circuits", "training/arguments.py", "RunArguments")),
    (("knowledge_circuits", "training/probes.py", "ProbeArguments"),),
    (("knowledge_circuits", "training/strategies.py", "StrategyArguments"),),
    (("knowledge_circuits", "files.py", "Bounds"),),
)


def option(default: Any, help: str) -> Any:
    """Return a dataclass field that becomes a flag."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class StatedFlag:
    """One field of a dataclass: its name, help text, and default where this is a literal."""

    name: str
    help: str | None
    default: Any
    negated: bool

    @property
    def options(self) -> list[str]:
        """What the flag may be called on the command line."""
        names = [self.name, *([f"no_{self.name}"] if self.negated else [])]
        return list(dict.fromkeys(f"--{form}" for name in names for form in (name, name.replace("_", "-"))))


def stated_flags() -> list[tuple[str | None, list[StatedFlag]]]:
    """Return the flags in the order of `--help`, with the title of each group that has one.

    Raises:
        OSError, SyntaxError, StopIteration: a source is not where it is expected, or not as it is expected.
    """
    groups = []
    for parts in _CLASSES:
        title, flags = None, dict[str, StatedFlag]()
        for package, file, name in parts:
            body = _class_body(package, file, name)
            flags |= {flag.name: flag for flag in _flags_of(body)}
            title = next((_literal(node.value) for node in body if _names_group(node)), title)
        groups.append((title, list(flags.values())))
    return groups


def answer_without_torch(argv: Sequence[str], description: str | None) -> bool:
    """Answer `--help` and refuse a flag that does not exist, before transformers is imported; True after `--help`."""
    try:
        groups = stated_flags()
    except (OSError, SyntaxError, StopIteration, AttributeError):
        return False  # another version of transformers; the real parser answers
    if {"-h", "--help"} & set(argv):
        _parser(groups, description).print_help()
        return True
    known = [option for _, flags in groups for flag in flags for option in flag.options]
    for word in argv:
        flag = word.partition("=")[0]
        if flag.startswith("--") and len(flag) > 2 and flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            raise InputError(f"no flag is called {flag}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
    return False


def _parser(groups: list[tuple[str | None, list[StatedFlag]]], description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage=USAGE, description=description, formatter_class=HelpFormatter)
    for title, flags in groups:
        target = parser.add_argument_group(title) if title else parser
        for flag in flags:
            target.add_argument(*flag.options, default=flag.default, help=flag.help, metavar=flag.name.upper())
    return parser


def _class_body(package: str, file: str, name: str) -> list[ast.stmt]:
    """Return the statements of a class; the package is located and not imported."""
    spec = find_spec(package)
    folder = next(iter(spec.submodule_search_locations or ())) if spec else ""
    module = ast.parse(Path(folder, file).read_text(encoding="utf-8"))
    return next(node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == name)


def _flags_of(body: list[ast.stmt]) -> Iterator[StatedFlag]:
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        given = _arguments(node.value)
        if _literal(given.get("init")) is False:
            continue
        default = _literal(given.get("default"))
        negated = default is True and ast.unparse(node.annotation) in ("bool", "bool | None")
        yield StatedFlag(node.target.id, _literal(given.get("help")), None if default == "" else default, negated)


def _arguments(call: ast.expr | None) -> dict[Any, ast.expr]:
    """Return what a call of `option` or `dataclasses.field` is given by name, its metadata by their keys."""
    if not isinstance(call, ast.Call):
        return {}
    given = dict(zip(("default", "help"), call.args, strict=False)) | {word.arg: word.value for word in call.keywords}
    metadata = given.get("metadata")
    if isinstance(metadata, ast.Dict):
        given |= {_literal(key): value for key, value in zip(metadata.keys, metadata.values, strict=True)}
    return given


def _literal(node: ast.expr | None) -> Any:
    """Return the value of a literal; None of anything else."""
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _names_group(node: ast.stmt) -> TypeGuard[ast.Assign]:
    """Return whether a statement sets the title under which HfArgumentParser lists the class's flags."""
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_argument_group_name"
