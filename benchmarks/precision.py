"""What bfloat16 costs: scores and circuits in lower precision against float64 on the same weights and prompts.

    python benchmarks/precision.py --model_path outputs/train/nano/default/checkpoints/checkpoint-864 \\
        --data_file data/entities_360/circuit_30/nano/city.jsonl --task city

For each dtype it prints the rank correlation of |score| over all edges, the share of the top edges that agree (at 5%,
10% and 25% of the edges), and the faithfulness of the circuit of 25% of the edges, found and run in that dtype.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import table_head, table_row
from knowledge_circuits.command_line import choice, run_program
from knowledge_circuits.corpus.prompt_pairs import group_pairs, read_circuit_data
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.evaluation import evaluate
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.study import TASKS, Attribute, Band, Group, KnowledgeType

SHARES = (0.05, 0.1, 0.25)


def overlap(graph: Graph, exact: Graph, share: float) -> float:
    """The share of the top edges of one graph that are the other's too."""
    n = round(share * exact.layout.n_edges)
    return float((top_n(graph, n).in_graph & top_n(exact, n).in_graph).sum()) / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="a checkpoint folder")
    parser.add_argument("--data_file", required=True, help="circuit data of one task")
    parser.add_argument("--task", type=choice(Attribute), default=TASKS[0], help="the task (city)")
    parser.add_argument("--type", type=choice(KnowledgeType), default=KnowledgeType.NEW, help="new or revised (new)")
    parser.add_argument("--frequency", type=choice(Band), default=Band.HIGH, help="the band (high)")
    parser.add_argument("--device", default="cpu", help="where to compute (cpu)")
    args = parser.parse_args()

    rows = read_circuit_data(args.data_file, args.task)
    group = Group(args.task, args.type, args.frequency)
    pairs = group_pairs(rows, group, load_tokenizer(args.model_path), where=args.data_file)
    print(f"{args.model_path}: {group}, {len(pairs)} prompts")
    columns = ["dtype", "rank correlation", *(f"overlap at {share:.0%}" for share in SHARES), "faithfulness at 25%"]
    print(table_head(*columns))
    exact: Graph | None = None
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        decoder = load_decoder(args.model_path, dtype, args.device)
        graph = attribute(decoder, pairs)
        exact = exact or graph
        real = graph.layout.real_edges
        correlation = spearmanr(graph.scores[real].abs(), exact.scores[real].abs()).statistic
        circuit = prune(top_n(graph, round(0.25 * graph.layout.n_edges)))
        faithfulness = evaluate(decoder, [circuit], pairs)[0].faithfulness
        cells = [str(dtype).removeprefix("torch."), f"{correlation:.5f}"]
        cells += [f"{overlap(graph, exact, share):.3f}" for share in SHARES]
        cells.append("undefined" if faithfulness is None else f"{faithfulness:.3f}")
        print(table_row(*cells), flush=True)


if __name__ == "__main__":
    run_program(main)
