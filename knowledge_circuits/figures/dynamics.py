"""Figures of the probes inside training, in the look of `style`: what is known when, whether it stays, what it costs.

Each takes what is made of a run's knowledge_dynamics.jsonl (a `FactHistory`, or as `probes` the table
`relations.probe_table`) and the run's name and returns a Matplotlib `Figure`; without records the figure says which
flag of train.py writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from knowledge_circuits.analysis import dynamics, relations
from knowledge_circuits.analysis.acquisition import HOLD
from knowledge_circuits.analysis.dynamics import FactHistory
from knowledge_circuits.analysis.relations import Correlation, SelectionRule
from knowledge_circuits.figures import style
from knowledge_circuits.figures.panels import arrange, label_axes, line_panels, share_axis
from knowledge_circuits.figures.style import BANDS, BLACK, BLUE, GREEN, GREY, ORANGE, TYPES, VERMILION, Look

_NO_PROBES = "No probes of facts about people (train.py --probe_file). Questions of probes: acquisition.ipynb."
#: The types in legends of bars.
_BARS = {key: Look(look.label, look.color, "s") for key, look in TYPES.items()}
_RULES = {
    SelectionRule.LOSS: Look("lowest loss", GREY, "s"),
    SelectionRule.KNOWLEDGE: Look("most facts known twice in a row", GREEN, "o"),
    SelectionRule.BALANCE: Look("knowledge minus skill lost", ORANGE, "^"),
}


# --- what is known, and when ------------------------------------------------------------------------------------------


@style.styled
def known_facts(history: FactHistory, run: str) -> Figure:
    """Draw the share of facts that each probe finds known: a panel per band, a line per type."""
    title = "Facts known at each probe"
    if not len(history.steps):
        return style.missing(title, _NO_PROBES, run)
    by_epoch = pd.DataFrame(history.known.astype(float), columns=history.epochs)
    table = by_epoch.assign(type=history.facts["type"], band=history.facts["band"])
    table = table.melt(["type", "band"], var_name="epoch", value_name="known")
    return line_panels(title, table, "known", ("band", BANDS), ("type", TYPES), "share of facts known", run)


@style.styled
def knowledge_and_loss(probes: pd.DataFrame, run: str) -> Figure:
    """Facts known and known twice in a row beside the validation loss; facts gained and lost from probe to probe."""
    title = "Facts known, gained and lost"
    if probes.empty:
        return style.missing(title, _NO_PROBES, run)
    figure, axes = style.grid(title, run, 1, 2, share_y=False)
    known, moved = axes[0]
    known.plot(probes["epoch"], probes["known"], "o-", color=BLACK, markersize=3.5, label="known")
    known.plot(probes["epoch"], probes["known_twice"], "s-", color=GREEN, markersize=3.5, label="known twice in a row")
    known.set(xlabel="epoch", ylabel="facts", title="Knowledge and loss")
    known.set_ylim(top=1.2 * max(float(probes["known"].max()), 1))
    if probes["loss"].notna().any():
        _loss_beside(known, probes)
    known.legend(loc="upper center")
    width = _bar_width(probes["epoch"])
    moved.bar(probes["epoch"], probes["gained"], width, color=BLUE, label="gained")
    moved.bar(probes["epoch"], -probes["lost"], width, color=VERMILION, label="lost")
    moved.axhline(0, color=BLACK, linewidth=0.8)
    moved.set(xlabel="epoch", ylabel="facts since the probe before", title="Gained and lost")
    moved.legend()
    for ax in (known, moved):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _loss_beside(ax: Axes, probes: pd.DataFrame) -> None:
    """Draw the validation loss on an axis at the right."""
    beside = ax.twinx()
    measured = probes.dropna(subset=["loss"])
    beside.plot(measured["epoch"], measured["loss"], "--", color=GREY, linewidth=1.2)
    beside.set_ylabel("validation loss (nats, dashed)")
    beside.grid(False)
    beside.spines["right"].set_visible(True)


@style.styled
def acquisition_epochs(history: FactHistory, run: str) -> Figure:
    """Draw when facts are first known, as shares of a group's facts: a panel per band, bars per type, windows on top.

    A window spans the epochs by which 10% and 90% of the group's acquisitions have been made; what the model knew
    before training stands at epoch 0 and is no acquisition.
    """
    title = "When facts are acquired: the first probe that finds them known"
    if not len(history.steps):
        return style.missing(title, _NO_PROBES, run)
    note = "shares of all facts of the group; the bars on top span 10% to 90% of the acquisitions"
    figure, axes = style.grid(title, run, 1, len(BANDS), note=note)
    acquired = dynamics.acquisition_epochs(history.known, history.epochs)
    highest = 0.0
    for ax, (band, look) in zip(axes[0], BANDS.items(), strict=True):
        shares = {}
        of_band = (history.facts["band"] == band).to_numpy()
        for knowledge in TYPES:
            chosen = of_band & (history.facts["type"] == knowledge).to_numpy()
            if chosen.any():
                shares[knowledge] = [(acquired[chosen] == epoch).mean() for epoch in history.epochs]
                highest = max(highest, *shares[knowledge])
        _draw_bars(ax, history.epochs, shares, _bar_width(history.epochs), alpha=0.85)
        never = 1 - history.known[of_band].any(axis=1).mean() if of_band.any() else None
        ax.set_title(look.label if never is None else f"{look.label}; never known: {never:.0%}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes[0, 0].set_ylim(0, max(1.3 * highest, 0.01))
    _draw_windows(axes[0], history, highest)
    label_axes(axes, "share of the group's facts")
    return style.legend(figure, _BARS)


def _draw_windows(axes: Sequence[Axes], history: FactHistory, highest: float) -> None:
    """Draw the acquisition window of each type as a horizontal line above the bars."""
    table = dynamics.describe_groups(history).set_index(["type", "band"])
    for ax, band in zip(axes, BANDS, strict=True):
        for index, (knowledge, line) in enumerate(TYPES.items()):
            height = max(highest, 0.008) * (1.1 + 0.08 * index)
            if (knowledge, band) in table.index and np.isfinite(table.loc[(knowledge, band), "window_start"]):
                ends = table.loc[(knowledge, band), ["window_start", "window_end"]]
                ax.plot(ends, [height, height], "|-", color=line.color, linewidth=2, markersize=6)


@style.styled
def acquired_and_known_to_end(history: FactHistory, run: str) -> Figure:
    """Draw the shares of facts acquired by each epoch and known to the end: a panel per band, colours per type."""
    title = "Acquired, and known from then to the end"
    if not len(history.steps):
        return style.missing(title, _NO_PROBES, run)
    note = "mean of a group's facts; solid: known at some probe so far, dashed: known from then to the end"
    figure, axes = style.grid(title, run, 1, len(BANDS), note=note)
    facts = dynamics.describe_facts(history)
    for ax, (band, look) in zip(axes[0], BANDS.items(), strict=True):
        for knowledge, line in TYPES.items():
            part = facts[(facts["type"] == knowledge) & (facts["band"] == band)]
            if len(part):
                for column, dash in (("acquisition", "-"), ("known_to_end", "--")):
                    reached = [(part[column] <= epoch).mean() for epoch in history.epochs]
                    ax.plot(history.epochs, reached, dash, color=line.color, linewidth=1.7)
        share_axis(ax)
        ax.set_title(look.label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_axes(axes, "share of facts")
    return style.legend(figure, {key: Look(line.label, line.color, "") for key, line in TYPES.items()})


# --- whether it stays -------------------------------------------------------------------------------------------------


@style.styled
def forgetting(history: FactHistory, run: str) -> Figure:
    """Of the facts ever known: how often they were forgotten, which share was at all, and which was held at the end."""
    title = "Forgetting during training, of the facts that were ever known"
    if not len(history.steps):
        return style.missing(title, _NO_PROBES, run)
    figure, axes = style.grid(title, run, 1, 3, share_y=False)
    events = dynamics.forgetting_events(history.known)
    ever = history.known.any(axis=1)
    most = int(events.max(initial=0))
    ax, of_type = axes[0, 0], {knowledge: ever & (history.facts["type"] == knowledge).to_numpy() for knowledge in TYPES}
    counted = {knowledge: events[chosen] for knowledge, chosen in of_type.items() if chosen.any()}
    shares = {knowledge: np.bincount(found, minlength=most + 1) / len(found) for knowledge, found in counted.items()}
    _draw_bars(ax, np.arange(most + 1), shares)
    ax.set(xlabel="forgetting events of a fact", ylabel="share of facts ever known", title="How often")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
    table = dynamics.describe_groups(history)
    for ax, column, heading in (
        (axes[0, 1], "non_monotonic", "Non-monotonic: forgotten at least once"),
        (axes[0, 2], "held", f"Held: known at the last {HOLD} probes"),
    ):
        _group_bars(ax, table, column)
        ax.set_title(heading)
    return style.legend(figure, _BARS)


def _group_bars(ax: Axes, table: pd.DataFrame, column: str) -> None:
    """Draw a share of each group as bars: bands side by side, types within them."""
    shares = table.pivot(index="type", columns="band", values=column).reindex(index=list(TYPES), columns=list(BANDS))
    _draw_bars(ax, np.arange(len(BANDS)), dict(zip(TYPES, shares.to_numpy(), strict=True)))
    ax.set_xticks(range(len(BANDS)), [look.label.replace(" (", "\n(") for look in BANDS.values()])
    ax.set(xlabel="frequency of the biography", ylabel="share of facts ever known", ylim=(0, 1.03))
    ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
    ax.grid(axis="x", visible=False)


# --- what it depends on -----------------------------------------------------------------------------------------------


@style.styled
def prior_exposure(history: FactHistory, run: str) -> Figure:
    """Facts ever known and known at the end by what the base model gave them, and by their biography's frequency.

    The base model's probabilities of the answer's first token make five groups of equally many facts.
    """
    title = "Does learning depend on prior exposure?"
    if not len(history.steps):
        return style.missing(title, _NO_PROBES, run)
    note = "solid: known at the end, dotted: known at some probe; Spearman's correlation with being known at the end"
    figure, axes = style.grid(title, run, 1, 2, width=9.0, note=note)
    facts, correlations = dynamics.describe_facts(history), relations.prior_exposure(history)
    facts["fifth"] = pd.qcut(facts["base_prob"].rank(method="first"), min(5, len(facts)), labels=False)
    causes = (
        (axes[0, 0], "fifth", "base_prob", "probability of the answer's first token before training"),
        (axes[0, 1], "frequency", "frequency", "frequency of the biography"),
    )
    for ax, column, cause, label in causes:
        for knowledge, line in TYPES.items():
            means = facts[facts["type"] == knowledge].groupby(column)
            x = means[cause].median()
            ax.plot(x, means["known_at_end"].mean(), f"{line.marker}-", color=line.color, markersize=4, linewidth=1.6)
            ax.plot(x, means["ever_known"].mean(), ":", color=line.color, linewidth=1.4)
        share_axis(ax)
        ax.set_title(f"correlation {correlation_text(correlations[f'known_at_end ~ {cause}'])}")
        ax.set_xlabel(label)
    if (facts["base_prob"] > 0).all():
        axes[0, 0].set_xscale("log")
    axes[0, 0].set_ylabel("share of facts")
    return style.legend(figure, TYPES)


@style.styled
def loss_and_knowledge(probes: pd.DataFrame, run: str) -> Figure:
    """Change of the validation loss against change of the number of known facts, from probe to probe."""
    title = "Does a falling loss tell when facts are learned?"
    if probes.empty:
        return style.missing(title, _NO_PROBES, run)
    if probes["loss"].notna().sum() < 2:
        return style.missing(title, "The loss was not evaluated at the probes' steps (train.py --eval_strategy).", run)
    figure, axes = style.grid(title, run, 1, 1, width=6.4, height=3.8, note="a point is the stretch between two probes")
    ax = axes[0, 0]
    fall, gain = probes["loss"].diff().to_numpy(), probes["known"].diff().to_numpy(dtype=float)
    points = ax.scatter(fall, gain, c=probes["epoch"], cmap="cividis", s=34, zorder=3)
    ax.plot(fall, gain, color=GREY, linewidth=0.6, alpha=0.6)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.set(xlabel="change of the validation loss (nats per token)", ylabel="change of the number of known facts")
    correlation = relations.loss_knowledge_correlation(probes["loss"], probes["known"])
    ax.set_title(f"Pearson's correlation {correlation_text(correlation)}")
    figure.colorbar(points, ax=ax, pad=0.02).set_label("epoch")
    return figure


def correlation_text(correlation: Correlation) -> str:
    """Return a correlation with its p-value, where there is one, and number of pairs, or "not defined"."""
    if not np.isfinite(correlation.value):
        return "not defined"
    p = f"p = {correlation.p_value:.2g}, " if np.isfinite(correlation.p_value) else ""
    return f"{correlation.value:+.2f} ({p}n = {correlation.pairs:,})"


# --- what it costs ----------------------------------------------------------------------------------------------------


@style.styled
def skills_text_and_circuits(
    skills: pd.DataFrame, texts: pd.DataFrame, reconfiguration: pd.DataFrame, run: str
) -> Figure:
    """Accuracy of general skills, perplexity of held-out text, and how much circuits change between checkpoints.

    The tables are those of `dynamics.Dynamics` and `relations.reconfiguration_table`.
    """
    title = "General skill, held-out text and the circuits' reconfiguration"
    note = "reconfiguration: edges that changed since the checkpoint before"
    figure, axes = style.grid(title, run, 1, 3, share_y=False, note=note)
    changed = arrange(reconfiguration)
    by = changed.panels if "band" in reconfiguration else changed.lines
    panels = (
        (skills, "accuracy", "skill", _looks(skills["skill"].unique()), "General skill", "no skills were probed"),
        (texts, "perplexity", "text", _looks(texts["text"].unique()), "Text outside the domain", "no text was probed"),
        (changed.table, "rate", *by, "Reconfiguration", "no circuits at two checkpoints"),
    )
    for ax, (table, value, column, looks, heading, lacking) in zip(axes[0], panels, strict=True):
        if table.empty:
            style.blank(ax, lacking)
            continue
        for name, look in looks.items():
            means = table[table[column] == name].groupby("epoch")[value].mean()
            # Unsmoothed: what is lost in the first epoch must not look as if it took three.
            ax.plot(means.index, means, look.marker + "-", color=look.color, markersize=4, label=look.label)
        ax.set(title=heading, xlabel="epoch", ylabel=value if value != "rate" else "1 - edge Jaccard")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
        if value == "perplexity":
            ax.set_yscale("log")
    return figure


def _looks(names: Sequence[str]) -> dict[str, Look]:
    """Colours and marks of things that have none of their own."""
    labels = {name: style.plain(str(name).replace("_", " ")) for name in names}
    return style.looks_of(labels, (BLUE, ORANGE, GREEN, VERMILION, BLACK, GREY), "osD^vP")


@style.styled
def selected_checkpoints(probes: pd.DataFrame, run: str, saved_steps: Sequence[int] | None = None) -> Figure:
    """Draw loss, knowledge and skill over epochs with each rule's pick among the saved steps (None: all probes)."""
    title = "Which checkpoint to take: each rule's pick"
    if probes.empty:
        return style.missing(title, _NO_PROBES, run)
    picks = relations.select_checkpoints(probes, saved_steps)
    figure, axes = style.grid(title, run, 1, 3, share_y=False)
    columns = (
        ("loss", "validation loss (nats)", "Loss"),
        ("known_twice", "facts known twice in a row", "Facts known twice in a row"),
        ("skill", "mean skill accuracy", "General skill"),
    )
    for ax, (column, label, heading) in zip(axes[0], columns, strict=True):
        measured = probes.dropna(subset=[column])
        if measured.empty:
            style.blank(ax, "not measured at the probes")
            continue
        ax.plot(measured["epoch"], measured[column], ".-", color=BLACK, linewidth=1.2)
        for size, pick in zip((13, 9.5, 6.5), picks.itertuples(), strict=False):
            look = _RULES[SelectionRule(pick.rule)]
            at = probes.loc[probes["step"] == pick.step, column]
            ax.plot(pick.epoch, at.iloc[0], look.marker, color=look.color, mfc="none", markersize=size, mew=2)
        ax.set(title=heading, xlabel="epoch", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [
        Line2D([], [], linestyle="none", marker=look.marker, color=look.color, mfc="none", mew=2, label=look.label)
        for look in (_RULES[SelectionRule(rule)] for rule in picks["rule"])
    ]
    return style.legend_row(figure, handles)


def _draw_bars(ax: Axes, at: ArrayLike, shares: Mapping[str, ArrayLike], width: float = 0.8, alpha: float = 1) -> None:
    """Draw bars of the types side by side at each position; `width` is that of both together."""
    one = width / len(TYPES)
    for index, (knowledge, look) in enumerate(TYPES.items()):
        if knowledge in shares:
            left = np.asarray(at) + (index - (len(TYPES) - 1) / 2) * one
            ax.bar(left, shares[knowledge], one, color=look.color, alpha=alpha)


def _bar_width(epochs: Sequence[float] | np.ndarray | pd.Series) -> float:
    """Bars that leave a fifth of the smallest distance between probes free."""
    return 0.8 * float(np.diff(np.asarray(epochs, dtype=float)).min()) if len(epochs) > 1 else 0.8
