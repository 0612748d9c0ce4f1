"""The report's section on what was learned."""

from __future__ import annotations

from knowledge_circuits.analysis import learning_tables, timeline
from knowledge_circuits.figures import learning
from knowledge_circuits.report.material import Material
from knowledge_circuits.report.section import Drawing, Section

_LACKING = "This run has no query predictions yet; predict.py writes them."


def _of_the_study(material: Material) -> bool:
    return material.is_study


SECTION = Section(
    "learned",
    "What was learned",
    "Accuracy over training. Points are checkpoints, lines their moving average over 3.",
    lambda m: _LACKING if m.predictions.empty and m.evaluations.empty and m.training_log.empty else "",
    (
        Drawing(
            lambda m: learning.first_token_and_query_accuracy(
                learning_tables.first_token_accuracy(m.run),
                m.predictions,
                m.name,
                learning_tables.published_first_token_accuracy(timeline.model_name(m.run)),
                m.past_predictions,
            ),
            "First-token accuracy on the validation biographies measures what the model memorized. Query accuracy "
            "measures which new facts it answers in full when asked with a prompt that it never saw. Past facts, where "
            "a run has them, were told before training about K_rel people only: if they are lost, nobody is known.",
            _of_the_study,
        ),
        Drawing(
            lambda m: learning.query_accuracy(m.predictions, m.name),
            "Query accuracy by knowledge type within each frequency band. Where K_rel lies above K_compl, facts about "
            "people whom the model knew were learned better in this run; the people differ too, and the intervals "
            "are under Findings.",
            _of_the_study,
        ),
        Drawing(
            lambda m: learning.knowledge_heatmap(m.predictions, m.name),
            "Each row is a person, frequent ones on top, each column a checkpoint. Dark cells to the right of bright "
            "ones are facts that were forgotten.",
            _of_the_study,
        ),
        Drawing(
            lambda m: learning.accuracy_by_attribute(m.predictions, m.name),
            "Query accuracy by attribute. Attributes differ in the number of possible values and in the length of the "
            "answer.",
            _of_the_study,
        ),
        Drawing(
            lambda m: learning.loss(m.evaluations, m.name, m.training_log),
            "Training and validation loss.",
        ),
    ),
)
