#!/usr/bin/env bash
# Asks every checkpoint of the nano run for the facts: five prompts per person of test.jsonl, greedy answers.
# How long: a minute on 2 CPU cores. Expect: prediction.jsonl in every checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

predict "$@"
