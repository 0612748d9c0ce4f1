"""Ask a model, or every checkpoint of a run, for the five attributes of each test entity.

    python predict.py --model_name_or_path outputs/train/nano/default/checkpoints \\
        --input_file data/entities_360/test.jsonl

The answers go to prediction.jsonl in each checkpoint's folder. Checkpoints that have one are skipped unless
--overwrite is given. Under `accelerate launch --num_processes k predict.py ...` the processes share the checkpoints.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from knowledge_circuits.command_line import DTYPE_NAMES, cores, positive, run_program
from knowledge_circuits.corpus.people import read_entities
from knowledge_circuits.files import InputError
from knowledge_circuits.runs import Checkpoint, checkpoints
from knowledge_circuits.study import MAX_NEW_TOKENS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_name_or_path",
        required=True,
        help="a checkpoint folder, a run's folder or its checkpoints/ folder (all of it), or a hub name",
    )
    parser.add_argument("--input_file", required=True, help="the entities to ask about, such as test.jsonl")
    parser.add_argument("--output_file", help="where one checkpoint's answers go (default: its prediction.jsonl)")
    parser.add_argument("--output_dir", help="a folder for the results instead of the checkpoint folders")
    parser.add_argument("--max_new_tokens", type=positive, default=MAX_NEW_TOKENS, help="default: %(default)s")
    parser.add_argument("--batch_size", type=positive, default=256, help="prompts at once (default: %(default)s)")
    parser.add_argument("--max_predict_samples", type=positive, help="ask about the first so many entities only")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number> (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="float32", help="of weights and activations (float32)")
    parser.add_argument("--threads", type=positive, default=cores(), help="CPU threads (default: all cores)")
    parser.add_argument("--trust_remote_code", action="store_true", help="allow code in the model's folder to run")
    parser.add_argument("--overwrite", action="store_true", help="ask again where answers are there already")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    import torch

    from knowledge_circuits.models.loading import DTYPES
    from knowledge_circuits.sweeps.prediction import Settings, predict_checkpoint, refuse_other_questions
    from knowledge_circuits.sweeps.queue import WorkItem, pick_device, report_sweep, sweep, this_process

    torch.set_num_threads(arguments.threads)
    process = this_process()
    people = read_entities(arguments.input_file)[: arguments.max_predict_samples]
    found = checkpoints(arguments.model_name_or_path, arguments.output_dir)
    if arguments.output_file and len(found) > 1:
        raise InputError(f"--output_file is for one checkpoint, but {arguments.model_name_or_path} has {len(found)}")
    settings = Settings(
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        device=pick_device(arguments.device, process),
        dtype=DTYPES[arguments.dtype],
        trust_remote_code=arguments.trust_remote_code,
    )
    written: set[Path] = set()

    def ask(checkpoint: Checkpoint, output: Path) -> None:
        predict_checkpoint(checkpoint, people, settings, output)
        written.add(output)

    def is_done(output: Path) -> bool:
        return output in written or (output.exists() and not arguments.overwrite)

    outputs = [Path(arguments.output_file or checkpoint.predictions) for checkpoint in found]
    for output in [output for output in outputs if is_done(output)][:1]:  # the others were asked the same
        refuse_other_questions(output, people)
    items = [
        WorkItem(checkpoint.name, checkpoint.name, 1.0, partial(is_done, output), partial(ask, checkpoint, output))
        for checkpoint, output in zip(found, outputs, strict=True)
    ]
    return report_sweep(sweep(items, process, "predicting"), process)


if __name__ == "__main__":
    run_program(main)
