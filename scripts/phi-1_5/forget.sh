#!/usr/bin/env bash
# Train the Phi-1.5 run on other people's facts and evaluate the old ones: forget_with_settings in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

forget_with_settings "$@"
