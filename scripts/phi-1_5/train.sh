#!/usr/bin/env bash
# Continual pre-training of Phi-1.5 (1.4B parameters) on the biographies, with the paper's hyperparameters.
#
# What: generates the corpus of N people if it is missing, then trains 7 epochs: learning rate 2e-4, blocks of
# 1,024 tokens, 16 sequences a step (2 per device x 4 accumulated x 2 devices; with more or fewer devices the
# accumulation changes). Other settings: ../common.sh, which also says what N, SEED, RUN, MODEL_PATH and REPORT_TO do.
# How long: hours on GPUs; docs/scaling.md has the estimate. Too little memory? Add `--bf16` or `--gradient_checkpointing`.
# Expect: checkpoint-0 and 7 more in outputs/train/phi-1_5/<RUN>/checkpoints, and evaluations.jsonl in the run.
set -euo pipefail
MODEL=phi-1_5
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

generate_corpus
train --model_name_or_path "${MODEL_PATH:-microsoft/phi-1_5}" --learning_rate 2e-4 --num_train_epochs 7 \
  --block_size 1024 --per_device_train_batch_size 2 --sequences_per_step 16 "$@"
