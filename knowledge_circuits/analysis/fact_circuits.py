"""Measure how the circuits of one's own facts change from checkpoint to checkpoint, against the noise of the prompts.

For each checkpoint of a run and each group of a file of prompt pairs (`corpus.fact_pairs`): attribution with EAP-IG
prompt by prompt, the circuit of all prompts, and the circuits of both halves of the prompts in several splits. From one
checkpoint to the next, for each group:

    reconfiguration   1 - edge Jaccard of the circuits of all prompts
    turnover          the same between one half before and the other half after (`floors.turnover`)
    turnover_floor    the same between two halves at one checkpoint, which differ by the choice of prompts alone

The table goes to circuits.csv in the run's folder. What was measured stays beside each checkpoint (fact_circuits.npz,
with a manifest), so that an interrupted measurement goes on.

    python -m knowledge_circuits.analysis facts outputs/train/gpt2/full --data_file pairs.csv --group_by kind
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm import tqdm

from knowledge_circuits.analysis.study_runs import TOP_SHARE, MeasuredCircuits, MeasuredGroup, circuit_and_halves
from knowledge_circuits.analysis.timeline import with_epochs
from knowledge_circuits.engine import floors, topology
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError, read_bytes
from knowledge_circuits.manifest import fingerprint
from knowledge_circuits.models.loading import weights_digest
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import Checkpoint, Run
from knowledge_circuits.sweeps.flags import MEASURED_BATCH, MEASURED_PAIRS
from knowledge_circuits.sweeps.groups import FactGroupData, read_fact_groups

CIRCUIT_COLUMNS = (
    *("step", "epoch", "group", "prompts", "edges", "nodes", "entropy", "split_half_jaccard"),
    *("reconfiguration", "turnover", "turnover_floor"),
)


@dataclass(frozen=True)
class Pairs:
    """Which prompt pairs are measured.

    Attributes:
        file: of prompt pairs.
        group_by: grouping columns; None: the column `group`, or all pairs in one group.
        limit: pairs per group at most.
        pair_anew: see `fact_pairs.match_facts`.
        batch_size: most prompts per pass.
    """

    file: str
    group_by: Sequence[str] | None = None
    limit: int = MEASURED_PAIRS
    pair_anew: bool = False
    batch_size: int = MEASURED_BATCH

    @property
    def key(self) -> str:
        """What the measured numbers depend on beside the weights."""
        content = read_bytes(self.file).decode("utf-8", "replace")
        return fingerprint([content, list(self.group_by or ()), self.limit, self.pair_anew, TOP_SHARE, floors.SPLITS])


def circuit_table(run: Run, pairs: Pairs) -> pd.DataFrame:
    """Measure every checkpoint of a run.

    Returns:
        One row per checkpoint and group, see CIRCUIT_COLUMNS; what compares with the checkpoint before is
        NaN at the first one.

    Raises:
        InputError: a bad file, no pairs, or a checkpoint that cannot be loaded.
    """
    rows: list[dict[str, Any]] = []
    before: MeasuredCircuits | None = None
    for checkpoint, step, epoch in tqdm(list(with_epochs(run)), desc=run.path.name, unit="checkpoint"):
        now = measure_checkpoint(checkpoint, pairs, quiet=before is not None)
        for group, row in enumerate(now.rows):
            change = dict(zip(CIRCUIT_COLUMNS[-3:], now.change_since(before, group), strict=True))
            rows.append({"step": step, "epoch": epoch, **row, **change})
        before = now
    return pd.DataFrame(rows, columns=list(CIRCUIT_COLUMNS))


def measure_checkpoint(checkpoint: Checkpoint, pairs: Pairs, quiet: bool = False) -> MeasuredCircuits:
    """Measure all groups at one checkpoint, or read what was measured before with the same weights and pairs.

    Args:
        quiet: do not name pairs that are left out or paired anew.
    """

    def measure() -> Iterator[MeasuredGroup]:
        decoder, tokenizer = load_decoder(checkpoint.path), load_tokenizer(checkpoint.path)
        groups = read_fact_groups(pairs.file, tokenizer, pairs.limit, pairs.group_by, None, pairs.pair_anew, quiet)
        for group in tqdm(groups, desc=checkpoint.name, unit="group", leave=False):
            yield _measure_group(decoder, tokenizer, group, pairs.batch_size)

    made_from = {"weights": weights_digest(checkpoint.path), "pairs": pairs.key}
    return MeasuredCircuits.once(checkpoint.output / "fact_circuits.npz", "fact circuits", made_from, measure)


def _measure_group(decoder: Any, tokenizer: Any, group: FactGroupData, batch_size: int) -> MeasuredGroup:
    pairs = group.pairs(tokenizer)
    if len(pairs) < 2:
        raise InputError(f"{group.file}: the group {group.group.name!r} needs at least two pairs for its two halves")
    _, circuit, halves = circuit_and_halves(decoder, pairs, batch_size)
    row = {
        "group": group.group.name,
        "prompts": len(pairs),
        "edges": circuit.n_edges,
        "nodes": circuit.n_nodes,
        "entropy": topology.circuit_entropy(circuit),
        "split_half_jaccard": floors.split_half_jaccard(halves),
    }
    return row, topology.membership(circuit), halves
