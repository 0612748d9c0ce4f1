"""Question probes: what a model answers to questions about its documents while it is trained on them.

Before the first step and after every epoch (or every so many steps) the model answers each question and its
paraphrases, greedily, and each probe becomes one line of the run's question_probes.jsonl. An entity counts as *learned*
when the mean recall of its questions is at least `--learned_threshold`. Everything that is counted from there is a pure
function of the records:

    progress        learned, kept, newly learned and forgotten entities of each probe, by frequency and kind
    recall_floors   the recall that the answers have as answers about other entities
    agreement       of the questions that are answered right, the share of paraphrases that are answered right too
    hallucination   of the questions about entities that no document mentions, the share that get an answer all the same

A hallucination is an answer that neither says that it is not known nor is one of the accepted answers. It is `borrowed`
if an accepted answer about a mentioned entity stands in it, else `invented`.

The study is that of Mousavi et al. (2026), arXiv 2601.03858.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel, TrainerState

from knowledge_circuits.corpus.answering import (
    Prompter,
    abstains,
    answer_prompts,
    check_answers_fit,
    exact,
    recall,
    words,
)
from knowledge_circuits.corpus.questions import UNMENTIONED, Document, Question, entity_frequency
from knowledge_circuits.files import InputError
from knowledge_circuits.models.generation import Vocabulary
from knowledge_circuits.models.scoring import mean_loss
from knowledge_circuits.models.tokenization import plain_ids, start_token_id
from knowledge_circuits.records import QuestionProbeRecord, shape
from knowledge_circuits.study import ANSWER_TOKENS
from knowledge_circuits.training.probes import KnowledgeProbeCallback, Probe, Schedule, finite
from knowledge_circuits.training.skills import SkillExample, evenly_spaced
from knowledge_circuits.training.stopping import Known, StoppingRule

Record = Mapping[str, Any]

#: The loss is the mean over at most so many documents, evenly spaced in the training file.
MOST_DOCUMENTS = 500

#: The floor of an answer's recall is taken over so many other questions at most.
MOST_OTHERS = 50

#: A held-out text is read up to this token.
MOST_TOKENS = 1024

NONE, BORROWED, INVENTED = "none", "borrowed", "invented"


class QuestionProbe(Probe):
    """Questions, documents, skills and texts: one record of all.

    Args:
        documents: what is learned; they tell each entity's frequency, and their loss is measured.
        prompter: how questions become prompts.
        threshold: the mean recall from which an entity counts as learned.
        examples, texts: as for `KnowledgeProbe`.

    Raises:
        InputError: a threshold that is no share, no questions, or a chat template that fails.
    """

    record = QuestionProbeRecord

    def __init__(
        self,
        questions: Sequence[Question],
        documents: Sequence[Document],
        prompter: Prompter,
        max_new_tokens: int = ANSWER_TOKENS,
        threshold: float = 0.6,
        examples: Sequence[SkillExample] = (),
        texts: Mapping[str, str] | None = None,
    ) -> None:
        if not 0 < threshold <= 1:
            raise InputError(f"--learned_threshold {threshold}: a share above 0 and at most 1 is wanted")
        self.questions = list(questions)
        self.threshold = threshold
        self.frequency = entity_frequency(documents, questions)
        self._max_new_tokens = max_new_tokens
        self._prompts = [prompter.ids(text) for question in questions for text in _wordings(question)]
        read = evenly_spaced(documents, MOST_DOCUMENTS)
        self._documents = [plain_ids(prompter.tokenizer, document.text) for document in read]
        if not any(self._documents):
            raise InputError("question probes need documents with at least one token")
        super().__init__(prompter.tokenizer, examples, texts, MOST_TOKENS)
        self._vocabulary: Vocabulary | None = None
        mentioned = [question for question in questions if self.frequency[question.entity] != UNMENTIONED]
        self._answers = {tuple(words(answer)) for question in mentioned for answer in question.answers}

    def check_fits(self, model: PreTrainedModel) -> None:
        check_answers_fit(model, self._prompts, self._max_new_tokens)
        super().check_fits(model)

    def records(self, model: PreTrainedModel, step: int, epoch: float) -> list[dict[str, Any]]:
        """Return one record, without what only training knows (documents seen, seconds)."""
        loss = mean_loss(model, self._documents, start_token_id(self._tokenizer))
        record: dict[str, Any] = {
            "step": step,
            "epoch": epoch,
            "learned_threshold": self.threshold,
            "loss": finite(loss, f"the loss of the documents at step {step}"),
            "perplexity": float(np.exp(loss)),
            "skills": {name: score.accuracy for name, score in self._skills.scores(model).items()},
            "texts": self.perplexities(model, step),
            "questions": self._answered(model),
        }
        return [record]

    def refuse_others(self, earlier: Sequence[Record], path: Path) -> None:
        expected = [(question.id, question.entity) for question in self.questions]
        if earlier and (
            [(row["id"], row["entity"]) for row in earlier[0]["questions"]] != expected
            or earlier[0]["learned_threshold"] != self.threshold
        ):
            raise InputError(
                f"{path}: the run has been probed with other questions or another threshold so far; resume it with "
                "the same --probe_file and --learned_threshold, or start again with --overwrite_output_dir"
            )

    def summary(self, rows: Sequence[Record]) -> dict[str, float]:
        (record,) = rows
        overall = _overall(rows, self.threshold)
        logs = {f"probe_{key}": record[key] for key in ("loss", "perplexity", "documents_seen")}
        if overall:
            logs["probe_learned_share"] = overall["learned"] / overall["entities"]
            logs |= {f"probe_{key}": overall[key] for key in ("recall", "exact")}
        shares = hallucination(record)
        logs |= {"probe_hallucination": sum(shares.values())} if shares else {}
        logs |= {f"probe_{name}_accuracy": value for name, value in record["skills"].items()}
        return logs | {f"probe_{name}_perplexity": value for name, value in record["texts"].items()}

    def history(self, path: Path) -> tuple[Known, np.ndarray]:
        records = read_question_probes(path)
        skills = [_mean(row["skills"].values()) if row["skills"] else float("nan") for row in records]
        return known_entities(records, self.threshold), np.array(skills)

    def _answered(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        if self._vocabulary is None or self._vocabulary.blank.device != model.device:
            self._vocabulary = Vocabulary.of(self._tokenizer, model)
        outputs = iter(
            answer_prompts(model, self._tokenizer, self._prompts, self._max_new_tokens, vocabulary=self._vocabulary)
        )
        rows = []
        for question in self.questions:
            output, *others = [next(outputs) for _ in _wordings(question)]
            row: dict[str, Any] = {
                "id": question.id,
                "entity": question.entity,
                "kind": question.kind,
                "frequency": self.frequency[question.entity],
                "output": output,
                "recall": recall(output, question.answers),
                "exact": exact(output, question.answers),
                "paraphrase_recalls": [recall(other, question.answers) for other in others],
                "paraphrase_outputs": others,
            }
            if row["frequency"] == UNMENTIONED:
                row["hallucination"] = self._hallucination(output, row["recall"])
            rows.append(row)
        return rows

    def _hallucination(self, output: str, recall: float) -> str:
        if abstains(output) or recall >= self.threshold:
            return NONE
        said = words(output)
        runs = {tuple(said[at : at + n]) for n in {len(a) for a in self._answers} for at in range(len(said) - n + 1)}
        return BORROWED if runs & self._answers else INVENTED


def _wordings(question: Question) -> tuple[str, ...]:
    return (question.question, *question.paraphrases)


# --- what records tell ----------------------------------------------------------------------------------------------


def read_question_probes(path: str | Path) -> list[dict[str, Any]]:
    """Read question_probes.jsonl, one record per probe in step order, and check every line of it."""
    return shape(QuestionProbeRecord).lines(path)


def entity_recalls(record: Record, frequency: str | None = None, kind: str | None = None) -> dict[str, float]:
    """Return each mentioned entity's mean recall over its questions.

    Args:
        frequency: entities of this label only; None: all that documents mention.
        kind: questions of this kind only; None: all.
    """
    recalls: dict[str, list[float]] = defaultdict(list)
    for row in _mentioned(record, frequency, kind):
        recalls[row["entity"]].append(row["recall"])
    return {entity: sum(values) / len(values) for entity, values in recalls.items()}


def recall_floors(record: Record, accepted: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the recall of each answer about a mentioned entity, scored as one about others: what knows nothing earns.

    The mean over the questions of the same kind about other mentioned entities, of which at most `MOST_OTHERS`, evenly
    spaced, are taken. Words that stand in many answers ("of the") and right guesses of frequent ones are in it.

    Args:
        accepted: the accepted answers by question id.

    Returns:
        By question id; NaN where no other entity has a question of the kind.
    """
    by_kind: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for row in _mentioned(record):
        by_kind[row["kind"]].append(row)
    floors = {}
    for rows in by_kind.values():
        for row in rows:
            others = [other["id"] for other in rows if other["entity"] != row["entity"]]
            scores = [recall(row["output"], accepted[id]) for id in evenly_spaced(others, MOST_OTHERS)]
            floors[row["id"]] = _mean(scores) if scores else math.nan
    return floors


