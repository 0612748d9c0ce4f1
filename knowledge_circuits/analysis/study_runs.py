"""Measure the runs of a designed study and write their tables (`study_tables`).

relevance   a run's probe records become facts.csv: which fact was known at which epoch, and who was known before
depth       every checkpoint's circuits become circuits.csv, in three steps:
            1. attribution prompt by prompt, so that halves of the prompts cost nothing more
            2. the circuit of all prompts and of either half (top quarter of the edges, pruned); its entropy, layers,
               faithfulness and Hit@10, the faithfulness of other sizes, and random circuits of the same size
            3. what changed since the checkpoint one epoch earlier
            Steps 1 and 2 are saved beside the checkpoint (study_circuits.npz), so that an interrupted measurement goes
            on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from knowledge_circuits.analysis.circuit_tables import HIT_RANK
from knowledge_circuits.analysis.dynamics import read_dynamics
from knowledge_circuits.analysis.study_tables import (
    People,
    Scalar,
    StudyKind,
    StudyRun,
    Told,
    finished,
    write_study_run,
)
from knowledge_circuits.corpus.mirrored import PAST, TAUGHT
from knowledge_circuits.corpus.prompt_pairs import group_pairs, read_circuit_data
from knowledge_circuits.engine import floors, topology
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import evaluate, standalone, standalones
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError, atomic_write, read_bytes
from knowledge_circuits.manifest import Status, begin, check, finish
from knowledge_circuits.models.loading import weights_digest
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.records import LoggedState, shape
from knowledge_circuits.run_config import RunConfig, read_run_config
from knowledge_circuits.runs import Checkpoint, Run
from knowledge_circuits.study import TASKS, Band, Group, KnowledgeType, groups, task_file
from knowledge_circuits.training.checkpoints import is_finished

Mask = NDArray[np.bool_]
#: Of one group: its row, membership [E], and the membership [s, 2, E] of the circuits of either half of its prompts.
MeasuredGroup = tuple[dict[str, Any], Mask, Mask]

#: A circuit is this share of all edges, before pruning.
TOP_SHARE = 0.25
#: Random circuits are run at epochs that are a multiple of this one.
RANDOM_EVERY = 4


# --- what a run is ----------------------------------------------------------------------------------------------------


def study_run(run: Run, kind: StudyKind) -> StudyRun:
    """Describe a run from its own configuration: seed, mirror, dose, and what all runs of a study share.

    Raises:
        InputError: its data are not a mirrored set.
    """
    configuration = read_run_config(run)
    flags = configuration.data.generated.get("mirrored_data_generation")
    if not flags:
        raise InputError(f"{run.path}: not a run on data of data/mirrored_data_generation.py")
    varied = {"mirror": flags["mirror"].upper(), "dose": flags["dose"]} if kind is StudyKind.RELEVANCE else {}
    left_out = {"seed", "pool_dir", "people_file", "template_dir", "birth_years", *varied}
    settings: dict[str, Scalar] = {name: value for name, value in flags.items() if name not in left_out}
    settings |= _training_settings(configuration, "")
    past = Run(Path(str(configuration.arguments.model_name_or_path)).parents[1])
    settings |= _training_settings(read_run_config(past), "past_")
    return StudyRun(study=kind, seed=flags["seed"], **varied, settings=settings)


def _training_settings(configuration: RunConfig, prefix: str) -> dict[str, Scalar]:
    """Return the settings of a training run that decide its weights; none where its folder has no run_config.json."""
    flags = configuration.as_dict().get("arguments", {})
    names = ("learning_rate", "lr_scheduler_type", "num_train_epochs", "block_size")
    settings = {name: flags[name] for name in names if name in flags}
    if configuration.sequences_per_step is not None:
        settings["sequences_per_step"] = configuration.sequences_per_step
    return {f"{prefix}{name}": value for name, value in settings.items()}


# --- relevance --------------------------------------------------------------------------------------------------------


def fact_table(run: Run) -> pd.DataFrame:
    """Return one row per probe and fact of a run, see `study_tables`; who is known is of the type revised.

    The past's facts about unknown people are left out, since no text tells them.
    """
    if not run.knowledge_dynamics.exists():
        raise InputError(f"{run.path}: no probe records; train with --probe_file")
    facts = read_dynamics(run.knowledge_dynamics).facts
    told = {str(name): str(Told.PAST) for name in PAST} | {str(name): str(Told.NEW) for name in TAUGHT}
    table = pd.DataFrame(
        {
            "person": facts["full_name"],
            "attribute": facts["attribute"].astype(str),
            "told": facts["attribute"].map(lambda name: told[str(name)]),
            "known": (facts["type"] == str(KnowledgeType.REVISED)).astype(int),
            "band": facts["band"].astype(str),
            "epoch": facts["epoch"],
            "accuracy": (facts["token_rank"] == 0).astype(int),
            "hit10": (facts["token_rank"] <= HIT_RANK).astype(int),
        }
    )
    table = table[(table["told"] == str(Told.NEW)) | (table["known"] == 1)]
    return table.sort_values(["person", "attribute", "epoch"], kind="stable", ignore_index=True)


# --- depth ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasuredCircuits:
    """The circuits of all groups at one checkpoint; g groups, s splits, E real edges.

    Attributes:
        rows: one per group, with the columns of circuits.csv that need no other checkpoint.
        members: [g, E] the circuits' membership.
        halves: [g, s, 2, E] that of the circuits of either half of the prompts.
    """

    rows: list[dict[str, Any]]
    members: Mask
    halves: Mask

    @classmethod
    def once(
        cls, path: Path, unit: str, made_from: Mapping[str, Any], measure: Callable[[], Iterable[MeasuredGroup]]
    ) -> MeasuredCircuits:
        """Read what was measured before from the same things, or measure all groups and save them.

        Args:
            path: of an .npz file, which is written atomically, one bit per edge; its manifest stands beside it.
            unit: what the manifest calls it.
            measure: measures group by group.
        """
        manifest = path.with_name(f"{path.stem}_manifest.json")
        state = check(manifest, made_from, [path], verify=True)
        if state.is_whole:
            return cls._read(path)
        if state.status is not Status.MISSING:
            print(f"{state}; measured again")
        begin(manifest, unit, made_from)
        rows, members, halves = zip(*measure(), strict=True)
        measured = cls(list(rows), np.stack(members), np.stack(halves))
        measured._write(path)
        finish(manifest, unit, made_from, [path])
        return measured

    @classmethod
    def _read(cls, path: Path) -> MeasuredCircuits:
        with np.load(path, allow_pickle=False) as saved:
            edges = int(saved["edges"])
            bits = [np.unpackbits(saved[name], axis=-1, count=edges) for name in ("members", "halves")]
            return cls(json.loads(str(saved["rows"])), *(part.astype(bool) for part in bits))

    def _write(self, path: Path) -> None:
        with atomic_write(path, "wb") as file:
            np.savez_compressed(
                file,
                rows=json.dumps(self.rows),
                members=np.packbits(self.members, axis=-1),
                halves=np.packbits(self.halves, axis=-1),
                edges=self.members.shape[-1],
            )

    def change_since(self, before: MeasuredCircuits | None, group: int) -> tuple[float, float, float]:
        """Return a group's 1 - edge Jaccard, turnover and turnover floor (`floors.turnover`); NaN without `before`."""
        if before is None:
            return np.nan, np.nan, np.nan
        alike = float(topology.jaccard(before.members[group], self.members[group]))
        return 1 - alike, *floors.turnover(before.halves[group], self.halves[group])


