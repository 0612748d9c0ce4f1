#!/usr/bin/env bash
# Draws the run: executes the notebooks of analysis/ on it.
# Expect: PNG files in outputs/train/gpt2-scratch/default/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

figures
