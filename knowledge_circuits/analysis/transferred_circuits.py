"""Which checkpoints' circuits are moved into the weights of all others: the test of the paper's phase shift.

    python -m knowledge_circuits.analysis.transferred_circuits outputs/train/nano/default

prints the steps of four checkpoints: the first, the last one before the break point of circuit entropy, the first one
after it, and the last (stdout; what they are on stderr). `circuit_eval.py --circuit_from` takes them, and
`plots.hits_of_moved_circuits` draws what comes of it: if the circuits from after the break do as well as each
checkpoint's own and those from before do not, the shift made the circuits that count. (Ou et al. 2025, section 4.)
"""

from __future__ import annotations

import argparse
import math
import sys

from knowledge_circuits.analysis.findings import fit_phase_shift
from knowledge_circuits.analysis.tables import Circuits, circuits, find_run
from knowledge_circuits.command_line import run_program
from knowledge_circuits.files import InputError


def sources(found: Circuits, seed: int = 0) -> dict[str, int]:
    """The checkpoints whose circuits are moved: what each is -> its step, in step order.

    "Before" and "after" lie outside of the break point's 95% interval, so that its uncertainty does not mix the sides.
    A run with too few checkpoints for a break point has the first and the last only, one of a single checkpoint that.

    Args:
        found: the run's own circuits.
        seed: of the interval's bootstrap.
    """
    shift = fit_phase_shift(found, seed=seed)
    chosen = {"the first": found.steps[0]}
    if shift is not None:
        point = float(shift.fit.break_point)
        low, high = (end if math.isfinite(end) else point for end in (shift.break_low, shift.break_high))
        when = list(zip(found.epochs, found.steps, strict=True))
        # The fit leaves at least two checkpoints on either side of any break point.
        chosen["before the break"] = max(step for epoch, step in when if epoch < low)
        chosen["after the break"] = min(step for epoch, step in when if epoch > high)
    if len(found.steps) > 1:
        chosen["the last"] = found.steps[-1]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run's folder, such as outputs/train/nano/default")
    parser.add_argument("--seed", type=int, default=0, help="of the break point's interval (0)")
    arguments = parser.parse_args()
    found = circuits(find_run(arguments.run))
    if found is None:
        raise InputError(f"{arguments.run}: no circuits yet; run circuit_discovery.py and circuit_eval.py first")
    epoch_of = dict(zip(found.steps, found.epochs, strict=True))
    for what, step in sources(found, arguments.seed).items():
        print(f"circuits to move: {what}, epoch {epoch_of[step]:g}", file=sys.stderr)
        print(step)


if __name__ == "__main__":
    run_program(main)
