"""The flags that circuit_discovery.py and circuit_eval.py share; those of the original keep their names and meaning.

Imports neither torch nor transformers (see `command_line`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from knowledge_circuits.command_line import DTYPE_NAMES, choice, cores, positive
from knowledge_circuits.engine.options import Method
from knowledge_circuits.runs import GRAPH_SUFFIXES
from knowledge_circuits.study import TASKS, Attribute, Band, Group, KnowledgeType, groups


def add_group_flags(parser: argparse.ArgumentParser, prefix: str = "", meaning: str = "") -> None:
    """Add `--<prefix>type` and `--<prefix>frequency`; several values mean their product."""
    parser.add_argument(
        f"--{prefix}type",
        nargs="+",
        type=choice(KnowledgeType),
        default=list(KnowledgeType),
        metavar="TYPE",
        help=f"{meaning}types of knowledge: new (K_compl), revised (K_rel); default both",
    )
    parser.add_argument(
        f"--{prefix}frequency",
        nargs="+",
        type=choice(Band),
        default=list(Band),
        metavar="BAND",
        help=f"{meaning}frequency bands: low (1), medium (2 to 5), high (above 5); default all",
    )


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which model, which circuits, and how the engine runs."""
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="the model's name in output paths and for defaults; the weights come from --model_path",
    )
    add(
        "--model_path",
        required=True,
        help="a checkpoint, a run's checkpoints/ folder (all of it, in step order), or a hub name",
    )
    add(
        "--task",
        nargs="+",
        type=choice(Attribute, TASKS),
        default=list(TASKS),
        metavar="TASK",
        help=f"any of {', '.join(TASKS)}; default all",
    )
    add("--circuit_n", type=positive, default=300, help="prompts per group at most; part of the output path (300)")
    add("--batch_size", type=positive, default=32, help="prompts at a time; changes speed and memory, not results (32)")
    add("--method", type=choice(Method), default=Method.EAP_IG, help=f"{', '.join(Method)}; default EAP-IG")
    add("--output_dir", help="where results go instead of into the checkpoint folders")
    add("--overwrite", action="store_true", help="do again what is on disk already")
    add("--format", choices=[suffix[1:] for suffix in GRAPH_SUFFIXES], default="json", help="of graph files (json)")
    add("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:<number>")
    add("--dtype", choices=DTYPE_NAMES, default="float32", help="of weights and activations (float32)")
    add("--threads", type=positive, default=cores(), help="CPU threads of each process (all cores)")
    add("--memory_gb", type=float, help="memory the engine may use; found when absent; changes rounding only")
    add("--trust_remote_code", action="store_true", help="run code that comes with a model; off by default")


def chosen_groups(tasks: Sequence[Attribute], types: Sequence[KnowledgeType], bands: Sequence[Band]) -> list[Group]:
    """The product of the flags' values without repetitions."""
    return list(groups(list(dict.fromkeys(tasks)), list(dict.fromkeys(types)), list(dict.fromkeys(bands))))
