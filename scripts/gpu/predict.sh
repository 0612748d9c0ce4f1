#!/usr/bin/env bash
# Asks all 26 checkpoints for the facts.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

predict --batch_size 1024 "$@"
