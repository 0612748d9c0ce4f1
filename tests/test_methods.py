"""The comparison of attribution methods: its tasks, its measurements and its program, on tiny models."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import methods, tasks
from knowledge_circuits.engine.evaluation import faithfulness_curve
from knowledge_circuits.engine.forward import all_logits
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError
from knowledge_circuits.models.nano import Shape, random_gpt2, save_checkpoint, train_tokenizer
from knowledge_circuits.models.tokenization import label_token_id, load_tokenizer, plain_ids
from knowledge_circuits.study import Attribute


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random GPT-2 whose tokenizer learned the tasks' prompts, so that it can pair them."""
    generator = random.Random(0)
    texts = [" ".join(draw(generator)[:4]) for draw in tasks.TASKS.values() for _ in range(400)]
    tokenizer = train_tokenizer(texts, 1500, 64)
    model = random_gpt2(tokenizer, Shape(layers=2, heads=2, width=16, positions=64), seed=0)
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(model, tokenizer, str(path))
    return str(path)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_tasks_splits_share_no_prompt_and_its_pairs_fit(folder: str, name: str) -> None:
    task = tasks.load_task(name, load_tokenizer(folder), 8)
    assert len(task.discovery) == len(task.evaluation) == 8
    assert len({len(ids) for split in (task.discovery, task.evaluation) for ids in split.clean}) == 1
    splits = [{tuple(ids) for ids in split.clean} for split in (task.discovery, task.evaluation)]
    assert not splits[0] & splits[1]
    for split in (task.discovery, task.evaluation):
        assert all(right != wrong for right, wrong in split.labels)
        assert all(list(clean) != list(other) for clean, other in zip(split.clean, split.corrupted, strict=True))
    assert tasks.load_task(name, load_tokenizer(folder), 8).discovery.digest == task.discovery.digest


def test_ioi_has_both_orders_and_the_repeated_name_is_not_the_answer() -> None:
    generator = random.Random(0)
    examples = [tasks.ioi(generator) for _ in range(50)]
    assert {clean.index(right) < clean.index(wrong) for clean, _, right, wrong, _ in examples} == {True, False}
    for clean, corrupted, right, wrong, _ in examples:
        assert (clean.count(right), clean.count(wrong)) == (1, 2) and (
            corrupted.count(right),
            corrupted.count(wrong),
        ) == (2, 1)


def test_greater_thans_metric_is_the_probability_of_larger_decades(folder: str) -> None:
    tokenizer = load_tokenizer(folder)
    task = tasks.load_task("greater-than", tokenizer, 8)
    assert not isinstance(task.metric, str)
    digits = tasks._digits(tokenizer, "The war lasted from the year 1749 to the year 17")
    labels = torch.tensor([[digits[4][0], digits[1][0]]])
    for digit, loss in ((7, -1.0), (5, -1.0), (4, 1.0), (0, 1.0)):
        logits = torch.full((1, len(tokenizer)), -40.0)
        logits[0, digits[digit][0]] = 40.0
        assert float(task.metric(logits, logits, labels)) == pytest.approx(loss)


def test_a_task_that_the_model_cannot_do_is_refused_by_name(folder: str) -> None:
    decoder = load_decoder(folder)
    task = tasks.load_task("agreement", load_tokenizer(folder), 8)
    accuracy = task.accuracy(decoder)
    assert task.require_accuracy(decoder, accuracy) == accuracy
    with pytest.raises(InputError, match="the task agreement"):
        task.require_accuracy(decoder, 1.01)
    with pytest.raises(InputError, match="no task is called"):
        tasks.load_task("winogrande", load_tokenizer(folder), 8)


def test_accuracy_counts_prompts_whose_answer_leads(folder: str) -> None:
    decoder = load_decoder(folder)
    task = tasks.load_task("agreement", load_tokenizer(folder), 8)
    last = [all_logits(decoder, torch.tensor([list(ids)]))[0, -1] for ids in task.evaluation.clean]
    leads = [bool(row[right] > row[wrong]) for row, (right, wrong) in zip(last, task.evaluation.labels, strict=True)]
    assert task.accuracy(decoder) == sum(leads) / len(leads)


