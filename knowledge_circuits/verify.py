"""Check every finished unit below a folder against its manifest, byte for byte.

    python -m knowledge_circuits.verify outputs/train/nano/default

The folder is a run, a data folder or any folder above them. Prints the units that are damaged, interrupted or of
another checkpoint than where they lie, the result files that no manifest lists, and the number of whole units. The exit
status is 0 if everything is whole. Nothing is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from knowledge_circuits.command_line import program_parser, run_program
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import FOLDER_MANIFEST, MANIFEST_ENDING, State, Status, check, read_manifest
from knowledge_circuits.runs import Coordinates, checkpoints


def manifests(folder: Path) -> list[Path]:
    """Return all manifests at or below a folder."""
    return sorted(
        path
        for path in folder.rglob(f"*{MANIFEST_ENDING}")
        if path.name == FOLDER_MANIFEST or path.name.endswith("_" + FOLDER_MANIFEST)
    )


def states(folder: Path, quick: bool = False) -> Iterator[State]:
    """Yield the state of every unit at or below a folder, then of every result file without a manifest.

    Args:
        folder: a run, a data folder, or a folder above them.
        quick: compare sizes only.
    """
    listed: set[Path] = set()
    for path in manifests(folder):
        state = check(path, verify=not quick)
        if state.status is not Status.DAMAGED:
            state = _against_weights(path, state)
        yield state
        try:
            manifest = read_manifest(path)
        except InputError:
            continue
        listed.update(path.parent / name for name in (manifest.files if manifest else ()))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in listed and _is_result(path):
            yield State(Status.UNKNOWN, path, "no manifest lists it")


def _against_weights(path: Path, state: State) -> State:
    """Return the state of a checkpoint's result, compared with the weights that lie there now."""
    from knowledge_circuits.models.loading import weights_digest

    manifest = read_manifest(path)
    checkpoint = next((parent for parent in path.parents if (parent / "config.json").is_file()), None)
    if manifest is None or checkpoint is None or "weights" not in manifest.made_from:
        return state
    if not checkpoints(str(checkpoint))[0].name.startswith("checkpoint-"):
        return state
    weights = weights_digest(checkpoint)
    if weights is None or weights == manifest.made_from["weights"]:
        return state
    return State(Status.OTHER, path, f"weights {manifest.made_from['weights']}, now {weights}")


def _is_result(path: Path) -> bool:
    """Return whether a file is one that the programs write for a checkpoint."""
    if path.name == "prediction.jsonl":
        return True
    start = next((i for i, part in enumerate(path.parts) if part.startswith("circuit_") and part[8:].isdecimal()), None)
    return start is not None and Coordinates.read(Path(*path.parts[start:])) is not None and not _is_manifest(path)


def _is_manifest(path: Path) -> bool:
    return path.name.endswith(MANIFEST_ENDING)


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, a data folder, or a folder above them")
    parser.add_argument("--quick", action="store_true", help="compare sizes only, not all bytes")
    args = parser.parse_args()
    if not args.folder.is_dir():
        raise InputError(f"{args.folder}: no such folder")
    count: Counter[Status] = Counter()
    for state in states(args.folder, args.quick):
        count[state.status] += 1
        if not state.is_whole:
            print(state)
    print(", ".join(f"{count[status]} {status}" for status in Status if count[status]) or "no units")
    return 0 if set(count) <= {Status.WHOLE} else 1


if __name__ == "__main__":
    run_program(main)
