"""Publish a run: its graphs and results as a data set, its last checkpoint as a model, each with a card.

    python -m knowledge_circuits.report outputs/train/nano/default --name user/nano-knowledge

Cards are written to the run's folder `publish/`. Without a token (`HF_TOKEN`, or one that `hf auth login` saved)
nothing is sent: the program lists what would be. A run's HTML report is written by report.py.
"""

from __future__ import annotations

import argparse

from knowledge_circuits.command_line import program_parser, run_program


def parse_arguments() -> argparse.Namespace:
    parser = program_parser(__doc__, prog="python -m knowledge_circuits.report")
    parser.add_argument("run", help="a run's folder, such as outputs/train/nano/default")
    parser.add_argument("--name", required=True, help="the model's repository, user/name")
    license_help = "the hub's identifier of the license, such as mit; default other"
    parser.add_argument("--license", default="other", help=license_help)
    parser.add_argument("--public", action="store_true", help="make new repositories public; default private")
    parser.add_argument("--dry_run", action="store_true", help="send nothing, even with a token")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    from knowledge_circuits.report.publishing import publish

    publish(args.run, args.name, args.license, args.public, args.dry_run)


if __name__ == "__main__":
    run_program(main)
