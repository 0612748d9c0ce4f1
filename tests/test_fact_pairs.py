"""Circuits of one's own facts: files of prompts and answers through both programs, without people, types or bands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from tiny_run import SMALL, call, files

import circuit_discovery
import circuit_eval
import predict
from knowledge_circuits.analysis import circuit_tables, learning_tables, run_circuits
from knowledge_circuits.corpus.fact_pairs import match_facts, read_facts
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.evaluation import evaluate, standalone
from knowledge_circuits.engine.graph_files import read_details, read_graph
from knowledge_circuits.engine.prompts import PromptPairs, token_spans
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError, read_json, read_jsonl, write_json, write_jsonl
from knowledge_circuits.manifest import read_manifest
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.report.material import read_material
from knowledge_circuits.report.page import fact_table, write_report
from knowledge_circuits.report.run_sections import PROMPTS
from knowledge_circuits.report.section import draw_sections
from knowledge_circuits.runs import Run
from knowledge_circuits.study import FactGroup, Group

CAPITALS = {
    "europe": {
        "France": "Paris",
        "Poland": "Warsaw",
        "Norway": "Oslo",
        "Spain": "Madrid",
        "Greece": "Athens",
        "Sweden": "Stockholm",
    },
    "asia": {"Japan": "Tokyo", "Nepal": "Kathmandu", "China": "Beijing", "India": "New Delhi"},
}


def prompt(country: str) -> str:
    return f"The capital of {country} is"


def rows(groups: dict[str, dict[str, str]] = CAPITALS) -> list[dict]:
    """Each country beside the next one of its group."""
    made = []
    for group, capitals in groups.items():
        names = list(capitals)
        for name, other in zip(names, names[1:] + names[:1], strict=True):
            clean = {"prompt": prompt(name), "answer": capitals[name], "group": group, "country": name}
            made.append(clean | {"corrupted": prompt(other), "corrupted_answer": capitals[other]})
    return made


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("facts") / "checkpoints"
    for seed, step in enumerate((0, 4)):
        tiny.save_tiny_gpt2(folder / f"checkpoint-{step}", seed)
    return folder


@pytest.fixture(scope="module")
def tokenizer(checkpoints: Path):
    return load_tokenizer(str(checkpoints / "checkpoint-0"))


@pytest.fixture
def fresh(checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints, tmp_path / "run" / "checkpoints"))


@pytest.fixture
def capitals(tmp_path: Path, tokenizer) -> Path:
    """A file of pairs that all match in length, whatever the tokenizer makes of the names."""
    path = tmp_path / "capitals.jsonl"
    of_length: dict[tuple[str, int], list[dict]] = {}
    for row in rows():
        of_length.setdefault((row["group"], length(tokenizer, row["prompt"])), []).append(row)
    fitting = [
        row | {"corrupted": other["prompt"], "corrupted_answer": other["answer"]}
        for same in of_length.values()
        for row, other in zip(same, same[1:] + same[:1], strict=True)
        if row is not other
    ]
    assert {row["group"] for row in fitting} == {"europe", "asia"}
    write_jsonl(path, fitting)
    return path


def length(tokenizer, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def facts_of(run: Run) -> pd.DataFrame:
    """The table of the run's evaluated circuits."""
    circuits = run_circuits.read_circuits(run, kind=FactGroup)
    hits = circuit_tables.circuit_predictions(run, kind=FactGroup)
    return circuit_tables.fact_circuits(circuit_tables.results(run, kind=FactGroup), hits, circuits)


def discovery(run: Path, file: Path, *more: str) -> list[str]:
    return ["--model", "tiny", "--model_path", str(run), "--data_file", str(file), "--circuit_n", "6", *SMALL, *more]


def evaluation(run: Path, file: Path, *more: str) -> list[str]:
    paths = ["--model", "tiny", "--model_path", str(run), "--eval_data_file", str(file)]
    return [*paths, "--test_data_file", str(file), "--circuit_n", "6", "--topn", "40", *SMALL, *more]


