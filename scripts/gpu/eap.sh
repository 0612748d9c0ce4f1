#!/usr/bin/env bash
# Find the circuits of all 18 groups at all 26 checkpoints with EAP-IG, in float32: discover in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

discover "$@"
