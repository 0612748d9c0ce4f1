"""Head kinds and the logit lens over a run: whole groups in batches, what is saved, what is missing; the figures."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_run
import torch
from matplotlib.figure import Figure
from notebooks import run_notebook
from statsmodels.stats.inter_rater import cohens_kappa
from tiny_run import TinyRun, call, make_run

import circuit_discovery
import circuit_eval
from knowledge_circuits.analysis import components, run_circuits
from knowledge_circuits.analysis.circuit_settings import Setting
from knowledge_circuits.analysis.components import (
    analyse_model,
    analyse_run,
    circuit_heads,
    kind_layers,
    kind_proportions,
)
from knowledge_circuits.analysis.head_kinds import (
    HeadKind,
    VocabularySums,
    direct_logit_attribution,
    head_kinds,
    split_by_source,
    without_vocabulary_mean,
)
from knowledge_circuits.analysis.prompt_view import PromptView, view_prompt
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import all_logits, embed, forward
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.figures import components as component_figures
from knowledge_circuits.figures import style
from knowledge_circuits.files import InputError, write_json, write_jsonl
from knowledge_circuits.models.loading import load_model
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Attribute, Band, Group, KnowledgeType, groups

KINDS = [str(HeadKind.MOVER), str(HeadKind.RELATION), str(HeadKind.MIXTURE)]
SHORT = synthetic_run.Truth(epochs=1, people=2)
CITY = Group(Attribute.CITY, KnowledgeType.NEW, Band.HIGH)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of two checkpoints with circuits of all 18 groups. Read only but for analysis/."""
    tiny_run = make_run(tmp_path_factory.mktemp("run"))
    call(circuit_discovery.main, tiny_run.discovery("--ig_steps", "1"))
    call(circuit_eval.main, tiny_run.evaluation("--topn", "40"))
    write_jsonl(tiny_run.folder / "evaluations.jsonl", [{"step": 4, "epoch": 1.0, "loss": 1.0, "accuracy": 0.5}])
    return tiny_run


@pytest.fixture(scope="module")
def run(made: TinyRun) -> Run:
    return Run(made.folder)


@pytest.fixture(scope="module")
def analysed(made: TinyRun, run: Run) -> components.Components:
    return analyse_run(run, data_file=made.circuit_data, device="cpu")


@pytest.fixture(scope="module")
def circuits(run: Run) -> Circuits:
    found = run_circuits.read_circuits(run)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def last(made: TinyRun) -> tuple[Decoder, components.GroupPrompts, VocabularySums]:
    path = str(made.checkpoints / "checkpoint-4")
    prompts = components.read_group_prompts(made.circuit_data, load_tokenizer(path), limit=6)
    return load_decoder(path), prompts, VocabularySums.of(load_model(path))


def rows_of(table: pd.DataFrame, group: Group, step: int) -> pd.DataFrame:
    chosen = (table["task"] == group.task) & (table["type"] == group.type) & (table["band"] == group.band)
    return table[chosen & (table["step"] == step)]


def test_a_group_is_the_mean_of_its_prompts_taken_one_by_one(
    analysed: components.Components, last: tuple[Decoder, components.GroupPrompts, VocabularySums]
) -> None:
    decoder, prompts, _ = last
    members = (prompts.members == prompts.groups.index(CITY)).nonzero()[:, 0].tolist()
    subject, relation, ranks, probabilities = [], [], [], []
    for number in members:
        ids = torch.tensor([list(prompts.pairs.clean[number])])
        target = torch.tensor([prompts.pairs.labels[number][0]])
        trace = forward(decoder, embed(decoder, ids))
        parts = direct_logit_attribution(without_vocabulary_mean(decoder), trace, target)[0]
        end = 1 + int(prompts.subject_tokens[number])
        subject.append(parts[..., 1:end].sum(-1))
        relation.append(parts[..., end:].sum(-1))
        logits = all_logits(decoder, ids)[0, -1]
        ranks.append(int((logits > logits[target]).sum()) + 1)
        probabilities.append(float(logits.softmax(-1)[target]))
    heads = rows_of(analysed.heads, CITY, 4).sort_values(["layer", "head"])
    assert np.allclose(heads["subject"], torch.stack(subject).mean(0).flatten(), rtol=1e-3, atol=1e-6)
    assert np.allclose(heads["relation"], torch.stack(relation).mean(0).flatten(), rtol=1e-3, atol=1e-6)
    halves = [
        head_kinds(*(torch.stack(part)[half::2].mean(0).flatten() for part in (subject, relation))) for half in (0, 1)
    ]
    assert heads["even_kind"].tolist() == halves[0].tolist() and heads["odd_kind"].tolist() == halves[1].tolist()
    lens = rows_of(analysed.lens, CITY, 4).set_index("layer")
    assert lens.index.tolist() == list(range(decoder.n_layers + 1))
    assert lens.loc[decoder.n_layers, "rank"] == pytest.approx(np.mean(ranks), rel=1e-4)
    assert lens.loc[decoder.n_layers, "prob"] == pytest.approx(np.mean(probabilities), rel=1e-4)