def test_both_programs_take_a_file_of_facts(fresh: Path, capitals: Path, tokenizer) -> None:
    assert call(circuit_discovery.main, discovery(fresh, capitals)) == 0
    assert call(circuit_eval.main, evaluation(fresh, capitals)) == 0
    for step in (0, 4):
        folder = fresh / f"checkpoint-{step}" / "circuit_6" / "group_europe" / "method_EAP-IG"
        graph = read_graph(folder / "capitals_graph.json")
        europe = [row for row in read_jsonl(capitals) if row["group"] == "europe"]
        pairs = PromptPairs.from_text(
            tokenizer,
            [row["prompt"] for row in europe],
            [row["corrupted"] for row in europe],
            [(row["answer"], row["corrupted_answer"]) for row in europe],
        )
        expected = attribute(load_decoder(str(fresh / f"checkpoint-{step}")), pairs, batch_size=8)
        torch.testing.assert_close(graph.scores, expected.scores)
        assert {"task": "capitals", "group": "europe"}.items() <= graph.meta.items() and "type" not in graph.meta
        results = read_json(folder / "topn_40" / "capitals_results.json")
        assert results["group"] == "europe" and "type" not in results and results["edges_num"] > 0
        for target in ("europe", "asia"):
            written = read_jsonl(folder / "topn_40" / f"target_group_{target}" / "capitals_prediction.jsonl")
            given = [row for row in read_jsonl(capitals) if row["group"] == target]
            assert [row["country"] for row in written] == [row["country"] for row in given]
            assert [row["ground_truth"] for row in written] == [row["answer"] for row in given]
            assert all(0 < row["token_prob"] < 1 and row["token_rank"] >= 0 for row in written)
    before = files(fresh)
    assert call(circuit_discovery.main, discovery(fresh, capitals)) == 0
    assert files(fresh) == before
    assert call(circuit_discovery.main, discovery(fresh, capitals, "--spans")) == 0
    spans = read_details(folder / "capitals_details.safetensors", graph.layout).spans
    assert {"changed", "last token"} <= set(spans)


def test_tables_and_report_show_the_groups_of_own_facts(fresh: Path, capitals: Path) -> None:
    assert call(circuit_discovery.main, discovery(fresh, capitals)) == 0
    assert call(circuit_eval.main, evaluation(fresh, capitals)) == 0
    run = Run(fresh.parent)
    losses = [{"step": 2, "epoch": 0.5, "loss": 3.0}, {"step": 4, "epoch": 1.0, "loss": 2.0}]
    write_json(fresh / "checkpoint-4" / "trainer_state.json", {"global_step": 4, "epoch": 1.0, "log_history": losses})
    table = facts_of(run)
    assert list(table.columns) == circuit_tables.FACT_CIRCUIT_COLUMNS
    assert set(zip(table["step"], table["group"], strict=True)) == {(s, g) for s in (0, 4) for g in CAPITALS}
    for row in table.to_dict("records"):
        folder = (
            fresh / f"checkpoint-{row['step']}" / "circuit_6" / f"group_{row['group']}" / "method_EAP-IG" / "topn_40"
        )
        results = read_json(folder / "capitals_results.json")
        assert (
            row["faithfulness"] == pytest.approx(results["faithfulness"]) and row["edges_num"] == results["edges_num"]
        )
        ranks = [
            one["token_rank"] for one in read_jsonl(folder / f"target_group_{row['group']}/capitals_prediction.jsonl")
        ]
        assert row["hit"] == sum(rank <= 9 for rank in ranks) / len(ranks)
    assert (table[table["step"] == 4]["edge_jaccard"] == 1).all() and (table["edge_jaccard"].between(0, 1)).all()
    assert circuit_tables.results(run, kind=Group).empty and run_circuits.read_circuits(run, kind=Group) is None
    assert set(circuit_tables.results(run)["group"]) == set(CAPITALS), (
        "those of the study, or where there are none, these"
    )
    data = read_material(run).browser.page_data(None, circuit_tables.results(run), table)
    assert [(one["task"], one["type"], one["band"], one["symbol"]) for one in data["groups"]] == [
        ("capitals", group, "", "") for group in sorted(CAPITALS)
    ]
    for group in data["groups"]:
        for step, _, edges, _, entropy, faithfulness, *_ in group["rows"]:
            (row,) = table[(table["step"] == step) & (table["group"] == group["type"])].to_dict("records")
            assert (edges, entropy) == (row["edges_num"], pytest.approx(row["edge_entropy"], rel=1e-3))
            assert faithfulness == pytest.approx(row["faithfulness"], rel=1e-3)

    asks = ["--model_name_or_path", str(fresh), "--input_file", str(capitals), "--threads", "1"]
    assert call(predict.main, asks) == 0
    answers = learning_tables.fact_predictions(run)
    assert len(answers) == 2 * len(read_jsonl(capitals)) and set(answers["group"]) == set(CAPITALS)
    lines = read_jsonl(fresh / "checkpoint-4" / "capitals_prediction.jsonl")
    assert [line["ground_truth"] for line in lines] == [row["answer"] for row in read_jsonl(capitals)]
    assert [line["country"] for line in lines] == [row["country"] for row in read_jsonl(capitals)]
    assert learning_tables.predictions(run).empty and call(predict.main, asks) == 0

    page = write_report(run).read_text()
    numbers = page[page.index('id="numbers"') :]
    assert (
        "Answers at epoch 1 (step 4); circuits at epoch 1 (step 4)" in numbers
        and numbers.count('<td class="word">capitals</td>') == 2
    )
    assert 'id="circuit-data"' in page and "<label>Group <select" in page and 'href="#circuits"' in page
    assert "The 18 groups" not in page and 'id="findings"' not in page and 'id="groups"' in page
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page


