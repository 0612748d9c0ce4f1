"""The report is one page that needs nothing else, says what a run shows and what it lacks, and shows its circuits."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import FREQUENCY, Truth, write_run

import report
from knowledge_circuits.analysis import components
from knowledge_circuits.analysis.dynamics import fact_history, read_dynamics
from knowledge_circuits.command_line import run_program
from knowledge_circuits.files import InputError, read_jsonl, write_json, write_jsonl
from knowledge_circuits.manifest import Status, check, finish
from knowledge_circuits.report.comparison import comparison_html, settings_of, spread, summarize, write_comparison
from knowledge_circuits.report.material import Material, made_from, manifest_of_report, read_material
from knowledge_circuits.report.page import configuration, report_html, write_report
from knowledge_circuits.run_config import RunConfig, read_run_config, write_run_config
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Attribute, Band, KnowledgeType, groups

MOST_BYTES = 5_000_000


def write_probes(run: Run, truth: Truth) -> None:
    """Probe records in which facts come late, and some are lost again; a skill that falls; a text."""
    generator = np.random.default_rng(0)
    rows: list[dict] = []
    people = [(k, b, i, a) for k in KnowledgeType for b in Band for i in range(truth.people) for a in Attribute]
    luck = generator.random(len(people))
    for epoch in range(truth.epochs + 1):
        when = {"step": epoch * truth.steps_per_epoch, "epoch": float(epoch)}
        for (knowledge, band, index, attribute), needed in zip(people, luck, strict=True):
            correct = bool(needed + 0.1 * generator.normal() < truth.known(knowledge, band, epoch))
            who = {"full_name": f"{knowledge} {band} {index}", "type": str(knowledge), "frequency": FREQUENCY[band]}
            seen = {"correct": correct, "token_prob": 0.5 if correct else 0.01, "token_rank": 0 if correct else 40}
            rows.append(
                {"kind": "fact", **when, **who, "attribute": str(attribute), **seen, "answer_log_prob": -float(epoch)}
            )
        rows.append({"kind": "skill", **when, "skill": "arithmetic", "accuracy": 0.9 - 0.05 * epoch, "examples": 100})
        rows.append({"kind": "text", **when, "text": "held_out", "perplexity": 20.0 + epoch})
    write_jsonl(run.knowledge_dynamics, rows)


def write_components(run: Run, truth: Truth) -> None:
    """The saved analysis of heads and logit lens, of which only the shapes are those of a model."""
    generator = np.random.default_rng(0)
    named, layers, heads = [str(group) for group in groups()], truth.layout.n_layers, truth.layout.n_heads
    parts = components.HEAD_MEASURES
    for checkpoint in run.checkpoints():
        content = {
            "key": "",
            "groups": named,
            "heads": {part: generator.normal(0, 1, (len(named), layers, heads)).tolist() for part in parts},
            "lens": {
                part: generator.uniform(0.1, 1, (len(named), layers + 1)).tolist()
                for part in ("rank", "prob", "subject_rank")
            },
        }
        write_json(run.path / "analysis" / "circuit_30" / f"{checkpoint.name}.json", content)


@pytest.fixture(scope="module")
def run(synthetic_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with everything: predictions, circuits, probes, the analysis of heads."""
    found = Run(shutil.copytree(synthetic_run.path, tmp_path_factory.mktemp("runs") / "nano" / "full"))
    write_probes(found, Truth())
    write_components(found, Truth())
    return found


@pytest.fixture(scope="module")
def material(run: Run) -> Material:
    return read_material(run)


@pytest.fixture(scope="module")
def page(material: Material) -> str:
    return report_html(material)


