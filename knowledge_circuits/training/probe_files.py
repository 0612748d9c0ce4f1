"""The probes that train.py's flags ask for: of people's facts, or of questions about documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from knowledge_circuits.corpus.answering import Prompter
from knowledge_circuits.corpus.documents import Row
from knowledge_circuits.corpus.people import read_entities
from knowledge_circuits.corpus.questions import Document, holds_questions, read_questions
from knowledge_circuits.files import InputError
from knowledge_circuits.records import shape
from knowledge_circuits.runs import Run
from knowledge_circuits.training.probes import KnowledgeProbe, KnowledgeProbeCallback, ProbeArguments, Schedule
from knowledge_circuits.training.question_probes import QuestionProbe, QuestionProbeCallback
from knowledge_circuits.training.skills import (
    arithmetic_examples,
    fewer_examples,
    held_out_text,
    read_skill_file,
    reasoning_examples,
)
from knowledge_circuits.training.stopping import StoppingRule

#: Sums of a question probe: pretrained models, which answer questions, take longer than nano.
ARITHMETIC = 40


def probe_callbacks(
    arguments: ProbeArguments,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    documents: Sequence[Row] = (),
    documents_seen: Callable[[float], int] = lambda epoch: 0,
) -> list[KnowledgeProbeCallback]:
    """Return the callbacks that train.py's flags ask for: one, or none without --probe_file.

    Args:
        documents: what is learned, for question probes.
        documents_seen: how many of them training has read after so many epochs.

    Raises:
        InputError: a flag or a file that cannot be used.
    """
    schedule = Schedule.parse(arguments.probe_every)
    if arguments.probe_file is None:
        if arguments.stop_on is not None:
            raise InputError("--stop_on knowledge needs --probe_file: without probes nobody knows what is known")
        return []
    examples = read_skill_file(arguments.ood_file) if arguments.ood_file else []
    texts = {"held_out": held_out_text()}
    stopping = None
    if arguments.stop_on is not None:
        stopping = StoppingRule(arguments.patience, arguments.skill_drop, arguments.stop_min_share)
    if not holds_questions(arguments.probe_file):
        if arguments.probe_file.endswith(".csv"):
            raise InputError(f"{arguments.probe_file}: no column 'question'; people are read from .jsonl")
        people = read_entities(arguments.probe_file)
        examples = fewer_examples([*arithmetic_examples(), *examples], arguments.skill_examples)
        probe = KnowledgeProbe(people, tokenizer, examples, texts, arguments.probe_max_facts)
        return [KnowledgeProbeCallback(probe, schedule, run.knowledge_dynamics, stopping)]
    if arguments.probe_max_facts is not None:
        raise InputError("--probe_max_facts is for people; of questions, all of the file are asked")
    if arguments.probe_max_new_tokens < 1:
        raise InputError(f"--probe_max_new_tokens {arguments.probe_max_new_tokens}: at least one token is needed")
    learned = []
    for number, row in enumerate(documents, start=1):
        stated = {key: row[key] for key in ("text", "entity", "document") if row.get(key) not in (None, "")}
        learned.append(shape(Document).check({"document": str(number), **stated}, f"document {number}"))
    question_probe = QuestionProbe(
        read_questions(arguments.probe_file),
        learned,
        Prompter(tokenizer, arguments.instruct),
        arguments.probe_max_new_tokens,
        arguments.learned_threshold,
        fewer_examples([*arithmetic_examples(ARITHMETIC), *reasoning_examples(), *examples], arguments.skill_examples),
        texts,
    )
    return [QuestionProbeCallback(question_probe, schedule, run.question_probes, documents_seen, stopping)]
