"""How fast the engine is against EAP-IG 2.0 and auto-circuit, on the same weights and prompts in one sitting.

    bash benchmarks/peers.sh ENVIRONMENT FOLDER      makes the peers' environment from their sources in FOLDER
    python benchmarks/peers.py --environment ENVIRONMENT --json peers.json

Both peers need TransformerLens 2, which cannot live beside the project's packages, so they run in an environment of
their own, one process per side and round. Engine and peers take turns; each one's best time and best CPU time are
told. The model has GPT-2 small's shape and random weights, in float32. Measured are

- attribution: EAP-IG with m steps 0..m-1 (EAP-IG 2.0 as it is; the engine with `first_step=0`); auto-circuit's
  integrated mask gradient, with m - 1 as its samples, which makes m runs;
- evaluation: a clean, a corrupted and a circuit's run under patching, for a quarter of the edges.

EAP-IG's scores and logit differences are compared with the engine's; auto-circuit's scores are another method's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from benchmarks.measuring import matrix_peak, processor, random_prompts

LAYERS, HEADS, WIDTH, VOCABULARY = 12, 12, 768, 50257
PEERS = ("eap", "auto-circuit")
Works = dict[str, Callable[[], Any]]


def prompts(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Return clean and corrupted ids [b, p], which begin alike and end with the same relation, and labels [b, 2]."""
    generator = random.Random(0)
    clean, corrupted = random_prompts(generator, arguments.batch, arguments.positions, VOCABULARY)
    labels = [[generator.randrange(1, VOCABULARY) for _ in range(2)] for _ in clean]
    return torch.tensor(clean), torch.tensor(corrupted), torch.tensor(labels)


def circuit() -> Tensor:
    """Return a quarter of the edges [u, v], drawn at random."""
    shape = (1 + LAYERS * (HEADS + 1), LAYERS * (3 * HEADS + 1) + 1)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.25


def model() -> Any:
    """Return GPT-2 small's shape with random weights, the same in every environment."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, vocab_size=VOCABULARY)
    torch.manual_seed(0)
    made = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)  # libraries initialize differently
    with torch.no_grad():
        for name, parameter in sorted(made.named_parameters()):
            if parameter.ndim > 1:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * (0.02 if "wpe" not in name else 0.01)
                )
    return made


def engine(arguments: argparse.Namespace) -> Works:
    """Return the engine's two works; each returns what is compared."""
    import knowledge_circuits as kc
    from knowledge_circuits.engine.graph import Graph, Layout
    from knowledge_circuits.engine.weights import decoder_from_model

    decoder = decoder_from_model(model())
    pairs = kc.PromptPairs(*(part.tolist() for part in prompts(arguments)))
    layout = Layout(LAYERS, HEADS)
    edges = circuit() & layout.real_edges
    chosen = Graph(layout, torch.zeros(edges.shape), edges, WIDTH)

    def evaluation() -> Tensor:
        (result,) = kc.evaluate(decoder, [chosen], pairs, batch_size=arguments.batch)
        return result.circuit

    return {
        "attribution": lambda: (
            kc.attribute(decoder, pairs, ig_steps=arguments.steps, first_step=0, batch_size=arguments.batch).scores
        ),
        "evaluation": evaluation,
    }


def hooked_model() -> Any:
    """Return the same model in TransformerLens 2, with a tokenizer whose words are `w<id>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w0", pad_token="w0")
    config = HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        n_ctx=1024,
        n_heads=HEADS,
        d_head=WIDTH // HEADS,
        d_vocab=VOCABULARY,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:  # it reads the tokenizer again
        tokenizer.save_pretrained(folder)
        hooked = HookedTransformer(config, AutoTokenizer.from_pretrained(folder), default_padding_side="right").eval()
    hooked.load_state_dict(convert_gpt2_weights(model(), config), strict=False)
    hooked.set_use_attn_result(True)
    hooked.set_use_split_qkv_input(True)
    hooked.set_use_hook_mlp_in(True)
    return hooked


def difference(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit differences [b] of logits [b, p, n] at the last position."""
    chosen = logits[:, -1].gather(1, labels)
    return chosen[:, 0] - chosen[:, 1]


def eap_ig(arguments: argparse.Namespace) -> Works:
    """Return EAP-IG 2.0's two works."""
    from eap import attribute as eap_attribute
    from eap.evaluate import evaluate_graph
    from eap.graph import Graph

    # It names the device "cuda" for its scores, whatever device the model is on.
    zeros = torch.zeros
    eap_attribute.torch.zeros = lambda *shape, **options: zeros(
        *shape, **{**options, **({"device": "cpu"} if options.get("device") == "cuda" else {})}
    )
    hooked = hooked_model()
    clean, corrupted, labels = prompts(arguments)
    texts = [[" ".join(f"w{token}" for token in row[1:]) for row in part.tolist()] for part in (clean, corrupted)]
    batches = [(*texts, labels)]
    graph = Graph.from_model(hooked)

    def attribution() -> Tensor:
        def loss(logits: Tensor, _clean: Tensor, _lengths: Tensor, labels: Tensor) -> Tensor:
            return -difference(logits, labels).sum()

        eap_attribute.attribute(hooked, graph, batches, loss, "EAP-IG-inputs", ig_steps=arguments.steps, quiet=True)
        return graph.scores.clone()

    def evaluation() -> Tensor:
        def metric(logits: Tensor, _clean: Tensor, _lengths: Tensor, labels: Tensor) -> Tensor:
            return difference(logits, labels)

        graph.in_graph[:] = circuit() & graph.real_edge_mask
        graph.nodes_in_graph[:] = True
        return evaluate_graph(hooked, graph, batches, metric, quiet=True, skip_clean=False)

    return {"attribution": attribution, "evaluation": evaluation}


