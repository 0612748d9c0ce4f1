#!/usr/bin/env bash
# Trains the two mirrored runs of one seed and one dose of the relevance study: train_pair.sh <seed> <dose>
#
# What: for mirror a and mirror b the data, 8 epochs of the past from the same random weights, then 10 epochs of continual
# pre-training at the same constant rate, with probes of all facts of all people each epoch. Only the last checkpoint is
# kept: the probes are what the study reads.
# How long: 22 minutes on one CPU core. Expect: knowledge_dynamics.jsonl in outputs/train/relevance/<run>.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
SEED="$1"
DOSE="$2"
for mirror in a b; do
  RUN="seed_$SEED-dose_$DOSE-mirror_$mirror"
  DATA_DIR="outputs/data/relevance/$RUN"
  source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
  untrained="models/relevance/seed_$SEED-dose_$DOSE" # of both mirrors

  echo "== $RUN: data"
  data mirrored_data_generation --mirror "$mirror" --dose "$DOSE" --templates "$TEMPLATES"
  data base_model_creation --output_dir "$untrained" --tokenizer_file "$DATA/tokenizer.jsonl"

  recipe=(--learning_rate 1.5e-3 --eval_strategy no --save_total_limit 1 --disable_tqdm True)
  echo "== $RUN: the past"
  (
    MODEL=relevance-past
    train "${recipe[@]}" --block_size 64 --per_device_train_batch_size 16 --num_train_epochs "$PAST_EPOCHS" \
      --model_name_or_path "$untrained" --train_file "$DATA/prior.jsonl"
  )
  echo "== $RUN: continual pre-training"
  train "${recipe[@]}" --block_size "$BLOCK_SIZE" --per_device_train_batch_size "$DEVICE_BATCH" \
    --num_train_epochs "$EPOCHS" --probe_file "$DATA/test.jsonl" --probe_every epoch \
    --model_name_or_path "$(last_checkpoint "outputs/train/relevance-past/$RUN")"
done
