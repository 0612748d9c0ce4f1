#!/usr/bin/env bash
# Train nano on a prior corpus, then on the biographies.
#
# What: 6 epochs from random weights on the prior corpus (the K_rel people with other facts, background people, sums of
# two numbers), in steps of 16 blocks of 64 tokens; with 8 blocks of 256 tokens nano does not learn the sums
# (docs/experiment_log.md). Then 16 epochs of continual pre-training with a fresh optimizer, a checkpoint and probes after
# each. The learning rate is constant for 12 epochs and falls linearly to 0 in the last 4 (216 steps): at so large a constant
# rate the model keeps losing facts. 3e-3 taught the most of 1e-3, 1.5e-3, 2e-3 and 3e-3.
# How long: 8 minutes on 2 CPU cores. Output: checkpoint-0 and 16 checkpoints in outputs/train/nano/default/checkpoints;
# evaluations.jsonl and knowledge_dynamics.jsonl in the run's folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

echo "== Prior training: 6 epochs on the prior corpus"
(
  MODEL=nano-base
  train --block_size 64 --per_device_train_batch_size 16 --sequences_per_step 16 --per_device_eval_batch_size 128 \
    --learning_rate 1.5e-3 --model_name_or_path "$UNTRAINED" --num_train_epochs 6 --save_total_limit 1 \
    --train_file "$DATA/prior.jsonl" --validation_file "$DATA/prior_held_out.jsonl"
)
echo "== Continual pre-training: 16 epochs on the biographies"
train --block_size 256 --per_device_train_batch_size 8 --sequences_per_step 8 --per_device_eval_batch_size 32 \
  --learning_rate 3e-3 --model_name_or_path "$(last_checkpoint "$BASE_RUN")" --num_train_epochs 16 \
  --lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs '{"num_decay_steps": 216}' \
  --probe_file "$DATA/test.jsonl" --probe_every epoch "$@"
