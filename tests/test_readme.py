"""The README's program for one's own model and facts, as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, random_model, random_pairs
from torch import Tensor

from knowledge_circuits.engine.graph_files import read_graph
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.models.nano import Shape, random_gpt2, save_checkpoint, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def python_block() -> str:
    """The README's program for one's own facts."""
    return python_blocks()[1]


def python_blocks() -> list[str]:
    """The README's blocks of Python: for EAP-IG's users, and for one's own facts."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    return blocks


def test_the_program_for_eap_igs_users_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = [vars(pair) for pair in random_pairs((6, 8))]
    batch = tuple([pair[key] for pair in pairs] for key in ("clean_ids", "corrupted_ids", "label_ids"))

    def metric(logits: Tensor, clean: Tensor, lengths: Tensor, labels: list[tuple[int, int]]) -> Tensor:
        last = logits[torch.arange(len(labels)), lengths - 1]
        return torch.stack([row[wrong] - row[right] for row, (right, wrong) in zip(last, labels, strict=True)]).mean()

    names = {"model": decoder_from_model(random_model(FAMILIES["gpt2"]())), "dataloader": [batch], "metric": metric}
    exec(python_blocks()[0], names)
    circuit = read_graph(tmp_path / "graph.json")
    assert 0 < circuit.n_edges <= 200 and circuit.meta["method"] == "EAP-IG"
    assert capsys.readouterr().out.count("tensor(") == 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with models/SmolLM2-135M in it: a tiny GPT-2 whose tokenizer knows the program's words."""
    words = ["France", "Paris", "Poland", "Warsaw", "Italy", "Rome", "Spain", "Madrid"]
    tokenizer = train_tokenizer([f"The capital of {word} is {word}" for word in words] * 20, 500, 32)
    model = random_gpt2(tokenizer, Shape(layers=2, heads=2, width=16, positions=32), seed=0)
    save_checkpoint(model, tokenizer, str(tmp_path / "models" / "SmolLM2-135M"))
    return tmp_path


def test_the_program_for_ones_own_facts_runs_as_it_stands(folder: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", python_block()],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    circuit = read_graph(folder / "capitals.json")
    assert process.stdout.startswith(f"{circuit} faithfulness ")
    assert 0 <= circuit.n_edges <= circuit.layout.n_edges // 20
    assert (folder / "capitals.png").read_bytes().startswith(b"\x89PNG")


def test_it_takes_ten_lines_besides_the_imports() -> None:
    lines = [line for line in python_block().splitlines() if line and not line.startswith("import ")]
    assert len(lines) <= 10


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([\w./-]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("command", re.findall(r"bash (scripts/[\w./-]+\.sh)", README))
def test_every_script_that_is_named_exists(command: str) -> None:
    assert (ROOT / command).is_file()


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("scripts/**/*.md"), *ROOT.glob("data/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_has_lines_of_at_most_120_characters_besides_tables(page: Path) -> None:
    long = [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text().split("## Where do I change")[1]
PLACES = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", ARCHITECTURE, re.MULTILINE)[2:]


@pytest.mark.parametrize(("_what", "files", "names"), PLACES, ids=[what for what, _, _ in PLACES])
def test_what_one_wants_to_change_is_where_the_page_says(_what: str, files: str, names: str) -> None:
    paths = [ROOT / name for name in re.findall(r"`([^`]+)`", files)]
    folders = [file for path in paths if path.is_dir() for file in path.iterdir()]
    text = "".join(path.read_text() for path in [*paths, *folders] if path.is_file())
    for name in re.findall(r"`([^`]+)`", names):
        assert name.split(".")[-1] in text or name in [path.name for path in folders], name