def auto_circuit(arguments: argparse.Namespace) -> Works:
    """Return auto-circuit's two works."""
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune import run_circuits
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.types import AblationType, PatchType
    from auto_circuit.utils.graph_utils import patchable_model

    clean, corrupted, labels = prompts(arguments)
    data = PromptDataset(clean, corrupted, list(labels[:, :1]), list(labels[:, 1:]))
    loader = PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=arguments.batch, shuffle=False)
    patchable = patchable_model(hooked_model(), factorized=True, slice_output="last_seq", separate_qkv=True)
    scores = {
        name: torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
        for name, mask in patchable.patch_masks.items()
    }
    quarter = sum(part.numel() for part in scores.values()) // 4

    def attribution() -> Any:
        for wrapper in patchable.dest_wrappers:
            wrapper.patch_mask.grad = None
        return mask_gradient_prune_scores(
            patchable, loader, None, "logit", "avg_diff", integrated_grad_samples=arguments.steps - 1
        )

    def evaluation() -> Any:
        with torch.inference_mode():
            patchable(clean)
        return run_circuits(patchable, loader, [quarter], scores, PatchType.TREE_PATCH, AblationType.RESAMPLE)

    return {"attribution": attribution, "evaluation": evaluation}


MAKERS = {"engine": engine, "eap": eap_ig, "auto-circuit": auto_circuit}


def worker(arguments: argparse.Namespace) -> None:
    """Measure one side in this process; print a JSON line and save what is compared."""
    works = MAKERS[arguments.worker](arguments)
    result: dict[str, Any] = {"peak_flop_per_second": matrix_peak("cpu", torch.float32, 1.0)}
    for name, work in works.items():
        answer = work()  # the run that is not counted
        if isinstance(answer, Tensor) and arguments.answers:
            torch.save(answer.detach().double(), Path(arguments.answers) / f"{arguments.worker}.{name}.pt")
        times = [timed(work) for _ in range(arguments.repeats)]
        result[name], result[f"{name}_cpu"] = (min(part) / arguments.batch for part in zip(*times, strict=True))
    print(json.dumps(result))


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds and the CPU seconds of a run; on a busy machine, with one thread, the latter say more."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(arguments: argparse.Namespace, side: str, folder: str) -> dict[str, float]:
    """Run one side's process."""
    python = sys.executable if side == "engine" else str(Path(arguments.environment) / "bin" / "python")
    names = ("batch", "positions", "steps", "repeats", "threads")
    flags = [part for name in names for part in (f"--{name}", str(getattr(arguments, name)))]
    done = subprocess.run(
        [python, __file__, "--worker", side, "--answers", folder, *flags], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all sides in turn and return their best times, the ratios and EAP-IG's largest relative difference."""
    sides = ("engine", *arguments.peers)
    best: dict[str, dict[str, float]] = {}
    content: dict[str, Any] = {"processor": processor("cpu"), "threads": arguments.threads, "torch": torch.__version__}
    content["prompts"] = {name: getattr(arguments, name) for name in ("batch", "positions", "steps")}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for side in sides:
                measured = measure(arguments, side, folder)
                kept = best.setdefault(side, measured)
                for name, value in measured.items():
                    kept[name] = (max if name == "peak_flop_per_second" else min)(kept[name], value)
                print(side, {name: round(value, 4) for name, value in measured.items()}, flush=True)
        differences = {}
        for work in ("attribution", "evaluation"):
            files = [Path(folder) / f"{side}.{work}.pt" for side in ("engine", "eap")]
            if all(file.exists() for file in files):
                ours, theirs = (torch.load(file, weights_only=True) for file in files)
                differences[work] = float((ours - theirs.view_as(ours)).abs().max() / theirs.abs().max())
    content |= {"best": best, "differences_from_eap": differences}
    content["ratios"] = {
        side: {work: best[side][work] / best["engine"][work] for work in best[side] if work != "peak_flop_per_second"}
        for side in arguments.peers
    }
    return content


def main() -> None:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environment", help="the folder of the peers' environment (peers.sh)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="which peers (both)")
    parser.add_argument("--batch", type=int, default=8, help="prompts per batch (8)")
    parser.add_argument("--positions", type=int, default=16, help="tokens per prompt (16)")
    parser.add_argument("--steps", type=int, default=5, help="interpolation steps m (5)")
    parser.add_argument("--repeats", type=int, default=2, help="counted runs per process (2)")
    parser.add_argument("--rounds", type=int, default=2, help="processes per side; they take turns (2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (PyTorch's choice)")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--worker", choices=MAKERS, help=argparse.SUPPRESS)
    parser.add_argument("--answers", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        worker(arguments)
        return
    if not arguments.environment:
        parser.error("name the peers' environment with --environment; benchmarks/peers.sh makes it")
    content = compare(arguments)
    for peer, ratios in content["ratios"].items():
        print(peer, ", ".join(f"{work}: {ratio:.1f} times the engine's time" for work, ratio in ratios.items()))
    print("largest difference from EAP-IG, relative:", content["differences_from_eap"])
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
