"""Answer query prompts with a model, or with every checkpoint of a run.

    python predict.py --model_name_or_path outputs/train/nano/default/checkpoints \\
        --input_file data/entities_360/test.jsonl

The file holds test entities, whose five attributes are asked for, or your own prompts with answers (docs/formats.md).
Predictions are written to prediction.jsonl (<file>_prediction.jsonl) in each checkpoint's folder. Finished checkpoints
are skipped. Under `accelerate launch --num_processes 4 predict.py ...` the processes share the checkpoints.

Questions about documents (rows of question, answer, entity) are answered with documents in the prompt or without, and
scored by recall and exact match; answers_<context>.jsonl is written for each context:

    python predict.py --model_name_or_path MODEL --input_file questions.jsonl --documents documents.jsonl \\
        --context none gold entity retrieved --instruct
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from knowledge_circuits.command_line import (
    add_work_flags,
    choice,
    positive,
    positive_share,
    program_parser,
    run_program,
)
from knowledge_circuits.corpus.people import read_entities
from knowledge_circuits.corpus.questions import holds_questions, read_documents, read_questions
from knowledge_circuits.files import InputError, read_jsonl
from knowledge_circuits.runs import Checkpoint, checkpoints
from knowledge_circuits.study import ANSWER_TOKENS, MAX_NEW_TOKENS
from knowledge_circuits.sweeps.flags import GROUP_BY_HELP, Context

if TYPE_CHECKING:
    from knowledge_circuits.sweeps.prediction import Settings
    from knowledge_circuits.sweeps.processes import Process


def parse_arguments() -> argparse.Namespace:
    parser = program_parser(__doc__)
    add = parser.add_argument
    add(
        "--model_name_or_path",
        required=True,
        help="a checkpoint folder, a run's folder or its checkpoints/ folder (all of it), or a hub name",
    )
    add(
        "--input_file",
        required=True,
        help="the people to ask about, such as test.jsonl; prompts with answers; or questions",
    )
    add("--group_by", nargs="+", metavar="COLUMN", help=GROUP_BY_HELP)
    add("--output_file", help="predictions of a single checkpoint; default: in its folder")
    add(
        "--max_new_tokens",
        type=positive,
        help=f"length limit of an answer; default {MAX_NEW_TOKENS}, of questions {ANSWER_TOKENS}",
    )
    add("--batch_size", type=positive, default=256, help="prompts per pass; default %(default)s")
    add("--max_predict_samples", type=positive, help="only the first so many people (or prompts, or questions)")
    add = parser.add_argument_group("questions about documents").add_argument
    add(
        "--context",
        nargs="+",
        type=choice(Context),
        metavar="CONTEXT",
        help="documents in the prompt, of one or several kinds: none, gold (the one that answers), entity (all of the"
        " entity), retrieved (by BM25); default none",
    )
    add("--documents", help="rows of text, entity, document: .jsonl, .json, .csv, .txt, or a folder of .txt files")
    add("--text_column", help="the documents' key or column of the text; default text")
    add("--retrieved", type=positive, default=3, help="documents that BM25 gives for a question; default %(default)s")
    add("--instruct", action="store_true", help="ask under the tokenizer's chat template; default: completion")
    add(
        "--learned_threshold",
        type=positive_share,
        default=0.6,
        help="mean recall of its questions from which an entity counts as known; default %(default)s",
    )
    add_work_flags(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    evaluated = checkpoints(args.model_name_or_path, args.output_dir, args.revisions, args.step_pattern)
    asks = holds_questions(args.input_file)
    from knowledge_circuits.corpus.fact_pairs import is_fact_file, read_facts
    from knowledge_circuits.models.loading import DTYPES
    from knowledge_circuits.sweeps.model_loader import refuse_shared_deletion
    from knowledge_circuits.sweeps.prediction import Predictions, Settings
    from knowledge_circuits.sweeps.processes import pick_device, this_process
    from knowledge_circuits.sweeps.programs import prepare, run_items

    process = this_process()
    own = not asks and is_fact_file(args.input_file)
    if args.group_by and not own:
        raise InputError(f"--group_by does not go with {args.input_file}: it holds no prompts with answers")
    if not asks and (args.context or args.documents or args.instruct):
        raise InputError(
            f"{args.input_file}: --context, --documents and --instruct need a file with the column question"
        )
    if args.output_file and asks:
        raise InputError("--output_file is for people; answers to questions go to answers_<context>.jsonl")
    if args.output_file and len(evaluated) > 1:
        raise InputError(f"--output_file is for one checkpoint, but {args.model_name_or_path} has {len(evaluated)}")
    refuse_shared_deletion(args, process)
    prepare(args.threads, process, evaluated)
    settings = Settings(
        max_new_tokens=args.max_new_tokens or (ANSWER_TOKENS if asks else MAX_NEW_TOKENS),
        batch_size=args.batch_size,
        device=pick_device(args.device, process),
        dtype=DTYPES[args.dtype],
        trust_remote_code=args.trust_remote_code,
        delete_downloads=args.delete_downloads,
    )
    if asks:
        return answer_questions(args, evaluated, settings, process)
    read = read_facts(args.input_file, args.group_by) if own else read_entities(args.input_file)
    items = read[: args.max_predict_samples]
    task = Path(args.input_file).stem
    units = []
    for one in evaluated:
        output = Path(args.output_file or (one.fact_predictions(task) if own else one.predictions))
        units.append(Predictions(one, settings, output, items, verify=args.verify))
    folders = [unit.output.parent for unit in units]
    return run_items([unit.item() for unit in units], process, "prediction", args, folders)


def answer_questions(
    args: argparse.Namespace, evaluated: Sequence[Checkpoint], settings: Settings, process: Process
) -> int:
    """Answer questions under every context at every checkpoint, and print what the answers come to."""
    from knowledge_circuits.sweeps.answers import Reference, ReferenceAnswers, summary
    from knowledge_circuits.sweeps.programs import run_items

    questions = read_questions(args.input_file)[: args.max_predict_samples]
    documents = read_documents(args.documents, args.text_column) if args.documents else []
    contexts = dict.fromkeys(args.context or [Context.NONE])
    file = args.documents or "--documents"
    references = [Reference(questions, documents, one, args.retrieved, args.instruct, file) for one in contexts]
    units = []
    for one in evaluated:
        for reference in references:
            output = one.output / f"answers_{reference.context}.jsonl"
            units.append(ReferenceAnswers(one, settings, output, reference, verify=args.verify))
    status = run_items([unit.item() for unit in units], process, "answers", args, [one.output for one in evaluated])
    for unit in units if process.is_main else ():
        if unit.states()[0].is_whole:
            rows = read_jsonl(unit.output)
            print(summary(unit.checkpoint.name, unit.reference.context, rows, args.learned_threshold))
    return status


if __name__ == "__main__":
    run_program(main)
