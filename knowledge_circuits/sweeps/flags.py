"""The flags that circuit_discovery.py and circuit_eval.py share, as settings; and the choices of predict.py.

Flags of the original keep their names and meaning.

Imports neither torch nor transformers (see `command_line`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Self

from knowledge_circuits.command_line import add_work_flags, choice, gigabytes, positive
from knowledge_circuits.engine.options import GradientRule, Method, Metric
from knowledge_circuits.files import InputError
from knowledge_circuits.runs import GRAPH_SUFFIXES, Checkpoint, CircuitFolder, method_name
from knowledge_circuits.study import TASKS, AnyGroup, Attribute, Band, Group, KnowledgeType, groups

#: Pairs per group, and prompts per pass, of one's own facts whose circuits are measured at every checkpoint.
MEASURED_PAIRS, MEASURED_BATCH = 20, 8


class Context(StrEnum):
    """Which documents stand in the prompt of a question; see `answers`."""

    NONE = "none"
    GOLD = "gold"
    ENTITY = "entity"
    RETRIEVED = "retrieved"


_GRADIENT_HELP = f"backward rule of attribution: {', '.join(GradientRule)}; default standard"
_METRIC_HELP = (
    f"what graphs are scored by and circuits judged by: {', '.join(Metric)}; default logit_difference. The first token"
    " of an answer decides, as in the paper; under answer_log_probability all its tokens do (the mean of their log"
    " probabilities), but not in predictions and Hit@10"
)
_ENSEMBLE_HELP = (
    "further ways of scoring, named as in the folders method_<name>, such as EAP_gim: circuit_discovery.py scores by "
    "each, circuit_eval.py takes circuits from the mean of --method's scores and theirs"
)
DATA_FILE_HELP = (
    "the study's circuit data ({task} stands for each task), or facts of one's own: .csv, .json or .jsonl with clean,"
    " corrupted, answer, corrupted_answer (or EAP-IG's correct_idx, incorrect_idx)"
)
GROUP_BY_HELP = "columns that group one's own facts; default: the column group, or one group of all"
_PAIR_ANEW_HELP = (
    "of one's own facts: draw another corrupted prompt of the group where a pair differs in its number of tokens or has"
    " none; without it such pairs are named and left out"
)


def add_group_flags(parser: argparse.ArgumentParser, prefix: str = "", meaning: str = "") -> None:
    """Add the flags that choose groups: `--<prefix>type` x `--<prefix>frequency`, or `--<prefix>group` of own facts."""
    parser.add_argument(
        f"--{prefix}type",
        nargs="+",
        type=choice(KnowledgeType),
        metavar="TYPE",
        help=f"{meaning}types of knowledge: new (K_compl), revised (K_rel); default both",
    )
    parser.add_argument(
        f"--{prefix}frequency",
        nargs="+",
        type=choice(Band),
        metavar="BAND",
        help=f"{meaning}frequency bands: {', '.join(f'{band} ({band.limits})' for band in Band)}; default all",
    )
    parser.add_argument(
        f"--{prefix}group",
        nargs="+",
        metavar="VALUE",
        help=f"{meaning}groups of one's own facts (values of several --group_by columns as 'a / b'); default all",
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
        help="a checkpoint, a run's folder or its checkpoints/ folder (all of it, in step order), or a hub name",
    )
    add(
        "--task",
        nargs="+",
        type=choice(Attribute, TASKS),
        metavar="TASK",
        help=f"of the study: any of {', '.join(TASKS)}; default all",
    )
    add("--group_by", nargs="+", metavar="COLUMN", help=GROUP_BY_HELP)
    add("--pair_anew", action="store_true", help=_PAIR_ANEW_HELP)
    add("--circuit_n", type=positive, default=300, help="most prompts per group; part of the output path; default 300")
    add("--batch_size", type=positive, default=32, help="prompts per pass: speed, memory and rounding; default 32")
    add("--method", type=choice(Method), default=Method.EAP_IG, help=f"{', '.join(Method)}; default EAP-IG")
    add("--gradient", type=choice(GradientRule), default=GradientRule.STANDARD, help=_GRADIENT_HELP)
    add("--metric", type=choice(Metric), default=Metric.LOGIT_DIFFERENCE, help=_METRIC_HELP)
    add("--ensemble", nargs="+", default=[], metavar="METHOD", help=_ENSEMBLE_HELP)
    formats = [suffix[1:] for suffix in GRAPH_SUFFIXES]
    add("--format", choices=formats, default="json", help="of new graph files; default json")
    add(
        "--device_map",
        type=device_map,
        help="spread the layers of a model larger than one device: auto, or JSON that gives modules their devices, such"
        ' as {"": "cuda:0", "model.layers.1": "cuda:1"}; default: the whole model on --device',
    )
    add("--memory_gb", type=gigabytes, help="memory that one pass may use; default: estimated from what is available")
    add_work_flags(parser)


@dataclass(frozen=True, kw_only=True)
class CircuitSettings:
    """How circuits are scored, and how results are written: what both circuit programs are told.

    Attributes:
        circuit_n: prompts per group at most; part of the output path.
        method, gradient, metric: of the attribution; circuits are judged by the same metric.
        ensemble: further ways of scoring (`runs.method_name`) whose scores are averaged with these.
        batch_size, memory_gb: bounds on memory, which change results by rounding only.
        suffix: of new graph files (.json, .json.gz, .pt).
        overwrite: recompute existing results.
        verify: compare all bytes of existing results with their manifests.
    """

    circuit_n: int = 300
    method: Method = Method.EAP_IG
    gradient: GradientRule = GradientRule.STANDARD
    metric: Metric = Metric.LOGIT_DIFFERENCE
    ensemble: tuple[str, ...] = ()
    batch_size: int = 32
    memory_gb: float | None = None
    suffix: str = ".json"
    overwrite: bool = False
    verify: bool = False

    @property
    def methods(self) -> list[str]:
        """The ways of scoring, as paths name them."""
        return list(dict.fromkeys([method_name(self.method, self.gradient, self.metric), *self.ensemble]))

    @property
    def bounds(self) -> dict[str, Any]:
        """The engine's bounds on memory."""
        return {"batch_size": self.batch_size, "memory_gb": self.memory_gb}

    def scored_folder(self, checkpoint: Checkpoint, group: AnyGroup) -> CircuitFolder:
        """Return the files of one group's scores at a checkpoint; of several ways of scoring those of their mean."""
        return checkpoint.circuit_folder(self.circuit_n, group, "+".join(self.methods))

    @classmethod
    def of_flags(cls, args: argparse.Namespace, **more: Any) -> Self:
        """Return the settings of parsed flags: a field is the flag of its name, unless `more` gives it."""
        flags = {one.name: getattr(args, one.name) for one in fields(cls) if hasattr(args, one.name)}
        return cls(**{**flags, "ensemble": tuple(args.ensemble), "suffix": f".{args.format}", **more})


def device_map(text: str) -> str | dict[str, Any]:
    """Parse `auto` or a JSON object of modules' devices: an argparse type."""
    if text == "auto":
        return text
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(isinstance(device, str | int) for device in content.values()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a JSON object of modules and devices")
    return content


def chosen_groups(
    tasks: Sequence[Attribute] | None, types: Sequence[KnowledgeType] | None, bands: Sequence[Band] | None
) -> list[Group]:
    """Return the product of the flags' values without repetitions; None stands for all."""
    product = groups(tasks or TASKS, types or tuple(KnowledgeType), bands or tuple(Band))
    return list(dict.fromkeys(product))


def refuse_flags(args: argparse.Namespace, file: str, names: Sequence[str], reason: str) -> None:
    """Raise InputError for the first of these flags that was given, which do not go with the kind of a data file."""
    for name in names:
        if getattr(args, name):
            raise InputError(f"--{name} does not go with {file}: {reason}")
