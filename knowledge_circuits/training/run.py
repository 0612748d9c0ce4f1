"""A training run: from flags to checkpoints, resumable at any moment.

The run's folder has run_config.json (the whole configuration and the data's seed), evaluations.jsonl, and checkpoints/:
checkpoint-0 is the model before the first step, the others are ordinary checkpoint folders, the newest of which also
holds what training needs to go on. A run that is started again goes on from there; a finished one has nothing to do.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from knowledge_circuits import __version__
from knowledge_circuits.corpus.documents import TEXT
from knowledge_circuits.corpus.questions import holds_questions
from knowledge_circuits.engine.memory import reuse_freed_memory
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import locked
from knowledge_circuits.models.loading import context_length, weights_digest
from knowledge_circuits.run_config import write_run_config
from knowledge_circuits.runs import Run
from knowledge_circuits.training.arguments import (
    DataArguments,
    ModelArguments,
    RunArguments,
    SaveSchedule,
    run_folder,
    set_accumulation,
)
from knowledge_circuits.training.callbacks import (
    EvaluationLog,
    SavingCallback,
    TrainingBar,
    evaluation_record,
    exponential_steps,
)
from knowledge_circuits.training.checkpoints import step_of
from knowledge_circuits.training.data import (
    CACHE,
    TrainingBlocks,
    TrainingData,
    choose_block_size,
    collate,
    data_configuration,
    pack_documents,
    read_training_documents,
)
from knowledge_circuits.training.divergence import Reference
from knowledge_circuits.training.exposure import AdaptiveBlocks, EndOfExposure
from knowledge_circuits.training.lora import add_adapter
from knowledge_circuits.training.probe_files import probe_callbacks
from knowledge_circuits.training.probes import ProbeArguments, Schedule
from knowledge_circuits.training.resume import is_done, prepare_folder, settings_fingerprint
from knowledge_circuits.training.starting_model import (
    model_configuration,
    starting_model,
    training_model,
    training_tokenizer,
)
from knowledge_circuits.training.strategies import StrategyArguments, annotate
from knowledge_circuits.training.trainer import CheckpointTrainer, loading

#: Makes the callbacks of a run that do more than keep it; called with the run's folder and the model's tokenizer.
CallbackMaker = Callable[[Run, PreTrainedTokenizerBase], Sequence[TrainerCallback]]


@dataclass(frozen=True)
class Flags:
    """All flags of a run."""

    model: ModelArguments
    data: DataArguments
    training: RunArguments
    probes: ProbeArguments = field(default_factory=ProbeArguments)
    strategy: StrategyArguments = field(default_factory=StrategyArguments)


@dataclass(frozen=True)
class Outcome:
    """What a call of `train` came to: the newest checkpoint's step, and whether there was something left to do."""

    run: Run
    step: int
    trained: bool


def train(flags: Flags, make_callbacks: CallbackMaker = lambda run, tokenizer: ()) -> Outcome:
    """Train, or go on training, or see that all is done.

    Args:
        make_callbacks: makes further callbacks than the flagged probes. All are called before evaluations are recorded
            and checkpoints are saved, and may end the training (`control.should_training_stop`).

    Raises:
        InputError: flags, data, model or an earlier run of that name do not fit, or training diverged.
    """
    arguments = flags.training
    refuse_unsupported(arguments)
    refuse_combinations(flags)
    set_accumulation(arguments)
    run, tokenizer, data = open_run(flags)
    configuration = run_configuration(flags, data)
    with locked(run.path, "training") if arguments.process_index == 0 else nullcontext():
        return _train(flags, run, configuration, data, tokenizer, make_callbacks)


def _train(
    flags: Flags,
    run: Run,
    configuration: dict[str, Any],
    data: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    make_callbacks: CallbackMaker,
) -> Outcome:
    """Train in a folder in which no other process trains."""
    arguments = flags.training
    with arguments.main_process_first(desc="looking at the run's folder"):
        steps = planned_steps(arguments, len(data.train))
        resumed = prepare_folder(run, configuration, arguments, steps)
    if resumed is not None and is_done(run, configuration, resumed, steps):
        return Outcome(run, step_of(resumed), trained=False)
    blocks = training_blocks(flags, run, data, tokenizer)
    probes = probe_callbacks(flags.probes, tokenizer, run, data.documents.new, blocks.documents_seen)
    callbacks: list[TrainerCallback] = [*probes, *make_callbacks(run, tokenizer)]
    if isinstance(blocks, AdaptiveBlocks):
        callbacks.append(EndOfExposure(blocks))
    model = training_model(flags.model, tokenizer, arguments.seed)
    for callback in probes:
        callback.probe.check_fits(model)  # before anything is written
    strategy = strategy_parts(flags, model, tokenizer)
    settings = settings_fingerprint(configuration)
    trainer = make_trainer(arguments, run, model, tokenizer, data, callbacks, settings, blocks, **strategy)
    for callback in probes:
        callback.log = trainer.log
    if trainer.is_world_process_zero():
        write_run_config(run, configuration)
    if resumed is None:
        trainer.save_start()
    # The Trainer would evaluate again whenever it goes on, so this belongs to a fresh start only.
    arguments.eval_on_start = resumed is None and data.evaluation is not None and arguments.eval_strategy != "no"
    if resumed is not None:
        with loading(str(resumed)):
            TrainerState.load_from_json(str(resumed / TRAINER_STATE_NAME))
    reuse_freed_memory()
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    trainer.end()
    return Outcome(run, trainer.state.global_step, trained=True)


