# Sourced by every script of the relevance study: the size of its runs, and where they lie.
#
# N = 360 invented people in 180 pairs of neighbours in frequency, nano's model and 12 of each attribute's templates. A
# run is named seed_<seed>-dose_<dose>-mirror_<mirror>. docs/results.md (section 7) reports these settings, and as the
# earlier one EPOCHS=16 BLOCK_SIZE=256 DEVICE_BATCH=8: short blocks teach queries twice as well
# (docs/experiment_log.md).

MODEL=relevance
: "${N:=360}" "${TEMPLATES:=12}" "${SEEDS:=0 1 2}" "${DOSES:=10 0 3}" "${PROCESSES:=2}" "${REPORT_TO:=none}"
: "${PAST_EPOCHS:=8}" "${EPOCHS:=10}" "${BLOCK_SIZE:=64}" "${DEVICE_BATCH:=16}"
