"""What `python -m knowledge_circuits.report` publishes of a run.

The data set `<name>-circuits` gets what was saved beside the checkpoints: graphs, circuits, results, predictions and
their manifests, and the run's own files. The model `<name>` gets the last checkpoint's weights and tokenizer, without
optimizer state. Cards are written from the run's files alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from huggingface_hub import CardData, CommitOperationAdd, DatasetCardData, HfApi, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from knowledge_circuits.analysis import circuit_tables, learning_tables, timeline
from knowledge_circuits.analysis.circuit_settings import names_of_groups
from knowledge_circuits.files import InputError, atomic_write, first_line
from knowledge_circuits.models.loading import weight_files
from knowledge_circuits.report.page import configuration
from knowledge_circuits.run_config import read_run_config
from knowledge_circuits.runs import GRAPH_SUFFIXES, Run

#: What of a checkpoint's own files a model consists of, beside its weights.
_MODEL_FILES = re.compile(
    r"(config|generation_config|tokenizer.*|special_tokens_map|added_tokens|vocab|.*\.safetensors\.index)\.json"
    r"|merges\.txt|.*tokenizer\.model"
)
_RUN_FILES = ("run_config.json", "evaluations.jsonl", "knowledge_dynamics.jsonl", "summary.txt", "report.html")
_PAPER = "[How Do LLMs Acquire New Knowledge?](https://arxiv.org/abs/2502.11196)"
_TAGS = ["knowledge-circuits", "mechanistic-interpretability", "eap-ig", "arxiv:2502.11196"]


@dataclass(frozen=True)
class Publication:
    """One repository of the hub, of the kind `dataset` or `model`: the files below a root, and its README.md."""

    kind: str
    name: str
    card: Path
    root: Path
    files: tuple[Path, ...]

    def __str__(self) -> str:
        size = sum(file.stat().st_size for file in self.files)
        return f"{self.kind} {self.name}: {len(self.files)} files ({size / 1e6:.1f} MB) and the card {self.card}"


def publications(run: Run, name: str, license_name: str) -> list[Publication]:
    """Write both cards of a run and return what there is to publish.

    Args:
        name: the model's repository, `user/name`.
        license_name: the hub's identifier of a license, such as mit; a fine-tuned model is bound by its base's.

    Raises:
        InputError: not a repository's name, no checkpoint with weights, or no circuits.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"--name {name!r}: a repository's name is user/name")
    checkpoints = [checkpoint for checkpoint in run.checkpoints() if weight_files(checkpoint.path)]
    if not checkpoints:
        raise InputError(f"{run.path}: no checkpoint has weights to publish")
    last = Path(checkpoints[-1].path)
    results = _results(run)
    graphs = [path for path in results if path.name.endswith(tuple(f"_graph{suffix}" for suffix in GRAPH_SUFFIXES))]
    if not graphs:
        raise InputError(f"{run.path}: no graphs to publish; run circuit_discovery.py first")
    data_name, folder = f"{name}-circuits", run.path / "publish"
    weights = weight_files(last)
    of_model = [path for path in sorted(last.iterdir()) if path in weights or _MODEL_FILES.fullmatch(path.name)]
    data = Publication("dataset", data_name, folder / "dataset_card.md", run.path, tuple(results))
    model = Publication("model", name, folder / "model_card.md", last, tuple(of_model))
    card_of = {
        data.card: _dataset_card(run, data_name, name, license_name, len(graphs)),
        model.card: _model_card(run, data_name, last, license_name),
    }
    for path, text in card_of.items():
        with atomic_write(path) as file:
            file.write(text)
    return [data, model]


def _results(run: Run) -> list[Path]:
    """Return what was computed of a run: its own files, and per checkpoint all but the model."""
    files = [run.path / name for name in _RUN_FILES if (run.path / name).is_file()]
    for checkpoint in run.checkpoints():
        for path in sorted(checkpoint.output.rglob("*")):
            of_circuits = path.relative_to(checkpoint.output).parts[0].startswith("circuit_")
            if path.is_file() and (of_circuits or path.name.startswith("prediction")):
                files.append(path)
    return files


