"""Compare attribution methods: CPR and CMD as in MIB (arXiv 2504.13151), seconds per prompt, memory, known circuits.

    python benchmarks/methods.py --model models/SmolLM2-135M --json methods.json --figure methods.svg
    python benchmarks/methods.py --model outputs/train/nano/default/checkpoints/checkpoint-1080 --tasks biographies \\
        --biographies data/entities_360/circuit_30/nano/city.jsonl --methods exact eap-ig eap-ig-gim random
    python benchmarks/methods.py --known_circuit

For each model and task a method scores all edges on the discovery split. Its circuits of ten sizes are evaluated on the
evaluation split, which shares no prompt with it. CPR is the area under faithfulness over the share of edges, circuits
chosen by signed score (higher is better); CMD the area under |1 - faithfulness|, circuits chosen by |score| (0 is
best). Both are repeated on resamples of the discovery prompts (drawn with replacement); the table gives mean and
standard deviation. Random scores and `exact` (one edge patched at a time) are the ends of the scale; `ensemble` is the
mean of the scores of EAP-IG and of EAP under GIM and RelP (`selection.mean_scores`). A task that the model does not do
on at least 80% of its evaluation prompts is refused.

With `--json` the program continues after an interruption: a method's row that the file has is not measured again, if
the file is of the same settings.

Seconds and memory are those of scoring on this machine; memory is what it adds to the loaded model. Without a GPU
seconds are processor seconds of all threads, which other programs on the machine hardly change.
`--known_circuit` prints each method's ROC area for the edges of a circuit set by hand (`known_circuit.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tqdm import tqdm

from benchmarks.known_circuit import Induction, roc_area
from benchmarks.measuring import memory_peak, processor, reset_peak, synchronize, table_head, table_row
from benchmarks.tasks import TASKS, Task, load_biographies, load_mib, load_task
from knowledge_circuits.command_line import HelpFormatter, positive, run_program
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.evaluation import CURVE_SHARES, FaithfulnessCurve, evaluate
from knowledge_circuits.engine.graph import Graph, layout_of
from knowledge_circuits.engine.metrics import MetricFunction
from knowledge_circuits.engine.options import GradientRule, Method, Metric
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.selection import mean_scores, prune, top_n
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError, atomic_write, write_json
from knowledge_circuits.mib import DATA_SETS
from knowledge_circuits.models.tokenization import load_tokenizer

T = TypeVar("T")

BIOGRAPHIES = "biographies"
#: Names of the tasks that take MIB's data sets.
MIB = tuple(f"mib-{name}" for name in DATA_SETS)

#: Name on the command line -> method and gradient rule of each graph whose scores are averaged; none for random scores.
METHODS: dict[str, tuple[tuple[Method, GradientRule], ...]] = {
    "random": (),
    "eap": ((Method.EAP, GradientRule.STANDARD),),
    "eap-gim": ((Method.EAP, GradientRule.GIM),),
    "eap-relp": ((Method.EAP, GradientRule.RELP),),
    "clean-corrupted": ((Method.CLEAN_CORRUPTED, GradientRule.STANDARD),),
    "eap-ig": ((Method.EAP_IG, GradientRule.STANDARD),),
    "eap-ig-gim": ((Method.EAP_IG, GradientRule.GIM),),
    "eap-ig-relp": ((Method.EAP_IG, GradientRule.RELP),),
    "eap-ig-activations": ((Method.EAP_IG_ACTIVATIONS, GradientRule.STANDARD),),
    "ensemble": (
        (Method.EAP_IG, GradientRule.STANDARD),
        (Method.EAP, GradientRule.GIM),
        (Method.EAP, GradientRule.RELP),
    ),
    "exact": ((Method.EXACT, GradientRule.STANDARD),),
}

#: `exact` runs the model once per edge: by default only where there are at most so many.
EXACT_EDGES = 2000


@dataclass(frozen=True)
class Row:
    """One method on one task of one model.

    Attributes:
        cpr, cmd, seconds, memory_mb: one per resample; seconds per prompt, MB above the loaded model.
    """

    model: str
    task: str
    method: str
    cpr: list[float]
    cmd: list[float]
    seconds: list[float]
    memory_mb: list[float]

    def mean(self, column: str) -> float:
        """Return a column's mean over resamples."""
        return statistics.fmean(getattr(self, column))

    def spread(self, column: str) -> float:
        """Return a column's standard deviation over resamples; 0 for one."""
        values = getattr(self, column)
        return statistics.stdev(values) if len(values) > 1 else 0.0


