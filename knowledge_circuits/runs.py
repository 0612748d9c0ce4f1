"""Where a run keeps its files: one place that spells out every output path.

outputs/train/<model>/<run>/                      run_config.json, evaluations.jsonl, knowledge_dynamics.jsonl
    checkpoints/checkpoint-<step>/                an ordinary Hugging Face checkpoint; 0 is the start
        prediction.jsonl
        circuit_<n>/type_<t>/frequency_<b>/method_<m>/<task>_graph.json
            topn_<k>/<task>_graph.json, <task>_results.json
            topn_<k>/target_type_<t>/target_frequency_<b>/<task>_prediction.jsonl
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from knowledge_circuits.files import InputError
from knowledge_circuits.study import Attribute, Band, Group, KnowledgeType

_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
GRAPH_SUFFIXES = (".json", ".json.gz", ".pt")


@dataclass(frozen=True)
class Checkpoint:
    """One model folder and the place where its results go (the same folder unless another is asked for).

    Attributes:
        path: the folder with the weights, or a hub name.
        output: the folder under which predictions and circuits are written.
    """

    path: str
    output: Path

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def step(self) -> int | None:
        """The optimizer step in the folder's name; None where the name tells none."""
        match = _CHECKPOINT_NAME.fullmatch(self.name)
        return int(match[1]) if match else None

    @property
    def predictions(self) -> Path:
        return self.output / "prediction.jsonl"

    def circuit_folder(self, circuit_n: int, group: Group, method: str) -> CircuitFolder:
        """The folder of one group's circuits under one attribution method."""
        folder = self.output / f"circuit_{circuit_n}" / f"type_{group.type}" / f"frequency_{group.band}"
        return CircuitFolder(folder / f"method_{method}", group.task)


@dataclass(frozen=True)
class CircuitFolder:
    """The files of one group's circuits: the scored graph, then per circuit size its circuit, results, predictions."""

    folder: Path
    task: Attribute

    def graph(self, suffix: str = ".json") -> Path:
        """The scored graph that circuit_discovery.py writes (every edge in the graph)."""
        return self.folder / f"{self.task}_graph{suffix}"

    def topn_folder(self, topn: int) -> Path:
        return self.folder / f"topn_{topn}"

    def circuit(self, topn: int, suffix: str = ".json", source_step: int | None = None) -> Path:
        """The pruned circuit; `source_step` names the checkpoint whose circuit it is, where it was moved."""
        return self.topn_folder(topn) / f"{self._stem(source_step)}_graph{suffix}"

    def results(self, topn: int, source_step: int | None = None) -> Path:
        return self.topn_folder(topn) / f"{self._stem(source_step)}_results.json"

    def predictions(
        self, topn: int, target_type: KnowledgeType, target_band: Band, source_step: int | None = None
    ) -> Path:
        """The circuit's standalone predictions on the test items of another (or the same) type and band."""
        target = self.topn_folder(topn) / f"target_type_{target_type}" / f"target_frequency_{target_band}"
        return target / f"{self._stem(source_step)}_prediction.jsonl"

    def _stem(self, source_step: int | None) -> str:
        return str(self.task) if source_step is None else f"{self.task}_from_{source_step}"


def find_graph(path: Path) -> Path | None:
    """The graph file at `path` in whichever format it was written (.json, .json.gz or .pt); None where there is none.

    Args:
        path: the name it would have as .json.
    """
    stem = path.name.removesuffix(".json")
    return next((p for suffix in GRAPH_SUFFIXES if (p := path.with_name(stem + suffix)).exists()), None)


def existing_graph(path: Path) -> Path:
    """`find_graph` where there must be one.

    Raises:
        InputError: no format of it is there.
    """
    if found := find_graph(path):
        return found
    raise InputError(f"{path}: no such graph (nor as .json.gz or .pt); run circuit_discovery.py first")


def checkpoints(model_path: str, output_dir: str | None = None) -> list[Checkpoint]:
    """The checkpoints that a model path means, in step order.

    A folder with `checkpoint-<step>` folders in it (or in its `checkpoints/`) means all of them; any other folder or
    hub name means itself.

    Args:
        model_path: a checkpoint folder, a run's folder or its checkpoints folder, or a hub name.
        output_dir: where results go instead of into the checkpoint folders (one folder per checkpoint if several).
    """
    root = Path(model_path)
    inner = root / "checkpoints" if (root / "checkpoints").is_dir() else root
    found = []
    if inner.is_dir():
        found = [child for child in inner.iterdir() if child.is_dir() and _CHECKPOINT_NAME.fullmatch(child.name)]
    if found and not (root / "config.json").exists():
        found.sort(key=lambda folder: int(folder.name.removeprefix("checkpoint-")))
        return [Checkpoint(str(folder), Path(output_dir) / folder.name if output_dir else folder) for folder in found]
    if root.is_dir():
        if not (root / "config.json").exists():
            raise InputError(f"{model_path}: neither a checkpoint (no config.json) nor a folder of checkpoint-<step>")
        return [Checkpoint(model_path, Path(output_dir) if output_dir else root)]
    if root.exists() or model_path.startswith((".", "/", "outputs/", "models/")):
        raise InputError(f"{model_path}: no such checkpoint folder")
    return [Checkpoint(model_path, Path(output_dir or Path("outputs") / "hub" / model_path.replace("/", "--")))]


@dataclass(frozen=True)
class Run:
    """A training run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The whole configuration of the run, data seed included."""
        return self.path / "run_config.json"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def knowledge_dynamics(self) -> Path:
        return self.path / "knowledge_dynamics.jsonl"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def checkpoints_folder(self) -> Path:
        return self.path / "checkpoints"

    def checkpoints(self) -> list[Checkpoint]:
        """The run's checkpoints in step order."""
        if not self.checkpoints_folder.is_dir():
            raise InputError(f"{self.path}: not a run (it has no checkpoints/ folder)")
        return [checkpoint for checkpoint in checkpoints(str(self.checkpoints_folder)) if checkpoint.step is not None]