def evaluate(flags: Flags) -> dict[str, float]:
    """Return loss, accuracy and first-token attribute accuracies of the named model, without training."""
    run, tokenizer, data = open_run(flags)
    model = training_model(flags.model, tokenizer, flags.training.seed)
    metrics = make_trainer(flags.training, run, model, tokenizer, data, ()).evaluate()
    record = evaluation_record(metrics, 0, 0.0)
    return {name: value for name, value in record.items() if name not in ("step", "epoch")}


def refuse_combinations(flags: Flags) -> None:
    """Refuse strategies that the other flags give nothing to work on."""
    if not flags.strategy.adaptive_exposure:
        return
    if flags.probes.probe_file is None or not holds_questions(flags.probes.probe_file):
        raise InputError("--adaptive_exposure needs question probes: a --probe_file with the column question")
    if Schedule.parse(flags.probes.probe_every).steps is not None:
        raise InputError("--adaptive_exposure needs --probe_every epoch, since the epochs' probes decide what is read")
    if flags.training.max_steps > 0 or not float(flags.training.num_train_epochs).is_integer():
        raise InputError("--adaptive_exposure counts whole epochs: give --num_train_epochs, without --max_steps")


def training_blocks(flags: Flags, run: Run, data: TrainingData, tokenizer: PreTrainedTokenizerBase) -> TrainingBlocks:
    """Return what the Trainer reads: the same blocks in every epoch, or those of adaptive exposure."""
    arguments = flags.training
    together = arguments.train_batch_size * arguments.world_size if arguments.world_size > 1 else 1
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    if flags.strategy.adaptive_exposure:
        return AdaptiveBlocks(data, tokenizer, seed, together, run.question_probes, flags.probes.learned_threshold)
    return TrainingBlocks(data.train, seed, together, len(data.documents.train))


def strategy_parts(flags: Flags, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what strategies add to a Trainer: adapters (put into `model`) and references."""
    strategy, seed = flags.strategy, flags.training.seed
    references = [
        Reference(training_model(flags.model, tokenizer, seed), weight, follows)
        for weight, follows in ((strategy.kl_start, False), (strategy.kl_previous, True))
        if weight
    ]
    adapter = None
    if strategy.lora_rank is not None:
        adapter = add_adapter(model, strategy, flags.model.model_name_or_path, seed)
    return {"adapter": adapter, "references": references}


def refuse_unsupported(arguments: RunArguments) -> None:
    """Refuse Trainer flags that would work against keeping every checkpoint or against the order of the blocks."""
    if arguments.load_best_model_at_end:
        raise InputError("--load_best_model_at_end: every checkpoint is kept, so none is loaded at the end")
    if arguments.auto_find_batch_size:
        raise InputError("--auto_find_batch_size: sequences per step are part of what a run is; use a smaller batch")
    if arguments.save_strategy == SaveStrategy.BEST:
        raise InputError("--save_strategy best: give epoch or steps, or --save_schedule exponential")
    if arguments.dataloader_persistent_workers:
        raise InputError("--dataloader_persistent_workers: such workers repeat the first epoch's order; leave it out")


def open_run(flags: Flags) -> tuple[Run, PreTrainedTokenizerBase, TrainingData]:
    """Return the run's folder, its tokenizer and its packed data, and switch off what libraries say of their own.

    The main process packs the documents, the others read what it left in the cache.
    """
    arguments = flags.training
    run = Run(run_folder(flags.model, flags.data, arguments))
    arguments.output_dir = str(run.path)
    if arguments.log_level == "passive":
        logging.set_verbosity_error()  # warnings that nobody can act on; --log_level asks for them
    logging.disable_progress_bar()
    tokenizer = training_tokenizer(flags.model)
    block_size = choose_block_size(
        flags.data.block_size, context_length(model_configuration(flags.model)), tokenizer.model_max_length
    )
    evaluates = arguments.do_eval or arguments.eval_strategy != "no"
    documents = read_training_documents(flags.data, evaluates, arguments.seed, flags.model.cache_dir)
    if arguments.process_index == 0:
        first = documents.train[0][TEXT]
        print(
            f"{len(documents.train):,} training documents, the first: {first[:80]!r}{'...' if len(first) > 80 else ''}"
        )
    if flags.strategy.annotate_entities:
        documents = replace(documents, train=annotate(documents.train))
    cache = (Path(flags.model.cache_dir) if flags.model.cache_dir else CACHE) / "packed"
    with arguments.main_process_first(desc="packing"):
        return run, tokenizer, pack_documents(documents, tokenizer, block_size, flags.data, cache)


def planned_steps(arguments: RunArguments, blocks: int) -> int:
    """Optimizer steps of the whole run."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    return math.ceil(arguments.num_train_epochs * steps_per_epoch(arguments, blocks))


def steps_per_epoch(arguments: RunArguments, blocks: int) -> int:
    """Optimizer steps of one epoch; the last one may have fewer sequences."""
    batches = math.ceil(blocks / (arguments.train_batch_size * arguments.world_size))
    return max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)


