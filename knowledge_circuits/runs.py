"""Where a run keeps its files: the one module that spells out output paths and reads them back.

outputs/train/<model>/<run>/                      run_config.json, run_config_manifest.json,
                                                  evaluations.jsonl, knowledge_dynamics.jsonl,
                                                  question_probes.jsonl
    checkpoints/checkpoint-<step>/                an ordinary Hugging Face checkpoint; 0 is the start
        prediction.jsonl, <file>_prediction.jsonl
        circuit_<n>/type_<t>/frequency_<b>/method_<m>/<task>_graph.json
            topn_<k>/<task>_graph.json, <task>_results.json
            topn_<k>/target_type_<t>/target_frequency_<b>/<task>_prediction.jsonl
        circuit_<n>/<column>_<value>/...          the same for facts of one's own, a folder per grouping column
outputs/hub/<name>/                           results of a hub name's model, in the form of a checkpoint's folder
outputs/history/<model>/checkpoints/checkpoint-<step>/   results of a public model's revisions, in the same form

`Coordinates` holds the variable parts of the circuit files' paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote, unquote

from knowledge_circuits.files import InputError, first_line, means_folder
from knowledge_circuits.study import AnyGroup, Attribute, Band, Columns, FactGroup, Group, KnowledgeType

_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
GRAPH_SUFFIXES = (".json", ".json.gz", ".pt")
PATCHING = "patching"


class Content(StrEnum):
    """What a circuit file holds; the last word of its name."""

    GRAPH = "graph"
    RESULTS = "results"
    PREDICTIONS = "prediction"
    MANIFEST = "manifest"
    DETAILS = "details"


def method_name(method: str, gradient: str = "standard", metric: str = "logit_difference") -> str:
    """Return how paths name a way of scoring: the method, then the gradient rule and metric that are not the default.

    >>> method_name("EAP-IG", "gim", "kl_divergence")
    'EAP-IG_gim_kl_divergence'
    """
    rules = [str(gradient)] if gradient != "standard" else []
    return "_".join([str(method), *rules, *([str(metric)] if metric != "logit_difference" else [])])


SIGNED = "_signed"


def selection_name(method: str, same_sign: float = 0.0, signed: bool = False) -> str:
    """Return how paths name a way of scoring and of choosing edges: by signed score, and of stable sign, if asked.

    >>> selection_name("EAP-IG", 0.95)
    'EAP-IG_sign0.95'
    >>> selection_name("EAP-IG", signed=True)
    'EAP-IG_signed'
    """
    return f"{method}{SIGNED * signed}" + (f"_sign{same_sign:g}" if same_sign else "")


_SELECTION = re.compile(rf"({SIGNED})?(_sign[0-9.e-]+)?$")


@dataclass(frozen=True, order=True)
class Coordinates:
    """What a circuit file is about: every variable part of its path under a checkpoint's output folder.

    The columns of `group` and `target` are free: a study with other groups needs no change here.

    Attributes:
        circuit_n: prompts per group at most.
        task: the attribute of the query.
        group: the circuit's group, column by column.
        method: how the graph was scored and its edges selected; see `method_name` and `selection_name`.
        topn: edges before pruning; None for the scored graph.
        intervention: what replaces the edges outside the circuit.
        origin: the step of the checkpoint whose circuit it is; None for the checkpoint's own.
        target: the test items' group, for predictions.
    """

    circuit_n: int
    task: str
    group: Columns
    method: str
    topn: int | None = None
    intervention: str = PATCHING
    origin: int | None = None
    target: Columns = ()

    @classmethod
    def of(cls, circuit_n: int, group: AnyGroup, method: str) -> Coordinates:
        """Return the coordinates of a group's scored graph."""
        return cls(circuit_n, str(group.task), group.columns, str(method))

    @property
    def scored(self) -> Coordinates:
        """Those of the scored graph that the circuit was selected from."""
        return Coordinates(self.circuit_n, self.task, self.group, _SELECTION.sub("", self.method))

    @property
    def any_group(self) -> AnyGroup:
        """The circuit's group: the study's, or a group of facts of one's own."""
        return self.study_group or FactGroup(self.task, self.group)

    @property
    def study_group(self) -> Group | None:
        """The circuit's group; None if its columns are not the study's type and band."""
        return self._study_group(self.group)

    @property
    def study_target(self) -> Group | None:
        """The test items' group; None without one, or if its columns are not the study's."""
        return self._study_group(self.target)

    def _study_group(self, columns: Columns) -> Group | None:
        if [column for column, _ in columns] != ["type", "frequency"]:
            return None
        try:
            return Group(Attribute(self.task), KnowledgeType(columns[0][1]), Band(columns[1][1]))
        except ValueError:
            return None

    @property
    def folder(self) -> Path:
        """The folder, relative to the checkpoint's output folder."""
        parts = [f"circuit_{self.circuit_n}", *map(_folder_name, self.group), f"method_{self.method}"]
        if self.topn is not None:
            parts.append(f"topn_{self.topn}" + ("" if self.intervention == PATCHING else f"_{self.intervention}"))
        return Path(*parts, *(f"target_{_folder_name(column)}" for column in self.target))

    def path(self, content: Content, suffix: str = ".json") -> Path:
        """Return the file's path, relative to the checkpoint's output folder; `read` is the inverse."""
        origin = "" if self.origin is None else f"_from_{self.origin}"
        return self.folder / f"{_quoted(self.task)}{origin}_{content}{suffix}"

    @classmethod
    def read(cls, path: Path) -> tuple[Coordinates, Content] | None:
        """Return the coordinates and content of a path relative to a checkpoint's output folder; None for others."""
        match = _CIRCUIT_PATH.fullmatch(path.as_posix())
        if match is None:
            return None
        target = (match["target"] or "").split("/")[:-1]
        coordinates = cls(
            int(match["circuit_n"]),
            unquote(match["task"]),
            tuple(_column(part) for part in match["group"].split("/")[:-1]),
            match["method"],
            int(match["topn"]) if match["topn"] else None,
            match["intervention"] or PATCHING,
            int(match["origin"]) if match["origin"] else None,
            tuple(_column(part.removeprefix("target_")) for part in target),
        )
        return coordinates, Content(match["content"])


