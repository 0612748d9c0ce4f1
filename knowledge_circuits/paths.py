"""Where the repository's own files lie: the one place that knows its root."""

from __future__ import annotations

import os
from pathlib import Path

#: The folder that holds the programs, data/, docs/ and outputs/.
REPOSITORY = Path(__file__).resolve().parents[1]

SELECTION_POOL = REPOSITORY / "data" / "selection_pool"
TEMPLATES = REPOSITORY / "data" / "templates"
HELD_OUT_TEXT = REPOSITORY / "data" / "skills" / "held_out_text.txt"
PUBLISHED_ACCURACY = REPOSITORY / "docs" / "reference" / "first_token_accuracy.json"


def shown(path: Path) -> str:
    """Return the path relative to the working folder if it lies inside: records then name no folder of one machine."""
    try:
        return os.fspath(path.relative_to(Path.cwd()))
    except ValueError:
        return os.fspath(path)
