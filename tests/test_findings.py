"""What one run shows on made-up data whose truth is known; it never decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from knowledge_circuits.analysis import circuit_tables, findings, learning_tables, run_circuits
from knowledge_circuits.analysis.findings import Verdict
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.engine.graph import Layout
from knowledge_circuits.figures import findings as figures
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Band, KnowledgeType, groups

EPOCHS = np.arange(15.0)


def answers(lead: dict[Band, float], people: int = 30, spread: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """One fact per person, known from an epoch on; K_rel people learn theirs `lead` epochs sooner on average."""
    generator = np.random.default_rng(seed)
    rows = []
    for band in Band:
        for knowledge in KnowledgeType:
            for person in range(people):
                since = 7 - (lead[band] if knowledge == KnowledgeType.REVISED else 0) + spread * generator.normal()
                for epoch in EPOCHS:
                    rows.append(
                        (f"{knowledge} {band} {person}", str(knowledge), str(band), epoch, float(epoch >= since))
                    )
    return pd.DataFrame(rows, columns=["full_name", "type", "band", "epoch", "correct"])


def no_circuits() -> pd.DataFrame:
    return pd.DataFrame(columns=circuit_tables.CIRCUIT_PREDICTION_COLUMNS)


def hits(table: pd.DataFrame) -> pd.DataFrame:
    """The same learning as Hit@10 of each checkpoint's own circuits."""
    own = {"step": table["epoch"], "circuit_step": table["epoch"], "target_type": table["type"], "task": "city"}
    return table.rename(columns={"correct": "hit"}).assign(target_band=table["band"], **own)


def made_circuits(entropy: np.ndarray, activation: np.ndarray | None = None, noise: float = 0.02) -> Circuits:
    """18 groups whose entropy [n] and activation [l, n] follow the given curves with noise of their own."""
    generator = np.random.default_rng(0)
    layers = 6 if activation is None else len(activation)
    layout, n = Layout(layers, 1), len(entropy)
    rows, ratios = [], []
    for group in groups():
        names = {"task": str(group.task), "type": str(group.type), "band": str(group.band)}
        values = entropy + noise * generator.normal(size=n)
        for step in range(n):
            rows.append(
                {"step": step, "epoch": float(step), **names, "entropy": values[step], "edge_jaccard": step / n}
            )
            curve = np.full(layers, 0.1) if activation is None else activation[:, step]
            ratios.append(curve + 0.1 * noise * generator.normal(size=layers))
    table = pd.DataFrame(rows)
    nothing = np.zeros((len(table), 1), dtype=bool)
    return Circuits(layout, table, nothing, nothing, np.array(ratios))


def bent(at: float = 7.0, before: float = -0.3, after: float = -0.02) -> np.ndarray:
    return 8 + before * np.minimum(EPOCHS, at) + after * np.maximum(EPOCHS - at, 0)


def turning(order: list[int]) -> np.ndarray:
    """Activation ratios [l, n] that rise at epoch 2, 4, 6 ... in the given order of layers."""
    when = {layer: 2 + 2 * place for place, layer in enumerate(order)}
    return np.stack([0.1 + 0.2 / (1 + np.exp(-2 * (EPOCHS - when[layer]))) for layer in sorted(order)])


# --- relevance


def test_one_run_decides_nothing_whatever_the_lead() -> None:
    table = answers(dict.fromkeys(Band, 3.0))
    finding = findings.relevance(table, hits(table))
    assert finding.verdict == Verdict.ONE_RUN
    assert len(finding.statistics) == 8  # two measures, three bands and all bands together


def test_the_estimate_is_the_lead_over_the_length_of_training() -> None:
    finding = findings.relevance(answers(dict.fromkeys(Band, 3.0), people=200), no_circuits())
    pooled = finding.statistics[-1]
    assert pooled.where == "all bands"
    assert pooled.estimate == pytest.approx(3 / 14, abs=0.02)
    assert pooled.low < 3 / 14 < pooled.high


def test_people_are_resampled_and_not_their_facts() -> None:
    table = answers(dict.fromkeys(Band, 1.0))
    five_facts = pd.concat([table] * 5)
    one, five = (findings.relevance(t, no_circuits()).statistics[-1] for t in (table, five_facts))
    assert (one.low, one.high) == (five.low, five.high)


def test_the_same_seed_gives_the_same_intervals() -> None:
    table = answers(dict.fromkeys(Band, 1.0))
    assert findings.relevance(table, no_circuits(), seed=3) == findings.relevance(table, no_circuits(), seed=3)
    assert findings.relevance(table, no_circuits(), seed=3) != findings.relevance(table, no_circuits(), seed=4)


def test_one_person_of_a_group_has_no_interval() -> None:
    finding = findings.relevance(answers(dict.fromkeys(Band, 3.0), people=1), no_circuits())
    assert [s.interval for s in finding.statistics] == [f"{s.estimate:.3g}, no interval" for s in finding.statistics]
    assert len(figures.intervals(finding, "made up").axes[0].get_yticks()) == 4


def test_a_run_without_predictions_says_so() -> None:
    finding = findings.relevance(pd.DataFrame(columns=learning_tables.PREDICTION_COLUMNS), no_circuits())
    assert finding.verdict == Verdict.ONE_RUN
    assert "neither predictions" in finding.reason


# --- phase shift


def test_a_steep_fall_that_turns_flat_is_best_described_with_a_bend() -> None:
    circuits = made_circuits(bent())
    finding = findings.phase_shift(circuits)
    assert finding.verdict == Verdict.ONE_RUN
    assert "circuit entropy: the bic is lowest for the shape two segments with a bend" in finding.reason.lower()
    shift = findings.fit_phase_shift(circuits)
    assert shift is not None
    assert shift.break_low <= 7 <= shift.break_high
    assert shift.break_high - shift.break_low < 1