_CIRCUIT_PATH = re.compile(
    r"circuit_(?P<circuit_n>\d+)/(?P<group>(?:[^/]+_[^/_]+/)+?)method_(?P<method>[^/]+)/"
    r"(?:topn_(?P<topn>\d+)(?:_(?P<intervention>[^/]+))?/(?P<target>(?:target_[^/]+_[^/_]+/)+)?)?"
    r"(?P<task>[^/_]+)(?:_from_(?P<origin>\d+))?_(?P<content>graph|results|prediction|manifest|details)(?:\.[a-z]+)+"
)


def _quoted(text: str) -> str:
    """Return a text as a part of a name that holds no underscore."""
    return quote(text, safe=" ").replace("_", "%5F")


def _folder_name(column: tuple[str, str]) -> str:
    return f"{column[0]}_{_quoted(column[1])}"


def _column(folder: str) -> tuple[str, str]:
    name, _, value = folder.rpartition("_")
    return name, unquote(value)


@dataclass(frozen=True)
class Checkpoint:
    """One model folder and the folder of its results (the same unless an output folder is given).

    Attributes:
        path: the folder with the weights, or a hub name.
        output: the folder under which predictions and circuits are written.
        revision: a hub model's branch, tag or commit.
        history_step: the optimizer step of a public training history's checkpoint, whose folder may have any name.
    """

    path: str
    output: Path
    revision: str = "main"
    history_step: int | None = None

    @property
    def name(self) -> str:
        return Path(self.path).name if self.history_step is None else f"checkpoint-{self.history_step}"

    @property
    def step(self) -> int | None:
        """The optimizer step in the folder's name; None where the name tells none."""
        match = _CHECKPOINT_NAME.fullmatch(self.name)
        return int(match[1]) if match else None

    @property
    def address(self) -> str:
        """What tells its weights from other checkpoints': the path, and a revision other than main."""
        return self.path if self.revision == "main" else f"{self.path}@{self.revision}"

    @property
    def predictions(self) -> Path:
        return self.output / "prediction.jsonl"

    def fact_predictions(self, task: str) -> Path:
        """Return the answers to the prompts of a file of one's own facts."""
        return self.output / f"{_quoted(task)}_prediction.jsonl"

    def fact_prediction_files(self) -> dict[str, Path]:
        """Return all such files by the names of the files of facts."""
        paths = sorted(self.output.glob("*_prediction.jsonl"))
        return {unquote(path.name.removesuffix("_prediction.jsonl")): path for path in paths}

    def circuit_folder(
        self, circuit_n: int, group: AnyGroup, method: str, intervention: str = PATCHING
    ) -> CircuitFolder:
        """Return the files of one group's circuits under one way of scoring and one intervention."""
        return CircuitFolder(self.output, replace(Coordinates.of(circuit_n, group, method), intervention=intervention))

    def circuit_files(self) -> dict[tuple[Coordinates, Content], Path]:
        """Return all circuit files, in the order of their coordinates; of a graph in several formats the first one."""
        files: dict[tuple[Coordinates, Content], Path] = {}
        for folder in self.output.glob("circuit_*"):
            for parent, _, names in os.walk(folder):
                for path in sorted(Path(parent, name) for name in names):  # .json before .json.gz before .pt
                    if (key := Coordinates.read(path.relative_to(self.output))) is not None:
                        files.setdefault(key, path)
        return dict(sorted(files.items(), key=lambda item: str(item[1])))


