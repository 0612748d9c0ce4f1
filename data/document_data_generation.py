"""Write an invented encyclopedia: articles to train on, questions about them, and prompt pairs for circuits.

    python data/document_data_generation.py --model_name_or_path models/SmolLM2-135M
    python train.py --train_file data/documents_36/documents.jsonl --probe_file data/documents_36/questions.jsonl ...

No person or town in it exists. Writes into documents_<entities>: documents.jsonl, held_out.jsonl (articles about
entities that documents.jsonl never mentions), questions.jsonl, and pairs.csv, in which the corrupted prompt is another
one of the same relation (whatever the frequency) with as many tokens of the model.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from knowledge_circuits.command_line import HelpFormatter, natural, positive, program_parser, run_program
from knowledge_circuits.corpus.encyclopedia import (
    Completion,
    EncyclopediaSizes,
    load_encyclopedia_pools,
    load_forms,
    make_encyclopedia,
)
from knowledge_circuits.corpus.folder import DataFolder, sizes_from
from knowledge_circuits.corpus.people import load_pools
from knowledge_circuits.files import InputError, atomic_write, write_jsonl
from knowledge_circuits.paths import ENCYCLOPEDIA, SELECTION_POOL, shown

COLUMNS = ("prompt", "answer", "corrupted", "corrupted_answer", "group", "frequency", "kind", "entity")


def parse_arguments() -> argparse.Namespace:
    parser = program_parser(__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    default = EncyclopediaSizes
    add = parser.add_argument
    add("--low", type=positive, default=default.low, help="entities with one article; every third entity is a town")
    add("--high", type=natural, default=default.high, help="entities with several articles")
    add("--high_documents", type=positive, default=default.high_documents, help="articles about each of them")
    add("--unmentioned", type=natural, default=default.unmentioned, help="entities that no article mentions")
    add("--questions_per_kind", type=positive, default=default.questions_per_kind, help="about each entity, at most")
    add("--seed", type=natural, default=0, help="the same seed gives the same bytes everywhere")
    add("--data_dir", default="data", help="data go into its folder documents_<low + high>")
    add("--pool_dir", default=shown(SELECTION_POOL), help="folder of the pools of people's names")
    add("--encyclopedia_dir", default=shown(ENCYCLOPEDIA), help="folder of pools.json and templates.json")
    add("--model_name_or_path", help="whose tokenizer pairs the prompts; without it pairs.csv needs --pair_anew")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    sizes = sizes_from(EncyclopediaSizes, arguments)
    names = load_pools(arguments.pool_dir)
    pools = load_encyclopedia_pools(Path(arguments.encyclopedia_dir) / "pools.json")
    forms = load_forms(Path(arguments.encyclopedia_dir) / "templates.json")
    corpus = make_encyclopedia(names, pools, forms, sizes, arguments.seed)
    tokenizer, pairs = pair_rows(corpus.completions, arguments.model_name_or_path, arguments.seed)

    folder = DataFolder(Path(arguments.data_dir) / f"documents_{arguments.low + arguments.high}")
    rows: dict[str, Sequence[dict[str, Any]]] = {
        "documents.jsonl": [document.model_dump() for document in corpus.documents],
        "held_out.jsonl": [document.model_dump() for document in corpus.held_out],
        "questions.jsonl": [question.to_row() for question in corpus.questions],
    }
    flags = {key: value for key, value in vars(arguments).items() if key != "model_name_or_path"}
    sources = {"names": names, "pools": pools, "wordings": forms, "tokenizer": tokenizer}
    files = [folder.path / name for name in (*rows, "pairs.csv")]
    with folder.making("document_data_generation", flags, files, first=True, sources=sources):
        for path, lines in zip(files, rows.values(), strict=False):
            write_jsonl(path, lines)
        with atomic_write(files[-1]) as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(pairs)
    for name, lines in (*rows.items(), ("pairs.csv", pairs)):
        print(f"{len(lines):,} rows: {folder.path / name}")
    words = sum(len(document.text.split()) for document in corpus.documents)
    counts = Counter(entity.frequency for entity in corpus.entities)
    print(f"{words:,} words in the documents; entities: {', '.join(f'{n} {label}' for label, n in counts.items())}")


def pair_rows(
    completions: Sequence[Completion], model: str | None, seed: int
) -> tuple[str | None, list[dict[str, Any]]]:
    """Return the tokenizer's fingerprint and the rows of pairs.csv; without a model the corrupted side is empty."""
    rows = {completion.prompt: asdict(completion) for completion in completions}
    if model is None:
        return None, list(rows.values())
    from knowledge_circuits.engine.prompts import PromptPairs
    from knowledge_circuits.models.tokenization import load_tokenizer, tokenizer_fingerprint

    tokenizer = load_tokenizer(model)
    groups: dict[str, dict[str, str | int]] = {}
    for prompt, row in rows.items():
        groups.setdefault(row["group"], {})[prompt] = row["answer"]
    paired = []
    for relation, answers in groups.items():
        try:
            pairs, left_out = PromptPairs.match_lengths(tokenizer, answers, seed)
        except InputError:
            print(f"{relation}: no two of its {len(answers)} prompts have as many tokens; left out")
            continue
        if left_out:
            print(f"{relation}: {len(left_out)} of {len(answers)} prompts have no partner; left out")
        for pair in pairs.rows:
            partner = {"corrupted": pair["corrupted"], "corrupted_answer": answers[pair["corrupted"]]}
            paired.append(rows[pair["clean"]] | partner)
    return tokenizer_fingerprint(tokenizer), paired


if __name__ == "__main__":
    run_program(main)