def test_the_groups_of_own_facts_have_the_stability_of_their_circuits(fresh: Path, capitals: Path) -> None:
    assert call(circuit_discovery.main, discovery(fresh, capitals)) == 0
    assert call(circuit_eval.main, evaluation(fresh, capitals)) == 0
    write_json(fresh / "checkpoint-4" / "trainer_state.json", {"global_step": 4, "epoch": 1.0})
    run, columns = Run(fresh.parent), ["split_half_jaccard", "rank_correlation", "inclusion"]
    assert facts_of(run)[columns].isna().all(axis=None)
    assert "inclusion" not in fact_table(read_material(run)).header
    assert call(circuit_discovery.main, discovery(fresh, capitals, "--stability", "40")) == 0
    table = facts_of(run)
    for row in table.to_dict("records"):
        folder = fresh / f"checkpoint-{row['step']}" / "circuit_6" / f"group_{row['group']}" / "method_EAP-IG"
        circuit = read_graph(folder / "topn_40" / "capitals_graph.json")
        stability = read_details(folder / "capitals_details.safetensors", circuit.layout).stability
        assert row["inclusion"] == pytest.approx(float(stability.inclusion[circuit.in_graph].mean()))
        assert row["split_half_jaccard"] == pytest.approx(float(stability.split_half_jaccard.mean()))
        assert row["rank_correlation"] == pytest.approx(float(stability.rank_correlation.mean()))
    material = read_material(run)
    shown = fact_table(material)
    assert shown.header[-2:] == ["halves agree", "inclusion"] and "Inclusion: in how many" in shown.caption
    of_group = {row[1]: row[-2:] for row in shown.rows}
    for row in table[table["step"] == 4].to_dict("records"):
        assert of_group[row["group"]] == [f"{row['split_half_jaccard']:.2f}", f"{row['inclusion']:.2f}"]
    ((_, _, drawn),) = draw_sections(material, (PROMPTS,))
    assert "Stability: how much of a circuit" in drawn[0].svg


def test_the_test_items_may_stand_in_another_file(fresh: Path, capitals: Path) -> None:
    other = capitals.with_name("further.jsonl")
    write_jsonl(other, [{key: row[key] for key in ("prompt", "answer", "group")} for row in read_jsonl(capitals)])
    assert call(circuit_discovery.main, discovery(fresh, capitals, "--group", "asia")) == 0
    arguments = evaluation(fresh, capitals, "--source_group", "asia", "--target_group", "asia")
    arguments[arguments.index("--test_data_file") + 1] = str(other)
    assert call(circuit_eval.main, arguments) == 0
    write_json(fresh / "checkpoint-4" / "trainer_state.json", {"global_step": 4, "epoch": 1.0})
    table = facts_of(Run(fresh.parent))
    assert len(table) == 2 and table["hit"].notna().all()


def test_other_facts_are_not_taken_for_the_same_results(fresh: Path, capitals: Path, capsys) -> None:
    assert call(circuit_discovery.main, discovery(fresh, capitals, "--group", "asia")) == 0
    manifest = read_manifest(
        fresh / "checkpoint-0" / "circuit_6" / "group_asia" / "method_EAP-IG" / "capitals_manifest.json"
    )
    assert manifest is not None and manifest.made_from["group"] == "asia" and len(manifest.made_from["prompts"]) == 16
    changed = [row | {"answer": "Rome"} for row in read_jsonl(capitals)]
    write_jsonl(capitals, changed)
    assert call(circuit_discovery.main, discovery(fresh, capitals, "--group", "asia")) == 1
    assert "prompts" in capsys.readouterr().err


