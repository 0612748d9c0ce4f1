#!/usr/bin/env bash
# Continual pre-training of TinyLlama 1.1 (1.1B parameters) on the biographies, with the paper's hyperparameters.
#
# What: generates the corpus of N people if it is missing, then trains 10 epochs: learning rate 4e-5, blocks of
# 2,048 tokens, 16 sequences a step (2 per device x 4 accumulated x 2 devices; with more or fewer devices the
# accumulation changes). Other settings: ../common.sh, which also says what N, SEED, RUN, MODEL_PATH and REPORT_TO do.
# How long: hours on GPUs; docs/scaling.md has the estimate. Too little memory? Add `--bf16` or `--gradient_checkpointing`.
# Expect: checkpoint-0 and 10 more in outputs/train/TinyLlama_v1.1/<RUN>/checkpoints, and evaluations.jsonl in the run.
set -euo pipefail
MODEL=TinyLlama_v1.1
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

generate_corpus
train --model_name_or_path "${MODEL_PATH:-TinyLlama/TinyLlama_v1.1}" --learning_rate 4e-5 --num_train_epochs 10 \
  --block_size 2048 --per_device_train_batch_size 2 --sequences_per_step 16 "$@"
