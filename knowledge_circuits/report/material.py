"""Everything that a report is written from: a run's saved files, each read once.

No model is loaded unless the analysis of heads and logit lens was begun (`<run>/analysis`) and a checkpoint came since.
Circuits are read one at a time; what stays of each is its membership row and the page's few hundred bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from knowledge_circuits.analysis import circuit_tables, learning_tables, run_circuits, timeline
from knowledge_circuits.analysis.circuit_settings import Kind, Setting, main_kind, main_setting
from knowledge_circuits.analysis.components import Components, analyse_run
from knowledge_circuits.analysis.dynamics import Dynamics, run_dynamics
from knowledge_circuits.analysis.findings import Finding, describe
from knowledge_circuits.analysis.run_circuits import Circuits
from knowledge_circuits.analysis.timeline import RunName
from knowledge_circuits.analysis.transferred_circuits import CrossGroups, cross_groups
from knowledge_circuits.files import InputError, read_bytes
from knowledge_circuits.manifest import MANIFEST_ENDING, FileRecord, fingerprint, read_manifest
from knowledge_circuits.report.circuit_browser import CircuitBrowser
from knowledge_circuits.run_config import RunConfig, read_run_config
from knowledge_circuits.runs import Run
from knowledge_circuits.study import FactGroup, Group

#: Files outside the folders of circuits and of the analysis that a report is made from.
_RECORDS = (
    "run_config.json",
    "evaluations.jsonl",
    "knowledge_dynamics.jsonl",
    "question_probes.jsonl",
    "trainer_state.json",
    "prediction.jsonl",
)


@dataclass(frozen=True)
class Material:
    """A run's tables, empty where the run lacks them, and what is made of them.

    Attributes:
        setting: which circuits; None where the run has none.
        results, circuit_predictions: of the study's circuits or, where the run has none, of those of one's own facts.
        fact_predictions, fact_circuits: answers and circuits of groups of one's own facts.
        circuits: the topology of the circuits of `results`; None where the run has none.
        cross_groups: each group's circuit on all groups' prompts; None where that was not measured.
        components: heads and logit lens; None where that analysis was not begun.
        dynamics: the probes' records; None without probes.
    """

    run: Run
    name: RunName
    config: RunConfig
    setting: Setting | None
    evaluations: pd.DataFrame
    predictions: pd.DataFrame
    past_predictions: pd.DataFrame
    results: pd.DataFrame
    circuit_predictions: pd.DataFrame
    training_log: pd.DataFrame
    fact_predictions: pd.DataFrame
    fact_circuits: pd.DataFrame
    circuits: Circuits | None
    cross_groups: CrossGroups | None
    browser: CircuitBrowser
    findings: tuple[Finding, ...]
    components: Components | None
    dynamics: Dynamics | None

    @property
    def has_facts(self) -> bool:
        """Whether it has results about facts of one's own."""
        return not self.fact_predictions.empty or not self.fact_circuits.empty

    @property
    def is_study(self) -> bool:
        """Whether the run is about the study's people; without anything that tells, it is."""
        if not self.has_facts and self.training_log.empty:
            return True
        generated = self.config.data.generated.get("N") is not None
        columns = [column for column in self.evaluations if column.endswith("_first_token_attribute_accuracy")]
        measured = bool(self.evaluations[columns].notna().to_numpy().any()) if columns else False
        of_study = not self.results.empty and "type" in self.results
        return generated or measured or not self.predictions.empty or of_study


