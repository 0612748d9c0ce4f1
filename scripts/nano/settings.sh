# Sourced by every nano script: the size of the experiment and where it starts.
#
# N = 560 people, half of them K_rel, so that even the smallest of the 18 groups has 30 circuit prompts.

MODEL=nano
: "${N:=560}" "${CIRCUIT_N:=30}"
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
UNTRAINED="models/nano-untrained/$RUN"       # a tokenizer and random weights
BASE_RUN="outputs/train/nano-base/$RUN"      # the run that gives nano its past
