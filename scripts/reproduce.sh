#!/usr/bin/env bash
# Run the paper's pipeline, from data to figures, on nano, a GPT-2 of 2.4 million parameters.
#
# What: makes .venv, then runs scripts/nano/{data,train,predict,eap,circuit_eval,figures,report}.sh in this order.
# How long: about 15 minutes on 2 CPU cores, under 6 GB of memory; the first time 2 minutes more for the installation.
# Output: progress bars; at the end the table of what was learned and the paths of the figures and the report.
# An interrupted call continues when it is repeated. Repeating a finished one prints the table again.
# SEED=1 bash scripts/reproduce.sh uses other people and other weights, in a run of its own (seed_1).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/nano/settings.sh"
source "$ROOT/scripts/stages.sh"

count_gpus
STAGE_FOLDERS="$DATA $UNTRAINED $BASE_RUN $RUN_FOLDER"
run_stages "$RUN_FOLDER/stages" scripts/nano data train predict eap circuit_eval figures report

echo "== All stages done ($SECONDS s this time)"
echo
cat "$RUN_FOLDER/summary.txt"
echo
echo "Figures: $ROOT/$RUN_FOLDER/figures"
echo "Report:  $ROOT/$RUN_FOLDER/report.html"