def run_configuration(flags: Flags, data: TrainingData) -> dict[str, Any]:
    """Return all that a run is: its flags, what its data are, and the versions of what it ran on."""
    arguments = flags.training
    generated = data_configuration(flags.data.train_file)
    base = flags.model.model_name_or_path
    start = starting_model(Path(base)) if base else None
    training = {key: value for key, value in arguments.to_dict().items() if key not in ("local_rank", "eval_on_start")}
    return {
        "model": flags.model.model,
        "starting_weights": weights_digest(base) if base else None,
        "starting_model": start.as_dict() if start else None,
        "arguments": {
            **asdict(flags.model),
            **asdict(flags.data),
            **asdict(flags.probes),
            **flags.strategy.changes,
            **training,
        },
        "data": {
            "seed": generated.get("seed"),
            "train_file": flags.data.train_file,
            "content_key": data.content_key,
            "block_size": data.train.block_size,
            "blocks": len(data.train),
            "tokens": int(data.train.counted.sum()),
            "generated": generated,
        },
        "sequences_per_step": arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps,
        "versions": {
            "knowledge_circuits": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate", "tokenizers")},
        },
    }


def make_trainer(
    arguments: RunArguments,
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TrainingData,
    callbacks: Sequence[TrainerCallback],
    settings: str = "",
    blocks: TrainingBlocks | None = None,
    **strategy: Any,
) -> CheckpointTrainer:
    """Return the Trainer of a run, with all callbacks: the run's own come after the given ones."""
    set_up_reporting(arguments, run)
    arguments.remove_unused_columns = False  # the evaluation's attribute types are no argument of the model
    arguments.logging_nan_inf_filter = False  # such a loss ends the training instead
    arguments.dataloader_pin_memory &= torch.cuda.is_available()
    schedule = None
    if arguments.save_schedule == SaveSchedule.EXPONENTIAL:
        schedule = exponential_steps(arguments.save_schedule_cap)
        arguments.save_strategy = SaveStrategy.NO
    trainer = CheckpointTrainer(
        run=run,
        settings=settings,
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=blocks,
        eval_dataset=data.evaluation,
        data_collator=collate,
        callbacks=[
            *callbacks,
            EvaluationLog(run.evaluations, writes=arguments.process_index == 0),
            SavingCallback(schedule, steps_per_epoch(arguments, len(data.train)), arguments.save_half_epochs),
        ],
        **strategy,
    )
    if trainer.is_fsdp_enabled and any(strategy.values()):
        raise InputError("--lora_rank, --kl_start and --kl_previous do not work on models that FSDP shards")
    if not arguments.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(TrainingBar())
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise InputError("FSDP must save whole models: its configuration needs fsdp_state_dict_type: FULL_STATE_DICT")
    return trainer


def set_up_reporting(arguments: RunArguments, run: Run) -> None:
    """Set where logs go: wandb stays offline where no key is set, TensorBoard writes to --logging_dir."""
    if arguments.logging_dir is not None:
        os.environ["TENSORBOARD_LOGGING_DIR"] = arguments.logging_dir
    if "wandb" in (arguments.report_to or []):
        netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
        known = netrc.is_file() and "wandb" in netrc.read_text(errors="ignore")
        if "WANDB_API_KEY" not in os.environ and not known:
            os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_PROJECT", "knowledge-circuits")
        os.environ.setdefault("WANDB_DIR", str(run.path))