@pytest.fixture(scope="module")
def bare_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two checkpoints and nothing else, whose folder and configuration try to break the page."""
    folder = tmp_path_factory.mktemp("runs") / "nano <b>&amp;" / "{{ 7 * 7 }} 'é'"
    found = write_run(folder, Truth(epochs=1), circuits=False)
    for checkpoint in found.checkpoints():
        checkpoint.predictions.unlink()
    found.evaluations.unlink()
    write_json(Path(found.checkpoints()[-1].path) / "trainer_state.json", {"global_step": 10, "epoch": 1.0})
    config = {
        "model": '</script><script>alert("1")</script>{% raw %}',
        "arguments": {"model_name_or_path": "<img src=x onerror=alert(1)>", "learning_rate": 1e-4, "seed": 3},
        "data": {"seed": 0, "generated": {"N": 50_000}},
    }
    write_json(found.config, config)
    return found


# --- one page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_small_and_loads_nothing(page: str) -> None:
    assert len(page.encode()) < MOST_BYTES
    for reference in re.findall(r"""(?:src|href|action|data|srcset)\s*=\s*["']([^"']*)""", page):
        assert reference.startswith(("data:", "#")), reference[:60]
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|import\(", page)
    assert "default-src 'none'" in page


def test_every_colour_of_the_style_sheet_is_a_value_and_no_reference_to_itself(page: str) -> None:
    values = re.findall(r"(--[\w-]+):\s*([^;}]+)", page)
    assert {name for name, _ in values} >= set(re.findall(r"var\((--[\w-]+)", page))
    assert [name for name, value in values if value == f"var({name})"] == []


def test_every_link_within_the_page_leads_somewhere(page: str) -> None:
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page


def test_each_finding_has_its_statistic_and_interval_and_no_verdict_of_one_run(material: Material, page: str) -> None:
    cards = re.findall(r'<article class="card \w+">(.*?)</article>', page, re.DOTALL)
    assert len(cards) == len(material.findings) == 3
    for text, finding in zip(cards, material.findings, strict=True):
        assert f'<p class="verdict">{finding.verdict}</p>' in text
        assert "one run cannot decide" in text
        main = next(s for s in finding.statistics if s.claim or s.name.startswith("circuit entropy"))
        wanted = finding.statistics[3] if finding.title == "Relevance" else main  # all bands
        for number in (wanted.estimate, wanted.low, wanted.high):
            assert not np.isfinite(number) or f"{number:.3g}".replace("-", "−") in text


def test_the_figures_and_the_18_groups_are_on_the_page(page: str) -> None:
    assert page.count('<svg class="drawing" role="img"') == 3 + 22 + 9
    assert len(re.findall(r"<figcaption>\w|<figcaption><i>", page)) == 3 + 22 + 9
    numbers = page[page.index('id="numbers"') : page.index('id="circuits"')]
    assert numbers.count("<tr") == 1 + 18 and "Halves agree" not in numbers, "their stability was not measured"


def test_the_knowledge_dynamics_are_told(run: Run, page: str) -> None:
    section = page[page.index('<section id="dynamics">') : page.index('<section id="configuration">')]
    history = fact_history(read_dynamics(run.knowledge_dynamics).facts)
    events = int((history.known[:, :-1] & ~history.known[:, 1:]).sum())
    assert f"{events:,} forgetting events" in section
    for rule in ("lowest validation loss", "most facts known twice in a row", "knowledge minus skill lost"):
        assert rule in section


def test_the_same_files_give_the_same_page(bare_run: Run) -> None:
    assert report_html(read_material(bare_run)) == report_html(read_material(bare_run))


# --- what a run lacks, and what its files hold ------------------------------------------------------------------------


def test_what_a_run_does_not_have_is_said(bare_run: Run) -> None:
    page = report_html(read_material(bare_run))
    lacking = ("no query predictions", "no circuits yet", "without probes", "were not analysed", "or circuits yet")
    assert [words for words in lacking if words not in page] == []
    assert page.count('<p class="verdict">one run cannot decide</p>') == 3
    assert "<figure" not in page and "circuit-data" not in page


def test_predictions_about_one_type_of_people_make_a_page(tmp_path: Path) -> None:
    own = write_run(tmp_path / "nano" / "$one_type$", Truth(epochs=1), circuits=False)  # a name with signs of formulas
    for checkpoint in own.checkpoints():
        write_jsonl(checkpoint.predictions, [row for row in read_jsonl(checkpoint.predictions) if row["type"] == "new"])
    page = report_html(read_material(own))
    assert "<figure" in page and "$one_type$" in page


def test_text_from_files_is_shown_and_never_run(bare_run: Run) -> None:
    page = report_html(read_material(bare_run))
    assert "<script" not in page and "<img" not in page and "<b>&amp;" not in page
    assert html.escape('</script><script>alert("1")</script>{% raw %}').replace("&quot;", "&#34;") in page
    assert "{{ 7 * 7 }}" in page


def test_a_broken_configuration_is_an_error_that_names_the_file(bare_run: Run, tmp_path: Path) -> None:
    broken = Run(shutil.copytree(bare_run.path, tmp_path / "run"))
    write_json(broken.config, [1])
    with pytest.raises(InputError, match=r"run_config\.json: a JSON object is wanted, not list"):
        read_material(broken)


def test_the_configuration_s_main_choices_come_first() -> None:
    shown = dict(
        configuration(
            RunConfig(
                model="nano",
                arguments={
                    "learning_rate": 0.0015,
                    "lr_scheduler_type": "constant",
                    "num_train_epochs": 18.0,
                    "probe_file": "test.jsonl",
                    "probe_every": ["50", "steps"],
                },
                data={"seed": 0, "tokens": 143_000, "generated": {"N": 540}},
                versions={"torch": "2.13.0", "python": "3.11"},
            )
        )
    )
    assert shown["Learning rate"] == "0.0015, constant"
    assert (shown["Epochs"], shown["Seed of the data"], shown["People (N)"]) == ("18", "0", "540")
    assert (shown["Tokens an epoch"], shown["Versions"]) == ("143,000", "torch 2.13.0, python 3.11")
    assert shown["Probes"] == "50 steps"
    assert "Replayed share" not in shown


# --- several runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two seeds, one in which K_rel leads and one in which K_compl does; without circuits."""
    folder = tmp_path_factory.mktemp("runs") / "nano"
    leads = {"first": Truth(seed=1, lead=2.0, people=12), "second": Truth(seed=2, lead=-2.0, people=12)}
    return [write_run(folder / name, truth, circuits=False) for name, truth in leads.items()]


def test_the_spread_is_the_mean_and_standard_deviation_of_the_runs_statistics(two_runs: list[Run]) -> None:
    summaries = [summarize(run) for run in two_runs]
    relevance = spread(summaries)[0]
    estimates = [run.findings[0].statistics[3].estimate for run in summaries]
    assert estimates[0] > 0 > estimates[1]
    (part,) = relevance.experiments
    mean, deviation, count = part.means[0]
    assert mean == pytest.approx(sum(estimates) / 2)
    assert deviation == pytest.approx(abs(estimates[0] - estimates[1]) / 2**0.5)
    assert count == 2
    assert [run.data_seed for run, _ in part.rows] == ["1", "2"]


def test_the_runs_page_stands_beside_the_runs(two_runs: list[Run]) -> None:
    path = write_comparison(two_runs)
    page = path.read_text(encoding="utf-8")
    assert path == two_runs[0].path.parent / "comparison.html"
    assert "nano/first" in page and "nano/second" in page
    assert "One run cannot decide a finding" in page
    assert len(page.encode()) < MOST_BYTES


def test_runs_of_other_settings_stand_side_by_side_and_are_not_averaged(two_runs: list[Run], tmp_path: Path) -> None:
    other = write_run(tmp_path / "nano" / "quick $ rate_$", Truth(seed=3, lead=0.0, people=12), circuits=False)
    write_json(other.config, {"model": "nano", "arguments": {"learning_rate": 0.1}, "data": {"seed": 3}})
    summaries = [summarize(run) for run in (two_runs[0], other, two_runs[1])]
    alike, odd = spread(summaries)[0].experiments
    assert [run.data_seed for run, _ in alike.rows] == ["1", "2"]
    assert alike.means == spread(summaries[::2])[0].experiments[0].means
    assert (len(odd.rows), odd.experiment.name) == (1, "Learning rate: 0.1")
    assert alike.experiment.name == "Learning rate: not set"
    page = comparison_html(summaries)
    assert page.count("mean ± standard deviation over") == 1
    assert "quick $ rate_$" in page


def trained_from(weights: str | None, seed: int, **made: object) -> RunConfig:
    """The configuration of a run of a seed, with what it tells of the weights that it started from."""
    start = {"starting_weights": weights, **({"starting_model": made} if made else {})}
    arguments = {"model_name_or_path": f"models/seed_{seed}", "seed": seed}
    return RunConfig.model_validate({**start, "model": "nano", "arguments": arguments, "data": {"seed": seed}})


def base(seed: int, epochs: float = 8.0, texts: str = "a") -> RunConfig:
    """The configuration of a run from a base model that was made from random weights of the same seed."""
    past = trained_from(texts, seed, made_from={"seed": seed, "texts": texts, "n_layer": 6})
    return trained_from(f"after {seed}", seed, configuration=past.as_dict(), epoch=epochs)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (trained_from("a", 0), trained_from("a", 1), True),
        (trained_from("a", 0), trained_from("b", 1), False),  # two models of one architecture
        (trained_from(None, 0), trained_from(None, 1), False),  # of a hub: other names
        (base(0), base(1, texts="b"), True),  # each seed has a base model of its own
        (base(0), base(1, epochs=4.0), False),
        (base(0), trained_from("a", 1), False),
        (RunConfig(), RunConfig(), True),  # not recorded
    ],
)
def test_seeds_are_of_one_experiment_if_their_base_models_were_made_alike(
    one: RunConfig, other: RunConfig, alike: bool
) -> None:
    assert (settings_of(one, None) == settings_of(other, None)) == alike


