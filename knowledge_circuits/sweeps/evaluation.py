"""Circuit evaluation over checkpoints: the circuit of every source group, its faithfulness and standalone predictions.

One work item is one source group at one checkpoint. For each circuit of it (the checkpoint's own, or circuits
transferred from other checkpoints, their origins, whose topology is then fixed while the weights differ):

1. read the scored graph, take the n edges of largest |score|, prune: the circuit, saved as a graph file;
2. run it under patching on the source group's circuit data: `<task>_results.json` with its faithfulness;
3. run it alone under zero ablation on the test items of every target group: a line each with the probability and the
   rank of the answer's first token (rank 0 is best).

The unit of a manifest is a circuit with its results and predictions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from knowledge_circuits.corpus.people import read_entities
from knowledge_circuits.corpus.prompt_pairs import in_group, read_circuit_data
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import Evaluation, evaluate, standalone
from knowledge_circuits.engine.graph import Graph, Layout, layout_of
from knowledge_circuits.engine.graph_files import read_graph
from knowledge_circuits.engine.options import GradientRule, Intervention, Method, Metric
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.topology import circuit_entropy
from knowledge_circuits.files import InputError, numbered_jsonl, write_json, write_jsonl
from knowledge_circuits.manifest import (
    State,
    Status,
    begin,
    check,
    fingerprint,
    finish,
    read_manifest,
    remove_replaced,
)
from knowledge_circuits.models.scoring import encode_continuations
from knowledge_circuits.models.tokenization import label_text
from knowledge_circuits.runs import Checkpoint, CircuitFolder, existing_graph, find_graph, method_name
from knowledge_circuits.runs import checkpoints as all_checkpoints
from knowledge_circuits.study import Attribute, Group, task_file
from knowledge_circuits.sweeps.discovery import graph_origin
from knowledge_circuits.sweeps.processes import WorkItem
from knowledge_circuits.sweeps.programs import GroupData, LoadedModel, ModelLoader, check_place, replace_graph

#: Circuit sizes of the paper's models; any other takes a quarter of the edges.
PAPER_TOPN = {"gpt2": 8_000, "gpt2-medium": 20_000, "TinyLlama_v1.1": 50_000, "phi-1_5": 50_000}


@dataclass(frozen=True)
class EvaluationSettings:
    """Which circuits are evaluated and how.

    Attributes:
        model: the model's name in the results.
        topn: edges selected before pruning.
        circuit_n, method, gradient, metric: of the scored graphs; circuits are judged by the same metric.
        intervention: what replaces the edges outside the circuit.
        batch_size, memory_gb: bounds on memory, which change results by rounding only.
        suffix: of new graph files of circuits (.json, .json.gz, .pt).
        overwrite: recompute existing results.
        verify: compare all bytes of existing results with their manifests.
    """

    model: str
    topn: int
    circuit_n: int = 300
    method: Method = Method.EAP_IG
    gradient: GradientRule = GradientRule.STANDARD
    metric: Metric = Metric.LOGIT_DIFFERENCE
    intervention: Intervention = Intervention.PATCHING
    batch_size: int = 32
    memory_gb: float | None = None
    suffix: str = ".json"
    overwrite: bool = False
    verify: bool = False

    def folder(self, checkpoint: Checkpoint, group: Group) -> CircuitFolder:
        """Return the files of one group's circuits at a checkpoint."""
        name = method_name(self.method, self.gradient, self.metric)
        return checkpoint.circuit_folder(self.circuit_n, group, name, str(self.intervention))


@dataclass(frozen=True)
class TestItem:
    """One query for a standalone circuit.

    Attributes:
        subject, value: the person, and the right answer.
        keys: what the data file says of the item, repeated in its prediction.
    """

    __test__ = False  # not a test class, whatever its name

    subject: str
    value: str
    keys: Mapping[str, Any]


