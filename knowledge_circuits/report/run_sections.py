"""The sections of a run's page: their figures, what to look for in each, and which runs have them."""

from __future__ import annotations

from dataclasses import replace

from knowledge_circuits.analysis import learning_tables, timeline
from knowledge_circuits.analysis.circuit_settings import NO_CIRCUITS
from knowledge_circuits.analysis.components import Components
from knowledge_circuits.figures import circuit_evaluation, components, learning, stability, topology
from knowledge_circuits.report.material import Material
from knowledge_circuits.report.section import Drawing, Section

_NO_ANSWERS = "This run has no query predictions yet; predict.py writes them."
_NO_HITS = "No circuit of this run was evaluated alone on test items yet; circuit_eval.py --test_data_file does it."
_NOT_ANALYSED = "Heads and logit lens were not analysed for this run yet; analysis/components.ipynb does it."


def sections_of(material: Material) -> tuple[Section, ...]:
    """Return the sections that a run of its kind has, in their order."""
    of_facts = (FACT_GROUPS,) if material.has_facts else ()
    if material.is_study:
        return (LEARNED, *of_facts, EVALUATION, TOPOLOGY, PROMPTS, COMPONENTS)
    return (LEARNED, *of_facts, *((TOPOLOGY, PROMPTS) if material.setting else ()))


LEARNED = Section(
    "learned",
    "What was learned",
    "Accuracy over training. Points are checkpoints, lines their moving average over 3.",
    lambda m: _NO_ANSWERS if m.predictions.empty and m.evaluations.empty and m.training_log.empty else "",
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
            lambda m: m.is_study,
        ),
        Drawing(
            lambda m: learning.query_accuracy(m.predictions, m.name),
            "Query accuracy by knowledge type within each frequency band. Where K_rel lies above K_compl, facts about "
            "people whom the model knew were learned better in this run; the people differ too, and the intervals "
            "are under Findings.",
            lambda m: m.is_study,
        ),
        Drawing(
            lambda m: learning.knowledge_heatmap(m.predictions, m.name),
            "Each row is a person, frequent ones on top, each column a checkpoint. Dark cells to the right of bright "
            "ones are facts that were forgotten.",
            lambda m: m.is_study,
        ),
        Drawing(
            lambda m: learning.accuracy_by_attribute(m.predictions, m.name),
            "Query accuracy by attribute. Attributes differ in the number of possible values and in the length of the "
            "answer.",
            lambda m: m.is_study,
        ),
        Drawing(
            lambda m: learning.loss(m.evaluations, m.name, m.training_log),
            "Training and validation loss.",
        ),
    ),
)

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

EVALUATION = Section(
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

TOPOLOGY = Section(
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


def _without_prompts(material: Material) -> str:
    circuits = material.circuits
    if circuits is None:
        return NO_CIRCUITS
    if material.cross_groups is None and circuits.spans.empty and circuits.table["inclusion"].isna().all():
        return (
            "Not measured for this run: circuit_discovery.py --stability and --spans, and circuit_eval.py "
            "--cross_groups."
        )
    return ""


PROMPTS = Section(
    "prompts",
    "Circuits and their prompts",
    "How much of a circuit depends on which prompts were drawn, where in the prompt its effect lies, and whether a "
    "group's circuit also does the work of other groups.",
    _without_prompts,
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


def _analysed(material: Material) -> Components:
    assert material.components is not None, "a section that lacks its components is not drawn"
    return material.components


COMPONENTS = Section(
    "components",
    "Heads and logit lens",
    "From which tokens the circuits' heads take the answer's logit, and after which layer the answer can be read off.",
    lambda m: _NOT_ANALYSED if m.components is None else m.components.missing,
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
