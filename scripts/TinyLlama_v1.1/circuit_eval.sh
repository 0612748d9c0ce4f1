#!/usr/bin/env bash
# Evaluates the circuits of a TinyLlama 1.1 run: faithfulness of the top 50,000 edges, and what each circuit alone answers
# on the test people of every type and band. How long: docs/scaling.md has the estimate.
# Expect: <task>_results.json and <task>_prediction.jsonl in topn_50000 beside every graph.
set -euo pipefail
MODEL=TinyLlama_v1.1
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

evaluate --method EAP-IG --batch_size 16 --topn 50000 --format json.gz "$@"
