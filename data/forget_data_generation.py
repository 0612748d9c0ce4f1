"""Write what a finished model is trained on next: entities_<N>/forget_new.jsonl, forget_conflict.jsonl, replay.jsonl.

New people whom it has never met, the same people with facts that contradict the learned ones, and the originals once
each, to be replayed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from knowledge_circuits.command_line import choice, positive, run_program
from knowledge_circuits.corpus.biographies import load_templates
from knowledge_circuits.corpus.folder import DataFolder, add_pool_arguments, add_template_argument, data_parser
from knowledge_circuits.corpus.other_corpora import forgetting_corpora
from knowledge_circuits.corpus.people import load_pools, read_people_of
from knowledge_circuits.files import write_jsonl
from knowledge_circuits.study import Attribute


def main() -> None:
    parser = data_parser(__doc__)
    add_pool_arguments(parser)
    add_template_argument(parser)
    parser.add_argument("--forget_people", type=positive, help="new people; default as many as N")
    parser.add_argument("--biographies_per_person", type=positive, default=1, help="in each of the three corpora")
    parser.add_argument(
        "--attributes",
        nargs="+",
        type=choice(Attribute),
        default=list(Attribute),
        metavar="ATTRIBUTE",
        help=f"what biographies tell, as in training: any of {', '.join(Attribute)}; default all",
    )
    arguments = parser.parse_args()

    folder = DataFolder.of(arguments.data_dir, arguments.N)
    people = [person for part in read_people_of(folder) for person in part]
    pools = load_pools(arguments.pool_dir, arguments.people_file, tuple(arguments.birth_years))
    templates = load_templates(arguments.template_dir, arguments.templates)
    count, copies = arguments.forget_people or arguments.N, arguments.biographies_per_person
    corpora = forgetting_corpora(people, count, copies, pools, templates, arguments.seed, arguments.attributes)
    written, read = [folder.forget_new, folder.forget_conflict, folder.replay], [folder.new, folder.revised]
    with folder.making(
        "forget_data_generation", vars(arguments), written, read, sources={"pools": pools, "templates": templates}
    ):
        for path, corpus in zip(written, corpora, strict=True):
            write_jsonl(path, (biography.to_row(arguments.attributes) for biography in corpus))
            print(f"{len(corpus):,} biographies: {path}")


if __name__ == "__main__":
    run_program(main)
