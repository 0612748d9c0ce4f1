#!/usr/bin/env bash
# Finds the circuits of all 18 groups at all 26 checkpoints with EAP-IG, in float32.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

discover --method EAP-IG --batch_size 128 --format json.gz "$@"
