"""Tables, figures, page and notebooks of a run of one's own facts: they show its groups, with the run's numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from notebooks import cells, run_notebook
from synthetic_run import CHANCE, Truth, scored_graph

from knowledge_circuits.analysis import (
    circuit_settings,
    circuit_tables,
    components,
    dynamics,
    findings,
    learning_tables,
    relations,
    run_circuits,
    timeline,
)
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.engine.graph_files import write_graph
from knowledge_circuits.engine.selection import prune, top_n
from knowledge_circuits.figures import circuit_evaluation, learning, stability, style, topology
from knowledge_circuits.figures.panels import MOST_GROUPS
from knowledge_circuits.files import InputError
from knowledge_circuits.report.material import made_from, read_material
from knowledge_circuits.report.page import report_html
from knowledge_circuits.runs import Run
from knowledge_circuits.study import FactGroup, Group, groups

ANALYSIS = Path(__file__).parents[1] / "analysis"
ASIA, EUROPE = (FactGroup("capitals", (("group", name),)) for name in ("asia", "europe"))


@pytest.fixture(scope="module")
def circuits(fact_run: Run) -> Circuits:
    found = run_circuits.read_circuits(fact_run)
    assert found is not None
    return found


@pytest.fixture
def own_run(fact_run: Run, tmp_path: Path) -> Run:
    """A copy of the run that a test may change."""
    return Run(Path(shutil.copytree(fact_run.path, tmp_path / "my_corpus" / "full")))


def said(figure: Figure) -> str:
    """Everything that is written in a figure."""
    legends = [text.get_text() for box in figure.legends for text in box.get_texts()]
    return " | ".join([*(text.get_text() for ax in (figure, *figure.axes) for text in ax.texts), *legends])


def points(figure: Figure, panel: int, name: str) -> list[float]:
    """The points of the line that a legend calls by a name."""
    (color,) = {line.get_color() for line in figure.legends[0].get_lines() if line.get_label() == name}
    marks = [line for line in figure.axes[panel].lines if line.get_color() == color and line.get_linestyle() == "None"]
    return np.asarray(marks[0].get_ydata()).tolist()


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_run_shows_its_own_facts_only_where_it_has_no_circuits_of_the_study(own_run: Run) -> None:
    assert circuit_settings.main_kind(own_run) is FactGroup
    assert set(circuit_tables.results(own_run)["group"]) == {"asia", "europe"}
    assert circuit_tables.results(own_run, kind=Group).empty
    group = next(groups())
    folder = own_run.checkpoints()[0].circuit_folder(30, group, "EAP-IG")
    write_graph(folder.circuit(Truth().topn), prune(top_n(scored_graph(Truth(), group, 0.0), Truth().topn)))
    assert circuit_settings.main_kind(own_run) is Group
    assert "type" in circuit_tables.results(own_run)
    of_study, of_facts = (run_circuits.read_circuits(own_run, kind=kind) for kind in (Group, FactGroup))
    assert of_study is not None and len(of_study.table) == 1
    assert of_facts is not None and len(of_facts.table) == 2 * (Truth().epochs + 1)


def test_circuits_of_own_facts_have_the_measures_of_their_graphs(fact_run: Run, circuits: Circuits) -> None:
    table = circuits.table
    assert list(table)[:4] == ["step", "epoch", "task", "group"] and circuits.group_columns == ["task", "group"]
    assert (table[table["step"] == 80]["edge_jaccard"] == 1).all()
    results = circuit_tables.results(fact_run)
    both = results.merge(table, on=["step", "task", "group"])
    assert both["edge_entropy"].to_numpy() == pytest.approx(both["entropy"].to_numpy(), rel=1e-5)
    assert dict(zip(table["group"], table["prompts"], strict=True)) == {"asia": 4, "europe": 6}
    assert relations.reconfiguration_table(circuits).groupby("group").size().to_dict() == {"asia": 8, "europe": 8}
    assert findings.phase_shift(circuits).statistics and findings.deep_to_shallow(circuits).statistics


def test_questions_of_probes_are_facts_of_their_kind_and_frequency(fact_run: Run) -> None:
    table = learning_tables.fact_predictions(fact_run)
    asked = table[table["task"] == learning_tables.QUESTIONS]
    assert set(asked["group"]) == {f"{kind} / {how}" for kind in ("factual", "temporal") for how in ("low", "high")}
    assert "nobody" not in set(asked["prompt"]), "no document mentions them"
    recalls = asked[asked["group"] == "factual / low"].groupby("epoch")["recall"].mean()
    assert recalls.tolist() == [0, 0.5, 1, 1]  # entities know in turn "0111" and "0011"
    assert asked["first_token_correct"].isna().all() and table[table["task"] == "capitals"]["recall"].isna().all()
    known = learning_tables.facts_known(asked)
    assert known[known["prompt"] == "low 1 factual"][[0.0, 1.0, 2.0, 3.0]].to_numpy().tolist() == [[0, 0, 1, 1]]
    answers = learning_tables.answers(fact_run)
    pd.testing.assert_frame_equal(answers, table)


def test_the_last_numbers_have_a_row_for_each_group(fact_run: Run) -> None:
    table = circuit_tables.last_checkpoint(fact_run).set_index(["task", "group"])
    assert len(table) == 2 + 4
    europe, asked = table.loc["capitals", "europe"], table.loc["questions", "temporal / high"]
    assert (europe["accuracy"], europe["first_token"]) == (4 / 6, 4 / 6)
    assert (europe["prompts"], europe["hit"]) == (6, 1) and europe["faithfulness"] > 0.9
    assert np.isnan(europe["recall"]) and (asked["recall"], asked["accuracy"]) == (1, 1)
    assert np.isnan(asked["faithfulness"])


def test_the_last_numbers_are_of_one_kind_of_groups(fact_run: Run, synthetic_run: Run) -> None:
    results, hits = circuit_tables.results(synthetic_run), circuit_tables.circuit_predictions(synthetic_run)
    table = circuit_tables.last_numbers(results, hits, learning_tables.fact_predictions(fact_run))
    assert len(table) == 18 and table["accuracy"].isna().all() and table["hit"].notna().all()
    assert "recall" not in table


def test_edges_are_shared_lost_or_new(fact_run: Run, circuits: Circuits) -> None:
    first, last = run_circuits.circuits_at(fact_run, EUROPE, [0, float("inf")]).values()
    row = run_circuits.edge_changes(circuits).set_index("group").loc["europe"]
    counts = ((first & last).n_edges, (first - last).n_edges, (last - first).n_edges)
    assert tuple(row[["shared", "lost", "new"]]) == counts and counts[1] != counts[2]
    assert row["edge_jaccard"] == pytest.approx(first.jaccard(last))
    assert (row["from_epoch"], row["to_epoch"]) == (0, 8)
    (before,) = run_circuits.circuits_at(fact_run, EUROPE, [6]).values()
    parts = run_circuits.compared({"epoch 6": before, "epoch 8": last})
    assert list(parts) == ["shared", "only epoch 6", "only epoch 8"]
    sizes = [part.n_edges for part in parts.values()]
    assert sizes == [(before & last).n_edges, (before - last).n_edges, (last - before).n_edges] and sizes[0] > 0
    alone = run_circuits.compared({"epoch 8": last})
    assert {name: part.n_edges for name, part in alone.items()} == {"shared": last.n_edges, "only epoch 8": 0}
    names, matrix = circuits.group_similarity()
    assert names == [{"task": "capitals", "group": "asia"}, {"task": "capitals", "group": "europe"}]
    (other,) = run_circuits.circuits_at(fact_run, ASIA, [8]).values()
    assert matrix == pytest.approx(np.array([[1, other.jaccard(last)], [other.jaccard(last), 1]]))


def test_a_group_is_chosen_by_its_name(fact_run: Run, synthetic_run: Run) -> None:
    assert run_circuits.choose_group(fact_run) == ASIA
    assert run_circuits.choose_group(fact_run, "capitals / europe") == EUROPE
    assert run_circuits.choose_group(synthetic_run) == run_circuits.EXAMPLE
    assert str(run_circuits.choose_group(synthetic_run, "major / new / low")) == "major / new / low"
    with pytest.raises(InputError, match=r"no circuits of the group .rivers., only of capitals / asia; capitals / eur"):
        run_circuits.choose_group(fact_run, "rivers")


def test_question_probes_have_skills_and_texts_but_no_facts_about_people(fact_run: Run) -> None:
    found = dynamics.run_dynamics(fact_run)
    assert found.facts.empty and list(found.skills) == dynamics.SKILL_COLUMNS
    assert found.skills.groupby("skill")["accuracy"].mean().to_dict() == {"arithmetic": 0.5, "reasoning": 0.7}
    assert found.texts["perplexity"].tolist() == [20.0] * 4


def test_head_kinds_say_that_they_need_the_study_s_prompts(fact_run: Run) -> None:
    assert components.analyse_run(fact_run).missing == components.NO_SUBJECTS


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_of_circuits_have_a_line_for_each_group(fact_run: Run, circuits: Circuits) -> None:
    results, hits = circuit_tables.results(fact_run), circuit_tables.circuit_predictions(fact_run)
    certain = results[results["clean_minus_corrupted_low"] > 0].set_index("group")
    shown = points(circuit_evaluation.faithfulness(results, "run"), 0, "europe")
    assert shown == pytest.approx(certain.loc["europe", "faithfulness"].tolist())
    assert circuit_evaluation.faithfulness(results, "run").axes[0].get_title(loc="left") == "4 to 6 prompts a group"
    table = circuits.table.set_index("group")
    entropy = topology.circuit_entropy(circuits, "run")
    similarity = topology.similarity_to_last(circuits, "run")
    for name in ("asia", "europe"):
        assert points(entropy, 0, name) == pytest.approx(table.loc[name, "entropy"].tolist())
        assert points(similarity, 0, name) == pytest.approx(table.loc[name, "edge_jaccard"].tolist()[:-1])
    assert len(topology.three_entropies(circuits, "run").axes) == 3
    maps = topology.activation_ratio(circuits, "run")
    assert [ax.get_title(loc="left") for ax in maps.axes[:2]] == ["asia", "europe"]
    ratios = circuits.activation[(circuits.table["group"] == "europe").to_numpy(), :-1]
    assert np.asarray(maps.axes[1].images[0].get_array()) == pytest.approx(ratios.T)
    assert "No stability" in said(stability.stability(circuits, "run"))

    own = circuit_evaluation.hits_by_type(hits, results, "run")
    assert points(own, 0, "asia") == [1] * 9 and own.axes[0].get_title(loc="left") == "4 to 6 test items a group"
    across = circuit_evaluation.hits_across_bands(hits, results, "run")
    assert [ax.get_title(loc="left") for ax in across.axes] == ["tested: asia", "tested: europe"]
    assert points(across, 0, "asia") == [1] * 9 and points(across, 0, "europe") == [0] * 9
    chance = [line for line in across.axes[0].lines if line.get_linestyle() == ":"]
    assert chance[0].get_ydata() == pytest.approx([CHANCE] * 9)
    alone = hits[hits["group"] == hits["target_group"]]
    assert "--target_group" in said(circuit_evaluation.hits_across_bands(alone, results, "run"))


def test_faithfulness_that_is_nowhere_certain_is_crosses_on_its_axis(fact_run: Run) -> None:
    results = circuit_tables.results(fact_run)
    unsure = results.assign(clean_minus_corrupted_low=-1.0, clean_minus_corrupted_high=1.0)
    ax = circuit_evaluation.faithfulness(unsure, "run").axes[0]
    (crosses,) = (line for line in ax.lines if line.get_marker() == "x")
    assert ax.axison and not ax.texts and len(crosses.get_xdata()) == len(results)


def test_transferred_circuits_of_own_facts_have_a_panel_for_each_group() -> None:
    rows = [
        {
            **{"step": step, "epoch": step / 10, "circuit_step": origin, "task": "capitals", "full_name": "p"},
            **{"group": group, "target_group": target, "hit": float(group == target)},
        }
        for step in (0, 10)
        for origin in {0, step}
        for group in ("asia", "europe")
        for target in ("asia", "europe")
    ]
    figure = circuit_evaluation.hits_of_transferred_circuits(pd.DataFrame(rows), "run")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["asia", "europe"]
    assert {tuple(line.get_ydata()) for ax in figure.axes for line in ax.lines} == {(1.0, 1.0)}


def test_what_is_learned_is_drawn_by_group(fact_run: Run) -> None:
    answers, none = learning_tables.answers(fact_run), learning_tables.first_token_accuracy(fact_run)
    figure = learning.first_token_and_query_accuracy(none, answers, "run")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["First token", "Whole answer", "Questions: ROUGE-1 recall"]
    rising = [min(6, (epoch + 1) // 2) / 6 for epoch in range(9)]
    assert points(figure, 1, "capitals / europe") == pytest.approx(rising)
    assert points(figure, 2, "questions / factual / low") == [0, 0.5, 1, 1]
    prompts, questions, _ = learning.knowledge_heatmap(answers, "run").axes
    image = np.asarray(prompts.images[0].get_array())
    assert image.shape == (10, 9) and image.sum() == pytest.approx(6 * sum(rising))
    assert [label.get_text() for label in prompts.get_yticklabels()] == ["asia", "europe"]
    assert questions.images[0].get_array().shape == (24, 4)
    for drawn in (learning.query_accuracy, learning.accuracy_by_attribute):
        assert style.NOT_OF_FACTS in said(drawn(answers, "run"))


def test_a_legend_that_is_wider_than_its_figure_takes_several_rows() -> None:
    rows = [
        {"step": 0, "epoch": 0.0, "task": "facts", "group": f"a group with a long name, number {n}"} for n in range(15)
    ]
    table = pd.DataFrame(rows).assign(correct=1.0, first_token_correct=1.0, recall=np.nan)
    figure = learning.fact_accuracy(table, "run")
    (box,) = figure.legends
    assert len(box.get_texts()) == MOST_GROUPS and "3 further groups are not drawn" in said(figure)
    figure.dpi = 192
    extent = box.get_window_extent()
    assert extent.x1 <= figure.bbox.x1
    assert extent.y0 > max(ax.get_tightbbox().y1 for ax in drawn_axes(figure)), "no panel is under the legend"


def drawn_axes(figure: Figure) -> list:
    figure.draw_without_rendering()
    return figure.axes


# --- page and notebooks -----------------------------------------------------------------------------------------------


def test_the_page_of_own_facts_has_the_sections_of_its_circuits(fact_run: Run) -> None:
    material = read_material(fact_run)
    assert not material.is_study and material.findings == ()
    page = report_html(material)
    for anchor in ("groups", "topology", "prompts", "circuits"):
        assert f'id="{anchor}"' in page
    assert 'id="evaluation"' not in page and 'id="findings"' not in page and "18 groups" not in page
    assert "Generalization of circuits across groups of facts" in page
    table = page[page.index('id="numbers"') : page.index("</table>")]
    assert "Answers at epoch 8 (step 80); answers at epoch 3 (step 12); circuits at epoch 8 (step 80)" in table
    assert table.count('<td class="word">questions</td>') == 4


def test_the_page_is_made_from_the_probes_too(own_run: Run) -> None:
    before = made_from(own_run)
    probes = own_run.question_probes.read_text().splitlines(keepends=True)
    own_run.question_probes.write_text("".join(probes[:-1]))
    assert made_from(own_run) != before


def test_the_notebooks_run_on_a_run_of_own_facts(own_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", str(own_run.path))
    monkeypatch.setenv("GROUP", "capitals / europe")
    for name in ("acquisition", "topology", "circuit", "components", "dynamics"):
        shutil.rmtree(own_run.figures, ignore_errors=True)
        names = run_notebook(name, monkeypatch)
        assert len(list(own_run.figures.iterdir())) == "".join(cells(name)).count("keep("), name
        if name == "circuit":
            assert names["group"] == EUROPE and list(names["parts"]) == ["shared", "only epoch 0", "only epoch 8"]
            assert names["parts"]["only epoch 8"].n_edges == 15


def test_a_run_without_circuits_says_so_in_its_notebooks(tmp_path: Path, fact_run: Run, monkeypatch) -> None:
    folder = tmp_path / "my_corpus" / "asked"
    shutil.copytree(fact_run.path, folder, ignore=shutil.ignore_patterns("circuit_*", "*prediction.jsonl", "figures"))
    monkeypatch.setenv("RUN", str(folder))
    assert set(run_notebook("acquisition", monkeypatch)["predictions"]["task"]) == {learning_tables.QUESTIONS}
    assert run_notebook("circuit", monkeypatch)["parts"] == {}


def test_figures_name_the_run_of_own_facts(fact_run: Run, circuits: Circuits) -> None:
    figure = topology.group_similarity(circuits, timeline.run_name(fact_run))
    assert "run my_corpus/full" in said(figure) and "epoch 8" in said(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["capitals, europe", "capitals, asia"]
