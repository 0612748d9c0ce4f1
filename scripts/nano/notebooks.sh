#!/usr/bin/env bash
# Execute all notebooks of analysis/ that draw a run on the nano run, or those that are named.
# How long: two minutes on 2 CPU cores. Output: outputs/train/nano/default/notebooks and figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

export OMP_NUM_THREADS=1 # nano's matrices are too small for more threads
figures "$@"
