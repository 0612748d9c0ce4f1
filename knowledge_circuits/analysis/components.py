"""Head kinds and the logit lens over a whole run: every checkpoint's model on the circuit prompts of all 18 groups.

Per checkpoint the weights are loaded once and all groups' prompts go through in batches of one length. What is saved
are group means, saved under `<run>/analysis/circuit_<n>/checkpoint-<step>.json`: a notebook and a report share them,
and a second call takes a moment. A saved file is used as long as the weights and the prompts are those it was made
from (or the weights are gone). The tables have one row per observation:

    heads   step, epoch, task, type, band, layer, head; subject, relation (mean parts of the answer's logit minus the
            vocabulary's mean logit), kind; even_kind, odd_kind (from every other of the group's prompts, and from the
            rest; missing for a group of one prompt);
            original_subject, original_relation, original_kind (the original's ratios, see `head_kinds`)
    lens    step, epoch, task, type, band, layer (0 = embeddings); rank and subject_rank (means of rank + 1), prob
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from knowledge_circuits.analysis import timeline
from knowledge_circuits.analysis.circuit_settings import (
    GROUP_COLUMNS,
    NO_CIRCUITS,
    Setting,
    group_columns,
    main_kind,
    main_setting,
)
from knowledge_circuits.analysis.head_kinds import (
    HeadKind,
    VocabularySums,
    direct_logit_attribution,
    head_kinds,
    original_ratio,
    split_by_source,
    without_vocabulary_mean,
)
from knowledge_circuits.analysis.logit_lens import logit_lens
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.corpus.folder import DataFolder
from knowledge_circuits.corpus.prompt_pairs import group_pairs, read_circuit_data
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import embed, forward
from knowledge_circuits.engine.memory import activation_bytes, budget_bytes
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import decoder_from_model
from knowledge_circuits.files import InputError, read_bytes, read_json, write_json
from knowledge_circuits.models.loading import load_model, no_loading_bars, weights_digest
from knowledge_circuits.models.tokenization import load_tokenizer, subject_positions
from knowledge_circuits.paths import REPOSITORY
from knowledge_circuits.run_config import read_run_config
from knowledge_circuits.runs import Checkpoint, Run
from knowledge_circuits.study import TASKS, FactGroup, Group, groups, task_file

HEAD_COLUMNS = ["step", "epoch", *GROUP_COLUMNS, "layer", "head", "subject", "relation", "kind"]
HEAD_COLUMNS += ["even_kind", "odd_kind", "original_subject", "original_relation", "original_kind"]
LENS_COLUMNS = ["step", "epoch", *GROUP_COLUMNS, "layer", "rank", "prob", "subject_rank"]

_PARTS = ("subject", "relation")
_HALVES = tuple(f"{part}_{half}" for half in ("even", "odd") for part in _PARTS)
_MEASURED = (*_PARTS, "original_subject", "original_relation")
HEAD_MEASURES = (*_MEASURED, *_HALVES)
_LENS_MEASURES = ("rank", "prob", "subject_rank")
#: Said of a run that has circuits of one's own facts only.
NO_SUBJECTS = (
    "Head kinds and the logit lens need the study's prompts, which tell subject and relation;"
    " this run's circuits are of one's own facts."
)
RESAMPLES = 2000
#: Goes up when what is saved changes its meaning.
_FORMAT = 2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupPrompts:
    """The prompts of several groups, ready to run together.

    Attributes:
        pairs: all prompts, group by group; of each pair only the clean side is used.
        subject_tokens: [n] how many tokens after the start token are the subject's.
        groups: the groups that have prompts.
        members: [n] the index in `groups` of each prompt's group.
    """

    pairs: PromptPairs
    subject_tokens: Tensor
    groups: tuple[Group, ...]
    members: Tensor

    def subject_mask(self, index: Tensor, positions: int) -> Tensor:
        """[b, p] True at the subject's tokens of the prompts `index` [b]."""
        position = torch.arange(positions)[None]
        return (position >= 1) & (position <= self.subject_tokens[index][:, None])


