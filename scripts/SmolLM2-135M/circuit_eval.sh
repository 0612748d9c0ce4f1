#!/usr/bin/env bash
# Evaluates the circuits of the SmolLM2 run: faithfulness of a quarter of the edges, and what each circuit alone answers.
# How long: docs/results.md has the times that we saw. Expect: <task>_results.json and <task>_prediction.jsonl in
# topn_* beside every graph.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

evaluate --method EAP-IG --batch_size 8 --format json.gz "$@"
