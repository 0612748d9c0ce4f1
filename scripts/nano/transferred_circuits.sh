#!/usr/bin/env bash
# Evaluate transferred circuits of the nano run: does an earlier circuit suffice later, and one group's for another?
#
# What: for all 18 groups, the circuits of the first checkpoint, of both sides of the break of circuit entropy and of the
# last checkpoint, each evaluated at every checkpoint. Then every group's circuit of the last checkpoint on every group's
# prompts. Last analysis/topology.ipynb, whose last figures show both; report.sh adds them to the report.
# How long: a few minutes on 2 CPU cores, after scripts/reproduce.sh, which does two of the groups.
# Output: <task>_from_<step>_results.json and cross_groups.json in topn_400, and figures in
# outputs/train/nano/default/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

transfer_circuits "$@"
CHECKPOINTS="$(last_checkpoint "$RUN_FOLDER")" evaluate --cross_groups "$@"
notebook topology "$RUN_FOLDER"
