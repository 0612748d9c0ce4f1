# Sourced by every model's scripts, which state their numbers and call one of the stages below.
#
# A model's script sets MODEL (the name in output and data paths) before sourcing this. A user may set:
#   N           entities of the corpus (50000)           MODEL_PATH  the weights to start from: a hub name or a folder
#   SEED        seed of data and training (0)            RUN         name of the run (entities_<N>_seed_<SEED>)
#   CIRCUIT_N   circuit prompts per group (300)          CHECKPOINTS what predict, eap and circuit_eval work on (the run)
#   REPORT_TO   wandb (offline where no key is set), tensorboard or none
# Paths are relative to the repository's root. What else a script is given goes to the program it calls.
# Finished work on disk is skipped everywhere, so an interrupted script is simply started again.

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

: "${N:=50000}" "${SEED:=0}" "${CIRCUIT_N:=300}" "${REPORT_TO:=wandb}"
: "${RUN:=entities_${N}_seed_${SEED}}"
DATA="data/entities_$N"
RUN_FOLDER="outputs/train/$MODEL/$RUN"
: "${CHECKPOINTS:=$RUN_FOLDER/checkpoints}"

export WANDB_PROJECT="${WANDB_PROJECT:-knowledge-circuits}" WANDB_DIR="${WANDB_DIR:-$ROOT/outputs}"
if [[ -z "${WANDB_API_KEY:-}" ]] && ! grep -qs wandb "${NETRC:-$HOME/.netrc}"; then
  export WANDB_MODE="${WANDB_MODE:-offline}"
fi
mkdir -p outputs

launch() { # program arguments...: in one process, or in one per GPU
  local devices
  devices="$(python -c 'import torch; print(torch.cuda.device_count())')"
  if ((devices > 1)); then
    python -m accelerate.commands.launch --multi_gpu --num_processes "$devices" "$@"
  else
    python "$@"
  fi
}

generate_corpus() { # arguments for datapoint_generation.py...
  [[ -e "$DATA/test.jsonl" ]] && return
  echo "== Generating the biographies of $N people in $DATA"
  python data/datapoint_generation.py --N "$N" --seed "$SEED" "$@"
  python data/text_data_generation.py --N "$N" --seed "$SEED"
  python data/query_data_generation.py --N "$N" --seed "$SEED"
}

generate_circuit_data() { # pairs for this model's tokenizer, which each of its checkpoints has
  [[ -e "$DATA/circuit_$CIRCUIT_N/$MODEL/major.jsonl" ]] && return
  echo "== Generating circuit prompts for $MODEL in $DATA/circuit_$CIRCUIT_N"
  python data/circuits_data_generation.py --N "$N" --seed "$SEED" --circuit_n "$CIRCUIT_N" \
    --model "$MODEL" --model_name_or_path "${MODEL_PATH:-$CHECKPOINTS/checkpoint-0}"
}

train() { # arguments for train.py...; the paper's optimizer: AdamW with a constant learning rate, a checkpoint each epoch
  launch train.py --model "$MODEL" --do_train --do_eval --seed "$SEED" \
    --train_file "$DATA/train.jsonl" --validation_file "$DATA/validation.jsonl" --output_dir "$RUN_FOLDER/checkpoints" \
    --optim adamw_torch --weight_decay 0.1 --adam_beta1 0.9 --adam_beta2 0.95 --adam_epsilon 1e-6 \
    --lr_scheduler_type constant --save_strategy epoch --eval_strategy epoch --logging_steps 10 \
    --run_name "$MODEL-$RUN" --report_to "$REPORT_TO" "$@"
}

predict() { # arguments for predict.py...
  launch predict.py --model_name_or_path "$CHECKPOINTS" --input_file "$DATA/test.jsonl" "$@"
}

discover() { # arguments for circuit_discovery.py...
  generate_circuit_data
  launch circuit_discovery.py --model "$MODEL" --model_path "$CHECKPOINTS" --circuit_n "$CIRCUIT_N" \
    --data_file "$DATA/circuit_$CIRCUIT_N/$MODEL/{task}.jsonl" "$@"
}

evaluate() { # arguments for circuit_eval.py...
  launch circuit_eval.py --model "$MODEL" --model_path "$CHECKPOINTS" --circuit_n "$CIRCUIT_N" \
    --eval_data_file "$DATA/circuit_$CIRCUIT_N/$MODEL/{task}.jsonl" --test_data_file "$DATA/test.jsonl" "$@"
}
