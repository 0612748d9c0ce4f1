"""The studies' verdicts: right on made-up studies whose truth is known, and seldom wrong where there is nothing.

False verdicts are counted over 500 simulated studies; a rule of 5% may show 0.05 + 1.645 x 0.0097 = 0.066 by chance
(one-sided 95% binomial), so that is the bound. The conjunctive rules lie far below it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks import verdicts
from knowledge_circuits.analysis import study_findings
from knowledge_circuits.analysis.findings import Finding, Statistic, Verdict
from knowledge_circuits.analysis.study_findings import decide_deep_to_shallow, decide_phase_shift, decide_relevance
from knowledge_circuits.analysis.study_tables import CIRCUIT_COLUMNS, Study, StudyKind
from knowledge_circuits.study import Band

BOUND = 0.066
EPOCHS = np.arange(9.0)


def share(found: list[Verdict], verdict: Verdict) -> float:
    return found.count(verdict) / len(found)


# --- relevance


def facts(
    lead: float, seeds: int = 4, people: int = 40, doses: tuple[float, ...] = (8,), past: float = 0.9, seed: int = 0
) -> pd.DataFrame:
    """Mirrored runs in which a known person's new fact is learned `lead` epochs sooner per 8 texts."""
    generator = np.random.default_rng(seed)
    names = np.array([f"person {i}" for i in range(people)])
    half = np.where(np.arange(people) % 2, "A", "B")
    band = np.array(list(map(str, Band)))[np.arange(people) // 2 % 3]
    tables = []
    for run in range(seeds):
        base = generator.normal(4, 1, size=people)
        for dose in doses:
            for mirror in "AB":
                known = half == mirror
                since = base - lead * dose / 8 * known + 0.3 * generator.normal(size=people)
                new = (EPOCHS[:, None] >= since).astype(float)
                for told, attribute, values in (("new", "city", new), ("past", "birthday", np.full(new.shape, past))):
                    rows = pd.DataFrame(
                        {
                            "person": np.tile(names, len(EPOCHS)),
                            "attribute": attribute,
                            "told": told,
                            "epoch": np.repeat(EPOCHS, people),
                            "known": np.tile(known, len(EPOCHS)),
                            "accuracy": values.ravel(),
                            "hit10": values.ravel(),
                            "band": np.tile(band, len(EPOCHS)),
                        }
                    )
                    tables.append(rows.assign(seed=run, mirror=mirror, dose=float(dose)))
    return pd.concat(tables, ignore_index=True)


def test_a_lead_of_known_people_holds_with_its_size_over_the_length_of_training() -> None:
    finding = decide_relevance(facts(lead=1.0))
    assert "without dose 0 that is not controlled" in finding.reason
    assert finding.verdict == Verdict.HOLDS
    accuracy = finding.statistics[0]
    assert accuracy.estimate == pytest.approx(1 / 8, abs=0.02)
    assert accuracy.low < 1 / 8 < accuracy.high
    assert sorted(accuracy.by_seed) == [0, 1, 2, 3]


def test_a_lag_of_known_people_does_not_hold() -> None:
    assert decide_relevance(facts(lead=-1.0)).verdict == Verdict.FAILS


def test_a_past_that_is_forgotten_cannot_test_relevance_whatever_the_lead() -> None:
    finding = decide_relevance(facts(lead=1.0, past=0.3))
    assert finding.verdict == Verdict.NOT_TESTABLE
    assert "known to 0.30 only" in finding.reason


def test_one_seed_decides_nothing() -> None:
    assert decide_relevance(facts(lead=1.0, seeds=1)).verdict == Verdict.ONE_RUN


def test_fewer_than_three_seeds_decide_nothing() -> None:
    assert decide_relevance(facts(lead=1.0, seeds=2)).verdict == Verdict.FEW_SEEDS
    assert decide_phase_shift(circuits(seeds=2)).verdict == Verdict.FEW_SEEDS


def test_a_run_without_its_mirror_does_not_count() -> None:
    table = facts(lead=1.0)
    alone = decide_relevance(table[table["mirror"] == "A"])
    assert alone.verdict == Verdict.ONE_RUN and "mirrored" in alone.reason
    lacking = decide_relevance(table[(table["seed"] > 0) | (table["mirror"] == "A")])
    assert sorted(lacking.statistics[0].by_seed) == [1, 2, 3]


def test_levels_of_the_mirrored_runs_cancel() -> None:
    table = facts(lead=0.0)
    shifted = table.copy()
    better = (shifted["mirror"] == "A") & (shifted["told"] == "new")
    shifted.loc[better, "accuracy"] += 0.3
    before, after = (decide_relevance(t).statistics[0].estimate for t in (table, shifted))
    assert after == pytest.approx(before, abs=1e-9)


def test_the_dose_arm_is_a_trend_per_text() -> None:
    finding = decide_relevance(facts(lead=1.0, doses=(3, 8, 16)))
    trend = next(s for s in finding.statistics if "per text" in s.name)
    assert trend.estimate == pytest.approx(1 / 8 / 8, rel=0.25)
    assert trend.adjusted < 0.05
    by_dose = {s.where: s.estimate for s in finding.statistics if s.where.endswith("texts in the past")}
    main, low = finding.statistics[0].estimate, by_dose["3 texts in the past"]
    assert set(by_dose) == {"3 texts in the past", "8 texts in the past"} and 0 < low < main


def test_the_main_dose_is_compared_with_the_control_seed_by_seed() -> None:
    table = facts(lead=1.0, doses=(0, 8))
    replayed = (table["dose"] == 0) & table["known"] & (table["told"] == "new")
    table.loc[replayed, "accuracy"] += 0.05  # what replay alone gives
    finding = decide_relevance(table)
    contrast = next(s for s in finding.statistics if s.where == "8 texts in the past minus 0")
    assert contrast.estimate == pytest.approx(1 / 8 - 0.05, abs=0.02)
    assert contrast.by_seed[2] == pytest.approx(
        finding.statistics[0].by_seed[2]
        - next(s for s in finding.statistics if s.where == "0 texts in the past").by_seed[2]
    )
    assert contrast.adjusted > contrast.p


def test_all_tests_are_counted_and_corrected() -> None:
    finding = decide_relevance(facts(lead=1.0, doses=(3, 8)))
    assert finding.tests == 2 + 6 + 2 + 2  # deciding; two measures by three bands; at the other dose; two trends
    assert all(s.adjusted >= s.p for s in finding.statistics if np.isfinite(s.p))


def test_what_has_no_test_does_not_count_in_the_correction() -> None:
    statistics = [Statistic("a", "here", 0.1, p=0.01), Statistic("b", "here", 0.1), Statistic("c", "here", 0.1, p=0.02)]
    adjusted = [s.adjusted for s in study_findings.corrected(statistics)]
    assert adjusted == pytest.approx([0.02, np.nan, 0.02], nan_ok=True)


@pytest.mark.parametrize("runs", [3, 5])
def test_relevance_is_rarely_found_where_there_is_none(runs: int) -> None:
    found = verdicts.relevance_verdicts(0.0, runs, people=60, between_runs=0.01, resamples=199)
    assert share(found, Verdict.HOLDS) <= BOUND / 2
    assert share(found, Verdict.FAILS) <= BOUND


def test_relevance_is_found_at_the_planned_effect() -> None:
    assert share(verdicts.relevance_verdicts(0.02, 5, studies=200, resamples=199), Verdict.HOLDS) > 0.8


# --- phase shift


def circuits(
    shape: str = "bend", centroid: np.ndarray | None = None, order: int = 0, seeds: int = 4, seed: int = 0
) -> pd.DataFrame:
    """A depth study with 6 groups and 8 layers whose three curves have a shape.

    Args:
        order: +1 for deep layers first, -1 for shallow ones, 0 for the same time in all and any order by noise.
    """
    generator = np.random.default_rng(seed)
    x = verdicts.EPOCHS
    curve = verdicts.bend(x) if shape == "bend" else verdicts.SMOOTH[shape](x)
    middle = np.zeros(len(x)) if centroid is None else centroid
    rows = []
    for run in range(seeds):
        when = 6 - order * np.arange(8) / 2 + 0.2 * generator.normal(size=8)
        for group in range(6):
            level = generator.normal()
            noise = 0.02 * verdicts.autoregressive(generator, (4, len(x)), 0.3)
            for i, epoch in enumerate(x):
                row: dict[str, object] = dict.fromkeys(CIRCUIT_COLUMNS, 0.5)
                row |= {"seed": run, "task": "city", "type": "new", "band": f"{group}", "people": "taught"}
                row |= {"epoch": epoch, "step": i, "entropy": level + curve[i] + noise[0, i]}
                early = verdicts.bend(np.array([epoch - 0.5]))[0] if shape == "bend" else curve[i]
                row |= {"turnover": 0.4 + early + noise[1, i] if epoch >= 1 else np.nan, "turnover_floor": 0.4}
                row |= {"edges_for_90": 900 * curve[i] + 300 + 900 * noise[2, i], "cmc_low": float(epoch > 0.5) - 0.5}
                row |= {"centroid": 3 + middle[i] + noise[3, i]}
                row |= {f"layer_{n}": 1 / (1 + np.exp(-2 * (epoch - when[n]))) for n in range(8)}
                rows.append(row | {"layer_8": 0.5})
    return pd.DataFrame(rows)


def test_a_bend_in_the_curves_of_all_seeds_is_a_phase_shift() -> None:
    finding = decide_phase_shift(circuits())
    assert finding.verdict == Verdict.HOLDS
    breaks = [s.estimate for s in finding.statistics if s.name.endswith("break point (epoch)")]
    assert breaks == pytest.approx([4, 4, 4], abs=0.4)


def test_weights_of_shapes_are_shares_and_have_no_interval() -> None:
    weights = [s for s in decide_phase_shift(circuits()).statistics if s.name.endswith("BIC weight")]
    assert sum(s.estimate for s in weights) == pytest.approx(len(study_findings.CURVES))
    assert all("no interval" in s.interval for s in weights)


def test_a_smooth_decay_is_said_to_be_one() -> None:
    finding = decide_phase_shift(circuits("exponential decay"))
    assert finding.verdict == Verdict.FAILS
    assert finding.reason.count("saturating") >= 2


def test_a_bend_of_one_curve_is_no_phase_shift() -> None:
    table = circuits("exponential decay")
    table["entropy"] = circuits()["entropy"]
    assert decide_phase_shift(table).verdict != Verdict.HOLDS


def test_bends_at_different_epochs_are_no_phase_shift() -> None:
    x = verdicts.EPOCHS
    noise = 0.01 * verdicts.autoregressive(np.random.default_rng(0), (3, 5, len(x)), 0)
    early, same, late = (study_findings.bends(x, verdicts.bend(x, at) + noise[i]) for i, at in enumerate((4, 4, 10)))
    assert early.wins and late.wins
    assert not study_findings.is_phase_shift([early, late], 16)
    assert study_findings.is_phase_shift([early, same, late], 16)


def test_a_break_at_the_edge_of_the_search_in_one_seed_is_no_sign_of_the_same_epoch() -> None:
    x = verdicts.EPOCHS
    noise = 0.01 * verdicts.autoregressive(np.random.default_rng(0), (2, 5, len(x)), 0)
    first, second = (study_findings.bends(x, verdicts.bend(x, 2.0) + part) for part in noise)
    assert study_findings.is_phase_shift([first, second], 16)
    first.at_edge[3] = True
    assert not study_findings.is_phase_shift([first, second], 16)


@pytest.mark.parametrize("at", [0.75, 1.0, 1.25, 1.5])
def test_a_bend_before_the_search_is_neither_found_nor_refuted(at: float) -> None:
    # entropy can break at 1 at the earliest, turnover, from epoch 0.5 on, at 1.5
    found = verdicts.phase_shift_verdicts(lambda x: verdicts.bend(x, at), (0.01,) * 3, 0.5, studies=20)
    assert set(found) == {Verdict.UNDECIDED}


def test_seeds_whose_break_is_at_the_edge_are_named_in_the_table() -> None:
    table = circuits()
    early = (table["seed"] == 2) & (table["people"] == "taught")
    table.loc[early, "entropy"] = verdicts.bend(table.loc[early, "epoch"].to_numpy(), 1.0)
    rows = {s.name: s for s in decide_phase_shift(table).statistics}
    entropy, turnover = (
        rows[f"{name}: break point (epoch)"] for name in ("circuit entropy", "turnover above its floor")
    )
    assert entropy.edge_seeds == (2,) and entropy.place == "mean of the groups; break at the edge of the search: seed 2"
    assert turnover.edge_seeds == () and turnover.place == "mean of the groups"


def test_one_seed_has_shapes_and_no_verdict() -> None:
    assert decide_phase_shift(circuits(seeds=1)).verdict == Verdict.ONE_RUN


def test_faithfulness_counts_only_where_there_is_something_to_be_faithful_to() -> None:
    x, y, _ = study_findings.study_curves(circuits(), "edges_for_90")
    assert x.min() == 1.0 and y.shape == (4, len(x))


def test_turnover_stands_in_the_middle_of_the_epoch_that_it_spans() -> None:
    x, _, _ = study_findings.study_curves(circuits(), "turnover")
    assert x.min() == 0.5


def test_a_group_that_is_missing_at_some_epochs_does_not_move_the_mean() -> None:
    table = circuits("line")
    _, whole, _ = study_findings.study_curves(table, "entropy")
    table.loc[(table["band"] == "3") & (table["epoch"] > 6), "entropy"] = np.nan
    _, gappy, _ = study_findings.study_curves(table, "entropy")
    assert np.abs(np.diff(gappy) - np.diff(whole)).max() < 0.03  # the group's own level is about 1


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("name", verdicts.SMOOTH)
def test_smooth_curves_are_rarely_called_a_phase_shift(name: str, correlation: float) -> None:
    found = verdicts.phase_shift_verdicts(verdicts.SMOOTH[name], (0.03,) * 3, correlation)
    assert share(found, Verdict.HOLDS) <= BOUND


def test_a_bend_is_found_through_noise_of_3_percent() -> None:
    assert share(verdicts.phase_shift_verdicts(verdicts.bend, (0.03,) * 3, 0.5, studies=200), Verdict.HOLDS) > 0.8


# --- deep to shallow


def turning(depth: float) -> np.ndarray:
    return np.interp(verdicts.EPOCHS, [0, 4, 16], [0, depth, 0])


def test_layers_that_turn_from_the_deepest_up_hold_and_the_reverse_does_not() -> None:
    assert decide_deep_to_shallow(circuits(order=1)).verdict == Verdict.HOLDS
    assert decide_deep_to_shallow(circuits(order=-1)).verdict == Verdict.FAILS


def test_a_centroid_that_goes_deeper_and_comes_back_holds_and_the_reverse_does_not() -> None:
    tables = [circuits(centroid=turning(depth)) for depth in (0.6, -0.6)]
    shifts = [decide_phase_shift(table) for table in tables]
    found = [decide_deep_to_shallow(table, shift) for table, shift in zip(tables, shifts, strict=True)]
    assert [finding.verdict for finding in found] == [Verdict.HOLDS, Verdict.FAILS]
    split = float(found[0].statistics[0].where.removeprefix("up to epoch "))
    assert split == pytest.approx(4, abs=0.3)  # the phase shift's break, not a third of training


def test_a_centroid_that_goes_deeper_and_stays_does_not_hold() -> None:
    stays = np.interp(verdicts.EPOCHS, [0, 5, 16], [0, 0.6, 0.6])
    assert decide_deep_to_shallow(circuits(centroid=stays)).verdict != Verdict.HOLDS


def test_the_two_ways_contradicting_each_other_decide_nothing() -> None:
    assert decide_deep_to_shallow(circuits(order=-1, centroid=turning(0.6))).verdict == Verdict.UNDECIDED


def test_a_centroid_that_recovers_from_a_dip_has_not_gone_deeper() -> None:
    dips = np.interp(verdicts.EPOCHS, [0, 0.5, 5, 16], [0, -0.4, 0, -0.3])
    finding = decide_deep_to_shallow(circuits(centroid=dips))
    assert finding.verdict == Verdict.UNDECIDED and finding.statistics[0].low > 0 > finding.statistics[2].high


@pytest.mark.parametrize(
    ("correlation", "turn", "after", "dip"),
    [(0.0, 0.0, None, 0.0), (0.7, 0.0, None, 0.0), (0.0, 0.5, 0.0, 0.0), (0.0, 0.0, 0.04, 0.14)],
)
def test_a_depth_law_is_rarely_found_where_there_is_none(
    correlation: float, turn: float, after: float | None, dip: float
) -> None:
    found = verdicts.depth_verdicts(turn, 0, correlation=correlation, after=after, dip=dip, resamples=199)
    assert 1 - share(found, Verdict.UNDECIDED) <= BOUND


# --- a whole study


def judged(kind: StudyKind, table: pd.DataFrame) -> tuple[Finding, ...]:
    return study_findings.judge_study(Study(kind, (), {}, table))


def test_a_study_is_judged_by_what_it_is_and_the_same_each_time() -> None:
    assert [f.title for f in judged(StudyKind.RELEVANCE, facts(1.0))] == ["Relevance"]
    depth = judged(StudyKind.DEPTH, circuits())
    assert [f.title for f in depth] == ["Phase shift", "Deep to shallow"]
    assert depth == judged(StudyKind.DEPTH, circuits())