def circuit_and_halves(decoder: Decoder, pairs: PromptPairs, batch_size: int = 64) -> tuple[Graph, Graph, Mask]:
    """Score a group's prompts one by one with EAP-IG.

    Returns:
        The scored graph, its circuit of TOP_SHARE of the edges, and the membership of the circuits of both halves of
        the prompts in s splits, [s, 2, E].
    """
    scored = attribute(decoder, pairs, per_prompt=True, batch_size=batch_size)
    scores = scored.prompt_scores
    assert scores is not None
    topn = round(TOP_SHARE * scored.layout.n_edges)

    def members(half: NDArray[np.int64]) -> Mask:
        mean = scores[torch.from_numpy(half)].mean(dim=0)
        return topology.membership(prune(top_n(replace(scored, scores=mean), topn)))

    halves = np.stack([[members(half) for half in split] for split in floors.halves(len(pairs))])
    return scored, prune(top_n(scored, topn)), halves


def measure_group(decoder: Decoder, pairs: PromptPairs, epoch: float) -> MeasuredGroup:
    """Measure a group's circuit at one checkpoint; `pairs` are the same at all of them."""
    scored, circuit, halves = circuit_and_halves(decoder, pairs)
    sizes = [circuit, *(prune(top_n(scored, round(share * scored.layout.n_edges))) for share in floors.SIZE_SHARES)]
    is_random = epoch % RANDOM_EVERY == 0
    randoms = floors.random_circuits(scored.layout, circuit.n_edges, decoder.d_model) if is_random else []
    main, *others = evaluate(decoder, [*sizes, *randoms], pairs)
    mean, low, high = floors.mean_interval((main.clean - main.corrupted).numpy())
    faithfulness = np.array([one.faithfulness for one in (main, *others)], dtype=float)  # None becomes NaN
    curve = dict(sorted((c.n_edges, value) for c, value in zip(sizes, faithfulness, strict=False) if c.n_edges))
    random_hits = [one.hit_at_10 for one in standalones(decoder, randoms, pairs)]
    row = {
        "prompts": len(pairs),
        "edges": circuit.n_edges,
        "nodes": circuit.n_nodes,
        "entropy": topology.circuit_entropy(circuit),
        "edges_for_90": floors.edges_for(list(curve), list(curve.values())) if curve else np.nan,
        "centroid": floors.layer_centroid(circuit),
        "faithfulness": float(faithfulness[0]),
        "clean_minus_corrupted": mean,
        "cmc_low": low,
        "cmc_high": high,
        "split_half_jaccard": floors.split_half_jaccard(halves),
        "random_faithfulness": float(np.mean(faithfulness[len(sizes) :])) if randoms else np.nan,
        "random_hit10": float(np.mean(random_hits)) if randoms else np.nan,
        "hit10": standalone(decoder, circuit, pairs).hit_at_10,
        **{f"layer_{layer}": float(x) for layer, x in enumerate(topology.edge_activation_ratio(circuit))},
    }
    return row, topology.membership(circuit), halves