def test_a_break_at_the_edge_of_the_search_is_said_and_drawn_open() -> None:
    for at, marked in ((7.0, False), (1.0, True)):
        circuits = made_circuits(bent(at))
        statistics = {s.name: s for s in findings.phase_shift(circuits, resamples=20).statistics}
        found = statistics["circuit entropy: break point (epoch)"]
        assert (found.place == "mean of the groups; at the edge of the search") == marked
        figure = figures.phase_shift(circuits, "made up")
        (point,) = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
        assert (point.get_markerfacecolor() == "white") == marked
        assert point.get_label() == (findings.EDGE if marked else "break")
        assert point.get_label() in [text.get_text() for text in figure.legends[0].get_texts()]


def test_one_group_has_no_interval_over_groups() -> None:
    circuits = made_circuits(bent(), turning([5, 4, 3, 2, 1, 0]))
    rows = circuits.table["task"].eq("city") & circuits.table["type"].eq("new") & circuits.table["band"].eq("low")
    one = replace(circuits, table=circuits.table[rows].reset_index(drop=True), activation=circuits.activation[rows])
    for finding in (findings.phase_shift(one), findings.deep_to_shallow(one)):
        assert finding.statistics and all("no interval" in s.interval for s in finding.statistics)
    drawn = figures.phase_shift(one, "made up").legends[0].get_texts()
    assert "95% interval of the break" not in [text.get_text() for text in drawn]
    assert "correlation with depth: -1.00" in figures.layer_order(one, "made up").axes[1].get_title(loc="left")


def test_a_smooth_decay_is_best_described_as_one() -> None:
    finding = findings.phase_shift(made_circuits(8 + 2 * np.exp(-EPOCHS / 4)))
    (gain,) = [s for s in finding.statistics if s.name == "circuit entropy: BIC, best smooth shape - two segments"]
    assert gain.estimate < 0
    reason = finding.reason.lower()
    assert "circuit entropy: the bic is lowest for the shape saturating" in reason
    assert f"two segments gain {gain.interval} over the best smooth curve" in reason


def test_groups_that_disagree_widen_the_interval_of_the_break() -> None:
    agreeing, disagreeing = made_circuits(bent(), noise=0.01), made_circuits(bent(), noise=0.4)
    widths = []
    for circuits in (agreeing, disagreeing):
        shift = findings.fit_phase_shift(circuits)
        assert shift is not None
        widths.append(shift.break_high - shift.break_low)
    assert widths[0] < widths[1]


def test_the_last_point_of_similarity_with_itself_is_left_out() -> None:
    shift = findings.fit_phase_shift(made_circuits(bent()), "edge_jaccard")
    assert shift is not None
    assert shift.epochs.tolist() == EPOCHS[:-1].tolist()


def test_too_few_checkpoints_are_said() -> None:
    assert "6 checkpoints" in findings.phase_shift(made_circuits(bent()[:5])).reason
    assert "10 checkpoints" in findings.phase_shift(made_circuits(bent()[:9])).reason
    assert "6 checkpoints" in findings.phase_shift(None).reason


def test_a_run_whose_groups_all_lack_a_checkpoint_says_so() -> None:
    circuits = made_circuits(bent())
    present = (circuits.table["step"] < 14) == (circuits.table["task"] == "city")
    lacking = replace(circuits, table=circuits.table[present].reset_index(drop=True))
    assert findings.phase_shift(lacking).reason == findings.NO_BEND
    assert findings.deep_to_shallow(lacking).reason == findings.NO_ORDER
    assert figures.phase_shift(lacking, "made up").axes


# --- deep to shallow


@pytest.mark.parametrize(("order", "correlation"), [([5, 4, 3, 2, 1, 0], -1), ([0, 1, 2, 3, 4, 5], 1)])
def test_the_order_of_the_layers_is_their_correlation_with_depth(order: list[int], correlation: int) -> None:
    finding = findings.deep_to_shallow(made_circuits(bent(), turning(order)))
    assert finding.verdict == Verdict.ONE_RUN
    assert finding.statistics[0].estimate == pytest.approx(correlation)
    assert finding.statistics[0].p == pytest.approx(2 / 120, abs=0.01)  # of 5 layers' 120 orders two are this extreme


def test_layers_that_do_not_change_have_no_order() -> None:
    finding = findings.deep_to_shallow(made_circuits(bent(), np.full((6, len(EPOCHS)), 0.2)))
    assert "an order needs 4" in finding.reason and np.isnan(finding.statistics[0].p)


def test_a_layers_half_change_is_where_its_ratio_turns() -> None:
    order = findings.layer_order(made_circuits(bent(), turning([5, 4, 3, 2, 1, 0]), noise=0.01))
    assert order is not None
    assert order.layers.tolist() == [0, 1, 2, 3, 4]  # the last layer is left out
    assert order.epochs == pytest.approx([12, 10, 8, 6, 4], abs=0.3)


def test_a_run_on_disk_is_described(synthetic_run: Run) -> None:
    hits_of_run, circuits = circuit_tables.circuit_predictions(synthetic_run), run_circuits.read_circuits(synthetic_run)
    shown = findings.describe(learning_tables.predictions(synthetic_run), hits_of_run, circuits)
    assert [finding.title for finding in shown] == ["Relevance", "Phase shift", "Deep to shallow"]
    assert {finding.verdict for finding in shown} == {Verdict.ONE_RUN}
    assert shown[0].statistics[3].low > 0
    assert all(len(finding.table()) == len(finding.statistics) > 0 for finding in shown)