def learned_entities(
    record: Record, threshold: float, frequency: str | None = None, kind: str | None = None
) -> set[str]:
    """Return the entities whose mean recall reaches the threshold; arguments as for `entity_recalls`."""
    # A mean such as (0.5 + 0.7) / 2 may lie a rounding below the threshold that it equals.
    return {entity for entity, mean in entity_recalls(record, frequency, kind).items() if mean >= threshold - 1e-9}


def progress(records: Sequence[Record], threshold: float) -> list[dict[str, Any]]:
    """Return what every probe tells of every group of entities.

    Returns:
        One row for each probe, frequency and kind (None stands for all of them) that has questions, with the keys step,
        epoch, frequency, kind, entities (how many), learned, kept (learned here and at the probe before), newly_learned
        (here and not before), forgotten (before and not here), recall and exact (means over questions). The first
        probe has none before it: what is learned there is kept.
    """
    rows = []
    for number, record in enumerate(records):
        before = records[max(number - 1, 0)]
        for frequency, kind in product((None, *_labels(record, "frequency")), (None, *_labels(record, "kind"))):
            questions = _mentioned(record, frequency, kind)
            if not questions:
                continue
            now = learned_entities(record, threshold, frequency, kind)
            then = learned_entities(before, threshold, frequency, kind)
            rows.append(
                {
                    "step": record["step"],
                    "epoch": record["epoch"],
                    "frequency": frequency,
                    "kind": kind,
                    "entities": len({row["entity"] for row in questions}),
                    "learned": len(now),
                    "kept": len(now & then),
                    "newly_learned": len(now - then),
                    "forgotten": len(then - now),
                    "recall": _mean(row["recall"] for row in questions),
                    "exact": _mean(row["exact"] for row in questions),
                }
            )
    return rows


