#!/usr/bin/env bash
# Train the nano run's last checkpoint on 360 other people, with five replay ratios, and evaluate the old facts.
#
# What: for each replay ratio 0, 0.1, 0.2, 0.4 and 1, 2 epochs (some 40 steps), with checkpoints after 0, 1, 3, 5, 9, 13, 21
# and 29 steps and at the end, and an evaluation on 100 old biographies every 5 steps. Then predictions, new circuits of
# the high band (6 of the 18 groups), the original circuits in the changed weights, and analysis/forgetting.ipynb. The
# learning rate is the original's 1e-4, a thirtieth of nano's own.
# How long: 10 minutes on 2 CPU cores, after scripts/reproduce.sh. RATIOS="0 1" does two of the ratios.
# Output: outputs/forget/nano/replay_<ratio>/ and figures in outputs/forget/nano/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

forget --num_train_epochs 2 --block_size 256 --per_device_train_batch_size 8 --sequences_per_step 8 \
  --per_device_eval_batch_size 32 --max_eval_samples 100 "$@"
GRAPH_FORMAT=json.gz
evaluate_old_facts high
notebook forgetting "$FORGET_FOLDER"
