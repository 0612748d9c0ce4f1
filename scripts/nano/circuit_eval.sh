#!/usr/bin/env bash
# Evaluate the circuits of the nano run, and the transferred circuits of one task.
#
# What: faithfulness and standalone answers of every circuit, of random circuits of the same size and of circuits of other
# sizes. Then the city circuits of the high band from the first checkpoint, from both sides of the break of circuit entropy
# and from the last checkpoint, each in the weights of all others; transferred_circuits.sh does all groups.
# How long: four minutes on 2 CPU cores. Output: <task>_results.json and <task>_prediction.jsonl in topn_400.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

evaluate --floors "$@"
transfer_circuits --task city --source_frequency high --target_frequency high
