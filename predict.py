"""Answer the query prompts of each test entity's five attributes with a model, or with every checkpoint of a run.

    python predict.py --model_name_or_path outputs/train/nano/default/checkpoints \\
        --input_file data/entities_360/test.jsonl

Predictions are written to prediction.jsonl in each checkpoint's folder. Finished checkpoints are skipped. Under
`accelerate launch --num_processes 4 predict.py ...` the processes share the checkpoints.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from knowledge_circuits.command_line import add_work_flags, positive, run_program
from knowledge_circuits.corpus.people import read_entities
from knowledge_circuits.files import InputError
from knowledge_circuits.runs import checkpoints
from knowledge_circuits.study import MAX_NEW_TOKENS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_name_or_path",
        required=True,
        help="a checkpoint folder, a run's folder or its checkpoints/ folder (all of it), or a hub name",
    )
    add = parser.add_argument
    add("--input_file", required=True, help="the people to ask about, such as test.jsonl")
    add("--output_file", help="predictions of a single checkpoint; default: prediction.jsonl in its folder")
    add(
        "--max_new_tokens", type=positive, default=MAX_NEW_TOKENS, help="length limit of an answer; default %(default)s"
    )
    add("--batch_size", type=positive, default=256, help="prompts per pass; default %(default)s")
    add("--max_predict_samples", type=positive, help="only the first so many people")
    add_work_flags(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    from knowledge_circuits.models.loading import DTYPES
    from knowledge_circuits.sweeps.prediction import PredictionUnit, Settings
    from knowledge_circuits.sweeps.processes import pick_device, this_process
    from knowledge_circuits.sweeps.programs import prepare, refuse_shared_deletion, run_items

    process = this_process()
    people = read_entities(args.input_file)[: args.max_predict_samples]
    evaluated = checkpoints(args.model_name_or_path, args.output_dir, args.revisions, args.step_pattern)
    if args.output_file and len(evaluated) > 1:
        raise InputError(f"--output_file is for one checkpoint, but {args.model_name_or_path} has {len(evaluated)}")
    refuse_shared_deletion(args, process)
    prepare(args.threads, process, evaluated)
    settings = Settings(
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        device=pick_device(args.device, process),
        dtype=DTYPES[args.dtype],
        trust_remote_code=args.trust_remote_code,
        delete_downloads=args.delete_downloads,
    )
    outputs = [Path(args.output_file or checkpoint.predictions) for checkpoint in evaluated]
    units = [
        PredictionUnit(checkpoint, people, settings, output, args.verify)
        for checkpoint, output in zip(evaluated, outputs, strict=True)
    ]
    return run_items([unit.item() for unit in units], process, "prediction", args, [path.parent for path in outputs])


if __name__ == "__main__":
    run_program(main)
