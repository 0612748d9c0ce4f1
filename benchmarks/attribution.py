"""How fast attribution and circuit evaluation are, against the hook-based way and against the machine.

    python benchmarks/attribution.py                              GPT-2 small's shape, 16-token prompts, batch 8, m = 5
    python benchmarks/attribution.py --shape llama-8b --device cuda --dtype bfloat16 --positions 32 --no-hook_based
    python benchmarks/attribution.py --shape nano --sweep --json sweep.json

In one process, on the same random weights and prompts, it measures the engine, the hook-based way (an input per head
and a result per head on `TransformerBridge`, and the parameters' gradients left on, as EAP-IG has it), and the
machine's matrix-product peak; it prints seconds per prompt, their ratio, the share of the peak that the least
arithmetic (`benchmarks/arithmetic.py`) makes in that time, the share that products of the model's shapes reach alone,
and whether both sides agree. Peak memory is measured in a
fresh process per side, in all and as what the work adds to what the loaded model takes. Then the same for a circuit
under patching, and the time of graph files and selections. `--sweep` varies layers, heads, positions, batch and steps
one at a time.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks import hook_based
from benchmarks.arithmetic import Shape, attribution_flop, circuit_flop
from benchmarks.measuring import (
    best_seconds,
    matrix_peak,
    memory_peak,
    processor,
    random_prompts,
    reset_peak,
    synchronize,
)
from knowledge_circuits.engine.attribution import Method, attribute
from knowledge_circuits.engine.evaluation import evaluate
from knowledge_circuits.engine.graph import Graph, Layout
from knowledge_circuits.engine.graph_files import read_graph, write_graph
from knowledge_circuits.engine.products import linear
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.files import write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def _gpt2(layers: int, width: int, heads: int, vocabulary: int = 50257) -> PreTrainedConfig:
    return GPT2Config(n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary)


def _llama(layers: int, width: int, heads: int, kv_heads: int, mlp: int, vocabulary: int) -> PreTrainedConfig:
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        vocab_size=vocabulary,
    )


#: Shapes by name; weights are random.
SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "nano": lambda: _gpt2(6, 160, 5, 3072),
    "gpt2": lambda: _gpt2(12, 768, 12),
    "gpt2-medium": lambda: _gpt2(24, 1024, 16),
    "pythia-160m": lambda: GPTNeoXConfig(
        num_hidden_layers=12,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
        vocab_size=50304,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    ),
    "smollm2-135m": lambda: _llama(30, 576, 9, 3, 1536, 49152),
    "tinyllama": lambda: _llama(22, 2048, 32, 4, 5632, 32000),
    "phi-1_5": lambda: PhiConfig(
        num_hidden_layers=24, hidden_size=2048, num_attention_heads=32, intermediate_size=8192, vocab_size=51200
    ),
    "llama-1b": lambda: _llama(16, 2048, 32, 8, 8192, 128256),
    "llama-8b": lambda: _llama(32, 4096, 32, 8, 14336, 128256),
}


@dataclass(frozen=True)
class Setting:
    """One measured point."""

    shape: str
    layers: int | None
    heads: int | None
    batch: int
    positions: int
    steps: int
    dtype: str
    device: str
    threads: int | None
    parameter_gradients: bool
    tf32: bool = False
    blas: bool = False

    def config(self) -> PreTrainedConfig:
        """The model's configuration; `layers` and `heads` replace the shape's own (heads keep their width)."""
        config = SHAPES[self.shape]()
        shape = Shape.of(config)
        names = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size"}
        if config.model_type == "gpt2":
            names = {"layers": "n_layer", "heads": "n_head", "width": "n_embd"}
        if self.layers is not None:
            setattr(config, names["layers"], self.layers)
        if self.heads is not None:
            if shape.n_kv_heads != shape.n_heads:
                raise SystemExit("the number of heads can be varied only where every query head has its own keys")
            setattr(config, names["heads"], self.heads)
            setattr(config, names["width"], self.heads * shape.d_head)
            if "num_key_value_heads" in config.to_dict():
                config.num_key_value_heads = self.heads
        return config

    def layout(self) -> Layout:
        """The sources and targets of the model's graph."""
        shape = Shape.of(self.config())
        return Layout(shape.n_layers, shape.n_heads, shape.parallel)

    def model(self) -> PreTrainedModel:
        """Random weights, the same at every call."""
        config = self.config()
        with torch.random.fork_rng(), torch.device(self.device):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[self.dtype], attn_implementation="eager")
        return model.eval()

    def pairs(self) -> PromptPairs:
        """Random prompts and labels."""
        generator, vocabulary = random.Random(0), self.config().vocab_size
        clean, corrupted = random_prompts(generator, self.batch, self.positions, vocabulary)
        labels = [(first, second) for first, second in (generator.sample(range(1, vocabulary), 2) for _ in clean)]
        return PromptPairs(clean, corrupted, labels)


