#!/usr/bin/env bash
# Trains all runs of the relevance study: for each dose and seed two mirrored runs, one dose after the other.
#
# What: train_pair.sh for every dose in DOSES and seed in SEEDS, PROCESSES at a time, one CPU core each.
# How long: 35 minutes for the first dose (3 seeds) on 2 CPU cores, 100 minutes for all three. Expect: 18 folders in
# outputs/train/relevance. Finished runs are skipped.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/settings.sh"
source "$here/../environment.sh"

export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false VENV=none # the environment is active
for dose in $DOSES; do
  for seed in $SEEDS; do echo "$seed $dose"; done
done | xargs -P "$PROCESSES" -L 1 bash "$here/train_pair.sh"
