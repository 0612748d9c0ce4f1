"""Evaluate the circuits of every source group at every checkpoint: faithfulness, and answers for every target group.

    python circuit_eval.py --model gpt2 --model_path outputs/train/gpt2/default/checkpoints \\
        --eval_data_file "data/entities_50000/circuit_300/gpt2/{task}.jsonl" \\
        --test_data_file data/entities_50000/test.jsonl --batch_size 64

Reads the graphs that circuit_discovery.py wrote. `--circuit_from 1200` runs the circuits of checkpoint-1200 in the
weights of each checkpoint. Finished circuits are skipped, so the same command continues after an interruption. Under
`accelerate launch` or `torchrun` the processes share the groups.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from knowledge_circuits.command_line import choice, positive, run_program
from knowledge_circuits.engine.options import Intervention
from knowledge_circuits.runs import checkpoints
from knowledge_circuits.sweeps.flags import add_group_flags, add_shared_flags, chosen_groups

_ORIGIN_HELP = "origins: steps or folders of checkpoints whose circuits run in the weights of --model_path"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_flags(parser)
    add_group_flags(parser, "source_", "of the circuits: ")
    add_group_flags(parser, "target_", "of the test items: ")
    add = parser.add_argument
    add("--eval_data_file", required=True, help="circuit data for faithfulness; {task} stands for each task")
    add("--test_data_file", help="test.jsonl (or circuit data) for the circuit alone; without it no predictions")
    add("--topn", type=positive, help="edges of a circuit before pruning (default: the paper's, or a quarter of all)")
    add("--circuit_from", nargs="+", default=[], metavar="CHECKPOINT", help=_ORIGIN_HELP)
    add(
        "--intervention",
        type=choice(Intervention),
        default=Intervention.PATCHING,
        help=f"what replaces the edges outside the circuit: {', '.join(Intervention)}; default patching",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    from knowledge_circuits.sweeps.evaluation import (
        EvaluationSettings,
        circuit_size,
        evaluation_items,
        find_origins,
        read_test_items,
    )
    from knowledge_circuits.sweeps.processes import this_process
    from knowledge_circuits.sweeps.programs import loader_from, prepare, read_groups, run_items

    process = this_process()
    evaluated = checkpoints(args.model_path, args.output_dir, args.revisions, args.step_pattern)
    prepare(args.threads, process, evaluated)
    origins = find_origins(args.circuit_from, evaluated)
    wanted = chosen_groups(args.task, args.source_type, args.source_frequency)
    groups = read_groups(args.eval_data_file, wanted, args.circuit_n, quiet=not process.is_main)
    targets = {}
    if args.test_data_file:
        targeted = chosen_groups(args.task, args.target_type, args.target_frequency)
        targets = read_test_items(args.test_data_file, targeted, quiet=not process.is_main)
    settings = EvaluationSettings(
        model=args.model,
        topn=args.topn or 0,
        circuit_n=args.circuit_n,
        method=args.method,
        gradient=args.gradient,
        metric=args.metric,
        intervention=args.intervention,
        batch_size=args.batch_size,
        memory_gb=args.memory_gb,
        suffix=f".{args.format}",
        overwrite=args.overwrite,
        verify=args.verify,
    )
    topn = circuit_size(args.topn, settings, origins or evaluated, [data.group for data in groups])
    if args.topn is None and process.is_main:
        print(f"--topn is {topn}")
    settings = replace(settings, topn=topn)
    items = evaluation_items(evaluated, origins, groups, targets, loader_from(args, process), settings)
    return run_items(items, process, "circuit evaluation", args, [checkpoint.output for checkpoint in evaluated])


if __name__ == "__main__":
    run_program(main)
