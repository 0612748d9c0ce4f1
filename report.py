"""Write a run as one HTML page: what it shows of the paper's findings, numbers, figures, and circuits to step through.

    python report.py --run outputs/train/nano/default
    python report.py --runs outputs/train/nano/default outputs/train/nano/seed_1 outputs/train/nano/seed_2
    python report.py --study docs/studies/relevance
    python report.py --documents outputs/train/my_model

The page of one run goes to report.html in its folder; with --runs the findings' spread over several runs (seeds) goes
to comparison.html beside them; a designed study's page (verdicts over its seeds) and that of runs on documents with
questions go to report.html in their folder. Everything is in the one file; it opens without a network. What a run does
not have yet (circuits, probes, the analysis of heads) is said on the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from knowledge_circuits.command_line import program_parser, run_program


def parse_arguments() -> argparse.Namespace:
    parser = program_parser(__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", help="a run's folder, such as outputs/train/nano/default")
    which.add_argument("--runs", nargs="+", metavar="RUN", help="runs of one experiment, such as several seeds")
    which.add_argument("--study", type=Path, help="a designed study's folder, with runs/*/study_run.json")
    which.add_argument("--documents", type=Path, metavar="FOLDER", help="runs that were probed with questions, or one")
    parser.add_argument("--output", type=Path, help="where the page goes instead")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    from knowledge_circuits.analysis.timeline import find_run
    from knowledge_circuits.report.comparison import write_comparison
    from knowledge_circuits.report.documents import write_documents_report
    from knowledge_circuits.report.page import write_report
    from knowledge_circuits.report.study import write_study_report

    if args.study is not None:
        page = write_study_report(args.study, args.output)
    elif args.documents is not None:
        page = write_documents_report(args.documents, args.output)
    elif args.run is not None:
        page = write_report(find_run(args.run), args.output)
    else:
        page = write_comparison([find_run(path) for path in args.runs], args.output)
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_program(main)
