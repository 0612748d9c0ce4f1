#!/usr/bin/env bash
# The full experiment at GPT-2-small size on one CUDA GPU, in slices of a few minutes that continue from files.
#
#   bash scripts/gpu/run.sh     one slice of at most MINUTES (9) minutes; exit status 124 means: out of time, call again
#   until bash scripts/gpu/run.sh || (($? != 124)); do :; done      all of it, on a machine that lets you stay
#
# What: the stages data, train, predict, eap, circuit_eval, figures, report of this folder. A slice that is out of time
# stops its program; the next one goes on from what is on disk (training from the last epoch, the rest from the last file).
# How long: see README.md in this folder. Expect: the table of what was learned, and outputs/train/gpt2-scratch/default.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
source "$ROOT/scripts/stages.sh"

python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "error: no CUDA GPU is visible here")'
DEADLINE=$((60 * ${MINUTES:-9})) # of this shell's SECONDS, so that an installation counts
status=0
run_stages "$RUN_FOLDER/stages" scripts/gpu data train predict eap circuit_eval figures report || status=$?
if ((status == 124)); then echo "== Out of time; the same command goes on from here"; fi
((status == 0)) || exit "$status"
cat "$RUN_FOLDER/summary.txt"
