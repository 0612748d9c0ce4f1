"""Write a past for a model that has none: entities_<N>/prior.jsonl, and prior_held_out.jsonl to measure perplexity on.

The revised people with other facts than they will have later, background people, and small sums.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from knowledge_circuits.command_line import natural, positive, run_program
from knowledge_circuits.corpus.biographies import load_templates
from knowledge_circuits.corpus.folder import (
    DataFolder,
    add_pool_arguments,
    add_template_argument,
    data_parser,
    sizes_from,
)
from knowledge_circuits.corpus.other_corpora import PriorSizes, prior_corpus
from knowledge_circuits.corpus.people import load_pools, read_people_of
from knowledge_circuits.files import write_jsonl


def main() -> None:
    parser = data_parser(__doc__)
    add_pool_arguments(parser)
    add_template_argument(parser)
    for flag, kind, text in (
        ("biographies_per_person", positive, "of each revised person"),
        ("background_people", natural, "people whom later corpora never mention"),
        ("background_biographies", positive, "of each background person"),
        ("arithmetic_lines", natural, "sums, each a line of its own"),
        ("held_out_people", natural, "background people reserved for prior_held_out.jsonl"),
    ):
        parser.add_argument(f"--{flag}", type=kind, default=getattr(PriorSizes, flag), help=text)
    arguments = parser.parse_args()

    folder = DataFolder.of(arguments.data_dir, arguments.N)
    new, revised = read_people_of(folder)
    pools = load_pools(arguments.pool_dir, arguments.people_file, tuple(arguments.birth_years))
    templates = load_templates(arguments.template_dir, arguments.templates)
    sizes = sizes_from(PriorSizes, arguments)
    texts, held_out = prior_corpus(new, revised, pools, templates, sizes, arguments.seed)
    written, read = [folder.prior, folder.prior_held_out], [folder.new, folder.revised]
    with folder.making(
        "prior_data_generation", vars(arguments), written, read, sources={"pools": pools, "templates": templates}
    ):
        write_jsonl(folder.prior, ({"text": text} for text in texts))
        write_jsonl(folder.prior_held_out, ({"text": text} for text in held_out))
    print(f"{len(texts):,} texts, {sizes.arithmetic_lines:,} of them sums: {folder.prior}")
    print(f"{len(held_out):,} held-out texts: {folder.prior_held_out}")


if __name__ == "__main__":
    run_program(main)
