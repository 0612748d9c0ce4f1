"""circuit_discovery.py and circuit_eval.py: what they write, what they skip, how they refuse bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from families import FAMILIES, save_family
from tiny import byte_level_tokenizer, save_tiny_gpt2, save_tiny_llama
from tiny_run import ONE_GROUP, TinyRun, call, files, make_run

import circuit_discovery
import circuit_eval
from knowledge_circuits import study
from knowledge_circuits.analysis.circuit_settings import Setting
from knowledge_circuits.analysis.run_circuits import read_circuits
from knowledge_circuits.engine import floors
from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.evaluation import evaluate
from knowledge_circuits.engine.graph import layout_of
from knowledge_circuits.engine.graph_files import read_details, read_graph, write_graph
from knowledge_circuits.engine.selection import mean_scores, prune, top_n
from knowledge_circuits.engine.stability import Resampling
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError, read_json, read_jsonl, write_json, write_jsonl
from knowledge_circuits.manifest import read_manifest
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import Checkpoint, CircuitFolder, Run, checkpoints
from knowledge_circuits.study import Attribute, Band, Group, KnowledgeType, group_columns, groups
from knowledge_circuits.sweeps import model_loader, programs
from knowledge_circuits.sweeps.chosen_circuits import find_origins
from knowledge_circuits.sweeps.groups import GroupData, read_groups
from knowledge_circuits.sweeps.model_loader import ModelLoader
from knowledge_circuits.sweeps.targets import TestItems

ROOT = Path(__file__).parents[1]
CITY_NEW_HIGH = Group(Attribute.CITY, KnowledgeType.NEW, Band.HIGH)
CITY = ["--task", "city"]
ONE_SOURCE = ["--task", "city", "--source_type", "new", "--source_frequency", "high"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run after both programs with all groups. Read only: copy it before changing it."""
    run = make_run(tmp_path_factory.mktemp("runs") / "run")
    assert call(circuit_discovery.main, run.discovery()) == 0
    assert call(circuit_eval.main, run.evaluation("--topn", "40")) == 0
    return run


@pytest.fixture
def copy(finished: TinyRun, tmp_path: Path) -> TinyRun:
    """A finished run to change."""
    return TinyRun(Path(shutil.copytree(finished.folder, tmp_path / "run")))


@pytest.fixture
def fresh(copy: TinyRun) -> TinyRun:
    """A run without any circuits."""
    for circuits in copy.checkpoints.glob("*/circuit_*"):
        shutil.rmtree(circuits)
    return copy


def circuits_of(run: TinyRun, step: int = 4, group: Group = CITY_NEW_HIGH) -> CircuitFolder:
    (checkpoint,) = checkpoints(str(run.checkpoints / f"checkpoint-{step}"))
    return checkpoint.circuit_folder(6, group, "EAP-IG")


def test_every_checkpoint_and_group_has_a_graph_results_and_predictions(finished):
    for step in (0, 4):
        for group in groups():
            folder = circuits_of(finished, step, group)
            assert folder.graph().is_file() and folder.circuit(40).is_file() and folder.results(40).is_file()
            for target in groups([group.task]):
                assert len(read_jsonl(folder.predictions(40, target.columns))) == 12


def test_the_graph_is_the_librarys_with_its_origin(finished):
    graph = read_graph(circuits_of(finished).graph())
    path = str(finished.checkpoints / "checkpoint-4")
    (data,) = read_groups(finished.circuit_data, [CITY_NEW_HIGH], limit=6)
    expected = attribute(load_decoder(path), data.pairs(load_tokenizer(path)), batch_size=8)
    torch.testing.assert_close(graph.scores, expected.scores)
    assert bool(graph.in_graph[graph.layout.real_edges].all())
    said = {"task": "city", "type": "new", "frequency": "high", "checkpoint": "checkpoint-4", "method": "EAP-IG"}
    assert said.items() <= graph.meta.items()
    assert graph.meta["examples"] == 6 and graph.meta["ig_steps"] == 5
    assert str(finished.folder) not in circuits_of(finished).graph().read_text()


def test_results_are_those_of_the_pruned_circuit(finished):
    folder = circuits_of(finished)
    results = read_json(folder.results(40))
    circuit = prune(top_n(read_graph(folder.graph()), 40))
    assert torch.equal(read_graph(folder.circuit(40)).in_graph, circuit.in_graph)
    assert (results["edges_num"], results["nodes_num"]) == (circuit.n_edges, circuit.n_nodes)
    path = str(finished.checkpoints / "checkpoint-4")
    (data,) = read_groups(finished.circuit_data, [CITY_NEW_HIGH], limit=6)
    (expected,) = evaluate(load_decoder(path), [circuit], data.pairs(load_tokenizer(path)))
    assert results["circuit_performance"] == pytest.approx(float(expected.circuit.mean()), rel=1e-4)
    assert results["faithfulness"] == pytest.approx(expected.faithfulness, rel=1e-2)
    keys = """task method topn model model_path type frequency clean_baseline_performance corrupted_baseline_performance
        circuit_performance edges_num nodes_num edge_entropy faithfulness
        prompts clean_minus_corrupted_low clean_minus_corrupted_high chance_hit10"""
    assert list(results) == keys.split()


def test_results_say_how_many_prompts_and_how_sure_clean_minus_corrupted_is(finished):
    results = read_json(circuits_of(finished).results(40))
    gap = results["clean_baseline_performance"] - results["corrupted_baseline_performance"]
    assert results["prompts"] == 6
    assert results["clean_minus_corrupted_low"] < gap < results["clean_minus_corrupted_high"]
    labels = [row["clean_label"] for row in read_jsonl(circuits_of(finished).predictions(40, CITY_NEW_HIGH.columns))]
    commonest = sorted((labels.count(label) for label in set(labels)), reverse=True)[:10]
    assert results["chance_hit10"] >= sum(commonest) / len(labels)  # texts may share a first token
    assert "random_hit10" not in results


