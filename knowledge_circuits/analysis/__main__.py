"""Measure runs from the command line.

    python -m knowledge_circuits.analysis summary outputs/train/nano/default
    python -m knowledge_circuits.analysis origins outputs/train/nano/default
    python -m knowledge_circuits.analysis facts outputs/train/gpt2/full --data_file pairs.csv --group_by kind
    python -m knowledge_circuits.analysis relevance outputs/train/relevance/seed_0-dose_3-mirror_a --study FOLDER
    python -m knowledge_circuits.analysis depth outputs/train/depth/seed_0 --study FOLDER --data_file "{task}.jsonl" ...

`summary` prints what a run learned and saves it as summary.txt in the run. `origins` prints the steps of the
checkpoints whose circuits are evaluated in the weights of all others. `facts` measures how the circuits of your own
facts change from checkpoint to checkpoint and writes circuits.csv in the run. `relevance` and `depth` measure the runs
of a designed study.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from knowledge_circuits.command_line import HelpFormatter, positive, program_parser, run_program
from knowledge_circuits.files import InputError, atomic_write
from knowledge_circuits.sweeps.flags import GROUP_BY_HELP, MEASURED_BATCH, MEASURED_PAIRS


def summarize(arguments: argparse.Namespace) -> None:
    from knowledge_circuits.analysis.summary import summary_text
    from knowledge_circuits.analysis.timeline import find_run

    run = find_run(arguments.run)
    text = summary_text(run)
    with atomic_write(Path(run.path) / "summary.txt") as file:
        file.write(text)
    print(text, end="")


def print_origins(arguments: argparse.Namespace) -> None:
    from knowledge_circuits.analysis.run_circuits import read_circuits
    from knowledge_circuits.analysis.timeline import find_run
    from knowledge_circuits.analysis.transferred_circuits import origin_steps

    circuits = read_circuits(find_run(arguments.run))
    if circuits is None:
        raise InputError(f"{arguments.run}: no circuits yet; run circuit_discovery.py and circuit_eval.py first")
    epoch_of = dict(zip(circuits.steps, circuits.epochs, strict=True))
    for description, step in origin_steps(circuits, arguments.seed).items():
        print(f"origin of transferred circuits: {description}, epoch {epoch_of[step]:g}", file=sys.stderr)
        print(step)


def measure_facts(arguments: argparse.Namespace) -> None:
    from knowledge_circuits.analysis.fact_circuits import Pairs, circuit_table
    from knowledge_circuits.analysis.timeline import find_run

    choice = arguments.data_file, arguments.group_by, arguments.circuit_n, arguments.pair_anew, arguments.batch_size
    for folder in arguments.runs:
        run = find_run(folder)
        table = circuit_table(run, Pairs(*choice))
        with atomic_write(run.path / "circuits.csv") as file:
            table.to_csv(file, index=False, float_format="%.6g")
        print(f"{len(table):,} rows: {run.path / 'circuits.csv'}")


def measure_study(arguments: argparse.Namespace) -> None:
    from knowledge_circuits.analysis.study_runs import measure_runs
    from knowledge_circuits.analysis.study_tables import People, StudyKind

    kind, files = StudyKind(arguments.command), {}
    if kind is StudyKind.DEPTH:
        files = {People.TAUGHT: arguments.data_file, People.CONTROL: arguments.control_file}
    measure_runs(kind, arguments.runs, Path(arguments.study), files)


def parse_arguments() -> argparse.Namespace:
    parser = program_parser(__doc__, prog="python -m knowledge_circuits.analysis")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, does: str, call: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=does, description=does, formatter_class=HelpFormatter)
        added.set_defaults(call=call)
        return added

    run_help = "the run's folder, such as outputs/train/nano/default"
    summary = command("summary", "print what a run learned, by type and frequency band", summarize)
    summary.add_argument("run", help=run_help)

    origins = command("origins", "print the origins of transferred circuits, one step per line", print_origins)
    origins.add_argument("run", help=run_help)
    origins.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")

    facts = command("facts", "measure how the circuits of your own facts change between checkpoints", measure_facts)
    add = facts.add_argument
    add("runs", nargs="+", help="folders of runs")
    add("--data_file", required=True, help="prompt pairs (docs/formats.md)")
    add("--group_by", nargs="+", metavar="COLUMN", help=GROUP_BY_HELP)
    add("--circuit_n", type=positive, default=MEASURED_PAIRS, help="pairs per group at most")
    add("--pair_anew", action="store_true", help="give pairs of unequal length another partner of their group")
    add("--batch_size", type=positive, default=MEASURED_BATCH, help="most prompts per pass")

    relevance = command("relevance", "measure runs of a relevance study: which fact was known when", measure_study)
    depth = command("depth", "measure runs of a depth study: the circuits of every checkpoint", measure_study)
    for study in (relevance, depth):
        study.add_argument("runs", nargs="+", help="folders of runs; those not trained to their end are left out")
        study.add_argument("--study", required=True, help="the study's folder; tables go to its runs/<run>")
    depth.add_argument("--data_file", required=True, help="circuit data of the taught people, with {task}")
    depth.add_argument("--control_file", required=True, help="circuit data of people who are never taught, with {task}")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.call(arguments)


if __name__ == "__main__":
    run_program(main)