def test_a_csv_with_the_columns_of_eap_ig_gives_the_same_scores(fresh: Path, capitals: Path, tokenizer) -> None:
    given = read_jsonl(capitals)
    lines = ["clean,corrupted,correct_idx,incorrect_idx,continent"]
    for row in given:
        pairs = PromptPairs.from_text(
            tokenizer, [row["prompt"]], [row["corrupted"]], [(row["answer"], row["corrupted_answer"])]
        )
        lines.append(f"{row['prompt']},{row['corrupted']},{pairs.labels[0][0]},{pairs.labels[0][1]},{row['group']}")
    csv = capitals.with_name("ids.csv")
    csv.write_text("\n".join(lines) + "\n")
    assert call(circuit_discovery.main, discovery(fresh, capitals)) == 0
    assert call(circuit_discovery.main, discovery(fresh, csv, "--group_by", "continent")) == 0
    assert call(circuit_eval.main, evaluation(fresh, csv, "--group_by", "continent", "--target_group", "asia")) == 0
    for group in CAPITALS:
        base = fresh / "checkpoint-4" / "circuit_6"
        words = read_graph(base / f"group_{group}" / "method_EAP-IG" / "capitals_graph.json")
        ids = read_graph(base / f"continent_{group}" / "method_EAP-IG" / "ids_graph.json")
        assert torch.equal(words.scores, ids.scores)
        (written,) = (base / f"continent_{group}").rglob("*_prediction.jsonl")
        assert written.parent.name == "target_continent_asia"
        assert (
            read_jsonl(written)[0]["ground_truth"]
            == tokenizer.decode([int(next(line for line in lines if "asia" in line).split(",")[2])]).strip()
        )


def test_circuits_of_facts_whose_answers_are_token_ids_are_adopted(fresh: Path, tmp_path: Path, capsys) -> None:
    csv = tmp_path / "ids.csv"
    csv.write_text("clean,corrupted,correct_idx,incorrect_idx\nParis is,Rome is,5,6\nRome is,Paris is,6,5\n")
    assert call(circuit_discovery.main, discovery(fresh, csv)) == call(circuit_eval.main, evaluation(fresh, csv)) == 0
    before = files(fresh)
    for manifest in fresh.rglob("topn_40/ids_manifest.json"):
        manifest.unlink()
    others = tmp_path / "others.csv"
    others.write_text(csv.read_text().replace("5,6", "7,6"))
    assert call(circuit_eval.main, evaluation(fresh, csv, "--test_data_file", str(others), "--adopt")) == 1
    assert "other test items" in capsys.readouterr().err
    assert call(circuit_eval.main, evaluation(fresh, csv, "--adopt")) == 0
    assert files(fresh) == before


def test_pairs_of_other_lengths_are_named_and_left_out_or_paired_anew(tmp_path: Path, tokenizer, fresh, capsys) -> None:
    long = "The capital of a country with a very, very, very, very, very, very, very, very, very, very long name is"
    pairs = [row | {"corrupted": long} if row["country"] == "Poland" else row for row in rows()]
    odd = {"prompt": long, "answer": "Atlantis", "group": "europe"}
    path = tmp_path / "odd.jsonl"
    write_jsonl(path, [*pairs, odd])
    facts = [fact for fact in read_facts(str(path)) if fact.group.name == "europe"]
    plain = match_facts(facts, tokenizer)
    assert {fact.clean for fact in plain.unmatched} >= {prompt("Poland"), long} and plain.anew == 0
    anew = match_facts(facts, tokenizer, pair_anew=True)
    assert [fact.clean for fact in anew.unmatched if fact.clean == long] == [long], "nothing else is as long"
    again = match_facts(facts, tokenizer, pair_anew=True)
    assert anew.pairs.digest == again.pairs.digest and anew.anew == len(anew.pairs) - len(plain.pairs) > 0
    for clean, corrupted, labels in zip(anew.pairs.clean, anew.pairs.corrupted, anew.pairs.labels, strict=True):
        assert len(clean) == len(corrupted) and clean != corrupted and labels[0] != labels[1]
    assert call(circuit_discovery.main, discovery(fresh, path, "--pair_anew")) == 0
    out = capsys.readouterr().out
    left_out = f"odd / europe: 1 without a corrupted prompt of as many tokens left out: line {len(pairs) + 1} ("
    assert left_out in out and all(len(line) < 200 for line in out.splitlines())
    assert "were paired anew" in out