@dataclass(frozen=True)
class TestItems:
    """The test items of one target group (task, type and band)."""

    __test__ = False

    target: Group
    items: Sequence[TestItem]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the query's wording and the test items."""
        items = [[item.subject, item.value, dict(item.keys)] for item in self.items]
        return fingerprint([self.target.task.relation, items])

    def questions(self, tokenizer: PreTrainedTokenizerBase) -> tuple[PromptPairs, list[dict[str, Any]]]:
        """Return the prompts, which need no corrupted side, and each prediction's first keys."""
        texts = [self.target.task.prompt(item.subject) for item in self.items]
        encoded = encode_continuations(tokenizer, texts, [item.value for item in self.items])
        prompts = [prompt for prompt, _ in encoded]
        labels = [(answer[0], answer[0]) for _, answer in encoded]
        said = [{"ground_truth": item.value, "clean_label": label_text(tokenizer, item.value)} for item in self.items]
        return PromptPairs(prompts, prompts, labels), said


def read_test_items(template: str, wanted: Sequence[Group], quiet: bool = False) -> dict[Attribute, list[TestItems]]:
    """Return the test items of every target group, by task; an empty group is named and left out.

    Args:
        template: entities (test.jsonl), or circuit data; `{task}` in it stands for each task.
        wanted: the target groups.
        quiet: name nothing (the other processes of a sweep).

    Raises:
        InputError: a bad file.
    """
    by_task: dict[Attribute, list[TestItems]] = {}
    for task in dict.fromkeys(target.task for target in wanted):
        path = task_file(template, task)
        rows = _test_rows(path, task)
        by_task[task] = []
        for target in (target for target in wanted if target.task == task):
            items = [item for item in rows if in_group(item.keys, target)]
            if items:
                by_task[task].append(TestItems(target, items))
            elif not quiet:
                print(f"{target}: no test items in {path}; skipped as a target", file=sys.stderr)
    return by_task


def _test_rows(path: str, task: Attribute) -> list[TestItem]:
    """Return the items of a file of people, or of circuit data, whose clean side is taken."""
    first = next((row for _, row in numbered_jsonl(path)), {})
    if "clean_subject" in first:
        rows = read_circuit_data(path, task)
        return [TestItem(row["clean_subject"], row["clean_label"].strip(), row) for row in rows]
    people = read_entities(path)
    return [TestItem(person.full_name, person.value(task).strip(), person.to_row()) for person in people]


