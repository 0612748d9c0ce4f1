#!/usr/bin/env bash
# Generate nano's data and initial model: people, their past, what they are taught, queries, tokenizer, random weights.
#
# What: all people are invented, from the same pools. The past tells birthday and university of half of them (K_rel) in 10
# texts each, and sums of two small numbers, a skill that training may take away; training tells city, company and major of
# everybody, with two past texts of each K_rel person among them. The tokenizer is learned from other people. But for the
# sums, the data are mirror a of the relevance study (scripts/relevance).
# How long: half a minute. Output: data/entities_360 (one JSON lines file each) and models/nano-untrained/<RUN>.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

data mirrored_data_generation --test_per_group 40 --templates "$TEMPLATES" --arithmetic_lines 400
data base_model_creation --output_dir "$UNTRAINED" --tokenizer_file "$DATA/tokenizer.jsonl"
data circuits_data_generation --circuit_n "$CIRCUIT_N" --model "$MODEL" --model_name_or_path "$UNTRAINED"