def test_floors_are_random_circuits_of_the_same_size_and_other_sizes(copy):
    assert (
        call(circuit_eval.main, copy.evaluation("--topn", "40", "--floors", *ONE_SOURCE)) == 0
    )  # made again, with them
    folder = circuits_of(copy)
    results, graph, circuit = read_json(folder.results(40)), read_graph(folder.graph()), read_graph(folder.circuit(40))
    decoder = load_decoder(str(copy.checkpoints / "checkpoint-4"))
    (data,) = read_groups(copy.circuit_data, [CITY_NEW_HIGH], limit=6)
    pairs = data.pairs(load_tokenizer(str(copy.checkpoints / "checkpoint-4")))
    randoms = floors.random_circuits(graph.layout, circuit.n_edges, decoder.d_model)
    expected = [one.faithfulness for one in evaluate(decoder, randoms, pairs)]
    assert results["random_faithfulness"] == pytest.approx(sum(expected) / 5, rel=1e-4, abs=1e-6)
    assert 0 <= results["random_hit10"] <= 1
    assert results["edges_for_90"] is None or 0 < results["edges_for_90"] <= graph.layout.n_edges


def test_predictions_repeat_the_persons_keys(finished):
    rows = read_jsonl(circuits_of(finished).predictions(40, group_columns("revised", "low")))
    people = {person["full_name"]: person for person in read_jsonl(finished.test_data)}
    for row in rows:
        person = people[row["full_name"]]
        assert person.items() <= row.items()
        assert row["ground_truth"] == person["city"] and row["clean_label"] == " " + person["city"]
        assert (person["type"], person["frequency"]) == ("revised", 1)
        assert 0 < row["token_prob"] < 1 and type(row["token_rank"]) is int and row["token_rank"] >= 0


def test_a_circuit_of_all_edges_predicts_what_the_model_predicts(copy):
    edges = read_graph(circuits_of(copy).graph()).layout.n_edges
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", str(edges))) == 0
    results = read_json(circuits_of(copy).results(edges))
    assert results["faithfulness"] == pytest.approx(1, abs=1e-2) and results["edges_num"] == edges


def both(run: TinyRun, *flags: str) -> tuple[int, int]:
    """The exit statuses of both programs over the groups of one task."""
    discovered = call(circuit_discovery.main, run.discovery(*CITY, *flags))
    return discovered, call(circuit_eval.main, run.evaluation(*CITY, "--topn", "40", *flags))


def portable(content: dict[str, bytes]) -> dict[str, bytes]:
    """The files that are the same bytes wherever the run lies: results state the model's path."""
    return {
        name: data
        for name, data in content.items()
        if not (name.endswith("_results.json") or ("topn_40/" in name and name.endswith("_manifest.json")))
    }


def test_finished_work_is_skipped_and_nothing_changes(copy, capsys):
    before = files(copy.checkpoints)
    assert both(copy, "--verify") == (0, 0)
    assert capsys.readouterr().out.count("0 done, 12 were there already, 0 failed") == 2
    assert files(copy.checkpoints) == before


@pytest.mark.parametrize(
    ("flags", "said"), [(["--ig_steps", "3"], "ig_steps 5, now 3"), (["--dtype", "float64"], "dtype 'float32', now")]
)
def test_work_of_other_settings_is_not_taken_for_finished(copy, capsys, flags, said):
    before = files(copy.checkpoints)
    assert call(circuit_discovery.main, copy.discovery(*CITY, *flags)) == 1
    assert said in (refusal := capsys.readouterr().err) and "12 results are" in refusal and "--overwrite" in refusal
    assert files(copy.checkpoints) == before
    # Graphs that are recomputed leave circuits behind that are not theirs.
    assert call(circuit_discovery.main, copy.discovery(*CITY, *flags, "--overwrite")) == 0
    assert call(circuit_eval.main, copy.evaluation(*CITY, "--topn", "40")) == 1
    assert "graph " + said in capsys.readouterr().err
    assert call(circuit_eval.main, copy.evaluation(*CITY, "--topn", "40", "--overwrite")) == 0
    assert call(circuit_eval.main, copy.evaluation(*CITY, "--topn", "40")) == 0


def test_graphs_of_other_prompts_are_not_taken_for_finished(copy, capsys):
    data = copy.circuit_data.replace("{task}", "city")
    write_jsonl(data, reversed(read_jsonl(data)))
    assert call(circuit_discovery.main, copy.discovery(*CITY)) == 1
    assert re.search(r"prompts '[0-9a-f]{16}', now '[0-9a-f]{16}'", capsys.readouterr().err)


def test_predictions_of_other_test_items_are_not_taken_for_finished(copy, capsys):
    write_jsonl(copy.test_data, read_jsonl(copy.test_data)[:-20])
    assert call(circuit_eval.main, copy.evaluation(*CITY, "--topn", "40")) == 1
    assert "test items new/low '" in capsys.readouterr().err
    assert call(circuit_eval.main, copy.evaluation(*CITY, "--topn", "40", "--overwrite")) == 0


def test_graphs_of_other_weights_are_not_taken_for_finished(copy, capsys):
    save_tiny_gpt2(copy.checkpoints / "checkpoint-4", seed=9)
    assert both(copy) == (1, 1)
    assert capsys.readouterr().err.count("weights '") >= 2


def test_circuits_are_not_taken_from_a_graph_of_weights_that_were_edited_since(copy, capsys):
    path = copy.checkpoints / "checkpoint-4" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["transformer.h.1.mlp.c_proj.weight"].zero_()
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    assert call(circuit_eval.main, copy.evaluation(*CITY, "--topn", "40", "--overwrite")) == 1
    assert "the graph is of other settings (weights" in capsys.readouterr().err


@pytest.mark.parametrize("keep", [0, 300])
def test_missing_and_cut_files_are_made_again_byte_for_byte(copy, capsys, keep):
    before = files(copy.checkpoints)
    circuits_of(copy, 0).graph().unlink()
    circuits_of(copy, 0).results(40).unlink()
    graph = circuits_of(copy).graph()
    graph.write_bytes(graph.read_bytes()[:keep])
    predictions = circuits_of(copy).predictions(40, group_columns("new", "low"))
    predictions.write_bytes(predictions.read_bytes()[:keep])
    assert call(circuit_eval.main, copy.evaluation(*CITY, "--topn", "40")) == 1
    assert "run circuit_discovery.py" in capsys.readouterr().err, "a circuit is not made from a damaged graph"
    assert both(copy) == (0, 0)
    assert "2 results are damaged and made again" in capsys.readouterr().out
    assert portable(files(copy.checkpoints)) == portable(before)


def test_an_interrupted_unit_is_made_again(copy):
    before = files(copy.checkpoints)
    for manifest in (circuits_of(copy).manifest, circuits_of(copy).circuit_manifest(40)):
        content = read_json(manifest)
        write_json(manifest, {**content, "finished": False})
    assert both(copy) == (0, 0)
    assert portable(files(copy.checkpoints)) == portable(before)


