"""The report's cards of the paper's findings: what the run shows, its main statistics, and the figures beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from knowledge_circuits.analysis.findings import Finding, Statistic
from knowledge_circuits.figures import findings as figures
from knowledge_circuits.report.material import Material
from knowledge_circuits.report.section import DrawnFigure, embed

#: What the names of statistics share within a card.
_ENTROPY, _DIFFERENCE = "circuit entropy: ", ", K_rel - K_compl"
#: How many of a finding's statistics stand on its card.
_ON_CARD = 4


@dataclass(frozen=True)
class Card:
    """A finding as the page shows it: what the run shows of it, and the statistics first to look at."""

    finding: Finding
    headlines: tuple[Statistic, ...]

    @property
    def labels(self) -> list[tuple[str, Statistic]]:
        """The statistics with names as short as a card wants them."""
        return [(s.name.removeprefix(_ENTROPY).removesuffix(_DIFFERENCE), s) for s in self.headlines]

    @property
    def measured(self) -> str:
        """What the short names leave out, and of what part of the run the statistics are."""
        if not self.headlines:
            return ""
        first = self.headlines[0]
        left_out = [part.strip(":, ") for part in (_ENTROPY, _DIFFERENCE) if part in first.name]
        return ", ".join([*left_out, first.where])


def card(finding: Finding) -> Card:
    """Choose what stands on a finding's card."""
    wanted = [s for s in finding.statistics if s.where == "all bands" or s.name.startswith(_ENTROPY)]
    chosen = wanted or [s for s in finding.statistics if s.claim]
    return Card(finding, tuple(chosen[:_ON_CARD]))


def findings_figures(material: Material) -> Iterator[DrawnFigure]:
    """Yield the figures of the findings; none for a finding that the run has no data for."""
    finding = material.findings[0]
    if finding.statistics:
        yield embed(
            figures.intervals(finding, material.name),
            "K_rel minus K_compl: the difference of the mean level over training, with 95% bootstrap intervals over "
            "people.",
        )
    if material.circuits is not None:
        yield embed(
            figures.phase_shift(material.circuits, material.name),
            "Circuit entropy and edge similarity, mean of all groups, with the best two segments. Two segments have a "
            "break point (shaded, its 95% interval) whatever the curve is. An open one lies at the edge of the search, "
            "which leaves three checkpoints on either side, and need not be where the curve bends. The dashed curve is "
            "the best of the smooth shapes (line, exponential decay, power law, logistic); each title says whether it "
            "describes the points better.",
        )
        yield embed(
            figures.layer_order(material.circuits, material.name),
            "Left, the edge activation ratio of each layer. Right, the epoch at which each layer has made half of its "
            "change. If deep layers change first, points run from the upper left to the lower right.",
        )
