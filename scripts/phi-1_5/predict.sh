#!/usr/bin/env bash
# Asks every checkpoint of a Phi-1.5 run for the facts: five prompts per person of test.jsonl, greedy answers.
# How long: 8 checkpoints x 9,000 prompts, minutes on a GPU each. Expect: prediction.jsonl in every checkpoint.
set -euo pipefail
MODEL=phi-1_5
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

predict --batch_size 256 "$@"