def _overall(records: Sequence[Record], threshold: float) -> dict[str, Any] | None:
    """Return the last probe's row about all entities; None if none is mentioned."""
    rows = [row for row in progress(records, threshold) if row["frequency"] is row["kind"] is None]
    return rows[-1] if rows else None


def agreement(record: Record, threshold: float) -> float | None:
    """Return the share of paraphrases answered right, of the questions that are answered right; None without any.

    An answer is right if its recall reaches the threshold.
    """
    rows = [row for row in _mentioned(record) if row["recall"] >= threshold - 1e-9]
    paraphrases = [value >= threshold - 1e-9 for row in rows for value in row["paraphrase_recalls"]]
    return _mean(paraphrases) if paraphrases else None


def hallucination(record: Record) -> dict[str, float] | None:
    """Return the shares of borrowed and invented answers about unmentioned entities; None without such questions."""
    kinds = [row["hallucination"] for row in record["questions"] if row["frequency"] == UNMENTIONED]
    return {kind: kinds.count(kind) / len(kinds) for kind in (BORROWED, INVENTED)} if kinds else None


def known_entities(records: Sequence[Record], threshold: float) -> Known:
    """Return which entities are learned at which probes: bool [entities, probes], for a stopping rule."""
    entities = list(entity_recalls(records[0])) if records else []
    learned = [learned_entities(record, threshold) for record in records]
    return np.array([[entity in at for at in learned] for entity in entities], dtype=bool)