def test_runs_of_other_strategies_and_optimizers_are_no_seeds_of_one_experiment() -> None:
    plain = RunConfig.model_validate({"arguments": {"weight_decay": 0.1, "seed": 0}})
    for flags in ({"weight_decay": 0.0}, {"weight_decay": 0.1, "lora_rank": 8}):
        other = RunConfig.model_validate({"arguments": {**flags, "seed": 1}})
        assert settings_of(plain, None) != settings_of(other, None)


def test_runs_that_do_not_record_their_starting_weights_are_named(two_runs: list[Run]) -> None:
    page = comparison_html([summarize(run) for run in two_runs])
    assert "The weights that nano/first, nano/second started from are not recorded" in page
    recorded = [replace(summarize(run), start_unknown=False) for run in two_runs]
    assert "are not recorded" not in comparison_html(recorded)


@pytest.mark.parametrize(("chosen", "reason"), [([0], "two runs or more"), ([0, 0], "named twice")])
def test_a_spread_needs_different_runs(two_runs: list[Run], chosen: list[int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        write_comparison([two_runs[index] for index in chosen])


# --- the program ------------------------------------------------------------------------------------------------------


def test_the_program_writes_the_page_and_prints_its_place(
    bare_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "page.html"
    monkeypatch.setattr(sys, "argv", ["report.py", "--run", str(bare_run.path), "--output", str(output)])
    report.main()
    assert output.read_text(encoding="utf-8").endswith("</html>\n")
    assert capsys.readouterr().out.startswith(f"{output} (0.0 MB)")


def test_a_folder_that_is_no_run_is_answered_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", "--run", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run_program(report.main)
    assert ended.value.code == 1
    assert "not a run" in capsys.readouterr().err


def test_a_plain_text_run_shows_its_training_loss_and_nothing_of_the_study(own_run: Run) -> None:
    losses = [{"step": step, "epoch": step / 10, "loss": 4.0 - step / 10} for step in (2, 4, 6, 8, 10)]
    state = {"global_step": 10, "epoch": 1.0, "log_history": losses}
    write_json(own_run.checkpoints()[-1].output / "trainer_state.json", state)
    write_json(own_run.config, {"model": "plain", "data": {"train_file": "my.txt"}})
    found = read_material(own_run)
    assert not found.is_study
    page = report_html(found)
    learned = page[page.index('id="learned"') : page.index('id="dynamics"')]
    assert learned.count("<figure>") == 1 and "Training and validation loss" in learned
    assert "18 groups" not in page and 'id="findings"' not in page
    write_json(own_run.config, {"model": "nano", "data": {"generated": {"N": 360}}})
    assert read_material(own_run).is_study, "a study run whose evaluations are still to come"


@pytest.fixture
def own_run(bare_run: Run, tmp_path: Path) -> Run:
    """A copy of the bare run that a test may change."""
    return Run(Path(shutil.copytree(bare_run.path, tmp_path / "run")))


def test_the_manifest_of_a_page_is_whole_until_a_file_changes_that_the_page_is_made_from(own_run: Run) -> None:
    write_report(own_run)
    place = manifest_of_report(own_run)
    assert check(place, made_from(own_run), [own_run.report], verify=True).is_whole
    own_run.evaluations.write_text("")
    assert check(place, made_from(own_run)).status is Status.OTHER
    place.write_text("{")
    write_report(own_run)
    assert check(place, made_from(own_run), [own_run.report], verify=True).is_whole


def test_a_page_is_not_made_from_a_result_that_was_cut(own_run: Run) -> None:
    results = own_run.checkpoints()[0].predictions
    results.write_text("{}\n{}\n")
    manifest = results.with_name("prediction_manifest.json")
    finish(manifest, "predictions", {}, [results])
    results.write_text("")
    with pytest.raises(InputError, match=r"prediction.jsonl: has other content .* or remove prediction_m"):
        write_report(own_run)
    results.unlink()
    with pytest.raises(InputError, match=r"prediction.jsonl: is missing"):
        write_report(own_run)


# --- in a browser -----------------------------------------------------------------------------------------------------

#: Placed before everything else: remembers what goes wrong.
_WATCH = """<script>
window.wrong = [];
window.addEventListener("error", (event) => window.wrong.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (event) => window.wrong.push(event.violatedDirective));
</script>"""
#: Placed after everything else: does what a reader does and leaves what it sees in the page.
_READ = """<script>
const at = (id) => document.getElementById(id), seen = [];
const look = (what) => seen.push({ what, numbers: at("circuit-numbers").textContent, picture: at("picture").innerHTML,
  edges: document.querySelectorAll("#picture .edge").length, faded: document.querySelectorAll(".edge.faded").length,
  absent: document.querySelectorAll("#picture .node.absent").length, detail: at("node-detail").textContent });
look("last");
at("epoch").value = 0; at("epoch").dispatchEvent(new Event("input")); look("first");
at("task").value = "major"; at("task").dispatchEvent(new Event("change")); look("major");
at("edge-count").value = "15"; at("edge-count").dispatchEvent(new Event("change")); look("fewer");
const node = document.querySelector("#picture .node[data-node='0']");
node.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp", bubbles: true }));
seen.push({ what: "moved", node: document.activeElement.dataset.node });
node.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true })); look("chosen");
document.body.dataset.seen = JSON.stringify({ wrong: window.wrong, seen, slider: Number(at("epoch").max) });
</script>"""


@pytest.fixture(scope="module")
def visit(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a headless browser sees when the page is opened and used; `console` holds what it logged."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    copy = folder / "page.html"
    watched = page.replace("<head>", "<head>" + _WATCH, 1)
    copy.write_text(watched.replace("</body>", _READ + "</body>", 1), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=5000 --enable-logging=stderr --dump-dom"
    command = [browser, *flags.split(), f"--user-data-dir={folder / 'profile'}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    left = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert left, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**json.loads(html.unescape(left[1])), "console": console}


def test_the_browser_has_nothing_to_complain_of(visit: dict) -> None:
    assert visit["wrong"] == []
    assert visit["console"] == []


def test_the_slider_changes_the_picture(visit: dict) -> None:
    by_name = {each["what"]: each for each in visit["seen"]}
    assert visit["slider"] == Truth().epochs
    assert by_name["last"]["numbers"].startswith("At epoch 8 (step 80): entropy ")
    assert by_name["first"]["numbers"].startswith("At epoch 0 (step 0): entropy ")
    assert "faithfulness not known" in by_name["first"]["numbers"]
    assert by_name["last"]["picture"] != by_name["first"]["picture"]
    assert 0 < by_name["last"]["edges"] <= 60


def test_another_group_keeps_the_epoch_and_changes_the_picture(visit: dict) -> None:
    by_name = {each["what"]: each for each in visit["seen"]}
    assert by_name["major"]["numbers"].startswith("At epoch 0 ")
    assert by_name["major"]["picture"] != by_name["first"]["picture"]
    assert by_name["fewer"]["edges"] == 15


def test_nodes_can_be_reached_and_chosen_by_keyboard(visit: dict) -> None:
    by_name = {each["what"]: each for each in visit["seen"]}
    assert by_name["moved"]["node"] == "1"  # from input up to the first head of layer 0
    assert by_name["chosen"]["detail"].startswith("input: ")
    assert by_name["chosen"]["faded"] > 0


def test_the_page_s_circuit_is_the_run_s(visit: dict, material: Material) -> None:
    assert material.circuits is not None
    table = material.circuits.table
    row = table[(table["step"] == 80) & (table["task"] == "city") & (table["type"] == "revised")]
    row = row[row["band"] == "high"].iloc[0]
    last = visit["seen"][0]
    layout_nodes = 2 + 5 * 3
    assert last["absent"] == layout_nodes - row["nodes"]
    assert f"entropy {row['entropy']:.2f} nats, {row['edges']} edges, {row['nodes']} nodes" in last["numbers"]


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_text('{"model": "other"}')])
def test_a_configuration_that_was_lost_or_changed_is_refused(tmp_path, change):
    run = Run(tmp_path / "nano" / "default")
    write_run_config(run, {"model": "nano"})
    assert read_run_config(run).model == "nano"
    change(run.config)
    with pytest.raises(InputError, match=r"run_config\.json: .*run_config\.json .*restore it, or remove run_con"):
        read_run_config(run)
    run.config_manifest.unlink()
    assert read_run_config(run).model in ("", "other")
