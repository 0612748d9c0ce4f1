"""References without training: a model answers questions with documents in the prompt, or without any.

    none         the question alone
    gold         the document that answers it (the question's `document`)
    entity       all documents of the question's entity, in the order of their file
    retrieved    the documents that BM25 (package bm25s) finds for the question among all of them

Texts that do not fit into the model's context with the question and its answer are cut at their end. What an entity, a
right answer and its recall are is as in question probes (training/question_probes.py), so that a reference can stand
beside a trained model. (Mousavi et al. 2026, arXiv 2601.03858.)

In: checkpoints, questions, documents. Out: `answers_<context>.jsonl` in each checkpoint's folder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from knowledge_circuits.corpus.answering import Prompter, answer_prompts, exact, recall
from knowledge_circuits.corpus.questions import UNMENTIONED, Document, Question, entity_frequency
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import FileRecord, fingerprint
from knowledge_circuits.models.loading import context_length
from knowledge_circuits.models.tokenization import plain_ids
from knowledge_circuits.sweeps.flags import Context
from knowledge_circuits.sweeps.prediction import Answers, Settings
from knowledge_circuits.sweeps.processes import WorkItem
from knowledge_circuits.training.question_probes import entity_recalls, learned_entities

#: What BM25 counts as a word: bm25s's own pattern.
_WORD = r"(?u)\b\w\w+\b"


@dataclass(frozen=True)
class Reference:
    """What stands in the prompts, and how they are written.

    Attributes:
        documents: what may stand in the prompt.
        context: which of them do.
        retrieved: how many documents BM25 gives for a question.
        instruct: whether the tokenizer's chat template forms the prompt.
        file: where the documents come from, for errors.
    """

    questions: Sequence[Question]
    documents: Sequence[Document]
    context: Context
    retrieved: int = 3
    instruct: bool = False
    file: str = "--documents"

    def __post_init__(self) -> None:
        if self.context is not Context.NONE and not self.documents:
            raise InputError(f"--context {self.context} needs --documents, the texts that stand in the prompt")
        if self.context is Context.GOLD and not any(self.chosen):
            raise InputError(
                "--context gold: no question names a document of --documents under 'document'; "
                "try --context entity or retrieved"
            )
        if self.context is Context.RETRIEVED and not any(re.search(_WORD, one.text) for one in self.documents):
            raise InputError(
                f"{self.file}: no document has a word of two letters or digits, by which --context retrieved finds it"
            )

    @cached_property
    def chosen(self) -> list[list[Document]]:
        """The documents in each question's prompt."""
        if self.context is Context.NONE:
            return [[] for _ in self.questions]
        if self.context is Context.GOLD:
            by_id = {document.document: document for document in self.documents}
            return [[by_id[q.document]] if q.document in by_id else [] for q in self.questions]
        if self.context is Context.ENTITY:
            of_entity: dict[str | None, list[Document]] = defaultdict(list)
            for document in self.documents:
                of_entity[document.entity].append(document)
            return [of_entity.get(question.entity, []) for question in self.questions]
        return retrieve(self.questions, self.documents, self.retrieved)