def scores(
    name: str, decoder: Decoder, pairs: PromptPairs, metric: Metric | MetricFunction, seed: int, batch_size: int = 16
) -> Graph:
    """Return every edge's score by a method of `METHODS`; `seed` is that of random scores."""
    graphs = [
        attribute(decoder, pairs, method, metric=metric, gradient=gradient, batch_size=batch_size)
        for method, gradient in METHODS[name]
    ]
    if graphs:
        return mean_scores(graphs) if len(graphs) > 1 else graphs[0]
    layout = layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
    values = torch.randn(layout.real_edges.shape, generator=torch.Generator().manual_seed(seed))
    return Graph(layout, values * layout.real_edges, layout.real_edges.clone(), decoder.d_model)


def measured(work: Callable[[], T], device: str) -> tuple[T, float, float]:
    """Return a call's result, its seconds, and the MB that it held at most above what was held before."""
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    before = reset_peak(device)
    start = clock()
    result = work()
    synchronize(device)
    seconds = clock() - start
    return result, seconds, (memory_peak(device) - before) / 1e6


def curves(decoder: Decoder, graph: Graph, task: Task, batch_size: int = 16) -> tuple[FaithfulnessCurve, ...]:
    """Return MIB's two curves of a scored graph on the evaluation split: by signed score (CPR) and by |score| (CMD).

    The numbers are `faithfulness_curve`'s. Both curves share the clean and the corrupted run; each different
    circuit runs once. The whole model and the empty circuit are not run: their faithfulness is 1 and 0.
    """
    layout = graph.layout
    sizes = [int(share * layout.n_edges) for share in CURVE_SHARES]
    selected = [[prune(top_n(graph, size, absolute)) for size in sizes] for absolute in (False, True)]
    empty, whole = (mask.numpy().tobytes() for mask in (layout.real_edges & False, layout.real_edges))
    different = {circuit.in_graph.numpy().tobytes(): circuit for circuits in selected for circuit in circuits}
    values = {empty: 0.0, whole: 1.0}
    run = [key for key in different if key not in values]
    outcomes = evaluate(
        decoder, [different[key] for key in run], task.evaluation, metric=task.metric, batch_size=batch_size
    )
    for key, outcome in zip(run, outcomes, strict=True):
        if outcome.faithfulness is None:
            raise InputError(f"task {task.name}: clean and corrupted prompts have the same mean metric")
        values[key] = outcome.faithfulness
    return tuple(
        FaithfulnessCurve(
            CURVE_SHARES,
            tuple(values[circuit.in_graph.numpy().tobytes()] for circuit in circuits),
            tuple(circuit.n_edges for circuit in circuits),
        )
        for circuits in selected
    )


