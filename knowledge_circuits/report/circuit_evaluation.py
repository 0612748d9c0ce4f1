"""The report's section on circuit evaluation."""

from __future__ import annotations

from dataclasses import replace

from knowledge_circuits.analysis.circuit_settings import NO_CIRCUITS
from knowledge_circuits.figures import circuit_evaluation, learning
from knowledge_circuits.report.material import Material
from knowledge_circuits.report.section import Drawing, Section, TextTable, number

_NO_HITS = "No circuit of this run was evaluated alone on test items yet; circuit_eval.py --test_data_file does it."

_FAITHFULNESS = Drawing(
    lambda m: circuit_evaluation.faithfulness(m.results, m.name),
    "Faithfulness of each checkpoint's circuits, and the difference of clean and corrupted prompts that it is a share "
    "of. Where the interval of the difference contains 0 the ratio says nothing (grey crosses). Random circuits of the "
    "same size show what a circuit is worth; the edges needed for a faithfulness of 0.9 still move where faithfulness "
    "itself is saturated.",
)
_TRANSFERRED = Drawing(
    lambda m: circuit_evaluation.hits_of_transferred_circuits(m.circuit_predictions, m.name),
    "Each line is one checkpoint's circuit in the weights of all checkpoints. Where it reaches the line of "
    "each epoch's own circuits, its edges suffice in these weights; compare it with random circuits.",
)
#: What the page of a run shows whose circuits are all of one's own facts.
_OF_FACTS = (
    _FAITHFULNESS,
    Drawing(
        lambda m: circuit_evaluation.hits_by_type(m.circuit_predictions, m.results, m.name),
        "Hit@10 of the circuits alone on their own group's test items, beside random circuits and the share that the "
        "ten commonest answers of a group reach.",
    ),
    Drawing(
        lambda m: circuit_evaluation.hits_across_bands(m.circuit_predictions, m.results, m.name),
        "Circuits of one group on the test items of another. Where the lines of a panel coincide, the groups share a "
        "circuit, or circuits of this size suffice for all.",
    ),
    _TRANSFERRED,
)

FACT_GROUPS = Section(
    "groups",
    "Groups of facts",
    "Prompts about facts of one's own. Faithfulness is measured with patching. For Hit@10 each circuit runs alone on "
    "the test items of its own group.",
    lambda m: "",
    (
        Drawing(
            lambda m: learning.fact_accuracy(m.fact_predictions, m.name),
            "Prompts whose answer begins with the right token and those that are answered in full, and the mean recall "
            "of the answers to the questions of probes.",
            lambda m: not m.fact_predictions.empty,
        ),
        Drawing(
            lambda m: circuit_evaluation.fact_groups(m.fact_circuits, m.name),
            "Each line is a group; its circuit is found anew at every checkpoint.",
            lambda m: m.is_study and not m.fact_circuits.empty,
        ),
        *(replace(drawing, belongs=lambda m: not m.is_study and not m.fact_circuits.empty) for drawing in _OF_FACTS),
    ),
)

#: What a page shows of each group: the column of its table -> heading and the form of its numbers.
_NUMBERS = {
    "correct": ("whole answer", ".2f"),
    "first_token_correct": ("first token", ".2f"),
    "recall": ("recall", ".2f"),
    "hit": ("Hit@10", ".2f"),
    "faithfulness": ("faithfulness", ".2f"),
    "edge_entropy": ("entropy (nats)", ".2f"),
    "edges_num": ("edges", ",.0f"),
    "nodes_num": ("nodes", ",.0f"),
}
#: Shown where they were measured.
_STABLE = {"split_half_jaccard": ("halves agree", ".2f"), "inclusion": ("inclusion", ".2f")}
_STABLE_CAPTION = (
    "Halves agree: edge Jaccard similarity of the circuits of two halves of the prompts. Inclusion: in how many "
    "resamples of the prompts an edge of the circuit is, on average"
)


def fact_table(material: Material) -> TextTable:
    """Return the numbers of the last checkpoint (or probe) of each file, a row per group."""
    keys, parts, when = ["task", "group"], [], []
    stable = material.fact_circuits[list(_STABLE)].notna().any(axis=None)
    shown = _NUMBERS | _STABLE if stable else _NUMBERS
    for what, table in (("answers", material.fact_predictions), ("circuits", material.fact_circuits)):
        last = table[table["step"] == table.groupby("task")["step"].transform("max")]
        for row in last.drop_duplicates("step").to_dict("records"):
            when.append(f"{what} at epoch {row['epoch']:g} (step {row['step']:,})")
        measured = [name for name in shown if name in last]
        parts.append(last.groupby(keys, as_index=False, sort=False)[measured].mean())
    merged = parts[0].merge(parts[1], on=keys, how="outer", sort=False)
    rows = [
        [*(row[key] for key in keys), *(number(row[name], form) for name, (_, form) in shown.items())]
        for row in merged.to_dict("records")
    ]
    caption = "; ".join(when)
    if stable:
        caption += f". {_STABLE_CAPTION}"
    header = ["file", "group", *(heading for heading, _ in shown.values())]
    return TextTable(caption[:1].upper() + caption[1:], header, rows, words=2)


SECTION = Section(
    "evaluation",
    "Circuit evaluation",
    "Faithfulness is measured with patching. For Hit@10 each circuit runs alone on test people, with all other edges "
    "set to zero: the share of answers whose first token is among the ten most probable tokens.",
    lambda m: NO_CIRCUITS if m.setting is None else _NO_HITS if m.circuit_predictions.empty else "",
    (
        _FAITHFULNESS,
        Drawing(
            lambda m: circuit_evaluation.hits_by_type(m.circuit_predictions, m.results, m.name),
            "Hit@10 of the circuits alone: K_rel against K_compl within each frequency band, beside random circuits "
            "and the share that the ten commonest answers of a group reach without any knowledge of the person.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_by_band(m.circuit_predictions, m.results, m.name),
            "The same numbers by frequency band.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_across_bands(m.circuit_predictions, m.results, m.name),
            "Circuits of one frequency band, evaluated on test people of another. Where the lines of a panel coincide, "
            "the bands share a circuit, or circuits of this size suffice for all.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_across_types(m.circuit_predictions, m.results, m.name),
            "Circuits of one knowledge type, evaluated on test people of the other.",
        ),
        _TRANSFERRED,
    ),
)