def test_a_graph_of_another_group_or_checkpoint_in_its_place_is_refused(copy, capsys):
    other_group = Group(Attribute.CITY, KnowledgeType.REVISED, Band.LOW)
    for other, said in (
        (circuits_of(copy, 0), "checkpoint 'checkpoint-0'"),
        (circuits_of(copy, 4, other_group), "type"),
    ):
        shutil.copy(other.graph(), circuits_of(copy).graph())
        circuits_of(copy).manifest.unlink(missing_ok=True)
        assert said in refused(capsys, circuit_eval.main, copy.evaluation("--topn", "35", *ONE_SOURCE))
        assert said in refused(capsys, circuit_discovery.main, copy.discovery("--adopt", *ONE_GROUP))


def test_scores_that_were_exchanged_within_a_graph_are_noticed(copy, capsys):
    path = circuits_of(copy).graph()
    first, second = re.findall(r'"score": ([^,]{8,}),', path.read_text())[:2]
    text = path.read_text().replace(first, "#").replace(second, first).replace("#", second)
    path.write_text(text)
    assert "other content" in refused(capsys, circuit_eval.main, copy.evaluation("--topn", "35", *ONE_SOURCE))
    assert call(circuit_discovery.main, copy.discovery("--verify", *ONE_GROUP)) == 0
    assert "made again" in capsys.readouterr().out and path.read_text() != text


def test_results_of_an_older_version_are_adopted_if_they_agree_with_the_settings(copy, capsys):
    before = files(copy.checkpoints)
    for manifest in copy.checkpoints.rglob("city_manifest.json"):
        manifest.unlink()
    assert both(copy) == (1, 1)
    assert capsys.readouterr().err.count("12 results are without a manifest") == 2
    assert "ig_steps 5, now 3" in refused(
        capsys, circuit_discovery.main, copy.discovery(*CITY, "--adopt", "--ig_steps", "3")
    )
    assert both(copy, "--adopt") == (0, 0)
    assert capsys.readouterr().out.count("0 done, 12 were there already") == 2
    assert files(copy.checkpoints) == before


def test_circuits_of_a_checkpoint_that_is_gone_are_adopted(copy):
    before = files(copy.checkpoints / "checkpoint-4" / "circuit_6")
    for manifest in copy.checkpoints.rglob("topn_40/city_manifest.json"):
        manifest.unlink()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (copy.checkpoints / "checkpoint-4" / name).unlink()
    assert call(circuit_eval.main, copy.evaluation(*CITY, "--topn", "40", "--adopt")) == 0
    assert files(copy.checkpoints / "checkpoint-4" / "circuit_6").keys() == before.keys()


def test_details_that_are_not_there_are_not_adopted(copy):
    circuits_of(copy).manifest.unlink()
    assert call(circuit_discovery.main, copy.discovery(*ONE_GROUP, "--adopt", "--stability", "40", "--spans")) == 0
    graph = read_graph(circuits_of(copy).graph())
    details = read_details(circuits_of(copy).details, graph.layout)
    assert details.stability is not None and details.spans


def test_a_circuit_that_says_less_of_its_scores_than_its_graph_is_not_adopted(copy, capsys):
    path = circuits_of(copy).circuit(40)
    content = read_json(path)
    del content["meta"]["prompts"]
    write_json(path, content)
    circuits_of(copy).circuit_manifest(40).unlink()
    sentence = refused(capsys, circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "40", "--adopt"))
    assert "city_graph.json was made with prompts None, now '" in sentence


@pytest.mark.parametrize("flags", [[], ["--signed"], ["--same_sign", "0.9"], ["--ensemble", "EAP"]])
def test_a_circuit_is_adopted_only_with_the_edges_that_its_settings_choose(copy, capsys, flags):
    scoring = copy.discovery(*ONE_GROUP, "--ensemble", "EAP", "--stability", "40", "--overwrite")
    assert call(circuit_discovery.main, scoring) == 0
    arguments = copy.evaluation(*ONE_SOURCE, "--topn", "35", *flags)
    assert call(circuit_eval.main, [*arguments, "--overwrite"]) == 0
    (manifest,) = (copy.checkpoints / "checkpoint-4").rglob("topn_35/city_manifest.json")
    written = manifest.read_text()
    manifest.unlink()
    assert call(circuit_eval.main, [*arguments, "--adopt"]) == 0
    assert manifest.read_text() == written

    path = manifest.with_name("city_graph.json")
    circuit = read_graph(path)
    write_graph(path, top_n(circuit, circuit.n_edges - 1))
    manifest.unlink()
    sentence = refused(capsys, circuit_eval.main, [*arguments, "--adopt"])
    assert "city_graph.json was made with other edges than these settings choose" in sentence


def test_predictions_for_more_targets_join_those_that_are_there(copy, capsys):
    few = copy.evaluation(*ONE_SOURCE, "--topn", "35", "--target_type", "new", "--target_frequency", "high")
    assert call(circuit_eval.main, few) == 0
    assert call(circuit_eval.main, [*few[:-3], "revised", "--target_frequency", "low"]) == 0
    listed = read_manifest(circuits_of(copy).circuit_manifest(35)).files
    assert sum(name.endswith("_prediction.jsonl") for name in listed) == 2
    capsys.readouterr()
    assert call(circuit_eval.main, few) == 0
    assert "0 done, 2 were there already" in capsys.readouterr().out


@pytest.mark.parametrize("floors_first", [True, False])
def test_results_do_not_depend_on_the_order_in_which_targets_and_floors_were_asked_for(copy, floors_first):
    arguments = copy.evaluation(*ONE_SOURCE, "--topn", "35")
    own = ["--target_type", "new", "--target_frequency", "high", *["--floors"] * floors_first]
    other = ["--target_type", "revised", "--target_frequency", "low", *["--floors"] * (not floors_first)]
    for flags in (own, other, [*own, "--floors"]):
        assert call(circuit_eval.main, [*arguments, *flags]) == 0
    path = circuits_of(copy).results(35)
    results, made_from = read_json(path), read_manifest(circuits_of(copy).circuit_manifest(35)).made_from
    assert made_from["floors"] and {"test items new/high", "test items revised/low"} < made_from.keys()
    assert call(circuit_eval.main, [*arguments, "--floors", "--overwrite"]) == 0
    assert results == read_json(path) and None not in (results["chance_hit10"], results["random_hit10"])


