"""Where a run keeps its files, and what a model path means."""

from __future__ import annotations

from pathlib import Path

import pytest

from knowledge_circuits.files import InputError
from knowledge_circuits.models.loading import delete_download
from knowledge_circuits.runs import (
    Checkpoint,
    Content,
    Coordinates,
    Run,
    checkpoints,
    existing_graph,
    find_graph,
    method_name,
)
from knowledge_circuits.study import Attribute, Band, FactGroup, Group, KnowledgeType, group_columns

GROUP = Group(Attribute.CITY, KnowledgeType.NEW, Band.HIGH)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with checkpoints 0, 9 and 10, and a folder that is none."""
    for name in ("checkpoint-10", "checkpoint-0", "checkpoint-9", "tmp-checkpoint-11"):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / name / "config.json").write_text("{}")
    return Run(tmp_path / "run")


def test_a_run_means_its_checkpoints_in_step_order(run):
    for path in (run.path, run.checkpoints_folder):
        assert [checkpoint.step for checkpoint in checkpoints(str(path))] == [0, 9, 10]
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [0, 9, 10]


def test_a_checkpoint_folder_means_itself(run):
    (found,) = checkpoints(str(run.checkpoints_folder / "checkpoint-9"))
    assert (found.step, found.name, found.output) == (9, "checkpoint-9", run.checkpoints_folder / "checkpoint-9")


def test_another_output_folder_keeps_the_checkpoints_apart(run, tmp_path):
    found = checkpoints(str(run.path), str(tmp_path / "out"))
    assert [checkpoint.output.name for checkpoint in found] == ["checkpoint-0", "checkpoint-9", "checkpoint-10"]
    assert all(checkpoint.output.parent == tmp_path / "out" for checkpoint in found)


def test_a_hub_name_has_its_results_under_outputs(tmp_path):
    (found,) = checkpoints("openai-community/gpt2")
    assert (found.path, found.step) == ("openai-community/gpt2", None)
    assert found.output == Path("outputs/hub/openai-community--gpt2")


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A local copy of a public training history: folders of any name with a step in it."""
    for name in ("step0", "step1", "step2", "step3", "step512-tokens1B", "step1000", "logs"):
        (tmp_path / "pythia" / name).mkdir(parents=True)
        if name != "logs":
            (tmp_path / "pythia" / name / "config.json").write_text("{}")
    return tmp_path / "pythia"


def test_a_historys_folders_are_its_steps_and_its_results_go_to_outputs(history):
    found = checkpoints(str(history))
    assert [checkpoint.step for checkpoint in found] == [0, 1, 2, 3, 512, 1000]
    assert found[4].path == str(history / "step512-tokens1B")
    assert found[4].output == Path("outputs/history/pythia/checkpoints/checkpoint-512")
    assert found[4].name == "checkpoint-512"


def test_revisions_choose_steps_by_name_or_on_a_log_scale(history):
    named = checkpoints(str(history), revisions=["step1000", "step1"])
    assert [checkpoint.step for checkpoint in named] == [1, 1000]
    assert [one.step for one in checkpoints(str(history), revisions=["log"])] == [0, 1, 2, 512, 1000]
    with pytest.raises(InputError, match="revision 'step7': not one of"):
        checkpoints(str(history), revisions=["step7"])


def test_a_pattern_finds_the_step_in_other_names(history):
    (history / "step0").rename(history / "at-0")
    found = checkpoints(str(history), step_pattern=r"at-(\d+)")
    assert [(one.step, Path(one.path).name) for one in found] == [(0, "at-0")]
    for pattern, reason in (("(", "not a regular expression"), ("step", "first group must be the step")):
        with pytest.raises(InputError, match=reason):
            checkpoints(str(history), step_pattern=pattern)


def test_two_folders_of_one_step_are_refused(history):
    (history / "copy-of-step3").mkdir()
    (history / "copy-of-step3" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="both of step 3"):
        checkpoints(str(history))


def test_a_hub_models_revisions_are_checkpoints_of_one_name():
    found = checkpoints("EleutherAI/pythia-160m", revisions=["step1000", "step0"])
    assert [(one.revision, one.step) for one in found] == [("step0", 0), ("step1000", 1000)]
    assert found[1].address == "EleutherAI/pythia-160m@step1000"
    assert found[1].output == Path("outputs/history/EleutherAI--pythia-160m/checkpoints/checkpoint-1000")
    with pytest.raises(InputError, match="no step in this name"):
        checkpoints("EleutherAI/pythia-160m", revisions=["main"])


def test_a_downloaded_revision_is_deleted_without_the_files_that_others_share(tmp_path):
    repository = tmp_path / "models--a--b"
    for name, content in (("shared", "tokenizer"), ("one", "weights 1"), ("two", "weights 2")):
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        (repository / "blobs" / name).write_text(content)
    for revision, commit, weights in (("step1", "1" * 40, "one"), ("step2", "2" * 40, "two")):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        (snapshot / "tokenizer.json").symlink_to("../../blobs/shared")
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/{weights}")
    assert delete_download("a/b", "step1", str(tmp_path)) == len("weights 1")
    assert sorted(blob.name for blob in (repository / "blobs").iterdir()) == ["shared", "two"]
    assert delete_download("a/b", "step1", str(tmp_path)) == 0
    assert delete_download(str(tmp_path), "main", str(tmp_path)) == 0