# --- The two sides ---------------------------------------------------------------------------------------------------


@dataclass
class Side:
    """One way to do the work: what scores a batch of pairs, and what evaluates a circuit on it.

    Evaluation is of the clean run, the corrupted run and the circuit under patching: three logit differences per item.
    """

    scores: Callable[[], Tensor]
    circuit: Callable[[Tensor], Tensor]


def engine_side(setting: Setting) -> Side:
    """The library's engine."""
    decoder = decoder_from_model(setting.model())
    pairs, layout = setting.pairs(), setting.layout()

    def scores() -> Tensor:
        return attribute(decoder, pairs, method=Method.EAP_IG, ig_steps=setting.steps, batch_size=setting.batch).scores

    def circuit(edges: Tensor) -> Tensor:
        chosen = Graph(layout, torch.zeros(edges.shape), edges, decoder.d_model)
        (found,) = evaluate(decoder, [chosen], pairs, batch_size=setting.batch)
        return torch.stack((found.clean, found.corrupted, found.circuit))

    return Side(scores, circuit)


def hook_based_side(setting: Setting) -> Side:
    """The hook-based way; grouped queries are repeated, because its hooks are one per key/value head."""
    model = setting.model()
    if Shape.of(model.config).n_kv_heads != Shape.of(model.config).n_heads:
        model = hook_based.ungrouped(model)
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        stand_in_tokenizer(folder)
        bridge = hook_based.boot(
            model, AutoTokenizer.from_pretrained(folder), folder, parameter_gradients=setting.parameter_gradients
        )
    pairs = setting.pairs()
    clean, corrupted, labels = (
        torch.tensor(part, device=setting.device) for part in (pairs.clean, pairs.corrupted, pairs.labels)
    )

    def circuit(edges: Tensor) -> Tensor:
        return hook_based.evaluate(bridge, clean, corrupted, labels, edges.to(setting.device))

    return Side(lambda: hook_based.attribute(bridge, clean, corrupted, labels, setting.steps), circuit)


