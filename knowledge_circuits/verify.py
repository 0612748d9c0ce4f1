"""Check every finished unit below a folder against its manifest, byte for byte.

    python -m knowledge_circuits.verify outputs/train/nano/default

The folder is a run, a data folder, a model's or an adapter's folder with results, or any folder above them. Prints the
units that are damaged, interrupted or of other weights than those where they lie, the result files that no manifest
lists, and the number of whole units. The exit status is 0 if everything is whole. Nothing is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from knowledge_circuits.command_line import program_parser, run_program
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import FOLDER_MANIFEST, MANIFEST_ENDING, State, Status, check, sound_manifest
from knowledge_circuits.runs import Coordinates, is_model


def manifests(folder: Path) -> list[Path]:
    """Return all manifests at or below a folder."""
    found = folder.rglob(f"*{FOLDER_MANIFEST}")
    return sorted(path for path in found if f"_{path.name}".endswith(f"_{FOLDER_MANIFEST}"))


def states(folder: Path, quick: bool = False) -> Iterator[State]:
    """Yield the state of every unit at or below a folder, then of every result file without a manifest.

    Args:
        folder: a run, a data folder, or a folder above them.
        quick: compare sizes, and all bytes only of weights that results are of.
    """
    listed: set[Path] = set()
    for path in manifests(folder):
        state = check(path, verify=not quick)
        yield state if state.status is Status.DAMAGED else _against_weights(path) or state
        manifest = sound_manifest(path)
        listed.update(path.parent / name for name in (manifest.files if manifest else ()))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in listed and _is_result(path):
            yield State(Status.UNKNOWN, path, "no manifest lists it")


def _against_weights(path: Path) -> State | None:
    """Return what is wrong with a result of other weights than those in the model's folder where it lies; else None.

    An earlier version's digest of some bytes is none in a checkpoint's own manifest, which lists the weight files.
    """
    from knowledge_circuits.models.loading import adapter_base, weights_digest

    manifest = sound_manifest(path)
    folder = next((parent for parent in path.parents if is_model(parent)), None)
    if manifest is None or folder is None:
        return None
    try:
        base = adapter_base(str(folder))
        now = {"weights": weights_digest(folder), "base model": weights_digest(base.path) if base else None}
    except InputError as error:  # a damaged adapter_config.json
        return State(Status.DAMAGED, path, str(error))
    state = check(path, {key: digest for key, digest in now.items() if digest and key in manifest.made_from})
    unknown = state.status is Status.UNKNOWN and path != folder / FOLDER_MANIFEST
    return state if unknown or state.status is Status.OTHER else None


def _is_result(path: Path) -> bool:
    """Return whether a file is one that the programs write for a checkpoint."""
    if path.name == "prediction.jsonl":
        return True
    start = next((i for i, part in enumerate(path.parts) if part.startswith("circuit_") and part[8:].isdecimal()), None)
    if start is None or path.name.endswith(MANIFEST_ENDING):
        return False
    return Coordinates.read(Path(*path.parts[start:])) is not None


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, a data folder, or a folder above them")
    parser.add_argument("--quick", action="store_true", help="compare sizes; all bytes only of weights")
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
