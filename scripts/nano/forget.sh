#!/usr/bin/env bash
# Forgetting and replay on the nano run: trains its last checkpoint on 360 other people and watches the old facts.
#
# What: for each replay ratio 0, 0.1, 0.2, 0.4 and 1, 2 epochs (some 40 steps) on new people once each, with checkpoints
# after 0, 1, 3, 5, 9, 13, 21 and 29 steps and at the end, and an evaluation on 100 old biographies every 5 steps. Then
# predictions, circuits and their evaluation at each checkpoint, the original circuits in the drifting weights, and
# analysis/forgetting.ipynb. Circuits are those of the high band, whose facts nano knows: 6 of the 18 groups. The
# learning rate is the original's 1e-4, a thirtieth of nano's own: without replay nano loses an eighth of what it knew of
# the high band.
# How long: 10 minutes on 2 CPU cores, after scripts/reproduce.sh. RATIOS="0 1" does two of the ratios.
# Expect: outputs/forget/nano/replay_<ratio>/ and figures in outputs/forget/nano/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

forget --num_train_epochs 2 --block_size 256 --per_device_train_batch_size 8 --sequences_per_step 8 \
  --per_device_eval_batch_size 32 --max_eval_samples 100 "$@"
follow_old_facts 32 400 high
notebook forgetting "$FORGET_FOLDER"