def stand_in_tokenizer(folder: str) -> None:
    """The bridge asks for a tokenizer that was loaded from a folder; token ids are given, so any will do."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="a", eos_token="a").save_pretrained(folder)


SIDES = {"engine": engine_side, "hook-based": hook_based_side}


# --- Measuring -------------------------------------------------------------------------------------------------------


def peak_memory(setting: Setting, side: str, work: str) -> dict[str, float]:
    """Peak memory of one side in this process, in MB: in all, and beyond what was held once the model was loaded."""
    made = SIDES[side](setting)
    edges = some_circuit(setting)
    gc.collect()
    before = reset_peak(setting.device)
    _ = made.scores() if work == "attribution" else made.circuit(edges)
    synchronize(setting.device)
    peak = memory_peak(setting.device)
    return {"peak_mb": peak / 1e6, "added_mb": (peak - before) / 1e6}


def peak_memory_of_fresh_process(setting: Setting, side: str, work: str) -> dict[str, float]:
    """`peak_memory` in a process of its own."""
    request = json.dumps({"setting": asdict(setting), "side": side, "work": work})
    done = subprocess.run(
        [sys.executable, __file__, "--measure_memory", request], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"the process that measures memory failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def some_circuit(setting: Setting) -> Tensor:
    """A quarter of the edges, drawn at random, [u, v] bool: a dense sum does not care which."""
    real = setting.layout().real_edges
    return real & (torch.rand(real.shape, generator=torch.Generator().manual_seed(0)) < 0.25)


def _peak(setting: Setting) -> float:
    """Operations per second of square products, by the faster of PyTorch's own and the engine's kernel."""
    return max(matrix_peak(setting.device, DTYPES[setting.dtype], product=product) for product in (torch.mm, linear))


def products_rate(setting: Setting) -> float:
    """Operations per second of one layer's products with its weights, forward and backward, and nothing else.

    They are most of the work, so an engine comes no nearer to the peak than they do at these shapes.
    """
    shape, new = Shape.of(setting.config()), setting.batch * (setting.positions - 1)
    inner, d = shape.n_heads * shape.d_head, shape.d_model
    widths = [(d, (shape.query_weights + shape.key_value_weights) // d), (inner, d), (shape.d_mlp, d)]
    widths.append((d, (2 if shape.gated else 1) * shape.d_mlp))
    flop = seconds = 0.0
    for backward, rows in ((False, (setting.steps + 1) * new), (True, setting.steps * new)):
        for read, written in widths:
            weight = torch.randn(read, written, device=setting.device).to(DTYPES[setting.dtype])
            weight = weight.T if backward else weight
            x = torch.randn(rows, len(weight), device=setting.device).to(weight.dtype)
            seconds += best_seconds(partial(linear, x, weight), 10, setting.device)
            flop += 2 * rows * read * written
    return flop / seconds


def circuit_products_seconds(setting: Setting) -> float:
    """Seconds a prompt of the products alone in clean, corrupted and circuit run: all layers but the last.

    Clean and corrupted prompts are one batch. In the circuit's run, each head's inputs are summed along edges and
    projected for themselves. Each product reads the same operands again and again, so they may be in the cache.
    """
    shape, rows = Shape.of(setting.config()), setting.batch * (setting.positions - 1)
    d, h, e = shape.d_model, shape.n_heads, shape.d_head

    def seconds(product: Callable[..., Tensor], *sizes: tuple[int, ...]) -> float:
        operands = [torch.randn(size, device=setting.device).to(DTYPES[setting.dtype]) for size in sizes]
        return best_seconds(partial(product, *operands), 10, setting.device)

    projections = ((d, (shape.query_weights + shape.key_value_weights) // d), (h * e, d))
    mlp = ((d, (2 if shape.gated else 1) * shape.d_mlp), (shape.d_mlp, d))
    layer = sum(seconds(linear, (2 * rows, weight[0]), weight) for weight in (*projections, *mlp))
    layer += sum(seconds(linear, (rows, weight[0]), weight) for weight in mlp)
    layer += seconds(torch.bmm, (3 * h, rows, d), (3 * h, d, e)) + seconds(torch.bmm, (h, rows, e), (h, e, d))
    sources = [1 + earlier * (h + 1) for earlier in range(shape.n_layers - 1)]
    some = min(rows, 32)  # at a time, as the engine does it: they stay in the cache
    sums = sum(seconds(torch.bmm, (some, 3 * h + 1, before), (some, before, d)) for before in sources) * rows / some
    return (layer * len(sources) + sums) / setting.batch


def measure(setting: Setting, sides: list[str], repeats: int, hook_repeats: int, memory: bool) -> dict[str, Any]:
    """Times, agreement and memory of both works at one setting."""
    shape = Shape.of(setting.config())
    edges = some_circuit(setting)
    least = {
        "attribution": attribution_flop(shape, setting.positions, setting.steps),
        "circuit": circuit_flop(shape, setting.positions),
    }
    result: dict[str, Any] = {
        "setting": asdict(setting),
        "edges": shape.edges,
        "least_gflop_per_prompt": {work: flop / 1e9 for work, flop in least.items()},
        "products_gflop_per_second": products_rate(setting) / 1e9,
        "circuit_products_seconds_per_prompt": circuit_products_seconds(setting),
    }
    answers: dict[str, dict[str, Tensor]] = {"attribution": {}, "circuit": {}}
    for side in sides:
        made = SIDES[side](setting)
        runs = repeats if side == "engine" else hook_repeats
        works: dict[str, Callable[[], Tensor]] = {"attribution": made.scores, "circuit": partial(made.circuit, edges)}
        for work, call in works.items():
            answers[work][side] = call().detach().double().cpu()  # the run that is not counted
            seconds = best_seconds(call, runs, setting.device, warm_up=False)
            result.setdefault(work, {})[side] = {
                "seconds_per_prompt": seconds / setting.batch,
                "gflop_per_second": least[work] / 1e9 * setting.batch / seconds,
            }
        del made, works
        gc.collect()
    for work, answer in answers.items():
        if len(answer) == 2:
            ours, theirs = answer["engine"], answer["hook-based"]
            times = {side: result[work][side]["seconds_per_prompt"] for side in sides}
            result[work]["ratio"] = times["hook-based"] / times["engine"]
            result[work]["difference"] = float((ours - theirs).abs().max() / theirs.abs().max())
    if memory:
        for work in answers:
            for side in sides:
                result[work][side] |= peak_memory_of_fresh_process(setting, side, work)
    return result


def measure_graph_files(setting: Setting) -> dict[str, float]:
    """Seconds to write and read the graph's JSON file, and to select from it."""
    layout = setting.layout()
    scores = torch.randn(layout.n_sources, layout.n_targets, generator=torch.Generator().manual_seed(0))
    graph = Graph(layout, scores * layout.real_edges, layout.real_edges.clone(), 1)
    quarter = layout.n_edges // 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.json"
        times = {"write_seconds": best_seconds(lambda: write_graph(path, graph), 3)}
        times["read_seconds"] = best_seconds(lambda: read_graph(path), 3)
        times["megabytes"] = path.stat().st_size / 1e6
    times["top_n_seconds"] = best_seconds(lambda: top_n(graph, quarter), 5)
    chosen = top_n(graph, quarter)
    times["prune_seconds"] = best_seconds(lambda: prune(chosen), 5)
    return {"edges": layout.n_edges, **times}


