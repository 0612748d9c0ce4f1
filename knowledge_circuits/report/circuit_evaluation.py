"""The report's section on circuit evaluation."""

from __future__ import annotations

from knowledge_circuits.analysis import tables
from knowledge_circuits.figures import circuit_evaluation
from knowledge_circuits.report.section import Drawing, Section

_NO_HITS = "No circuit of this run was evaluated alone on test items yet; circuit_eval.py --test_data_file does it."

SECTION = Section(
    "evaluation",
    "Circuit evaluation",
    "Faithfulness is measured with patching. For Hit@10 each circuit runs alone on test people, with all other edges "
    "set to zero: the share of answers whose first token is among the ten most probable tokens.",
    lambda m: tables.NO_CIRCUITS if m.setting is None else _NO_HITS if m.circuit_predictions.empty else "",
    (
        Drawing(
            lambda m: circuit_evaluation.faithfulness(m.results, m.name),
            "Faithfulness of each checkpoint's circuits. Before the model knows the facts, clean and corrupted prompts "
            "hardly differ and the ratio is unreliable.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_by_type(m.circuit_predictions, m.name),
            "Hit@10 of the circuits alone: K_rel against K_compl within each frequency band.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_by_band(m.circuit_predictions, m.name),
            "The same numbers by frequency band.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_across_bands(m.circuit_predictions, m.name),
            "Circuits of one frequency band, evaluated on test people of another. Where the lines of a panel coincide, "
            "the bands share a circuit.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_across_types(m.circuit_predictions, m.name),
            "Circuits of one knowledge type, evaluated on test people of the other.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_of_transferred_circuits(m.circuit_predictions, m.name),
            "Each line is one checkpoint's circuit in the weights of all checkpoints. Where it reaches the line of "
            "each epoch's own circuits, the circuit existed already at its checkpoint of origin.",
        ),
    ),
)