def test_facts_without_a_group_column_are_one_group(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("clean,corrupted,answer,corrupted_answer\nA b,B b,1931,2\n")
    (fact,) = read_facts(str(path))
    assert fact.group == FactGroup("plain", (("group", "all"),)) and fact.answer == "1931"
    several = tmp_path / "several.csv"
    several.write_text("clean,corrupted,answer,corrupted_answer,era,kind_of\nA b,B b,c,d,old,x/y_z\n")
    (fact,) = read_facts(str(several), ["era", "kind_of"])
    assert fact.group.columns == (("era", "old"), ("kind_of", "x/y_z")) and fact.group.name == "old / x/y_z"


@pytest.mark.parametrize("as_words", [True, False])
def test_named_parts_of_own_prompts_have_scores_that_the_viewer_offers(
    fresh: Path, capitals: Path, tokenizer, as_words
) -> None:
    def part(text: str, words: str) -> str | list[int]:
        return words if as_words else [text.index(words), text.index(words) + len(words)]

    given = read_jsonl(capitals)
    named = [row | {"spans": {"country": part(row["prompt"], row["country"])}} for row in given]
    write_jsonl(capitals, named)
    pairs = match_facts([fact for fact in read_facts(str(capitals)) if fact.group.name == "europe"], tokenizer).pairs
    assert pairs.span_names == ("start token", "before country", "country", "after country", "last token")
    for ids, row, spans in zip(pairs.clean, pairs.rows, pairs.spans, strict=True):
        said = tokenizer.decode(ids[slice(*spans["country"])]).strip()
        assert prompt(said) == row["clean"] and spans["last token"] == (len(ids) - 1, len(ids))
    assert call(circuit_discovery.main, discovery(fresh, capitals, "--spans")) == 0
    assert call(circuit_eval.main, evaluation(fresh, capitals)) == 0
    folder = fresh / "checkpoint-4" / "circuit_6" / "group_europe" / "method_EAP-IG"
    graph = read_graph(folder / "capitals_graph.json")
    details = read_details(folder / "capitals_details.safetensors", graph.layout)
    torch.testing.assert_close(details.span_scores.sum(0), graph.scores, rtol=0, atol=1e-5)
    expected = attribute(load_decoder(str(fresh / "checkpoint-4")), pairs, batch_size=8, by_span=True)
    torch.testing.assert_close(details.span_scores, expected.span_scores, rtol=0, atol=1e-6)
    (fresh / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4, "epoch": 1.0}')
    material = read_material(Run(fresh.parent))
    data = material.browser.page_data(None, material.results, material.fact_circuits)
    assert data["spans"] == list(pairs.span_names) and None not in data["groups"][1]["rows"][-1][8]
    write_jsonl(capitals, [row | {"spans": {"question": "The capital"}} for row in given])
    assert call(circuit_discovery.main, discovery(fresh, capitals, "--spans")) == 1
    assert call(circuit_discovery.main, discovery(fresh, capitals, "--spans", "--overwrite")) == 0
    spans = read_details(folder / "capitals_details.safetensors", graph.layout).spans
    assert spans == ("start token", "question", "after question", "last token")


def test_both_programs_score_and_judge_by_whole_answers(fresh: Path, capitals: Path, tokenizer, capsys) -> None:
    flags = ["--metric", "answer_log_probability", "--group", "europe"]
    assert call(circuit_discovery.main, discovery(fresh, capitals, *flags, "--spans", "--stability", "40")) == 0
    flags[2] = "--source_group"
    assert call(circuit_eval.main, evaluation(fresh, capitals, *flags, "--target_group", "europe")) == 0
    path = fresh / "checkpoint-4" / "circuit_6" / "group_europe"
    folder = path / "method_EAP-IG_answer_log_probability"
    facts = [fact for fact in read_facts(str(capitals)) if fact.group.name == "europe"]
    pairs, decoder = match_facts(facts, tokenizer).pairs, load_decoder(str(fresh / "checkpoint-4"))
    for fact, prompt_ids, answer in zip(facts, pairs.clean, pairs.answers, strict=True):
        assert tokenizer.decode([*prompt_ids[1:], *answer]) == f"{fact.clean} {fact.answer}"
    assert max(map(len, pairs.answers)) > 1
    graph = read_graph(folder / "capitals_graph.json")
    expected = attribute(decoder, pairs, metric="answer_log_probability", batch_size=8)
    torch.testing.assert_close(graph.scores, expected.scores)
    assert graph.meta["metric"] == "answer_log_probability" and graph.meta["prompts"] == expected.meta["prompts"]
    details = read_details(folder / "capitals_details.safetensors", graph.layout)
    assert details.spans[-1] == "answer" and details.stability is not None
    circuit = read_graph(folder / "topn_40" / "capitals_graph.json")
    (outcome,) = evaluate(decoder, [circuit], pairs, metric="answer_log_probability")
    results = read_json(folder / "topn_40" / "capitals_results.json")
    assert results["circuit_performance"] == pytest.approx(float(outcome.circuit.mean()), rel=1e-5) and (
        results["clean_baseline_performance"] < 0
    )
    alone = standalone(decoder, circuit, pairs)
    lines = read_jsonl(folder / "topn_40" / "target_group_europe" / "capitals_prediction.jsonl")
    assert [line["token_rank"] for line in lines] == alone.token_rank.tolist(), "predictions are of the first token"
    ids = [row | {"correct_idx": 5, "incorrect_idx": 6} for row in read_jsonl(capitals)]
    for row in ids:
        del row["answer"], row["corrupted_answer"]
    write_jsonl(capitals.with_name("ids.jsonl"), ids)
    arguments = discovery(fresh, capitals.with_name("ids.jsonl"), "--metric", "answer_log_probability")
    assert call(circuit_discovery.main, arguments) == 1
    assert "ids / europe: prompt 1 (The capital of" in (said := capsys.readouterr().err)
    assert "only the first token of its answer is known" in said and "Traceback" not in said


def test_parts_of_a_prompt_become_tokens_that_cover_it(tokenizer) -> None:
    text = "Ann of Tarn was born in"
    spans = token_spans(tokenizer, text, {"name": (0, 3), "town": (7, 11)})
    assert list(spans) == ["start token", "name", "before town", "town", "after town", "last token"]
    ids = [0, *tokenizer(text)["input_ids"]]
    assert "".join(tokenizer.decode(ids[slice(*spans[name])]) for name in list(spans)[1:]) == text
    assert [stop for _, stop in spans.values()] == [*(start for start, _ in list(spans.values())[1:]), len(ids)]
    assert list(token_spans(tokenizer, text, {"all": (0, len(text))})) == ["start token", "all"]
    with pytest.raises(InputError, match=r"two spans of .* have the name 'start token'"):
        token_spans(tokenizer, text, {"start token": (0, 3)})
    with pytest.raises(InputError, match="the span 'rest' has no token of its own"):
        token_spans(tokenizer, text, {"all": (0, len(text)), "rest": (len(text), len(text))})


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ({"a": [3, 40]}, "the span 'a', characters 3 to 40, holds no part of the prompt's 9 characters"),
        ({"a": [4, 4]}, "characters 4 to 4, holds no part"),
        ({"a": [-2, 4]}, "characters -2 to 4, holds no part"),
        ({"a": [3, 4]}, "characters 3 to 4, holds no part"),
        ({"a": [0, 5], "b": [4, 9]}, "the spans 'a' and 'b' overlap in 'Ann and B'"),
        ({"a": "Bob"}, r"the span 'a' must be words that 'Ann and B' has exactly once, not 'Bob'"),
        ({"a": "n"}, "has exactly once, not 'n'"),
        ({"a": " "}, "has exactly once, not ' '"),
        ({"a": [True, 4]}, r"words of the prompt or \[first, end\], not \[True, 4\]"),
        ({"a": [1]}, r"words of the prompt or \[first, end\], not \[1\]"),
        ({"": [0, 3]}, "line 2: .* must be a text that is not empty"),
        (["Ann"], "line 2: 'spans' must be a JSON object"),
        ("{", "line 2, `spans`: not valid JSON"),
        (None, "line 2: no `spans`, which .*line 1 has; name those of all prompts or of none"),
    ],
)
def test_spans_that_are_no_parts_of_the_prompt_are_one_sentence(tmp_path: Path, spans, reason) -> None:
    row = {"prompt": "Ann and B", "corrupted": "Bob and A", "answer": "c", "corrupted_answer": "d"}
    path = tmp_path / "own.jsonl"
    write_jsonl(path, [row | {"spans": {"name": "Ann"}}, row | ({} if spans is None else {"spans": spans})])
    with pytest.raises(InputError, match=reason):
        read_facts(str(path))


