"""Is a stage of a pipeline done? scripts/stages.sh asks before it runs one and says so after it ended well.

    python -m knowledge_circuits.stages check  outputs/train/nano/default/stages/predict.json KEY
    python -m knowledge_circuits.stages finish outputs/train/nano/default/stages/predict.json KEY FOLDER ...

A stage is done if its record is finished under the same key (settings and scripts) and every unit that the record lists
is there and whole, by sizes; `python -m knowledge_circuits.verify` compares all bytes. `finish` lists the units of the
stage's kind below the given folders.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from knowledge_circuits.command_line import run_program
from knowledge_circuits.files import InputError, read_json
from knowledge_circuits.manifest import FileRecord, check, finish, read_manifest
from knowledge_circuits.verify import manifests

#: The kinds of units that a stage makes.
UNITS = {
    "data": ("data", "circuit data", "model"),
    "train": ("checkpoint",),
    "predict": ("predictions",),
    "eap": ("graph",),
    "circuit_eval": ("circuit", "cross groups"),
    "report": ("report",),
}
#: Its files that are no units.
FILES = {"figures": ("figures/*.png",), "report": ("summary.txt",)}


def outputs(stage: str, folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the manifests and files that a stage makes below the folders."""
    kinds = UNITS.get(stage, ())
    for folder in folders:
        for path in manifests(folder) if kinds else ():
            if (manifest := read_manifest(path)) and manifest.unit in kinds:
                yield path
        for pattern in FILES.get(stage, ()):
            yield from sorted(folder.glob(pattern))


def unfinished(record: Path, key: str) -> str:
    """Return why a stage is not done, in a line; an empty text if it is done."""
    state = check(record, {"key": key})
    if not state.is_whole:
        return state.detail
    for name, size in read_json(record)["made_from"]["outputs"].items():
        path = Path(name)
        if not path.is_file():
            return f"{path} is missing"
        if path.name.endswith("manifest.json"):
            if not (unit := check(path)).is_whole:
                return str(unit)
        elif path.stat().st_size != size:
            return f"{path} is not as it was written"
    return ""


def record_stage(record: Path, key: str, folders: Iterable[Path]) -> None:
    """Write that a stage is done; refuse one that makes units and has left none, or one that is not whole."""
    made = list(dict.fromkeys(outputs(record.stem, folders)))
    if record.stem in UNITS and not made:
        raise InputError(f"{record.stem} ended without an error but left no {UNITS[record.stem][0]}")
    for path in made:
        if path.name.endswith("manifest.json") and not (state := check(path)).is_whole:
            raise InputError(f"{record.stem} ended without an error, but {state}")
    sizes = {path.as_posix(): FileRecord.of(path).bytes for path in made}
    finish(record, "stage", {"key": key, "outputs": sizes}, [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["check", "finish"])
    parser.add_argument("record", type=Path, help="the stage's record, <stage>.json")
    parser.add_argument("key", help="stands for the settings and scripts")
    parser.add_argument("folders", nargs="*", type=Path, help="where the stage's units lie")
    args = parser.parse_args()
    if args.action == "finish":
        record_stage(args.record, args.key, [folder for folder in args.folders if folder.is_dir()])
        return 0
    reason = unfinished(args.record, args.key)
    if reason and args.record.exists():
        print(f"   {args.record.stem} runs again: {reason}")
    return 1 if reason else 0


if __name__ == "__main__":
    run_program(main)
