"""A run is published as a data set of graphs and a model, each with a card; without a token nothing is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from synthetic_run import Truth, write_run
from tiny_run import call

from knowledge_circuits.files import InputError
from knowledge_circuits.report import publishing
from knowledge_circuits.report.__main__ import main
from knowledge_circuits.runs import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of three checkpoints with circuits; the last one has weights and the state of its optimizer."""
    run = write_run(tmp_path_factory.mktemp("publish") / "tiny" / "default", Truth(epochs=2))
    last = Path(run.checkpoints()[-1].path)
    tiny.save_tiny_gpt2(last, 0)
    (last / "optimizer.pt").write_bytes(b"state")
    return run


class Hub:
    """What an upload would reach: it keeps the commits."""

    commits: dict[str, list[str]]

    def __init__(self, token: str) -> None:
        assert token == "secret"

    def create_repo(self, name: str, repo_type: str, private: bool, exist_ok: bool) -> str:
        assert private and exist_ok
        return f"https://hub/{repo_type}/{name}"

    def create_commit(self, name: str, operations: list[Any], commit_message: str, repo_type: str) -> None:
        self.commits[name] = [operation.path_in_repo for operation in operations]


def test_without_a_token_the_cards_are_written_and_nothing_is_sent(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    monkeypatch.setattr(publishing, "HfApi", lambda **_: pytest.fail("the hub was asked"))
    assert call(main, [str(run.path), "--name", "user/tiny", "--license", "mit"]) == 0
    assert "nothing was sent: no token" in capsys.readouterr().out
    for name, first in ("dataset_card.md", "# Knowledge circuits of tiny/default"), ("model_card.md", "# tiny/default"):
        _, front, card = (run.path / "publish" / name).read_text().split("---\n", 2)
        assert yaml.safe_load(front)["license"] == "mit"
        assert card.strip().startswith(first)
    card = (run.path / "publish" / "dataset_card.md").read_text()
    assert "54 circuit graphs" in card and "| city | new | low |" in card


def test_with_a_token_graphs_and_the_last_checkpoint_are_sent_without_the_optimizers_state(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Hub.commits = {}
    monkeypatch.setattr(publishing, "get_token", lambda: "secret")
    monkeypatch.setattr(publishing, "HfApi", Hub)
    assert call(main, [str(run.path), "--name", "user/tiny"]) == 0
    model, data = Hub.commits["user/tiny"], Hub.commits["user/tiny-circuits"]
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= set(model)
    assert not any("optimizer" in name or "circuit_" in name for name in model)
    assert sum("_graph.json" in name for name in data) == 54
    assert not any(name.endswith((".safetensors", ".pt")) for name in data)
    assert "https://hub/dataset/user/tiny-circuits" in capsys.readouterr().out


def test_a_bad_name_and_a_run_without_weights_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="user/name"):
        publishing.publications(run, "tiny", "other")
    with pytest.raises(InputError, match="no checkpoint has weights"):
        publishing.publications(write_run(tmp_path / "other", Truth(epochs=1)), "user/tiny", "other")
