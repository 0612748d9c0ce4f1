# Sourced by every nano script: the size of the experiment and where it starts.
#
# N = 360 people, half of them K_rel, with frequencies round(Exp(0.25)): enough for 30 circuit prompts in the smallest of
# the 18 groups, few enough for 16 epochs in minutes. 12 of each attribute's templates: so small a model on so few texts
# learns facts that it can be asked for from a dozen wordings, and little more than the texts themselves from sixty.

MODEL=nano
: "${N:=360}" "${TEMPLATES:=12}" "${CIRCUIT_N:=30}"
cores="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)"
: "${PROCESSES:=$((cores < 4 ? cores : 4))}" # of prediction and circuits
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
UNTRAINED="models/nano-untrained/$RUN"       # a tokenizer and random weights
BASE_RUN="outputs/train/nano-base/$RUN"      # the run that gives nano its past
