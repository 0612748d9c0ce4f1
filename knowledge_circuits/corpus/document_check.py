"""What documents and questions lack: entities without documents, gold documents that do not answer, answers in no text.

An answer's *share* in a text is its longest run of tokens that stands there, over all its tokens: 1 where the text has
the whole answer. Tokens are words and numbers without case. A question is answerable if one of its accepted answers
has a large enough share in one of the entity's documents (in any document where the entity has none).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from knowledge_circuits.corpus.questions import UNMENTIONED, Document, Question, entity_frequency


@dataclass(frozen=True)
class Coverage:
    """How far the documents answer one question.

    Attributes:
        share: the largest share of an accepted answer in a document, 0 to 1; None for a question without answers.
        document: the id of that document; None where nothing of the answer stands in any.
        frequency: of the question's entity.
    """

    question: Question
    share: float | None
    document: str | None
    frequency: str


@dataclass(frozen=True)
class DocumentCheck:
    """What a check found.

    Attributes:
        coverage: one per question.
        errors: contradictions within the files, which no experiment should run on.
        warnings: what may be meant so.
    """

    coverage: tuple[Coverage, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def check_documents(documents: Sequence[Document], questions: Sequence[Question]) -> DocumentCheck:
    """Compare questions with the documents that should answer them.

    Raises:
        InputError: the questions about an entity give different frequencies.
    """
    by_id = {document.document: document for document in documents}
    by_entity: dict[str, list[Document]] = {}
    for document in documents:
        if document.entity is not None:
            by_entity.setdefault(document.entity, []).append(document)
    phrases = {document.document: _phrase(document.text) for document in documents}
    tokens = {document: phrase.split() for document, phrase in phrases.items()}
    everything = "\n".join(phrases.values())
    frequencies = entity_frequency(documents, questions)
    errors: list[str] = []
    warnings = _repeated("text", phrases.values())
    warnings += _repeated("question", (question.question for question in questions))
    coverage = []
    for question in questions:
        about = f"question {question.id} ({question.question!r})"
        gold = by_id.get(question.document or "")
        own = by_entity.get(question.entity, [])
        if question.document is not None and gold is None:
            errors.append(f"{about}: no document has the id {question.document!r}")
        if gold is not None and gold.entity not in (None, question.entity):
            warnings.append(f"{about}: its document {gold.document!r} is about {gold.entity!r}")
        if question.kind == UNMENTIONED and own:
            errors.append(f"{about}: {question.entity!r} should be unmentioned and has {len(own)} documents")
        elif by_entity and not own and UNMENTIONED not in (question.kind, question.frequency):
            warnings.append(f"{about}: no document is about {question.entity!r}")
        if gold is not None and question.supports and _phrase(question.supports) not in phrases[gold.document]:
            warnings.append(f"{about}: its `supports` does not stand in the document {gold.document!r}")
        for wording in (question.question, *question.paraphrases):
            if _phrase(wording) in everything:
                warnings.append(f"{about}: {wording!r} stands in a document, so it is no new wording")
        share, best = _best_share(question, own or documents, tokens)
        coverage.append(Coverage(question, share, best, frequencies[question.entity]))
    return DocumentCheck(tuple(coverage), tuple(errors), tuple(warnings))


def _repeated(what: str, texts: Iterable[str]) -> list[str]:
    again = [text for text, count in Counter(map(str.strip, texts)).items() if count > 1]
    return [f"{len(again)} {what}(s) stand in the file more than once, such as {again[0][:60]!r}"] if again else []


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _phrase(text: str) -> str:
    """Return the tokens of a text between spaces, so that a phrase stands in a text only as whole tokens."""
    return f" {' '.join(_tokens(text))} "


def _best_share(
    question: Question, documents: Sequence[Document], tokens: dict[str, list[str]]
) -> tuple[float | None, str | None]:
    """Return the largest share of an accepted answer in one of the documents, and that document's id."""
    if not question.answers:
        return None, None
    best, where = 0.0, None
    for answer in map(_tokens, question.answers):
        for document in documents:
            words = tokens[document.document]
            if set(answer).isdisjoint(words):
                continue
            share = longest_run(answer, words) / len(answer)
            if share > best:
                best, where = share, document.document
            if best == 1:
                return best, where
    return best, where


def longest_run(answer: Sequence[str], text: Sequence[str]) -> int:
    """Return the length of the longest run of tokens that stands in both.

    >>> longest_run(["the", "paper", "ledger"], ["a", "paper", "ledger"])
    2
    """
    return SequenceMatcher(None, answer, text, autojunk=False).find_longest_match().size
