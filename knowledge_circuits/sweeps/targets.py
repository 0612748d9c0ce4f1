"""The test items on which circuits run alone: queries about a target group's people, or one's own facts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from knowledge_circuits.corpus.fact_pairs import Fact, is_fact_file
from knowledge_circuits.corpus.people import read_entities
from knowledge_circuits.corpus.prompt_pairs import in_group, read_circuit_data
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.files import InputError, numbered_jsonl
from knowledge_circuits.manifest import fingerprint
from knowledge_circuits.models.scoring import encode_continuations
from knowledge_circuits.models.tokenization import encode_prompt, label_text
from knowledge_circuits.study import AnyGroup, Attribute, FactGroup, Group, task_file
from knowledge_circuits.sweeps.flags import chosen_groups, refuse_flags
from knowledge_circuits.sweeps.groups import AnyGroupData, FactGroupData, facts_by_group


@dataclass(frozen=True)
class TestItem:
    """One query for a standalone circuit.

    Attributes:
        prompt, value: the prompt, and the right answer.
        keys: what the data file says of the item, repeated in its prediction.
        label: the id of the answer's first token, where the file gives it instead of the answer.
    """

    __test__ = False  # not a test class, whatever its name

    prompt: str
    value: str
    keys: Mapping[str, Any]
    label: int | None = None

    def is_of(self, row: Mapping[str, Any]) -> bool:
        """Return whether a prediction tells this item's answer; one that the file gives as an id repeats the id."""
        if self.label is None:
            return row.get("ground_truth") == self.value
        return row.get("correct_idx") == self.keys["correct_idx"]


#: The prompts of a target group, and the first keys of each prediction.
Queries = tuple[PromptPairs, list[dict[str, Any]]]


@dataclass(frozen=True)
class TestItems:
    """The test items of one target group."""

    __test__ = False

    target: AnyGroup
    items: Sequence[TestItem]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the query's wording and the test items."""
        relation = self.target.task.relation if isinstance(self.target, Group) else ""
        items = [[item.prompt.removesuffix(relation), item.value, dict(item.keys)] for item in self.items]
        return fingerprint([relation, items])

    def questions(self, tokenizer: PreTrainedTokenizerBase) -> Queries:
        """Return the prompts, which need no corrupted side, and each prediction's first keys."""
        answered = [item for item in self.items if item.label is None]
        encoded = iter(
            encode_continuations(tokenizer, [item.prompt for item in answered], [item.value for item in answered])
        )
        space = label_text(tokenizer, "")
        prompts, labels, said = [], [], []
        for item in self.items:
            if item.label is None:
                prompt, (label, *_) = next(encoded)
                answer = item.value
            else:
                prompt, label = tuple(encode_prompt(tokenizer, item.prompt)), item.label
                answer = tokenizer.decode([label]).strip()
            prompts.append(prompt)
            labels.append((label, label))
            said.append({"ground_truth": answer, "clean_label": space + answer})
        return PromptPairs(prompts, prompts, labels), said


def _fact_item(fact: Fact) -> TestItem:
    measured = ("ground_truth", "clean_label", "token_prob", "token_rank")
    own = {key: value for key, value in fact.row.items() if key not in measured}
    if isinstance(fact.answer, int):
        return TestItem(fact.clean, "", own, fact.answer)
    return TestItem(fact.clean, fact.answer, own)


def targets_of_flags(
    args: argparse.Namespace, groups: Sequence[AnyGroupData], quiet: bool
) -> Mapping[str, Sequence[TestItems]]:
    """Return the test items that circuit_eval.py's flags choose, by the task of the circuits that run on them.

    Raises:
        InputError: a bad file, or one of another kind than the circuits' data.
    """
    path = args.test_data_file
    if not path:
        return {}
    own = isinstance(groups[0], FactGroupData)
    if own != is_fact_file(path):
        raise InputError(f"--test_data_file {path}: one of the two data files holds facts of one's own, the other not")
    if own:
        refuse_flags(args, path, ["target_type", "target_frequency"], "--target_group chooses its groups")
        task = str(groups[0].group.task)
        # A target of the same columns as a circuit's group is the circuit's own.
        items = [
            TestItems(FactGroup(task, group.columns), [_fact_item(fact) for fact in facts])
            for group, facts in facts_by_group(path, args.group_by, args.target_group).items()
        ]
        return {task: items}
    refuse_flags(args, path, ["target_group"], "it holds people of the study")
    return read_test_items(path, chosen_groups(args.task, args.target_type, args.target_frequency), quiet)


def read_test_items(template: str, wanted: Sequence[Group], quiet: bool = False) -> dict[str, list[TestItems]]:
    """Return the test items of every target group, by task; an empty group is named and left out.

    Args:
        template: entities (test.jsonl), or circuit data; `{task}` in it stands for each task.

    Raises:
        InputError: a bad file.
    """
    by_task: dict[str, list[TestItems]] = {}
    for task in dict.fromkeys(target.task for target in wanted):
        path = task_file(template, task)
        rows = _test_rows(path, task)
        by_task[task] = []
        for target in (target for target in wanted if target.task == task):
            items = [item for item in rows if in_group(item.keys, target)]
            if items:
                by_task[task].append(TestItems(target, items))
            elif not quiet:
                print(f"{target}: no test items in {path}; skipped as a target", file=sys.stderr)
    return by_task


def _test_rows(path: str, task: Attribute) -> list[TestItem]:
    """Return the items of a file of people, or of circuit data, whose clean side is taken."""
    first = next((row for _, row in numbered_jsonl(path)), {})
    if "clean_subject" in first:
        rows = read_circuit_data(path, task)
        return [TestItem(task.prompt(row["clean_subject"]), row["clean_label"].strip(), row) for row in rows]
    people = read_entities(path)
    return [TestItem(task.prompt(person.full_name), person.value(task).strip(), person.to_row()) for person in people]
