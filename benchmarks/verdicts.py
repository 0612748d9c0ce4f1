"""How often the studies' rules give a verdict where there is nothing, and where the planned effect is there.

    python -m benchmarks.verdicts --output docs/statistics.md

simulates studies under each rule's nulls and under the effects that the studies are planned for, and writes the rates
into the page's table, between its two markers. The simulated noise: people's differences have the standard deviations
of the relevance study (0.115 for accuracy and 0.105 for Hit@10, so 0.006 over 360 people); curves have first-order
autoregressive noise with coefficient 0 or 0.5, given as a share of the curve's whole change; layers' half-change
epochs are exchangeable, or alike for neighbouring layers. Studies are independent; the standard error of a rate of 0.05
over 500 of them is 0.01.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special
from tqdm import tqdm

from benchmarks.measuring import table_head, table_row
from knowledge_circuits.analysis import study_findings
from knowledge_circuits.analysis.findings import Statistic, Verdict
from knowledge_circuits.analysis.statistics import label_swap_p, over_runs
from knowledge_circuits.files import InputError, atomic_write, read_text

Floats = NDArray[np.float64]

STUDIES = 500
#: Fewer permutations than a real study's 9,999, to keep 500 of them short.
RESAMPLES = 499
#: Half epochs in the first five, whole ones after: the checkpoints of the depth study.
EPOCHS = np.concatenate((np.arange(0, 5, 0.5), np.arange(5.0, 17)))
#: Noise of entropy, turnover and edges for 0.9 in that study, as shares of their change: the mean of the seeds'
#: residuals from a moving average over three checkpoints.
MEASURED_NOISE = (0.02, 0.1, 0.3)
MARKERS = ("<!-- rates: begin -->", "<!-- rates: end -->")

#: Curves without a bend, between about 0 and 1.
SMOOTH: Mapping[str, Callable[[Floats], Floats]] = {
    "line": lambda x: 1 - x / 16,
    "exponential decay": lambda x: np.exp(-x / 4),
    "fast exponential decay": lambda x: np.exp(-x / 1.5),
    "decay with a drift": lambda x: 0.75 * np.exp(-x / 2) + 0.25 * (1 - x / 16),
    "power law": lambda x: 1 / np.sqrt(1 + x),
    "logistic": lambda x: special.expit((6 - x) / 1.2),
    "sum of two decays": lambda x: 0.6 * np.exp(-x) + 0.4 * np.exp(-x / 8),
    "half a bell": lambda x: np.exp(-((x / 6) ** 2)),
}


def bend(x: Floats, at: float = 4.0) -> Floats:
    """A curve that makes four fifths of its change, from 1 to 0, before it bends."""
    return np.interp(x, [0, at, 16], [1, 0.2, 0])


def autoregressive(generator: np.random.Generator, shape: tuple[int, ...], correlation: float) -> Floats:
    """Noise of standard deviation 1, first-order autoregressive along the last axis."""
    noise = generator.normal(size=shape)
    for place in range(1, shape[-1]):
        noise[..., place] = correlation * noise[..., place - 1] + np.sqrt(1 - correlation**2) * noise[..., place]
    return noise


def phase_shift_verdicts(
    shape: Callable[[Floats], Floats], noise: tuple[float, float, float], correlation: float, runs: int = 5,
    studies: int = STUDIES,
) -> list[Verdict]:  # fmt: skip
    """The verdicts of studies whose three curves have one shape; the second and third begin at epoch 0.5."""
    generator = np.random.default_rng(0)
    curves = []
    for first, deviation in zip((0, 1, 1), noise, strict=True):
        x = EPOCHS[first:]
        y = shape(x) + deviation * autoregressive(generator, (studies, runs, len(x)), correlation)
        curves.append(study_findings.bends(x, y))
    holds = study_findings.is_phase_shift(curves, EPOCHS[-1] - EPOCHS[0])
    smooth = np.sum([curve.loses for curve in curves], axis=0) >= study_findings.BENDS_WANTED
    return [
        Verdict.HOLDS if h else Verdict.FAILS if s else Verdict.UNDECIDED for h, s in zip(holds, smooth, strict=True)
    ]


def relevance_verdicts(
    effect: float, runs: int, people: int = 360, between_runs: float = 0.003, studies: int = STUDIES,
    resamples: int = RESAMPLES,
) -> list[Verdict]:  # fmt: skip
    """The verdicts of studies in which a known person's mean level is higher by `effect`, in both measures.

    `between_runs` is the standard deviation of the effect over seeds.
    """
    generator = np.random.default_rng(0)
    level = effect + between_runs * generator.normal(size=(studies, runs, 1, 1))
    # Half the difference of two mirrored runs' levels, which has to cancel.
    mirror = 0.04 * generator.normal(size=(studies, runs, 1, 1)) * np.array([[1.0], [-1.0]])
    own = generator.normal(size=(2, studies, runs, 2, people // 2))
    weights = np.full(runs * people, 1 / (runs * people))
    measures = []
    # A person's difference in a pair of runs: first-token accuracy and Hit@10.
    for noise, deviation in ((own[0], 0.115), (0.6 * own[0] + 0.8 * own[1], 0.105)):
        differences = level + mirror + deviation * noise
        swapped = label_swap_p(differences.reshape(studies, -1), weights, resamples=resamples)
        measures.append((over_runs(differences.mean(axis=(2, 3))), swapped))
    return [
        study_findings.advantage_verdict(
            study_findings.corrected(
                [
                    Statistic("", "", e.mean[i], e.low[i], e.high[i], "above 0", p=max(e.p[i], swapped[i]))
                    for e, swapped in measures
                ]
            )
        )
        for i in range(studies)
    ]


def depth_verdicts(
    turn: float, order: float, runs: int = 5, correlation: float = 0.0, after: float | None = None, dip: float = 0.0,
    resamples: int = RESAMPLES,
) -> list[Verdict]:  # fmt: skip
    """The verdicts of studies with a turn of the centroid and an order of the layers.

    Args:
        turn: by how many layers the centroid goes deeper up to a third of training, with noise of 0.1 layers and drifts
            of its own in each run; it comes back by as much after it.
        order: how much of the half-change epochs' deviation depth explains (0: none).
        correlation: of neighbouring layers' half-change epochs.
        after: by how many layers the centroid comes back, where not by `turn`.
        dip: by how many layers the centroid goes shallower in the first half epoch, to be back at the split.
    """
    generator = np.random.default_rng(0)
    split, last = 16 / 3, EPOCHS[-1]
    back = turn if after is None else after
    centroid = np.interp(EPOCHS, [0, split, last], [0, turn, turn - back])
    centroid -= np.interp(EPOCHS, [0, 0.5, split], [0, dip, 0])
    drift = 0.1 * np.interp(EPOCHS, [0, last], [-1, 1]) * generator.normal(size=(STUDIES, runs, 1))
    y = centroid + drift + 0.1 * autoregressive(generator, (STUDIES, runs, len(EPOCHS)), 0.5)
    before, later, gained = study_findings.turn(EPOCHS, y, split)
    depths = np.linspace(-1.6, 1.6, 11)
    noise = autoregressive(generator, (STUDIES, runs, len(depths)), correlation)
    epochs = 6 - order * depths + np.sqrt(max(1 - order**2, 0)) * noise
    return [
        study_findings.judge_depth((before[i], later[i], gained[i]), epochs[i], resamples=resamples).verdict
        for i in range(STUDIES)
    ]


@dataclass(frozen=True)
class Case:
    """One row of the table: what is simulated, and the rates of both verdicts."""

    finding: str
    truth: str
    null: bool
    verdicts: Callable[[], list[Verdict]]


def cases() -> list[Case]:
    """All rows: nulls first, then planned effects, by finding."""
    relevance, shift, depth = "relevance", "phase shift", "deep to shallow"
    rows = [
        Case(relevance, f"no effect, {runs} seeds", True, partial(relevance_verdicts, 0.0, runs)) for runs in (3, 5)
    ]
    for effect in (0.01, 0.02, 0.03):
        for runs in (3, 4, 5):
            truth = f"+{effect:g} in the mean level, {runs} seeds"
            rows.append(Case(relevance, truth, False, partial(relevance_verdicts, effect, runs)))
    for name, shape in SMOOTH.items():
        for correlation in (0.0, 0.5):
            truth = f"{name}, noise 3%, autocorrelation {correlation:g}, 5 seeds"
            rows.append(Case(shift, truth, True, partial(phase_shift_verdicts, shape, (0.03,) * 3, correlation)))
    decay = partial(phase_shift_verdicts, SMOOTH["exponential decay"], correlation=0.5)
    measured = "noise 2%, 10% and 30% (measured), autocorrelation 0.5, 5 seeds"
    rows += [
        Case(shift, "exponential decay, noise 3%, autocorrelation 0.5, 3 seeds", True,
             partial(decay, noise=(0.03,) * 3, runs=3)),
        Case(shift, f"exponential decay, {measured}", True, partial(decay, noise=MEASURED_NOISE)),
    ]  # fmt: skip
    for noise in (0.01, 0.03, 0.05, 0.1):
        truth = f"bend at epoch 4, noise {noise:.0%}, autocorrelation 0.5, 5 seeds"
        rows.append(Case(shift, truth, False, partial(phase_shift_verdicts, bend, (noise,) * 3, 0.5)))
    for at in (2.5, 4.0):
        verdicts = partial(phase_shift_verdicts, partial(bend, at=at), MEASURED_NOISE, 0.5)
        rows.append(Case(shift, f"bend at epoch {at:g}, {measured}", False, verdicts))
    for at in (0.75, 1.0, 1.5):
        truth = f"bend at epoch {at:g}, the search begins at 1 and 1.5, noise 3%, autocorrelation 0.5, 5 seeds"
        verdicts = partial(phase_shift_verdicts, partial(bend, at=at), (0.03,) * 3, 0.5)
        rows.append(Case(shift, truth, False, verdicts))
    alike, stays = partial(depth_verdicts, 0.0, 0.0, correlation=0.7), partial(depth_verdicts, 0.5, 0.0, after=0.0)
    rows += [
        Case(depth, "no depth law, exchangeable layers, 5 seeds", True, partial(depth_verdicts, 0.0, 0.0)),
        Case(depth, "no depth law, neighbouring layers alike, 5 seeds", True, alike),
        Case(depth, "centroid 0.5 layers deeper, stays there, 5 seeds", True, stays),
        Case(depth, "centroid dips by 0.14 layers and comes back, then falls by 0.04, 5 seeds", True,
             partial(depth_verdicts, 0.0, 0.0, after=0.04, dip=0.14)),
        Case(depth, "no depth law, exchangeable layers, 3 seeds", True, partial(depth_verdicts, 0.0, 0.0, runs=3)),
        Case(depth, "no depth law, neighbouring layers alike, 3 seeds", True, partial(alike, runs=3)),
    ]  # fmt: skip
    for order in (0.3, 0.4, 0.5, 0.6, 0.8):
        truth = f"half-change epoch and depth correlate by -{order:g}, 5 seeds"
        rows.append(Case(depth, truth, False, partial(depth_verdicts, 0.0, order)))
    for turn in (0.2, 0.3, 0.5):
        truth = f"centroid {turn:g} layers deeper, then back, 5 seeds"
        rows.append(Case(depth, truth, False, partial(depth_verdicts, turn, 0.0)))
    return rows


def table(rows: list[Case]) -> str:
    """Simulate every case; a Markdown table of the rates."""
    lines = [table_head("finding", "truth", "holds", "does not hold", "undecided")]
    for case in tqdm(rows, unit="case"):
        verdicts = case.verdicts()
        rates = [verdicts.count(verdict) / len(verdicts) for verdict in (Verdict.HOLDS, Verdict.FAILS)]
        kind = "null" if case.null else "effect"
        cells = (f"{rate:.3f}" for rate in (*rates, 1 - sum(rates)))
        lines.append(table_row(case.finding, f"{kind}: {case.truth}", *cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the page whose table is replaced; none prints it")
    arguments = parser.parse_args()
    rates = table(cases())
    if arguments.output is None:
        print(rates)
        return
    page = read_text(arguments.output)
    if any(page.count(marker) != 1 for marker in MARKERS):
        raise InputError(f"{arguments.output}: needs the lines {' and '.join(MARKERS)} once each around its table")
    before, rest = page.split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    with atomic_write(arguments.output) as file:
        file.write(f"{before}{MARKERS[0]}\n{rates}\n{MARKERS[1]}{after}")


if __name__ == "__main__":
    main()