@dataclass(frozen=True)
class CircuitFolder:
    """The files of one group's circuits: the scored graph, then per circuit size its circuit, results, predictions.

    `coordinates` are those of the scored graph, and the intervention of evaluations.
    """

    output: Path
    coordinates: Coordinates

    def graph(self, suffix: str = ".json") -> Path:
        """Return the scored graph that circuit_discovery.py writes (every edge in the graph)."""
        return self.output / self.coordinates.path(Content.GRAPH, suffix)

    @property
    def details(self) -> Path:
        """The stability and span scores of the scored graph, or of several graphs' mean, where they are kept."""
        return self.output / self.coordinates.path(Content.DETAILS, ".safetensors")

    @property
    def manifest(self) -> Path:
        return self.output / self.coordinates.path(Content.MANIFEST)

    def circuit_manifest(self, topn: int, origin: int | None = None) -> Path:
        """Return the manifest of a circuit with its results and predictions."""
        return self._of_circuit(topn, Content.MANIFEST, origin)

    def topn_folder(self, topn: int) -> Path:
        return self.output / replace(self.coordinates, topn=topn).folder

    def circuit(self, topn: int, suffix: str = ".json", origin: int | None = None) -> Path:
        """Return the pruned circuit; `origin` is the step of the checkpoint that a transferred circuit comes from."""
        return self._of_circuit(topn, Content.GRAPH, origin, suffix)

    def results(self, topn: int, origin: int | None = None) -> Path:
        return self._of_circuit(topn, Content.RESULTS, origin)

    def predictions(self, topn: int, target: Columns, origin: int | None = None) -> Path:
        """Return the circuit's standalone predictions on the test items of another (or the same) group."""
        key = replace(self.coordinates, topn=topn, origin=origin, target=target)
        return self.output / key.path(Content.PREDICTIONS, ".jsonl")

    def _of_circuit(self, topn: int, content: Content, origin: int | None, suffix: str = ".json") -> Path:
        return self.output / replace(self.coordinates, topn=topn, origin=origin).path(content, suffix)


def find_graph(path: Path) -> Path | None:
    """Return the graph file at `path`, its name as .json, in the format in which it was written; None without one."""
    stem = path.name.removesuffix(".json")
    return next((p for suffix in GRAPH_SUFFIXES if (p := path.with_name(stem + suffix)).exists()), None)


def existing_graph(path: Path) -> Path:
    """Return the graph file that `find_graph` finds; raise InputError if there is none."""
    if graph := find_graph(path):
        return graph
    raise InputError(f"{path}: no such graph (nor as .json.gz or .pt); run circuit_discovery.py first")


#: What finds the step in the name of a public training history's revision or folder (`step1000`, `step1000-tokens4B`).
STEP_PATTERN = r"step[-_]?(\d+)"