def retrieve(questions: Sequence[Question], documents: Sequence[Document], count: int) -> list[list[Document]]:
    """Return the documents that BM25 ranks highest for each question, best first; one that shares no word is left out.

    Raises:
        InputError: bm25s is not installed.
    """
    try:
        import bm25s
    except ImportError:
        raise InputError("--context retrieved needs the package bm25s (pip install bm25s)") from None
    quiet: dict[str, Any] = {"show_progress": False}
    # Stop words stay: a list of one language would not fit the others, and BM25 gives them little weight.
    words: dict[str, Any] = {"stopwords": [], "token_pattern": _WORD, **quiet}
    index = bm25s.BM25()
    index.index(bm25s.tokenize([document.text for document in documents], **words), **quiet)
    queries = bm25s.tokenize([question.question for question in questions], **words)
    documents_of, scores = index.retrieve(queries, k=min(count, len(documents)), **quiet)
    return [
        [documents[int(number)] for number, score in zip(*row, strict=True) if score > 0]
        for row in zip(documents_of, scores, strict=True)
    ]


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reference: Reference, settings: Settings
) -> list[dict[str, Any]]:
    """Return one record per question, in their order.

    Args:
        model: in evaluation mode.
        settings: `max_new_tokens` and `batch_size` count here.

    Raises:
        InputError: a chat template that fails, or a question that alone does not fit into the model's context.
    """
    prompter = Prompter(tokenizer, reference.instruct)
    limit = context_length(model.config)
    room = limit - settings.max_new_tokens if limit else None
    asked = list(zip(reference.questions, reference.chosen, strict=True))
    fitted = [_fitting_prompt(prompter, question.question, documents, room) for question, documents in asked]
    prompts = [ids for ids, _ in fitted]
    outputs = answer_prompts(model, tokenizer, prompts, settings.max_new_tokens, settings.batch_size)
    frequency: Mapping[str, str | None]
    if reference.documents:
        frequency = entity_frequency(reference.documents, reference.questions)
    else:  # what the questions say of their entities
        frequency = {
            one.entity: UNMENTIONED if one.kind == UNMENTIONED else one.frequency for one in reference.questions
        }
    return [
        {
            "id": question.id,
            "entity": question.entity,
            "kind": question.kind,
            "frequency": frequency[question.entity],
            "question": question.question,
            "documents": [document.document for document in documents],
            "cut": cut,
            "output": output,
            "recall": recall(output, question.answers),
            "exact": exact(output, question.answers),
        }
        for (question, documents), (_, cut), output in zip(asked, fitted, outputs, strict=True)
    ]


def _fitting_prompt(
    prompter: Prompter, question: str, documents: Sequence[Document], room: int | None
) -> tuple[list[int], bool]:
    """Return a prompt of at most `room` tokens, and whether its documents were cut for that."""
    context = "\n\n".join(document.text for document in documents)
    ids, cut = prompter.ids(question, context), False
    while room is not None and len(ids) > room and context:
        kept = plain_ids(prompter.tokenizer, context)[: room - len(ids)]
        context = str(prompter.tokenizer.decode(kept)) if kept else ""
        ids, cut = prompter.ids(question, context), True
    return ids, cut


def summary(name: str, context: str, rows: Sequence[dict[str, Any]], threshold: float) -> str:
    """Return what the answers of one checkpoint come to, in one line; questions without accepted answers do not count.

    Args:
        rows: the records of `answers`.
        threshold: the mean recall from which an entity counts as known.
    """
    record = {"questions": [{**row, "frequency": row["frequency"] or ""} for row in rows]}
    known, entities = learned_entities(record, threshold), entity_recalls(record)
    counted = [row for row in rows if row["entity"] in entities]
    if not counted:
        return f"{name}, context {context}: no questions about entities that the documents mention"
    mean_recall, share = (sum(row[key] for row in counted) / len(counted) for key in ("recall", "exact"))
    return (
        f"{name}, context {context}: recall {mean_recall:.2f}, exact {share:.2f}, "
        f"{len(known)} of {len(entities)} entities known ({len(counted)} questions)"
    )


@dataclass(frozen=True)
class ReferenceAnswers(Answers):
    """The answers of one checkpoint under one context."""

    reference: Reference

    @property
    def inputs(self) -> dict[str, Any]:
        reference, template = self.reference, Path(self.checkpoint.path) / "chat_template.jinja"
        templated = reference.instruct and template.is_file()
        return {
            "questions": fingerprint([question.model_dump() for question in reference.questions]),
            "documents": fingerprint([document.model_dump() for document in reference.documents]),
            "context": str(reference.context),
            "retrieved": reference.retrieved if reference.context is Context.RETRIEVED else None,
            "instruct": reference.instruct,
            **({"template": FileRecord.of(template).sha256[:16]} if templated else {}),
        }

    def answers_these(self, rows: Sequence[dict[str, Any]]) -> bool:
        asked = [
            (question.id, question.question, [document.document for document in documents])
            for question, documents in zip(self.reference.questions, self.reference.chosen, strict=True)
        ]
        return [(row.get("id"), row.get("question"), row.get("documents")) for row in rows] == asked

    def answer(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        return answers(model, tokenizer, self.reference, self.settings)

    def item(self) -> WorkItem:
        name = f"{self.checkpoint.name}, context {self.reference.context}"
        return WorkItem(name, self.checkpoint.name, 1.0, self.states, self.run, self.adopt)