def test_floors_of_a_results_file_that_was_changed_are_not_kept(copy):
    arguments = copy.evaluation(*ONE_SOURCE, "--topn", "35", "--target_type", "new", "--target_frequency", "high")
    assert call(circuit_eval.main, [*arguments, "--floors"]) == 0
    path = circuits_of(copy).results(35)
    changed = re.sub(r'("random_hit10": [\d.]*)(\d)', lambda found: f"{found[1]}{9 - int(found[2])}", path.read_text())
    path.write_text(changed)
    assert call(circuit_eval.main, [*arguments, "--verify"]) == 0
    assert "random_hit10" not in read_json(path)


def test_results_without_floors_are_not_adopted_as_results_with_floors(copy):
    arguments = copy.evaluation(*ONE_SOURCE, "--topn", "40", "--adopt")
    circuits_of(copy).circuit_manifest(40).unlink()
    assert call(circuit_eval.main, [*arguments, "--floors"]) == 0
    assert "random_faithfulness" in read_json(circuits_of(copy).results(40))


def test_overwriting_removes_only_files_that_the_manifest_lists(copy):
    notes = circuits_of(copy).topn_folder(40) / "notes.txt"
    notes.write_text("the user's own")
    arguments = copy.evaluation(*ONE_SOURCE, "--topn", "40", "--overwrite", "--target_type", "new")
    assert call(circuit_eval.main, arguments) == 0
    assert notes.exists() and circuits_of(copy).predictions(40, group_columns("new", "low")).exists()
    assert not circuits_of(copy).predictions(40, group_columns("revised", "low")).exists()


def test_another_metric_and_intervention_have_their_own_folders(copy):
    flags = ["--metric", "kl_divergence", "--gradient", "gim"]
    assert call(circuit_discovery.main, copy.discovery(*ONE_GROUP, *flags)) == 0
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "40", *flags, "--intervention", "zero")) == 0
    (checkpoint,) = checkpoints(str(copy.checkpoints / "checkpoint-4"))
    folder = checkpoint.circuit_folder(6, CITY_NEW_HIGH, "EAP-IG_gim_kl_divergence", "zero")
    assert read_graph(folder.graph()).meta["metric"] == "kl_divergence"
    assert read_json(folder.results(40))["method"] == "EAP-IG_gim_kl_divergence"
    assert "topn_40_zero" in str(folder.results(40))


def test_the_studys_circuits_may_be_those_of_whole_answers(copy):
    flags = ["--metric", "answer_log_probability"]
    assert call(circuit_discovery.main, copy.discovery(*ONE_GROUP, *flags)) == 0
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "40", *flags)) == 0
    (checkpoint,) = checkpoints(str(copy.checkpoints / "checkpoint-4"))
    folder = checkpoint.circuit_folder(6, CITY_NEW_HIGH, "EAP-IG_answer_log_probability")
    tokenizer = load_tokenizer(checkpoint.path)
    pairs = read_groups(copy.circuit_data, [CITY_NEW_HIGH], 6)[0].pairs(tokenizer)
    for prompt, answer, row in zip(pairs.clean, pairs.answers, pairs.rows, strict=True):
        assert tokenizer.decode([*prompt, *answer]).endswith(f"lives in the city of{row['clean_label']}")
    (expected,) = evaluate(
        load_decoder(checkpoint.path), [read_graph(folder.circuit(40))], pairs, metric="answer_log_probability"
    )
    assert read_json(folder.results(40))["faithfulness"] == pytest.approx(expected.faithfulness, rel=1e-3)


@pytest.mark.parametrize("suffix", ["json.gz", "pt"])
def test_other_formats_hold_the_same_graph_and_replace_it_when_overwriting(finished, copy, suffix):
    arguments = [*ONE_GROUP, "--format", suffix, "--overwrite"]
    assert call(circuit_discovery.main, copy.discovery(*arguments)) == 0
    folder = circuits_of(copy)
    assert not folder.graph().exists()
    original = read_graph(circuits_of(finished).graph())
    assert torch.equal(read_graph(folder.graph(f".{suffix}")).scores, original.scores)
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "30", "--format", suffix)) == 0
    assert read_graph(folder.circuit(30, f".{suffix}")).n_edges == read_json(folder.results(30))["edges_num"]


def test_topn_is_by_default_a_quarter_of_the_edges_and_said(copy, capsys):
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE)) == 0
    quarter = read_graph(circuits_of(copy).graph()).layout.n_edges // 4
    assert f"--topn is {quarter}, the default of --model" in capsys.readouterr().out
    assert circuits_of(copy).results(quarter).exists()


def test_several_values_mean_their_product(fresh):
    arguments = ["--task", "city", "major", "--type", "new", "revised", "--frequency", "low", "high"]
    assert call(circuit_discovery.main, fresh.discovery(*arguments)) == 0
    found = {path.relative_to(fresh.checkpoints) for path in fresh.checkpoints.rglob("*_graph.json")}
    assert len(found) == 2 * 8
    assert {path.name for path in found} == {"city_graph.json", "major_graph.json"}


def test_results_go_to_the_output_folder_when_asked(fresh, tmp_path):
    arguments = [*ONE_GROUP, "--output_dir", str(tmp_path / "elsewhere")]
    assert call(circuit_discovery.main, fresh.discovery(*arguments)) == 0
    assert not list(fresh.checkpoints.rglob("*_graph.json"))
    assert len(list((tmp_path / "elsewhere" / "checkpoint-4").rglob("city_graph.json"))) == 1


def test_the_test_items_may_be_circuit_data(copy):
    arguments = copy.evaluation(*ONE_SOURCE, "--topn", "33", "--target_type", "new", "--target_frequency", "low")
    arguments[arguments.index("--test_data_file") + 1] = copy.circuit_data
    assert call(circuit_eval.main, arguments) == 0
    rows = read_jsonl(circuits_of(copy).predictions(33, group_columns("new", "low")))
    asked = [row for row in read_jsonl(copy.circuit_data.format(task="city")) if row["type"] == "new"]
    assert [row["clean_subject"] for row in rows] == [row["clean_subject"] for row in asked if row["frequency"] == 1]


def test_without_test_items_there_are_results_and_no_predictions(copy):
    arguments = copy.evaluation(*ONE_SOURCE, "--topn", "33")
    place = arguments.index("--test_data_file")
    assert call(circuit_eval.main, arguments[:place] + arguments[place + 2 :]) == 0
    assert circuits_of(copy).results(33).exists() and not list(circuits_of(copy).topn_folder(33).glob("target*"))


