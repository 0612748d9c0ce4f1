#!/usr/bin/env bash
# Find the circuits of the TinyLlama 1.1 run with EAP-IG: discover in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

discover "$@"
