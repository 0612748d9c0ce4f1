#!/usr/bin/env bash
# The paper's pipeline from data to figures on the built-in default "nano", a GPT-2 of 2.4 million parameters.
#
# What: makes .venv, then scripts/nano/{data,train,predict,eap,circuit_eval,figures,report}.sh, one after the other.
# How long: at most 15 minutes on 2 CPU cores, under 6 GB of memory, and 2 minutes more to install the first time.
# Expect: progress bars; at the end a table of what was learned and the places of the figures and the report.
# Interrupt it and start it again: it goes on where it was. Start it when it is done: it repeats the table in seconds.
# SEED=1 bash scripts/reproduce.sh does the same with other people and other weights, in a run of its own (seed_1).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/nano/settings.sh"
source "$ROOT/scripts/stages.sh"

run_stages "$RUN_FOLDER/stages" scripts/nano data train predict eap circuit_eval figures report

echo "== All stages done ($SECONDS s this time)"
echo
cat "$RUN_FOLDER/summary.txt"
echo
echo "Figures: $ROOT/$RUN_FOLDER/figures"
echo "Report:  $ROOT/$RUN_FOLDER/report.html"
