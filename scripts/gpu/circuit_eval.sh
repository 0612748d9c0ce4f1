#!/usr/bin/env bash
# Evaluate the circuits: evaluate in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

evaluate "$@"
