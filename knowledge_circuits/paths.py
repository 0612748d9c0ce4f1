"""Where the repository's own files lie: the one module that knows its root."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from knowledge_circuits.files import InputError

#: The folder that holds the programs, data/, docs/ and outputs/.
REPOSITORY = Path(__file__).resolve().parents[1]

SELECTION_POOL = REPOSITORY / "data" / "selection_pool"
TEMPLATES = REPOSITORY / "data" / "templates"
ENCYCLOPEDIA = REPOSITORY / "data" / "encyclopedia"
HELD_OUT_TEXT = REPOSITORY / "data" / "skills" / "held_out_text.txt"
REASONING = REPOSITORY / "data" / "skills" / "reasoning.jsonl"
PUBLISHED_ACCURACY = REPOSITORY / "docs" / "reference" / "first_token_accuracy.json"


def check_name(name: str, flag: str) -> None:
    """Refuse a name that would lead out of its folder: an empty one, an absolute path, or one with `..` in it."""
    path = PurePath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise InputError(f"{flag} {name!r}: a name is wanted, not a path that leads elsewhere")


def shown(path: Path) -> str:
    """Return the path relative to the working folder if it lies inside: records then name no folder of one machine."""
    try:
        return os.fspath(path.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(path)
