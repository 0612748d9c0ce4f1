#!/usr/bin/env bash
# Writes the tables of the relevance study from the probe records of its finished runs.
# How long: a minute. Expect: facts.csv and study_run.json for each run in outputs/studies/relevance/runs.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

for seed in $SEEDS; do
  for dose in $DOSES; do
    for mirror in a b; do echo "outputs/train/relevance/seed_$seed-dose_$dose-mirror_$mirror"; done
  done
done | xargs python -m knowledge_circuits.analysis relevance --study outputs/studies/relevance
