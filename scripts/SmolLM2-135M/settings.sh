# Sourced by the scripts in this folder: SmolLM2-135M on the biographies of 100 people, sized for 2 CPU cores.
# ../common.sh explains the variables that a user may set. docs/results.md has the measured times and results.

MODEL=SmolLM2-135M
: "${N:=100}" "${CIRCUIT_N:=10}" "${EPOCHS:=3}" "${MODEL_PATH:=models/SmolLM2-135M}"
LEARNING_RATE=2e-4
BLOCK_SIZE=256
SEQUENCES_PER_STEP=4
DEVICE_BATCH=4
PREDICTION_BATCH=64
ATTRIBUTION_BATCH=8
TOPN=                    # a quarter of the 123,211 edges
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
