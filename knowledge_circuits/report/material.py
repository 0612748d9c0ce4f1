"""Everything that a report is written from: a run's saved files, each read once.

No model is loaded unless the analysis of heads and logit lens was begun (`<run>/analysis`) and a checkpoint came since.
Circuits are read one at a time; what stays of each is its membership row and the page's few hundred bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from knowledge_circuits.analysis import tables
from knowledge_circuits.analysis.components import Components, analyse_run
from knowledge_circuits.analysis.dynamics import Dynamics, read_dynamics
from knowledge_circuits.analysis.findings import Finding, describe
from knowledge_circuits.report.circuit_browser import CircuitBrowser
from knowledge_circuits.run_config import RunConfig, read_run_config
from knowledge_circuits.runs import Run


@dataclass(frozen=True)
class Material:
    """A run's tables (see `tables`) and what is made of them.

    Attributes:
        run, name: the run and what figures call it.
        config: run_config.json; empty without one.
        setting: which circuits; None where the run has none.
        evaluations, predictions, results, circuit_predictions: the tables of those names; empty where missing.
        circuits: their topology; None where the run has none.
        browser: the pictures of the interactive part.
        findings: what the run shows of the three.
        components: heads and logit lens; None where that analysis was not begun.
        dynamics: the probes' records; None without probes.
    """

    run: Run
    name: str
    config: RunConfig
    setting: tables.Setting | None
    evaluations: pd.DataFrame
    predictions: pd.DataFrame
    results: pd.DataFrame
    circuit_predictions: pd.DataFrame
    circuits: tables.Circuits | None
    browser: CircuitBrowser
    findings: tuple[Finding, ...]
    components: Components | None
    dynamics: Dynamics | None


def read_material(run: Run) -> Material:
    """Read a run and describe the findings on it.

    Raises:
        InputError: a file of the run is broken; it names the file and the line. A missing one is no error.
    """
    setting, browser = tables.main_setting(run), CircuitBrowser()
    predictions = tables.predictions(run)
    circuit_predictions = tables.circuit_predictions(run, setting)
    circuits = tables.circuits(run, setting, browser.add)
    return Material(
        run=run,
        name=tables.run_name(run),
        config=read_run_config(run),
        setting=setting,
        evaluations=tables.evaluations(run),
        predictions=predictions,
        results=tables.results(run, setting),
        circuit_predictions=circuit_predictions,
        circuits=circuits,
        browser=browser,
        findings=describe(predictions, circuit_predictions, circuits),
        components=_components(run, setting),
        dynamics=read_dynamics(run.knowledge_dynamics) if run.knowledge_dynamics.exists() else None,
    )


def _components(run: Run, setting: tables.Setting | None) -> Components | None:
    """Heads and logit lens where their analysis was begun."""
    if setting is None or not any((run.path / "analysis" / f"circuit_{setting.circuit_n}").glob("checkpoint-*.json")):
        return None
    return analyse_run(run, setting)
