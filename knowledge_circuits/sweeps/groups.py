"""The prompts of a program's groups: rows of the study's circuit data, or facts of one's own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from knowledge_circuits.corpus.fact_pairs import Fact, MatchedFacts, is_fact_file, match_facts, read_facts
from knowledge_circuits.corpus.prompt_pairs import group_pairs, in_group, read_circuit_data
from knowledge_circuits.engine.metrics import pairs_for
from knowledge_circuits.engine.options import Metric
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.stability import Resampling
from knowledge_circuits.files import InputError, shortened
from knowledge_circuits.manifest import fingerprint
from knowledge_circuits.runs import Checkpoint
from knowledge_circuits.study import FactGroup, Group, task_file
from knowledge_circuits.sweeps.flags import chosen_groups, refuse_flags
from knowledge_circuits.sweeps.model_loader import ModelLoader


@dataclass(frozen=True)
class GroupData:
    """One group's rows of a circuit data file.

    Attributes:
        group: which rows are meant.
        file: where they come from, for errors.
        rows: all rows of the group's task, as `read_circuit_data` gives them.
        limit: how many prompts are taken at most (`circuit_n`).
    """

    group: Group
    file: str
    rows: Sequence[dict[str, Any]]
    limit: int

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the query's wording and the rows that are taken."""
        rows = [row for row in self.rows if in_group(row, self.group)][: self.limit]
        return fingerprint([self.group.task.relation, rows])

    @property
    def spans(self) -> str | bool:
        """What tells the prompts' token spans from others in a manifest; True: those of the program."""
        return True

    @property
    def size(self) -> int:
        """How many prompts are taken."""
        return min(self.limit, sum(in_group(row, self.group) for row in self.rows))

    def pairs(self, tokenizer: PreTrainedTokenizerBase) -> PromptPairs:
        """Return the group's prompts under a tokenizer."""
        return group_pairs(self.rows, self.group, tokenizer, self.limit, self.file)


def read_groups(template: str, wanted: Sequence[Group], limit: int, quiet: bool = False) -> list[GroupData]:
    """Return the circuit data of groups, at most `limit` prompts each; an empty group is named and left out.

    Args:
        template: the data file; `{task}` in it stands for each task.
        quiet: name nothing (the other processes of a sweep).

    Raises:
        InputError: a bad file, or no group has any prompts.
    """
    rows = {name: read_circuit_data(template, name) for name in dict.fromkeys(group.task for group in wanted)}
    data = [GroupData(group, task_file(template, group.task), rows[group.task], limit) for group in wanted]
    for group in data:
        if not group.size and not quiet:
            print(f"{group.group}: no prompts in {group.file}; skipped", file=sys.stderr)
    filled = [group for group in data if group.size]
    if not filled:
        raise InputError(f"{template}: no prompts of any chosen group; choose others, or make the data for more people")
    return filled


@dataclass(frozen=True)
class FactGroupData:
    """One group of a file of one's own facts, with the interface of `GroupData`; of `pair_anew` see `match_facts`."""

    group: FactGroup
    file: str
    facts: Sequence[Fact]
    limit: int
    pair_anew: bool = False

    @property
    def digest(self) -> str:
        facts = [[fact.clean, fact.answer, fact.corrupted, fact.corrupted_answer] for fact in self.facts]
        return fingerprint(["facts", facts, self.pair_anew, self.limit])

    @property
    def spans(self) -> str | bool:
        named = [dict(fact.spans) for fact in self.facts]
        return fingerprint(named) if any(named) else True

    @property
    def size(self) -> int:
        return min(self.limit, len(self.facts))

    def pairs(self, tokenizer: PreTrainedTokenizerBase) -> PromptPairs:
        return match_facts(self.facts, tokenizer, self.pair_anew, self.limit).pairs


AnyGroupData = GroupData | FactGroupData


def check_pairs(
    groups: Sequence[AnyGroupData],
    tokenizer: PreTrainedTokenizerBase,
    metric: Metric,
    resampling: Resampling | None = None,
) -> None:
    """Raise InputError where a group's data are not the tokenizer's, or do not suffice for the metric or resampling."""
    for data in groups:
        pairs = data.pairs(tokenizer)
        try:
            pairs_for(metric, pairs)
            if resampling is not None:
                resampling.weights(len(pairs))
        except InputError as error:
            raise InputError(f"{data.file}, {data.group}: {error}") from None