def test_agreement_of_two_halves_stands_beside_that_by_chance(
    analysed: components.Components, circuits: Circuits
) -> None:
    table = components.halves_agreement(analysed.heads, circuits)
    assert table["step"].tolist() == [0, 4]
    inside = components.circuit_heads(analysed.heads, circuits)
    last = inside[inside["step"] == 4]
    row = table.iloc[-1]
    halves = (pd.Categorical(last[f"{half}_kind"], KINDS) for half in ("even", "odd"))
    expected = cohens_kappa(pd.crosstab(*halves, dropna=False).to_numpy())
    assert row["heads"] == len(last)
    assert row["agreement"] == pytest.approx((last["even_kind"] == last["odd_kind"]).mean())
    assert row["kappa"] == pytest.approx(expected.kappa)
    assert row["low"] < row["kappa"] < row["high"]
    alone = components.halves_agreement(rows_of(analysed.heads, CITY, 4), circuits)
    assert alone["kappa"].notna().all() and alone[["low", "high"]].isna().all(axis=None)  # no interval over one group


def test_halves_that_draw_kinds_at_random_agree_by_chance_alone(
    analysed: components.Components, circuits: Circuits
) -> None:
    generator = np.random.default_rng(0)
    drawn = {
        f"{half}_kind": generator.choice(KINDS, len(analysed.heads), p=[0.1, 0.6, 0.3]) for half in ("even", "odd")
    }
    table = components.halves_agreement(analysed.heads.assign(**drawn), circuits)
    assert (table["agreement"] > 0.35).all() and table["chance"].to_numpy() == pytest.approx([0.46] * 2, abs=0.08)
    assert ((table["low"] < 0) & (table["high"] > 0)).all()
    alike = components.halves_agreement(analysed.heads.assign(even_kind="mover", odd_kind="mover"), circuits)
    assert (alike["agreement"] == 1).all() and alike["kappa"].isna().all()


def test_subject_tokens_are_the_names(made: TinyRun, last: tuple) -> None:
    _, prompts, _ = last
    tokenizer = load_tokenizer(str(made.checkpoints / "checkpoint-0"))
    for number in (0, len(prompts.pairs) - 1):
        ids = prompts.pairs.clean[number]
        mask = prompts.subject_mask(torch.tensor([number]), len(ids))[0].tolist()
        inside = [token for token, chosen in zip(ids, mask, strict=True) if chosen]
        assert tokenizer.decode(inside) == prompts.pairs.rows[number]["clean_subject"]
        assert not mask[0]


def test_results_do_not_depend_on_the_batch_size(last: tuple) -> None:
    decoder, prompts, sums = last
    one, many = (analyse_model(decoder, sums, prompts, size) for size in (1, 64))
    small = analyse_model(decoder, sums, prompts, 64, memory_gb=1e-6)
    for part in ("subject", "relation"):
        assert np.allclose(one.heads[part], many.heads[part], atol=1e-6)
        assert np.allclose(one.heads[part], small.heads[part], atol=1e-6)
    assert np.allclose(one.lens["subject_rank"], many.lens["subject_rank"])


