"""How fast the hook-based way is on TransformerLens 2, the one that the `eap` package of EAP-IG runs on.

`attribution.py` measures it on TransformerLens 4, which computes split inputs and per-head results in a way of its own.
TransformerLens 2 cannot live beside 4, so this program has an environment to itself:

    python -m venv outputs/lens2
    outputs/lens2/bin/pip install torch==2.13.0 transformer-lens==2.18.0
    outputs/lens2/bin/python benchmarks/hooked_transformer.py --threads 2

GPT-2 small's shape with random weights, random prompts of one length, float32, parameters' gradients left on as
EAP-IG has them. Printed: seconds per prompt for attribution and for a circuit under patching, this machine's
matrix-product peak in the same minute, and the process's peak memory.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import hook_based
from benchmarks.measuring import best_seconds, matrix_peak, processor, reset_resident_peak, resident_peak

LAYERS, WIDTH, HEADS, VOCABULARY = 12, 768, 12, 50257
SOURCES, TARGETS = 1 + LAYERS * (HEADS + 1), LAYERS * (3 * HEADS + 1) + 1


def main() -> None:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8, help="prompts per batch (8)")
    parser.add_argument("--positions", type=int, default=16, help="tokens per prompt (16)")
    parser.add_argument("--steps", type=int, default=5, help="interpolation steps m (5)")
    parser.add_argument("--repeats", type=int, default=2, help="counted runs; the best is told (2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's choice)")
    arguments = parser.parse_args()
    if not version("transformer-lens").startswith("2."):
        parser.error(f"transformer-lens {version('transformer-lens')} is here; this program is for 2.x (see --help)")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        n_ctx=1024,
        n_heads=HEADS,
        d_head=WIDTH // HEADS,
        d_vocab=VOCABULARY,
        act_fn="gelu_new",
        normalization_type="LN",
        device=arguments.device,
        seed=0,
    )
    model = HookedTransformer(config).eval()
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    shape = (arguments.batch, arguments.positions)
    clean, corrupted = (torch.randint(1, VOCABULARY, shape, device=arguments.device) for _ in range(2))
    labels = torch.randint(1, VOCABULARY, (arguments.batch, 2), device=arguments.device)

    print(
        f"{processor(arguments.device)}, {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" transformer-lens {version('transformer-lens')}"
    )
    peak = matrix_peak(arguments.device, torch.float32)
    print(f"matrix-product peak {peak / 1e9:.0f} GFLOP/s")
    circuit = torch.rand(SOURCES, TARGETS, device=arguments.device) < 0.25  # which edges does not matter
    works = {
        "attribution": lambda: hook_based.attribute(model, clean, corrupted, labels, arguments.steps),
        "circuit": lambda: hook_based.evaluate(model, clean, corrupted, labels, circuit),
    }
    for name, work in works.items():
        work()
        reset_resident_peak()
        if arguments.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds = best_seconds(work, arguments.repeats, arguments.device, warm_up=False)
        memory = torch.cuda.max_memory_allocated() if arguments.device != "cpu" else resident_peak()
        print(f"{name}: {seconds / arguments.batch:.3f} s a prompt, peak memory {memory / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
