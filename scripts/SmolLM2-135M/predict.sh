#!/usr/bin/env bash
# Answer the queries with every checkpoint of the SmolLM2 run: predict in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

predict "$@"
