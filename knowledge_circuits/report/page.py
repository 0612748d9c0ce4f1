"""A run as one HTML page that needs nothing else: findings, numbers, figures, and its circuits to step through.

`write_report` reads the run's saved files (`material`), draws the figures (`run_sections`, `findings`, `dynamics`) and
fills templates/report.html.j2. The page opens from disk without a network (its content policy forbids any request),
follows the reader's light or dark mode, holds no time or path of the machine, and is the same, byte for byte, for the
same files. All text from files is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from knowledge_circuits.analysis import circuit_tables, timeline
from knowledge_circuits.analysis.circuit_settings import GROUP_COLUMNS
from knowledge_circuits.figures.vector import color_rules
from knowledge_circuits.files import atomic_write
from knowledge_circuits.manifest import begin, finish
from knowledge_circuits.report.dynamics import dynamics_section
from knowledge_circuits.report.findings import card, findings_figures
from knowledge_circuits.report.material import Material, made_from, manifest_of_report, read_material
from knowledge_circuits.report.run_sections import sections_of
from knowledge_circuits.report.section import TextTable, draw_sections, number
from knowledge_circuits.run_config import RunConfig
from knowledge_circuits.runs import Run
from knowledge_circuits.study import KnowledgeType

_TEMPLATES = Path(__file__).parent / "templates"
#: Stands in the page's style sheet for the rules that its figures need.
_COLORS = "/* figure colours */"
#: What a page shows of each group of facts: the column of its table -> heading and the form of its numbers.
_NUMBERS = {
    "correct": ("whole answer", ".2f"),
    "first_token_correct": ("first token", ".2f"),
    "recall": ("recall", ".2f"),
    "hit": ("Hit@10", ".2f"),
    "faithfulness": ("faithfulness", ".2f"),
    "edge_entropy": ("entropy (nats)", ".2f"),
    "edges_num": ("edges", ",.0f"),
    "nodes_num": ("nodes", ",.0f"),
}
#: Shown where they were measured.
_STABLE = {"split_half_jaccard": ("halves agree", ".2f"), "inclusion": ("inclusion", ".2f")}
_STABLE_CAPTION = (
    "Halves agree: edge Jaccard similarity of the circuits of two halves of the prompts. Inclusion: in how many "
    "resamples of the prompts an edge of the circuit is, on average"
)


def write_report(run: Run, output: Path | None = None) -> Path:
    """Write a run's page, which says what the run lacks, and return its path.

    Args:
        output: where to; None means report.html in the run's folder, with a manifest.

    Raises:
        InputError: a file is not as its manifest says, or cannot be read.
    """
    made_from(run)  # refuses damaged files before they are read
    material = read_material(run)
    if output is not None:
        return write_page(output, report_html(material))
    inputs = made_from(run)  # the analysis of heads may have added files
    manifest = manifest_of_report(run)
    begin(manifest, "report", inputs)
    page = write_page(run.report, report_html(material))
    finish(manifest, "report", inputs, [page])
    return page


def report_html(material: Material) -> str:
    """Return the page of a run."""
    circuits = material.circuits.table if material.circuits is not None else None
    return render(
        "report.html.j2",
        material=material,
        subtitle=_subtitle(material),
        cards=[card(finding) for finding in material.findings],
        figures_of_findings=tuple(findings_figures(material)) if material.is_study else (),
        last=_last_rows(material),
        last_epoch=_last_epoch(material),
        browser=material.browser.page_data(circuits, material.results, material.fact_circuits),
        sections=list(draw_sections(material, sections_of(material))),
        facts=fact_table(material) if material.has_facts else None,
        dynamics=dynamics_section(material),
        configuration=configuration(material.config),
        whole_configuration=json.dumps(material.config.as_dict(), indent=2, ensure_ascii=False),
    )


def render(template: str, **content: Any) -> str:
    """Fill a template; all values are escaped, and names that it does not get are errors."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["share"] = lambda value: number(value, ".2f")
    environment.filters["count"] = lambda value: number(value, ",.0f")
    environment.filters["estimate"] = lambda value: number(value, ".3g").replace("-", "−")  # a minus, no hyphen
    environment.filters["symbols"] = _with_subscripts
    files = (_TEMPLATES / "style.css", _TEMPLATES / "circuit_browser.js")
    style, script = (Markup(file.read_text(encoding="utf-8")) for file in files)  # stand in a page as they are
    page = environment.get_template(template).render(style=style, script=script, **content)
    return page.replace(_COLORS, color_rules(page), 1)


def _with_subscripts(text: str) -> Markup:
    """Escaped text with the knowledge types' symbols set as the paper sets them."""
    escaped = str(escape(text))
    for knowledge in KnowledgeType:
        letter, index = knowledge.symbol.split("_")
        escaped = escaped.replace(knowledge.symbol, f"<i>{letter}</i><sub>{index}</sub>")
    return Markup(escaped)


