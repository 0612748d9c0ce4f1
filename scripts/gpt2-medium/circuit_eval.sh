#!/usr/bin/env bash
# Evaluates the circuits of a GPT-2 medium run: faithfulness of the top 20,000 edges, and what each circuit alone answers
# on the test people of every type and band. How long: docs/scaling.md has the estimate.
# Expect: <task>_results.json and <task>_prediction.jsonl in topn_20000 beside every graph.
set -euo pipefail
MODEL=gpt2-medium
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

evaluate --method EAP-IG --batch_size 64 --topn 20000 --format json.gz "$@"
