"""The model that training starts from: a checkpoint to go on from, or a configuration with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from knowledge_circuits.files import InputError, first_line
from knowledge_circuits.manifest import FOLDER_MANIFEST, check, sound_manifest
from knowledge_circuits.models.loading import DTYPES, load_configuration, load_model
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.records import LoggedState, shape
from knowledge_circuits.run_config import StartingModel, read_run_config
from knowledge_circuits.runs import Run
from knowledge_circuits.training.arguments import ModelArguments
from knowledge_circuits.training.checkpoints import UNIT


def training_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """Return the tokenizer named by the flags, else the one that comes with the model or the configuration.

    Raises:
        InputError: none is named, or the one that is cannot be loaded.
    """
    name = arguments.tokenizer_name or arguments.model_name_or_path or arguments.config_name
    if name is None:
        raise InputError("no tokenizer: give --model_name_or_path, or --tokenizer_name with a model from scratch")
    # The revision is the model's; a tokenizer of another repository has its own.
    revision = arguments.model_revision if name in (arguments.model_name_or_path, arguments.config_name) else "main"
    return load_tokenizer(name, arguments.trust_remote_code, revision=revision, cache_dir=arguments.cache_dir)


def training_model(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Load the model to go on from, or make one with random weights.

    Args:
        tokenizer: its ids must fit the model's vocabulary; a model from scratch gets a vocabulary of its size, or
            keeps the one of --config_name where that is larger.

    Raises:
        InputError: no such model, no or damaged weights, an unknown architecture, or a tokenizer of another model.
    """
    if arguments.dtype not in DTYPES:
        raise InputError(f"--dtype {arguments.dtype!r} is not one of: {', '.join(DTYPES)}")
    if arguments.model_name_or_path is None:
        return _from_scratch(arguments, tokenizer, seed)
    check_start(Path(arguments.model_name_or_path))
    model = load_model(
        arguments.model_name_or_path,
        dtype=DTYPES[arguments.dtype],
        trust_remote_code=arguments.trust_remote_code,
        revision=arguments.model_revision,
        cache_dir=arguments.cache_dir,
    )
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise InputError(
            f"the tokenizer {tokenizer.name_or_path!r} has {len(tokenizer)} tokens, the model "
            f"{arguments.model_name_or_path!r} only {model.get_input_embeddings().weight.shape[0]}; use the model's own"
        )
    return model


def check_start(folder: Path) -> None:
    """Refuse a checkpoint folder whose files are not as its manifest says, byte for byte; other models pass."""
    manifest = sound_manifest(folder / FOLDER_MANIFEST)  # without one, loading checks the weights
    if manifest is not None and manifest.unit in (UNIT, "model"):
        state = check(folder / FOLDER_MANIFEST, verify=True)
        if not state.is_whole:
            raise InputError(
                f"{folder}: {state.detail}; make it again or start from another checkpoint, or remove "
                f"{FOLDER_MANIFEST} if you changed it on purpose"
            )


def starting_model(folder: Path) -> StartingModel | None:
    """Return how a checkpoint's weights were made; None for a checkpoint of another program."""
    manifest = sound_manifest(folder / FOLDER_MANIFEST)
    if manifest is not None and manifest.unit == "model":
        return StartingModel(made_from=dict(manifest.made_from))
    run, state = Run(folder.resolve().parent.parent), folder / "trainer_state.json"
    if folder.resolve().parent != run.checkpoints_folder or not run.config.exists():
        return None
    epoch = shape(LoggedState).file(state).get("epoch") if state.exists() else None
    return StartingModel(configuration=read_run_config(run), epoch=epoch)


def _from_scratch(arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    config = model_configuration(arguments)
    if arguments.config_name is None or config.vocab_size < len(tokenizer):
        config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[arguments.dtype], trust_remote_code=arguments.trust_remote_code
            )
    except Exception as error:  # a width that the heads do not divide, an architecture that is no language model, ...
        raise InputError(f"no model can be made of this configuration: {first_line(error)}") from error


def model_configuration(arguments: ModelArguments) -> PreTrainedConfig:
    """Return the configuration of the named model, changed by --config_overrides where it starts from scratch.

    Raises:
        InputError: no model named, no such configuration or architecture, or an override of what it does not have.
    """
    name = arguments.model_name_or_path or arguments.config_name
    if name is not None:
        if Path(name).is_dir() and not (Path(name) / "config.json").exists():
            raise InputError(f"{name}: not a checkpoint folder (no config.json)")
        config = load_configuration(name, arguments.trust_remote_code, arguments.model_revision, arguments.cache_dir)
    elif arguments.model_type in CONFIG_MAPPING:
        config = CONFIG_MAPPING[arguments.model_type]()
    elif arguments.model_type:
        raise InputError(f"--model_type {arguments.model_type!r} is no architecture that transformers knows")
    else:
        raise InputError("no model: give --model_name_or_path, or --config_name or --model_type to train from scratch")
    if arguments.config_overrides:
        if arguments.model_name_or_path is not None:
            raise InputError("--config_overrides is for models from scratch; --model_name_or_path brings its weights")
        try:
            config.update_from_string(arguments.config_overrides)
        except (ValueError, AttributeError) as error:
            raise InputError(f"--config_overrides {arguments.config_overrides!r}: {first_line(error)}") from error
    return config
