#!/usr/bin/env bash
# Train 10 epochs on the prior corpus, then 25 epochs on the biographies with the paper's hyperparameters, in bfloat16.
# An interrupted training continues from the checkpoint of the last epoch.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

numbers=(--block_size 1024 --per_device_train_batch_size 32 --per_device_eval_batch_size 32 --bf16)
(
  MODEL=$MODEL-base
  train "${numbers[@]}" --sequences_per_step 64 --learning_rate 6e-4 --model_name_or_path "$UNTRAINED" \
    --num_train_epochs 10 --save_total_limit 1 \
    --train_file "$DATA/prior.jsonl" --validation_file "$DATA/prior_held_out.jsonl"
)
train "${numbers[@]}" --sequences_per_step 128 --learning_rate 1e-3 --num_train_epochs 25 \
  --model_name_or_path "$(last_checkpoint "$BASE_RUN")" --probe_file "$DATA/test.jsonl" --probe_max_facts 2000 "$@"
