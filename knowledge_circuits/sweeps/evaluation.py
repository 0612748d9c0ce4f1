"""Circuit evaluation over checkpoints: the circuit of every source group, its faithfulness, and what it knows alone.

One work item is one source group at one checkpoint. For each circuit of it (the checkpoint's own, or circuits moved
from other checkpoints, whose topology is then fixed while the weights differ):

1. read the scored graph, take the n edges of largest |score|, prune: the circuit, saved as a graph file;
2. run it under patching on the source group's circuit data: `<task>_results.json` with its faithfulness;
3. run it alone under zero ablation on the test items of every target group: a line each with the probability and the
   rank of the answer's first token (rank 0 is best).

The results are written last, so a circuit with results has all its files.
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
from knowledge_circuits.engine.options import Method
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.topology import circuit_entropy
from knowledge_circuits.files import InputError, numbered_jsonl, write_json, write_jsonl
from knowledge_circuits.models.scoring import encode_continuations
from knowledge_circuits.models.tokenization import label_text
from knowledge_circuits.runs import Checkpoint, CircuitFolder, existing_graph, find_graph
from knowledge_circuits.runs import checkpoints as all_checkpoints
from knowledge_circuits.study import Attribute, Group
from knowledge_circuits.sweeps.programs import (
    GroupData,
    LoadedModel,
    ModelLoader,
    refuse_stale,
    replace_graph,
)
from knowledge_circuits.sweeps.queue import WorkItem

#: Circuit sizes of the paper's models; any other takes a quarter of the edges.
PAPER_TOPN = {"gpt2": 8_000, "gpt2-medium": 20_000, "TinyLlama_v1.1": 50_000, "phi-1_5": 50_000}


@dataclass(frozen=True)
class EvaluationSettings:
    """Which circuits are evaluated and how.

    Attributes:
        model: the model's name in the results.
        topn: edges selected before pruning.
        circuit_n, method: where the scored graphs lie.
        batch_size, memory_gb: bounds on memory, which change no result.
        suffix: of the circuits' graph files (.json, .json.gz, .pt).
        overwrite: do again what is there.
    """

    model: str
    topn: int
    circuit_n: int = 300
    method: Method = Method.EAP_IG
    batch_size: int = 32
    memory_gb: float | None = None
    suffix: str = ".json"
    overwrite: bool = False


@dataclass(frozen=True)
class TestItem:
    """One question that a circuit is asked on its own.

    Attributes:
        subject, value: who is asked about, and the right answer.
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

    def questions(self, tokenizer: PreTrainedTokenizerBase) -> tuple[PromptPairs, list[dict[str, Any]]]:
        """The prompts, which need no corrupted side, and what each prediction says of its item."""
        texts = [self.target.task.prompt(item.subject) for item in self.items]
        encoded = encode_continuations(tokenizer, texts, [item.value for item in self.items])
        prompts = [prompt for prompt, _ in encoded]
        labels = [(answer[0], answer[0]) for _, answer in encoded]
        said = [{"ground_truth": item.value, "clean_label": label_text(tokenizer, item.value)} for item in self.items]
        return PromptPairs(prompts, prompts, labels), said


def read_test_items(template: str, wanted: Sequence[Group], quiet: bool = False) -> dict[Attribute, list[TestItems]]:
    """The test items of every target group, by task; an empty group is named and left out.

    Args:
        template: entities (test.jsonl), or circuit data; `{task}` in it stands for each task.
        wanted: the target groups.
        quiet: name nothing (the other processes of a sweep).

    Raises:
        InputError: a bad file.
    """
    found: dict[Attribute, list[TestItems]] = {}
    for task in dict.fromkeys(target.task for target in wanted):
        path = template.replace("{task}", task)
        rows = _test_rows(path, task)
        found[task] = []
        for target in (target for target in wanted if target.task == task):
            items = [item for item in rows if in_group(item.keys, target)]
            if items:
                found[task].append(TestItems(target, items))
            elif not quiet:
                print(f"{target}: no test items in {path}; skipped as a target", file=sys.stderr)
    return found


def _test_rows(path: str, task: Attribute) -> list[TestItem]:
    """The items of a file of people, or of circuit data, whose clean side is asked."""
    first = next((row for _, row in numbered_jsonl(path)), {})
    if "clean_subject" in first:
        rows = read_circuit_data(path, task)
        return [TestItem(row["clean_subject"], row["clean_label"].strip(), row) for row in rows]
    people = read_entities(path)
    return [TestItem(person.full_name, person.value(task).strip(), person.to_row()) for person in people]


def circuit_size(
    model: str, checkpoints: Sequence[Checkpoint], source_groups: Sequence[Group], circuit_n: int, method: Method
) -> int:
    """The default of `--topn`: the paper's number for its models, a quarter of the edges for any other.

    Raises:
        InputError: no graph is there to count the edges of.
    """
    if model in PAPER_TOPN:
        return PAPER_TOPN[model]
    paths = [c.circuit_folder(circuit_n, group, method).graph() for c in checkpoints for group in source_groups]
    for path in paths:
        if found := find_graph(path):
            return read_graph(found).layout.n_edges // 4
    raise InputError(f"{paths[0]}: no such graph, nor one of another chosen group; run circuit_discovery.py first")


