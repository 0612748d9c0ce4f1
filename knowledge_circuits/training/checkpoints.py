"""Checkpoint folders of a run: written as a whole, described by a manifest, checked before training goes on.

A checkpoint's manifest lists its files with sizes and digests, the fingerprint of the settings that decide the weights,
and the records of the run (evaluations.jsonl, knowledge_dynamics.jsonl, question_probes.jsonl) as they were when it was
saved. Training goes on from the newest checkpoint whose bytes all agree with its manifest; the state that this needs is
kept for the two newest checkpoints, so that one damaged file costs one interval between checkpoints.

Nothing that no manifest lists is deleted: folders that are in the way are renamed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError

from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import (
    FOLDER_MANIFEST,
    MANIFEST_ENDING,
    FileRecord,
    Status,
    check,
    finish,
    read_manifest,
    sound_manifest,
)
from knowledge_circuits.models.loading import weights_digest
from knowledge_circuits.records import TrainerStateFile, shape
from knowledge_circuits.runs import Run

UNIT = "checkpoint"

#: What a checkpoint holds only so that training can go on from it (patterns; also what FSDP writes).
RESUME_STATE = (
    "optimizer.pt",
    "optimizer.bin",
    "optimizer_*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "pytorch_model_fsdp*",
    "previous_epoch.pt",
)
OPTIMIZER_STATE = RESUME_STATE[:3]

#: Checkpoints that keep their resume state.
RESUMABLE = 2

REMEDY = "another --run keeps it, --overwrite_output_dir starts again"


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder; its manifest, unlike trainer_state.json, is compared with it."""
    return int(folder.name.removeprefix("checkpoint-"))


