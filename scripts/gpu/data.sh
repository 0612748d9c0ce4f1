#!/usr/bin/env bash
# Generate the data and the initial model: biographies of 50,000 people, of whom 3,000 are K_rel; a prior corpus about the
# K_rel people; a tokenizer; a model of 12 layers with random weights.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

data datapoint_generation
data text_data_generation
data query_data_generation
data prior_data_generation --biographies_per_person 10 --background_people 30000 --background_biographies 2 \
  --arithmetic_lines 20000 --held_out_people 500
data base_model_creation --output_dir "$UNTRAINED" --vocab_size 16384 --n_layer 12 --n_head 12 --n_embd 768 \
  --n_positions 1024 --initializer_range 0.02
data circuits_data_generation --circuit_n "$CIRCUIT_N" --model "$MODEL" --model_name_or_path "$UNTRAINED"
