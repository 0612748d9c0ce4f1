#!/usr/bin/env bash
# Asks every checkpoint of a TinyLlama 1.1 run for the facts: five prompts per person of test.jsonl, greedy answers.
# How long: 11 checkpoints x 9,000 prompts, minutes on a GPU each. Expect: prediction.jsonl in every checkpoint.
set -euo pipefail
MODEL=TinyLlama_v1.1
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

predict --batch_size 256 "$@"