def circuit_size(
    topn: int | None, settings: EvaluationSettings, origins: Sequence[Checkpoint], groups: Sequence[Group]
) -> int:
    """Return the number of edges before pruning, checked against the first graph that is there.

    Args:
        topn: of `--topn`; None means the paper's number for its models, a quarter of the edges for any other.
        settings: where the graphs lie.
        origins, groups: those whose circuits are evaluated.

    Raises:
        InputError: there is no graph, or it has fewer edges.
    """
    paths = [settings.folder(origin, group).graph() for origin in origins for group in groups]
    graph = next((read_graph(file) for path in paths if (file := find_graph(path))), None)
    if graph is None:
        raise InputError(f"{paths[0]}: no such graph, nor one of another chosen group; run circuit_discovery.py first")
    edges = graph.layout.n_edges
    topn = topn or PAPER_TOPN.get(settings.model, edges // 4)
    if topn > edges:
        raise InputError(f"--topn {topn}: the graph has only {edges} edges")
    return topn


def find_origins(names: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints that `--circuit_from` names, each once; see `find_origin`.

    Raises:
        InputError: two different ones have the same step, so that their files would have the same names.
    """
    origins = list(dict.fromkeys(find_origin(name, checkpoints) for name in names))
    by_step: dict[int | None, Checkpoint] = {}
    for origin in origins:
        other = by_step.setdefault(origin.step, origin)
        if other != origin:
            raise InputError(
                f"--circuit_from: {other.path} and {origin.path} are both of step {origin.step}, which names the files;"
                " transfer the circuits of one at a time, the second with another --output_dir"
            )
    return origins


def find_origin(name: str, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Return the checkpoint that one value of `--circuit_from` names.

    Args:
        name: a step or `checkpoint-<step>` of the evaluated checkpoints, or a checkpoint's folder.
        checkpoints: those that are evaluated.

    Raises:
        InputError: there is none, or its name has no step.
    """
    for checkpoint in checkpoints:
        if name in (str(checkpoint.step), checkpoint.name) or Path(name).absolute() == Path(checkpoint.path).absolute():
            return checkpoint
    if not Path(name).is_dir():
        known = ", ".join(str(checkpoint.step) for checkpoint in checkpoints)
        raise InputError(f"--circuit_from {name}: neither a checkpoint's folder nor one of the steps {known}")
    origins = all_checkpoints(name)
    if len(origins) != 1 or origins[0].step is None:
        raise InputError(f"--circuit_from {name}: not one checkpoint-<step> folder")
    return origins[0]


def evaluation_items(
    checkpoints: Sequence[Checkpoint],
    origins: Sequence[Checkpoint],
    source_groups: Sequence[GroupData],
    targets: Mapping[Attribute, Sequence[TestItems]],
    loader: ModelLoader,
    settings: EvaluationSettings,
) -> list[WorkItem]:
    """Return the work of evaluating every source group's circuits at every checkpoint.

    Args:
        checkpoints: whose weights run the circuits.
        origins: whose circuits are run; none means each checkpoint's own.
        source_groups: those of the circuits, with their circuit data, none of them empty.
        targets: the test items by task.
        loader: loads each checkpoint once.
        settings: see `EvaluationSettings`.

    Raises:
        InputError: the data are not of the first checkpoint's tokenizer.
    """
    tokenizer = loader.tokenizer(checkpoints[0])
    for data in source_groups:
        data.pairs(tokenizer)
    evaluations = [
        GroupEvaluation(checkpoint, origins, data, targets.get(data.group.task, ()), loader, settings)
        for checkpoint in checkpoints
        for data in source_groups
    ]
    return [
        WorkItem(
            name=f"{evaluation.checkpoint.name}: {evaluation.data.group}",
            batch=evaluation.checkpoint.address,
            cost=evaluation.cost,
            states=evaluation.states,
            run=evaluation.run,
            adopt=evaluation.adopt,
        )
        for evaluation in evaluations
    ]


@dataclass(frozen=True)
class GroupEvaluation:
    """One work item: the circuits of one source group in the weights of one checkpoint."""

    checkpoint: Checkpoint
    origins: Sequence[Checkpoint]
    data: GroupData
    targets: Sequence[TestItems]
    loader: ModelLoader
    settings: EvaluationSettings

    @property
    def cost(self) -> float:
        """Prompts to run: clean, corrupted and circuit for faithfulness, one for each test item."""
        prompts = 3 * self.data.size + sum(len(items.items) for items in self.targets)
        return prompts * max(1, len(self.origins))

    @property
    def by_step(self) -> dict[int | None, Checkpoint]:
        """The checkpoints whose circuits are run, by their steps; None is the checkpoint's own circuit."""
        return {origin.step: origin for origin in self.origins} or {None: self.checkpoint}

    @property
    def bounds(self) -> dict[str, Any]:
        """The engine's bounds on memory."""
        return {"batch_size": self.settings.batch_size, "memory_gb": self.settings.memory_gb}

    @property
    def folder(self) -> CircuitFolder:
        return self.settings.folder(self.checkpoint, self.data.group)

    def manifest(self, step: int | None) -> Path:
        return self.folder.circuit_manifest(self.settings.topn, step)

    def texts(self, step: int | None) -> list[Path]:
        """Return the results and predictions of one circuit."""
        topn = self.settings.topn
        predictions = [
            self.folder.predictions(topn, items.target.type, items.target.band, step) for items in self.targets
        ]
        return [self.folder.results(topn, step), *predictions]

    def made_from(self, step: int | None) -> dict[str, Any]:
        """Return everything that one circuit's files depend on; without the graph's part if the graph is gone."""
        settings = self.settings
        scored = self.settings.folder(self.by_step[step], self.data.group)
        path = find_graph(scored.graph())
        return {
            **(graph_origin(scored, path) if path else {}),
            **self.loader.facts(self.checkpoint),
            **{"prompts": self.data.digest, "topn": settings.topn, "metric": str(settings.metric)},
            "intervention": str(settings.intervention),
            **{_target_key(items.target): items.digest for items in self.targets},
        }

    def state(self, step: int | None) -> State:
        """Return what became of one circuit's files."""
        texts = self.texts(step)
        made_from, verify = self.made_from(step), self.settings.verify
        return check(self.manifest(step), made_from, texts, verify, beside=texts[:1])

    def states(self) -> list[State]:
        return [self.state(step) for step in self.by_step]

    def missing(self) -> list[int | None]:
        """Return which of the circuits are to be evaluated."""
        return [step for step in self.by_step if self.settings.overwrite or not self.state(step).is_whole]

    def adopt(self) -> None:
        """Write manifests for circuits that have all their files and no manifest.

        Raises:
            InputError: the circuit is not of the graph that is there, or the test items are others.
        """
        for step, origin in self.by_step.items():
            circuit = find_graph(self.folder.circuit(self.settings.topn, origin=step))
            texts = self.texts(step)
            if self.manifest(step).exists() or circuit is None or not all(path.exists() for path in texts):
                continue
            meta = {**read_graph(circuit).meta, "version": None}
            if graph := find_graph(self.settings.folder(origin, self.data.group).graph()):
                scored = {**read_graph(graph).meta, "version": None}
                differing = [
                    f"{key} {meta[key]!r}, now {scored[key]!r}" for key in scored if meta.get(key) != scored[key]
                ]
                if differing:
                    raise InputError(f"{circuit} was made with {'; '.join(differing)}; --overwrite recomputes it")
            for items, path in zip(self.targets, texts[1:], strict=True):
                if [row.get("ground_truth") for _, row in numbered_jsonl(path)] != [one.value for one in items.items]:
                    raise InputError(f"{path} is about other test items than those given; --overwrite recomputes it")
            finish(self.manifest(step), "circuit", self.made_from(step), [circuit, *texts])

    def run(self) -> None:
        """Evaluate the circuits that are not whole; the prompts' clean and corrupted runs are shared by all of them."""
        model = self.loader.load(self.checkpoint)
        missing = self.missing()
        circuits = [self.circuit(model, self.by_step[step]) for step in missing]
        pairs = self.data.pairs(model.tokenizer)
        settings = self.settings
        measured = evaluate(model.decoder, circuits, pairs, settings.intervention, settings.metric, **self.bounds)
        for step, circuit, outcome in zip(missing, circuits, measured, strict=True):
            self.write(model, circuit, outcome, step)

    def circuit(self, model: LoadedModel, origin: Checkpoint) -> Graph:
        """Return the pruned circuit of a checkpoint's scored graph.

        Raises:
            InputError: no such graph, a damaged one, one of another model, group or checkpoint, or too few edges.
        """
        folder = self.settings.folder(origin, self.data.group)
        path = existing_graph(folder.graph())
        state = check(folder.manifest, verify=True, beside=[path])
        if state.status not in (Status.WHOLE, Status.UNKNOWN):
            raise InputError(f"{path}: the graph is {state.status} ({state.detail}); run circuit_discovery.py again")
        graph = read_graph(path)
        check_place(graph, path, self.data.group, origin.name)
        decoder = model.decoder
        if (
            graph.layout != layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
            or graph.d_model not in (decoder.d_model, 0)  # EAP-IG 1 does not state it
        ):
            raise InputError(
                f"{path}: the graph of another model ({_shape(graph.layout, graph.d_model)};"
                f" {model.checkpoint.name} has {_shape(decoder, decoder.d_model)})"
            )
        return prune(top_n(graph, self.settings.topn)).with_meta(topn=self.settings.topn)

    def write(self, model: LoadedModel, circuit: Graph, outcome: Evaluation, step: int | None) -> None:
        """Write a circuit with its results and predictions, its manifest last.

        Predictions for other targets that are whole stay part of the unit, unless everything is recomputed.
        """
        manifest, made_from, settings = self.manifest(step), self.made_from(step), self.settings
        others = {} if settings.overwrite else _other_targets(manifest, made_from)
        begin(manifest, "circuit", made_from)
        self.write_predictions(model, circuit, step)
        write_json(self.folder.results(settings.topn, step), self.results(circuit, outcome, step))
        path_of = partial(_circuit_path, self.folder, settings.topn, step)
        files = [
            replace_graph(circuit, path_of, settings.suffix, manifest, settings.overwrite),
            *self.texts(step),
            *(path for _, path in others.values()),
        ]
        if settings.overwrite:
            remove_replaced(manifest, files)
        finish(manifest, "circuit", made_from | {key: digest for key, (digest, _) in others.items()}, files)

    def write_predictions(self, model: LoadedModel, circuit: Graph, step: int | None) -> None:
        """Run the circuit alone on the test items of all target groups together: more prompts of a length per pass."""
        queries = [items.questions(model.tokenizer) for items in self.targets]
        if not queries:
            return
        outcome = standalone(model.decoder, circuit, PromptPairs.joined([pairs for pairs, _ in queries]), **self.bounds)
        measured = zip(outcome.token_prob.tolist(), outcome.token_rank.tolist(), strict=True)
        for items, (_, first_keys), path in zip(self.targets, queries, self.texts(step)[1:], strict=True):
            rows = [
                {**row, "token_prob": prob, "token_rank": rank, **item.keys}
                for row, item, (prob, rank) in zip(
                    first_keys, items.items, islice(measured, len(first_keys)), strict=True
                )
            ]
            write_jsonl(path, rows)

    def results(self, circuit: Graph, outcome: Evaluation, step: int | None) -> dict[str, Any]:
        """Return the content of a results file.

        Raises:
            InputError: a number is not finite.
        """
        group, settings = self.data.group, self.settings
        results = {
            "task": str(group.task),
            "method": method_name(settings.method, settings.gradient, settings.metric),
            "topn": settings.topn,
            "model": settings.model,
            "model_path": self.checkpoint.address,
            "type": str(group.type),
            "frequency": str(group.band),
            "clean_baseline_performance": float(outcome.clean.mean()),
            "corrupted_baseline_performance": float(outcome.corrupted.mean()),
            "circuit_performance": float(outcome.circuit.mean()),
            "edges_num": circuit.n_edges,
            "nodes_num": circuit.n_nodes,
            "edge_entropy": _finite(circuit_entropy(circuit)),
            "faithfulness": outcome.faithfulness,
        }
        bad = [key for key, value in results.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            raise InputError(f"{bad[0]} is not a finite number")
        return results if step is None else {**results, "circuit_from": step}


def _target_key(target: Group) -> str:
    return f"test items {target.type}/{target.band}"


def _other_targets(manifest: Path, made_from: Mapping[str, Any]) -> dict[str, tuple[Any, Path]]:
    """Return the digest and file of whole predictions for targets that `made_from` does not have."""
    earlier = read_manifest(manifest) if check(manifest).is_whole else None
    others = {}
    for name in earlier.files if earlier else ():
        parts = Path(name).parts
        if earlier and len(parts) == 3:
            key = f"test items {parts[0].removeprefix('target_type_')}/{parts[1].removeprefix('target_frequency_')}"
            if key in earlier.made_from and key not in made_from:
                others[key] = (earlier.made_from[key], manifest.parent / name)
    return others


def _circuit_path(folder: CircuitFolder, topn: int, step: int | None, suffix: str) -> Path:
    return folder.circuit(topn, suffix, step)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _shape(layout: Layout | Decoder, d_model: int) -> str:
    kind = "parallel" if layout.parallel else "sequential"
    return f"{layout.n_layers} layers, {layout.n_heads} heads, width {d_model}, {kind}"
