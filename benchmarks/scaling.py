"""What the paper's experiment costs at each model's size: hours of training and of circuits, gigabytes on disk.

    python benchmarks/scaling.py                                  the table of docs/scaling.md
    python benchmarks/scaling.py --tflops 0.2 --share 0.7 --devices 1
    python benchmarks/scaling.py --lengths 16 128 512 2048 --memory_gb 1      prompts of these lengths, measured
    python benchmarks/scaling.py --large llama-8b --folder models/llama-8b     one prompt on a large model, measured

Arithmetic is counted (benchmarks/arithmetic.py). Time is arithmetic / (peak x share): give the peak of your
device's matrix products in the dtype that you use, and the share of it that benchmarks/attribution.py measures there.
Training is six operations per parameter and token of the corpus; its share of the peak is a flag of its own.
Bytes of a graph file are measured by writing one; bytes of a checkpoint are its parameters in float32, the newest one
three times (two moments).

`--lengths` attributes one random prompt pair of each length on random weights of a small shape, runs a circuit of a
quarter of the edges on it, and prints CPU seconds and the memory that this adds. `--large` writes random bfloat16
weights of a shape layer by layer to a folder (16 GB for 8 billion parameters; it is deleted afterwards), loads it,
attributes one prompt pair of 16 tokens with m = 5, and prints seconds and peak
memory of both.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arithmetic import Shape, attribution_flop, circuit_flop, forward_flop
from benchmarks.attribution import SHAPES
from benchmarks.measuring import AnonymousPeak, random_prompts, table_head, table_row
from knowledge_circuits.corpus.people import DEFAULT_FREQUENCY_RATE, Stream, draw_frequencies, stream
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.evaluation import evaluate
from knowledge_circuits.engine.graph import Graph, Layout, layout_of
from knowledge_circuits.engine.graph_files import write_graph
from knowledge_circuits.engine.memory import plan_attribution, plan_circuit
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import top_n
from knowledge_circuits.engine.weights import decoder_from_model, load_decoder
from knowledge_circuits.files import write_json

T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """One model's run: its shape, parameters, and how many checkpoints it saves (the untrained start included)."""

    name: str
    shape: Shape
    parameters: float
    checkpoints: int


EXPERIMENTS = (
    Experiment("gpt2", Shape.of(SHAPES["gpt2"]()), 124e6, 26),
    Experiment("gpt2-medium", Shape.of(SHAPES["gpt2-medium"]()), 355e6, 16),
    Experiment("TinyLlama_v1.1", Shape.of(SHAPES["tinyllama"]()), 1100e6, 11),
    Experiment("phi-1_5", Shape.of(SHAPES["phi-1_5"]()), 1418e6, 8),
    Experiment("8B Llama", Shape.of(SHAPES["llama-8b"]()), 8030e6, 11),
)
GROUPS = 18
PEOPLE = 50_000


def corpus_tokens(tokens_per_biography: float) -> float:
    """Tokens of an epoch: every biography of the default corpus."""
    copies = draw_frequencies(PEOPLE, DEFAULT_FREQUENCY_RATE, stream(0, Stream.FREQUENCIES))
    return float(sum(copies)) * tokens_per_biography


def graph_bytes(shape: Shape, suffix: str) -> float:
    """Bytes of one scored graph file, from bytes per edge of a written one with the shape's heads and 3 layers."""
    layout = Layout(3, shape.n_heads, shape.parallel)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(layout.real_edges.shape, generator=generator) ** 3 * 1e-3 * layout.real_edges
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"graph{suffix}"
        write_graph(path, Graph(layout, scores, layout.real_edges, shape.d_model, {}))
        return path.stat().st_size / layout.n_edges * shape.edges


