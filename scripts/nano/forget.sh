#!/usr/bin/env bash
# Forgetting and replay on the nano run: trains its last checkpoint on 400 other people and watches the old facts.
#
# What: for each replay ratio 0, 0.1, 0.2, 0.4 and 1, 5 epochs on new people once each (learning rate 5e-4, a third of
# nano's own), checkpoints at exponential gaps, evaluation on old biographies every 5 steps; then predictions, city circuits
# and their evaluation at each checkpoint, the original circuits in the drifting weights, and analysis/forgetting.ipynb.
# How long: at most 12 minutes on 2 CPU cores, after scripts/reproduce.sh.
# Expect: outputs/forget/nano/replay_<ratio>/ and figures in outputs/forget/nano/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

forget --num_train_epochs 5 --learning_rate 5e-4 --block_size 256 --per_device_train_batch_size 8 --sequences_per_step 8 \
  --per_device_eval_batch_size 32 --max_eval_samples 100 "$@"
follow_old_facts 32 400 city
notebook forgetting outputs/forget/nano
