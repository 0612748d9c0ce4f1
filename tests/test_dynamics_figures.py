"""Figures of the probes show what the measures say, and say so where nothing was probed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic_run import FREQUENCY, Truth, write_run

from knowledge_circuits.analysis import dynamics, learning_tables, relations, run_circuits
from knowledge_circuits.analysis.dynamics import Dynamics, FactHistory
from knowledge_circuits.figures import dynamics as dynamics_figures
from knowledge_circuits.figures import style
from knowledge_circuits.files import write_jsonl
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Attribute, Band, KnowledgeType

NAME = "nano/default"
PEOPLE = 4


def probe_records(truth: Truth) -> list[dict]:
    """Probes once an epoch: a fact is known from its midpoint on, but every third fact misses one probe later on."""
    records: list[dict] = []
    for epoch in range(truth.epochs + 1):
        when = {"step": epoch * truth.steps_per_epoch, "epoch": float(epoch)}
        for knowledge in KnowledgeType:
            for band in Band:
                for person in range(PEOPLE):
                    for place, attribute in enumerate(Attribute):
                        number = person * len(Attribute) + place
                        chance = truth.known(knowledge, band, epoch)
                        known = chance > 0.3 + 0.6 * number / (PEOPLE * len(Attribute))
                        lapse = number % 3 == 0 and epoch == truth.epochs - 1
                        records.append(
                            {
                                "kind": "fact",
                                **when,
                                "full_name": f"{knowledge} {band} {person}",
                                "attribute": str(attribute),
                                "type": str(knowledge),
                                "frequency": FREQUENCY[band],
                                "correct": bool(known and not lapse),
                                "token_prob": 0.01 + 0.9 * chance,
                                "token_rank": 0 if known else 30,
                                "answer_log_prob": -12.0 + epoch,
                            }
                        )
        accuracy = 0.9 - 0.05 * epoch
        records.append({"kind": "skill", **when, "skill": "arithmetic", "accuracy": accuracy, "examples": 100})
        records.append({"kind": "text", **when, "text": "held_out", "perplexity": 50.0 + 10 * epoch})
    return records


@dataclass(frozen=True)
class Probed:
    """A probed run and all that is made of its records."""

    run: Run
    records: Dynamics
    history: FactHistory
    probes: pd.DataFrame
    reconfiguration: pd.DataFrame

    @classmethod
    def of(cls, run: Run) -> Probed:
        records = dynamics.run_dynamics(run)
        probes = relations.probe_table(records, learning_tables.evaluations(run))
        changed = relations.reconfiguration_table(run_circuits.read_circuits(run))
        return cls(run, records, dynamics.fact_history(records.facts), probes, changed)

    def figures(self) -> dict[str, Figure]:
        """Every figure of the module."""
        return {
            "known_facts": dynamics_figures.known_facts(self.history, NAME),
            "knowledge_and_loss": dynamics_figures.knowledge_and_loss(self.probes, NAME),
            "acquisition_epochs": dynamics_figures.acquisition_epochs(self.history, NAME),
            "known to the end": dynamics_figures.acquired_and_known_to_end(self.history, NAME),
            "forgetting": dynamics_figures.forgetting(self.history, NAME),
            "prior_exposure": dynamics_figures.prior_exposure(self.history, NAME),
            "loss_and_knowledge": dynamics_figures.loss_and_knowledge(self.probes, NAME),
            "costs": dynamics_figures.skills_text_and_circuits(
                self.records.skills, self.records.texts, self.reconfiguration, NAME
            ),
            "selected": dynamics_figures.selected_checkpoints(self.probes, NAME),
        }


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Probed:
    run = write_run(tmp_path_factory.mktemp("probed") / "nano" / "default", Truth(epochs=6, people=2))
    write_jsonl(run.knowledge_dynamics, probe_records(Truth(epochs=6)))
    return Probed.of(run)


@pytest.fixture(scope="module")
def figures(probed: Probed) -> dict[str, Figure]:
    return probed.figures()


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in [*figure.texts, *(text for ax in figure.axes for text in ax.texts)])


def test_every_figure_is_drawn_titled_and_names_its_run(figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        assert "run nano/default" in words(figure), name
        assert "--probe_file" not in words(figure), name
        assert any(ax.get_xlabel() for ax in figure.axes), name
        assert len(style.png(figure)) > 2_000, name


def test_known_facts_are_the_probes_shares(probed: Probed, figures: dict[str, Figure]) -> None:
    chosen = ((probed.history.facts["type"] == "revised") & (probed.history.facts["band"] == "high")).to_numpy()
    lines = [line for line in figures["known_facts"].axes[2].lines if line.get_color() == style.VERMILION]
    points = next(line for line in lines if line.get_linestyle() == "None")
    assert np.asarray(points.get_ydata()) == pytest.approx(probed.history.known[chosen].mean(axis=0))


def test_gained_and_lost_bars_add_up_to_the_change_of_known_facts(probed: Probed, figures: dict[str, Figure]) -> None:
    gained, lost = figures["knowledge_and_loss"].axes[1].containers
    change = [up.get_height() + down.get_height() for up, down in zip(gained, lost, strict=True)]
    assert change == probed.probes["known"].diff().fillna(0).tolist()
    assert min(bar.get_height() for bar in lost) < 0


def test_acquisition_bars_and_never_known_facts_make_up_a_group(probed: Probed, figures: dict[str, Figure]) -> None:
    ax = figures["acquisition_epochs"].axes[0]
    for container, knowledge in zip(ax.containers, style.TYPES, strict=True):
        chosen = ((probed.history.facts["type"] == knowledge) & (probed.history.facts["band"] == "low")).to_numpy()
        ever = probed.history.known[chosen].any(axis=1).mean()
        assert sum(bar.get_height() for bar in container) == pytest.approx(ever)


def test_acquisition_windows_stand_where_the_measure_puts_them(probed: Probed, figures: dict[str, Figure]) -> None:
    table = dynamics.describe_groups(probed.history).set_index(["type", "band"])
    drawn = [line.get_xdata() for line in figures["acquisition_epochs"].axes[2].lines if len(line.get_xdata()) == 2]
    wanted = [table.loc[(knowledge, "high"), ["window_start", "window_end"]].tolist() for knowledge in style.TYPES]
    assert [list(ends) for ends in drawn] == wanted


def test_the_lapse_shows_as_forgetting(figures: dict[str, Figure]) -> None:
    how_often = figures["forgetting"].axes[0]
    assert {round(bar.get_x() + bar.get_width() / 2) for group in how_often.containers for bar in group} == {0, 1}
    non_monotonic = [bar.get_height() for group in figures["forgetting"].axes[1].containers for bar in group]
    assert max(non_monotonic) > 0.2


def test_correlations_stand_in_the_titles(probed: Probed, figures: dict[str, Figure]) -> None:
    found = relations.loss_knowledge_correlation(probed.probes["loss"], probed.probes["known"])
    assert f"{found.value:+.2f}" in figures["loss_and_knowledge"].axes[0].get_title(loc="left")
    frequency = relations.prior_exposure(probed.history)["known_at_end ~ frequency"]
    assert f"{frequency.value:+.2f}" in figures["prior_exposure"].axes[1].get_title(loc="left")


def test_each_rules_pick_is_marked_at_its_epoch(probed: Probed, figures: dict[str, Figure]) -> None:
    picks = relations.select_checkpoints(probed.probes)
    marks = [line for line in figures["selected"].axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in marks] == picks["epoch"].tolist()
    assert [line.get_ydata()[0] for line in marks] == pytest.approx(picks["loss"].tolist())


def test_a_run_without_probes_says_how_to_get_them(tmp_path: Path) -> None:
    bare = Probed.of(write_run(tmp_path / "nano" / "bare", Truth(epochs=1), circuits=False))
    assert bare.history.known.shape == (0, 0)
    assert relations.select_checkpoints(bare.probes).empty
    assert relations.relation_table(bare.history, bare.probes).empty
    for name, figure in bare.figures().items():
        wanted = "no skills were probed" if name == "costs" else "--probe_file"
        assert wanted in words(figure), name


def test_the_reconfiguration_rate_is_what_two_neighbours_do_not_share(probed: Probed) -> None:
    circuits = run_circuits.read_circuits(probed.run)
    assert circuits is not None
    table = circuits.table.reset_index()
    part = table[(table["task"] == "city") & (table["type"] == "new") & (table["band"] == "low")].sort_values("step")
    first, second = (circuits.edges[row] for row in part["index"].iloc[:2])
    changed = probed.reconfiguration
    row = changed[(changed["task"] == "city") & (changed["type"] == "new") & (changed["band"] == "low")].iloc[0]
    assert row["epoch"] == 1
    assert row["rate"] == pytest.approx(1 - (first & second).sum() / (first | second).sum())
    assert len(changed) == 18 * 6


def test_relations_are_listed_with_their_coefficients(probed: Probed) -> None:
    table = relations.relation_table(probed.history, probed.probes).set_index("relation")
    prior = relations.prior_exposure(probed.history)
    assert set(prior) < set(table.index)
    assert table.loc["acquisition ~ frequency", "value"] == prior["acquisition ~ frequency"].value
    assert table["coefficient"].value_counts().to_dict() == {"Spearman": 4, "Pearson": 1}
