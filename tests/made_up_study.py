"""Question probes and circuits with a known truth, as training and measuring write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from knowledge_circuits.analysis.fact_circuits import CIRCUIT_COLUMNS

ENTITIES = {f"low {number}": "low" for number in range(8)} | {f"high {number}": "high" for number in range(4)}


def record(step: int, recalls: Mapping[str, float], loss: float, **changes: Any) -> dict[str, Any]:
    """One probe: an entity's two questions have its recall, and nobody knows an unmentioned one."""
    rows = [
        {
            **{"id": f"{entity} {kind}", "entity": entity, "kind": kind, "frequency": ENTITIES[entity], "output": "x"},
            **{"recall": recall, "exact": recall == 1, "paraphrase_recalls": [recall, 0.0]},
        }
        for entity, recall in recalls.items()
        for kind in ("factual", "temporal")
    ]
    nobody = {"id": "nobody", "entity": "nobody", "kind": "unmentioned", "frequency": "unmentioned", "output": "y",
              "recall": 0.0, "exact": False, "paraphrase_recalls": [], "hallucination": "invented"}  # fmt: skip
    return {
        **{"step": step, "epoch": step / 4, "learned_threshold": 0.6, "loss": loss, "perplexity": 2.7**loss},
        **{"skills": {"arithmetic": 0.5, "reasoning": 0.7}, "texts": {"held_out": 20.0}},
        **{"documents_seen": 4 * step, "seconds": 3.0 * step, "probe_seconds": 1.0, "questions": [*rows, nobody]},
        **changes,
    }


def circuits(turnover: float, floor: float, checkpoints: int = 4, groups: Sequence[str] = ("factual",)) -> pd.DataFrame:
    """Circuits of every group at every checkpoint, all with the same turnover and floor."""
    rows = [
        {
            **dict.fromkeys(CIRCUIT_COLUMNS, 1.0),
            **{"step": 4 * number, "epoch": float(number), "group": group},
            "reconfiguration": turnover if number else None,
            "turnover": turnover if number else None,
            "turnover_floor": floor if number else None,
        }
        for number in range(checkpoints)
        for group in groups
    ]
    return pd.DataFrame(rows, columns=list(CIRCUIT_COLUMNS))


def write_run(
    folder: Path, records: Sequence[Mapping[str, Any]], table: pd.DataFrame | None = None, seed: int = 0, **flags: Any
) -> Path:
    """Write a run's files; `flags` are those of its strategy."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "question_probes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    arguments = {"seed": seed, "learning_rate": 1e-3, "num_train_epochs": 3, **flags}
    (folder / "run_config.json").write_text(json.dumps({"model": "made-up", "arguments": arguments}))
    if table is not None:
        table.to_csv(folder / "circuits.csv", index=False)
    return folder


def probes(*columns: str, loss: Sequence[float] = (4.0, 3.0, 2.0, 1.0), **changes: Any) -> list[dict[str, Any]]:
    """Records over four probes; a column is the entities' knowledge, such as "0110" for learned and then forgotten.

    Entities take the columns in turn.
    """
    entities = list(ENTITIES)
    return [
        record(
            4 * number,
            {name: float(columns[index % len(columns)][number]) for index, name in enumerate(entities)},
            loss[number],
            **({name: values[number] for name, values in changes.items()}),
        )
        for number in range(4)
    ]
