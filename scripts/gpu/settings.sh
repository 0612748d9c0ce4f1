# Sourced by the scripts of the full-size experiment: a GPT-2-small shape from scratch, with a past of its own.

MODEL=gpt2-scratch
: "${N:=50000}" "${CIRCUIT_N:=300}" "${REPORT_TO:=none}"
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
UNTRAINED="models/$MODEL-untrained/$RUN"       # a tokenizer and random weights
BASE_RUN="outputs/train/$MODEL-base/$RUN"      # the run that gives the model its past