def test_a_transferred_circuit_keeps_its_topology_in_other_weights(copy):
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "40", "--circuit_from", "0", "4")) == 0
    there, here = circuits_of(copy, 0), circuits_of(copy, 4)
    transferred = read_graph(here.circuit(40, origin=0))
    assert torch.equal(transferred.in_graph, read_graph(there.circuit(40)).in_graph)
    results, own = read_json(here.results(40, 0)), read_json(here.results(40))
    assert results["circuit_from"] == 0 and results["edges_num"] == read_json(there.results(40))["edges_num"]
    assert results["clean_baseline_performance"] == own["clean_baseline_performance"]
    assert results["circuit_performance"] != own["circuit_performance"]
    assert len(read_jsonl(here.predictions(40, group_columns("new", "low"), 0))) == 12
    here_again = {"model_path": str(copy.checkpoints / "checkpoint-4"), "circuit_from": 4}
    assert read_json(here.results(40, 4)) == own | here_again


def test_a_transferred_circuit_may_come_from_a_folder(copy):
    origin = str(copy.checkpoints / "checkpoint-0")
    arguments = copy.evaluation(*ONE_SOURCE, "--topn", "40", "--circuit_from", origin)
    arguments[arguments.index("--model_path") + 1] = str(copy.checkpoints / "checkpoint-4")
    assert call(circuit_eval.main, arguments) == 0
    assert circuits_of(copy).results(40, 0).exists()


def test_a_loader_loads_a_checkpoint_once(finished):
    first, second = checkpoints(str(finished.checkpoints))
    loader = ModelLoader(torch.device("cpu"), "float32")
    model = loader.load(first)
    assert loader.load(first) is model
    assert loader.load(second) is not model and loader.load(second).checkpoint == second


def test_two_processes_write_the_same_bytes_as_one(finished, fresh):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = fresh.discovery("--task", "city")
    program = [*launcher, str(ROOT / "circuit_discovery.py"), *arguments]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "12 done" in done.stdout
    written = files(fresh.checkpoints)
    expected = files(finished.checkpoints)
    graphs = [name for name in written if name.endswith("city_graph.json")]
    assert len(graphs) == 12 and all(written[name] == expected[name] for name in graphs)


# --- bad input: one clear sentence, a non-zero exit, nothing half-written --------------------------------------------


def refused(capsys, main, arguments: list[str]) -> str:
    """The sentence on standard error with which a program refuses its arguments."""
    capsys.readouterr()
    assert call(main, arguments) != 0
    sentence = capsys.readouterr().err
    assert "Traceback" not in sentence
    return sentence


def test_misspelt_names_are_answered_with_the_valid_ones(fresh, capsys):
    for flag, wrong, valid in [
        ("--task", "citty", "city, company, major"),
        ("--type", "old", "new, revised"),
        ("--frequency", "hihg", "low, medium, high"),
        ("--method", "IG", "EAP, EAP-IG, clean-corrupted"),
    ]:
        assert valid in refused(capsys, circuit_discovery.main, fresh.discovery(flag, wrong))


def test_a_missing_data_file_is_named(fresh, capsys):
    Path(fresh.circuit_data.format(task="major")).unlink()
    assert "major.jsonl: no such file" in refused(capsys, circuit_discovery.main, fresh.discovery())
    assert not list(fresh.checkpoints.rglob("*_graph.json"))


def test_a_malformed_line_is_named(fresh, capsys):
    path = Path(fresh.circuit_data.format(task="city"))
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:2], "\n", lines[2][:-5], *lines[3:]]))
    assert "city.jsonl, line 5" in refused(capsys, circuit_discovery.main, fresh.discovery())


def test_a_missing_key_is_named_with_its_line(fresh, capsys):
    path = Path(fresh.circuit_data.format(task="city"))
    rows = read_jsonl(path)
    del rows[3]["clean_label_idx"]
    write_jsonl(path, rows)
    assert "line 4: no key 'clean_label_idx'" in refused(capsys, circuit_discovery.main, fresh.discovery())


def test_a_checkpoint_without_weights_is_named_and_the_other_goes_on(fresh, capsys):
    (fresh.checkpoints / "checkpoint-4" / "model.safetensors").unlink()
    sentence = refused(capsys, circuit_discovery.main, fresh.discovery(*ONE_GROUP))
    assert "checkpoint-4: a checkpoint folder without weights" in sentence
    assert circuits_of(fresh, 0).graph().exists() and not circuits_of(fresh, 4).graph().parent.exists()


def test_weights_that_are_not_finite_are_named(fresh, capsys):
    path = fresh.checkpoints / "checkpoint-4" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    sentence = refused(capsys, circuit_discovery.main, fresh.discovery(*ONE_GROUP))
    assert "layer 1's mlp" in sentence and "NaN" in sentence
    assert not circuits_of(fresh, 4).graph().parent.exists()


def test_an_empty_group_is_named_and_skipped(fresh, capsys):
    path = Path(fresh.circuit_data.format(task="city"))
    write_jsonl(path, [row for row in read_jsonl(path) if row["type"] != "new"])
    assert call(circuit_discovery.main, fresh.discovery("--task", "city", "--frequency", "high")) == 0
    assert "city / new / high: no prompts in" in capsys.readouterr().err
    assert circuits_of(fresh, 4, Group(Attribute.CITY, KnowledgeType.REVISED, Band.HIGH)).graph().exists()
    assert not circuits_of(fresh, 4).graph().exists()
    assert "no prompts of any chosen group" in refused(capsys, circuit_discovery.main, fresh.discovery(*ONE_GROUP))


def test_an_empty_target_group_is_named_and_skipped(copy, capsys):
    rows = [row for row in read_jsonl(copy.test_data) if row["frequency"] > 5]
    write_jsonl(copy.test_data, rows)
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "35")) == 0
    assert "city / new / low: no test items" in capsys.readouterr().err
    assert not circuits_of(copy).predictions(35, group_columns("new", "low")).exists()
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "35")) == 0
    assert "0 done, 2 were there already" in capsys.readouterr().out


