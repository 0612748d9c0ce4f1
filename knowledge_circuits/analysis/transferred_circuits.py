"""Choose the checkpoints whose circuits are evaluated in all other checkpoints: a test of the paper's phase shift.

    python -m knowledge_circuits.analysis.transferred_circuits outputs/train/nano/default

prints the steps of up to four checkpoints, the origins: the first, the last one before the break point of circuit
entropy, the first one after it, and the last (steps on stdout, descriptions on stderr). `circuit_eval.py
--circuit_from` takes these steps, and `circuit_evaluation.hits_of_transferred_circuits` draws the result. If circuits
from after the break answer as well as each checkpoint's own and those from before do not, the circuits that matter
were formed at the break. (Ou et al. 2025, section 4.)
"""

from __future__ import annotations

import argparse
import math
import sys

from knowledge_circuits.analysis.findings import fit_phase_shift
from knowledge_circuits.analysis.tables import Circuits, circuits, find_run
from knowledge_circuits.command_line import run_program
from knowledge_circuits.files import InputError


def origin_steps(run_circuits: Circuits, seed: int = 0) -> dict[str, int]:
    """Choose the checkpoints whose circuits are transferred.

    "before the break" and "after the break" lie outside of the break point's 95% interval. A run with too few
    checkpoints for a break point has only the first and the last; a run with one checkpoint has only that.

    Args:
        run_circuits: the run's own circuits.
        seed: of the interval's bootstrap.

    Returns:
        Description -> step, in step order.
    """
    shift = fit_phase_shift(run_circuits, seed=seed)
    steps = {"the first": run_circuits.steps[0]}
    if shift is not None:
        point = float(shift.fit.break_point)
        low, high = (end if math.isfinite(end) else point for end in (shift.break_low, shift.break_high))
        checkpoints = list(zip(run_circuits.epochs, run_circuits.steps, strict=True))
        # The fit leaves at least two checkpoints on either side of any break point.
        steps["before the break"] = max(step for epoch, step in checkpoints if epoch < low)
        steps["after the break"] = min(step for epoch, step in checkpoints if epoch > high)
    if len(run_circuits.steps) > 1:
        steps["the last"] = run_circuits.steps[-1]
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run's folder, such as outputs/train/nano/default")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    arguments = parser.parse_args()
    run_circuits = circuits(find_run(arguments.run))
    if run_circuits is None:
        raise InputError(f"{arguments.run}: no circuits yet; run circuit_discovery.py and circuit_eval.py first")
    epoch_of = dict(zip(run_circuits.steps, run_circuits.epochs, strict=True))
    for description, step in origin_steps(run_circuits, arguments.seed).items():
        print(f"origin of transferred circuits: {description}, epoch {epoch_of[step]:g}", file=sys.stderr)
        print(step)


if __name__ == "__main__":
    run_program(main)
