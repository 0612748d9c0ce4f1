#!/usr/bin/env bash
# Forgetting and replay on the nano run: trains its last checkpoint on 540 other people and watches the old facts.
#
# What: for each replay ratio 0, 0.1, 0.2, 0.4 and 1, 10 epochs on new people once each, checkpoints at exponential gaps,
# evaluation on the old validation.jsonl every 5 steps; then predictions, circuits and their evaluation at each
# checkpoint, the original circuits in the drifting weights, and analysis/forgetting.ipynb.
# How long: 12 minutes on 2 CPU cores, after scripts/reproduce.sh.
# Expect: outputs/forget/nano/replay_<ratio>/ and figures in outputs/forget/nano/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

forget --num_train_epochs 10 --block_size 256 --per_device_train_batch_size 16 --sequences_per_step 16 "$@"
follow_old_facts 32 400
notebook forgetting outputs/forget/nano