# --- Printing --------------------------------------------------------------------------------------------------------


def report(result: dict[str, Any], peak: float) -> None:
    """Print one setting's measurements."""
    setting = result["setting"]
    print(
        f"\n{setting['shape']}: {result['edges']:,} edges, batch {setting['batch']}, {setting['positions']} positions,"
        f" m = {setting['steps']}, {setting['dtype']} on {setting['device']}"
    )
    products = result["products_gflop_per_second"]
    print(
        f"  attribution's products with weights alone: {products:.1f} GFLOP/s, {products * 1e9 / peak:.0%} of the peak"
    )
    alone = result["circuit_products_seconds_per_prompt"]
    print(f"  products of the clean, corrupted and circuit run alone: {alone:.4f} s a prompt")
    for work in ("attribution", "circuit"):
        print(f"  {work}: at least {result['least_gflop_per_prompt'][work]:.2f} GFLOP a prompt")
        for side, values in result[work].items():
            if not isinstance(values, dict):
                continue
            share = values["gflop_per_second"] * 1e9 / peak
            memory = ""
            if "peak_mb" in values:
                memory = f"   peak memory {values['peak_mb']:,.0f} MB ({values['added_mb']:,.0f} beyond the model)"
            print(
                f"    {side:<11}{values['seconds_per_prompt']:>10.4f} s a prompt"
                f"{values['gflop_per_second']:>9.1f} GFLOP/s{share:>7.0%} of the peak{memory}"
            )
        if "ratio" in result[work]:
            print(f"    {result[work]['ratio']:.1f} times as fast; largest difference {result[work]['difference']:.1e}")


