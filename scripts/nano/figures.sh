#!/usr/bin/env bash
# Execute two notebooks on the nano run: acquisition, and components, whose analysis the report shows too.
# How long: under a minute on 2 CPU cores, side by side. Output: PNG files in outputs/train/nano/default/figures. The report also has the figures
# of the other notebooks; notebooks.sh executes them all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

export OMP_NUM_THREADS=1 # nano's matrices are too small for more threads
figures acquisition &
other=$!
figures components
wait "$other"
