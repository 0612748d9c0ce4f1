#!/usr/bin/env bash
# Answer the queries with every checkpoint of the nano run: predict in ../common.sh.
# How long: a minute on 2 CPU cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

predict "$@"
