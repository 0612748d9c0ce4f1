#!/usr/bin/env bash
# Continue the pre-training of SmolLM2-135M on biographies.
#
# The corpus is generated first if it is missing: half of the people are real, ten people per group are queried.
# Training takes 3 epochs in float32; EPOCHS=1 is enough to see every stage work.
# Output: checkpoint-0 and 3 checkpoints (540 MB each, and 1.1 GB of optimizer state in the two newest) in
# outputs/train/SmolLM2-135M/default/checkpoints.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

bash scripts/SmolLM2-135M/prepare.sh
if [[ ! -e "$DATA/test.jsonl" ]]; then
  data datapoint_generation --revised_share 0.5
  data text_data_generation --validation_lines 40
  data query_data_generation --test_per_group 10
fi
train_with_settings --per_device_eval_batch_size "$DEVICE_BATCH" "$@"
