#!/usr/bin/env bash
# Draws the nano run: executes the notebooks of analysis/ on it.
# How long: a minute on 2 CPU cores. Expect: PNG files in outputs/train/nano/default/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

figures
