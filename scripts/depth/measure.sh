#!/usr/bin/env bash
# Measures the circuits of all runs of the depth study, PROCESSES at a time, one CPU core each.
# How long: an hour for 5 seeds on 2 CPU cores. Expect: circuits.csv of each run in outputs/studies/depth/runs.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/settings.sh"
source "$here/../environment.sh"

export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false VENV=none # the environment is active
tr ' ' '\n' <<<"$SEEDS" | xargs -P "$PROCESSES" -L 1 bash "$here/measure_seed.sh"
