#!/usr/bin/env bash
# Trains every strategy of the documents study and measures its circuits: train.sh [names of strategies]
#
# What: for each strategy and seed continual pre-training with a probe of all questions before the first step and after
# each epoch, then EAP-IG circuits of the prompt pairs at every checkpoint, prompt by prompt.
# How long: not yet timed on a free machine. More than half of it are the probes.
# Expect: question_probes.jsonl and circuits.csv in outputs/train/<MODEL>/<strategy>, 5 GB each. Finished runs are skipped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

for strategy in ${@:-$STRATEGIES}; do
  words="$(strategy_flags "$strategy")"
  read -ra flags <<<"$words"
  for seed in $SEEDS; do
    run="$(run_of "$strategy" "$seed")"
    if [[ -e "$run/circuits.csv" ]]; then
      echo "-- $run: done before"
      continue
    fi
    echo "== $run: training"
    python train.py --model "$MODEL" --model_name_or_path "$MODEL_PATH" --do_train --seed "$seed" --output_dir "$run" \
      --train_file "$DATA/documents.jsonl" --probe_file "$DATA/questions.jsonl" --probe_every epoch $INSTRUCT \
      --probe_max_new_tokens "$ANSWER_TOKENS" --skill_examples "$SKILL_EXAMPLES" --num_train_epochs "$EPOCHS" --learning_rate "$LEARNING_RATE" \
      --lr_scheduler_type constant --optim adamw_torch --weight_decay 0 --block_size "$BLOCK_SIZE" \
      --per_device_train_batch_size "$DEVICE_BATCH" --save_strategy epoch --logging_steps 1 --disable_tqdm True \
      --report_to "$REPORT_TO" ${flags[@]+"${flags[@]}"}
    echo "== $run: circuits"
    python -m knowledge_circuits.analysis facts "$run" --data_file "$DATA/pairs.csv" --group_by frequency \
      --circuit_n "$CIRCUIT_N"
  done
done