def test_data_of_another_tokenizer_are_refused(fresh, capsys):
    path = Path(fresh.circuit_data.format(task="city"))
    rows = read_jsonl(path)
    write_jsonl(path, [{**row, "clean_label_idx": 50_000} for row in rows])
    sentence = refused(capsys, circuit_discovery.main, fresh.discovery("--task", "city"))
    assert "label id 50000 is outside the tokenizer" in sentence
    permuted = [{**row, "corrupted_label_idx": (row["corrupted_label_idx"] + 1) % 400} for row in rows]
    write_jsonl(path, permuted)  # as another tokenizer of the same size would number them
    assert "is not the first of" in refused(capsys, circuit_discovery.main, fresh.discovery("--task", "city"))
    write_jsonl(path, [{**row, "corrupted_subject": row["corrupted_subject"] + " van der Zee"} for row in rows])
    sentence = refused(capsys, circuit_discovery.main, fresh.discovery("--task", "city"))
    assert "city.jsonl" in sentence and "tokens" in sentence


def test_a_graph_of_another_model_is_refused(copy, tmp_path, capsys):
    content = json.loads(circuits_of(copy).graph().read_text())
    content["cfg"]["d_model"] = 768
    circuits_of(copy).manifest.unlink()  # a graph from elsewhere has none
    write_json(circuits_of(copy).graph(), content)
    sentence = refused(capsys, circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "35"))
    assert "the graph of another model" in sentence and "width 768" in sentence
    assert not circuits_of(copy).topn_folder(35).exists()
    assert circuits_of(copy, 0).results(35).exists()


def test_a_graph_that_does_not_state_its_width_is_evaluated(copy):
    content = json.loads(circuits_of(copy).graph().read_text())
    del content["cfg"]["d_model"]  # as EAP-IG 1 writes it
    circuits_of(copy).manifest.unlink()  # a graph from elsewhere has none
    write_json(circuits_of(copy).graph(), content)
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "35")) == 0
    assert circuits_of(copy).results(35).exists()


def test_without_graphs_evaluation_says_what_to_run_first(fresh, capsys):
    assert "run circuit_discovery.py first" in refused(capsys, circuit_eval.main, fresh.evaluation())
    assert "run circuit_discovery.py first" in refused(capsys, circuit_eval.main, fresh.evaluation("--topn", "9"))


def test_more_edges_than_there_are_is_refused(copy, capsys):
    sentence = refused(capsys, circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "100000"))
    assert "--topn 100000: the graph has only" in sentence
    of_gpt2 = ["gpt2" if word == "tiny" else word for word in copy.evaluation(*ONE_SOURCE)]
    sentence = refused(capsys, circuit_eval.main, of_gpt2)
    assert re.search(
        r"--model gpt2: the paper's circuits of it have 8000, the graph has only \d+ edges; give", sentence
    )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--stability", "99999"], "--stability 99999: the graph has only "),
        (["--method", "exact", "--gradient", "gim"], "--method exact takes no gradient, so --gradient gim does not go"),
        (["--ensemble", "exact_gim"], "--method exact takes no gradient, so --gradient gim does not go"),
        (["--method", "exact", "--spans"], "--method exact gives no scores by token span, so --spans does not go"),
        (["--circuit_n", "1", "--stability", "40"], "city / new / high: stability takes at least two prompts, not 1"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_loaded(fresh, capsys, monkeypatch, flags, reason):
    monkeypatch.setattr(model_loader, "load_decoder", None)
    sentence = refused(capsys, circuit_discovery.main, fresh.discovery(*ONE_GROUP, *flags))
    assert reason in sentence and "failed" not in sentence
    assert not list(fresh.checkpoints.rglob("*_graph.json"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_tells_the_edges_of_a_graph(tmp_path: Path, family: str) -> None:
    folder = save_family(tmp_path, family)
    loader, checkpoint = ModelLoader(torch.device("cpu"), "float32"), Checkpoint(str(folder), folder)
    decoder = loader.load(checkpoint).decoder
    layout = layout_of(decoder.n_layers, decoder.n_heads, decoder.parallel)
    assert loader.n_edges(checkpoint) == layout.n_edges


def test_an_unknown_source_of_circuits_is_refused(copy, tmp_path, capsys):
    sentence = refused(capsys, circuit_eval.main, copy.evaluation("--topn", "40", "--circuit_from", "3"))
    assert "--circuit_from 3: neither a checkpoint's folder nor one of the steps 0, 4" in sentence
    alone = Checkpoint("models/tiny", tmp_path)
    with pytest.raises(InputError, match=r"--circuit_from 3: .* nor a step of models/tiny, which has none"):
        find_origins(["3"], [alone])


def test_two_sources_of_one_step_are_refused_and_one_source_named_twice_is_one(copy, tmp_path, capsys):
    own = str(copy.checkpoints / "checkpoint-0")
    (other := tmp_path / "other" / "checkpoint-0").mkdir(parents=True)
    shutil.copy(Path(own) / "config.json", other)
    flags = (*ONE_SOURCE, "--topn", "40", "--circuit_from", "0", own, "checkpoint-0")
    sentence = refused(capsys, circuit_eval.main, copy.evaluation(*flags, str(other)))
    assert "are both of step 0" in sentence
    assert call(circuit_eval.main, copy.evaluation(*flags)) == 0
    assert circuits_of(copy, 4).results(40, 0).exists()


def test_a_missing_model_folder_is_named(fresh, capsys, tmp_path):
    arguments = fresh.discovery()
    arguments[arguments.index("--model_path") + 1] = str(tmp_path / "nowhere")
    assert "nowhere: no such checkpoint folder" in refused(capsys, circuit_discovery.main, arguments)


def test_a_tokenizer_without_start_token_is_refused(fresh, capsys):
    tokenizer = byte_level_tokenizer()
    for folder in fresh.checkpoints.iterdir():
        tokenizer.bos_token = tokenizer.eos_token = None
        tokenizer.save_pretrained(folder)
    sentence = refused(capsys, circuit_discovery.main, fresh.discovery(*ONE_GROUP))
    assert "neither a BOS nor an EOS token" in sentence


def test_llama_with_grouped_queries_goes_through_both_programs(tmp_path):
    run = make_run(tmp_path / "run", steps=(4,), save=save_tiny_llama)
    assert call(circuit_discovery.main, run.discovery(*ONE_GROUP)) == 0
    assert call(circuit_eval.main, run.evaluation(*ONE_SOURCE)) == 0
    (results,) = run.checkpoints.rglob("city_results.json")
    assert read_json(results)["nodes_num"] > 2


def test_another_query_wording_is_another_input(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(Attribute.CITY, KnowledgeType.NEW, Band.LOW)
    data = GroupData(group, "city.jsonl", [{"type": "new", "frequency": 1}], limit=5)
    items = TestItems(group, [])
    before = data.digest, items.digest
    monkeypatch.setitem(study._RELATIONS, Attribute.CITY, " lives in")
    assert data.digest != before[0] and items.digest != before[1]


def test_stability_and_spans_are_kept_beside_a_graph_that_is_made_again_for_them(copy, capsys):
    flags = ["--stability", "40", "--spans"]
    folder, before = circuits_of(copy), read_graph(circuits_of(copy).graph())
    assert call(circuit_discovery.main, copy.discovery(*ONE_GROUP, *flags)) == 0
    after = read_graph(folder.graph())
    details = read_details(folder.details, after.layout)
    assert torch.allclose(after.scores, before.scores, atol=1e-6)
    torch.testing.assert_close(details.span_scores.sum(0), after.scores, rtol=0, atol=1e-5)
    assert details.topn == 40 and details.stability.split_half_jaccard.shape == (5,)
    # One of 100 resamples draws only the two prompts whose scores are 0, so it has no edges.
    assert details.stability.inclusion.sum() == pytest.approx(0.99 * 40, rel=1e-4)
    assert set(read_manifest(folder.manifest).files) == {"city_graph.json", "city_details.safetensors"}
    evaluated = files(copy.folder)
    assert call(circuit_discovery.main, copy.discovery(*ONE_GROUP)) == 0  # what is asked for is there
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "40")) == 0  # no score changed
    assert files(copy.folder) == evaluated
    folder.details.write_bytes(b"")
    assert call(circuit_discovery.main, copy.discovery(*ONE_GROUP, *flags)) == 0
    assert files(copy.folder) == evaluated
    capsys.readouterr()
    assert call(circuit_discovery.main, copy.discovery(*ONE_GROUP, "--stability", "30")) == 1
    assert "stability 40, now 30" in capsys.readouterr().err


def test_an_ensemble_is_the_mean_of_graphs_and_stable_signs_thin_a_circuit(copy, capsys):
    flags = ["--topn", "40", "--ensemble", "EAP"]
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, *flags)) == 1
    said = capsys.readouterr()
    assert "method_EAP/city_graph.json: no such graph" in said.err and "1 failed" not in said.out, "before any work"
    discovery = copy.discovery(*ONE_GROUP)
    assert call(circuit_discovery.main, [*discovery, "--method", "EAP"]) == 0
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, *flags)) == 0
    (checkpoint,) = checkpoints(str(copy.checkpoints / "checkpoint-4"))
    of = {name: checkpoint.circuit_folder(6, CITY_NEW_HIGH, name) for name in ("EAP-IG", "EAP", "EAP-IG+EAP")}
    mean = mean_scores([read_graph(of[name].graph()) for name in ("EAP-IG", "EAP")])
    circuit = read_graph(of["EAP-IG+EAP"].circuit(40))
    assert torch.equal(circuit.in_graph, prune(top_n(mean, 40)).in_graph)
    assert read_json(of["EAP-IG+EAP"].results(40))["method"] == "EAP-IG+EAP"

    stable = ["--topn", "40", "--same_sign", "0.99"]
    assert call(circuit_discovery.main, [*discovery, "--stability", "40"]) == 0
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, *stable)) == 0
    thinned = read_graph(checkpoint.circuit_folder(6, CITY_NEW_HIGH, "EAP-IG_sign0.99").circuit(40))
    scored = read_graph(of["EAP-IG"].graph())
    same_sign = read_details(of["EAP-IG"].details, scored.layout).stability.same_sign
    assert 0 < thinned.n_edges < 40 and same_sign[thinned.in_graph].min() >= 0.99

    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "40", "--signed")) == 0
    positive = read_graph(checkpoint.circuit_folder(6, CITY_NEW_HIGH, "EAP-IG_signed").circuit(40))
    assert torch.equal(positive.in_graph, prune(top_n(scored, 40, absolute=False)).in_graph)
    assert positive.meta["signed"] and not torch.equal(positive.in_graph, prune(top_n(scored, 40)).in_graph)