def test_spans_stand_in_a_csv_as_json(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text('clean,corrupted,answer,corrupted_answer,spans\nAnn is,Bob is,c,d,"{""name"": "" Ann""}"\n')
    with pytest.raises(InputError, match="has exactly once, not ' Ann'"):
        read_facts(str(path))
    path.write_text('clean,corrupted,answer,corrupted_answer,spans\nAnn is,Bob is,c,d,"{""name"": [0, 4]}"\n')
    assert read_facts(str(path))[0].spans == {"name": (0, 3)}


IDS = "clean,corrupted,correct_idx,incorrect_idx\n"
HEAD = "clean,corrupted,answer,corrupted_answer,group\n"


@pytest.mark.parametrize(
    ("content", "flags", "reason"),
    [
        ("", [], "holds no prompts"),
        (HEAD, [], "holds no prompts"),
        (HEAD + "A b,B b,,d,g\n", [], "line 2: no answer under `answer`, .*, only clean, corrupted, corrupted_answer"),
        (HEAD + "A b,B b,c,,g\n", [], "line 2: no answer to the corrupted prompt"),
        (HEAD + "A b,B b,c,d,\n", [], "line 2: 'group' must be a text of 1 to 80 characters"),
        (HEAD + "A b,B b,c,d," + "g" * 81 + "\n", [], "line 2: 'group' must be a text of 1 to 80 characters"),
        (HEAD + ",B b,c,d,g\n", [], "line 2: no prompt under `clean` or `prompt`, only corrupted, answer"),
        (HEAD + "A b,B b,c,d,g\n", ["--group_by", "era"], "no column 'era' to group by, only clean, corrupted"),
        (HEAD + "A b,B b,c,d,g\n", ["--group", "h"], "no group 'h', only g"),
        (HEAD + "A b,B b,c,d,g\n", ["--task", "city"], "--task does not go with .*own.csv"),
        (HEAD + "A b,B b,c,d,g\n", ["--frequency", "low"], "--frequency does not go with .*own.csv"),
        (HEAD + "A b,B b b b b b,c,d,g\n", [], "no clean prompt has a corrupted one with as many tokens; --pair_anew"),
        (HEAD + "A b,B b b b b b,c,d,g\n", ["--pair_anew"], "no clean prompt has a corrupted one with as many tokens"),
        (
            "clean,corrupted,correct_idx,incorrect_idx\nA b,B b,x,3\n",
            [],
            "line 2: 'correct_idx' must be a whole number",
        ),
        ("clean,corrupted,correct_idx,incorrect_idx\nA b,B b,99999,3\n", [], "token id 99999 is outside the model's"),
        (IDS + "A b,B b,2,3\n", ["--ensemble", "EAP_answer_log_probability"], "whole answers"),
        ("promt;answer\n1;2\n", [], "line 2: no prompt under `clean` or `prompt`, only promt;answer"),
        ("clean,method_of\nA,b\n", ["--group_by", "method_of"], "cannot stand in a folder's name"),
    ],
)
def test_a_bad_file_of_facts_is_one_sentence(fresh: Path, tmp_path: Path, capsys, content, flags, reason) -> None:
    path = tmp_path / "own.csv"
    path.write_text(content)
    assert call(circuit_discovery.main, discovery(fresh, path, *flags)) == 1
    error = capsys.readouterr().err
    assert re.search(reason, error), error
    assert not list(fresh.rglob("*_graph.json"))


def test_a_file_of_facts_of_another_form_is_refused_by_its_name(fresh: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "own.tsv"
    path.write_text(HEAD.replace(",", "\t"))
    assert call(circuit_discovery.main, discovery(fresh, path)) == 1
    assert "own.tsv: prompts and people are read from .csv, .json and .jsonl" in capsys.readouterr().err


def test_predictions_need_answers_in_words_and_people_no_groups(fresh: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "ids.csv"
    path.write_text(IDS + "A b,B b,2,3\n")
    asks = ["--model_name_or_path", str(fresh), "--input_file", str(path), "--threads", "1"]
    assert call(predict.main, asks) == 1
    assert "ids.csv, line 2: whole answers are compared, so give `answer` in words" in capsys.readouterr().err
    people = tmp_path / "test.jsonl"
    write_jsonl(people, tiny.entities(2))
    assert call(predict.main, [*asks[:3], str(people), "--group_by", "type"]) == 1
    assert "--group_by does not go with" in capsys.readouterr().err


def test_groups_that_would_have_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    for (one, two), name in (
        ((("x / y", "z"), ("x", "y / z")), "x / y / z"),
        ((("x/y", "z"), ("x", "y/z")), "x/y/z"),
    ):
        rows = [{"prompt": f"{p} {r} is", "answer": "c", "p": p, "r": r} for p, r in (one, two, one)]
        path.write_text(json.dumps(rows))
        said = f"the groups p {one[0]!r}, r {one[1]!r} and p {two[0]!r}, r {two[1]!r} would both be called {name!r}"
        with pytest.raises(InputError, match=re.escape(said)):
            read_facts(str(path), ["p", "r"])
        assert len({fact.group for fact in read_facts(str(path), ["p"])}) == 2


def test_predictions_without_a_manifest_are_adopted_if_they_answer_the_same_prompts(
    fresh: Path, capitals: Path, capsys
) -> None:
    asks = ["--model_name_or_path", str(fresh), "--input_file", str(capitals), "--threads", "1"]
    assert call(predict.main, asks) == 0
    before = files(fresh)
    for manifest in fresh.rglob("capitals_prediction_manifest.json"):
        manifest.unlink()
    assert call(predict.main, asks) == 1
    assert "--adopt" in capsys.readouterr().err
    assert call(predict.main, [*asks, "--adopt"]) == 0
    assert "0 done, 2 were there already" in capsys.readouterr().out and files(fresh) == before
    next(fresh.rglob("capitals_prediction_manifest.json")).unlink()
    for other in (["--group_by", "country"], ["--max_predict_samples", "2"]):
        assert call(predict.main, [*asks, "--adopt", *other]) == 1
        assert "capitals_prediction.jsonl answers other queries" in capsys.readouterr().err


def test_a_prompt_with_two_answers_cannot_be_paired_anew(tmp_path: Path, tokenizer) -> None:
    path = tmp_path / "twice.json"
    path.write_text(json.dumps([{"prompt": "A b", "answer": "c"}, {"prompt": "A b", "answer": "d"}]))
    facts = read_facts(str(path))
    assert len(match_facts(facts, tokenizer).unmatched) == 2, "without a flag a prompt without partner is left out"
    with pytest.raises(InputError, match=r"twice.json, item 2: 'A b' has two answers in its group"):
        match_facts(facts, tokenizer, pair_anew=True)


def test_the_study_s_data_refuse_the_flags_of_own_facts(fresh: Path, capitals: Path, tmp_path: Path, capsys) -> None:
    study = tmp_path / "city.jsonl"
    row = {"clean_subject": "A", "clean_label": " x", "clean_label_idx": 1, "frequency": 1, "type": "new"}
    write_jsonl(study, [row | {"corrupted_subject": "B", "corrupted_label": " y", "corrupted_label_idx": 2}])
    assert call(circuit_discovery.main, discovery(fresh, study, "--group_by", "type")) == 1
    assert "--group_by does not go with" in capsys.readouterr().err
    assert call(circuit_discovery.main, discovery(fresh, capitals)) == 0
    arguments = evaluation(fresh, capitals)
    arguments[arguments.index("--test_data_file") + 1] = str(study)
    assert call(circuit_eval.main, arguments) == 1
    assert "one of the two data files holds facts of one's own" in capsys.readouterr().err


def test_several_sizes_are_the_same_files_as_one_after_the_other(fresh: Path, capitals: Path, tmp_path: Path) -> None:
    assert call(circuit_discovery.main, discovery(fresh, capitals)) == 0
    other = Path(shutil.copytree(fresh, tmp_path / "other"))
    assert call(circuit_eval.main, [*evaluation(fresh, capitals), "--topn", "40", "20", "30"]) == 0
    for size in ("20", "30", "40"):
        assert call(circuit_eval.main, [*evaluation(other, capitals), "--topn", size]) == 0
    together = {path.relative_to(fresh): path for path in fresh.rglob("topn_*/**/*.json*")}
    apart = {path.relative_to(other): path for path in other.rglob("topn_*/**/*.json*")}
    assert set(together) == set(apart) and len({path.parts[4] for path in together}) == 3
    for name, path in together.items():
        if name.name.endswith("_results.json"):
            here, there = read_json(path), read_json(apart[name])
            assert {**here, "model_path": ""} == {**there, "model_path": ""}
        elif not name.name.endswith("_manifest.json"):
            assert path.read_bytes() == apart[name].read_bytes(), name
