# Sourced by the scripts in this folder: GPT-2 small (124M parameters) with the paper's hyperparameters.
# ../common.sh explains the variables that a user may set, and the stages that the scripts call.

MODEL=gpt2               # the name in output and data paths
HUB_NAME=openai-community/gpt2
LEARNING_RATE=1e-3       # constant
EPOCHS=25                # one checkpoint each
BLOCK_SIZE=1024          # tokens of a sequence
SEQUENCES_PER_STEP=128   # 16 per device x 4 accumulated x 2 devices; the accumulation follows the number of devices
DEVICE_BATCH=16          # sequences per device in one pass
FORGET_EPOCHS=10         # the original's protocol
FORGET_LEARNING_RATE=1e-4 # constant, the original's protocol
ATTRIBUTION_BATCH=64     # prompts in one pass
TOPN=8000                # edges of a circuit, of 32,491
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