@dataclass(frozen=True)
class CheckpointComponents:
    """Group means of one model; G groups.

    Attributes:
        heads: measure -> [G, l, h], the names of `HEAD_MEASURES`.
        lens: measure -> [G, l + 1], the names of `_LENS_MEASURES`; ranks are means of rank + 1.
    """

    groups: tuple[Group, ...]
    heads: dict[str, Floats]
    lens: dict[str, Floats]


@dataclass(frozen=True)
class Components:
    """A whole run's tables.

    Attributes:
        heads, lens: see the module; empty, with their columns, where nothing could be computed.
        missing: why there is nothing, or ""; figures show it.
    """

    heads: pd.DataFrame
    lens: pd.DataFrame
    missing: str = ""


def read_group_prompts(
    data_file: str, tokenizer: PreTrainedTokenizerBase, limit: int | None = None, wanted: Sequence[Group] | None = None
) -> GroupPrompts:
    """Read the clean prompts of groups from circuit data; a group without prompts is left out.

    Args:
        data_file: the circuit data; `{task}` in it stands for each task.
        limit: prompts per group at most.
        wanted: the groups; None means all 18.
    """
    by_group: dict[Group, PromptPairs] = {}
    for group in wanted or groups():
        rows = read_circuit_data(data_file, group.task)
        pairs = group_pairs(rows, group, tokenizer, limit, task_file(data_file, group.task))
        if len(pairs):
            by_group[group] = pairs
    if not by_group:
        raise InputError(f"{data_file}: no prompts of any group")
    counts = [
        len(subject_positions(tokenizer, row["clean_subject"], group.task.prompt(row["clean_subject"])))
        for group, pairs in by_group.items()
        for row in pairs.rows
    ]
    members = torch.repeat_interleave(torch.tensor([len(pairs) for pairs in by_group.values()]))
    return GroupPrompts(PromptPairs.joined(list(by_group.values())), torch.tensor(counts), tuple(by_group), members)


