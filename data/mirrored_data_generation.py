"""Write one mirror of a mirrored data set: people of whom half are known, their past, and what they are taught.

In mirror a the past tells of one half of the people, in mirror b of the other; everything else is the same. Writes
new.jsonl, revised.jsonl (the known half), test.jsonl (of both), prior.jsonl, train.jsonl (replayed texts among the new
ones), validation.jsonl, tokenizer.jsonl and, with --untaught_people, untaught.jsonl.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from knowledge_circuits.command_line import choice, natural, positive, run_program
from knowledge_circuits.corpus.biographies import load_templates
from knowledge_circuits.corpus.folder import (
    DataFolder,
    add_pool_arguments,
    add_template_argument,
    data_parser,
    sizes_from,
)
from knowledge_circuits.corpus.mirrored import TAUGHT, Mirror, MirrorSizes, mirrored_corpus
from knowledge_circuits.corpus.people import Stream, count_table, load_pools, sample_groups, stream
from knowledge_circuits.files import write_jsonl
from knowledge_circuits.study import KnowledgeType


def main() -> None:
    parser = data_parser(__doc__)
    add_pool_arguments(parser)
    add_template_argument(parser)
    parser.add_argument(
        "--mirror", type=choice(Mirror, tuple(Mirror)), default=Mirror.A, metavar="MIRROR", help="known half: a or b"
    )
    parser.add_argument("--frequency_rate", type=float, default=MirrorSizes.frequency_rate, help="of the frequencies")
    parser.add_argument("--validation_lines", type=positive, default=200, help="lines of validation.jsonl")
    parser.add_argument("--test_per_group", type=positive, help="people of test.jsonl per type and band; default all")
    for flag, kind, text in (
        ("dose", natural, "texts about each known person in the past"),
        ("past_texts", positive, "places for such texts; those that the dose leaves free tell of strangers"),
        ("replays", natural, "past texts of each known person among the new ones"),
        ("background_people", natural, "further people of the past"),
        ("background_biographies", positive, "of each background person"),
        ("arithmetic_lines", natural, "sums in the past, each a text of its own: a skill to lose"),
        ("untaught_people", natural, "people whom train.jsonl never mentions, half of them known"),
        ("tokenizer_people", positive, "other people, from whose biographies a tokenizer is learned"),
    ):
        parser.add_argument(f"--{flag}", type=kind, default=getattr(MirrorSizes, flag), help=text)
    arguments = parser.parse_args()

    sizes = sizes_from(MirrorSizes, arguments, people=arguments.N)
    pools = load_pools(arguments.pool_dir, arguments.people_file, tuple(arguments.birth_years))
    templates = load_templates(arguments.template_dir, arguments.templates)
    corpus = mirrored_corpus(pools, templates, sizes, arguments.mirror, arguments.seed, arguments.validation_lines)

    folder = DataFolder.of(arguments.data_dir, arguments.N)
    halves = {kind: [person for person in corpus.people if person.type is kind] for kind in KnowledgeType}
    asked = corpus.people
    if arguments.test_per_group is not None:
        asked = sample_groups(asked, arguments.test_per_group, stream(arguments.seed, Stream.TEST))
    people = {
        folder.new: halves[KnowledgeType.NEW],
        folder.revised: halves[KnowledgeType.REVISED],
        folder.test: asked,
        folder.untaught: corpus.untaught,
    }
    texts = {
        folder.prior: corpus.past_texts,
        folder.train: [text.text for text in corpus.training],
        folder.tokenizer_texts: corpus.tokenizer_texts,
    }
    sources, written = {"pools": pools, "templates": templates}, [*people, *texts, folder.validation]
    with folder.making("mirrored_data_generation", vars(arguments), written, first=True, sources=sources):
        for path, persons in people.items():
            write_jsonl(path, (person.to_row() for person in persons))
        for path, lines in texts.items():
            write_jsonl(path, ({"text": line} for line in lines))
            print(f"{len(lines):,} texts: {path}")
        write_jsonl(folder.validation, (line.to_row(TAUGHT) for line in corpus.validation))
    print(count_table(corpus.people))
    print(f"{len(asked)} people to ask about: {folder.test}")


if __name__ == "__main__":
    run_program(main)
