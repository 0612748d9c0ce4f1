#!/usr/bin/env bash
# Asks every checkpoint of the SmolLM2 run for the facts: five prompts per person of test.jsonl, greedy answers.
# How long: docs/results.md has the times that we saw. Expect: prediction.jsonl in every checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

predict --batch_size 64 "$@"
