#!/usr/bin/env bash
# Measures the circuits of one run of the depth study: measure_seed.sh <seed>
#
# What: at each of the 22 checkpoints the circuits of the 18 groups, and of 6 groups of people who are never taught, 30
# prompts each: attribution prompt by prompt, the top quarter of the edges, faithfulness, the edges needed for 0.9, two
# halves of the prompts, random circuits of the same size.
# How long: 25 minutes on one CPU core. Expect: study_circuits.npz in every checkpoint, and circuits.csv and study_run.json
# in outputs/studies/depth/runs/<run>.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
SEED="$1"
RUN="seed_$SEED"
DATA_DIR="outputs/data/depth/$RUN"
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

pairs=(--circuit_n "$CIRCUIT_N" --model_name_or_path "$CHECKPOINTS/checkpoint-0")
data circuits_data_generation --model depth "${pairs[@]}"
data circuits_data_generation --model depth-control --untaught --rare_length 1 "${pairs[@]}"
python -m knowledge_circuits.analysis depth "$RUN_FOLDER" --study outputs/studies/depth \
  --data_file "$DATA/circuit_$CIRCUIT_N/depth/{task}.jsonl" \
  --control_file "$DATA/circuit_$CIRCUIT_N/depth-control/{task}.jsonl"