def read_material(run: Run) -> Material:
    """Read a run and describe the findings on it.

    Raises:
        InputError: a file of the run is broken; it names the file and the line. A missing one is no error.
    """
    setting, browser = main_setting(run), CircuitBrowser()
    predictions, past_predictions = learning_tables.predictions(run), learning_tables.past_predictions(run)
    kind = main_kind(run, setting)

    def of_circuits(kind: Kind) -> tuple[pd.DataFrame, pd.DataFrame, Circuits | None]:
        return (
            circuit_tables.results(run, setting, kind),
            circuit_tables.circuit_predictions(run, setting, kind),
            run_circuits.read_circuits(run, setting, browser.add, kind),
        )

    results, hits, circuits = of_circuits(kind)
    facts = of_circuits(FactGroup) if kind is Group else (results, hits, circuits)
    return Material(
        run=run,
        name=timeline.run_name(run),
        config=read_run_config(run),
        setting=setting,
        evaluations=learning_tables.evaluations(run),
        predictions=predictions,
        past_predictions=past_predictions,
        results=results,
        circuit_predictions=hits,
        training_log=timeline.training_log(run),
        fact_predictions=learning_tables.fact_predictions(run),
        fact_circuits=circuit_tables.fact_circuits(*facts),
        circuits=circuits,
        cross_groups=cross_groups(run, setting),
        browser=browser,
        findings=describe(predictions, hits, circuits, past_predictions) if kind is Group else (),
        components=_components(run, setting),
        dynamics=run_dynamics(run) if run.knowledge_dynamics.exists() else None,
    )


def manifest_of_report(run: Run) -> Path:
    """Return where the manifest of a run's page lies."""
    return run.report.with_name(f"report_{MANIFEST_ENDING}")


def made_from(run: Run) -> dict[str, str]:
    """Return what the run's page depends on: its name, and a fingerprint of the files that it is read from.

    Raises:
        InputError: a manifest lists a file that is missing or has other content now; a page must not be made from it.
    """
    digests: dict[Path, str] = {}
    for path in sorted(run.path.rglob("*")):
        if path.is_file() and _is_read(path.relative_to(run.path)):
            digests[path] = FileRecord.of(path).sha256
    for listing in sorted(run.path.rglob(f"*{MANIFEST_ENDING}")):
        if listing == manifest_of_report(run) or _is_hidden(listing.relative_to(run.path)):
            continue
        manifest = read_manifest(listing)
        for name, record in manifest.files.items() if manifest and manifest.finished else ():
            path = listing.parent / name
            if _is_read(path.relative_to(run.path)) and digests.get(path) != record.sha256:
                fault = "has other content than when it was written" if path in digests else "is missing"
                raise InputError(
                    f"{path}: {fault}; run the program that makes it again with --verify, or remove {listing.name} if "
                    "you changed it on purpose"
                )
        records = manifest.made_from.get("records") if manifest else None
        for name, written in records.items() if isinstance(records, dict) else ():
            _check_beginning(run.path / name, written, listing)
    names = {path.relative_to(run.path).as_posix(): digest for path, digest in digests.items()}
    return {"name": timeline.run_name(run), "files": fingerprint(names)}


def _check_beginning(path: Path, written: Any, manifest: Path) -> None:
    """Refuse a record of the run that no longer begins as it did when a checkpoint was saved."""
    try:
        record = FileRecord.model_validate(written)
    except ValidationError:
        raise InputError(f"{manifest}: damaged (made_from.records.{path.name})") from None
    if hashlib.sha256(read_bytes(path)[: record.bytes]).hexdigest() != record.sha256:
        raise InputError(f"{path}: other content than when {manifest.parent.name} was saved; restore the file")


def _is_read(name: Path) -> bool:
    """Return whether a report may be made from the file of this name in a run's folder."""
    if name.name.endswith(MANIFEST_ENDING) or _is_hidden(name):
        return False
    computed = any(part == "analysis" or part.startswith("circuit_") for part in name.parts[:-1])
    return computed or name.name in _RECORDS or name.name.endswith("_prediction.jsonl")


def _is_hidden(name: Path) -> bool:
    """Return whether a file was set aside or is a program's own."""
    return any(part.startswith(".") or ".aside-" in part for part in name.parts)


def _components(run: Run, setting: Setting | None) -> Components | None:
    """Heads and logit lens where their analysis was begun."""
    if setting is None or not any((run.path / "analysis" / f"circuit_{setting.circuit_n}").glob("checkpoint-*.json")):
        return None
    return analyse_run(run, setting)
