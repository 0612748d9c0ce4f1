"""Score the edges of every group's graph at every checkpoint: one graph file per checkpoint and group.

    python circuit_discovery.py --model gpt2 --model_path outputs/train/gpt2/default/checkpoints \\
        --data_file "data/entities_50000/circuit_300/gpt2/{task}.jsonl" --batch_size 64

Facts of your own come from one file of prompts and answers (docs/formats.md), in the groups of one of its columns:

    python circuit_discovery.py --model gpt2 --model_path gpt2 --data_file capitals.csv --group_by continent

Finished graphs are skipped, so the same command continues after an interruption. Under `accelerate launch` or
`torchrun` the processes share the groups; the same --threads gives the same bytes.
"""

from __future__ import annotations

import argparse

from knowledge_circuits.command_line import positive, program_parser, run_program
from knowledge_circuits.runs import checkpoints
from knowledge_circuits.sweeps.flags import DATA_FILE_HELP, add_group_flags, add_shared_flags

_SPANS_HELP = (
    "also keep scores by token span: subject, relation, last token; of own facts those that its key spans names, else "
    "where clean and corrupted prompts differ"
)


def parse_arguments() -> argparse.Namespace:
    parser = program_parser(__doc__)
    add_shared_flags(parser)
    add_group_flags(parser)
    parser.add_argument("--data_file", required=True, help=DATA_FILE_HELP)
    parser.add_argument("--ig_steps", type=positive, default=5, help="integration steps of the IG methods; default 5")
    parser.add_argument(
        "--stability",
        type=positive,
        default=0,
        metavar="N",
        help="also measure how stable each group's N strongest edges are under resampled prompts (N: circuit_eval.py's "
        "--topn)",
    )
    parser.add_argument("--spans", action="store_true", help=_SPANS_HELP)
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    scored = checkpoints(args.model_path, args.output_dir, args.revisions, args.step_pattern)
    from knowledge_circuits.sweeps.discovery import DiscoverySettings, discovery_items
    from knowledge_circuits.sweeps.groups import groups_of_flags
    from knowledge_circuits.sweeps.model_loader import loader_from
    from knowledge_circuits.sweeps.processes import this_process
    from knowledge_circuits.sweeps.programs import prepare, run_items

    process = this_process()
    prepare(args.threads, process, scored)
    loader = loader_from(args, process)
    groups = groups_of_flags(args, args.data_file, "", loader, scored[0], quiet=not process.is_main)
    settings = DiscoverySettings.of_flags(args)
    items = discovery_items(scored, groups, loader, settings)
    return run_items(items, process, "circuit discovery", args, [checkpoint.output for checkpoint in scored])


if __name__ == "__main__":
    run_program(main)
