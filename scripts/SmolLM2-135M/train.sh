#!/usr/bin/env bash
# Continual pre-training of SmolLM2-135M on the biographies of 100 people, small enough for 2 CPU cores.
#
# What: generates the corpus if it is missing (half of the people real, ten of each group asked about), then trains 3 epochs:
# learning rate 2e-4, blocks of 256 tokens, 4 sequences a step, float32. EPOCHS=1 is enough to see every stage work.
# How long: docs/results.md has the times that we saw. Expect: checkpoint-0 and 3 more (540 MB each, and 1.1 GB of
# optimizer state in the newest) in outputs/train/SmolLM2-135M/default/checkpoints.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

bash scripts/SmolLM2-135M/prepare.sh
if [[ ! -e "$DATA/test.jsonl" ]]; then
  data datapoint_generation --revised_share 0.5
  data text_data_generation --validation_lines 40
  data query_data_generation --test_per_group 10
fi
train --model_name_or_path "$MODEL_PATH" --learning_rate 2e-4 --num_train_epochs "${EPOCHS:-3}" --block_size 256 \
  --per_device_train_batch_size 4 --sequences_per_step 4 --per_device_eval_batch_size 4 "$@"
