"""Training strategies: the flags that change how documents are learned, and what does not go together.

Without any of them all weights are trained on all documents in every epoch (full fine-tuning). Each flag is one idea
and may be combined with the others:

    --lora_rank            low-rank adapters instead of all weights (lora)
    --adaptive_exposure    documents of learned entities are left out of the next epoch (exposure)
    --annotate_entities    entities are marked in the text (below)
    --kl_start             divergence from the starting model is added to the loss (divergence)
    --kl_previous          divergence from the model of the previous epoch is added to the loss (divergence)
    --replay_ratio         documents of an earlier corpus replace a share of the new ones (replay)

They are compared, among others, by Mousavi et al. (2026), arXiv 2601.03858.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from knowledge_circuits.corpus.documents import TEXT, Row
from knowledge_circuits.files import InputError
from knowledge_circuits.training.flags import option

#: What stands around an entity that is marked.
OPENING, CLOSING = "<entity>", "</entity>"


@dataclass(frozen=True)
class StrategyArguments:
    """How documents are learned; without any of these flags all weights learn all documents in every epoch."""

    _argument_group_name = "strategy (default: full fine-tuning; flags may be combined, and with --replay_ratio)"

    lora_rank: int | None = option(
        None,
        "LoRA: train low-rank adapters of this rank, the weights stay frozen (Hu et al. 2021, arXiv "
        "2106.09685). Checkpoints hold the merged weights, and the adapter in adapter/.",
    )
    lora_alpha: int | None = option(None, "LoRA: adapters are scaled by alpha / rank; default: twice the rank.")
    lora_dropout: float = option(0.0, "LoRA: dropout before the adapters.")
    lora_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={
            "help": "LoRA: names of the adapted layers, such as q_proj v_proj; default: all linear "
            "ones but the head. A head that shares its weights with the embedding is refused, as is that embedding."
        },
    )
    adaptive_exposure: bool = option(
        False,
        "Adaptive exposure: leave the documents of entities that the last probe found learned out of the "
        "next epoch; they come back when forgotten (Mousavi et al. 2026, arXiv 2601.03858).",
    )
    annotate_entities: bool = option(
        False,
        "Structured annotation: mark every entity in the training documents as <entity>name</entity> "
        "(Mousavi et al. 2026, arXiv 2601.03858).",
    )
    kl_start: float = option(
        0.0,
        "Add so many times the KL divergence from the starting model's predictions to the loss, so that "
        "skills stay (Li and Hoiem 2016, arXiv 1606.09282; Mousavi et al. 2026).",
    )
    kl_previous: float = option(
        0.0,
        "Add so many times the KL divergence from the predictions of the model at the end of the previous "
        "epoch, so that learned facts stay (Mousavi et al. 2026, arXiv 2601.03858).",
    )

    def __post_init__(self) -> None:
        if self.lora_rank is not None and self.lora_rank < 1:
            raise InputError(f"--lora_rank {self.lora_rank}: a rank of at least 1 is wanted")
        if self.lora_alpha is not None and self.lora_alpha < 1:
            raise InputError(f"--lora_alpha {self.lora_alpha}: a scale of at least 1 is wanted")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"--lora_dropout {self.lora_dropout}: a share of at least 0 and below 1 is wanted")
        for flag, weight in (("kl_start", self.kl_start), ("kl_previous", self.kl_previous)):
            if not 0 <= weight < math.inf:
                raise InputError(f"--{flag} {weight}: a finite weight of at least 0 is wanted")
        alone = sorted({name for name in self.changes if name.startswith("lora_")} - {"lora_rank"})
        if self.lora_rank is None and alone:
            raise InputError(f"--{alone[0]} needs --lora_rank")

    @property
    def changes(self) -> dict[str, Any]:
        """The flags that differ from full fine-tuning."""
        return chosen(vars(self))


def chosen(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the strategy flags among some arguments that differ from full fine-tuning.

    Under adaptive exposure the flags by which answers are judged are among them, since they decide what is read.
    """
    defaults = {
        flag.name: flag.default if flag.default_factory is MISSING else flag.default_factory()
        for flag in fields(StrategyArguments)
    }
    flags = {name: arguments[name] for name, off in defaults.items() if arguments.get(name, off) != off}
    if "adaptive_exposure" in flags:
        judging = ("instruct", "learned_threshold", "probe_max_new_tokens")
        flags |= {name: arguments[name] for name in judging if name in arguments}
    return flags


def annotate(documents: Sequence[Row]) -> list[Row]:
    """Mark every entity of the corpus in every document.

    Of names that overlap the longest one is marked; a name inside a longer word is not.

    Args:
        documents: rows with a text; those with an entity name what is marked.

    Raises:
        InputError: no document has an entity.
    """
    names = {str(row["entity"]) for row in documents if row.get("entity")}
    if not names:
        raise InputError("--annotate_entities needs documents with the column entity, which says what to mark")
    either = "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))
    pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)")
    return [{**row, TEXT: pattern.sub(lambda match: f"{OPENING}{match[0]}{CLOSING}", row[TEXT])} for row in documents]
