# Sourced by the scripts in this folder: GPT-2 medium (355M parameters) with the paper's hyperparameters.
# ../common.sh explains the variables that a user may set, and the stages that the scripts call.

MODEL=gpt2-medium        # the name in output and data paths
HUB_NAME=openai-community/gpt2-medium
LEARNING_RATE=1e-3       # constant
EPOCHS=15                # one checkpoint each
BLOCK_SIZE=1024          # tokens of a sequence
SEQUENCES_PER_STEP=64    # 8 per device x 4 accumulated x 2 devices; the accumulation follows the number of devices
DEVICE_BATCH=8           # sequences per device in one pass
FORGET_EPOCHS=5          # the original's protocol
FORGET_LEARNING_RATE=1e-4 # constant, the original's protocol
ATTRIBUTION_BATCH=64     # prompts in one pass
TOPN=20000               # edges of a circuit, of 231,877
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
