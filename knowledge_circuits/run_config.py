"""A run's run_config.json: how a run was made. Training writes it; reports and analyses read it.

Every key may be missing, since folders of foreign or older runs lack some; what a key says is checked. Keys that are
not listed here (the Trainer's flags, for example) stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from knowledge_circuits.files import InputError, write_json
from knowledge_circuits.manifest import Status, begin, check, finish
from knowledge_circuits.records import RECORD, Count, Share, shape
from knowledge_circuits.runs import Run
from knowledge_circuits.study import TASKS, Attribute


class _Part(BaseModel):
    model_config = ConfigDict(**RECORD, protected_namespaces=())

    def as_dict(self) -> dict[str, Any]:
        """Return what the file says, as it says it."""
        return self.model_dump(exclude_unset=True)


class Flags(_Part):
    """The flags of train.py that other parts read; the others are extra keys."""

    train_file: str | None = None
    model_name_or_path: str | None = None
    replay_ratio: Share | None = None
    seed: Count | None = None


class DataOfRun(_Part):
    """What the run was trained on: the data's seed, size and content key, and how they were generated."""

    seed: Count | None = None
    content_key: str | None = None
    generated: dict[str, Any] = {}


class StartingModel(_Part):
    """How the weights that training started from were made, where this program made them.

    Attributes:
        made_from: the flags of `base_model_creation.py`, for random weights.
        configuration: of the run that they are a checkpoint of.
        epoch: that checkpoint's.
    """

    made_from: dict[str, Any] = {}
    configuration: RunConfig | None = None
    epoch: float | None = None


class RunConfig(_Part):
    """A run's configuration.

    Attributes:
        model: the name that output paths use.
        starting_weights: the digest of the weights that training started from; None for weights of a hub.
        starting_model: how these weights were made; None for foreign ones, and for runs that did not record it.
        arguments: every flag of train.py.
        data: what was learned.
        sequences_per_step: sequences that made one optimizer step.
        versions: of Python and the libraries.
    """

    model: str = ""
    starting_weights: str | None = None
    starting_model: StartingModel | None = None
    arguments: Flags = Flags()
    data: DataOfRun = DataOfRun()
    sequences_per_step: Count | None = None
    versions: dict[str, str] = {}


def write_run_config(run: Run, configuration: Mapping[str, Any]) -> None:
    """Write a run's configuration and its manifest, so that one that was lost or changed since is noticed."""
    begin(run.config_manifest, "configuration", {})
    write_json(run.config, configuration)
    finish(run.config_manifest, "configuration", {}, [run.config])


def taught_attributes(config: RunConfig) -> tuple[Attribute, ...]:
    """Return the attributes that a run's training tells; a mirrored data set tells the others in the past alone."""
    return TASKS if "mirrored_data_generation" in config.data.generated else tuple(Attribute)


def read_run_config(run: Run) -> RunConfig:
    """Read a run's configuration, which must be as its manifest says; an empty one where the run has none.

    Raises:
        InputError: with the file, the key and the reason; or it is not as its manifest says.
    """
    state = check(run.config_manifest, verify=True)
    if state.status is Status.DAMAGED:
        remedy = f"restore it, or remove {run.config_manifest.name} if you changed it on purpose"
        raise InputError(f"{run.config}: {state.detail}; {remedy}")
    return shape(RunConfig).file(run.config) if run.config.exists() else RunConfig()
