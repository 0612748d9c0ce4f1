#!/usr/bin/env bash
# Train the nano run's last checkpoint on 360 other people, with six replay ratios, and evaluate the old facts.
#
# What: for each replay ratio 0, 0.1, 0.2, 0.4, 0.6 and 1, 2 epochs (46 steps), with checkpoints after 0, 1, 3, 5, 9, 13,
# 21, 29 and 45 steps and at the end, and an evaluation on 100 old biographies every 5 steps. Then predictions, new circuits
# of all 18 groups, the original circuits in the changed weights, and analysis/forgetting.ipynb. The learning rate is a
# tenth of nano's own, as in the paper.
# Run it after scripts/reproduce.sh; RATIOS="0 1" does two of the ratios.
# Output: outputs/forget/nano/replay_<ratio>/ and figures in outputs/forget/nano/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

FORGET_DATA=(--templates "$TEMPLATES" --attributes city company major) # what nano was taught
forget --num_train_epochs 2 --block_size 64 --per_device_train_batch_size 16 --sequences_per_step 16 \
  --per_device_eval_batch_size 128 --max_eval_samples 100 --learning_rate 1.5e-4 "$@"
GRAPH_FORMAT=json.gz
evaluate_old_facts low medium high
notebook forgetting "$FORGET_FOLDER"
