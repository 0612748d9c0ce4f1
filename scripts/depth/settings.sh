# Sourced by every script of the depth study: the size of its runs, and where they lie.
#
# 12 layers x width 128 x 4 heads: 4,555 edges, of which a circuit takes the top quarter. N = 360 invented people, half of
# them in the past, and 80 more whom continual pre-training never mentions. A run is named seed_<seed>.

MODEL=depth
: "${N:=360}" "${TEMPLATES:=12}" "${SEEDS:=0 1 2 3 4}" "${CIRCUIT_N:=30}" "${PROCESSES:=2}" "${REPORT_TO:=none}"
: "${PAST_EPOCHS:=16}" "${EPOCHS:=16}" "${UNTAUGHT:=80}"