def _mentioned(record: Record, frequency: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
    return [
        row
        for row in record["questions"]
        if row["frequency"] != UNMENTIONED and frequency in (None, row["frequency"]) and kind in (None, row["kind"])
    ]


def _labels(record: Record, key: str) -> list[str]:
    """Return the labels of mentioned entities' questions in the order of the file."""
    return list(dict.fromkeys(row[key] for row in _mentioned(record) if row[key] is not None))


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return float(sum(numbers)) / len(numbers)


# --- inside a Trainer -----------------------------------------------------------------------------------------------


class QuestionProbeCallback(KnowledgeProbeCallback):
    """Probes with questions while a Trainer trains, and keeps the run's question_probes.jsonl.

    `seconds` of a record are those of training so far without the probes, interruptions left out.

    Args:
        documents_seen: tells the documents that training has read after so many epochs.
    """

    def __init__(
        self,
        probe: QuestionProbe,
        schedule: Schedule,
        path: str | Path,
        documents_seen: Callable[[float], int],
        stopping: StoppingRule | None,
    ) -> None:
        super().__init__(probe, schedule, path, stopping)
        self._documents_seen = documents_seen
        self._earlier_seconds = 0.0

    def _keep_until(self, step: int) -> bool:
        recorded = super()._keep_until(step)
        rows = read_question_probes(self._path) if self._path.exists() else []
        self._earlier_seconds = rows[-1]["seconds"] if rows else 0.0
        return recorded

    def _records(self, model: PreTrainedModel, state: TrainerState) -> list[dict[str, Any]]:
        now = time.monotonic()
        trained = self._earlier_seconds + now - self._started - self._seconds
        (record,) = super()._records(model, state)
        questions = record.pop("questions")
        record["documents_seen"] = self._documents_seen(record["epoch"])
        record["seconds"] = round(trained, 2)
        record["probe_seconds"] = round(time.monotonic() - now, 2)
        return [{**record, "questions": questions}]

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        super()._append(rows)
        tqdm.write(described(read_question_probes(self._path)))


def described(records: Sequence[Record]) -> str:
    """Return what the last of some probes found, in one line."""
    record = records[-1]
    threshold = record["learned_threshold"]
    overall = _overall(records[-2:], threshold)
    text = f"step {record['step']} (epoch {record['epoch']:g}): "
    if overall:
        text += f"{overall['learned']} of {overall['entities']} entities learned"
        if len(records) > 1:
            changes = overall["kept"], overall["newly_learned"], overall["forgotten"]
            text += ", {} kept, {} newly learned, {} forgotten".format(*changes)
        text += f"; recall {overall['recall']:.2f}, exact {overall['exact']:.2f}"
    agreed, shares = agreement(record, threshold), hallucination(record)
    text += f"; paraphrases agree {agreed:.0%}" if agreed is not None else ""
    text += f"; hallucination {sum(shares.values()):.0%}" if shares else ""
    return text + f"; loss {record['loss']:.3f}, perplexity {record['perplexity']:.2f}"