def analyse_model(
    decoder: Decoder, sums: VocabularySums, prompts: GroupPrompts, batch_size: int = 64, memory_gb: float | None = None
) -> CheckpointComponents:
    """Head parts and logit lens of one model, averaged over each group's prompts.

    Args:
        sums: of its unembedding, for the original's ratios.
        batch_size: most prompts per pass. Results do not depend on it, up to rounding.
        memory_gb: what one pass may take beside the weights; default: estimated.
    """
    prompts.pairs.check_fits(decoder.d_vocab, decoder.max_positions)
    n, layers, h = len(prompts.pairs), decoder.n_layers, decoder.n_heads
    measures = {name: torch.zeros(n, layers, h, dtype=torch.float64) for name in _MEASURED}
    measures |= {name: torch.zeros(n, layers + 1, dtype=torch.float64) for name in _LENS_MEASURES}
    centred = without_vocabulary_mean(decoder)
    budget = budget_bytes(memory_gb, decoder.device)
    with torch.no_grad():
        for batch in prompts.pairs.batches(batch_size):
            length = batch.clean.shape[1]
            for part in batch.split(max(1, int(budget // (4 * activation_bytes(decoder, length))))):
                subject = prompts.subject_mask(part.index, length).to(decoder.device)
                ids, targets = part.clean.to(decoder.device), part.labels[:, 0].to(decoder.device)
                trace = forward(decoder, embed(decoder, ids), queries=None, keep_residuals=True)
                split = split_by_source(direct_logit_attribution(centred, trace, targets), subject)
                ratio = original_ratio(decoder, trace, subject, sums)
                reading = logit_lens(decoder, trace, targets, subject)
                found = (*split, *ratio, reading.rank + 1, reading.prob, reading.subject_rank + 1)
                for measure, values in zip(measures.values(), found, strict=True):
                    measure[part.index] = values.double().cpu()
    heads = {name: _group_means(measures[name], prompts) for name in _MEASURED}
    for half, chosen in (("even", slice(0, None, 2)), ("odd", slice(1, None, 2))):
        heads |= {f"{part}_{half}": _group_means(measures[part], prompts, chosen) for part in _PARTS}
    lens = {name: _group_means(measures[name], prompts) for name in _LENS_MEASURES}
    return CheckpointComponents(prompts.groups, heads, lens)


def _group_means(values: Tensor, prompts: GroupPrompts, chosen: slice = slice(None)) -> Floats:
    """Mean of [n, ...] over the chosen ones of each group's prompts, [G, ...]; NaN for a group without any."""
    sizes = torch.bincount(prompts.members).tolist()
    return torch.stack([group[chosen].mean(0) for group in values.split(sizes)]).numpy()


# --- a whole run ------------------------------------------------------------------------------------------------------


def analyse_run(
    run: Run, setting: Setting | None = None, data_file: str | None = None, device: torch.device | str | None = None
) -> Components:
    """Analyse every checkpoint of a run, taking from `<run>/analysis` what is there.

    Args:
        setting: whose prompts (circuit_n); None means the run's main setting.
        data_file: the circuit data, `{task}` for each task; None means those that the run's configuration tells of.
        device: where models run; None means a GPU where there is one.
    """
    setting = setting or main_setting(run)
    if setting is None:
        return _empty(NO_CIRCUITS)
    if main_kind(run, setting) is FactGroup:
        return _empty(NO_SUBJECTS)
    data_file = data_file or circuit_data_file(run, setting)
    data = _data_digest(data_file) if has_circuit_data(data_file) else None
    prompts, heads, lens = None, [], []
    checkpoints = list(timeline.with_epochs(run))
    for checkpoint, step, epoch in tqdm(checkpoints, "heads and logit lens", unit="checkpoint", leave=False, delay=2):
        path = run.path / "analysis" / f"circuit_{setting.circuit_n}" / f"{checkpoint.name}.json"
        weights = weights_digest(checkpoint.path)
        key = f"{_FORMAT} {data} {weights}" if data and weights else None
        components = _read(path, key)
        if components is None and key is not None:
            # Every checkpoint of a run has the same tokenizer.
            prompts = prompts or read_group_prompts(data_file, load_tokenizer(checkpoint.path), setting.circuit_n)
            _write(path, key, _analyse_checkpoint(checkpoint, prompts, device))
            components = _read(path, key)  # as every later call will see it, rounding included
        if components is not None:
            heads.append(_head_table(components, step, epoch))
            lens.append(_table(components.groups, components.lens, ["layer"], step, epoch)[LENS_COLUMNS])
    if not heads:
        what = "The checkpoints' weights are" if data else f"The circuit data ({data_file}) are"
        return _empty(f"{what} not there; head kinds and the logit lens need them.")
    return Components(pd.concat(heads, ignore_index=True), pd.concat(lens, ignore_index=True))


def _data_digest(data_file: str) -> str:
    data = b"".join(read_bytes(task_file(data_file, task)) for task in TASKS)
    return hashlib.sha256(data).hexdigest()[:16]


def _analyse_checkpoint(
    checkpoint: Checkpoint, prompts: GroupPrompts, device: torch.device | str | None
) -> CheckpointComponents:
    with no_loading_bars():
        model = load_model(checkpoint.path, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    sums = VocabularySums.of(model)
    return analyse_model(decoder_from_model(model, checkpoint.path), sums, prompts)


def has_circuit_data(data_file: str) -> bool:
    """Return whether the circuit data of every task are there; `{task}` in the name stands for each task."""
    return all(Path(task_file(data_file, task)).is_file() for task in TASKS)


def circuit_data_file(run: Run, setting: Setting) -> str:
    """Return the file of the run's circuit data, which is beside its training file; `{task}` for each task."""
    train_file = read_run_config(run).arguments.train_file
    folder = Path("data") if train_file is None else Path(train_file).parent
    data = folder if folder.is_dir() else REPOSITORY / folder
    any_task = DataFolder(data).circuit(setting.circuit_n, timeline.model_name(run), TASKS[0])
    return str(any_task.with_name("{task}.jsonl"))


def _empty(reason: str) -> Components:
    return Components(pd.DataFrame(columns=HEAD_COLUMNS), pd.DataFrame(columns=LENS_COLUMNS), reason)


def _head_table(components: CheckpointComponents, step: int, epoch: float) -> pd.DataFrame:
    table = _table(components.groups, components.heads, ["layer", "head"], step, epoch)
    table["kind"] = head_kinds(table["subject"], table["relation"])
    in_both = table[list(_HALVES)].notna().all(axis=1)
    for half in ("even", "odd"):
        kinds = pd.Series(head_kinds(table[f"subject_{half}"], table[f"relation_{half}"]), table.index, dtype=object)
        table[f"{half}_kind"] = kinds.where(in_both)
    table["original_kind"] = head_kinds(table["original_subject"], table["original_relation"])
    return table[HEAD_COLUMNS]


def _table(
    members: Sequence[Group], measures: Mapping[str, Floats], axes: Sequence[str], step: int, epoch: float
) -> pd.DataFrame:
    """Return one row per cell of measures [G, *axes]: the columns that name it, then each measure."""
    index, *cells = (axis.reshape(-1) for axis in np.indices(next(iter(measures.values())).shape))
    names = pd.DataFrame([group_columns(group) for group in members]).iloc[index].reset_index(drop=True)
    values = {name: values.reshape(-1) for name, values in measures.items()}
    return names.assign(step=step, epoch=epoch, **dict(zip(axes, cells, strict=True)), **values)


# --- what is saved ----------------------------------------------------------------------------------------------------


def _read(path: Path, key: str | None) -> CheckpointComponents | None:
    """Return what was saved, if it was computed from what `key` names; None as key takes whatever was saved."""
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or (key is not None and content.get("key") != key):
        return None
    try:
        by_name = {str(group): group for group in groups()}
        in_order = tuple(by_name[name] for name in content["groups"])
        heads = {name: np.asarray(content["heads"][name], dtype=float) for name in HEAD_MEASURES}
        lens = {name: np.asarray(content["lens"][name], dtype=float) for name in _LENS_MEASURES}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: not an analysis that this version wrote; remove the file") from None
    return CheckpointComponents(in_order, heads, lens)


def _write(path: Path, key: str, components: CheckpointComponents) -> None:
    """Save group means with six significant digits; a ratio that is not a number is null."""

    def rounded(values: Any) -> Any:
        if isinstance(values, list):
            return [rounded(value) for value in values]
        return float(f"{values:.6g}") if np.isfinite(values) else None

    content: dict[str, Any] = {"key": key, "groups": [str(group) for group in components.groups]}
    for part in ("heads", "lens"):
        content[part] = {name: rounded(values.tolist()) for name, values in getattr(components, part).items()}
    write_json(path, content, indent=None)


# --- heads in circuits ------------------------------------------------------------------------------------------------


def circuit_heads(heads: pd.DataFrame, circuits: Circuits | None) -> pd.DataFrame:
    """Return the rows of `Components.heads` whose head is in its group's circuit at that step, with its `nodes`."""
    if circuits is None or heads.empty:
        return heads.iloc[:0].assign(nodes=pd.Series(dtype=int))
    layout = circuits.layout
    columns = np.array([np.r_[layout.head_sources(layer)] for layer in range(layout.n_layers)])  # [l, h]
    rows, layer, head = circuits.nodes[:, columns].nonzero()
    inside = circuits.table[["step", *GROUP_COLUMNS, "nodes"]].iloc[rows].assign(layer=layer, head=head)
    return heads.merge(inside, on=["step", *GROUP_COLUMNS, "layer", "head"])


def halves_agreement(heads: pd.DataFrame, circuits: Circuits | None, seed: int = 0) -> pd.DataFrame:
    """Return on how many of the circuits' heads two halves of the prompts agree, and on how many by chance.

    Two halves that draw kinds at random, each with its own shares of kinds, agree by chance: the sum over kinds of the
    products of both shares. Cohen's kappa is (agreement - chance) / (1 - chance): 0 by chance, 1 for the same kinds.

    Args:
        heads: `Components.heads`.

    Returns:
        One row per checkpoint: step, epoch, heads (of all groups' circuits), agreement, chance, kappa and the 95%
        interval low, high of kappa by bootstrap over groups, which share the run's weights; NaN for one group.
    """
    inside = circuit_heads(heads, circuits).dropna(subset=["even_kind", "odd_kind"])
    generator, rows = np.random.default_rng(seed), []
    for (step, epoch), part in inside.groupby(["step", "epoch"]):
        counts = part.groupby([*GROUP_COLUMNS, "even_kind", "odd_kind"]).size().unstack(["even_kind", "odd_kind"])
        kinds = sorted(str(kind) for kind in HeadKind)
        pairs = pd.MultiIndex.from_product([kinds, kinds])
        by_group = counts.reindex(columns=pairs).fillna(0).to_numpy().reshape(-1, len(kinds), len(kinds))
        agreement, chance, kappa = _cohens_kappa(by_group.sum(axis=0))
        draws = generator.multinomial(len(by_group), np.full(len(by_group), 1 / len(by_group)), size=RESAMPLES)
        samples = _cohens_kappa(np.tensordot(draws, by_group, axes=1))[2]
        told = len(by_group) > 1 and np.isfinite(samples).all()
        interval = np.percentile(samples, [2.5, 97.5]) if told else (np.nan, np.nan)
        rows.append((step, epoch, len(part), float(agreement), float(chance), float(kappa), *interval))
    columns = ["step", "epoch", "heads", "agreement", "chance", "kappa", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _cohens_kappa(counts: Floats) -> tuple[Floats, Floats, Floats]:
    """Return agreement, agreement by chance and Cohen's kappa of tables [..., k, k]; kappa is NaN where chance is 1."""
    shares = counts / counts.sum(axis=(-2, -1), keepdims=True)
    agreement = np.trace(shares, axis1=-2, axis2=-1)
    chance = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return agreement, chance, (agreement - chance) / (1 - chance)


def kind_proportions(heads: pd.DataFrame, circuits: Circuits | None, kind: str = "kind") -> pd.DataFrame:
    """Return the circuit's heads of each kind over the circuit's nodes.

    Args:
        heads: `Components.heads`.
        kind: the column that tells the kind: `kind`, or `original_kind`.

    Returns:
        columns step, epoch, task, type, band, kind, proportion; a kind without heads has 0.
    """
    table = _counts(heads, circuits, kind, ["kind"])
    return table.assign(proportion=table["heads"] / table["nodes"]).drop(columns=["heads", "nodes"])


def kind_layers(heads: pd.DataFrame, circuits: Circuits | None) -> pd.DataFrame:
    """Return where the circuits' heads of each kind lie: mean over the groups of one type, by layer and epoch.

    Returns:
        columns type, kind, layer, epoch, share: of the layer's heads, how many are in the circuit and of the kind.
    """
    table = _counts(heads, circuits, "kind", ["kind", "layer"])
    table["share"] = table["heads"].astype(float) / (circuits.layout.n_heads if circuits is not None else 1)
    return table.groupby(["type", "kind", "layer", "epoch"], as_index=False)["share"].mean()


def _counts(heads: pd.DataFrame, circuits: Circuits | None, kind: str, by: list[str]) -> pd.DataFrame:
    """Return the number of circuit heads in each cell of `by`, 0 included, for each analysed circuit with its nodes."""
    keys, inside = ["step", "epoch", *GROUP_COLUMNS], circuit_heads(heads, circuits)
    if circuits is None or inside.empty:
        return pd.DataFrame(columns=[*keys, *by, "heads", "nodes"])
    values = {"kind": [str(one) for one in HeadKind if one != HeadKind.NONE], "layer": range(circuits.layout.n_layers)}
    table = heads[keys].drop_duplicates().merge(circuits.table[["step", *GROUP_COLUMNS, "nodes"]])
    for name in by:
        table = table.merge(pd.DataFrame({name: values[name]}), how="cross")
    inside = inside.assign(kind=inside[kind])
    counts = inside.groupby([*keys, *by]).size().rename("heads").reset_index()
    table = table.merge(counts, how="left", on=[*keys, *by])
    return table.assign(heads=table["heads"].fillna(0))
