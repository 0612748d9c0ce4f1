#!/usr/bin/env bash
# Evaluates the circuits of the nano run: faithfulness of a quarter of the edges, and what each circuit alone answers.
# Then the test of the paper's phase shift: the city circuits of the first checkpoint, of those before and after the break
# of circuit entropy, and of the last, in the weights of all the others (the high band; moved_circuits.sh does all groups).
# How long: a minute or two on 2 CPU cores. Expect: <task>_results.json and <task>_prediction.jsonl in topn_400.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

evaluate --method EAP-IG --batch_size 32 --topn 400 "$@"
move_circuits --method EAP-IG --batch_size 32 --topn 400 --task city --source_frequency high --target_frequency high
