#!/usr/bin/env bash
# Evaluate the circuits of the TinyLlama 1.1 run: evaluate in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

evaluate "$@"
