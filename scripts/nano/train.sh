#!/usr/bin/env bash
# Gives nano a past, then trains it on the biographies.
#
# What: 6 epochs on the prior corpus (the K_rel people with other facts, background people, small sums), from scratch, in
# small steps of short blocks: sums, whose numbers look alike everywhere, are learned in 16 blocks of 64 tokens a step
# and not in 8 of 256 (docs/results.md). Then 16 epochs of continual pre-training with a fresh optimizer, a checkpoint and
# probes each epoch. The learning rate is constant, as the paper's, for 12 epochs and falls to 0 in the last 4 (216 steps): so
# large a constant rate learns facts and loses them again. Of the rates 1e-3, 1.5e-3, 2e-3 and 3e-3 the largest taught the most.
# How long: 8 minutes on 2 CPU cores. Expect: checkpoint-0 and 16 more in outputs/train/nano/default/checkpoints,
# evaluations.jsonl and knowledge_dynamics.jsonl beside them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

echo "== Nano's past: 6 epochs on the prior corpus"
(
  MODEL=nano-base
  train --block_size 64 --per_device_train_batch_size 16 --sequences_per_step 16 --per_device_eval_batch_size 128 \
    --learning_rate 1.5e-3 --model_name_or_path "$UNTRAINED" --num_train_epochs 6 --save_total_limit 1 \
    --train_file "$DATA/prior.jsonl" --validation_file "$DATA/prior_held_out.jsonl"
)
echo "== Continual pre-training: 16 epochs on the biographies"
train --block_size 256 --per_device_train_batch_size 8 --sequences_per_step 8 --per_device_eval_batch_size 32 \
  --learning_rate 3e-3 --model_name_or_path "$(last_checkpoint "$BASE_RUN")" --num_train_epochs 16 \
  --lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs '{"num_decay_steps": 216}' --probe_file "$DATA/test.jsonl" --probe_every epoch "$@"
