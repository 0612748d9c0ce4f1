#!/usr/bin/env bash
# Answer the queries with all 26 checkpoints: predict in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

predict "$@"