def find_sources(names: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints that `--circuit_from` names, each once; see `find_source`.

    Raises:
        InputError: two different ones are of the same step, so that their files would have the same names.
    """
    sources = list(dict.fromkeys(find_source(name, checkpoints) for name in names))
    by_step: dict[int | None, Checkpoint] = {}
    for source in sources:
        other = by_step.setdefault(source.step, source)
        if other != source:
            raise InputError(
                f"--circuit_from: {other.path} and {source.path} are both of step {source.step}, which names the files;"
                " move the circuits of one at a time, the second with another --output_dir"
            )
    return sources


def find_source(name: str, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The checkpoint that one value of `--circuit_from` names.

    Args:
        name: a step or `checkpoint-<step>` of the evaluated checkpoints, or a checkpoint's folder.
        checkpoints: those that are evaluated; a folder among them has its results where they have them.

    Raises:
        InputError: there is none, or its name tells no step.
    """
    for checkpoint in checkpoints:
        if name in (str(checkpoint.step), checkpoint.name) or Path(name).absolute() == Path(checkpoint.path).absolute():
            return checkpoint
    if not Path(name).is_dir():
        known = ", ".join(str(checkpoint.step) for checkpoint in checkpoints)
        raise InputError(f"--circuit_from {name}: neither a checkpoint's folder nor one of the steps {known}")
    found = all_checkpoints(name)
    if len(found) != 1 or found[0].step is None:
        raise InputError(f"--circuit_from {name}: not one checkpoint-<step> folder")
    return found[0]


def evaluation_items(
    checkpoints: Sequence[Checkpoint],
    sources: Sequence[Checkpoint],
    source_groups: Sequence[GroupData],
    targets: Mapping[Attribute, Sequence[TestItems]],
    loader: ModelLoader,
    settings: EvaluationSettings,
) -> list[WorkItem]:
    """The work of evaluating every source group's circuits at every checkpoint.

    Args:
        checkpoints: whose weights run the circuits.
        sources: whose circuits are run; none means each checkpoint's own.
        source_groups: those of the circuits, with their circuit data, none of them empty.
        targets: the test items by task.
        loader: loads each checkpoint once.
        settings: see `EvaluationSettings`.

    Raises:
        InputError: there is work to do and the data are not of the first checkpoint's tokenizer, or the circuits that
            are there are not those of the graphs that are there (one of each checkpoint is looked at).
    """
    evaluations = [
        GroupEvaluation(checkpoint, sources, data, targets.get(data.group.task, ()), settings)
        for checkpoint in checkpoints
        for data in source_groups
    ]
    if not all(evaluation.done() for evaluation in evaluations):
        tokenizer = loader.tokenizer(checkpoints[0])
        for data in source_groups:
            data.pairs(tokenizer)
    for checkpoint in checkpoints:
        finished = [one for one in evaluations if one.checkpoint == checkpoint and one.done()]
        for evaluation in finished[:1]:
            evaluation.refuse_stale()
    return [
        WorkItem(
            name=f"{evaluation.checkpoint.name}: {evaluation.data.group}",
            batch=evaluation.checkpoint.path,
            cost=evaluation.cost,
            done=evaluation.done,
            run=partial(_run, evaluation, loader),
        )
        for evaluation in evaluations
    ]


def _run(evaluation: GroupEvaluation, loader: ModelLoader) -> None:
    evaluation.run(loader.load(evaluation.checkpoint))


@dataclass(frozen=True)
class GroupEvaluation:
    """One work item: the circuits of one source group in the weights of one checkpoint."""

    checkpoint: Checkpoint
    sources: Sequence[Checkpoint]
    data: GroupData
    targets: Sequence[TestItems]
    settings: EvaluationSettings

    @property
    def cost(self) -> float:
        """Prompts to run: clean, corrupted and circuit for faithfulness, one for each test item."""
        prompts = 3 * self.data.size + sum(len(items.items) for items in self.targets)
        return prompts * max(1, len(self.sources))

    @property
    def origins(self) -> dict[int | None, Checkpoint]:
        """The checkpoints whose circuits are run, by their steps; None is the checkpoint's own circuit."""
        return {source.step: source for source in self.sources} or {None: self.checkpoint}

    @property
    def bounds(self) -> dict[str, Any]:
        """What the engine is told of memory."""
        return {"batch_size": self.settings.batch_size, "memory_gb": self.settings.memory_gb}

    def folder(self, checkpoint: Checkpoint) -> CircuitFolder:
        return checkpoint.circuit_folder(self.settings.circuit_n, self.data.group, self.settings.method)

    def files(self, step: int | None) -> list[Path]:
        """What one circuit's evaluation writes."""
        folder, topn = self.folder(self.checkpoint), self.settings.topn
        predictions = [folder.predictions(topn, items.target.type, items.target.band, step) for items in self.targets]
        return [folder.circuit(topn, self.settings.suffix, step), folder.results(topn, step), *predictions]

    def done(self) -> bool:
        return not self.missing()

    def missing(self) -> list[int | None]:
        """Of which of the circuits something is still to be written."""
        if self.settings.overwrite:
            return list(self.origins)
        return [step for step in self.origins if not all(path.exists() for path in self.files(step))]

    def refuse_stale(self) -> None:
        """Refuse to take for finished what comes from other graphs than those that are there, or from other test items.

        Raises:
            InputError: with what differs.
        """
        for step, origin in self.origins.items():
            if graph := find_graph(self.folder(origin).graph()):
                path = self.folder(self.checkpoint).circuit(self.settings.topn, self.settings.suffix, step)
                refuse_stale(path, read_graph(path).meta, _provenance(read_graph(graph)))
            for items in self.targets[:1]:
                target = items.target
                path = self.folder(self.checkpoint).predictions(self.settings.topn, target.type, target.band, step)
                rows = [row.get("ground_truth") for _, row in numbered_jsonl(path)]
                if rows != [item.value for item in items.items]:
                    raise InputError(
                        f"{path} is about {len(rows)} other test items than the {len(items.items)} that are asked now;"
                        " --overwrite asks again everywhere, another --output_dir keeps it"
                    )

    def run(self, model: LoadedModel) -> None:
        """Evaluate the circuits that lack files; the prompts' clean and corrupted runs are shared by all of them."""
        missing = self.missing()
        circuits = [self.circuit(model, self.origins[step]) for step in missing]
        pairs = self.data.pairs(model.tokenizer)
        measured = evaluate(model.decoder, circuits, pairs, **self.bounds)
        for step, circuit, outcome in zip(missing, circuits, measured, strict=True):
            self.write_predictions(model, circuit, step)
            self.write_results(circuit, outcome, step)

    def circuit(self, model: LoadedModel, origin: Checkpoint) -> Graph:
        """The pruned circuit of a checkpoint's scored graph.

        Raises:
            InputError: no such graph, one of another model, or fewer edges than were asked for.
        """
        path = existing_graph(self.folder(origin).graph())
        graph = read_graph(path)
        decoder = model.decoder
        if (
            graph.layout != layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
            or graph.d_model not in (decoder.d_model, 0)  # EAP-IG 1 does not state it
        ):
            raise InputError(
                f"{path}: the graph of another model ({_shape(graph.layout, graph.d_model)};"
                f" {model.checkpoint.name} has {_shape(decoder, decoder.d_model)})"
            )
        if self.settings.topn > graph.layout.n_edges:
            raise InputError(f"--topn {self.settings.topn}: the graph has only {graph.layout.n_edges} edges")
        return prune(top_n(graph, self.settings.topn)).with_meta(topn=self.settings.topn)

    def write_predictions(self, model: LoadedModel, circuit: Graph, step: int | None) -> None:
        """Run the circuit alone on the test items of all target groups together: more prompts of a length per pass."""
        asked = [items.questions(model.tokenizer) for items in self.targets]
        if not asked:
            return
        outcome = standalone(model.decoder, circuit, PromptPairs.joined([pairs for pairs, _ in asked]), **self.bounds)
        measured = zip(outcome.token_prob.tolist(), outcome.token_rank.tolist(), strict=True)
        folder = self.folder(self.checkpoint)
        for items, (_, said) in zip(self.targets, asked, strict=True):
            rows = [
                {**row, "token_prob": prob, "token_rank": rank, **item.keys}
                for row, item, (prob, rank) in zip(said, items.items, islice(measured, len(said)), strict=True)
            ]
            target = items.target
            write_jsonl(folder.predictions(self.settings.topn, target.type, target.band, step), rows)

    def write_results(self, circuit: Graph, outcome: Evaluation, step: int | None) -> None:
        """Save the circuit, and last its results."""
        group, settings, folder = self.data.group, self.settings, self.folder(self.checkpoint)
        replace_graph(circuit, partial(_circuit_path, folder, settings.topn, step), settings.suffix, settings.overwrite)
        results = {
            "task": str(group.task),
            "method": str(settings.method),
            "topn": settings.topn,
            "model": settings.model,
            "model_path": self.checkpoint.path,
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
        moved = {} if step is None else {"circuit_from": step}
        write_json(folder.results(settings.topn, step), results | moved)


def _circuit_path(folder: CircuitFolder, topn: int, step: int | None, suffix: str) -> Path:
    return folder.circuit(topn, suffix, step)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _provenance(graph: Graph) -> dict[str, Any]:
    """What a graph's meta says of how it was scored; the version that did it does not count."""
    return {key: value for key, value in graph.meta.items() if key != "version"}


def _shape(layout: Layout | Decoder, d_model: int) -> str:
    kind = "parallel" if layout.parallel else "sequential"
    return f"{layout.n_layers} layers, {layout.n_heads} heads, width {d_model}, {kind}"