def saved_checkpoints(run: Run) -> list[Path]:
    """Return the folders of a run's checkpoints in step order; none where there is no such folder yet."""
    folders = [path for path in run.checkpoints_folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
    return sorted((path for path in folders if path.is_dir()), key=step_of)


@contextmanager
def staged(run: Run, step: int) -> Iterator[Path]:
    """Give the folder in which a checkpoint is written until `complete`; it goes if the checkpoint cannot be written.

    Raises:
        InputError: instead of an error of a library, behind which a full disk may hide.
    """
    staging = run.checkpoints_folder / f".checkpoint-{step}.partial"  # the same for all processes of a run
    try:
        yield staging
    except (RuntimeError, SafetensorError, OSError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise
        path, reason = run.checkpoints_folder / f"checkpoint-{step}", " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: cannot be written ({reason}); is the disk full? Earlier checkpoints are untouched"
        ) from error


def complete(staging: Path, run: Run, step: int, settings: str) -> None:
    """Write the manifest of a staged checkpoint, make it durable, and give it its final name."""
    final = run.checkpoints_folder / f"checkpoint-{step}"
    written = staging / final.name
    files = [path for path in written.rglob("*") if path.is_file()]
    records = {path.name: FileRecord.of(path).model_dump() for path in records_of(run)} if step else {}
    made_from = {"step": step, "settings": settings, "weights": weights_digest(written), "records": records}
    finish(written / FOLDER_MANIFEST, UNIT, made_from, files)
    for path in (*files, written / FOLDER_MANIFEST):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    if final.exists():
        # The Trainer may save its last step twice.
        shutil.rmtree(final) if _holds_only_what_is_listed(final) else set_aside(final)
    os.replace(written, final)
    staging.rmdir()


def _holds_only_what_is_listed(folder: Path) -> bool:
    manifest = read_manifest(folder / FOLDER_MANIFEST)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return manifest is not None and files <= {*manifest.files, FOLDER_MANIFEST}


def set_aside(folder: Path) -> Path:
    """Rename a folder that is in the way of a checkpoint; no run looks into it any more."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.aside-{number}")).exists():
        number += 1
    os.replace(folder, aside)
    print(f"{folder}: renamed to {aside.name}")
    return aside


def records_of(run: Run) -> list[Path]:
    """Return the run's records that are there."""
    return [path for path in (run.evaluations, run.knowledge_dynamics, run.question_probes) if path.exists()]


def fault(run: Run, folder: Path, settings: str, verify: bool) -> str:
    """Say what is wrong with a checkpoint or with the run's records up to it; an empty text if nothing is.

    Args:
        settings: the fingerprint of the settings that decide the weights.
        verify: compare all bytes; otherwise only sizes.
    """
    state = check(folder / FOLDER_MANIFEST, {"step": step_of(folder), "settings": settings}, verify=verify)
    if not state.is_whole:
        return f"{folder}: {state.detail or state.status}"
    manifest = read_manifest(folder / FOLDER_MANIFEST)
    records = manifest.made_from.get("records") if manifest else None
    for name, record in records.items() if isinstance(records, dict) else ():
        path = run.path / name
        if not path.is_file():
            return f"{path}: missing, though {folder.name} was saved after it had been written"
        try:
            written = FileRecord.model_validate(record)
        except ValidationError:
            return f"{folder / FOLDER_MANIFEST}: damaged (made_from.records.{name})"
        with open(path, "rb") as file:
            content = file.read(written.bytes)
        if hashlib.sha256(content).hexdigest() != written.sha256:
            return f"{path}: other content than when {folder.name} was saved"
    return ""


def has_resume_state(folder: Path) -> bool:
    """Return whether a checkpoint folder has the state that training needs to go on from it."""
    optimizer = any(any(folder.glob(pattern)) for pattern in OPTIMIZER_STATE)
    return optimizer and (folder / "trainer_state.json").exists()


def _was_resumable(folder: Path) -> bool:
    """Return whether training could go on from a checkpoint when it was saved, by its manifest or else its files."""
    manifest = sound_manifest(folder / FOLDER_MANIFEST)
    if manifest is None:
        return has_resume_state(folder)
    return any(fnmatch(name, pattern) for name in manifest.files for pattern in OPTIMIZER_STATE)


def drop_older_resume_state(run: Run) -> None:
    """Remove optimizer, scheduler and random states from all checkpoints but the newest ones that have them.

    A process that was killed while it did so leaves a part of them, which goes too.
    """
    folders = saved_checkpoints(run)
    keep = [folder for folder in folders if _was_resumable(folder)][-RESUMABLE:]
    for folder in folders[: folders.index(keep[0])] if keep else ():
        try:
            manifest = read_manifest(folder / FOLDER_MANIFEST)
        except InputError:
            continue  # a damaged one is left as it is
        if manifest is not None:
            listed = {folder / name: record for name, record in manifest.files.items()}
            rest = {p: r for p, r in listed.items() if not any(fnmatch(p.name, pattern) for pattern in RESUME_STATE)}
            if len(rest) < len(listed):
                finish(folder / FOLDER_MANIFEST, UNIT, manifest.made_from, rest, rest)
        for path in [path for pattern in RESUME_STATE for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def newest_to_go_on_from(run: Run, settings: str, main: bool, is_done: Callable[[Path], bool]) -> Path | None:
    """Return the checkpoint that training goes on from (or ended with); None where the run has none yet.

    Checkpoints later than that are damaged; the main process renames them, so that nothing of them is lost.

    Args:
        settings: as for `fault`.
        main: whether this is the main process.
        is_done: whether nothing is left to train after a checkpoint; of such a one only the sizes are compared.

    Raises:
        InputError: the newest checkpoint is damaged and no earlier one can take its place, or has no state to go on.
    """
    folders = [folder for folder in saved_checkpoints(run) if folder.name != "checkpoint-0"]
    if not folders:
        return None
    newest = folders[-1]
    if check(newest / FOLDER_MANIFEST, beside=[newest / "config.json"]).status is Status.UNKNOWN:
        if is_done(newest):
            return newest
        raise InputError(f"{newest}: has no {FOLDER_MANIFEST}, so nothing tells whether it is whole; {_move_away(run)}")
    wrong = fault(run, newest, settings, verify=False)
    if not wrong and is_done(newest):
        return newest
    wrong = wrong or fault(run, newest, settings, verify=True)
    if not wrong:
        if not has_resume_state(newest):
            raise InputError(f"{newest}: training cannot go on from here, since it has no optimizer state")
        return newest
    for position in range(len(folders) - 2, -1, -1):
        if _was_resumable(folders[position]) and not fault(run, folders[position], settings, verify=True):
            if main:
                print(f"{wrong}; training goes on from {folders[position].name}, the newest whole checkpoint")
                for folder in folders[position + 1 :]:
                    set_aside(folder)
            return folders[position]
    whole = [folder.name for folder in folders[:-1] if not fault(run, folder, settings, verify=True)]
    before = f"the newest whole checkpoint is {whole[-1]}, without the state to go on from it; " if whole else ""
    raise InputError(f"{wrong}; {before}restore the file, or {REMEDY}")


def is_finished(checkpoint: Path) -> bool:
    """Return whether the run that saved this checkpoint ended with it (by its last step, or by a stopping rule)."""
    path = checkpoint / "trainer_state.json"
    state = shape(TrainerStateFile).file(path) if path.exists() else TrainerStateFile()
    control = state.stateful_callbacks.get("TrainerControl")
    arguments = control.get("args") if isinstance(control, dict) else None
    return isinstance(arguments, dict) and bool(arguments.get("should_training_stop"))


def remove_oldest(run: Run, limit: int) -> None:
    """Remove checkpoints but the newest `limit`, as --save_total_limit asks; one without a manifest stays."""
    for folder in saved_checkpoints(run)[:-limit]:
        if (folder / FOLDER_MANIFEST).exists():
            _remove_checkpoint(folder)


def remove_checkpoints(run: Run) -> None:
    """Remove the checkpoints of a run and what was computed in them, as far as manifests list it.

    Raises:
        InputError: a checkpoint without manifest, whose files may be the user's.
    """
    folders = saved_checkpoints(run)
    unknown = [folder for folder in folders if any(folder.iterdir()) and not (folder / FOLDER_MANIFEST).exists()]
    if unknown:
        raise InputError(
            f"{unknown[0]}: no manifest lists its files (an older version or another program made them), so "
            f"--overwrite_output_dir does not remove them; {_move_away(run)}"
        )
    for folder in folders:
        _remove_checkpoint(folder)


def _move_away(run: Run) -> str:
    return f"to start again: mv {run.checkpoints_folder} {run.checkpoints_folder}.old"


def _remove_checkpoint(folder: Path) -> None:
    """Remove what the manifests in a checkpoint's folder list; if anything else is there, rename the folder."""
    # The checkpoint's own manifest goes last: without it, a folder of which a part is left would be nobody's.
    for path in sorted(folder.rglob(f"*{MANIFEST_ENDING}"), key=lambda path: path == folder / FOLDER_MANIFEST):
        manifest = read_manifest(path)
        for name in manifest.files if manifest else ():
            (path.parent / name).unlink(missing_ok=True)
        path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
    if any(folder.iterdir()):
        set_aside(folder)
    else:
        folder.rmdir()