def measure_checkpoint(checkpoint: Checkpoint, epoch: float, data_files: Mapping[People, str]) -> MeasuredCircuits:
    """Measure all groups at one checkpoint, or read what was measured before with the same weights and prompts.

    Args:
        data_files: circuit data of the taught and of the untaught people; `{task}` in them stands for each task.
    """
    files = [Path(task_file(template, task)) for template in data_files.values() for task in TASKS]
    prompts = hashlib.sha256(b"".join(read_bytes(file) for file in files)).hexdigest()
    made_from = {"weights": weights_digest(checkpoint.path), "prompts": prompts, "epoch": epoch}

    def measure() -> Iterator[MeasuredGroup]:
        decoder, tokenizer = load_decoder(checkpoint.path), load_tokenizer(checkpoint.path)
        wanted = [(People.TAUGHT, group) for group in groups()]
        wanted += [(People.CONTROL, Group(task, kind, Band.LOW)) for task in TASKS for kind in KnowledgeType]
        for people, group in tqdm(wanted, desc=checkpoint.name, unit="group", leave=False):
            pairs = group_pairs(read_circuit_data(data_files[people], group.task), group, tokenizer)
            row, members, halves = measure_group(decoder, pairs, epoch)
            band = str(group.band) if people is People.TAUGHT else ""
            names = {"task": str(group.task), "type": str(group.type), "band": band, "people": str(people)}
            yield {**names, "step": checkpoint.step, "epoch": epoch, **row}, members, halves

    return MeasuredCircuits.once(checkpoint.output / "study_circuits.npz", "study circuits", made_from, measure)


def checkpoint_epoch(checkpoint: Checkpoint) -> float:
    """Return a checkpoint's epoch to the nearest half, so that runs with an odd number of steps per epoch agree."""
    if checkpoint.step == 0:
        return 0.0
    state = Path(checkpoint.path) / "trainer_state.json"
    epoch = shape(LoggedState).file(state).get("epoch")
    if epoch is None:
        raise InputError(f"{state}: no key 'epoch'")
    return round(2 * float(epoch)) / 2


def circuit_table(measured: Sequence[tuple[float, MeasuredCircuits]]) -> pd.DataFrame:
    """Join a run's checkpoints (epoch and circuits) and compare each circuit with that of one epoch earlier."""
    by_epoch = dict(measured)
    rows = []
    for epoch, now in measured:
        for group, row in enumerate(now.rows):
            change, turnover, floor = now.change_since(by_epoch.get(epoch - 1), group)
            rows.append({**row, "edge_change": change, "turnover": turnover, "turnover_floor": floor})
    return pd.DataFrame(rows)


def depth_table(run: Run, data_files: Mapping[People, str]) -> pd.DataFrame:
    """Measure every checkpoint of a run; see the module's text."""
    measured = []
    for checkpoint in tqdm(run.checkpoints(), desc=run.path.name, unit="checkpoint"):
        epoch = checkpoint_epoch(checkpoint)
        measured.append((epoch, measure_checkpoint(checkpoint, epoch, data_files)))
    return circuit_table(measured)


def measure_runs(kind: StudyKind, runs: Sequence[str], study: Path, files: Mapping[People, str]) -> None:
    """Measure the runs that are trained to their end and not in the study yet, and print where their tables are.

    Args:
        files: depth: circuit data of the people, with {task}.
    """
    torch.set_num_threads(1)
    for folder in runs:
        run = Run(Path(folder))
        if not run.checkpoints_folder.is_dir() or not is_finished(Path(run.checkpoints()[-1].path)):
            print(f"{folder}: not trained to its end; left out")
            continue
        described = study_run(run, kind)
        if finished(study, described):
            print(f"{folder}: measured before")
            continue
        table = fact_table(run) if kind is StudyKind.RELEVANCE else depth_table(run, files)
        print(f"{len(table):,} rows: {write_study_run(study, described, table)}")
