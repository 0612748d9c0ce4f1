#!/usr/bin/env bash
# Run the full experiment at the size of GPT-2 small on one CUDA GPU, in slices of a few minutes.
#
#   bash scripts/gpu/run.sh                                       one slice of at most MINUTES (9) minutes
#   until bash scripts/gpu/run.sh || (($? != 124)); do :; done    all slices
#
# What: the stages data, train, predict, eap, circuit_eval, figures and report of this folder. A slice that runs out of
# time stops its program and exits with status 124. The next call continues from the files: training from the last
# epoch, the other stages from the last finished file.
# How long: README.md in this folder. Output: the table of what was learned, and outputs/train/gpt2-scratch/default.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
source "$ROOT/scripts/stages.sh"

python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "error: no CUDA GPU is visible here")'
DEADLINE=$((60 * ${MINUTES:-9})) # compared with SECONDS of this shell, so an installation counts
status=0
STAGE_FOLDERS="$DATA $UNTRAINED $BASE_RUN $RUN_FOLDER"
run_stages "$RUN_FOLDER/stages" scripts/gpu data train predict eap circuit_eval figures report || status=$?
if ((status == 124)); then echo "== Out of time; run the same command again to continue"; fi
((status == 0)) || exit "$status"
cat "$RUN_FOLDER/summary.txt"
