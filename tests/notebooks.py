"""Run a notebook's cells in the test's own process, on whatever run the environment names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from knowledge_circuits.files import read_json

ANALYSIS = Path(__file__).resolve().parents[1] / "analysis"


def cells(name: str) -> list[str]:
    """The code of a notebook's cells."""
    notebook = read_json(ANALYSIS / f"{name}.ipynb")
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_notebook(name: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Run the cells of a notebook; returns its variables."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: dict = {}
    for cell in cells(name):
        exec(cell, names)
    return names
