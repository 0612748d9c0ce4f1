#!/usr/bin/env bash
# Executes all notebooks of analysis/ that draw a run on the nano run.
# How long: two minutes on 2 CPU cores. Expect: outputs/train/nano/default/notebooks, and their pictures in figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

export OMP_NUM_THREADS=1 # more threads would only wait for each other: nano's matrices are small
figures "$@"