def read_fact_groups(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    group_by: Sequence[str] | None = None,
    chosen: Sequence[str] | None = None,
    pair_anew: bool = False,
    quiet: bool = False,
) -> list[FactGroupData]:
    """Return the groups of a file of one's own facts; pairs without a match and groups without pairs are named.

    Args:
        path: see `fact_pairs.read_facts`, also for `group_by`.
        tokenizer: that of the first checkpoint.
        limit: pairs per group at most.
        chosen: the names of the wanted groups; None means all.
        pair_anew: see `match_facts`.

    Raises:
        InputError: a bad file, an unknown group, or no group has any pairs.
    """
    filled = []
    for group, facts in facts_by_group(path, group_by, chosen).items():
        matched = match_facts(facts, tokenizer, pair_anew, limit)
        if not quiet:
            _say_matches(group, matched)
        if len(matched.pairs):
            filled.append(FactGroupData(group, path, facts, limit, pair_anew))
    if not filled:
        remedy = "" if pair_anew else "; --pair_anew draws others within each group"
        raise InputError(f"{path}: no clean prompt has a corrupted one with as many tokens{remedy}")
    return filled


def _say_matches(group: FactGroup, matched: MatchedFacts) -> None:
    pairs, unmatched = matched.pairs, matched.unmatched
    if unmatched:
        names = ", ".join(f"{fact.where.rpartition(', ')[2]} ({shortened(fact.clean, 80)})" for fact in unmatched[:3])
        more = f" and {len(unmatched) - 3} more" if len(unmatched) > 3 else ""
        print(f"{group}: {len(unmatched)} without a corrupted prompt of as many tokens left out: {names}{more}")
    if matched.anew:
        print(f"{group}: {matched.anew} of {len(pairs)} pairs were paired anew")
    if same := sum(clean == corrupted for clean, corrupted in pairs.labels):
        print(f"{group}: {same} of {len(pairs)} pairs have answers with the same first token: logit difference 0")
    if not len(pairs):
        print(f"{group}: no prompts left; skipped", file=sys.stderr)


def facts_by_group(
    path: str, group_by: Sequence[str] | None = None, chosen: Sequence[str] | None = None
) -> dict[FactGroup, list[Fact]]:
    """Return the facts of a file by group, in the file's order; see `read_fact_groups`."""
    by_group: dict[FactGroup, list[Fact]] = {}
    for fact in read_facts(path, group_by):
        by_group.setdefault(fact.group, []).append(fact)
    names = {group.name: group for group in by_group}
    for name in chosen or ():
        if name not in names:
            raise InputError(f"{path}: no group {name!r}, only {', '.join(list(names)[:20])}")
    return {group: facts for group, facts in by_group.items() if not chosen or group.name in chosen}


def groups_of_flags(
    args: argparse.Namespace, file: str, prefix: str, loader: ModelLoader, first: Checkpoint, quiet: bool
) -> Sequence[AnyGroupData]:
    """Return the groups that a program's flags choose from a file: the study's circuit data, or facts of one's own.

    Args:
        args: of `flags.add_shared_flags` and `flags.add_group_flags` with `prefix`.
        file: the data file; `{task}` in it stands for each task.
        prefix: "" or "source_".
        loader, first: whose tokenizer matches the prompts of own facts.
        quiet: name nothing (the other processes of a sweep).

    Raises:
        InputError: a bad file, flags of the other kind of data, or no prompts.
    """
    if is_fact_file(file):
        names = ["task", f"{prefix}type", f"{prefix}frequency"]
        refuse_flags(args, file, names, f"it holds facts of one's own, whose groups --{prefix}group chooses")
        chosen = getattr(args, f"{prefix}group")
        return read_fact_groups(
            file, loader.tokenizer(first), args.circuit_n, args.group_by, chosen, args.pair_anew, quiet
        )
    refuse_flags(args, file, ["group_by", "pair_anew", f"{prefix}group"], "it is circuit data of the study")
    wanted = chosen_groups(args.task, getattr(args, f"{prefix}type"), getattr(args, f"{prefix}frequency"))
    return read_groups(file, wanted, args.circuit_n, quiet)