def sweep_settings(base: Setting) -> dict[str, list[Setting]]:
    """Settings along each axis, the others at their base values."""
    shape = Shape.of(base.config())
    axes: dict[str, list[Any]] = {
        "layers": [max(1, shape.n_layers // 2), shape.n_layers, shape.n_layers * 2],
        "positions": [base.positions, base.positions * 2, base.positions * 4],
        "batch": [max(1, base.batch // 4), base.batch, base.batch * 2],
        "steps": [1, base.steps, base.steps * 2],
    }
    if shape.n_heads == shape.n_kv_heads:
        axes["heads"] = [max(1, shape.n_heads // 2), shape.n_heads, shape.n_heads * 2]
    return {axis: [replace(base, **{axis: value}) for value in dict.fromkeys(values)] for axis, values in axes.items()}


def report_sweep(axis: str, results: list[dict[str, Any]], sides: list[str]) -> None:
    """Print one axis: seconds per prompt and memory at each value, and the power with which they grow."""
    values = [result["setting"][axis] for result in results]
    print(f"\n{axis:<12}" + "".join(f"{value:>10}" for value in values) + "   grows as")
    for work in ("attribution", "circuit"):
        for side in sides:
            for key, label in (("seconds_per_prompt", "s a prompt"), ("added_mb", "MB added")):
                numbers = [result[work][side].get(key) for result in results]
                if None in numbers:
                    continue
                power = ""
                if values[-1] > values[0] and min(numbers) > 0:
                    power = f"   {axis}^{math.log(numbers[-1] / numbers[0]) / math.log(values[-1] / values[0]):.2f}"
                print(f"  {work} {side}, {label}".ljust(44) + "".join(f"{number:>10.4g}" for number in numbers) + power)


def machine(setting: Setting) -> dict[str, Any]:
    """What the numbers were measured with."""
    versions = {package: version(package) for package in ("torch", "transformers", "transformer-lens")}
    return {
        "processor": processor(setting.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


# --- Command line ----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="gpt2", help="whose shape the random model has (gpt2)")
    parser.add_argument("--layers", type=int, help="layers, instead of the shape's own")
    parser.add_argument("--heads", type=int, help="heads, instead of the shape's own; each keeps its width")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<n> (cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="number type of both sides (float32)")
    parser.add_argument("--tf32", action="store_true", help="let float32 products on a GPU round to TF32 (no)")
    parser.add_argument("--blas", action="store_true", help="products on a CPU by BLAS alone, without oneDNN (no)")
    parser.add_argument("--batch", type=int, default=8, help="prompts per batch (8)")
    parser.add_argument("--positions", type=int, default=16, help="tokens per prompt (16)")
    parser.add_argument("--steps", type=int, default=5, help="interpolation steps m (5)")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of the engine; the best is told (5)")
    parser.add_argument("--hook_repeats", type=int, default=1, help="counted runs of the hook-based way (1)")
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's choice)")
    parser.add_argument(
        "--hook_based",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the hook-based way too (yes; not possible for phi-1_5, whose blocks have no second norm to hook)",
    )
    parser.add_argument(
        "--parameter_gradients",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let the hook-based way compute the parameters' gradients too, which EAP-IG's code does not switch off and"
        " does not use (yes); --no-parameter_gradients measures it at its best",
    )
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory too (yes)"
    )
    parser.add_argument("--sweep", action="store_true", help="vary layers, heads, positions, batch and steps")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--measure_memory", help=argparse.SUPPRESS)
    return parser


def prepare(setting: Setting) -> None:
    """Set the number of threads, and the precision and kernel of float32 products."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    torch.set_float32_matmul_precision("high" if setting.tf32 else "highest")
    torch.backends.mkldnn.enabled = not setting.blas  # type: ignore[assignment]


def main() -> None:
    arguments = parser().parse_args()
    if arguments.measure_memory:
        request = json.loads(arguments.measure_memory)
        setting = Setting(**request["setting"])
        prepare(setting)
        print(json.dumps(peak_memory(setting, request["side"], request["work"])))
        return
    setting = Setting(**{field.name: getattr(arguments, field.name) for field in fields(Setting)})
    prepare(setting)
    sides = ["engine", "hook-based"] if arguments.hook_based and setting.shape != "phi-1_5" else ["engine"]
    content: dict[str, Any] = {"machine": machine(setting)}
    print(", ".join(f"{key} {value}" for key, value in content["machine"].items()))
    peak = content["matrix_peak_flop_per_second"] = _peak(setting)
    print(f"matrix-product peak {peak / 1e9:,.0f} GFLOP/s in {setting.dtype}")

    def measured(point: Setting) -> dict[str, Any]:
        return measure(point, sides, arguments.repeats, arguments.hook_repeats, arguments.memory)

    if arguments.sweep:
        content["sweep"] = {}
        for axis, points in sweep_settings(setting).items():
            content["sweep"][axis] = [measured(point) for point in tqdm(points, desc=axis)]
            report_sweep(axis, content["sweep"][axis], sides)
    else:
        content["result"] = measured(setting)
        # The machine may have been busier the first time; the higher peak is the harder one to come near.
        peak = max(peak, _peak(setting))
        content["matrix_peak_flop_per_second"] = peak
        report(content["result"], peak)
        content["graph_files"] = measure_graph_files(setting)
        print("\ngraph of {edges:,} edges: ".format(**content["graph_files"]), end="")
        print(", ".join(f"{key} {value:.3f}" for key, value in content["graph_files"].items() if key != "edges"))
    if arguments.json:
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
