"""Evaluate the circuits of every source group at every checkpoint, and what they know of every target group.

    python circuit_eval.py --model gpt2 --model_path outputs/train/gpt2/default/checkpoints \\
        --eval_data_file "data/entities_50000/circuit_300/gpt2/{task}.jsonl" \\
        --test_data_file data/entities_50000/test.jsonl --batch_size 64

Reads the graphs that circuit_discovery.py wrote. `--circuit_from 1200` runs the circuits of checkpoint-1200 in the
weights of each checkpoint. Work that is on disk is skipped, so the same command goes on after an interruption. Under
`accelerate launch` or `torchrun` the groups are shared out over the processes.
"""

from __future__ import annotations

import argparse

from knowledge_circuits.command_line import positive, run_program
from knowledge_circuits.runs import checkpoints
from knowledge_circuits.sweeps.flags import add_group_flags, add_shared_flags, chosen_groups


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_flags(parser)
    add_group_flags(parser, "source_", "of the circuits: ")
    add_group_flags(parser, "target_", "of the test items: ")
    add = parser.add_argument
    add("--eval_data_file", required=True, help="circuit data for faithfulness; {task} stands for each task")
    add("--test_data_file", help="test.jsonl (or circuit data) for the circuit alone; without it no predictions")
    add("--topn", type=positive, help="edges of a circuit before pruning (default: the paper's, or a quarter of all)")
    add("--circuit_from", nargs="+", default=[], metavar="CHECKPOINT", help="step or folder whose circuits are moved")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    from knowledge_circuits.sweeps.evaluation import (
        EvaluationSettings,
        circuit_size,
        evaluation_items,
        find_sources,
        read_test_items,
    )
    from knowledge_circuits.sweeps.programs import loader_from, prepare, read_groups
    from knowledge_circuits.sweeps.queue import report_sweep, sweep, this_process

    process = this_process()
    prepare(args.threads, process)
    wanted = chosen_groups(args.task, args.source_type, args.source_frequency)
    evaluated = checkpoints(args.model_path, args.output_dir)
    sources = find_sources(args.circuit_from, evaluated)
    groups = read_groups(args.eval_data_file, wanted, args.circuit_n, quiet=not process.is_main)
    targets = {}
    if args.test_data_file:
        asked = chosen_groups(args.task, args.target_type, args.target_frequency)
        targets = read_test_items(args.test_data_file, asked, quiet=not process.is_main)
    topn = args.topn or circuit_size(
        args.model, sources or evaluated, [data.group for data in groups], args.circuit_n, args.method
    )
    if args.topn is None and process.is_main:
        print(f"--topn is {topn}")
    settings = EvaluationSettings(
        model=args.model,
        topn=topn,
        circuit_n=args.circuit_n,
        method=args.method,
        batch_size=args.batch_size,
        memory_gb=args.memory_gb,
        suffix=f".{args.format}",
        overwrite=args.overwrite,
    )
    items = evaluation_items(evaluated, sources, groups, targets, loader_from(args, process), settings)
    return report_sweep(sweep(items, process, "circuit evaluation"), process)


if __name__ == "__main__":
    run_program(main)