def test_stable_signs_without_a_measured_stability_are_refused_before_a_model_is_loaded(copy, capsys, monkeypatch):
    arguments = copy.evaluation(*ONE_SOURCE, "--topn", "40", "--same_sign", "0.9")
    for flags in ([], ["--spans"]):  # no details, and details without stability
        assert call(circuit_discovery.main, copy.discovery(*ONE_GROUP, *flags)) == 0
        with monkeypatch.context() as patch:
            patch.setattr(model_loader, "load_decoder", None)
            sentence = refused(capsys, circuit_eval.main, arguments)
        assert "run circuit_discovery.py --stability" in sentence and "failed" not in sentence
    assert call(circuit_discovery.main, copy.discovery(*ONE_GROUP, "--stability", "40")) == 0
    assert call(circuit_eval.main, arguments) == 0
    for details in copy.checkpoints.rglob("city_details.safetensors"):
        details.unlink()
    assert call(circuit_eval.main, arguments) == 0  # what is there needs no stability


def test_an_ensembles_stability_is_that_of_its_mean_in_each_resample_of_the_same_prompts(copy, capsys):
    discovery = copy.discovery(*ONE_GROUP, "--ensemble", "EAP_gim", "--stability", "40", "--spans")
    assert call(circuit_discovery.main, discovery) == 0
    (checkpoint,) = checkpoints(str(copy.checkpoints / "checkpoint-4"))
    names = ("EAP-IG", "EAP_gim", "EAP-IG+EAP_gim")
    one, other, mean = (checkpoint.circuit_folder(6, CITY_NEW_HIGH, name) for name in names)
    members = [read_graph(folder.graph()) for folder in (one, other)]
    layout = members[0].layout
    details = read_details(mean.details, layout)
    assert list(read_manifest(mean.manifest).files) == ["city_details.safetensors"] and not mean.graph().exists()

    decoder = load_decoder(checkpoint.path)
    pairs = read_groups(str(copy.circuit_data), [CITY_NEW_HIGH], 6)[0].pairs(load_tokenizer(checkpoint.path))
    weights = Resampling().weights(len(pairs)).float()
    expected = torch.zeros(len(weights), layout.n_edges)
    for options in ({}, {"method": "EAP", "gradient": "gim"}):
        rows = weights @ attribute(decoder, pairs, per_prompt=True, **options).prompt_scores[:, layout.real_edges]
        expected += rows / rows.abs().mean(1, keepdim=True).clamp(min=1e-12) / 2  # two prompts have scores of 0
    strongest = expected.abs().argsort(dim=1, descending=True, stable=True)[:, :40]
    members_of = torch.zeros_like(expected).scatter_(1, strongest, 1) * (expected != 0)
    inclusion = details.stability.inclusion[layout.real_edges]
    torch.testing.assert_close(inclusion, members_of[10:].mean(0), rtol=0, atol=1e-6)
    both, either = ((members_of[:10:2] + members_of[1:10:2]) >= least for least in (2, 1))
    torch.testing.assert_close(details.stability.split_half_jaccard, both.sum(1) / either.sum(1))
    assert (inclusion - read_details(one.details, layout).stability.inclusion[layout.real_edges]).abs().max() > 0.1
    torch.testing.assert_close(details.span_scores.sum(0), mean_scores(members).scores, rtol=0, atol=1e-4)

    before = files(copy.folder)
    assert call(circuit_discovery.main, discovery) == 0 and files(copy.folder) == before
    mean.details.unlink()
    assert call(circuit_discovery.main, discovery) == 0 and files(copy.folder) == before


