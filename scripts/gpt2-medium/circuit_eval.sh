#!/usr/bin/env bash
# Evaluate the circuits of the GPT-2 medium run: evaluate in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

evaluate "$@"
