#!/usr/bin/env bash
# Does an earlier circuit suffice later? The circuits of four checkpoints of the nano run in the weights of all the others.
#
# What: the circuits of the first checkpoint, of those before and after the break of circuit entropy, and of the last one, of
# all 18 groups, each evaluated at every checkpoint; then analysis/topology.ipynb, whose last figure shows them.
# How long: a few minutes on 2 CPU cores, after scripts/reproduce.sh (which does two of the groups).
# Expect: <task>_from_<step>_results.json in topn_400, and moved_circuits.png in outputs/train/nano/default/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

move_circuits --method EAP-IG --batch_size 32 --topn 400 "$@"
notebook topology "$RUN_FOLDER"
