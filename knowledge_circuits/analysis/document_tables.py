"""What training on documents taught and what it cost, as tidy tables of a study (`documents`)."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from knowledge_circuits.analysis.documents import DocumentRun, DocumentStudy
from knowledge_circuits.analysis.fact_circuits import CIRCUIT_COLUMNS
from knowledge_circuits.analysis.relations import SelectionRule, select_checkpoints
from knowledge_circuits.analysis.statistics import mean_of
from knowledge_circuits.training.question_probes import agreement, hallucination, progress
from knowledge_circuits.training.stopping import StoppingRule, known_in_a_row_counts, skill_lost

#: Probes in a row that make an entity consolidated.
CONSOLIDATED = 2
#: Patience of the stopping rules that are compared.
PATIENCE = (1, 2, 3)
#: What the rules that look back are about here: the loss of the documents, and entities.
_RULES = {
    str(SelectionRule.LOSS): "lowest loss of the documents",
    str(SelectionRule.KNOWLEDGE): "most entities known twice in a row",
}


def probe_table(run: DocumentRun) -> pd.DataFrame:
    """Return one row per probe of a run.

    Returns:
        Columns strategy, seed, step, epoch, documents_seen, minutes, loss, perplexity, recall, recall_floor
        (`recall_floors`), exact, entities, learned, kept, newly_learned, forgotten, known_share, known_twice,
        agreement, borrowed, invented (shares of the questions about unmentioned entities), skill (mean accuracy),
        text_perplexity (mean), and skill_<name> for each skill. NaN where something was not measured.
    """
    overall = [row for row in progress(run.records, run.threshold) if row["frequency"] is row["kind"] is None]
    twice = known_in_a_row_counts(run.known, CONSOLIDATED)
    rows = []
    for record, row, count in zip(run.records, overall, twice, strict=True):
        shares, agreed = hallucination(record), agreement(record, run.threshold)
        rows.append(
            {
                "strategy": run.strategy,
                "seed": run.seed,
                **{name: record[name] for name in ("step", "epoch", "documents_seen")},
                "minutes": record["seconds"] / 60,
                **{name: record[name] for name in ("loss", "perplexity")},
                "recall_floor": mean_of(run.floors_of(record).values()),
                **{name: row[name] for name in ("recall", "exact", "entities", "learned", "kept", "newly_learned")},
                "forgotten": row["forgotten"],
                "known_share": row["learned"] / row["entities"],
                "known_twice": int(count),
                "agreement": math.nan if agreed is None else agreed,
                **(shares or {"borrowed": math.nan, "invented": math.nan}),
                "skill": mean_of(record["skills"].values()),
                "text_perplexity": mean_of(record["texts"].values()),
                **{f"skill_{name}": value for name, value in record["skills"].items()},
            }
        )
    return pd.DataFrame(rows)


def probe_tables(study: DocumentStudy) -> pd.DataFrame:
    """Return all runs' `probe_table`s, one under the other."""
    return pd.concat([probe_table(run) for run in study.runs], ignore_index=True)


def group_table(study: DocumentStudy) -> pd.DataFrame:
    """Recall and learned entities of every run before and after training, by frequency and kind of question.

    Returns:
        Columns strategy, seed, frequency, kind ("all" stands for all of them), entities, recall_start, recall_end,
        learned_start, learned_end, gain.
    """
    rows = []
    for run in study.runs:
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in progress(run.records, run.threshold):
            groups.setdefault((row["frequency"] or "all", row["kind"] or "all"), []).append(row)
        for (frequency, kind), probes in groups.items():
            start, end = probes[0], probes[-1]
            rows.append(
                {
                    **{"strategy": run.strategy, "seed": run.seed, "frequency": frequency, "kind": kind},
                    **{"entities": start["entities"], "recall_start": start["recall"], "recall_end": end["recall"]},
                    **{"learned_start": start["learned"], "learned_end": end["learned"]},
                    "gain": end["recall"] - start["recall"],
                }
            )
    return pd.DataFrame(rows)