def test_an_ensembles_circuit_has_its_stability_in_the_tables_and_none_of_other_graphs(copy, capsys):
    discovery = copy.discovery(*ONE_GROUP, "--ensemble", "EAP")
    assert call(circuit_discovery.main, discovery) == 0  # the graphs alone
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "40", "--ensemble", "EAP")) == 0
    run, setting = Run(copy.folder), Setting(6, "EAP-IG+EAP", 40)
    assert read_circuits(run, setting).table["inclusion"].isna().all()
    assert call(circuit_discovery.main, [*discovery, "--stability", "40"]) == 0
    seen = []
    (row,) = read_circuits(run, setting, lambda *shown: seen.append(shown[-1])).table.to_dict("records")[-1:]
    (circuit,) = seen[-1:]
    assert row["inclusion"] == pytest.approx(float(circuit.inclusion[circuit.in_graph].mean()))
    assert 0 < row["split_half_jaccard"] < 1 and 0 < row["rank_correlation"] < 1

    others = copy.discovery(*ONE_GROUP, "--ig_steps", "2", "--overwrite")
    assert call(circuit_discovery.main, others) == 0
    again = copy.evaluation(*ONE_SOURCE, "--topn", "40", "--ensemble", "EAP", "--overwrite")
    assert call(circuit_eval.main, again) == 1
    assert "the stability of other graphs' mean (EAP-IG graph ig_steps 5, now 2)" in capsys.readouterr().err
    assert call(circuit_discovery.main, copy.discovery(*ONE_GROUP, "--ensemble", "GIM")) == 1
    assert "--ensemble GIM: no way of scoring has this name" in capsys.readouterr().err


def test_each_groups_circuit_runs_on_the_prompts_of_all_groups(copy, capsys):
    two = ["--task", "city", "--source_type", "new", "revised", "--source_frequency", "high", "--topn", "60"]
    assert call(circuit_eval.main, copy.evaluation(*two, "--cross_groups")) == 0
    (checkpoint,) = checkpoints(str(copy.checkpoints / "checkpoint-4"))
    path = checkpoint.output / "circuit_6" / "method_EAP-IG" / "topn_60" / "cross_groups.json"
    found, before = read_json(path), path.read_bytes()
    assert found["groups"] == [{"task": "city", "type": kind, "frequency": "high"} for kind in ("new", "revised")]
    folders = [circuits_of(copy, group=Group(Attribute.CITY, kind, Band.HIGH)) for kind in KnowledgeType]
    circuits = [read_graph(folder.circuit(60)) for folder in folders]
    for number, folder in enumerate(folders):
        own = read_json(folder.results(60))
        assert found["faithfulness"][number][number] == pytest.approx(own["faithfulness"], rel=1e-4)
        assert found["edges"][number] == own["edges_num"]
    core = prune(circuits[0] & circuits[1])
    assert found["shared"]["edges"] == core.n_edges > 0
    decoder = load_decoder(checkpoint.path)
    pairs = read_groups(str(copy.circuit_data), [CITY_NEW_HIGH], 6)[0].pairs(load_tokenizer(checkpoint.path))
    (run,) = evaluate(decoder, [core], pairs)
    assert found["shared"]["faithfulness"][0] == pytest.approx(run.faithfulness, rel=1e-4)
    assert call(circuit_eval.main, copy.evaluation(*two, "--cross_groups", "--floors")) == 0
    assert path.read_bytes() == before
    more = [*two[:5], "--source_frequency", "high", "low", "--topn", "60", "--cross_groups"]
    assert call(circuit_eval.main, copy.evaluation(*more)) == 0
    assert len(read_json(path)["groups"]) == 4  # and the core is theirs
    assert call(circuit_eval.main, copy.evaluation(*two, "--cross_groups")) == 0
    assert path.read_bytes() == before

    # Beside the core of signed circuits stand the group's edges of largest signed score.
    assert call(circuit_eval.main, copy.evaluation(*two, "--cross_groups", "--signed")) == 0
    signed = read_json(Path(str(path).replace("method_EAP-IG", "method_EAP-IG_signed")))["shared"]
    own = [prune(top_n(circuits[0], signed["edges"], absolute)) for absolute in (False, True)]
    expected, absolute = (outcome.faithfulness for outcome in evaluate(decoder, own, pairs))
    assert signed["same_size"][0] == pytest.approx(expected, rel=1e-4) != pytest.approx(absolute, rel=1e-4)
    capsys.readouterr()
    assert call(circuit_eval.main, copy.evaluation(*ONE_SOURCE, "--topn", "60", "--cross_groups")) == 1
    assert "choose at least two" in capsys.readouterr().err


@pytest.mark.parametrize("megabytes,threads", [(1, 1), (12, 2), (1000, 4)])
def test_a_thread_has_five_megabytes_of_weights_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: int, threads: int
) -> None:
    monkeypatch.setattr(programs, "cores", lambda: 4)
    with open(tmp_path / "model.safetensors", "wb") as weights:
        weights.truncate(megabytes * 1_000_000)
    assert programs.default_threads([Checkpoint(str(tmp_path), tmp_path)]) == threads
