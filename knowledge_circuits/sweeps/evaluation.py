"""Circuit evaluation over checkpoints: the circuit of every source group, its faithfulness and standalone predictions.

One work item is one source group at one checkpoint. Its clean and corrupted prompts run once for all its circuits: of
every size, and the checkpoint's own or those transferred from other checkpoints (their origins), whose topology is then
fixed while the weights differ. For each circuit:

1. read the scored graph, take the n edges of largest |score|, prune: the circuit, saved as a graph file;
2. run it under patching on the source group's circuit data: `<task>_results.json` with its faithfulness;
3. run it alone under zero ablation on the test items of every target group: a line each with the probability and the
   rank of the answer's first token (rank 0 is best).

The unit of a manifest is a circuit with its results and predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from knowledge_circuits.engine import floors
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import Evaluation, evaluate, standalone, standalones
from knowledge_circuits.engine.graph import Graph, Layout, layout_of
from knowledge_circuits.engine.graph_files import read_details, read_graph
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import mean_scores, prune, top_n
from knowledge_circuits.engine.stability import keep_stable_signs
from knowledge_circuits.engine.topology import circuit_entropy
from knowledge_circuits.files import InputError, read_json, read_jsonl, write_json, write_jsonl
from knowledge_circuits.manifest import (
    FileRecord,
    Manifest,
    State,
    Status,
    begin,
    check,
    finish,
    read_manifest,
    remove_replaced,
)
from knowledge_circuits.runs import Checkpoint, CircuitFolder, Coordinates, existing_graph, find_graph
from knowledge_circuits.study import Columns
from knowledge_circuits.sweeps.chosen_circuits import EvaluationSettings
from knowledge_circuits.sweeps.discovery import graphs_origin
from knowledge_circuits.sweeps.groups import AnyGroupData, check_pairs
from knowledge_circuits.sweeps.model_loader import LoadedModel, ModelLoader
from knowledge_circuits.sweeps.processes import WorkItem
from knowledge_circuits.sweeps.programs import refuse_misplaced, replace_graph
from knowledge_circuits.sweeps.targets import Queries, TestItem, TestItems


def evaluation_items(
    checkpoints: Sequence[Checkpoint],
    origins: Sequence[Checkpoint],
    source_groups: Sequence[AnyGroupData],
    targets: Mapping[str, Sequence[TestItems]],
    loader: ModelLoader,
    settings: EvaluationSettings,
) -> list[WorkItem]:
    """Return the work of evaluating every source group's circuits at every checkpoint.

    Args:
        checkpoints: whose weights run the circuits.
        origins: whose circuits are run; none means each checkpoint's own.
        source_groups: those of the circuits, with their circuit data, none of them empty.
        targets: the test items by task.

    Raises:
        InputError: the data are not of the first checkpoint's tokenizer, or lack the answers that the metric reads; or
            no stability was measured for `same_sign`.
    """
    check_pairs(source_groups, loader.tokenizer(checkpoints[0]), settings.metric)
    evaluations = [
        GroupEvaluation(checkpoint, origins, data, targets.get(data.group.task, ()), loader, settings)
        for checkpoint in checkpoints
        for data in source_groups
    ]
    for evaluation in evaluations if settings.same_sign else ():
        evaluation.refuse_unmeasured()
    return [evaluation.item() for evaluation in evaluations]


@dataclass(frozen=True)
class CircuitKey:
    """A circuit of a work item: its edges before pruning, and the step of its origin (None: the checkpoint's own)."""

    topn: int
    origin: int | None = None


@dataclass(frozen=True)
class GroupEvaluation:
    """One work item: the circuits of one source group in the weights of one checkpoint."""

    checkpoint: Checkpoint
    origins: Sequence[Checkpoint]
    data: AnyGroupData
    targets: Sequence[TestItems]
    loader: ModelLoader
    settings: EvaluationSettings

    def item(self) -> WorkItem:
        name = f"{self.checkpoint.name}: {self.data.group}"
        return WorkItem(name, self.checkpoint.address, self.cost, self.states, self.run, self.adopt)

    @property
    def cost(self) -> float:
        """Prompts to run: clean, corrupted, and for each circuit the patched prompts and the test items."""
        circuits = len(self.settings.topn) * max(1, len(self.origins))
        return 2 * self.data.size + circuits * (self.data.size + sum(len(items.items) for items in self.targets))

    @property
    def by_step(self) -> dict[int | None, Checkpoint]:
        """The checkpoints whose circuits are run, by their steps; None is the checkpoint's own circuit."""
        return {origin.step: origin for origin in self.origins} or {None: self.checkpoint}

    @property
    def keys(self) -> list[CircuitKey]:
        return [CircuitKey(topn, step) for topn in self.settings.topn for step in self.by_step]

    @property
    def folder(self) -> CircuitFolder:
        return self.settings.folder(self.checkpoint, self.data.group)

    def manifest(self, key: CircuitKey) -> Path:
        return self.folder.circuit_manifest(key.topn, key.origin)

    def texts(self, key: CircuitKey) -> list[Path]:
        """Return the results and predictions of one circuit."""
        predictions = [self.folder.predictions(key.topn, items.target.columns, key.origin) for items in self.targets]
        return [self.folder.results(key.topn, key.origin), *predictions]

    def made_from(self, key: CircuitKey) -> dict[str, Any]:
        """Return everything that one circuit's files depend on; without the graph's part if the graph is gone."""
        settings = self.settings
        scored = settings.scored_folders(self.by_step[key.origin], self.data.group)
        stable_signs: dict[str, Any] = {}
        if settings.same_sign:
            for folder in (one for one in scored if one.details.exists()):
                prefix = f"{folder.coordinates.method} " if len(scored) > 1 else ""
                stable_signs[f"{prefix}details"] = FileRecord.of(folder.details).sha256[:16]
            stable_signs["same_sign"] = settings.same_sign
        return {
            **graphs_origin(scored),
            **stable_signs,
            **({"signed": True} if settings.signed else {}),
            **self.loader.facts(self.checkpoint),
            **{"prompts": self.data.digest, "topn": key.topn, "metric": str(settings.metric)},
            "intervention": str(settings.intervention),
            **({"floors": True} if settings.floors and key.origin is None else {}),
            **{_target_key(items.target.columns): items.digest for items in self.targets},
        }

    def state(self, key: CircuitKey) -> State:
        """Return what became of one circuit's files."""
        texts = self.texts(key)
        state = check(self.manifest(key), self.made_from(key), texts, self.settings.verify, beside=texts[:1])
        if state.is_whole and self.lacks_floors(key):
            return State(Status.MISSING, state.path, "without floors of the group's own test items")
        return state

    def lacks_floors(self, key: CircuitKey) -> bool:
        """Whether results lack floors that are asked for; random Hit@10 takes the group's own test items."""
        if not self.settings.floors or key.origin is not None:
            return False
        results = read_json(self.folder.results(key.topn))
        if "random_faithfulness" not in results:
            return True
        own = any(items.target == self.data.group for items in self.targets)
        return own and bool(results.get("edges_num")) and results.get("random_hit10") is None

    def states(self) -> list[State]:
        return [self.state(key) for key in self.keys]

    def refuse_unmeasured(self) -> None:
        """Raise InputError if circuits are to be made and no stability was measured when their graphs were scored."""
        origins = self.by_step.values()
        for folder in (one for origin in origins for one in self.settings.scored_folders(origin, self.data.group)):
            manifest = read_manifest(folder.manifest)
            measured = folder.details.exists() and (manifest is None or "stability" in manifest.made_from)
            if not measured and find_graph(folder.graph()) and self.missing:
                raise _without_stability(folder)

    @property
    def missing(self) -> list[CircuitKey]:
        """The circuits that are to be made."""
        return [key for key in self.keys if self.settings.overwrite or not self.state(key).is_whole]

    def adopt(self) -> None:
        """Write manifests for circuits with all their files and none; refuse those of other graphs or test items."""
        for key in self.keys:
            circuit = find_graph(self.folder.circuit(key.topn, origin=key.origin))
            texts = self.texts(key)
            there = all(path.exists() for path in texts)
            if circuit is None or not there or self.manifest(key).exists() or self.lacks_floors(key):
                continue
            self._refuse_other_circuit(circuit, key)
            for items, path in zip(self.targets, texts[1:], strict=True):
                rows = read_jsonl(path)
                if len(rows) != len(items.items) or not all(map(TestItem.is_of, items.items, rows)):
                    raise InputError(f"{path} is about other test items than those given; --overwrite recomputes it")
            finish(self.manifest(key), "circuit", self.made_from(key), [circuit, *texts])

    def _refuse_other_circuit(self, path: Path, key: CircuitKey) -> None:
        """Raise InputError if a circuit is not that of the scored graphs, where these are there."""
        origin = self.by_step[key.origin]
        paths = [find_graph(folder.graph()) for folder in self.settings.scored_folders(origin, self.data.group)]
        graphs = [read_graph(one) for one in paths if one]
        if len(graphs) < len(paths):
            return
        scored, circuit = graphs[0] if len(graphs) == 1 else mean_scores(graphs), read_graph(path)
        now, meta = {**scored.meta, "version": None}, {**circuit.meta, "version": None}
        differing = [
            f"{name} {meta.get(name)!r}, now {value!r}" for name, value in now.items() if meta.get(name) != value
        ]
        if not differing and not torch.equal(circuit.in_graph, self.circuit(scored, origin, key.topn).in_graph):
            differing = ["other edges than these settings choose"]
        if differing:
            raise InputError(f"{path} was made with {'; '.join(differing)}; --overwrite recomputes it")

    def run(self) -> None:
        """Evaluate the circuits that are not whole; the prompts' clean and corrupted runs are shared by all of them."""
        model = self.loader.load(self.checkpoint)
        missing = self.missing
        scored = {step: self.scored(model, self.by_step[step]) for step in dict.fromkeys(key.origin for key in missing)}
        circuits = [self.circuit(scored[key.origin], self.by_step[key.origin], key.topn) for key in missing]
        sizes = self.other_sizes(scored[None]) if None in scored else []
        randoms = [self.random_circuits(circuit, key, model) for key, circuit in zip(missing, circuits, strict=True)]
        settings, pairs = self.settings, self.data.pairs(model.tokenizer)
        options = {"intervention": settings.intervention, "metric": settings.metric, **settings.bounds}
        together = [*sizes, *chain.from_iterable(randoms)]
        outcomes = iter(evaluate(model.decoder, circuits, pairs, together=together, **options))
        own, others = list(islice(outcomes, len(circuits))), list(islice(outcomes, len(sizes)))
        queries = {items.target: items.questions(model.tokenizer) for items in self.targets}
        own_items = queries[self.data.group][0] if self.data.group in queries else None
        for key, circuit, outcome, drawn in zip(missing, circuits, own, randoms, strict=True):
            results = self.results(circuit, outcome, key, own_items)
            if settings.floors and key.origin is None:
                sized = {one.n_edges: _faithfulness(run) for one, run in zip(sizes, others, strict=True)}
                sized[circuit.n_edges] = _faithfulness(outcome)
                of_randoms = [_faithfulness(run) for run in islice(outcomes, len(drawn))]
                results |= self.floors(model, sized, of_randoms, drawn, own_items)
            self.write(model, circuit, results, key, list(queries.values()))

    def other_sizes(self, graph: Graph) -> list[Graph]:
        """Return circuits of other sizes than `topn` from the same scores; none without --floors."""
        shares = floors.SIZE_SHARES if self.settings.floors else ()
        return [prune(top_n(graph, round(share * graph.layout.n_edges), not self.settings.signed)) for share in shares]

    def random_circuits(self, circuit: Graph, key: CircuitKey, model: LoadedModel) -> list[Graph]:
        """Return random circuits of the same size; none without --floors, of no edges or of transferred circuits."""
        if not self.settings.floors or key.origin is not None or not circuit.n_edges:
            return []
        return floors.random_circuits(circuit.layout, circuit.n_edges, model.decoder.d_model)

    def floors(
        self,
        model: LoadedModel,
        sized: Mapping[int, float],
        of_randoms: Sequence[float],
        randoms: Sequence[Graph],
        own_items: PromptPairs | None,
    ) -> dict[str, Any]:
        """Return what a results file says of other sizes and of random circuits; null for what cannot be told.

        `sized` is faithfulness by number of edges, of the circuit and those of other sizes; `own_items` are the prompts
        of the test items of the circuit's own group.
        """
        by_size = dict(sorted((edges, faithfulness) for edges, faithfulness in sized.items() if edges))
        needed = floors.edges_for(list(by_size), list(by_size.values())) if by_size else math.nan
        alone = standalones(model.decoder, randoms, own_items, **self.settings.bounds) if own_items else []
        hits = [one.hit_at_10 for one in alone]
        return {
            "edges_for_90": finite_or_none(needed),
            "random_faithfulness": finite_or_none(sum(of_randoms) / len(of_randoms)) if of_randoms else None,
            "random_hit10": sum(hits) / len(hits) if hits else None,
        }

    def scored(self, model: LoadedModel, origin: Checkpoint) -> Graph:
        """Return a checkpoint's scored graph, or the mean of several ways of scoring.

        Raises:
            InputError: no such graph, a damaged one, one of another model, group or checkpoint, or too few edges; or
                the details of their mean are those of other graphs.
        """
        folders = self.settings.scored_folders(origin, self.data.group)
        graphs = [self._read_scored(model, folder, origin) for folder in folders]
        if len(graphs) == 1:
            return graphs[0]
        mean = self.settings.scored_folder(origin, self.data.group)
        state = check(mean.manifest, graphs_origin(folders))
        if state.status is Status.OTHER:
            raise InputError(
                f"{mean.details}: the stability of other graphs' mean ({state.detail}); run circuit_discovery.py "
                "--ensemble again with --overwrite"
            )
        return mean_scores(graphs)

    def circuit(self, scored: Graph, origin: Checkpoint, topn: int) -> Graph:
        """Return the pruned circuit of a checkpoint's scored graph; `same_sign` needs the graph's stability.

        Raises:
            InputError: no stability was measured for `same_sign`.
        """
        share, signed = self.settings.same_sign, self.settings.signed
        circuit = top_n(scored, topn, not signed)
        meta = {"topn": topn, **({"signed": True} if signed else {})}
        if not share:
            return prune(circuit).with_meta(**meta)
        for folder in self.settings.scored_folders(origin, self.data.group):
            details = read_details(folder.details, circuit.layout) if folder.details.exists() else None
            if details is None or details.stability is None:
                raise _without_stability(folder)
            circuit = keep_stable_signs(circuit, details.stability, share)
        return prune(circuit).with_meta(**meta, same_sign=share)

    def _read_scored(self, model: LoadedModel, folder: CircuitFolder, origin: Checkpoint) -> Graph:
        path = existing_graph(folder.graph())
        facts = self.loader.facts(origin)
        weights = {name: fact for name, fact in facts.items() if name in ("weights", "base model")}
        state = check(folder.manifest, weights, verify=True, beside=[path])
        if state.status not in (Status.WHOLE, Status.UNKNOWN):
            raise InputError(f"{path}: the graph is {state.status} ({state.detail}); run circuit_discovery.py again")
        graph = read_graph(path)
        refuse_misplaced(graph, path, self.data.group, origin.name)
        decoder = model.decoder
        if (
            graph.layout != layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
            or graph.d_model not in (decoder.d_model, 0)  # EAP-IG 1 does not state it
        ):
            raise InputError(
                f"{path}: the graph of another model ({_shape(graph.layout, graph.d_model)};"
                f" {model.checkpoint.name} has {_shape(decoder, decoder.d_model)})"
            )
        return graph

    def write(
        self, model: LoadedModel, circuit: Graph, results: dict[str, Any], key: CircuitKey, queries: Sequence[Queries]
    ) -> None:
        """Write a circuit with its results and predictions, its manifest last.

        What is whole and not measured now stays part of the unit, unless everything is recomputed: predictions for
        other targets, floors, and the chance of Hit@10 where the group's own test items are not given.
        """
        manifest, made_from, settings = self.manifest(key), self.made_from(key), self.settings
        results_path = self.folder.results(key.topn, key.origin)
        others: list[Path] = []
        earlier = read_manifest(manifest) if not settings.overwrite and check(manifest, verify=True).is_whole else None
        if earlier:
            others = _other_targets(self.folder, manifest, earlier, made_from)
            known = read_json(results_path)
            results = known | {name: value for name, value in results.items() if value is not None}
            made_from = earlier.made_from | made_from
        begin(manifest, "circuit", made_from)
        self.write_predictions(model, circuit, key, queries)
        write_json(results_path, results)
        path_of = partial(self.folder.circuit, key.topn, origin=key.origin)
        graph = replace_graph(circuit, path_of, settings.suffix, manifest, settings.overwrite)
        files = [graph, *self.texts(key), *others]
        if settings.overwrite:
            remove_replaced(manifest, files)
        finish(manifest, "circuit", made_from, files)

    def write_predictions(
        self, model: LoadedModel, circuit: Graph, key: CircuitKey, queries: Sequence[Queries]
    ) -> None:
        """Run the circuit alone on the test items of all target groups together: more prompts of a length per pass."""
        if not queries:
            return
        joined = PromptPairs.joined([pairs for pairs, _ in queries])
        outcome = standalone(model.decoder, circuit, joined, **self.settings.bounds)
        measured = zip(outcome.token_prob.tolist(), outcome.token_rank.tolist(), strict=True)
        for items, (_, first_keys), path in zip(self.targets, queries, self.texts(key)[1:], strict=True):
            parts = zip(first_keys, items.items, islice(measured, len(first_keys)), strict=True)
            rows = [{**row, "token_prob": p, "token_rank": rank, **item.keys} for row, item, (p, rank) in parts]
            write_jsonl(path, rows)

    def results(
        self, circuit: Graph, outcome: Evaluation, key: CircuitKey, own_items: PromptPairs | None
    ) -> dict[str, Any]:
        """Return the content of a results file; refuse a number that is not finite."""
        group, settings = self.data.group, self.settings
        _, low, high = floors.mean_interval((outcome.clean - outcome.corrupted).numpy())
        results = {
            "task": str(group.task),
            "method": settings.name,
            "topn": key.topn,
            "model": settings.model,
            "model_path": self.checkpoint.address,
            **group.keys,
            "clean_baseline_performance": float(outcome.clean.mean()),
            "corrupted_baseline_performance": float(outcome.corrupted.mean()),
            "circuit_performance": float(outcome.circuit.mean()),
            "edges_num": circuit.n_edges,
            "nodes_num": circuit.n_nodes,
            "edge_entropy": finite_or_none(circuit_entropy(circuit)),
            "faithfulness": outcome.faithfulness,
            "prompts": len(outcome.clean),
            "clean_minus_corrupted_low": finite_or_none(low),
            "clean_minus_corrupted_high": finite_or_none(high),
            "chance_hit10": floors.chance_of_hits([one for one, _ in own_items.labels])[0] if own_items else None,
        }
        for name, value in results.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name} is not a finite number")
        return results if key.origin is None else {**results, "circuit_from": key.origin}


def _target_key(columns: Columns) -> str:
    return f"test items {'/'.join(value for _, value in columns)}"


def _other_targets(folder: CircuitFolder, path: Path, earlier: Manifest, made_from: Mapping[str, Any]) -> list[Path]:
    """Return an earlier manifest's predictions for targets that `made_from` does not have."""
    others = []
    for file in (path.parent / name for name in earlier.files):
        read = Coordinates.read(file.relative_to(folder.output))
        if read is not None and read[0].target and _target_key(read[0].target) not in made_from:
            others.append(file)
    return others


def _without_stability(folder: CircuitFolder) -> InputError:
    return InputError(f"{folder.details}: no stability for --same_sign; run circuit_discovery.py --stability")


def _faithfulness(outcome: Evaluation) -> float:
    return math.nan if outcome.faithfulness is None else outcome.faithfulness


def finite_or_none(number: float | None) -> float | None:
    """Return a number as results say it: null where it is undefined."""
    return number if number is not None and math.isfinite(number) else None


def _shape(layout: Layout | Decoder, d_model: int) -> str:
    kind = "parallel" if layout.parallel else "sequential"
    return f"{layout.n_layers} layers, {layout.n_heads} heads, width {d_model}, {kind}"
