"""Choose the people of the queries: entities_<N>/test.jsonl, the same number of each type and frequency band."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from knowledge_circuits.command_line import positive, run_program
from knowledge_circuits.corpus.folder import DataFolder, data_parser
from knowledge_circuits.corpus.people import Stream, count_table, read_people_of, sample_groups, stream
from knowledge_circuits.files import write_jsonl
from knowledge_circuits.study import Band, KnowledgeType


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--test_per_group", type=positive, default=300, help="people of each type and band")
    arguments = parser.parse_args()

    folder = DataFolder.of(arguments.data_dir, arguments.N)
    new, revised = read_people_of(folder)
    sample = sample_groups([*new, *revised], arguments.test_per_group, stream(arguments.seed, Stream.TEST))
    with folder.making("query_data_generation", vars(arguments), [folder.test], [folder.new, folder.revised]):
        write_jsonl(folder.test, (person.to_row() for person in sample))
    print(count_table(sample))
    counts = Counter((person.type, person.band) for person in sample)
    for type_, band in product(KnowledgeType, Band):
        if (count := counts[type_, band]) < arguments.test_per_group:
            print(f"{type_} / {band}: all {count} people taken, fewer than {arguments.test_per_group}")
    print(f"{len(sample):,} people to ask about: {folder.test}")


if __name__ == "__main__":
    run_program(main)
