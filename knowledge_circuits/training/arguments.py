"""The flags of train.py: which model, which data, and every flag of the Hugging Face Trainer.

`--logging_dir` and `--overwrite_output_dir`, which transformers 5 dropped, still exist. The output folder is the run's,
outputs/train/<model>/<run> (outputs/forget/<model>/replay_<r> where `--replay_ratio` is given); `--output_dir` names
another, or its checkpoints/ folder, where the checkpoints go.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from knowledge_circuits.command_line import HelpFormatter
from knowledge_circuits.files import BOUNDS, Bounds, InputError, parse_json, read_json
from knowledge_circuits.paths import check_name
from knowledge_circuits.training.flags import USAGE, option

#: The folder of a run that holds its checkpoints.
CHECKPOINTS = "checkpoints"


class SaveSchedule(StrEnum):
    """When checkpoints are saved: as the Trainer's --save_strategy says, or ever more rarely."""

    STRATEGY = "strategy"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True)
class ModelArguments:
    """Which model is trained, and the name of its run's folder."""

    model: str = option("model", "The name that output paths use; weights come from --model_name_or_path.")
    model_name_or_path: str | None = option(
        None, "A checkpoint folder or hub name to go on from. None: train from scratch."
    )
    model_type: str | None = option(
        None, "From scratch: an architecture, such as gpt2, with its default configuration."
    )
    config_name: str | None = option(None, "From scratch: a configuration's folder, file or hub name.")
    config_overrides: str | None = option(
        None, "From scratch: changes to the configuration, such as n_embd=160,n_layer=6."
    )
    tokenizer_name: str | None = option(
        None, "A tokenizer's folder or hub name; default: the model's (or configuration's)."
    )
    cache_dir: str | None = option(None, "Folder of hub downloads and packed data; default: each one's own.")
    model_revision: str = option("main", "The hub model's branch, tag or commit.")
    dtype: str = option("float32", "The weights' data type while training; mixed precision is --bf16.")
    trust_remote_code: bool = option(False, "Allow code from the model's repository to run on this machine.")


@dataclass(frozen=True)
class DataArguments:
    """What the model is trained and evaluated on."""

    train_file: str | None = option(
        None,
        "Documents to train on: .jsonl, .json, .csv, .txt, or a folder of .txt files. They are packed in "
        "this order: shuffle a file in which texts on one subject stand together.",
    )
    validation_file: str | None = option(None, "Documents to evaluate on, in the same forms.")
    dataset_name: str | None = option(None, "A hub data set instead of files.")
    dataset_config_name: str | None = option(None, "The hub data set's configuration.")
    validation_split_percentage: int = option(
        5, "The share held out for evaluation where there is no validation file or split."
    )
    max_train_samples: int | None = option(None, "Train on the first so many documents.")
    max_eval_samples: int | None = option(None, "Evaluate on the first so many documents.")
    text_column: str | None = option(None, "The key or column of the text; default: text, or the only one there is.")
    block_size: int | None = option(None, "Tokens in a block; default: the model's context, at most 1,024.")
    load_data_from_cache: bool = option(True, "Use packed data of the same content.")
    overwrite_cache: bool = option(False, "Pack again even if packed data are there.")
    preprocessing_num_workers: int | None = option(None, "Threads that tokenize.")
    replay_file: str | None = option(
        None, "Documents of an earlier corpus that replace some of the training documents."
    )
    replay_ratio: float | None = option(
        None, "Replay: the share of documents that replayed ones replace (Ou et al. 2025, arXiv 2502.11196)."
    )


@dataclass
class RunArguments(TrainingArguments):
    """The Trainer's arguments, and where and how a run is saved.

    Attributes:
        only_evaluates: --do_eval was given and --do_train was not (an --eval_strategy alone asks for training).
    """

    _argument_group_name = "training (the Hugging Face Trainer's flags, and at the end how a run is saved)"

    output_dir: str | None = option(
        None, "The run's folder, or its checkpoints/ folder; default: outputs/train/<model>/<run>."
    )
    run: str = option("default", "The run's name; outputs go to outputs/train/<model>/<run>.")
    overwrite_output_dir: bool = option(
        False, "Start again: remove the files of an earlier run of the same name that its manifests list."
    )
    logging_dir: str | None = option(None, "TensorBoard's folder; default: in the run's.")
    save_schedule: SaveSchedule = field(
        default=SaveSchedule.STRATEGY,
        metadata={"help": "exponential: save at steps 1, 3, 5, 9, 13, 21, 29, ... instead of --save_strategy."},
    )
    save_half_epochs: int = option(0, "Save also in the middle of each of the first so many epochs.")
    save_schedule_cap: int = option(16, "The widest gap of the exponential schedule.")
    sequences_per_step: int | None = option(
        None, "Sequences that make one optimizer step, whatever the number of devices: sets accumulation."
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        output_dir, do_eval = self.output_dir, self.do_eval
        super().__post_init__()  # fills in an output_dir, and do_eval wherever there is an --eval_strategy
        self.output_dir = output_dir
        self.only_evaluates = do_eval and not self.do_train
        self.save_schedule = SaveSchedule(self.save_schedule)


#: The smallest and largest value of flags that are numbers, beside being finite.
_AT_LEAST_ONE = (1, math.inf)
_NOT_NEGATIVE = (0, math.inf)
RANGES = {
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), _AT_LEAST_ONE),
    **dict.fromkeys(("gradient_accumulation_steps", "save_schedule_cap", "sequences_per_step"), _AT_LEAST_ONE),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "save_half_epochs"), _NOT_NEGATIVE),
    **dict.fromkeys(("warmup_steps", "warmup_ratio", "dataloader_num_workers", "adam_epsilon"), _NOT_NEGATIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), (0, 1)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), _NOT_NEGATIVE),
    "num_train_epochs": (0, 1_000_000),
    "save_total_limit": _AT_LEAST_ONE,
    "max_steps": (-1, 10**9),
}


