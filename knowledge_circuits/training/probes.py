"""Probes inside the training loop: which facts the model knows at each step, and which general skills it still has.

Loss alone does not tell what is learned, so training is interleaved with three kinds of probes, before the first step
and then every epoch or every N steps. Each becomes lines of the run's knowledge_dynamics.jsonl:

- `fact`: every attribute of every person in the probe file: answered correctly or not, the target's first-token
  probability and rank (0 is best), the full answer's log-probability (nats);
- `skill`: multiple-choice accuracy outside the domain (skills.py);
- `text`: perplexity of a held-out text.

A fact's four numbers come from one teacher-forced pass over the prompt and its answer (scoring.py). Greedy generation,
as in prediction.py, would begin with the answer if and only if each of its tokens is the likeliest one, and the token
that the model would put next tells whether the answer ends there. (A model that spells the same answer in tokens that
the tokenizer would not choose counts as wrong here and as right there.)

Under several processes each of them runs all probes, so that sharded models work; the main one writes, and decides
about stopping.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import distributed
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from knowledge_circuits.corpus.people import Person
from knowledge_circuits.corpus.queries import Query, build_queries, check_context, is_correct
from knowledge_circuits.files import InputError, atomic_write, write_jsonl
from knowledge_circuits.models.generation import generated_text
from knowledge_circuits.models.scoring import mean_loss, score_continuations
from knowledge_circuits.models.tokenization import start_token_id
from knowledge_circuits.records import PROBE_RECORD, shape
from knowledge_circuits.study import MAX_NEW_TOKENS, Attribute
from knowledge_circuits.training.flags import option
from knowledge_circuits.training.skills import SkillExample, SkillTest, evenly_spaced
from knowledge_circuits.training.stopping import Known, StoppingRule

Value = TypeVar("Value")


@dataclass(frozen=True)
class ProbeArguments:
    """The flags of train.py about probes."""

    probe_file: str | None = option(
        None,
        "What is probed during training: people (test.jsonl), or rows of question, answer, entity "
        "(and paraphrases, kind, document), which are answered in words.",
    )
    probe_every: list[str] = field(
        default_factory=lambda: ["epoch"], metadata={"help": "When to probe: epoch, or a number of steps (50 steps)."}
    )
    probe_max_facts: int | None = option(None, "Probe at most so many facts, taken evenly from all types and bands.")
    ood_file: str | None = option(
        None, "General skills: JSON lines of prompt (or question), options, answer (and skill)."
    )
    skill_examples: int | None = option(
        None, "Probe at most so many examples of each general skill, taken evenly; default: all."
    )
    instruct: bool = option(False, "Ask questions under the tokenizer's chat template; default: completion.")
    learned_threshold: float = option(
        0.6, "Mean ROUGE-1 recall of its questions from which an entity counts as learned."
    )
    probe_max_new_tokens: int = option(25, "The longest answer to a question, in tokens.")
    stop_on: Literal["knowledge"] | None = option(
        None, "knowledge: end training when facts (or entities) known twice in a row no longer grow."
    )
    patience: int = option(3, "--stop_on: probes without growth before training ends.")
    skill_drop: float | None = option(None, "--stop_on: also end when general skill fell by more than this share.")
    stop_min_share: float = option(
        0.1, "--stop_on: wait for growth to begin until this share of facts is known twice in a row."
    )


@dataclass(frozen=True)
class Schedule:
    """When probes are due after the first one: at the end of every epoch, or every so many steps and at the last."""

    steps: int | None = None

    @classmethod
    def parse(cls, words: str | Sequence[str]) -> Schedule:
        """Read `epoch`, `50` or `50 steps`.

        Raises:
            InputError: anything else.
        """
        text = words if isinstance(words, str) else " ".join(words)
        if text.strip() == "epoch":
            return cls()
        number = text.removesuffix("steps").removesuffix("step").strip()
        if not number.isdecimal() or int(number) < 1:
            raise InputError(f"--probe_every {text!r}: epoch or a number of steps is wanted, such as 50 steps")
        return cls(int(number))

    def due(self, state: TrainerState) -> bool:
        """Return whether the state that training has reached is one to probe."""
        if state.global_step == 0:
            return True
        if self.steps is None:
            return float(state.epoch or 0).is_integer()
        return state.global_step % self.steps == 0 or state.global_step >= state.max_steps


class Probe:
    """What is probed, skills and texts whatever else; everything is prepared once for all probes.

    Attributes:
        record: the kind of the lines in the file of records.
    """

    record: Any

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[SkillExample],
        texts: Mapping[str, str] | None,
        max_tokens: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._skills = SkillTest(examples, tokenizer)
        # Not verbose: tokenizers warn of texts that are longer than a context, which the blocks will not be.
        self._texts = {
            name: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:max_tokens]
            for name, text in (texts or {}).items()
        }
        if not all(self._texts.values()):
            raise InputError("a text to measure perplexity on has at least one token")

    def check_fits(self, model: PreTrainedModel) -> None:
        """Refuse, by name, what does not fit into the model's context."""
        self._skills.check_fits(model)

    def records(self, model: PreTrainedModel, step: int, epoch: float) -> list[dict[str, Any]]:
        """Probe a model in evaluation mode; return the lines of the file of records."""
        raise NotImplementedError

    def perplexities(self, model: PreTrainedModel, step: int) -> dict[str, float]:
        """Return the perplexity of every text by its name."""
        start = start_token_id(self._tokenizer)
        return {
            name: finite(np.exp(mean_loss(model, [ids], start)), f"the perplexity of {name!r} at step {step}")
            for name, ids in self._texts.items()
        }

    def refuse_others(self, earlier: Sequence[Mapping[str, Any]], path: Path) -> None:
        """Refuse a run's earlier records if they are about something else."""
        raise NotImplementedError

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the numbers of one probe that are logged."""
        raise NotImplementedError

    def history(self, path: Path) -> tuple[Known, np.ndarray]:
        """Return known [facts, probes] and mean skill accuracy [probes] (NaN: no skills), for a stopping rule."""
        raise NotImplementedError


class KnowledgeProbe(Probe):
    """Facts, skills and texts: one record each.

    Args:
        people: whose facts are probed, all attributes of each.
        examples: of skills outside the domain.
        texts: by name, whose perplexity is measured.
        max_facts: ask for fewer facts, see `even_sample`.
    """

    record = PROBE_RECORD

    def __init__(
        self,
        people: Sequence[Person],
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[SkillExample] = (),
        texts: Mapping[str, str] | None = None,
        max_facts: int | None = None,
    ) -> None:
        if max_facts is not None:
            people = even_sample(people, max_facts // len(Attribute))
        self.queries: list[Query] = build_queries(people, tokenizer)
        super().__init__(tokenizer, examples, texts)

    def check_fits(self, model: PreTrainedModel) -> None:
        check_context(model, self.queries, MAX_NEW_TOKENS)
        super().check_fits(model)

    def records(self, model: PreTrainedModel, step: int, epoch: float) -> list[dict[str, Any]]:
        when = {"step": step, "epoch": epoch}
        rows = [{"kind": "fact", **when, **fact} for fact in self._facts(model)]
        for skill, score in self._skills.scores(model).items():
            rows.append({"kind": "skill", **when, "skill": skill, **asdict(score)})
        for name, perplexity in self.perplexities(model, step).items():
            rows.append({"kind": "text", **when, "text": name, "perplexity": perplexity})
        return rows

    def refuse_others(self, earlier: Sequence[Mapping[str, Any]], path: Path) -> None:
        facts = [row for row in earlier if row["kind"] == "fact"]
        before = [(row.get("full_name"), row.get("attribute")) for row in facts if row["step"] == facts[0]["step"]]
        if facts and before != [(query.keys["full_name"], query.first_keys["attribute"]) for query in self.queries]:
            raise InputError(
                f"{path}: the run has been probed for other facts so far; resume it with the same --probe_file "
                "and --probe_max_facts, or start again with --overwrite_output_dir"
            )

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        facts = [row for row in rows if row["kind"] == "fact"]
        logs: dict[str, float] = {}
        if facts:
            logs["probe_known_share"] = sum(row["correct"] for row in facts) / len(facts)
            logs["probe_first_token_share"] = sum(row["token_rank"] == 0 for row in facts) / len(facts)
            logs["probe_answer_log_prob"] = sum(row["answer_log_prob"] for row in facts) / len(facts)
        logs |= {f"probe_{row['skill']}_accuracy": row["accuracy"] for row in rows if row["kind"] == "skill"}
        logs |= {f"probe_{row['text']}_perplexity": row["perplexity"] for row in rows if row["kind"] == "text"}
        return logs

    def history(self, path: Path) -> tuple[Known, np.ndarray]:
        known: dict[int, list[bool]] = defaultdict(list)
        skills: dict[int, list[float]] = defaultdict(list)
        for row in shape(self.record).lines(path):
            if row["kind"] == "fact":
                known[row["step"]].append(bool(row["correct"]))
            elif row["kind"] == "skill":
                skills[row["step"]].append(float(row["accuracy"]))
        steps = sorted(known)
        means = [float(np.mean(skills[step])) if skills[step] else float("nan") for step in steps]
        return np.array([known[step] for step in steps], dtype=bool).T, np.array(means)

    def _facts(self, model: PreTrainedModel) -> Iterator[dict[str, Any]]:
        prompts = [query.prompt_ids for query in self.queries]
        answers = [query.answer_ids for query in self.queries]
        with tqdm(total=len(prompts), desc="probing facts", unit="fact", leave=False, delay=5) as bar:
            scores = score_continuations(model, prompts, answers, bar.update)
        for query, score in zip(self.queries, scores, strict=True):
            asked = f"{query.prompt} {query.value}"
            yield {
                "full_name": query.keys["full_name"],
                **query.first_keys,
                "type": query.keys["type"],
                "frequency": query.keys["frequency"],
                "correct": would_answer(self._tokenizer, query, score.greedy),
                "token_prob": score.first_prob,
                "token_rank": score.first_rank,
                "answer_log_prob": finite(score.log_prob, f"the log-probability of {asked!r}"),
            }


def finite(value: float, what: str) -> float:
    """Return a number that a probe found; one that is not finite is an InputError that says what it is."""
    if not np.isfinite(value):
        raise InputError(f"{what} is {value}: the weights or activations are no longer finite numbers")
    return float(value)


def would_answer(tokenizer: PreTrainedTokenizerBase, query: Query, greedy: Sequence[int]) -> bool:
    """Return whether greedy generation would answer the query correctly, from its choices along the right answer.

    Args:
        query: with n answer tokens.
        greedy: n + 1 choices: after the prompt, and after each answer token.
    """
    agreed = 0
    while agreed < len(query.answer_ids) and greedy[agreed] == query.answer_ids[agreed]:
        agreed += 1
    # What generation gives for certain: the tokens on which it agrees with the answer, and its own next choice.
    tokens = [*query.answer_ids[:agreed], greedy[agreed]][:MAX_NEW_TOKENS]
    text, value = generated_text(tokenizer, tokens), query.value.strip()
    if not is_correct(text, value):
        return False
    ended = len(tokens) == MAX_NEW_TOKENS or tokens[-1] == tokenizer.eos_token_id
    return ended or text.strip() != value or "\n" in tokenizer.decode(tokens[-1:])


def even_sample(people: Sequence[Person], count: int) -> list[Person]:
    """At most `count` people, as many from each type and band as there are, evenly spaced, in their order.

    Raises:
        InputError: fewer than one person is wanted.
    """
    if count < 1:
        raise InputError(f"--probe_max_facts must allow at least one person's {len(Attribute)} facts")
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, person in enumerate(people):
        groups[person.type, person.band].append(index)
    chosen: list[int] = []
    # The smallest group first: what it cannot give is shared by the others.
    for left, members in zip(range(len(groups), 0, -1), sorted(groups.values(), key=len), strict=True):
        chosen += evenly_spaced(members, (count - len(chosen)) // left)
    return [people[index] for index in sorted(chosen)]


class KnowledgeProbeCallback(TrainerCallback):
    """Probes the model while a Trainer trains it and keeps the run's knowledge_dynamics.jsonl.

    A resumed run first drops the records of later steps than the one it resumes from, so that in the end its file is
    the same as an uninterrupted run's.

    Args:
        stopping: the rule that may end training; None: never.

    Attributes:
        log: where summaries go: a Trainer's `log`; until a run sets it, nowhere.
    """

    log: Callable[[dict[str, float]], None] = staticmethod(lambda logs: None)

    def __init__(
        self, probe: Probe, schedule: Schedule, path: str | Path, stopping: StoppingRule | None = None
    ) -> None:
        self.probe = probe
        self._schedule = schedule
        self._path = Path(path)
        self._stopping = stopping
        self._seconds, self._started = 0.0, time.monotonic()
        self.stop_reason: str | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Drop what an interrupted run recorded too much, and probe the model before its first step."""
        self._seconds, self._started = 0.0, time.monotonic()
        self.probe.check_fits(kwargs["model"])
        recorded = state.is_world_process_zero and self._keep_until(state.global_step)
        # A run killed between saving a checkpoint and its probe lacks the record of the step that it resumes from.
        if not from_main_process(recorded) and self._schedule.due(state):
            self._run(args, state, control, kwargs["model"])

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._schedule.steps is not None and self._schedule.due(state):
            self._run(args, state, control, kwargs["model"])

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._schedule.steps is None:
            self._run(args, state, control, kwargs["model"])

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Say what the probes cost, and why training ended if they ended it."""
        if state.is_world_process_zero:
            total = max(time.monotonic() - self._started, 1e-9)
            tqdm.write(f"probes took {self._seconds:.1f} s, {self._seconds / total:.0%} of the training time")
            if self.stop_reason:
                tqdm.write(f"training ended at step {state.global_step}: {self.stop_reason}")

    def _run(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: PreTrainedModel
    ) -> None:
        """Probe the model as it is now: record, log, and decide about stopping."""
        started = time.monotonic()
        with _evaluating(model, args):
            rows = self._records(model, state)
        if state.is_world_process_zero:
            self._append(rows)
            if self._stopping is not None:
                self.stop_reason = self._stopping.reason(*self.probe.history(self._path))
        self._seconds += time.monotonic() - started
        should_log = control.should_log
        self.log(self.probe.summary(rows))
        control.should_log = should_log  # logging clears the flag by which the Trainer logs its own loss
        if from_main_process(self.stop_reason is not None):
            control.should_training_stop = True

    def _records(self, model: PreTrainedModel, state: TrainerState) -> list[dict[str, Any]]:
        return self.probe.records(model, state.global_step, round(float(state.epoch or 0), 6))

    def _keep_until(self, step: int) -> bool:
        """Drop records after `step` (all of them for a fresh start); whether some of `step` itself are left."""
        if not self._path.exists():
            return False
        rows = [row for row in shape(self.probe.record).lines(self._path) if row["step"] <= step]
        earlier = rows if step > 0 else []
        self.probe.refuse_others(earlier, self._path)
        write_jsonl(self._path, earlier)
        return any(row["step"] == step for row in earlier)

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the file anew with more lines at its end: readers never meet half a line."""
        before = self._path.read_bytes() if self._path.exists() else b""
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        with atomic_write(self._path, "wb") as file:
            file.write(before + "".join(lines).encode())


@contextmanager
def _evaluating(model: PreTrainedModel, args: TrainingArguments) -> Iterator[None]:
    """Evaluation mode, in the mixed precision that training uses; the model's own mode comes back afterwards."""
    was_training = model.training
    model.eval()
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    try:
        with torch.autocast(args.device.type, dtype=dtype, enabled=bool(args.bf16 or args.fp16)):
            yield
    finally:
        model.train(was_training)


def from_main_process(value: Value) -> Value:
    """Return the main process's value, in every process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
