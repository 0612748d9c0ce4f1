#!/usr/bin/env bash
# Forgetting and replay: trains a GPT-2 small run's last checkpoint on other people's facts and watches the old ones.
#
# What: for each replay ratio 0, 0.1, 0.2, 0.4 and 1 (the share of training examples replaced by the originals),
# continues training on N new people once each (128 sequences a step, 10 epochs, learning rate 1e-4: the original's
# protocol), with checkpoints at exponential gaps, evaluation on the old validation.jsonl every 5 steps; then finds and
# evaluates the circuits again. RATIOS chooses others.
# How long: per ratio a training on N biographies, and at each of its checkpoints what docs/scaling.md has for a
# checkpoint of the run.
# Expect: outputs/forget/gpt2/replay_<ratio>/ with evaluations.jsonl and checkpoints, for
# analysis/forgetting.ipynb.
set -euo pipefail
MODEL=gpt2
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

forget --num_train_epochs 10 --block_size 1024 --per_device_train_batch_size 16 --sequences_per_step 128 "$@"
follow_old_facts 64 8000 low medium high
