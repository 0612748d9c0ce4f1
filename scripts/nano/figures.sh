#!/usr/bin/env bash
# Draws how nano learned: executes analysis/acquisition.ipynb on the nano run.
# How long: half a minute on 2 CPU cores. Expect: PNG files in outputs/train/nano/default/figures. The report has the
# figures of the other notebooks too; `bash scripts/nano/notebooks.sh` executes them all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

figures acquisition
