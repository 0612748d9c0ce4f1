"""The report's section on what circuits owe to their prompts: stability, token spans, transfer between groups."""

from __future__ import annotations

from knowledge_circuits.analysis.circuit_settings import NO_CIRCUITS
from knowledge_circuits.figures import stability
from knowledge_circuits.report.material import Material
from knowledge_circuits.report.section import Drawing, Section


def _lacking(material: Material) -> str:
    circuits = material.circuits
    if circuits is None:
        return NO_CIRCUITS
    if material.cross_groups is None and circuits.spans.empty and circuits.table["inclusion"].isna().all():
        return (
            "Not measured for this run: circuit_discovery.py --stability and --spans, and circuit_eval.py "
            "--cross_groups."
        )
    return ""


SECTION = Section(
    "prompts",
    "Circuits and their prompts",
    "How much of a circuit depends on which prompts were drawn, where in the prompt its effect lies, and whether a "
    "group's circuit also does the work of other groups.",
    _lacking,
    (
        Drawing(
            lambda m: stability.stability(m.circuits, m.name),
            "Split-half measures compare the circuits of two halves of the prompts; for circuits of --same_sign there "
            "are none, since only all prompts' resamples tell which signs are stable. Of circuits of --signed neither "
            "measure is known. Inclusion is the share of 100 "
            "resamples of the prompts whose circuit has an edge. An edge's colour in the viewer above fades with it.",
        ),
        Drawing(
            lambda m: stability.span_shares(m.circuits, m.name),
            "Does the circuit move from the subject to the last token while it forms? An edge stays within a position, "
            "except into keys and values, which are counted at the source's position.",
        ),
        Drawing(
            lambda m: stability.cross_groups(m.cross_groups, m.name),
            "If rows are alike, the groups share a circuit, or circuits of this size suffice for all. The last two "
            "rows compare the edges that are in all "
            "circuits with as many of each group's own strongest edges.",
        ),
    ),
)
