"""A run's folder as the pipeline leaves it, made up in a second: the analysis is tested on known truths.

`write_fact_run` makes a run of one's own facts: prompts, question probes and circuits of named groups.

Learning curves are logistic in the epoch, later for rarer people and, by `lead` epochs, for K_compl. Circuits are the
top quarter of scores whose concentration rises until `BEND` and then barely; deep layers turn first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from made_up_study import probes

from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.graph_files import write_graph
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.files import write_json, write_jsonl
from knowledge_circuits.runs import Checkpoint, Run
from knowledge_circuits.study import TASKS, Attribute, Band, FactGroup, Group, KnowledgeType, group_columns, groups

BEND = 6.0
CHANCE = 0.2
FREQUENCY = {Band.LOW: 1, Band.MEDIUM: 3, Band.HIGH: 8}
MIDPOINT = {Band.LOW: 15.0, Band.MEDIUM: 10.0, Band.HIGH: 6.0}


@dataclass(frozen=True)
class Truth:
    """What the run is made to show.

    Attributes:
        epochs: checkpoints after checkpoint-0, one per epoch.
        people: per type and band.
        lead: by how many epochs K_rel is learned before K_compl.
        layout: the model's graph.
        steps_per_epoch: optimizer steps.
        seed: of everything drawn.
        decay: the epoch after which the learning rate falls.
    """

    epochs: int = 8
    people: int = 6
    lead: float = 2.0
    layout: Layout = field(default_factory=lambda: Layout(5, 2))
    steps_per_epoch: int = 10
    seed: int = 0
    decay: int = 1_000

    def rate(self, epoch: int) -> float:
        """The learning rate that was logged at an epoch."""
        return 1e-3 / max(1, epoch - self.decay + 1)

    @property
    def topn(self) -> int:
        return self.layout.n_edges // 4

    def known(self, knowledge: KnowledgeType, band: Band, epoch: float) -> float:
        """The chance that a fact is known."""
        late = self.lead if knowledge == KnowledgeType.NEW else 0.0
        return float(1 / (1 + np.exp(-1.2 * (epoch - MIDPOINT[band] * self.epochs / 18 - late))))


def write_run(folder: Path, truth: Truth | None = None, circuits: bool = True) -> Run:
    """Write evaluations, predictions and, if asked for, circuits with their results, for every checkpoint."""
    truth = truth or Truth()
    run, generator = Run(folder), np.random.default_rng(truth.seed)
    luck = {
        (t, b, a): generator.random((truth.people, 1)) * 0.6 + generator.random(truth.people)[:, None] * 0.4
        for t in KnowledgeType
        for b in Band
        for a in Attribute
    }
    write_json(run.config, {"model": "nano", "arguments": {}, "data": {"seed": truth.seed}, "versions": {}})
    evaluations = []
    for epoch in range(truth.epochs + 1):
        step = epoch * truth.steps_per_epoch
        checkpoint = run.checkpoints_folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        write_json(checkpoint / "config.json", {})
        if epoch:
            history = [
                {"step": e * truth.steps_per_epoch, "epoch": float(e), "loss": 1.0, "learning_rate": truth.rate(e)}
                for e in range(1, epoch + 1)
            ]
            state = {"global_step": step, "epoch": float(epoch), "log_history": history}
            write_json(checkpoint / "trainer_state.json", state)
        evaluations.append(_evaluation(truth, step, epoch))
        write_jsonl(checkpoint / "prediction.jsonl", _predictions(truth, epoch, luck))
        if circuits:
            _write_circuits(truth, Checkpoint(str(checkpoint), checkpoint), epoch, luck)
    write_jsonl(run.evaluations, evaluations)
    return run


def _evaluation(truth: Truth, step: int, epoch: int) -> dict:
    by_type = {t: np.mean([truth.known(t, b, epoch) for b in Band]) for t in KnowledgeType}
    return {
        "step": step,
        "epoch": float(epoch),
        "loss": 0.5 + 2.5 * float(np.exp(-epoch / 6)),
        "accuracy": 0.4 + 0.4 * float(by_type[KnowledgeType.NEW]),
        **{f"{t}_first_token_attribute_accuracy": 0.1 + 0.85 * float(by_type[t]) for t in KnowledgeType},
    }


def _person(knowledge: KnowledgeType, band: Band, index: int) -> dict:
    return {"full_name": f"{knowledge} {band} {index}", "type": str(knowledge), "frequency": FREQUENCY[band]}


def _predictions(truth: Truth, epoch: int, luck: dict) -> list[dict]:
    return [
        {
            "attribute": str(attribute),
            "prompt": "",
            "correct": bool(luck[knowledge, band, attribute][index, 0] < truth.known(knowledge, band, epoch)),
            "first_token_correct": bool(
                luck[knowledge, band, attribute][index, 0] < truth.known(knowledge, band, epoch)
            ),
            "ground_truth": "",
            "prediction": "",
            "output": "",
            **_person(knowledge, band, index),
        }
        for knowledge in KnowledgeType
        for band in Band
        for attribute in Attribute
        for index in range(truth.people)
    ]


def scored_graph(truth: Truth, group: Group, epoch: float) -> Graph:
    """The scores at an epoch: every edge drifts from one random importance to another, those of deep layers first."""
    layout = truth.layout
    seed = [truth.seed, TASKS.index(group.task), list(KnowledgeType).index(group.type), list(Band).index(group.band)]
    generator = np.random.default_rng(seed)
    before, after, sign = generator.random((3, layout.n_sources, layout.n_targets))
    span = truth.epochs / 18
    turn = (layout.n_layers - layout.source_layers.numpy()[:, None]) * span + 3 * span
    share = 1 / (1 + np.exp(-3 * (epoch - turn) / span))
    depth = (1 + layout.source_layers.numpy()[:, None]) / layout.n_layers
    sharp = 2 + 10 * min(epoch / (BEND * span), 1) + 0.1 * epoch
    importance = (1 - share) * before + share * after * (0.7 + 0.3 * depth)
    scores = (
        np.where(sign < 0.6, 1, -1) * (importance + generator.normal(0, 0.01, importance.shape)).clip(0.01) ** sharp
    )
    real = layout.real_edges
    return Graph(layout, torch.tensor(scores, dtype=torch.float32) * real, real.clone(), d_model=32)


def _write_circuits(truth: Truth, checkpoint: Checkpoint, epoch: int, luck: dict) -> None:
    for group in groups():
        circuit = prune(top_n(scored_graph(truth, group, epoch), truth.topn))
        circuit = circuit.with_meta(topn=truth.topn, examples=30)
        folder = checkpoint.circuit_folder(30, group, "EAP-IG")
        write_graph(folder.circuit(truth.topn), circuit)
        write_json(folder.results(truth.topn), _results(truth, group, epoch, circuit))
        for knowledge in KnowledgeType:
            for band in Band:
                if knowledge == group.type or band == group.band:
                    same = knowledge == group.type and band == group.band
                    rows = _standalone(truth, group, knowledge, band, epoch, luck, 1.0 if same else 0.8)
                    write_jsonl(folder.predictions(truth.topn, group_columns(knowledge, band)), rows)


#: The groups of one's own facts and how many prompts they have.
FACT_GROUPS = {FactGroup("capitals", (("group", name),)): count for name, count in (("asia", 4), ("europe", 6))}


def write_fact_run(folder: Path, truth: Truth | None = None) -> Run:
    """Write answers to prompts, question probes and circuits with their results, of FACT_GROUPS, for every checkpoint.

    Of Europe's prompts one more is answered at every other epoch, of Asia's none. Europe's circuits are those that the
    study's first group has in `write_run`, Asia's those of its last.
    """
    truth = truth or Truth()
    run = Run(folder)
    for epoch in range(truth.epochs + 1):
        step = epoch * truth.steps_per_epoch
        checkpoint = run.checkpoints_folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        write_json(checkpoint / "config.json", {})
        losses = [{"step": e * truth.steps_per_epoch, "epoch": float(e), "loss": 3.0 / e} for e in range(1, epoch + 1)]
        state = {"global_step": step, "epoch": float(epoch), "log_history": losses}
        write_json(checkpoint / "trainer_state.json", state)
        asked = []
        for (group, count), standing in zip(FACT_GROUPS.items(), (list(groups())[-1], next(groups())), strict=True):
            known = [group.name == "europe" and 2 * number < epoch for number in range(count)]
            asked += [
                {
                    "group": group.name,
                    "prompt": f"{group.name} {number}",
                    "correct": right,
                    "first_token_correct": right,
                }
                for number, right in enumerate(known)
            ]
            circuit = prune(top_n(scored_graph(truth, standing, epoch), truth.topn))
            files = Checkpoint(str(checkpoint), checkpoint).circuit_folder(30, group, "EAP-IG")
            write_graph(files.circuit(truth.topn), circuit.with_meta(topn=truth.topn, examples=count))
            row = {**_results(truth, standing, epoch, circuit), "prompts": count, "group": group.name}
            write_json(files.results(truth.topn), row)
            for target, items in FACT_GROUPS.items():
                own = 2 if target == group else 30
                hits = [{"prompt": f"{target.name} {n}", "token_prob": 0.5, "token_rank": own} for n in range(items)]
                write_jsonl(files.predictions(truth.topn, target.columns), hits)
        write_jsonl(Checkpoint(str(checkpoint), checkpoint).fact_predictions("capitals"), asked)
    write_jsonl(run.question_probes, probes("0111", "0011"))
    return run


def _results(truth: Truth, group: Group, epoch: int, circuit: Graph) -> dict:
    share = circuit.scores[circuit.in_graph].abs()
    share = share / share.sum()
    return {
        "task": str(group.task),
        "method": "EAP-IG",
        "topn": truth.topn,
        "model": "nano",
        "model_path": "",
        "type": str(group.type),
        "frequency": str(group.band),
        "clean_baseline_performance": 2.0 + epoch,
        "corrupted_baseline_performance": -2.0,
        "circuit_performance": 1.5 + epoch,
        "edges_num": circuit.n_edges,
        "nodes_num": circuit.n_nodes,
        "edge_entropy": float(-(share * share.clamp(min=1e-30).log()).sum()),
        "faithfulness": None if epoch == 0 else 0.95 - 0.6 * float(np.exp(-epoch / 2)),
        "prompts": 30,
        "clean_minus_corrupted_low": epoch - 0.5,
        "clean_minus_corrupted_high": epoch + 8.5,
        "chance_hit10": CHANCE,
        "edges_for_90": 10.0 + epoch,
        "random_faithfulness": 0.01,
        "random_hit10": 0.02,
    }


def _standalone(
    truth: Truth, group: Group, knowledge: KnowledgeType, band: Band, epoch: int, luck: dict, reach: float
) -> list[dict]:
    rows = []
    for index in range(truth.people):
        known = bool(luck[knowledge, band, group.task][index, 0] < reach * truth.known(knowledge, band, epoch + 1))
        rows.append(
            {
                "ground_truth": "Boston, MA",
                "clean_label": " Boston",
                "token_prob": 0.6 if known else 0.001,
                "token_rank": 2 if known else 40 + index,
                **_person(knowledge, band, index),
            }
        )
    return rows