def tera_flop(experiment: Experiment, prompts: int, positions: int, steps: int) -> tuple[float, float]:
    """Arithmetic in 10^12 operations of all attribution and of all circuit evaluation (six targets per source)."""
    shape, items = experiment.shape, experiment.checkpoints * GROUPS * prompts
    evaluation = circuit_flop(shape, positions) + forward_flop(shape, positions)
    alone = 6 * (circuit_flop(shape, positions) - forward_flop(shape, positions))
    return items * attribution_flop(shape, positions, steps) / 1e12, items * (evaluation + alone) / 1e12


def random_pair(vocabulary: int, positions: int) -> PromptPairs:
    """Return one pair of random prompts that differ in the first third behind the start token."""
    return PromptPairs(*random_prompts(random.Random(0), 1, positions, vocabulary), [(1, 2)])


def measure_lengths(lengths: Sequence[int], memory_gb: float, layers: int, steps: int) -> None:
    """Print seconds and added memory of one prompt of each length, on nano's shape with rotary positions."""
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=160,
        intermediate_size=640,
        num_attention_heads=5,
        num_key_value_heads=5,
        vocab_size=1000,
        max_position_embeddings=max(lengths),
    )
    torch.manual_seed(0)
    decoder = decoder_from_model(AutoModelForCausalLM.from_config(config))
    layout = layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
    attribution = ("runs at once", "positions at once", "CPU s", "CPU ms a token", "memory added, MB")
    print(table_head("tokens", *attribution, "circuit: positions at once", "CPU s", "memory added, MB"))
    for length in lengths:
        plan = plan_attribution(decoder, layout, length, 1, steps + 1, memory_gb * 1e9)
        _, at_once = plan_circuit(decoder, length, memory_gb * 1e9)
        pairs = random_pair(config.vocab_size, length)
        circuit = top_n(attribute(decoder, pairs, ig_steps=1, memory_gb=memory_gb), layout.n_edges // 4)  # not counted
        scoring = partial(attribute, decoder, pairs, ig_steps=steps, memory_gb=memory_gb)
        running = partial(evaluate, decoder, [circuit], pairs, memory_gb=memory_gb)
        _, seconds, added = _cost(scoring, time.process_time)
        _, circuit_seconds, circuit_added = _cost(running, time.process_time)
        cells = [f"{length:,}", f"{plan.runs} of {steps + 1}", f"{plan.positions:,}", f"{seconds:.2f}"]
        cells += [f"{1000 * seconds / length:.1f}", f"{added / 1e6:,.0f}", f"{at_once:,}", f"{circuit_seconds:.2f}"]
        print(table_row(*cells, f"{circuit_added / 1e6:,.0f}"), flush=True)


def _cost(work: Callable[[], T], clock: Callable[[], float]) -> tuple[T, float, int]:
    """Return the result of a piece of work, its seconds by a clock, and the memory that it adds, in bytes."""
    with AnonymousPeak() as peak:
        started = clock()
        result = work()
        seconds = clock() - started
    return result, seconds, peak.added


def write_random_checkpoint(config: PreTrainedConfig, folder: Path) -> int:
    """Write random bfloat16 weights, one file per layer, and return their bytes; no two layers are held at once."""
    folder.mkdir(parents=True)
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in AutoModelForCausalLM.from_config(config).named_parameters()}
    files: dict[str, dict[str, torch.Size]] = defaultdict(dict)
    for name, shape in shapes.items():
        layer = next((part for part in name.split(".") if part.isdecimal()), name)
        files[f"model-{layer}.safetensors"][name] = shape
    index: dict[str, str] = {}
    for file, content in tqdm(files.items(), desc="writing", unit="file"):
        tensors = {}
        for name, shape in content.items():
            weight = torch.ones(shape, dtype=torch.bfloat16)
            tensors[name] = weight if len(shape) == 1 else weight.normal_(0, shape[-1] ** -0.5)
        save_file(tensors, folder / file, {"format": "pt"})
        index |= dict.fromkeys(content, file)
    total = sum(2 * shape.numel() for shape in shapes.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    return total


def measure_large(name: str, folder: Path, layers: int | None, steps: int) -> None:
    """Print seconds and peak memory of loading and attributing a random model of a shape."""
    config = SHAPES[name]()
    if layers is not None:
        config.num_hidden_layers = layers
    try:
        total = write_random_checkpoint(config, folder)
        load = partial(load_decoder, str(folder), torch.bfloat16)
        decoder, loaded, loading = _cost(load, time.perf_counter)
        work = partial(attribute, decoder, random_pair(config.vocab_size, 16), ig_steps=steps, memory_gb=2)
        graph, seconds, added = _cost(work, time.perf_counter)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table_head("layers", "weights, GB", "edges", "loading, s", "peak, GB", "attribution, s", "added, GB"))
    weights, loading_peak, peak = (f"{size / 1e9:.2f}" for size in (total, loading, added))
    print(
        table_row(
            decoder.n_layers, weights, f"{graph.n_edges:,}", f"{loaded:.0f}", loading_peak, f"{seconds:.0f}", peak
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tflops", type=float, default=60.0, help="matrix-product peak of one device, 10^12/s (60)")
    add("--share", type=float, default=0.7, help="share of the peak that the work reaches (0.7)")
    add("--training_share", type=float, default=0.4, help="the same of training (0.4)")
    biography_help = "tokens of one biography and its EOS (80, SmolLM2's tokenizer)"
    add("--tokens_per_biography", type=float, default=80, help=biography_help)
    add("--devices", type=int, nargs="+", default=[1, 8, 64], help="numbers of devices (1 8 64)")
    add("--prompts", type=int, default=300, help="prompts per group (300)")
    add("--positions", type=int, default=20, help="tokens per prompt (20)")
    add("--steps", type=int, default=5, help="steps of integrated gradients (5)")
    add("--lengths", type=int, nargs="+", help="measure prompts of these lengths instead")
    add("--memory_gb", type=float, default=1.0, help="of one pass of --lengths (1)")
    add("--large", choices=SHAPES, help="measure one prompt on random weights of this shape instead")
    add("--folder", type=Path, help="a new folder for the weights of --large, deleted afterwards")
    add("--layers", type=int, help="layers of --large (the shape's own) or --lengths (6)")
    args = parser.parse_args()
    if args.lengths:
        measure_lengths(args.lengths, args.memory_gb, args.layers or 6, args.steps)
        return
    if args.large:
        if args.folder is None or args.folder.exists():
            parser.error("--large needs --folder, which must not exist")
        measure_large(args.large, args.folder, args.layers, args.steps)
        return

    hours = [f"{count} device{'s' if count > 1 else ''}, hours (training + circuits)" for count in args.devices]
    columns = ["model", "edges", "training, TFLOP", "attribution, TFLOP", "evaluation, TFLOP", *hours]
    columns += ["graphs .json, GB", "graphs .json.gz, GB", "checkpoints, GB"]
    print(table_head(*columns))
    tokens = corpus_tokens(args.tokens_per_biography)
    for experiment in EXPERIMENTS:
        attribution, evaluation = tera_flop(experiment, args.prompts, args.positions, args.steps)
        training = 6 * experiment.parameters * tokens * (experiment.checkpoints - 1) / 1e12
        circuits = (attribution + evaluation) / (args.tflops * args.share)
        seconds = (training / (args.tflops * args.training_share), circuits)
        files = GROUPS * experiment.checkpoints / 1e9
        sizes = [graph_bytes(experiment.shape, suffix) * files for suffix in (".json", ".json.gz")]
        weights = 4 * experiment.parameters * (experiment.checkpoints + 2) / 1e9
        cells = [experiment.name, f"{experiment.shape.edges:,}"]
        cells += [f"{work:,.0f}" for work in (training, attribution, evaluation)]
        cells += [" + ".join(f"{part / 3600 / count:.2g}" for part in seconds) for count in args.devices]
        cells += [f"{size:.1f}" for size in sizes] + [f"{weights:,.0f}"]
        print(table_row(*cells), flush=True)


if __name__ == "__main__":
    main()
