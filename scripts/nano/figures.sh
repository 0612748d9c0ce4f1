#!/usr/bin/env bash
# Execute two notebooks on the nano run: acquisition, and components, whose analysis the report shows too.
# How long: a minute on 2 CPU cores. Output: PNG files in outputs/train/nano/default/figures. The report also has the figures
# of the other notebooks; notebooks.sh executes them all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

export OMP_NUM_THREADS=1 # nano's matrices are too small for more threads
figures acquisition components