def test_a_second_call_reads_what_the_first_saved(made: TinyRun, run: Run, analysed: components.Components) -> None:
    saved = sorted((run.path / "analysis" / "circuit_6").iterdir())
    assert [path.name for path in saved] == ["checkpoint-0.json", "checkpoint-4.json"]
    before = [path.stat().st_mtime_ns for path in saved]
    again = analyse_run(run, data_file=made.circuit_data, device="cpu")
    assert [path.stat().st_mtime_ns for path in saved] == before
    assert len(again.heads) == len(analysed.heads) == 2 * 18 * 2 * 4
    pd.testing.assert_frame_equal(again.heads, analysed.heads)
    pd.testing.assert_frame_equal(again.lens, analysed.lens)


def test_other_weights_or_prompts_are_analysed_again(made: TinyRun, run: Run, tmp_path: Path) -> None:
    copy = TinyRun(tmp_path / "run")
    shutil.copytree(made.folder, copy.folder)
    saved = copy.folder / "analysis" / "circuit_6" / "checkpoint-0.json"
    analyse_run(Run(copy.folder), data_file=copy.circuit_data, device="cpu")
    before = saved.read_text()
    assert before == (run.path / "analysis" / "circuit_6" / "checkpoint-0.json").read_text()

    weights = copy.checkpoints / "checkpoint-0" / "model.safetensors"
    shutil.copy(copy.checkpoints / "checkpoint-4" / "model.safetensors", weights)
    changed = analyse_run(Run(copy.folder), data_file=copy.circuit_data, device="cpu").heads
    ours, last = (rows_of(changed, CITY, step)["subject"].to_numpy() for step in (0, 4))
    assert saved.read_text() != before and np.allclose(ours, last, rtol=1e-4)

    path = Path(copy.circuit_data.replace("{task}", "city"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    before = saved.read_text()
    analyse_run(Run(copy.folder), data_file=copy.circuit_data, device="cpu")
    assert saved.read_text() != before


def test_what_was_saved_serves_when_the_weights_are_gone(made: TinyRun, tmp_path: Path) -> None:
    copy = TinyRun(tmp_path / "run")
    shutil.copytree(made.folder, copy.folder)
    first = analyse_run(Run(copy.folder), data_file=copy.circuit_data, device="cpu")
    for weights in copy.checkpoints.glob("*/model.safetensors"):
        weights.unlink()
    again = analyse_run(Run(copy.folder), data_file="nowhere/{task}.jsonl", device="cpu")
    assert len(again.heads) == len(first.heads) and again.missing == ""
    assert view_prompt(Run(copy.folder), CITY, data_file=copy.circuit_data) is None


def test_a_damaged_saved_analysis_is_named(made: TinyRun, tmp_path: Path) -> None:
    copy = TinyRun(tmp_path / "run")
    shutil.copytree(made.checkpoints, copy.checkpoints)
    for weights in copy.checkpoints.glob("*/model.safetensors"):
        weights.unlink()
    path = copy.folder / "analysis" / "circuit_6" / "checkpoint-0.json"
    write_json(path, {"key": "of another time", "groups": []})
    with pytest.raises(InputError, match=r"checkpoint-0\.json: not an analysis.*remove the file"):
        analyse_run(Run(copy.folder))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    without = synthetic_run.write_run(tmp_path / "models" / "bare", SHORT, circuits=False)
    assert "No circuits" in analyse_run(without).missing
    graphs_only = synthetic_run.write_run(tmp_path / "models" / "graphs", SHORT)
    found = analyse_run(graphs_only)
    assert found.heads.empty and list(found.heads) == components.HEAD_COLUMNS
    assert "circuit data" in found.missing
    write_json(graphs_only.config, {"model": "nano", "arguments": {"train_file": str(tmp_path / "train.jsonl")}})
    for task in ("city", "company", "major"):
        write_jsonl(tmp_path / "circuit_30" / "nano" / f"{task}.jsonl", [])
    assert "weights" in analyse_run(graphs_only).missing


def test_the_runs_configuration_tells_where_its_circuit_data_lie(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "run")
    write_json(other.config, {"model": "gpt2", "arguments": {"train_file": str(tmp_path / "d" / "train.jsonl")}})
    setting = Setting(300, "EAP-IG", 8000)
    (tmp_path / "d").mkdir()
    assert components.circuit_data_file(other, setting) == str(tmp_path / "d/circuit_300/gpt2/{task}.jsonl")


def test_proportions_are_the_kinds_heads_over_the_circuits_nodes(
    analysed: components.Components, circuits: Circuits
) -> None:
    place = circuits.table.index[
        (circuits.table["task"] == CITY.task)
        & (circuits.table["type"] == CITY.type)
        & (circuits.table["band"] == CITY.band)
        & (circuits.table["step"] == 4)
    ][0]
    names = np.array(circuits.layout.nodes)[circuits.nodes[place]]
    heads = rows_of(analysed.heads, CITY, 4)
    kind = {f"a{layer}.h{head}": k for layer, head, k in zip(heads["layer"], heads["head"], heads["kind"], strict=True)}
    proportions = rows_of(kind_proportions(analysed.heads, circuits), CITY, 4).set_index("kind")["proportion"]
    for one in (HeadKind.MOVER, HeadKind.RELATION, HeadKind.MIXTURE):
        expected = sum(kind.get(name) == one for name in names) / len(names)
        assert proportions[one] == pytest.approx(expected)
    assert proportions.sum() == pytest.approx(sum(name.startswith("a") for name in names) / len(names))


def test_layer_shares_add_up_to_the_circuits_heads(analysed: components.Components, circuits: Circuits) -> None:
    shares = kind_layers(analysed.heads, circuits)
    inside = circuit_heads(analysed.heads, circuits)
    for knowledge in KnowledgeType:
        for epoch in (0.0, 1.0):
            part = shares[(shares["type"] == knowledge) & (shares["epoch"] == epoch)]
            heads = inside[(inside["type"] == knowledge) & (inside["epoch"] == epoch)]
            assert part["share"].sum() * circuits.layout.n_heads * 9 == pytest.approx(len(heads))
    assert circuit_heads(analysed.heads, None).empty


@pytest.fixture(scope="module")
def view(made: TinyRun, run: Run) -> PromptView:
    found = view_prompt(run, CITY, number=1, top=4, data_file=made.circuit_data)
    assert found is not None
    return found


def test_a_prompts_view_ends_at_the_models_answer(last: tuple, view: PromptView) -> None:
    decoder, prompts, _ = last
    number = (prompts.members == prompts.groups.index(CITY)).nonzero()[1, 0]
    logits = all_logits(decoder, torch.tensor([list(prompts.pairs.clean[number])]))[0, -1]
    target = prompts.pairs.labels[number][0]
    assert view.where == "epoch 1"
    assert view.text == CITY.task.prompt(prompts.pairs.rows[number]["clean_subject"])
    assert view.answer.strip() and prompts.pairs.rows[number]["clean_label"].startswith(view.answer)
    assert view.prob[-1] == pytest.approx(float(logits.softmax(-1)[target]), rel=1e-4)
    assert view.layers[-1].scores == pytest.approx(logits.softmax(-1).topk(4).values.tolist(), rel=1e-4)
    assert "".join(view.tokens[place] for place in view.subject) == prompts.pairs.rows[number]["clean_subject"]


def test_a_prompts_components_are_its_logit(last: tuple, view: PromptView) -> None:
    decoder, prompts, _ = last
    number = int((prompts.members == prompts.groups.index(CITY)).nonzero()[1, 0])
    ids = torch.tensor([list(prompts.pairs.clean[number])])
    target = torch.tensor([prompts.pairs.labels[number][0]])
    trace = forward(decoder, embed(decoder, ids))
    written = sum(component.answer for component in view.components)
    direction = decoder.unembedding[:, target[0]] * trace.final_normalized.inverse_scale[0, -1]
    biases = [block.attention.b_o @ direction for block in decoder.blocks] + [decoder.unembedding_bias[target[0]]]
    assert written + float(sum(biases)) == pytest.approx(float(all_logits(decoder, ids)[0, -1, target[0]]), abs=1e-4)
    sizes = [abs(component.answer) for component in view.components]
    assert sizes == sorted(sizes, reverse=True)
    subject = torch.zeros(1, ids.shape[1], dtype=torch.bool)
    subject[0, list(view.subject)] = True
    expected = split_by_source(direct_logit_attribution(decoder, trace, target), subject).subject[0]
    assert np.allclose(view.subject_part, expected, atol=1e-5)
    layer, head = view.strongest_head()
    assert view.subject_part[layer, head] == view.subject_part.max()


def test_attention_patterns_are_causal_probabilities(view: PromptView) -> None:
    assert np.allclose(view.patterns.sum(-1), 1, atol=1e-5)
    assert not np.triu(view.patterns, 1).any()


def test_a_prompt_that_is_not_there_is_named(made: TinyRun, run: Run) -> None:
    with pytest.raises(InputError, match="numbered from 0"):
        view_prompt(run, CITY, number=400, data_file=made.circuit_data)


def texts(figure: Figure) -> str:
    """All that a reader can read in a figure."""
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(found)


def test_figures_are_drawn_and_name_the_run(
    analysed: components.Components, circuits: Circuits, view: PromptView
) -> None:
    figures = {
        "proportions": component_figures.head_proportions(analysed, circuits, "tiny/run"),
        "original": component_figures.head_proportions(analysed, circuits, "tiny/run", "original_kind"),
        "layers": component_figures.head_layers(analysed, circuits, "tiny/run"),
        "scatter": component_figures.head_scatter(analysed, circuits, "tiny/run"),
        **{name: component_figures.lens(analysed, name, "tiny/run") for name in ("rank", "prob", "subject_rank")},
        "attention": component_figures.attention_pattern({"here": view}, view.strongest_head(), "tiny/run"),
        "by_layer": component_figures.prompt_layers(view, "tiny/run"),
        "by_component": component_figures.prompt_components(view, "tiny/run"),
    }
    for name, figure in figures.items():
        assert "run tiny/run" in texts(figure), name
    assert "probability" in texts(figures["prob"])
    assert view.components[0].name in texts(figures["by_component"])


def test_figures_say_what_is_missing() -> None:
    nothing = components.Components(
        pd.DataFrame(columns=components.HEAD_COLUMNS), pd.DataFrame(columns=components.LENS_COLUMNS), "No weights."
    )
    for figure in (
        component_figures.head_proportions(nothing, None, "run"),
        component_figures.head_layers(nothing, None, "run"),
        component_figures.head_scatter(nothing, None, "run"),
        component_figures.lens(nothing, "rank", "run"),
    ):
        assert "No weights." in texts(figure)
    assert "needs circuits" in texts(component_figures.attention_pattern({"here": None}, (0, 0), "run"))
    assert "needs circuits" in texts(component_figures.prompt_layers(None, "run"))
    assert "needs circuits" in texts(component_figures.prompt_components(None, "run"))


def test_a_title_with_a_dollar_sign_is_no_formula(view: PromptView, tmp_path: Path) -> None:
    odd = replace(view, tokens=("<s>", "$a_{", "$ b", *view.tokens[3:]), answer=" $x^")
    for figure in (
        component_figures.prompt_layers(odd, "run"),
        component_figures.attention_pattern({"": odd}, (0, 0), ""),
    ):
        style.keep(figure, tmp_path, "odd")


@pytest.mark.parametrize("known", ["everything", "nothing"])
def test_the_notebook_runs_top_to_bottom(
    made: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    """On a run of which everything is there, and on one without data or weights."""
    folder = tmp_path / "tiny" / "run"
    if known == "everything":
        shutil.copytree(made.folder, folder)
        shutil.copytree(made.folder / "circuit", tmp_path / "circuit_6" / "tiny")
        write_json(Run(folder).config, {"model": "tiny", "arguments": {"train_file": str(tmp_path / "train.jsonl")}})
    else:
        synthetic_run.write_run(folder, SHORT, circuits=False)
    monkeypatch.setenv("RUN", str(folder))
    names = run_notebook("components", monkeypatch)
    drawn = {path.stem for path in Run(folder).figures.iterdir()}
    expected = {"head_proportions", "head_layers", "head_scatter", "lens_rank", "lens_probability", "prompt_layers"}
    assert expected | {"lens_subject_rank", "prompt_components", "attention_pattern"} <= drawn
    assert (names["last"] is None) == (known == "nothing")
    assert names["analysis"].heads.empty == (known == "nothing")


def test_all_groups_are_analysed(analysed: components.Components) -> None:
    found = set(analysed.lens[["task", "type", "band"]].itertuples(index=False, name=None))
    assert found == {(str(group.task), str(group.type), str(group.band)) for group in groups()}