def write_page(path: Path, html: str) -> Path:
    """Write a page, whole or not at all. Text that is no valid Unicode (lone surrogates) is replaced."""
    with atomic_write(path) as file:
        file.write(html.encode("utf-8", "replace").decode("utf-8"))
    return path


# --- parts of the page ------------------------------------------------------------------------------------------------


def _subtitle(material: Material) -> str:
    """Return one sentence on what the page is about."""
    epochs = timeline.epochs(material.run)
    unit = "optimizer steps" if material.name.is_history else "epochs"
    when = f", {unit} {min(epochs.values()):g} to {max(epochs.values()):g}" if epochs else ""
    count = f"{len(epochs)} checkpoint{'s' if len(epochs) != 1 else ''}"
    circuits = f"Circuits: {material.setting}." if material.setting else "No circuits yet."
    if material.setting and material.circuits is not None and material.circuits.prompts:
        limit, present = material.setting.circuit_n, material.circuits.prompts
        circuits = circuits.replace(f"{limit} prompts a group", f"{present} prompts a group")
    return f"{count}{when}. {circuits}"


def _last_rows(material: Material) -> list[dict[str, Any]]:
    """Return the 18 groups' numbers at the last checkpoint, [] where there are none at all."""
    if not material.is_study:
        return []
    table = circuit_tables.last_numbers(material.results, material.circuit_predictions, material.predictions)
    if table.drop(columns=GROUP_COLUMNS).isna().all(axis=None):
        return []
    stable = list(_STABLE)
    circuits = material.circuits.table if material.circuits is not None else None
    if circuits is not None and circuits[stable].notna().any(axis=None):
        last = circuits[circuits["step"] == circuits["step"].max()]
        table = table.merge(last[[*GROUP_COLUMNS, *stable]], on=GROUP_COLUMNS, how="left")
    table["symbol"] = [KnowledgeType(name).symbol for name in table["type"]]
    return table.to_dict("records")


def fact_table(material: Material) -> TextTable:
    """Return the numbers of the last checkpoint (or probe) of each file, a row per group."""
    keys, parts, when = ["task", "group"], [], []
    stable = material.fact_circuits[list(_STABLE)].notna().any(axis=None)
    shown = _NUMBERS | _STABLE if stable else _NUMBERS
    for what, table in (("answers", material.fact_predictions), ("circuits", material.fact_circuits)):
        last = table[table["step"] == table.groupby("task")["step"].transform("max")]
        checkpoints = last.drop_duplicates("step").to_dict("records")
        when += [f"{what} at epoch {row['epoch']:g} (step {row['step']:,})" for row in checkpoints]
        parts.append(last.groupby(keys, as_index=False, sort=False)[[name for name in shown if name in last]].mean())
    merged = parts[0].merge(parts[1], on=keys, how="outer", sort=False)
    rows = [
        [*(row[key] for key in keys), *(number(row[name], form) for name, (_, form) in shown.items())]
        for row in merged.to_dict("records")
    ]
    caption = "; ".join(when) + (f". {_STABLE_CAPTION}" if stable else "")
    header = ["file", "group", *(heading for heading, _ in shown.values())]
    return TextTable(caption[:1].upper() + caption[1:], header, rows, words=2)


def _last_epoch(material: Material) -> str:
    """Return which checkpoints the last numbers are of, in words."""
    last = []
    for what, table in (("queries", material.predictions), ("circuits", material.results)):
        if len(table):
            row = table.loc[table["step"].idxmax()]
            step = f"step {row['step']:,}"
            last.append(
                f"{what} at {step}" if material.name.is_history else f"{what} at epoch {row['epoch']:g} ({step})"
            )
    text = "; ".join(last)
    return text[:1].upper() + text[1:]


def configuration(config: RunConfig) -> list[tuple[str, str]]:
    """Return the choices that a reader asks for first, by name; what the configuration does not tell is left out."""
    arguments, data = config.arguments.as_dict(), config.data.as_dict()
    wanted = [
        ("Model", config.model),
        ("Trained from", arguments.get("model_name_or_path") or arguments.get("model_type")),
        ("Training file", data.get("train_file")),
        ("People (N)", config.data.generated.get("N")),
        ("Seed of the data", data.get("seed")),
        ("Seed of the training", arguments.get("seed")),
        ("Epochs", arguments.get("num_train_epochs")),
        ("Learning rate", _joined(arguments, "learning_rate", "lr_scheduler_type")),
        ("Sequences a step", config.sequences_per_step),
        ("Tokens a sequence", data.get("block_size")),
        ("Tokens an epoch", data.get("tokens")),
        ("Replayed share", arguments.get("replay_ratio")),
        ("Probes", arguments.get("probe_every") if arguments.get("probe_file") else None),
        ("Stops on", arguments.get("stop_on")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in config.versions.items())),
    ]
    return [(name, _text(value)) for name, value in wanted if value not in (None, "")]


def _joined(arguments: Mapping[str, Any], *keys: str) -> str:
    return ", ".join(_text(arguments[key]) for key in keys if arguments.get(key) is not None)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(_text, value))
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
