"""Evaluate the circuits of every source group at every checkpoint: faithfulness, and answers for every target group.

    python circuit_eval.py --model gpt2 --model_path outputs/train/gpt2/default/checkpoints \\
        --eval_data_file "data/entities_50000/circuit_300/gpt2/{task}.jsonl" \\
        --test_data_file data/entities_50000/test.jsonl --batch_size 64

Reads the graphs that circuit_discovery.py wrote. With facts of your own (docs/formats.md) the data files are one file:

    python circuit_eval.py --model gpt2 --model_path gpt2 --eval_data_file capitals.csv --test_data_file capitals.csv \\
        --group_by continent --topn 1000 8000

Several sizes (`--topn`) share the runs of the prompts. `--circuit_from 1200` runs the circuits of checkpoint-1200 in
the weights of each checkpoint. Finished circuits are skipped, so the same command continues after an interruption.
Under `accelerate launch` or `torchrun` the processes share the groups.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from knowledge_circuits.command_line import choice, positive, program_parser, run_program, share
from knowledge_circuits.engine.options import Intervention
from knowledge_circuits.runs import checkpoints
from knowledge_circuits.sweeps.flags import DATA_FILE_HELP, add_group_flags, add_shared_flags

_TOPN_HELP = "sizes of circuits: edges before pruning (default: the paper's size, or a quarter of all edges)"
_TEST_HELP = "test.jsonl (or circuit data, or own facts) for the circuit alone; without it no predictions"
_SIGN_HELP = (
    "drop edges whose score keeps its sign in less than this share of resamples of the prompts; needs "
    "circuit_discovery.py --stability"
)
_CROSS_HELP = (
    "also run every group's circuit, and the edges that all groups share, on every group's prompts (cross_groups.json)"
)
_ORIGIN_HELP = "origins: steps or folders of checkpoints whose circuits run in the weights of --model_path"

_FLOORS_HELP = (
    "also evaluate 5 random circuits of the same size (mean faithfulness and Hit@10), and circuits of other sizes to "
    "find the edges needed for a faithfulness of 0.9"
)


def parse_arguments() -> argparse.Namespace:
    parser = program_parser(__doc__)
    add_shared_flags(parser)
    add_group_flags(parser, "source_", "of the circuits: ")
    add_group_flags(parser, "target_", "of the test items: ")
    add = parser.add_argument
    add("--eval_data_file", required=True, help=f"for faithfulness: {DATA_FILE_HELP}")
    add("--test_data_file", help=_TEST_HELP)
    add("--topn", type=positive, nargs="+", metavar="EDGES", help=_TOPN_HELP)
    add("--circuit_from", nargs="+", default=[], metavar="CHECKPOINT", help=_ORIGIN_HELP)
    add(
        "--intervention",
        type=choice(Intervention),
        default=Intervention.PATCHING,
        help=f"what replaces the edges outside the circuit: {', '.join(Intervention)}; default patching",
    )
    add("--signed", action="store_true", help="choose the edges of largest signed score; default: of largest |score|")
    add("--same_sign", type=share, default=0.0, metavar="SHARE", help=_SIGN_HELP)
    add("--cross_groups", action="store_true", help=_CROSS_HELP)
    add("--floors", action="store_true", help=_FLOORS_HELP)
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    evaluated = checkpoints(args.model_path, args.output_dir, args.revisions, args.step_pattern)
    from knowledge_circuits.sweeps.chosen_circuits import EvaluationSettings, circuit_sizes, find_origins
    from knowledge_circuits.sweeps.cross_groups import cross_group_items
    from knowledge_circuits.sweeps.evaluation import evaluation_items
    from knowledge_circuits.sweeps.groups import groups_of_flags
    from knowledge_circuits.sweeps.model_loader import loader_from
    from knowledge_circuits.sweeps.processes import this_process
    from knowledge_circuits.sweeps.programs import prepare, run_items
    from knowledge_circuits.sweeps.targets import targets_of_flags

    process = this_process()
    prepare(args.threads, process, evaluated)
    origins = find_origins(args.circuit_from, evaluated)
    loader, quiet = loader_from(args, process), not process.is_main
    groups = groups_of_flags(args, args.eval_data_file, "source_", loader, evaluated[0], quiet)
    targets = targets_of_flags(args, groups, quiet)
    settings = EvaluationSettings.of_flags(args, topn=())
    sizes = circuit_sizes(args.topn, settings, origins or evaluated, [data.group for data in groups])
    if args.topn is None and process.is_main:
        print(f"--topn is {sizes[0]}, the default of --model {args.model}")
    settings = replace(settings, topn=sizes)
    items = evaluation_items(evaluated, origins, groups, targets, loader, settings)
    if args.cross_groups:
        items += cross_group_items(evaluated, groups, loader, settings)
    return run_items(items, process, "circuit evaluation", args, [checkpoint.output for checkpoint in evaluated])


if __name__ == "__main__":
    run_program(main)
