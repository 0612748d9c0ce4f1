#!/usr/bin/env bash
# Evaluates the circuits of the nano run: faithfulness of a quarter of the edges, and what each circuit alone answers.
# Then the test of the paper's phase shift: the city circuits of four checkpoints, before and after the shift, in the weights
# of all the others.
# How long: a minute or two on 2 CPU cores. Expect: <task>_results.json and <task>_prediction.jsonl in topn_400.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

evaluate --method EAP-IG --batch_size 32 --topn 400 "$@"
read -ra sources -d '' < <(checkpoints_along "$RUN_FOLDER") || true
evaluate --method EAP-IG --batch_size 32 --topn 400 --circuit_from "${sources[@]}" \
  --task city --source_frequency high --target_frequency high