def check_ranges(run: RunArguments) -> None:
    """Refuse numbers that make no sense, before anything is loaded."""
    for flag, (least, most) in RANGES.items():
        value = getattr(run, flag, None)
        if value is not None and not (math.isfinite(value) and least <= value <= most):
            bounds = f"at least {least:g}" if math.isinf(most) else f"from {least:,} to {most:,}"
            raise InputError(f"--{flag} {value}: a finite number {bounds} is wanted")
    if run.max_steps == 0 or (run.max_steps < 0 and run.num_train_epochs == 0):
        raise InputError(
            "--num_train_epochs 0 and --max_steps 0 train nothing; to evaluate only, give --do_eval without --do_train"
        )
    options = run.lr_scheduler_kwargs
    if isinstance(options, str):
        options = parse_json(options, "--lr_scheduler_kwargs")
    if options is not None and not isinstance(options, dict):
        raise InputError(f"--lr_scheduler_kwargs {options}: a JSON object is wanted")


def parse_arguments(argv: Sequence[str], more: Sequence[type] = (), description: str | None = None) -> tuple[Any, ...]:
    """Read the command line, or a single .json file that holds the same flags, and set `files.BOUNDS` by it.

    Args:
        more: further dataclasses whose fields become flags.
        description: what `--help` says before it lists the flags.

    Returns:
        ModelArguments, DataArguments, RunArguments, then one object for each of `more`.

    Raises:
        InputError: a flag that does not exist, or a combination that the Trainer refuses.
    """
    parser = HfArgumentParser(
        [ModelArguments, DataArguments, RunArguments, *more, Bounds],
        usage=USAGE,
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    words = _words_of_file(argv[0]) if len(argv) == 1 and argv[0].endswith(".json") else list(argv)
    try:
        *parsed, bounds = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"the arguments cannot be used: {' '.join(str(error).split())}") from error
    vars(BOUNDS).update(vars(bounds))
    return tuple(parsed)


def _words_of_file(path: str) -> list[str]:
    """Return a JSON object of flags as command line words, so that both are checked alike."""
    flags = read_json(path)
    if not isinstance(flags, dict):
        raise InputError(f"{path}: an object of flags is wanted")
    words = []
    for name, value in flags.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in values)]
    return words


def run_folder(model: ModelArguments, data: DataArguments, run: RunArguments) -> Path:
    """Return the run's folder: --output_dir, or the default one for its kind.

    Raises:
        InputError: a name that would lead out of outputs/.
    """
    if run.output_dir is not None:
        folder = Path(run.output_dir)
        return folder.parent if folder.name == CHECKPOINTS else folder
    check_name(model.model, "--model")
    check_name(run.run, "--run")
    if data.replay_ratio is not None:
        return Path("outputs") / "forget" / model.model / f"replay_{data.replay_ratio:g}"
    return Path("outputs") / "train" / model.model / run.run


def set_accumulation(run: RunArguments) -> None:
    """Make --sequences_per_step hold on this number of devices, by gradient accumulation.

    Raises:
        InputError: the devices' batches do not divide it.
    """
    if run.sequences_per_step is None:
        return
    at_once = run.train_batch_size * run.world_size
    if run.sequences_per_step < at_once or run.sequences_per_step % at_once:
        raise InputError(
            f"--sequences_per_step {run.sequences_per_step} is not a multiple of the {at_once} sequences that the "
            f"devices take at once; change --per_device_train_batch_size ({run.per_device_train_batch_size})"
        )
    run.gradient_accumulation_steps = run.sequences_per_step // at_once