def _dataset_card(run: Run, name: str, model: str, license_name: str, graphs: int) -> str:
    data = DatasetCardData(language="en", license=license_name, pretty_name=name.split("/")[1], tags=_TAGS)
    steps = ", ".join(str(checkpoint.step) for checkpoint in run.checkpoints())
    return _card(
        data,
        f"Knowledge circuits of {timeline.run_name(run)}",
        f"{graphs} circuit graphs of the model `{model}` at optimizer steps {steps}, after {_PAPER}. A graph"
        " has a score for every edge between embeddings, attention heads, MLPs and logits.",
        "| file | content |\n| --- | --- |\n"
        "| `checkpoints/checkpoint-<step>/circuit_*/**/<task>_graph.json*` | scores of all edges |\n"
        "| `.../topn_<n>/<task>_graph.json*` | the circuit of the n edges of largest score, pruned |\n"
        "| `.../topn_<n>/<task>_results.json` | faithfulness, size, entropy |\n"
        "| `.../topn_<n>/target_*/**/<task>_prediction.jsonl` | the circuit alone: answers' rank |\n"
        "| `checkpoints/checkpoint-<step>/prediction.jsonl` | the model's generated answers |",
        "```python\nimport knowledge_circuits as kc\n\ngraph = kc.read_graph('city_graph.json.gz')\n```",
        "The people's facts are invented, also those about people who exist. Do not use them as facts.",
        "## Settings",
        _markdown(pd.DataFrame(configuration(read_run_config(run)), columns=["setting", "value"])),
        "## Circuits of the last checkpoint",
        _markdown(_last_results(run)),
    )


def _model_card(run: Run, data_name: str, checkpoint: Path, license_name: str) -> str:
    config = read_run_config(run)
    base = config.arguments.model_name_or_path
    on_hub = base is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    data = ModelCardData(
        language="en",
        license=license_name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=_TAGS,
        datasets=[data_name],
        base_model=base if on_hub else None,
    )
    evaluations = learning_tables.evaluations(run)
    return _card(
        data,
        f"{timeline.run_name(run)}, {checkpoint.name}",
        "A language model that went on with its pre-training on synthetic biographies, after"
        f" {_PAPER}. Its knowledge circuits are the data set `{data_name}`.",
        "It states invented facts about people, also about people who exist. It is for research on how models"
        " acquire knowledge and for nothing else.",
        "## Training",
        _markdown(pd.DataFrame(configuration(config), columns=["setting", "value"])),
        "## Evaluation",
        _markdown(evaluations.tail(1)) if len(evaluations) else "None was recorded.",
    )


def _card(data: CardData, title: str, *paragraphs: str) -> str:
    return "\n\n".join([f"---\n{data.to_yaml()}\n---", f"# {title}", *paragraphs]) + "\n"


def _last_results(run: Run) -> pd.DataFrame:
    table = circuit_tables.own_circuits(circuit_tables.results(run))
    if not len(table):
        return table
    wanted = [*names_of_groups(table), "faithfulness", "edges_num", "nodes_num", "edge_entropy"]
    return table[table["step"] == table["step"].max()][wanted]


def _markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown; numbers with four digits."""
    if not len(table):
        return "None were saved."
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def push(publication: Publication, api: HfApi, private: bool) -> str:
    """Create the repository if it is not there, upload the files and the card in one commit, and return its address.

    Raises:
        InputError: the hub refuses.
    """
    files = {file.relative_to(publication.root).as_posix(): file for file in publication.files}
    operations = [CommitOperationAdd(name, file) for name, file in {"README.md": publication.card, **files}.items()]
    try:
        address = api.create_repo(publication.name, repo_type=publication.kind, private=private, exist_ok=True)
        api.create_commit(publication.name, operations, commit_message="Knowledge circuits", repo_type=publication.kind)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(f"{publication.name}: the hub refuses the upload ({first_line(error)})") from error
    return str(address)


def publish(folder: str, name: str, license_name: str, public: bool, dry_run: bool) -> None:
    """Send a run's two repositories to the hub, or without a token print what would be sent (see `__main__`)."""
    token = None if dry_run else get_token()
    for publication in publications(timeline.find_run(folder), name, license_name):
        print(publication)
        if token:
            print(push(publication, HfApi(token=token), not public))
        else:
            for file in publication.files[:5]:
                print(f"  {file.relative_to(publication.root)}")
            if len(publication.files) > 5:
                print(f"  and {len(publication.files) - 5} more")
    if not token:
        print("nothing was sent: " + ("--dry_run" if dry_run else "no token (HF_TOKEN or hf auth login)"))
