#!/usr/bin/env bash
# Evaluate transferred circuits of all 18 groups of the nano run: does an earlier circuit suffice later?
#
# What: the circuits of the first checkpoint, of both sides of the break of circuit entropy and of the last checkpoint, each
# evaluated at every checkpoint; then analysis/topology.ipynb, whose last figure shows them.
# How long: a few minutes on 2 CPU cores, after scripts/reproduce.sh, which does two of the groups.
# Output: <task>_from_<step>_results.json in topn_400, and a figure in outputs/train/nano/default/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

transfer_circuits "$@"
notebook topology "$RUN_FOLDER"
