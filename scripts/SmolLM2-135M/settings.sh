# Sourced by SmolLM2's scripts: the size of the experiment. 100 people, half of them real, so that a CPU is enough.

MODEL=SmolLM2-135M
: "${N:=100}" "${CIRCUIT_N:=10}" "${MODEL_PATH:=models/SmolLM2-135M}"
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
