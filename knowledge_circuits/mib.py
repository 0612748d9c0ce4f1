"""The Mechanistic Interpretability Benchmark's circuit track (MIB, arXiv 2504.13151): its folders and its data.

    python -m knowledge_circuits.mib export .../city_graph.json --task ioi --model gpt2 --to scores
    python -m knowledge_circuits.mib export .../city_graph.json --task ioi --model gpt2 --to circuits --circuits
    python -m knowledge_circuits.mib list circuits

A submission has a folder `<task>_<model>` for each task and model (`arc-easy_llama3`). It holds one file of edge
scores, `importances.json` in EAP-IG 2.0's schema, which MIB's loader reads, or (`--circuits`) a circuit for each of
`SHARES`, the largest shares of the model's edges that it may have; never both. MIB selects edges by the signed score;
in its convention, as in the engine's, a positive score means that the edge helps. `load_rows` loads its data sets, from
the hub or from files, and `prompt_pairs` makes prompt pairs of their rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowledge_circuits.command_line import HelpFormatter, program_parser, run_program
from knowledge_circuits.files import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from knowledge_circuits.engine.graph import Graph
    from knowledge_circuits.engine.prompts import PromptPairs

#: Shares of all edges for which the second form of a submission has a circuit each.
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

#: Task -> the name of its data set on the hub, below `mib-bench`.
DATA_SETS = {
    "ioi": "ioi",
    "mcqa": "copycolors_mcqa",
    "arc_easy": "arc_easy",
    "arc_challenge": "arc_challenge",
    "arithmetic_addition": "arithmetic_addition",
    "arithmetic_subtraction": "arithmetic_subtraction",
}

#: A task's counterfactual column, by the task's first word.
_COUNTERFACTUALS = {
    "ioi": "s2_io_flip_counterfactual",
    "mcqa": "symbol_counterfactual",
    "arc": "symbol_counterfactual",
    "arithmetic": "random_counterfactual",
}


def write_submission(folder: str | Path, task: str, model: str, graph: Graph) -> Path:
    """Write one task's and model's edge scores into a submission folder, atomically.

    Args:
        folder: the submission; made if absent.
        task, model: MIB's names, such as `arc_easy` and `llama3`; underscores of a task become hyphens.
        graph: every edge with its score.

    Returns:
        The file, `<folder>/<task>_<model>/importances.json`.

    Raises:
        InputError: a name that cannot be part of `<task>_<model>`, a graph without the scores of all edges, or other
            graph files in the folder.
    """
    from knowledge_circuits.engine.graph_files import write_graph

    path = _folder(folder, task, model, graph, ["importances.json"]) / "importances.json"
    write_graph(path, graph)
    return path


def write_circuits(folder: str | Path, task: str, model: str, graph: Graph, absolute: bool = False) -> list[Path]:
    """Write one circuit for each of `SHARES` into a submission folder: the pruned top-n edges of a scored graph.

    MIB's loader looks up a score of each edge, so these files have the score 0 everywhere.

    Args:
        absolute: rank by |score|; by default by the signed score, as for MIB's CPR.

    Returns:
        The files, `<folder>/<task>_<model>/circuit_<percent>.json`, smallest circuit first.
    """
    import torch

    from knowledge_circuits.engine.graph_files import write_graph
    from knowledge_circuits.engine.selection import prune, top_n

    names = [f"circuit_{100 * share:g}.json" for share in SHARES]
    inner = _folder(folder, task, model, graph, names)
    for share, name in zip(SHARES, names, strict=True):
        circuit = prune(top_n(graph, int(share * graph.layout.n_edges), absolute))
        write_graph(inner / name, replace(circuit, scores=torch.zeros_like(graph.scores)))
    return [inner / name for name in names]


def _folder(folder: str | Path, task: str, model: str, graph: Graph, names: Sequence[str]) -> Path:
    """Return a submission's folder for a task and model, made if absent, in which graph files have only these names."""
    task = task.replace("_", "-")
    for kind, name in (("task", task), ("model", model)):
        if not name or "/" in name or "_" in name:
            raise InputError(
                f"{kind} {name!r}: MIB's folders are <task>_<model>; use letters, digits, dots and hyphens"
            )
    if graph.meta.get("edges") == "circuit":
        raise InputError(
            "the graph holds the scores of its circuit's edges only, but MIB ranks all edges of the model; give the "
            "scored graph, as circuit_discovery.py writes it"
        )
    inner = Path(folder) / f"{task}_{model}"
    inner.mkdir(parents=True, exist_ok=True)
    if others := sorted(path.name for path in _graph_files(inner) if path.name not in names):
        raise InputError(
            f"{inner} holds {others[0]}, and a submission's folder has either importances.json or circuits; remove it "
            "or export to another folder"
        )
    return inner


def _graph_files(inner: Path) -> list[Path]:
    return [path for path in inner.iterdir() if path.suffix in (".json", ".pt")]


def read_submission(folder: str | Path) -> dict[tuple[str, str], list[Graph]]:
    """Read a submission's graphs by (task, model): one graph of scores, or `SHARES`' circuits, smallest first.

    Raises:
        InputError: no such folder, one that is not <task>_<model>, or another number of .json or .pt files in it.
    """
    from knowledge_circuits.engine.graph_files import read_graph

    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    graphs = {}
    for inner in sorted(path for path in root.iterdir() if path.is_dir()):
        task, _, model = inner.name.partition("_")
        files = _graph_files(inner)
        if not task or not model:
            raise InputError(f"{inner}: the folder's name is not <task>_<model>")
        if len(files) not in (1, len(SHARES)):
            raise InputError(
                f"{inner}: {len(files)} .json or .pt files; edge scores stand in one, circuits in {len(SHARES)}"
            )
        graphs[task, model] = sorted(map(read_graph, files), key=lambda graph: graph.n_edges)
    return graphs


