#!/usr/bin/env bash
# Generate nano's data and initial model: people, biographies, queries, prior corpus, tokenizer, random weights.
# How long: half a minute. Output: data/entities_360 (one JSON lines file each) and models/nano-untrained/<RUN>.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

data datapoint_generation --revised_share 0.5 --frequency_rate 0.25
data text_data_generation --validation_lines 500 --templates "$TEMPLATES"
data query_data_generation --test_per_group 40
data prior_data_generation --biographies_per_person 3 --background_people 180 --background_biographies 2 \
  --arithmetic_lines 2700 --templates "$TEMPLATES"
data base_model_creation --output_dir "$UNTRAINED"
data circuits_data_generation --circuit_n "$CIRCUIT_N" --model "$MODEL" --model_name_or_path "$UNTRAINED"
data forget_data_generation --templates "$TEMPLATES"
