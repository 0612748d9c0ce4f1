"""What torch.compile and CUDA graphs give where launching kernels takes longer than running them.

    python benchmarks/launches.py --shape gpt2 --device cuda --batch 1 8 64
    python benchmarks/launches.py --shape nano --batch 1 --ways eager compile

Measured is the part of attribution that is launched most: the forward pass of the m + 1 runs of a batch and the
backward pass through every layer, on random weights and prompts. The ways are `eager` (what the engine does),
`compile` (torch.compile of the whole pass for fixed shapes) and `graph` (a CUDA graph of the eager pass). Each way's
gradient at the first layer's queries is compared with the eager one; compiling is timed apart, since a sweep pays it
once per prompt length and batch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.attribution import DTYPES, SHAPES, Setting, prepare
from benchmarks.measuring import best_seconds, processor, table_head, table_row
from knowledge_circuits.engine.backward import Backward
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import embed, forward
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.files import write_json

WAYS = ("eager", "compile", "graph")


def pass_of(decoder: Decoder, setting: Setting) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the pass, from embeddings [m + 1 runs x b, p, d] to the first layer's query gradients, and its input."""
    backward = Backward(decoder)

    def run(embedded: Tensor) -> Tensor:
        trace = forward(decoder, embedded)
        gradient = backward.norm(trace.final_normalized, torch.ones_like(trace.final))
        layers = list(backward.layers(trace, gradient))
        return layers[-1].q.output

    (batch,) = setting.pairs().batches(setting.batch)
    clean, corrupted = (embed(decoder, ids.to(decoder.device)) for ids in (batch.clean, batch.corrupted))
    points = [step / setting.steps for step in range(setting.steps + 1)]
    return run, torch.cat([torch.lerp(corrupted, clean, point) for point in points])


def compiled(run: Callable[[Tensor], Tensor], embedded: Tensor, backend: str) -> Callable[[], Tensor]:
    """Return the pass compiled for this shape."""
    torch._dynamo.reset()
    program = torch.compile(run, fullgraph=True, dynamic=False, backend=backend)
    return lambda: program(embedded)


def captured(run: Callable[[Tensor], Tensor], embedded: Tensor) -> Callable[[], Tensor]:
    """Return the replay of a CUDA graph of the pass."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(embedded)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(embedded)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def measure(decoder: Decoder, setting: Setting, way: str, repeats: int, backend: str) -> dict[str, float]:
    """Seconds per prompt of one way, the seconds of its preparation, and how far it is from the eager pass."""
    run, embedded = pass_of(decoder, setting)
    expected = run(embedded)
    started = time.perf_counter()
    if way == "graph":
        work = captured(run, embedded)
    else:
        work = compiled(run, embedded, backend) if way == "compile" else lambda: run(embedded)
    found = work()
    prepared = time.perf_counter() - started
    seconds = best_seconds(work, repeats, setting.device)
    return {
        "seconds_per_prompt": seconds / setting.batch,
        "preparation_seconds": prepared,
        "difference": float((found - expected).abs().max() / expected.abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2", help="whose shape the random model has (gpt2)")
    parser.add_argument("--layers", type=int, help="layers, instead of the shape's own")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<n> (cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="number type (float32)")
    parser.add_argument("--tf32", action="store_true", help="let float32 products on a GPU round to TF32 (no)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], help="prompts per batch (1 8 64)")
    parser.add_argument("--positions", type=int, default=16, help="tokens per prompt (16)")
    parser.add_argument("--steps", type=int, default=5, help="interpolation steps m (5)")
    parser.add_argument("--repeats", type=int, default=10, help="counted runs; the best is told (10)")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=["eager", "compile"], help="(eager compile)")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (inductor)")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    args = parser.parse_args()
    if "graph" in args.ways and not args.device.startswith("cuda"):
        parser.error("a CUDA graph needs --device cuda")

    def setting(batch: int) -> Setting:
        return Setting(
            *(args.shape, args.layers, None, batch, args.positions, args.steps, args.dtype, args.device, None, False),
            tf32=args.tf32,
        )

    prepare(setting(1))
    decoder = decoder_from_model(setting(1).model())
    results = []
    print(f"{args.shape} on {processor(args.device)}, {args.positions} positions, m = {args.steps}, {args.dtype}")
    print(table_head("batch", "way", "s a prompt", "preparation, s", "difference"))
    with torch.no_grad():
        for batch in args.batch:
            for way in args.ways:
                numbers = measure(decoder, setting(batch), way, args.repeats, args.backend)
                results.append({"batch": batch, "way": way, **numbers})
                seconds, preparation, difference = numbers.values()
                print(table_row(batch, way, f"{seconds:.5f}", f"{preparation:.1f}", f"{difference:.1e}"), flush=True)
    if args.json:
        write_json(args.json, {"setting": json.loads(json.dumps(vars(args), default=str)), "results": results})


if __name__ == "__main__":
    main()