def compare(model: str, decoder: Decoder, task: Task, name: str, resamples: int, batch_size: int = 16) -> Row:
    """Score a task with one method on resamples of its discovery split, the same for every method, and evaluate."""
    row = Row(model, task.name, name, [], [], [], [])
    count = len(task.discovery)
    for resample in range(resamples):
        drawn = task.discovery.select(random.Random(resample).choices(range(count), k=count))
        work = partial(scores, name, decoder, drawn, task.metric, resample, batch_size)
        graph, seconds, memory = measured(work, str(decoder.device))
        signed, absolute = curves(decoder, graph, task, batch_size)
        row.cpr.append(signed.cpr)
        row.cmd.append(absolute.cmd)
        row.seconds.append(seconds / count)
        row.memory_mb.append(memory)
    return row


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [table_head("model", "task", "method", "CPR", "CMD", "seconds per prompt", "MB")]
    for row in rows:
        areas = (f"{row.mean(name):.3f} ± {row.spread(name):.3f}" for name in ("cpr", "cmd"))
        cost = f"{row.mean('seconds'):.3g}", f"{max(row.memory_mb):.0f}"
        lines.append(table_row(row.model, row.task, row.method, *areas, *cost))
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: str) -> None:
    """Draw CPR against seconds per prompt, one panel per model and task."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    panels = list(dict.fromkeys((row.model, row.task) for row in rows))
    figure = Figure(figsize=(1.6 + 3.3 * len(panels), 3.2), dpi=150, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for row in rows:
            if (row.model, row.task) != panel:
                continue
            if not METHODS[row.method]:
                axes.axhline(row.mean("cpr"), color="grey", linestyle=":", label=row.method)
                continue
            spread = {"xerr": row.spread("seconds"), "yerr": row.spread("cpr")}
            axes.errorbar(row.mean("seconds"), row.mean("cpr"), **spread, fmt="o", capsize=2, label=row.method)
        axes.set(xscale="log", xlabel="seconds per prompt", ylabel="CPR", title=" / ".join(panel))
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format=Path(path).suffix.removeprefix(".") or "png")


def known_circuit_areas(
    methods: Sequence[str], model: Induction, prompts: int = 16, seeds: Sequence[int] = (0, 1, 2)
) -> dict[str, list[float]]:
    """Return each method's ROC areas for the known circuit's edges, one per seed of prompts and random scores."""
    decoder = model.decoder()
    return {
        name: [
            roc_area(scores(name, decoder, model.pairs(prompts, seed), Metric.LOGIT_DIFFERENCE, seed)) for seed in seeds
        ]
        for name in methods
    }


def known_circuit_table(methods: Sequence[str], sharpness: Sequence[float] = (4, 8, 16, 32)) -> str:
    """Return the ROC areas over the induction head's sharpness as a Markdown table (mean and least of three seeds)."""
    areas = [known_circuit_areas(methods, Induction(value, leak=0.1)) for value in sharpness]
    lines = [table_head("method", *(f"sharpness {value:g}" for value in sharpness))]
    for name in methods:
        cells = (f"{statistics.fmean(column[name]):.3f} (least {min(column[name]):.3f})" for column in areas)
        lines.append(table_row(name, *cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", default=[], help="checkpoint folders or hub names")
    add("--tasks", nargs="+", default=list(TASKS), choices=[*TASKS, BIOGRAPHIES, *MIB])
    add("--biographies", help="the circuit data file of the task biographies")
    add("--mib_data", help="has a folder for each of MIB's data sets; default: the hub (with HF_HUB_OFFLINE=0)")
    add("--methods", nargs="+", choices=list(METHODS), help=f"default: all; exact up to {EXACT_EDGES} edges")
    add("--count", type=positive, default=40, help="prompts of each split")
    add("--resamples", type=positive, default=3, help="resamples of the discovery split")
    add("--least_accuracy", type=float, default=0.8, help="a task below this accuracy is refused")
    add("--batch_size", type=positive, default=16)
    add("--device", default="cpu")
    add("--threads", type=positive, help="CPU threads")
    add("--json", help="write all numbers here")
    add("--figure", help="draw CPR against cost here")
    add("--known_circuit", action="store_true", help="print the ROC areas for the known circuit")
    args = parser.parse_args(arguments)
    if not args.model and not args.known_circuit:
        raise InputError("nothing to compare; give --model, or --known_circuit")
    if BIOGRAPHIES in args.tasks and not args.biographies:
        raise InputError("the task biographies needs --biographies, a circuit data file")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.known_circuit:
        print(known_circuit_table(args.methods or list(METHODS)))
    rows, accuracies = earlier(args)
    for path in args.model:
        tokenizer, decoder = load_tokenizer(path), load_decoder(path, device=args.device)
        name = Path(path).name
        layout = layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
        methods = args.methods or [m for m in METHODS if m != "exact" or layout.n_edges <= EXACT_EDGES]
        for task_name in args.tasks:
            try:
                if task_name == BIOGRAPHIES:
                    task = load_biographies(args.biographies, tokenizer, args.count)
                elif task_name in MIB:
                    task = load_mib(task_name.removeprefix("mib-"), tokenizer, args.count, args.mib_data)
                else:
                    task = load_task(task_name, tokenizer, args.count)
                accuracies.setdefault(name, {})[task.name] = task.require_accuracy(decoder, args.least_accuracy)
            except InputError as error:
                print(f"refused: {name}: {error}", file=sys.stderr)
                continue
            known = {row.method for row in rows if (row.model, row.task) == (name, task.name)}
            for method in tqdm([m for m in methods if m not in known], desc=f"{name} {task.name}"):
                rows.append(compare(name, decoder, task, method, args.resamples, args.batch_size))
                if args.json:
                    write_json(args.json, report(args, rows, accuracies))
            print(table([row for row in rows if (row.model, row.task) == (name, task.name)]), flush=True)
    if args.model and not rows:
        raise InputError("every task was refused")
    if args.figure and rows:
        draw(rows, args.figure)
    return 0


def earlier(args: argparse.Namespace) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Return the rows and accuracies that the file of `--json` has.

    Raises:
        InputError: the file is of other settings.
    """
    if not args.json or not Path(args.json).exists():
        return [], {}
    content = json.loads(Path(args.json).read_text())
    now = {key: value for key, value in report(args, [], {}).items() if key not in ("accuracy", "rows")}
    differing = [f"{key} {content.get(key)!r}, now {now[key]!r}" for key in now if content.get(key) != now[key]]
    if differing:
        raise InputError(f"{args.json} was made with {'; '.join(differing)}; take another file or remove it")
    return [Row(**row) for row in content["rows"]], content["accuracy"]


def report(args: argparse.Namespace, rows: Sequence[Row], accuracies: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return everything that was measured, and how."""
    return {
        "processor": processor(args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "prompts": args.count,
        "resamples": args.resamples,
        "accuracy": accuracies,
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    run_program(main)
