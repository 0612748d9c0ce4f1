"""Whether a folder holds the same run, is finished, and from which checkpoint its training goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import fingerprint, is_partial_digest
from knowledge_circuits.run_config import read_run_config
from knowledge_circuits.runs import Run
from knowledge_circuits.training.arguments import RunArguments
from knowledge_circuits.training.checkpoints import (
    REMEDY,
    drop_older_resume_state,
    is_finished,
    newest_to_go_on_from,
    records_of,
    remove_checkpoints,
    saved_checkpoints,
    step_of,
)
from knowledge_circuits.training.strategies import chosen

#: Flags that decide the weights or what all probes of a run share: a run cannot go on under other values.
RECIPE = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
    "model_name_or_path",
    "model_type",
    "config_name",
    "config_overrides",
    "model_revision",
    "dtype",
    "skill_examples",
)


def differences(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what two configurations of one run say differently about things that decide its weights, in words."""
    before, after = earlier.get("arguments", {}), now["arguments"]
    names = list(RECIPE)
    # A warm-up below 1 is a share of all steps.
    depends_on_length = {"constant": False, "constant_with_warmup": 0 < after["warmup_steps"] < 1}
    if depends_on_length.get(after["lr_scheduler_type"], True):
        names += ["num_train_epochs", "max_steps"]
    pairs = [(name, before.get(name), after.get(name)) for name in names]
    pairs.append(("sequences per step", earlier.get("sequences_per_step"), now["sequences_per_step"]))
    before, after = chosen(before), chosen(after)
    pairs += [(name, before.get(name), after.get(name)) for name in sorted({*before, *after})]
    said = [f"{name} {old!r}, now {new!r}" for name, old, new in pairs if old != new]
    weights = earlier.get("starting_weights"), now["starting_weights"]
    # Weights that were removed since, or are a hub's, tell nothing, nor does an earlier version's digest of some bytes.
    if all(weights) and weights[0] != weights[1] and not is_partial_digest(weights[0]):
        said.append("other weights to start from")
    if earlier.get("data", {}).get("content_key") != now["data"]["content_key"]:
        said.append("other data, tokenizer or block size")
    return said


def prepare_folder(run: Run, configuration: dict[str, Any], arguments: RunArguments, steps: int) -> Path | None:
    """Make a run's folder ready to start or to go on.

    Args:
        run: the folder; --overwrite_output_dir removes the run in it.
        configuration, steps: as for `is_done`.

    Returns:
        The checkpoint to go on from; None to start from the beginning.

    Raises:
        InputError: the folder holds another run, or checkpoints that training cannot go on from.
    """
    main = arguments.process_index == 0
    if main and arguments.overwrite_output_dir:
        remove_checkpoints(run)
        for path in (run.config_manifest, run.config, *records_of(run)):
            path.unlink(missing_ok=True)
    if main:
        for partial in run.checkpoints_folder.glob(".checkpoint-*.partial"):
            shutil.rmtree(partial)
        if run.checkpoints_folder.is_dir() and not any(run.checkpoints_folder.iterdir()):
            run.checkpoints_folder.rmdir()  # nothing was saved yet
    differing = differences(read_run_config(run).as_dict(), configuration) if run.config.exists() else []
    saved = saved_checkpoints(run)
    if saved and differing:
        raise InputError(f"{run.path} is a run of other settings ({'; '.join(differing)}); {REMEDY}")
    if any(folder.name != "checkpoint-0" for folder in saved) and not run.config.exists():
        raise InputError(f"{run.path} has checkpoints but no run_config.json to say what they are; {REMEDY}")
    if not saved:
        return None
    if main:
        drop_older_resume_state(run)
    settings = settings_fingerprint(configuration)
    return newest_to_go_on_from(run, settings, main, lambda folder: is_done(run, configuration, folder, steps))


def settings_fingerprint(configuration: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits of what decides a run's weights at a step."""
    recipe = {name: configuration["arguments"].get(name) for name in RECIPE}
    data = configuration["data"]["content_key"], configuration["sequences_per_step"]
    strategy = chosen(configuration["arguments"])
    return fingerprint(json.loads(json.dumps([recipe, *data, *([strategy] if strategy else [])], default=str)))


def is_done(run: Run, configuration: dict[str, Any], checkpoint: Path, steps: int) -> bool:
    """Return whether nothing is left to train after a checkpoint.

    Args:
        configuration: what the run is now; one that asks for more epochs than the saved one is not done.
        steps: optimizer steps of the whole run.
    """
    earlier = read_run_config(run).arguments.as_dict()
    same_goal = all(earlier.get(key) == configuration["arguments"][key] for key in ("num_train_epochs", "max_steps"))
    return step_of(checkpoint) >= steps or (same_goal and is_finished(checkpoint))
