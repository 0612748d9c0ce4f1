"""The report's cards of the paper's findings: verdict, meaning, deciding statistics, and the figures beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from knowledge_circuits.analysis.findings import Finding, Statistic, Verdict
from knowledge_circuits.figures import findings as figures
from knowledge_circuits.report.material import Material
from knowledge_circuits.report.section import DrawnFigure, embed

#: What each verdict means for a reader, by finding.
_MEANINGS: Mapping[str, Mapping[Verdict, str]] = {
    "Relevance": {
        Verdict.HOLDS: "In this run facts about people whom the model knew before are learned better than facts about "
        "strangers.",
        Verdict.FAILS: "In this run knowing a person before training does not help to learn new facts about them.",
        Verdict.UNDECIDED: "This run cannot tell whether knowing a person before training helps: the measures or bands "
        "disagree, or their intervals are too wide.",
    },
    "Phase shift": {
        Verdict.HOLDS: "In this run circuits change fast up to the break and slowly after it: they form, then they are "
        "refined.",
        Verdict.FAILS: "In this run the circuits' entropy does not fall fast and then slowly: one line describes it as "
        "well, or the change does not slow down.",
        Verdict.UNDECIDED: "This run cannot tell whether the circuits' change has two phases.",
    },
    "Deep to shallow": {
        Verdict.HOLDS: "In this run deep layers make their change before shallow layers do.",
        Verdict.FAILS: "In this run shallow layers make their change before deep layers do.",
        Verdict.UNDECIDED: "This run cannot tell in which order the layers change: the interval of the rank "
        "correlation contains 0, or too few layers change.",
    },
}
#: What the names of statistics share within a card.
_ENTROPY, _DIFFERENCE = "circuit entropy: ", ", K_rel - K_compl"
#: How many of a finding's statistics stand on its card, and which.
_ON_CARD = 4


@dataclass(frozen=True)
class Card:
    """A finding as the page shows it: what it means here, and the statistics that decide."""

    finding: Finding
    meaning: str
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

    @property
    def css(self) -> str:
        """The class of the verdict's colour."""
        return self.finding.verdict.name.lower()


def card(finding: Finding) -> Card:
    """Choose what stands on a finding's card."""
    wanted = [s for s in finding.statistics if s.where == "all bands" or s.name.startswith(_ENTROPY)]
    chosen = wanted or [s for s in finding.statistics if s.verdict is not None]
    meaning = _MEANINGS.get(finding.title, {}).get(finding.verdict, "") if chosen else "This run cannot tell yet."
    return Card(finding, meaning, tuple(chosen[:_ON_CARD]))


def findings_figures(material: Material) -> Iterator[DrawnFigure]:
    """Yield the figures from which the verdicts are read; none for a finding that the run has no data for."""
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
            "Circuit entropy and edge similarity, mean of all groups, with the best line and the best two segments. "
            "The shaded range is the 95% interval of the break point.",
        )
        yield embed(
            figures.layer_order(material.circuits, material.name),
            "Left, the edge activation ratio of each layer. Right, the epoch at which each layer has made half of its "
            "change. If deep layers change first, points run from the upper left to the lower right.",
        )
