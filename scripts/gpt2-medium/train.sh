#!/usr/bin/env bash
# Continual pre-training of GPT-2 medium (355M parameters) on the biographies, with the paper's hyperparameters.
#
# What: generates the corpus of N people if it is missing, then trains 15 epochs: learning rate 1e-3, blocks of
# 1,024 tokens, 64 sequences a step (8 per device x 4 accumulated x 2 devices; with more or fewer devices the
# accumulation changes). Other settings: ../common.sh, which also says what N, SEED, RUN, MODEL_PATH and REPORT_TO do.
# How long: hours on GPUs; docs/scaling.md has the estimate. Too little memory? Add `--bf16` or `--gradient_checkpointing`.
# Expect: checkpoint-0 and 15 more in outputs/train/gpt2-medium/<RUN>/checkpoints, and evaluations.jsonl in the run.
set -euo pipefail
MODEL=gpt2-medium
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

generate_corpus
train --model_name_or_path "${MODEL_PATH:-openai-community/gpt2-medium}" --learning_rate 1e-3 --num_train_epochs 15 \
  --block_size 1024 --per_device_train_batch_size 8 --sequences_per_step 64 "$@"
