"""The report's section on the circuits' components: head kinds and the logit lens."""

from __future__ import annotations

from knowledge_circuits.analysis.components import Components
from knowledge_circuits.figures import components
from knowledge_circuits.report.material import Material
from knowledge_circuits.report.section import Drawing, Section

_LACKING = "Heads and logit lens were not analysed for this run yet; analysis/components.ipynb does it."


def _analysed(material: Material) -> Components:
    assert material.components is not None, "a section that lacks its components is not drawn"
    return material.components


SECTION = Section(
    "components",
    "Heads and logit lens",
    "From which tokens the circuits' heads take the answer's logit, and after which layer the answer can be read off.",
    lambda m: _LACKING if m.components is None else m.components.missing,
    (
        Drawing(
            lambda m: components.head_proportions(_analysed(m), m.circuits, m.name),
            "Mover heads take the answer's logit from the subject's tokens, relation heads from the relation's tokens, "
            "mixture heads from both.",
        ),
        Drawing(
            lambda m: components.head_layers(_analysed(m), m.circuits, m.name),
            "The layers in which the heads of each kind lie.",
        ),
        Drawing(
            lambda m: components.head_scatter(_analysed(m), m.circuits, m.name),
            "The subject and the relation part of every circuit head's direct logit attribution. Dotted lines separate "
            "the kinds.",
        ),
        Drawing(
            lambda m: components.lens(_analysed(m), "rank", m.name),
            "The answer's rank after each layer, read off the residual stream at the last position.",
        ),
        Drawing(
            lambda m: components.lens(_analysed(m), "prob", m.name),
            "The answer's probability after each layer at the last position.",
        ),
        Drawing(
            lambda m: components.lens(_analysed(m), "subject_rank", m.name),
            "The answer's best rank after each layer over the subject's positions: whether the answer is already "
            "looked up there.",
        ),
    ),
)
