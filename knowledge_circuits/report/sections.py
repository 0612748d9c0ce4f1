"""Which figures a report shows, in what order, and what the reader should look for in each.

A section is left out with one sentence where the run lacks what it needs. Figures become PNG data URIs of at most 64
colours: for line plots and heat maps of this kind that is a quarter of the same figure's SVG.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure
from tqdm import tqdm

from knowledge_circuits.analysis import tables
from knowledge_circuits.analysis.components import Components
from knowledge_circuits.figures import circuit_evaluation, learning, topology
from knowledge_circuits.figures import components as component_plots
from knowledge_circuits.figures import findings as findings_figures
from knowledge_circuits.figures import style as figure_style
from knowledge_circuits.report.material import Material

_NO_PREDICTIONS = "This run has no query predictions yet; predict.py writes them."
_NO_HITS = "No circuit of this run was run alone on test items yet; circuit_eval.py --test_data_file does."
_NO_COMPONENTS = "Heads and logit lens were not analysed for this run yet; analysis/components.ipynb does that."


@dataclass(frozen=True)
class Drawing:
    """A figure of the report: how it is drawn and what its caption says."""

    draw: Callable[[Material], Figure]
    caption: str


@dataclass(frozen=True)
class Section:
    """Figures that belong together.

    Attributes:
        key: its anchor in the page.
        title, text: heading and opening sentence.
        lacking: why the section cannot be drawn from a run; "" where it can.
        drawings: its figures.
    """

    key: str
    title: str
    text: str
    lacking: Callable[[Material], str]
    drawings: tuple[Drawing, ...]


@dataclass(frozen=True)
class DrawnFigure:
    """A figure as a page shows it: its data URI, width and height in CSS pixels, and its caption."""

    uri: str
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class DrawnSection:
    """A section as a page shows it; `lacking` says why it has no figures."""

    key: str
    title: str
    text: str
    lacking: str
    figures: tuple[DrawnFigure, ...]


LEARNED = Section(
    "learned",
    "What was learned",
    "Accuracy over training. Points are checkpoints, lines their moving average over 3, bands 1.96 standard deviations "
    "of the residuals.",
    lambda m: _NO_PREDICTIONS if m.predictions.empty and m.evaluations.empty else "",
    (
        Drawing(
            lambda m: learning.first_token_and_query_accuracy(
                tables.first_token_accuracy(m.run),
                m.predictions,
                m.name,
                tables.published_first_token_accuracy(tables.model_name(m.run)),
            ),
            "Left, the share of attribute values in the biographies whose first token the model predicts: what was "
            "memorized. Right, the share of query prompts that it answers whole: what can be asked for.",
        ),
        Drawing(
            lambda m: learning.query_accuracy(m.predictions, m.name),
            "People told of more often are learned sooner. A vermilion line above a blue one says that prior knowledge "
            "of a person helps.",
        ),
        Drawing(
            lambda m: learning.knowledge_heatmap(m.predictions, m.name),
            "Each row is a person. A border that slants to the right as frequency falls says that rarer people are "
            "learned later; specks within a row are facts that were lost again.",
        ),
        Drawing(
            lambda m: learning.accuracy_by_attribute(m.predictions, m.name),
            "The five attributes differ in how many values they can take and in the length of the answer.",
        ),
        Drawing(
            lambda m: learning.loss(m.evaluations, m.name, tables.training_loss(m.run)),
            "Loss falls smoothly; compare it with the accuracies, which do not follow it step by step.",
        ),
    ),
)

ANSWERS = Section(
    "answers",
    "What the circuits answer alone",
    "Each checkpoint's circuits run by themselves (all other edges set to zero) on test people. Hit@10 is the share of "
    "answers whose first token is among the ten most probable.",
    lambda m: tables.NO_CIRCUITS if m.setting is None else _NO_HITS if m.circuit_predictions.empty else "",
    (
        Drawing(
            lambda m: circuit_evaluation.hits_by_type(m.circuit_predictions, m.name),
            "Relevant against completely new knowledge within each frequency band: the paper's first finding.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_by_band(m.circuit_predictions, m.name),
            "The same numbers by frequency band: circuits of facts that are told of more often answer sooner.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_across_bands(m.circuit_predictions, m.name),
            "Circuits found on one band, tested on another. Where lines coincide, frequency changes how well a fact is "
            "stored rather than the circuit that reads it.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_across_types(m.circuit_predictions, m.name),
            "Circuits found on one knowledge type, tested on the other.",
        ),
        Drawing(
            lambda m: circuit_evaluation.hits_of_transferred_circuits(m.circuit_predictions, m.name),
            "One checkpoint's circuit in the weights of all others. A circuit from after the break that does as well "
            "as each epoch's own says that the shift made the circuit that counts.",
        ),
    ),
)

SHAPE = Section(
    "shape",
    "How the circuits change",
    "The circuits' shape over training: how faithful, how concentrated, how alike, and in which layers.",
    lambda m: tables.NO_CIRCUITS if m.circuits is None else "",
    (
        Drawing(
            lambda m: circuit_evaluation.faithfulness(m.results, m.name),
            "How much of the model's preference for the right answer the circuit keeps. Before the model knows the "
            "facts this is a ratio of two small numbers; trust the other figures from where it settles near 1.",
        ),
        Drawing(
            lambda m: topology.circuit_entropy(m.circuits, m.name),
            "Lower entropy: fewer edges carry the effect. Look for a fast fall that turns into a slow one.",
        ),
        Drawing(
            lambda m: findings_figures.phase_shift(m.circuits, m.name),
            "The mean of all groups with the best single line and the best line that bends once: the paper's second "
            "finding. The shaded stretch is the 95% interval of the break.",
        ),
        Drawing(
            lambda m: topology.similarity_to_last(m.circuits, m.name),
            "How much of each circuit is already the last one's. Nodes are alike early; edges are what is rewired.",
        ),
        Drawing(
            lambda m: topology.similarity_map(m.circuits, m.name),
            "All pairs of checkpoints. A bright block on the diagonal is a stretch in which circuits stay alike.",
        ),
        Drawing(
            lambda m: topology.activation_ratio(m.circuits, m.name),
            "Which layers' outgoing edges are in the circuit. Look for rows that brighten or fade, deep ones first.",
        ),
        Drawing(
            lambda m: findings_figures.layer_order(m.circuits, m.name),
            "When each layer has made half of its change: the paper's third finding. Points that lean to the upper "
            "left say deep to shallow.",
        ),
        Drawing(
            lambda m: topology.three_entropies(m.circuits, m.name),
            "Two further entropies of the original code. The random walk mostly counts edges and hardly moves.",
        ),
    ),
)


def _analysed(material: Material) -> Components:
    assert material.components is not None, "a section that lacks its components is not drawn"
    return material.components


COMPONENTS = Section(
    "components",
    "Heads and logit lens",
    "What the circuits' parts do: where heads take the answer's logit from, and after which layer the answer appears.",
    lambda m: _NO_COMPONENTS if m.components is None else m.components.missing,
    (
        Drawing(
            lambda m: component_plots.head_proportions(_analysed(m), m.circuits, m.name),
            "Mover heads read the answer from the subject's tokens, relation heads from the relation's, mixture heads "
            "from both.",
        ),
        Drawing(
            lambda m: component_plots.head_layers(_analysed(m), m.circuits, m.name),
            "In which layers the heads of each kind lie.",
        ),
        Drawing(
            lambda m: component_plots.head_scatter(_analysed(m), m.circuits, m.name),
            "Every circuit head by the two parts of its direct logit attribution; dotted lines separate the kinds.",
        ),
        Drawing(
            lambda m: component_plots.lens(_analysed(m), "rank", m.name),
            "Where the answer ranks if the model ended after each layer. Look for the layer from which it is near 1.",
        ),
        Drawing(
            lambda m: component_plots.lens(_analysed(m), "prob", m.name),
            "The same as a probability: it comes later than the rank.",
        ),
        Drawing(
            lambda m: component_plots.lens(_analysed(m), "subject_rank", m.name),
            "The best rank at the subject's own tokens: is the answer already looked up there?",
        ),
    ),
)

SECTIONS = (LEARNED, ANSWERS, SHAPE, COMPONENTS)


def draw_sections(material: Material, sections: tuple[Section, ...] = SECTIONS) -> Iterator[DrawnSection]:
    """Draw what the run has; with a progress bar over the figures."""
    lacking = {section.key: section.lacking(material) for section in sections}
    total = sum(len(section.drawings) for section in sections if not lacking[section.key])
    with tqdm(total=total, desc="drawing", unit="figure", leave=False, delay=2) as progress:
        for section in sections:
            drawn = []
            for drawing in section.drawings if not lacking[section.key] else ():
                drawn.append(embed(drawing.draw(material), drawing.caption))
                progress.update()
            yield DrawnSection(section.key, section.title, section.text, lacking[section.key], tuple(drawn))


def relevance_figure(material: Material) -> DrawnFigure | None:
    """The differences between the knowledge types as points with intervals; None where nothing was measured."""
    finding = material.findings[0]
    if not finding.statistics:
        return None
    caption = "K_rel minus K_compl of the mean level over training, with 95% bootstrap intervals over people."
    return embed(findings_figures.intervals(finding, material.name), caption)


def embed(figure: Figure, caption: str, dpi: int = 144, colors: int = 64) -> DrawnFigure:
    """A figure as a PNG data URI, sharp on a screen of twice the usual density."""
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    image = base64.b64encode(figure_style.png(figure, dpi, colors)).decode("ascii")
    return DrawnFigure(f"data:image/png;base64,{image}", width, height, caption)
