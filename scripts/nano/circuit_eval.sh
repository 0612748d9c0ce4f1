#!/usr/bin/env bash
# Evaluates the circuits of the nano run: faithfulness of a quarter of the edges, and what each circuit alone answers.
# How long: a minute or two on 2 CPU cores. Expect: <task>_results.json and <task>_prediction.jsonl in topn_400.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

evaluate --method EAP-IG --batch_size 32 --topn 400 "$@"
