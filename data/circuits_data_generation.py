"""Pair clean and corrupted prompts under a model's tokenizer: entities_<N>/circuit_<n>/<model>/<task>.jsonl."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from knowledge_circuits.command_line import choice, positive, run_program
from knowledge_circuits.corpus.folder import CIRCUIT_UNIT, DataFolder, data_parser, digests
from knowledge_circuits.corpus.people import Person, count_table, read_entities
from knowledge_circuits.files import InputError, write_jsonl
from knowledge_circuits.manifest import FOLDER_MANIFEST, Status, begin, check, finish, read_manifest
from knowledge_circuits.study import RARE_LENGTH, TASKS, Attribute

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from knowledge_circuits.corpus.prompt_pairs import CircuitData


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--model", required=True, help="name that stands in the output path")
    parser.add_argument("--model_name_or_path", required=True, help="folder or hub name whose tokenizer is used")
    parser.add_argument(
        "--task",
        nargs="+",
        type=choice(Attribute, TASKS),
        default=list(TASKS),
        metavar="TASK",
        help=f"any of {', '.join(TASKS)}; default all",
    )
    parser.add_argument("--circuit_n", type=positive, default=300, help="pairs of each type and band, at most")
    parser.add_argument(
        "--rare_length", type=positive, default=RARE_LENGTH, help="drop name lengths with so many subjects or fewer"
    )
    parser.add_argument("--untaught", action="store_true", help="pair the untaught people of a mirrored set instead")
    parser.add_argument("--overwrite", action="store_true", help="replace pairs that another tokenizer made")
    parser.add_argument("--trust_remote_code", action="store_true", help="allow code from the model's repository")
    arguments = parser.parse_args()
    from knowledge_circuits.models.tokenization import load_tokenizer

    folder = DataFolder.of(arguments.data_dir, arguments.N)
    if arguments.untaught:
        source = folder.require(folder.untaught, "mirrored_data_generation.py")
    else:
        source = folder.require(folder.test, "query_data_generation.py")
    people = read_entities(source)
    tokenizer = load_tokenizer(arguments.model_name_or_path, arguments.trust_remote_code)
    with folder.locked():
        write_pairs(folder, arguments, source, people, tokenizer)


def write_pairs(
    folder: DataFolder,
    arguments: argparse.Namespace,
    source: Path,
    people: Sequence[Person],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write every task's pairs of the people in `source`, and the manifest that lists them.

    Raises:
        InputError: pairs of another tokenizer lie there, and --overwrite was not given.
    """
    from knowledge_circuits.corpus.prompt_pairs import circuit_data
    from knowledge_circuits.models.tokenization import tokenizer_fingerprint

    unit = folder.circuit(arguments.circuit_n, arguments.model, arguments.task[0]).with_name(FOLDER_MANIFEST)
    tokenizer_only = {"tokenizer": tokenizer_fingerprint(tokenizer)}
    if check(unit, tokenizer_only).status is Status.OTHER and not arguments.overwrite:
        raise InputError(
            f"{unit.parent}: the pairs there were made with another tokenizer; give another --model, or --overwrite"
        )
    made_from = {
        **tokenizer_only,
        **{flag: getattr(arguments, flag) for flag in ("circuit_n", "seed", "rare_length", "untaught")},
        "inputs": digests(unit.parent, [source]),
    }
    # Pairs of tasks that are not requested stay in the manifest if they were made from the same.
    earlier = read_manifest(unit) if check(unit, made_from).is_whole else None
    files = {unit.with_name(name) for name in earlier.files} if earlier else set()
    begin(unit, CIRCUIT_UNIT, made_from)
    for task in arguments.task:
        data = circuit_data(people, task, tokenizer, arguments.circuit_n, arguments.seed, arguments.rare_length)
        if not data.pairs:
            raise InputError(
                f"{source}: no length in tokens has more than {arguments.rare_length} names, so nobody is paired; ask "
                "more people (query_data_generation.py --test_per_group), or lower --rare_length"
            )
        path = folder.circuit(arguments.circuit_n, arguments.model, task)
        write_jsonl(path, (pair.to_row() for pair in data.pairs))
        files.add(path)
        print_summary(data, path)
    for length, count in data.rare_lengths.items():  # the same for every task
        print(f"dropped: {count} subject(s) of {length} tokens, a length that too few names have (--rare_length)")
    finish(unit, CIRCUIT_UNIT, made_from, files)
    folder.record(f"circuits_data_generation {arguments.model} {arguments.circuit_n}", vars(arguments))


def print_summary(data: CircuitData, path: Path) -> None:
    """Say how many pairs there are of each group, and what was left out."""
    print(f"{data.task}: {len(data.pairs):,} pairs: {path}")
    print(count_table(pair.clean for pair in data.pairs))
    if data.uneven:
        print(f"dropped: {data.uneven} pair(s) whose prompts differ in length though the names do not")
    print(f"{data.same_label} pair(s) have labels with the same first token (not dropped; their metric is 0)")


if __name__ == "__main__":
    run_program(main)