def test_biographies_are_read_from_circuit_data(folder: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    by_length: dict[int, list[str]] = {}
    for names in itertools.combinations(tasks.NAMES, 2):
        by_length.setdefault(len(plain_ids(tokenizer, " ".join(names))), []).append(" ".join(names))
    people = max(by_length.values(), key=len)[:8]
    rows = []
    for number, (frequency, kind) in enumerate([(1, "new"), (3, "revised"), (8, "new"), (1, "new")]):
        row: dict[str, object] = {"frequency": frequency, "type": kind}
        for place, side in enumerate(("clean", "corrupted")):
            subject, city = people[2 * number + place], tasks.PLACES[2 * number + place]
            token = label_token_id(tokenizer, Attribute.CITY.prompt(subject), city)
            row |= {f"{side}_subject": subject, f"{side}_label": f" {city}", f"{side}_label_idx": token}
        rows.append(row)
    path = tmp_path / "city.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tasks.load_biographies(str(path), tokenizer, 2)
    assert task.name == "biographies (city)"
    subjects = {row["clean_subject"] for split in (task.discovery, task.evaluation) for row in split.rows}
    assert subjects == set(people[::2])
    with pytest.raises(InputError, match="two splits of 3"):
        tasks.load_biographies(str(path), tokenizer, 3)


def test_mibs_data_sets_are_tasks_of_their_own_splits(folder: str, tmp_path: Path) -> None:
    generator, rows = random.Random(0), []
    for _ in range(12):
        clean, corrupted, right, wrong, _ = tasks.ioi(generator)
        names = {"indirect_object": right, "subject": wrong, "random_c": wrong}
        rows.append({"prompt": clean, "s2_io_flip_counterfactual": {"prompt": corrupted}, "metadata": names})
    (tmp_path / "ioi").mkdir()
    for split, part in (("train", rows[:6]), ("validation", rows[6:])):
        (tmp_path / "ioi" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    task = tasks.load_mib("ioi", load_tokenizer(folder), 2, str(tmp_path))
    texts = [[row["clean"] for row in split.rows] for split in (task.discovery, task.evaluation)]
    prompts = [str(row["prompt"]) for row in rows]
    assert task.name == "mib-ioi" and set(texts[0]) <= set(prompts[:6]) and set(texts[1]) <= set(prompts[6:])
    with pytest.raises(InputError, match="fit this tokenizer, and 7 are wanted"):
        tasks.load_mib("ioi", load_tokenizer(folder), 7, str(tmp_path))
    flags = f"--model {folder} --tasks mib-ioi --mib_data {tmp_path} --count 2 --resamples 1 --least_accuracy 0"
    assert methods.main([*flags.split(), "--methods", "eap"]) == 0


def test_a_rows_areas_are_mibs_on_the_evaluation_split(folder: str) -> None:
    decoder = load_decoder(folder)
    task = tasks.load_task("ioi", load_tokenizer(folder), 4)
    row = methods.compare("tiny", decoder, task, "eap-ig", resamples=2)
    drawn = task.discovery.select(random.Random(1).choices(range(4), k=4))
    graph = methods.scores("eap-ig", decoder, drawn, task.metric, 1)
    assert row.cpr[1] == pytest.approx(
        faithfulness_curve(decoder, graph, task.evaluation, absolute=False).cpr, rel=1e-4
    )
    assert row.cmd[1] == pytest.approx(faithfulness_curve(decoder, graph, task.evaluation, absolute=True).cmd, rel=1e-4)
    assert row.mean("seconds") > 0 and row.spread("cpr") >= 0


def test_the_program_writes_table_numbers_and_figure(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        f"--model {folder} --tasks agreement greater-than --methods random eap-gim exact --count 3 --resamples 2"
    )
    outputs = ["--json", str(tmp_path / "rows.json"), "--figure", str(tmp_path / "rows.svg")]
    assert methods.main([*arguments.split(), "--least_accuracy", "0", *outputs]) == 0
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["task"], row["method"]) for row in content["rows"]] == [
        (task, method) for task in ("agreement", "greater-than") for method in ("random", "eap-gim", "exact")
    ]
    assert "| tiny | agreement | exact |" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "rows.svg").read_text()


def test_the_program_continues_where_it_was_interrupted(folder: str, tmp_path: Path) -> None:
    def rows(arguments: str) -> list[dict[str, object]]:
        flags = f"--model {folder} --tasks agreement --count 3 --resamples 2 --least_accuracy 0 --json {path}"
        methods.main([*flags.split(), *arguments.split()])
        found: list[dict[str, object]] = json.loads(path.read_text())["rows"]
        return found

    path = tmp_path / "rows.json"
    first = rows("--methods random eap")
    both = rows("--methods random eap ensemble")
    assert both[:2] == first  # the seconds too, so nothing was measured again
    assert [row["method"] for row in both] == ["random", "eap", "ensemble"]
    with pytest.raises(InputError, match="prompts 3, now 4"):
        rows("--methods eap --count 4")


@pytest.mark.parametrize(("name", "digits"), [("nano", 3), ("smollm2", 2)])
def test_the_documentations_tables_are_the_numbers_that_were_measured(name: str, digits: int) -> None:
    docs = Path(__file__).parents[1] / "docs"
    page, content = (docs / "methods.md").read_text(), json.loads((docs / f"figures/methods_{name}.json").read_text())
    rows = [methods.Row(**row) for row in content["rows"]]
    order = ["biographies (city)"] if name == "nano" else list(tasks.TASKS)
    assert {row.task for row in rows} == set(order)
    for method in {row.method for row in rows}:
        own = sorted((row for row in rows if row.method == method), key=lambda row: order.index(row.task))
        cpr = [f"{row.mean('cpr'):.{digits}f} ± {row.spread('cpr'):.{digits}f}" for row in own]
        cmd = [f"{row.mean('cmd'):.3f} ± {row.spread('cmd'):.3f}" for row in own]
        for cells in [cpr + cmd] if name == "nano" else [cpr, cmd]:
            assert f"| {method} | {' | '.join(cells)} |" in page


def test_the_program_names_refused_tasks(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"--model {folder} --tasks ioi --methods random --count 3 --least_accuracy 1.01"
    with pytest.raises(InputError, match="every task was refused"):
        methods.main(arguments.split())
    assert "refused: tiny: the model is right on" in capsys.readouterr().err


def test_the_table_of_the_known_circuit_has_a_row_per_method() -> None:
    lines = methods.known_circuit_table(["random", "eap"], sharpness=(8,)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| random", "| eap"]


def test_memory_that_was_freed_before_counts_again() -> None:
    pins = []

    def work() -> Tensor:
        blocks = [torch.ones(1 << 14) for _ in range(1600)]
        pins.append(torch.ones(16))  # above the blocks, so that freeing them leaves their pages with the process
        return blocks[0]

    first, second = (methods.measured(work, "cpu")[2] for _ in range(2))
    assert min(first, second) > 90
