#!/usr/bin/env bash
# Execute the notebooks of analysis/ on the run, except those executed since the circuits were evaluated.
# Output: PNG files in outputs/train/gpt2-scratch/default/figures.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

for name in acquisition topology circuit dynamics components; do
  [[ "$RUN_FOLDER/notebooks/$name.ipynb" -nt "$RUN_FOLDER/stages/circuit_eval.json" ]] || figures "$name"
done