def test_folders_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint folder"):
        checkpoints(str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"neither a checkpoint \(no config.json\) nor a folder of checkpoint-<step>"):
        checkpoints(str(tmp_path))
    with pytest.raises(InputError, match="not a run"):
        Run(tmp_path).checkpoints()


def test_the_paths_of_circuits_are_the_documented_ones(tmp_path):
    folder = Checkpoint("x/checkpoint-9", tmp_path).circuit_folder(300, GROUP, "EAP-IG")
    base = tmp_path / "circuit_300" / "type_new" / "frequency_high" / "method_EAP-IG"
    assert folder.graph() == base / "city_graph.json"
    assert folder.circuit(40, ".pt") == base / "topn_40" / "city_graph.pt"
    assert folder.circuit(40, origin=7) == base / "topn_40" / "city_from_7_graph.json"
    assert folder.results(40) == base / "topn_40" / "city_results.json"
    target = base / "topn_40" / "target_type_revised" / "target_frequency_low"
    assert folder.predictions(40, group_columns("revised", "low")) == target / "city_prediction.jsonl"
    assert folder.predictions(40, group_columns("revised", "low"), 7) == target / "city_from_7_prediction.jsonl"


OWN = group_columns("new", "high")
FREE = (("birth_year", "1900_to_1950"), ("name length", "3/4 words"))


@pytest.mark.parametrize(
    ("coordinates", "content", "suffix"),
    [
        (Coordinates.of(300, GROUP, "EAP-IG"), Content.GRAPH, ".json.gz"),
        (Coordinates(30, "city", OWN, method_name("EAP-IG", "gim", "kl_divergence"), 40), Content.GRAPH, ".pt"),
        (Coordinates(30, "city", OWN, "EAP", 40, "zero", origin=7), Content.RESULTS, ".json"),
        (Coordinates(30, "city", OWN, "EAP", 40, origin=0, target=OWN), Content.PREDICTIONS, ".jsonl"),
        (Coordinates(30, "home_town", FREE, "EAP", 40, "mean-positional", 3, FREE), Content.PREDICTIONS, ".jsonl"),
        (Coordinates(30, "city", FREE, "EAP_relp"), Content.MANIFEST, ".json"),
    ],
)
def test_coordinates_are_read_back_from_the_path_that_they_make(coordinates, content, suffix):
    assert Coordinates.read(coordinates.path(content, suffix)) == (coordinates, content)


def test_only_the_study_s_own_columns_are_a_group_of_the_study():
    assert Coordinates.of(30, GROUP, "EAP").study_group == GROUP
    assert Coordinates(30, "city", FREE, "EAP").study_group is None
    assert Coordinates(30, "city", FREE, "EAP").any_group == FactGroup("city", FREE)
    assert Coordinates(30, "city", group_columns("new", "often"), "EAP").study_group is None


@pytest.mark.parametrize(
    "path",
    [
        "prediction.jsonl",
        "circuit_x/type_new/frequency_low/method_EAP/city_graph.json",
        "circuit_30/type_new/frequency_low/method_EAP/notes.txt",
        "circuit_30/type_new/frequency_low/method_EAP/topn_40/.city_graph.json.host-1.partial",
        "circuit_30/method_EAP/city_graph.json",
    ],
)
def test_other_files_have_no_coordinates(path):
    assert Coordinates.read(Path(path)) is None


def test_a_checkpoint_lists_its_circuit_files_each_graph_in_one_format(tmp_path):
    folder = Checkpoint("x/checkpoint-9", tmp_path).circuit_folder(300, GROUP, "EAP-IG")
    folder.topn_folder(40).mkdir(parents=True)
    for path in (
        folder.graph(".pt"),
        folder.graph(".json"),
        folder.circuit(40, origin=3),
        folder.graph().parent / "notes",
    ):
        path.write_text("")
    files = Checkpoint("x/checkpoint-9", tmp_path).circuit_files()
    assert [(key.topn, key.origin, content) for key, content in files] == [
        (None, None, Content.GRAPH),
        (40, 3, Content.GRAPH),
    ]
    assert next(iter(files.values())) == folder.graph(".json")


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".pt"])
def test_a_graph_is_found_in_any_format(tmp_path, suffix):
    wanted = tmp_path / "city_graph.json"
    assert find_graph(wanted) is None
    with pytest.raises(InputError, match=r"run circuit_discovery\.py first"):
        existing_graph(wanted)
    (tmp_path / f"city_graph{suffix}").write_text("")
    assert find_graph(wanted) == existing_graph(wanted) == tmp_path / f"city_graph{suffix}"
