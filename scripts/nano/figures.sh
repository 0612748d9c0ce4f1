#!/usr/bin/env bash
# Draws how nano learned: executes analysis/acquisition.ipynb, and components.ipynb, whose analysis the report shows too.
# How long: a minute on 2 CPU cores. Expect: PNG files in outputs/train/nano/default/figures. The report has the
# figures of the other notebooks as well; `bash scripts/nano/notebooks.sh` executes them all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

export OMP_NUM_THREADS=1 # more threads would only wait for each other: nano's matrices are small
figures acquisition components
