#!/usr/bin/env bash
# Nano's data and its untrained start: people, biographies, queries, the prior corpus, a tokenizer, random weights.
# How long: half a minute. Expect: data/entities_400 (a JSON lines file for each) and models/nano-untrained.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

data datapoint_generation --revised_share 0.5 --frequency_rate 0.3
data text_data_generation --validation_lines 500
data query_data_generation --test_per_group 36
data prior_data_generation --biographies_per_person 3 --background_people 200 --background_biographies 2 \
  --arithmetic_lines 1200
data base_model_creation --output_dir "$UNTRAINED"
data circuits_data_generation --circuit_n "$CIRCUIT_N" --model "$MODEL" --model_name_or_path "$UNTRAINED"