def cost_table(study: DocumentStudy) -> pd.DataFrame:
    """Return what each strategy taught and what that cost, mean over seeds.

    Returns:
        One row per strategy: strategy, seeds, epochs, documents_seen, minutes, loss, recall, recall_floor, gain (since
        the first probe), gain_per_100 (documents), known_share, forgotten (events: an entity learned at one probe and
        not at the next), skill_change, text_perplexity (ratio to the first probe), borrowed and invented (at the end).
    """
    rows = []
    for run in study.runs:
        table = probe_table(run)
        first, last = table.iloc[0], table.iloc[-1]
        gain, seen = last["recall"] - first["recall"], last["documents_seen"]
        rows.append(
            {
                "strategy": run.strategy,
                "epochs": last["epoch"],
                **last[["documents_seen", "minutes", "loss", "recall", "recall_floor"]],
                "gain": gain,
                "gain_per_100": 100 * gain / seen if seen else math.nan,
                "known_share": last["known_share"],
                "forgotten": table["forgotten"].sum(),
                "skill_change": last["skill"] - first["skill"],
                "text_perplexity": last["text_perplexity"] / first["text_perplexity"],
                **last[["borrowed", "invented"]],
            }
        )
    table = pd.DataFrame(rows)
    means = table.groupby("strategy", sort=False).mean()
    means.insert(0, "seeds", table.groupby("strategy", sort=False).size())
    return means.reset_index()


def reference_table(study: DocumentStudy) -> pd.DataFrame:
    """Return the untrained model's answers: reference, recall, recall_floor, exact, known_share, questions."""
    rows = []
    for name, record in study.references.items():
        threshold = study.runs[0].threshold
        row = next(row for row in progress([record], threshold) if row["frequency"] is row["kind"] is None)
        known = row["learned"] / row["entities"]
        floor = mean_of(study.runs[0].floors_of(record).values())
        rows.append((name, row["recall"], floor, row["exact"], known, len(record["questions"])))
    return pd.DataFrame(rows, columns=["reference", "recall", "recall_floor", "exact", "known_share", "questions"])


def choice_table(study: DocumentStudy) -> pd.DataFrame:
    """Return which checkpoint every rule picks in every run, and what that costs.

    The rules are those of `relations.select_checkpoints`, which look back, and the stopping rule (`training.stopping`)
    with several patiences, which ends training at the probe that it names, or never.

    Returns:
        Columns strategy, seed, rule, step, epoch, loss, known_share, skill_lost, facts_forgone (entities) and
        skill_forgone.
    """
    columns = ["strategy", "seed", "rule", "step", "epoch", "loss", "known_share", "skill_lost", "facts_forgone"]
    rows = []
    for run in study.runs:
        table = probe_table(run)
        if len(table) < 2:
            continue
        picked = select_checkpoints(table).assign(strategy=run.strategy, seed=run.seed).replace({"rule": _RULES})
        rows.append(picked[[*columns, "skill_forgone"]])
        known, skill = run.known, table["skill"].to_numpy()
        lost = skill_lost(skill)
        for patience in PATIENCE:
            rule = StoppingRule(patience)
            ends = [at for at in range(len(table)) if rule.reason(known[:, : at + 1], skill[: at + 1])]
            at = ends[0] if ends else len(table) - 1
            name = f"stop after {patience} probe{'s' if patience > 1 else ''} without growth"
            forgone = table["known_twice"].max() - table["known_twice"].iloc[at]
            row = table.iloc[at][["strategy", "seed", "step", "epoch", "loss", "known_share"]].to_dict()
            row |= {"rule": name if ends else f"{name} (never)", "skill_lost": lost[at], "facts_forgone": forgone}
            rows.append(pd.DataFrame([row]))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=[*columns, "skill_forgone"])


def circuit_tables(study: DocumentStudy) -> pd.DataFrame:
    """Return all runs' circuits with the columns strategy and seed before CIRCUIT_COLUMNS."""
    parts = [run.circuits.assign(strategy=run.strategy, seed=run.seed) for run in study.runs if len(run.circuits)]
    columns = ["strategy", "seed", *CIRCUIT_COLUMNS]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
