"""The report's section on how the circuits' topology changes over training."""

from __future__ import annotations

from knowledge_circuits.analysis.circuit_settings import NO_CIRCUITS
from knowledge_circuits.figures import topology
from knowledge_circuits.report.section import Drawing, Section

SECTION = Section(
    "topology",
    "Circuit topology",
    "How concentrated the circuits are, how much they change between checkpoints, and in which layers their edges lie.",
    lambda m: NO_CIRCUITS if m.circuits is None else "",
    (
        Drawing(
            lambda m: topology.circuit_entropy(m.circuits, m.name),
            "Circuit entropy is low where few edges carry most of the effect.",
        ),
        Drawing(
            lambda m: topology.similarity_to_last(m.circuits, m.name),
            "Jaccard similarity of each circuit with the last checkpoint's circuit of its group. Circuits that two "
            "halves of the prompts give in the same weights differ by the noise of the prompts alone (dashed), which "
            "is larger in halves than in all prompts.",
        ),
        Drawing(
            lambda m: topology.similarity_map(m.circuits, m.name),
            "Edge Jaccard similarity of all pairs of checkpoints. A bright block on the diagonal is a period in which "
            "circuits change little.",
        ),
        Drawing(
            lambda m: topology.activation_ratio(m.circuits, m.name),
            "The share of each layer's outgoing edges that is in the circuit.",
        ),
        Drawing(
            lambda m: topology.three_entropies(m.circuits, m.name),
            "Circuit entropy and two further entropies of the original code, which look at all scored edges.",
        ),
    ),
)
