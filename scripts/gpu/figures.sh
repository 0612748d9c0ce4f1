#!/usr/bin/env bash
# Draws the run: executes the notebooks of analysis/ on it. One that was executed since the circuits' evaluation is left.
# Expect: PNG files in outputs/train/gpt2-scratch/default/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

for name in acquisition topology circuit dynamics components; do
  [[ "$RUN_FOLDER/notebooks/$name.ipynb" -nt "$RUN_FOLDER/stages/circuit_eval" ]] || figures "$name"
done
