"""Gemma 3 270M, which scripts/gemma-3-270m/prepare.sh makes, under the README's program for one's own facts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import python_block

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def test_a_twentieth_of_the_edges_carries_the_capitals(tmp_path: Path) -> None:
    subprocess.run(["bash", str(ROOT / "scripts" / "gemma-3-270m" / "prepare.sh")], check=True)
    (tmp_path / "models").symlink_to(ROOT / "models")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    program = python_block().replace("SmolLM2-135M", "gemma-3-270m")
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    printed = re.search(r"18 layers x 4 heads: (\d+) of 10,342 edges.* faithfulness (\S+)", output)
    assert printed and int(printed[1]) <= 10_342 // 20
    assert 0.85 < float(printed[2]) < 1.1
