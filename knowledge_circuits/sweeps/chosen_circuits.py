"""Which circuits are evaluated: how they were scored, how many edges they have, which checkpoints they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from knowledge_circuits.engine.graph_files import read_graph
from knowledge_circuits.engine.options import Intervention
from knowledge_circuits.files import InputError
from knowledge_circuits.runs import Checkpoint, CircuitFolder, find_graph, selection_name
from knowledge_circuits.runs import checkpoints as all_checkpoints
from knowledge_circuits.study import AnyGroup
from knowledge_circuits.sweeps.flags import CircuitSettings

#: Circuit sizes of the paper's models; any other takes a quarter of the edges.
PAPER_TOPN = {"gpt2": 8_000, "gpt2-medium": 20_000, "TinyLlama_v1.1": 50_000, "phi-1_5": 50_000}


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(CircuitSettings):
    """Which circuits are evaluated and how; see also `flags.CircuitSettings`.

    Attributes:
        model: the model's name in the results.
        topn: the circuits' sizes: edges selected before pruning.
        same_sign: only edges whose sign at least this share of resamples keeps; 0 asks for none.
        signed: choose the edges of largest signed score instead of |score|.
        intervention: what replaces the edges outside the circuit.
        floors: beside a checkpoint's own circuits also evaluate random ones of the same size, and other sizes.
    """

    model: str
    topn: Sequence[int]
    same_sign: float = 0.0
    signed: bool = False
    intervention: Intervention = Intervention.PATCHING
    floors: bool = False

    @property
    def name(self) -> str:
        """How paths and results name the ways of scoring and selecting."""
        return selection_name("+".join(self.methods), self.same_sign, self.signed)

    def folder(self, checkpoint: Checkpoint, group: AnyGroup) -> CircuitFolder:
        """Return the files of one group's circuits at a checkpoint."""
        return checkpoint.circuit_folder(self.circuit_n, group, self.name, str(self.intervention))

    def scored_folders(self, checkpoint: Checkpoint, group: AnyGroup) -> list[CircuitFolder]:
        """Return the files of one group's scored graphs at a checkpoint, one for each way of scoring."""
        return [checkpoint.circuit_folder(self.circuit_n, group, name) for name in self.methods]


def circuit_sizes(
    topn: Sequence[int] | None, settings: EvaluationSettings, origins: Sequence[Checkpoint], groups: Sequence[AnyGroup]
) -> list[int]:
    """Return the numbers of edges before pruning, each once, checked against the first graph that is there.

    Args:
        topn: of `--topn`; None means the paper's number for its models, a quarter of the edges for any other.
        origins, groups: those whose circuits are evaluated.

    Raises:
        InputError: a way of scoring has no graph, or the graph has fewer edges.
    """
    of_groups = [settings.scored_folders(origin, group) for origin in origins for group in groups]
    for folders in zip(*of_groups, strict=True):  # one way of scoring each
        graphs = [graph for folder in folders if (graph := find_graph(folder.graph()))]
        if not graphs:
            raise InputError(
                f"{folders[0].graph()}: no such graph, and none of another chosen group; run circuit_discovery.py "
                "first, with the same data file and flags"
            )
    edges = read_graph(graphs[0]).layout.n_edges
    sizes = sorted(set(topn or [PAPER_TOPN.get(settings.model, edges // 4)]))
    if sizes[-1] > edges:
        only = f"the graph has only {edges} edges"
        if topn:
            raise InputError(f"--topn {sizes[-1]}: {only}")
        raise InputError(f"--model {settings.model}: the paper's circuits of it have {sizes[-1]}, {only}; give --topn")
    return sizes


def find_origins(names: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints that `--circuit_from` names, each once; see `find_origin`.

    Raises:
        InputError: two different ones have the same step, so that their files would have the same names.
    """
    origins = list(dict.fromkeys(find_origin(name, checkpoints) for name in names))
    by_step: dict[int | None, Checkpoint] = {}
    for origin in origins:
        if (other := by_step.setdefault(origin.step, origin)) != origin:
            raise InputError(
                f"--circuit_from: {other.path} and {origin.path} are both of step {origin.step}, which names the files;"
                " transfer the circuits of one at a time, the second with another --output_dir"
            )
    return origins


def find_origin(name: str, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Return the checkpoint that one value of `--circuit_from` names.

    Args:
        name: a step or `checkpoint-<step>` of the evaluated checkpoints, or a checkpoint's folder.

    Raises:
        InputError: there is none, or its name has no step.
    """
    for checkpoint in checkpoints:
        if name in (str(checkpoint.step), checkpoint.name) or Path(name).absolute() == Path(checkpoint.path).absolute():
            return checkpoint
    if not Path(name).is_dir():
        known = ", ".join(str(checkpoint.step) for checkpoint in checkpoints if checkpoint.step is not None)
        steps = f"one of the steps {known}" if known else f"a step of {checkpoints[0].path}, which has none"
        raise InputError(f"--circuit_from {name}: neither a checkpoint's folder nor {steps}")
    origins = all_checkpoints(name)
    if len(origins) != 1 or origins[0].step is None:
        raise InputError(f"--circuit_from {name}: not one checkpoint-<step> folder")
    return origins[0]
