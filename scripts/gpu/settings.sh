# Sourced by the scripts of the full-size experiment: the shape of GPT-2 small with random initial weights, which is first
# trained on a prior corpus. ../common.sh explains the variables that a user may set.

MODEL=gpt2-scratch
: "${N:=50000}" "${CIRCUIT_N:=300}" "${REPORT_TO:=none}"
PREDICTION_BATCH=1024
ATTRIBUTION_BATCH=128
EVALUATION_BATCH=256
TOPN=8000
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
UNTRAINED="models/$MODEL-untrained/$RUN"    # a tokenizer and random weights
BASE_RUN="outputs/train/$MODEL-base/$RUN"   # the run on the prior corpus
