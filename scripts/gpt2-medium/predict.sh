#!/usr/bin/env bash
# Answer the queries with every checkpoint of the GPT-2 medium run: predict in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

predict "$@"
