# Sourced by every nano script: the size of the experiment and where it starts.
#
# N = 400 people, half of them K_rel, with frequencies round(Exp(0.3)): enough for 30 circuit prompts in the smallest of
# the 18 groups, few enough for 16 epochs in minutes.

MODEL=nano
: "${N:=400}" "${CIRCUIT_N:=30}"
: "${PROCESSES:=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)}" # of prediction and circuits
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
UNTRAINED="models/nano-untrained/$RUN"       # a tokenizer and random weights
BASE_RUN="outputs/train/nano-base/$RUN"      # the run that gives nano its past
