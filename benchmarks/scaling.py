"""What the paper's experiment costs at each model's size: hours of training and of circuits, gigabytes on disk.

    python benchmarks/scaling.py                                  the table of docs/scaling.md
    python benchmarks/scaling.py --tflops 0.2 --share 0.7 --devices 1

Arithmetic is counted (benchmarks/arithmetic.py). Time is arithmetic / (peak x share): give the peak of your
device's matrix products in the dtype that you use, and the share of it that benchmarks/attribution.py measures there.
Training is six operations per parameter and token of the corpus; its share of the peak is a flag of its own.
Bytes of a graph file are measured by writing one; bytes of a checkpoint are its parameters in float32, the newest one
three times (two moments).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arithmetic import Shape, attribution_flop, circuit_flop, forward_flop
from knowledge_circuits.corpus.people import DEFAULT_FREQUENCY_RATE, Stream, draw_frequencies, stream
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.graph_files import write_graph


@dataclass(frozen=True)
class Experiment:
    """One model's run: its shape, parameters, and how many checkpoints it saves (the untrained start included)."""

    name: str
    shape: Shape
    parameters: float
    checkpoints: int


def _shape(layers: int, heads: int, kv: int, d: int, e: int, f: int, gated: bool, parallel: bool = False) -> Shape:
    return Shape(layers, heads, kv, d, e, f, gated, parallel)


EXPERIMENTS = (
    Experiment("gpt2", _shape(12, 12, 12, 768, 64, 3072, False), 124e6, 26),
    Experiment("gpt2-medium", _shape(24, 16, 16, 1024, 64, 4096, False), 355e6, 16),
    Experiment("TinyLlama_v1.1", _shape(22, 32, 4, 2048, 64, 5632, True), 1100e6, 11),
    Experiment("phi-1_5", _shape(24, 32, 32, 2048, 64, 8192, False, True), 1418e6, 8),
    Experiment("8B Llama", _shape(32, 32, 8, 4096, 128, 14336, True), 8030e6, 11),
)
GROUPS = 18
PEOPLE = 50_000


def corpus_tokens(tokens_per_biography: float) -> float:
    """Tokens of an epoch: every biography of the default corpus."""
    copies = draw_frequencies(PEOPLE, DEFAULT_FREQUENCY_RATE, stream(0, Stream.FREQUENCIES))
    return float(sum(copies)) * tokens_per_biography


def graph_bytes(shape: Shape, suffix: str, sample_layers: int = 3) -> float:
    """Bytes of one scored graph file, from bytes per edge of a written one with the shape's heads and fewer layers."""
    layout = Layout(min(sample_layers, shape.n_layers), shape.n_heads, shape.parallel)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(layout.real_edges.shape, generator=generator) ** 3 * 1e-3 * layout.real_edges
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"graph{suffix}"
        write_graph(path, Graph(layout, scores, layout.real_edges, shape.d_model, {}))
        per_edge = path.stat().st_size / layout.n_edges
    return per_edge * shape.edges


def tera_flop(experiment: Experiment, prompts: int, positions: int, steps: int) -> tuple[float, float]:
    """Arithmetic in 10^12 operations of all attribution and of all circuit evaluation (six targets per source)."""
    shape, items = experiment.shape, experiment.checkpoints * GROUPS * prompts
    evaluation = circuit_flop(shape, positions) + forward_flop(shape, positions)
    alone = 6 * (circuit_flop(shape, positions) - forward_flop(shape, positions))
    return items * attribution_flop(shape, positions, steps) / 1e12, items * (evaluation + alone) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=60.0, help="matrix-product peak of one device, 10^12/s (60)")
    parser.add_argument("--share", type=float, default=0.7, help="share of the peak that the work reaches (0.7)")
    parser.add_argument("--training_share", type=float, default=0.4, help="the same of training (0.4)")
    parser.add_argument(
        "--tokens_per_biography",
        type=float,
        default=80,
        help="tokens of one biography and its EOS (80, SmolLM2's tokenizer)",
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64], help="numbers of devices (1 8 64)")
    parser.add_argument("--prompts", type=int, default=300, help="prompts per group (300)")
    parser.add_argument("--positions", type=int, default=20, help="tokens per prompt (20)")
    parser.add_argument("--steps", type=int, default=5, help="steps of integrated gradients (5)")
    args = parser.parse_args()

    hours = [f"{count} device{'s' if count > 1 else ''}, hours (training + circuits)" for count in args.devices]
    columns = ["model", "edges", "training, TFLOP", "attribution, TFLOP", "evaluation, TFLOP", *hours]
    columns += ["graphs .json, GB", "graphs .json.gz, GB", "checkpoints, GB"]
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    tokens = corpus_tokens(args.tokens_per_biography)
    for experiment in EXPERIMENTS:
        attribution, evaluation = tera_flop(experiment, args.prompts, args.positions, args.steps)
        training = 6 * experiment.parameters * tokens * (experiment.checkpoints - 1) / 1e12
        seconds = (
            training / (args.tflops * args.training_share),
            (attribution + evaluation) / (args.tflops * args.share),
        )
        files = GROUPS * experiment.checkpoints / 1e9
        sizes = [graph_bytes(experiment.shape, suffix) * files for suffix in (".json", ".json.gz")]
        weights = 4 * experiment.parameters * (experiment.checkpoints + 2) / 1e9
        cells = [experiment.name, f"{experiment.shape.edges:,}"]
        cells += [f"{work:,.0f}" for work in (training, attribution, evaluation)]
        cells += [" + ".join(f"{part / 3600 / count:.2g}" for part in seconds) for count in args.devices]
        cells += [f"{size:.1f}" for size in sizes] + [f"{weights:,.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
