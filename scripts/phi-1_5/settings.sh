# Sourced by the scripts in this folder: Phi-1.5 (1.4B parameters) with the paper's hyperparameters.
# ../common.sh explains the variables that a user may set, and the stages that the scripts call.

MODEL=phi-1_5            # the name in output and data paths
HUB_NAME=microsoft/phi-1_5
LEARNING_RATE=2e-4       # constant
EPOCHS=7                 # one checkpoint each
BLOCK_SIZE=1024          # tokens of a sequence
SEQUENCES_PER_STEP=16    # 2 per device x 4 accumulated x 2 devices; the accumulation follows the number of devices
DEVICE_BATCH=2           # sequences per device in one pass
FORGET_EPOCHS=5          # our choice: the original has no forgetting experiment for this model
FORGET_LEARNING_RATE=2e-5 # our choice: a tenth of the rate above, as the original's of GPT-2
ATTRIBUTION_BATCH=4      # prompts in one pass
TOPN=50000               # edges of a circuit, of 886,597
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
