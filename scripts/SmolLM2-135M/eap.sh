#!/usr/bin/env bash
# Find the circuits of the SmolLM2 run with EAP-IG, from at most 10 prompts per group: discover in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

discover "$@"