def checkpoints(
    model_path: str, output_dir: str | None = None, revisions: Sequence[str] = (), step_pattern: str | None = None
) -> list[Checkpoint]:
    """Return the checkpoints that a model path means, in step order.

    A folder with `checkpoint-<step>` folders in it (or in its `checkpoints/`) means all of them; a folder whose
    subfolders have steps in their names is a public training history and means all of those; any other folder or hub
    name means itself.

    Args:
        model_path: a checkpoint folder, a run's folder or its checkpoints folder, a history's folder, or a hub name.
        output_dir: where results go instead of into the checkpoint folders (one folder per checkpoint if several). A
            history's results go to outputs/history/<model>/ by default.
        revisions: a history's revisions (or subfolders) by name, or `log` alone for steps that at least double.
        step_pattern: a regular expression whose first group is the step in such a name; default `STEP_PATTERN`.

    Raises:
        InputError: no such folder, a revision without a step, two of one step, or a bad pattern.
    """
    root = Path(model_path)
    if history := _history(model_path, revisions, step_pattern):
        folder = Path(output_dir or Path("outputs") / "history" / _history_name(model_path)) / "checkpoints"
        return [replace(one, output=folder / one.name) for one in history]
    inner = root / "checkpoints" if (root / "checkpoints").is_dir() else root
    folders = []
    if inner.is_dir():
        folders = [child for child in inner.iterdir() if child.is_dir() and _CHECKPOINT_NAME.fullmatch(child.name)]
    if folders and not is_model(root):
        folders.sort(key=lambda folder: int(folder.name.removeprefix("checkpoint-")))
        return [Checkpoint(str(folder), Path(output_dir) / folder.name if output_dir else folder) for folder in folders]
    if root.is_dir():
        if not is_model(root):
            raise InputError(
                f"{model_path}: neither a checkpoint (no config.json) nor a folder of checkpoint-<step>; for folders of"
                " other names give --step_pattern"
            )
        return [Checkpoint(model_path, Path(output_dir) if output_dir else root)]
    if means_folder(model_path):
        raise InputError(f"{model_path}: no such checkpoint folder")
    return [Checkpoint(model_path, Path(output_dir or Path("outputs") / "hub" / model_path.replace("/", "--")))]


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a checkpoint or an adapter."""
    return (folder / "config.json").exists() or (folder / "adapter_config.json").exists()


def _history_name(model_path: str) -> str:
    return Path(model_path).resolve().name if Path(model_path).is_dir() else model_path.replace("/", "--")


def _history(model_path: str, revisions: Sequence[str], step_pattern: str | None) -> list[Checkpoint]:
    """Return the checkpoints of a public training history in step order, none if the path is no history."""
    try:
        pattern = re.compile(step_pattern or STEP_PATTERN)
    except re.error as error:
        raise InputError(f"--step_pattern {step_pattern!r}: not a regular expression ({error})") from None
    if not pattern.groups:
        raise InputError(f"--step_pattern {step_pattern!r}: its first group must be the step, as in {STEP_PATTERN}")
    root, log = Path(model_path), list(revisions) == ["log"]
    if root.is_dir():
        if is_model(root) and not revisions:
            return []
        names = [child.name for child in root.iterdir() if is_model(child)]
        if not revisions and step_pattern is None and any(_CHECKPOINT_NAME.fullmatch(name) for name in names):
            return []
    elif not revisions or means_folder(model_path):
        return []
    else:
        names = _hub_branches(model_path) if log else list(revisions)
    by_step: dict[int, str] = {}
    for name in names if log or not revisions else revisions:
        match = pattern.search(name)
        if name not in names or (match is None and name in revisions):
            problem = "no step in this name; give --step_pattern" if name in names else f"not one of {sorted(names)}"
            raise InputError(f"{model_path}: revision {name!r}: {problem}")
        if match is None:
            continue
        step = int(match[1])
        if by_step.setdefault(step, name) != name:
            raise InputError(f"{model_path}: {by_step[step]!r} and {name!r} are both of step {step}; name one")
    steps = log_spaced(sorted(by_step)) if log else sorted(by_step)
    if revisions and not steps:
        raise InputError(f"{model_path}: no revision with a step in its name (pattern {pattern.pattern})")
    if root.is_dir():
        return [Checkpoint(str(root / by_step[step]), root, history_step=step) for step in steps]
    return [Checkpoint(model_path, root, by_step[step], step) for step in steps]


def log_spaced(steps: Sequence[int]) -> list[int]:
    """Return the first of sorted steps, then those that are at least twice the one before, and the last.

    >>> log_spaced([0, 1, 2, 3, 4, 6, 9, 10])
    [0, 1, 2, 4, 9, 10]
    """
    chosen: list[int] = []
    for step in steps:
        if not chosen or step >= max(1, 2 * chosen[-1]) or step == steps[-1]:
            chosen.append(step)
    return chosen


def _hub_branches(name: str) -> list[str]:
    """Return the names of a hub model's branches and tags."""
    from huggingface_hub import HfApi  # only needed to list them

    try:
        refs = HfApi().list_repo_refs(name)
    except Exception as error:  # no network, no such model, or an offline session
        raise InputError(
            f"{name}: its revisions cannot be listed ({first_line(error)}); name them with --revisions"
        ) from error
    return [ref.name for ref in (*refs.branches, *refs.tags)]


@dataclass(frozen=True)
class Run:
    """A training run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "run_config.json"

    @property
    def config_manifest(self) -> Path:
        return self.path / "run_config_manifest.json"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def knowledge_dynamics(self) -> Path:
        return self.path / "knowledge_dynamics.jsonl"

    @property
    def question_probes(self) -> Path:
        return self.path / "question_probes.jsonl"

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
        """Return the run's checkpoints in step order."""
        if not self.checkpoints_folder.is_dir():
            raise InputError(f"{self.path}: not a run (it has no checkpoints/ folder)")
        return [checkpoint for checkpoint in checkpoints(str(self.checkpoints_folder)) if checkpoint.step is not None]