def load_rows(
    task: str, split: str, folder: str | Path | None = None, cache_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """Return the rows of a split of one of MIB's data sets, for `prompt_pairs`.

    Args:
        task: a key of `DATA_SETS`.
        split: such as train or validation.
        folder: has a folder for each data set, named as in `DATA_SETS`, with a file for each split (`train.jsonl`, or
            another that `datasets` loads); None: the hub.
        cache_dir: of `datasets`; None: its default.

    Raises:
        InputError: an unknown task, or a data set that cannot be loaded.
    """
    import datasets

    task = task.replace("-", "_")
    if task not in DATA_SETS:
        raise InputError(f"no data set of MIB is known for the task {task!r}; choose one of: {', '.join(DATA_SETS)}")
    name = f"mib-bench/{DATA_SETS[task]}" if folder is None else str(Path(folder, DATA_SETS[task]))
    configuration = "4_answer_choices" if folder is None and task == "mcqa" else None
    try:
        rows = datasets.load_dataset(name, configuration, split=split, cache_dir=cache_dir and str(cache_dir))
    except Exception as error:  # whatever a missing network, folder or split makes the library raise
        raise InputError(f"the data set {name!r} cannot be loaded: {first_line(error)}") from error
    return list(rows)


def prompt_pairs(rows: Iterable[Mapping[str, Any]], task: str, tokenizer: PreTrainedTokenizerBase) -> PromptPairs:
    """Return prompt pairs of rows with the columns of MIB's data sets, as `load_rows` returns them.

    As MIB does, it drops rows whose answers have different numbers of tokens, and of arithmetic those with another
    operator or answers of several tokens. Rows whose two prompts differ in length are dropped too.

    Raises:
        InputError: an unknown task, a row without one of the task's columns, or no row that fits.
    """
    from knowledge_circuits.engine.prompts import PromptPairs
    from knowledge_circuits.models.tokenization import encode_prompt, plain_ids

    kind = task.replace("-", "_").split("_")[0]
    if kind not in _COUNTERFACTUALS:
        raise InputError(f"no task of MIB is called {task!r}; choose ioi, mcqa, arc_... or arithmetic_...")
    clean, corrupted, labels, texts = [], [], [], []
    for number, row in enumerate(rows, start=1):
        try:
            pair = _pair(row, kind, "-" if "subtraction" in task else "+")
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(f"row {number} of {task}: no column {error} as in MIB's data set") from None
        if pair is None:
            continue
        prompts, answers = pair
        ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        tokens = [plain_ids(tokenizer, answer) for answer in answers]
        lengths = {len(token) for token in tokens}
        if len(ids[0]) != len(ids[1]) or len(lengths) != 1 or (kind == "arithmetic" and lengths != {1}):
            continue
        clean.append(ids[0])
        corrupted.append(ids[1])
        labels.append((tokens[0][0], tokens[1][0]))
        texts.append({"clean": prompts[0], "corrupted": prompts[1]})
    if not clean:
        raise InputError(f"no row of {task} fits this tokenizer")
    return PromptPairs(clean, corrupted, labels, texts)


def _pair(row: Mapping[str, Any], kind: str, operator: str) -> tuple[tuple[str, str], tuple[str, ...]] | None:
    """Return a row's prompts and answers, the clean one first; None for a row of another kind of problem.

    Answers come with the space that precedes them. Of IOI a third name follows, which must have as many tokens.
    """
    other = row[_COUNTERFACTUALS[kind]]
    answers: tuple[str, ...]
    if kind == "arithmetic":
        if row["operator"] != operator or other is None or other["prompt"] is None:
            return None
        answers = (str(row["label"]), str(other["label"]))
    elif kind == "ioi":
        names = row["metadata"]
        answers = (f" {names['indirect_object']}", f" {names['subject']}", f" {names['random_c']}")
    else:
        answers = tuple(str(side["choices"]["label"][side["answerKey"]]) for side in (row, other))
    return (row["prompt"], other["prompt"]), answers


def main(arguments: list[str] | None = None) -> int:
    """Run the program."""
    parser = program_parser(__doc__, prog="python -m knowledge_circuits.mib", formatter_class=HelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("export", help="write a graph file's scores into a submission folder").add_argument
    add("graph", help="a graph file with every edge (.json, .json.gz or .pt)")
    add("--task", required=True, help="MIB's name of the task")
    add("--model", required=True, help="MIB's name of the model")
    add("--to", required=True, help="the submission's folder")
    add("--circuits", action="store_true", help=f"write {len(SHARES)} circuits instead of the scores")
    add("--absolute", action="store_true", help="rank the circuits' edges by |score|, not by score")
    commands.add_parser("list", help="read a submission folder and name its graphs").add_argument("folder")
    args = parser.parse_args(arguments)
    if args.command == "export":
        if args.absolute and not args.circuits:
            raise InputError("--absolute ranks the edges of circuits; it goes with --circuits only")
        from knowledge_circuits.engine.graph_files import read_graph

        where = (args.to, args.task, args.model, read_graph(args.graph))
        paths = write_circuits(*where, absolute=args.absolute) if args.circuits else [write_submission(*where)]
        print(*paths, sep="\n")
    else:
        for (task, model), graphs in read_submission(args.folder).items():
            for graph in graphs:
                print(f"{task} {model}: {graph}")
    return 0


if __name__ == "__main__":
    run_program(main)
