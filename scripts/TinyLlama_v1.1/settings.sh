# Sourced by the scripts in this folder: TinyLlama 1.1 (1.1B parameters) with the paper's hyperparameters.
# ../common.sh explains the variables that a user may set, and the stages that the scripts call.

MODEL=TinyLlama_v1.1     # the name in output and data paths
HUB_NAME=TinyLlama/TinyLlama_v1.1
LEARNING_RATE=4e-5       # constant
EPOCHS=10                # one checkpoint each
BLOCK_SIZE=2048          # tokens of a sequence
SEQUENCES_PER_STEP=16    # 2 per device x 4 accumulated x 2 devices; the accumulation follows the number of devices
DEVICE_BATCH=2           # sequences per device in one pass
FORGET_EPOCHS=5          # our choice: the original has no forgetting experiment for this model
FORGET_LEARNING_RATE=4e-6 # our choice: a tenth of the rate above, as the original's of GPT-2
ATTRIBUTION_BATCH=16     # prompts in one pass
TOPN=50000               # edges of a circuit, of 742,996
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
