#!/usr/bin/env bash
# Trains one run of the depth study: train_seed.sh <seed>
#
# What: the data, 16 epochs of the past from random weights, then 16 epochs of continual pre-training at the same constant
# rate, with a checkpoint and probes each epoch and a checkpoint in the middle of each of the first five.
# How long: 20 minutes on one CPU core. Expect: 22 checkpoints (checkpoint-0 is the model after its past) and
# knowledge_dynamics.jsonl in outputs/train/depth/<run>.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
SEED="$1"
RUN="seed_$SEED"
DATA_DIR="outputs/data/depth/$RUN"
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
untrained="models/depth/$RUN"

echo "== $RUN: data"
data mirrored_data_generation --untaught_people "$UNTAUGHT" --templates "$TEMPLATES"
data base_model_creation --output_dir "$untrained" --tokenizer_file "$DATA/tokenizer.jsonl" \
  --n_layer 12 --n_embd 128 --n_head 4

recipe=(--learning_rate 1.5e-3 --block_size 64 --per_device_train_batch_size 16 --per_device_eval_batch_size 32
  --disable_tqdm True)
echo "== $RUN: the past"
(
  MODEL=depth-past
  train "${recipe[@]}" --num_train_epochs "$PAST_EPOCHS" --model_name_or_path "$untrained" \
    --train_file "$DATA/prior.jsonl" --save_total_limit 1 --eval_strategy no
)
echo "== $RUN: continual pre-training"
train "${recipe[@]}" --num_train_epochs "$EPOCHS" \
  --model_name_or_path "$(last_checkpoint "outputs/train/depth-past/$RUN")" --save_half_epochs 5 \
  --probe_file "$DATA/test.jsonl" --probe_every epoch
