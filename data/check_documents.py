"""Check documents and questions before training: what is wrong, and how much of each answer stands in the documents.

    python data/check_documents.py --documents my_texts.csv --questions my_questions.csv

Prints a line per kind and frequency of questions, then the questions that the documents do not answer. The exit status
is non-zero only where the files cannot be read or contradict each other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from knowledge_circuits.command_line import HelpFormatter, natural, program_parser, run_program
from knowledge_circuits.corpus.document_check import Coverage, check_documents
from knowledge_circuits.corpus.questions import read_documents, read_questions
from knowledge_circuits.files import InputError, write_jsonl


def main() -> int:
    parser = program_parser(__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--documents",
        required=True,
        help="the texts to train on: .jsonl, .json, .csv, .txt or a folder of .txt (--train_file)",
    )
    add("--questions", required=True, help="the questions about them: .jsonl, .json or .csv (--probe_file)")
    add("--text_column", help="the column of the text; default: text, or the only one there is")
    add("--least_share", type=float, default=0.6, help="an answer of which less stands in a text counts as missing")
    add("--show", type=natural, default=20, help="most questions and warnings to print")
    add("--output_file", help="JSON lines: the share and the best document of each question; default: not written")
    arguments = parser.parse_args()
    if not 0 < arguments.least_share <= 1:
        raise InputError(f"--least_share {arguments.least_share}: a share lies above 0 and is at most 1")
    documents = read_documents(arguments.documents, arguments.text_column)
    questions = read_questions(arguments.questions)
    found = check_documents(documents, questions)
    print(f"{len(documents):,} documents, {len(questions):,} questions")
    print(summary(found.coverage, arguments.least_share))
    missing = [one for one in found.coverage if one.share is not None and one.share < arguments.least_share]
    lines = [f"{one.question.id}: {one.question.question} (share {one.share:.2f})" for one in missing]
    show(f"{len(missing)} questions that no document answers", lines, arguments.show)
    show(f"{len(found.warnings)} warnings", found.warnings, arguments.show)
    if arguments.output_file:
        rows = ({"id": one.question.id, "share": one.share, "document": one.document} for one in found.coverage)
        write_jsonl(arguments.output_file, rows)
    show(f"{len(found.errors)} errors", found.errors, arguments.show)
    return 1 if found.errors else 0


def summary(coverage: Sequence[Coverage], least_share: float) -> str:
    """Return a line per kind and frequency: questions, unanswerable ones, mean share of the answers."""
    groups: dict[tuple[str, str], list[Coverage]] = {}
    for one in coverage:
        groups.setdefault((one.question.kind or "any kind", one.frequency), []).append(one)
    lines = [f"{'kind':<16}{'frequency':<14}{'questions':>10}{'unanswerable':>14}{'mean share':>12}"]
    for (kind, frequency), members in sorted(groups.items()):
        shares = [one.share for one in members if one.share is not None]
        mean = f"{sum(shares) / len(shares):.2f}" if shares else "-"
        unanswerable = sum(share < least_share for share in shares)
        lines.append(f"{kind:<16}{frequency:<14}{len(members):>10,}{unanswerable:>14,}{mean:>12}")
    return "\n".join(lines)


def show(title: str, lines: Sequence[str], most: int) -> None:
    """Print a heading and the first lines; nothing where there are none."""
    if lines:
        print(f"{title}:")
        print("\n".join(f"  {line}" for line in lines[:most]))
        if len(lines) > most:
            print(f"  and {len(lines) - most:,} more (--show)")


if __name__ == "__main__":
    run_program(main)
