# Sourced by the scripts in this folder: a GPT-2 of 2.4 million parameters that learns facts about 360 people.
# ../common.sh explains the variables that a user may set.
#
# N = 360 invented people, half of them K_rel, with frequencies round(Exp(0.25)), give 30 circuit prompts in nearly all of
# the 18 groups and 10 epochs within minutes. 12 templates per attribute: with 60 templates so small a model learns little
# more than the texts and cannot answer the queries.

MODEL=nano
: "${N:=360}" "${TEMPLATES:=12}" "${CIRCUIT_N:=30}" "${GRAPH_FORMAT:=json}" "${REPORT_TO:=none}"
ATTRIBUTION_BATCH=32
TOPN=400                                      # a quarter of the 1,603 edges
cores="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)"
: "${PROCESSES:=$((cores < 4 ? cores : 4))}"  # for prediction and circuits
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
UNTRAINED="models/nano-untrained/$RUN"        # a tokenizer and random weights
BASE_RUN="outputs/train/nano-base/$RUN"       # the run on the past
