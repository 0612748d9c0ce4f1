"""A study of documents: strategies are recognized, tables count what happened, claims are judged on planted truths."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_study import ENTITIES, circuits, probes, record, write_run
from notebooks import run_notebook

from knowledge_circuits.analysis.document_claims import ALL, RARE, SMALL_GAIN, Kind, interval, judge_claims
from knowledge_circuits.analysis.document_tables import (
    choice_table,
    cost_table,
    group_table,
    probe_table,
    reference_table,
)
from knowledge_circuits.analysis.documents import FULL, read_document_study, strategy_name
from knowledge_circuits.analysis.findings import Finding, Verdict
from knowledge_circuits.figures.documents import by_strategy, over_epochs
from knowledge_circuits.files import InputError
from knowledge_circuits.report.documents import write_documents_report


def claims(folder: Path) -> dict[str, Finding]:
    return {finding.title: finding for finding in judge_claims(read_document_study(folder))}


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({}, FULL),
        ({"replay_ratio": None, "kl_start": 0.0, "adaptive_exposure": False}, FULL),
        ({"replay_ratio": 0.2}, "replay"),
        ({"lora_rank": 8, "lora_alpha": 16}, "LoRA"),
        ({"kl_previous": 0.5, "lora_rank": 4}, "LoRA + KL to previous"),
    ],
)
def test_a_strategy_is_named_after_its_flags(flags: dict, name: str):
    assert strategy_name(flags) == name


def test_a_run_s_table_counts_entities_and_its_cost(tmp_path: Path):
    write_run(tmp_path / "full", probes("0111", "0101", "0000"))
    (run,) = read_document_study(tmp_path).runs
    table = probe_table(run)
    assert table["learned"].tolist() == [0, 8, 4, 8] and table["forgotten"].tolist() == [0, 0, 4, 0]
    assert table["kept"].tolist() == [0, 0, 4, 4] and table["known_twice"].tolist() == [0, 0, 4, 4]
    assert table["agreement"].tolist()[1:] == [0.5] * 3  # one of two paraphrases
    assert (table["invented"] == 1).all() and (table["borrowed"] == 0).all()
    (cost,) = cost_table(read_document_study(tmp_path)).to_dict("records")
    assert cost["documents_seen"] == 48 and cost["minutes"] == pytest.approx(0.6)
    assert cost["gain_per_100"] == pytest.approx(100 * (8 / 12) / 48)


def test_gains_are_told_apart_by_frequency(tmp_path: Path):
    recalls = [{name: float(label == "high") * step / 4 for name, label in ENTITIES.items()} for step in (0, 4)]
    write_run(tmp_path / "full", [record(0, recalls[0], 3.0), record(4, recalls[1], 2.0)])
    table = group_table(read_document_study(tmp_path)).set_index(["frequency", "kind"])
    assert table.loc[("high", "all"), "gain"] == 1 and table.loc[("low", "temporal"), "gain"] == 0
    exposure = claims(tmp_path)["Exposure"]
    assert exposure.statistics[0].interval == "1, no interval"  # gains that agree exactly tell no spread
    for number, name in enumerate(ENTITIES):
        recalls[1][name] = abs(recalls[1][name] - 0.01 * number)
    write_run(tmp_path / "full", [record(0, recalls[0], 3.0), record(4, recalls[1], 2.0)])
    assert claims(tmp_path)["Exposure"].verdict is Verdict.HOLDS_HERE


def test_oscillating_learning_supports_what_stable_learning_of_twelve_entities_cannot_refute(tmp_path: Path):
    write_run(tmp_path / "steady" / "full", probes("0111", "0011", "0001"))
    write_run(tmp_path / "unstable" / "full", probes("0100", "0101", "0010"))
    steady, unstable = claims(tmp_path / "steady"), claims(tmp_path / "unstable")
    assert steady["Non-monotonic learning"].verdict is Verdict.UNDECIDED  # none of 12: up to 26% are possible
    assert unstable["Non-monotonic learning"].verdict is Verdict.HOLDS_HERE
    assert unstable["Consolidation"].verdict is Verdict.HOLDS_HERE
    assert unstable["Consolidation"].statistics[0].estimate == 0
    assert steady["Consolidation"].statistics[0].estimate == 1  # not counting what the last probe alone finds known
    flat = "share of the epochs with falling loss in which recall does not rise"
    (share,) = (s.estimate for s in unstable["Loss and knowledge"].statistics if (s.name, s.where) == (flat, ALL))
    assert share == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("recalls", "losses", "verdict"),
    [
        ((0.0, 0.2, 0.4, 0.6), (4, 3, 2, 1), Verdict.FAILS_HERE),
        ((0.0, 0.4, 0.4, 0.41), (4, 3, 2, 1), Verdict.HOLDS_HERE),
        ((0.0, 0.4, 0.4, 0.41), (4, 3, 2, 2), Verdict.NOT_TESTABLE),  # the loss does not fall
    ],
)
def test_the_claim_about_the_loss_is_of_the_second_half_of_training(
    recalls: tuple[float, ...], losses: tuple[float, ...], verdict: Verdict, tmp_path: Path
):
    shares = {name: 1 - 0.01 * number for number, name in enumerate(ENTITIES)}
    rows = [record(4 * n, {name: recalls[n] * shares[name] for name in shares}, float(losses[n])) for n in range(4)]
    write_run(tmp_path / "full", rows)
    assert claims(tmp_path)["Loss and knowledge"].verdict is verdict


def write_questions(path: Path, answer: str = "x") -> None:
    """The file of the questions of `record`, all with one accepted answer."""
    asked = record(0, dict.fromkeys(ENTITIES, 0.0), 1.0)["questions"]
    rows = [{"question": "?", "answer": answer, **{key: row[key] for key in ("id", "entity", "kind")}} for row in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_recall_has_a_floor_where_the_accepted_answers_are_known(tmp_path: Path):
    rows = [record(4 * n, dict.fromkeys(ENTITIES, 0.2 * n), 4.0 - n) for n in range(3)]
    for question in rows[-1]["questions"]:
        question["output"] = "x y"
    write_run(tmp_path / "full", rows)
    gain = "gain in recall above its floor since the start"

    def found() -> tuple[list[float], float]:
        study = read_document_study(tmp_path)
        (above,) = (s for s in claims(tmp_path)["Loss and knowledge"].statistics if (s.name, s.where) == (gain, ALL))
        return probe_table(study.runs[0])["recall_floor"].tolist(), above.estimate

    assert np.isnan([*found()[0], found()[1]]).all()
    write_questions(tmp_path / "questions.jsonl", "y")
    assert found() == ([0, 0, 1], pytest.approx(0.4 - 1))
    assert reference_table(read_document_study(tmp_path)).empty
    write_run(tmp_path / "full", rows, probe_file=str(tmp_path / "elsewhere.jsonl"))
    (tmp_path / "questions.jsonl").rename(tmp_path / "elsewhere.jsonl")
    assert found()[0] == [0, 0, 1]
    (tmp_path / "elsewhere.jsonl").write_text('{"question": "?", "answer": "y", "entity": "another"}\n')
    assert np.isnan(found()[0]).all()  # other questions


def test_few_entities_refute_no_claim_by_agreeing(tmp_path: Path):
    write_run(tmp_path / "full", probes(*["0011"] * 2, *["0000"] * 10))  # two are learned, and known at the end
    found = claims(tmp_path)["Consolidation"]
    assert found.statistics[0].estimate == 1 and found.statistics[0].low < 0.5
    assert found.verdict is Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("kind", "draw", "line"),
    [
        (Kind.ENTITIES, lambda random, n: random.normal(SMALL_GAIN, 0.2, n), SMALL_GAIN),
        (Kind.ENTITIES, lambda random, n: 0.5 * (random.random(n) < 0.1), SMALL_GAIN),  # mostly nobody gains
        (Kind.FREQUENCIES, lambda random, n: random.normal(0.3, 0.2, n), 0),
        (Kind.FREQUENCIES, lambda random, n: 0.5 * (random.random(n) < 0.1), 0),
        (Kind.SHARE, lambda random, n: random.random(n) < RARE, RARE),
        (Kind.SHARE, lambda random, n: random.binomial(7, RARE, n) / 7, RARE),
    ],
)
def test_on_its_line_a_claim_about_nine_entities_is_seldom_decided(kind: Kind, draw, line: float):
    random, frequency, wrong = np.random.default_rng(5), np.array(["low"] * 6 + ["high"] * 3), 0
    for _ in range(500):
        _, low, high = interval(np.asarray(draw(random, 9), dtype=float), frequency, kind)
        wrong += low > line or high <= line
    assert wrong <= 0.05 * 500 + 2 * (500 * 0.05 * 0.95) ** 0.5


def test_an_entity_that_was_known_before_training_and_stays_is_consolidated(tmp_path: Path):
    write_run(tmp_path / "full", probes("1111"))
    found = claims(tmp_path)
    assert found["Consolidation"].verdict is Verdict.FAILS_HERE
    assert found["Non-monotonic learning"].statistics[0].estimate == 0


def test_skills_and_circuits_of_one_seed_have_no_interval_and_no_verdict(tmp_path: Path):
    for number, flags in enumerate(({}, {"lora_rank": 2}, {"kl_start": 0.1})):
        lost = [{"skill": 0.5}, *[{"skill": 0.3 + number / 100}] * 3]
        table = circuits(0.5 + number / 100, 0.2)
        write_run(tmp_path / f"run {number}", probes("0111", "0000", skills=lost), table, **flags)
    found = claims(tmp_path)
    assert found["Skills"].verdict is Verdict.ONE_RUN
    assert found["Skills"].statistics[0].where == ALL
    assert found["Skills"].statistics[0].estimate == pytest.approx(-0.19)
    assert found["Circuits"].verdict is Verdict.ONE_RUN
    assert found["Circuits"].statistics[0].estimate == pytest.approx(0.31)
    assert all("no interval" in statistic.interval for statistic in found["Circuits"].statistics)


def test_what_was_not_measured_cannot_be_tested(tmp_path: Path):
    write_run(tmp_path / "full", probes("0000", skills=[{}] * 4))
    found = claims(tmp_path)
    for title in ("Skills", "Circuits", "Non-monotonic learning", "Consolidation"):
        assert found[title].verdict is Verdict.NOT_TESTABLE


def test_intervals_are_over_seeds_where_there_are_several_and_two_decide_nothing(tmp_path: Path):
    for seed, columns in enumerate((("0100", "0111"), ("0100", "0111", "0110"), ("0100",))):
        write_run(tmp_path / f"seed_{seed}", probes(*columns), seed=seed)
    statistic = claims(tmp_path)["Non-monotonic learning"].statistics[0]
    assert statistic.by_seed == pytest.approx({0: 1 / 2, 1: 2 / 3, 2: 1})
    assert statistic.low < statistic.estimate < statistic.high
    (tmp_path / "seed_2" / "question_probes.jsonl").unlink()
    assert claims(tmp_path)["Non-monotonic learning"].verdict is Verdict.FEW_SEEDS


def test_seeds_that_agree_exactly_and_those_without_a_number_decide_nothing(tmp_path: Path):
    for seed in range(3):
        write_run(tmp_path / f"seed_{seed}", probes("0100", *["0000"] * 11), seed=seed)
    assert claims(tmp_path)["Consolidation"].verdict is Verdict.UNDECIDED
    write_run(tmp_path / "seed_2", probes("0000"), seed=2)
    assert claims(tmp_path)["Consolidation"].verdict is Verdict.FEW_SEEDS


def test_a_share_of_entities_is_the_same_number_for_any_count_of_equal_seeds(tmp_path: Path):
    quick, slow = probes("0111", *["0000"] * 11), probes("0100", "0111", "0110", *["0000"] * 9)
    for seed in range(3):
        write_run(tmp_path / f"full {seed}", quick, seed=seed)
        write_run(tmp_path / f"lora {seed}", slow, seed=seed, lora_rank=2)
    three = claims(tmp_path)["Consolidation"].statistics
    for path in tmp_path.glob("* [12]/question_probes.jsonl"):
        path.unlink()
    one = claims(tmp_path)["Consolidation"].statistics
    assert one[0].estimate == pytest.approx((1 / 2 + 1 + 0) / 3)  # three entities were known, one under both strategies
    assert [(s.estimate, s.low, s.high, s.place) for s in three] == [(s.estimate, s.low, s.high, s.place) for s in one]
    assert one[0].place == f"{ALL}; 3 entities" and one[1].place.endswith("; 1 entity")


def test_an_interval_over_several_seeds_is_no_narrower_than_that_over_their_entities(tmp_path: Path):
    for seed in range(3):
        rows = [record(4 * n, {e: n * (0.15 + 0.001 * seed) * (i % 3) for i, e in enumerate(ENTITIES)}, 4.0 - n)
                for n in range(4)]  # fmt: skip
        write_run(tmp_path / f"seed_{seed}", rows, seed=seed)
    gain = next(
        s for s in claims(tmp_path)["Loss and knowledge"].statistics if s.name == "gain in recall since the start"
    )
    assert gain.estimate == pytest.approx(0.453) and gain.high - gain.low > 0.4
    few = [record(4 * n, dict.fromkeys(list(ENTITIES)[:5], n * 0.15), 4.0 - n) for n in range(4)]
    write_run(tmp_path / "seed_2", few, seed=2)  # documents of its own
    gain = next(
        s for s in claims(tmp_path)["Loss and knowledge"].statistics if s.name == "gain in recall since the start"
    )
    assert gain.by_seed[2] == pytest.approx(0.45) and gain.high - gain.low < 0.1


def test_the_stopping_rule_ends_training_where_learning_stalls(tmp_path: Path):
    write_run(tmp_path / "full", probes("1111", "0111"))
    table = choice_table(read_document_study(tmp_path)).set_index("rule")
    assert table.loc["lowest loss of the documents", "epoch"] == 3
    assert table.loc["stop after 1 probe without growth", "epoch"] == 3  # known twice: 0, 6, 12, 12
    assert table.loc["most entities known twice in a row", "epoch"] == 2
    assert "stop after 3 probes without growth (never)" in table.index


def test_references_are_answers_to_the_runs_questions(tmp_path: Path):
    write_run(tmp_path / "full", probes("0111", "0000"))
    folder = tmp_path / "references"
    folder.mkdir()
    questions = probes("0111")[1]["questions"]
    (folder / "answers_gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (row,) = reference_table(read_document_study(tmp_path)).to_dict("records")
    assert np.isnan(row.pop("recall_floor"))
    assert row == {"reference": "gold document", "recall": 1, "exact": 1, "known_share": 1, "questions": 25}
    (folder / "answers_none.jsonl").write_text(json.dumps({**questions[0], "entity": "Another"}) + "\n")
    with pytest.raises(
        InputError, match=r"answers to other questions than the runs', such as .*; ask theirs with pred"
    ):
        read_document_study(tmp_path)
    (folder / "answers_none.jsonl").write_text(json.dumps({**questions[0], "id": "another"}) + "\n")
    with pytest.raises(
        InputError, match=r"answers_none.jsonl: answers to other questions than the runs', such as 'another'"
    ):
        read_document_study(tmp_path)


def test_a_claim_s_line_is_drawn_and_a_shared_label_stands_above_its_references(tmp_path: Path):
    write_run(tmp_path / "full", probes("0111", "0101", "0000"))
    figure = by_strategy(claims(tmp_path)["Consolidation"], "made up")
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"] == [RARE]
    study = read_document_study(tmp_path)
    told = {"alone": 0.2, "lower": 0.5, "higher": 0.53}
    answered = {name: record(0, dict.fromkeys(ENTITIES, recall), 1.0) for name, recall in told.items()}
    labels = {text.get_text(): text.xy[1] for text in over_epochs(replace(study, references=answered)).axes[0].texts}
    assert labels == pytest.approx({"alone": 0.2, "lower,\nhigher": 0.53})


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"no run with question_probes\.jsonl"):
        read_document_study(tmp_path)
    write_run(tmp_path / "one", probes("0111"))
    write_run(tmp_path / "two", probes("0111"))
    with pytest.raises(InputError, match="one and two are both full fine-tuning with seed 0"):
        read_document_study(tmp_path)
    write_run(tmp_path / "two", probes("0111", learned_threshold=[0.5] * 4), lora_rank=2)
    with pytest.raises(InputError, match="two: other questions or another threshold than in one"):
        read_document_study(tmp_path)
    write_run(tmp_path / "two", probes("0111"), lora_rank=2, num_train_epochs=9)
    with pytest.raises(InputError, match="two: --num_train_epochs 9, not 3 as in one; runs of one study differ in"):
        read_document_study(tmp_path)
    write_run(tmp_path / "two", probes("0111"), lora_rank=2)
    (tmp_path / "two" / "circuits.csv").write_text("step,epoch\n0,0\n")
    with pytest.raises(InputError, match=r"circuits\.csv: no column group"):
        read_document_study(tmp_path)


def test_the_page_answers_every_claim_and_says_what_is_missing(tmp_path: Path):
    write_run(tmp_path / "study" / "full", probes("0111", "0101"), circuits(0.4, 0.2, groups=("a", "b")))
    write_run(tmp_path / "study" / "lora", probes("0011", "0001"), lora_rank=2)
    page = write_documents_report(tmp_path / "study").read_text(encoding="utf-8")
    assert page.count('<p class="verdict">') == 6
    assert page.count('<svg class="drawing"') == 5 + 6
    assert "No references" in page and "With one seed intervals are over entities" in page
    assert {path.stem for path in (tmp_path / "study" / "figures").iterdir()} == {
        *("over_epochs", "learned_and_forgotten", "cost", "exposure", "reconfiguration")
    }
    assert write_documents_report(tmp_path / "study" / "full", tmp_path / "one.html").exists()


def test_the_notebook_s_cells_run_on_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_run(tmp_path / "full", probes("0111", "0101"))
    monkeypatch.setenv("STUDY", str(tmp_path))
    names = run_notebook("documents", monkeypatch)
    assert len(list((tmp_path / "figures").iterdir())) == 5 and len(names["claims"]) == 6
