# Sourced by every model's scripts, which state their numbers and call one of the stages below.
#
# A model's script sets MODEL (the name in output and data paths) before sourcing this. A user may set:
#   N           entities of the corpus (50000)           MODEL_PATH  the weights to start from: a hub name or a folder
#   SEED        seed of data and training (0)            RUN         the run's name: outputs/train/<MODEL>/<RUN> (default, or
#   DATA_DIR    where entities_<N> lies (data, or                    seed_<SEED> where SEED is set)
#               outputs/data/seed_<SEED> where SEED is set)
#   CIRCUIT_N   circuit prompts per group (300)          CHECKPOINTS what predict, eap and circuit_eval work on (the run)
#   RATIOS      what forget.sh does (0 0.1 0.2 0.4 1)
#   REPORT_TO   wandb (offline where no key is set), tensorboard or none
# Paths are relative to the repository's root. What else a script is given goes to the one program that it is named for:
# train and forget train.py, predict predict.py, eap circuit_discovery.py, circuit_eval and moved_circuits circuit_eval.py;
# not to others that it calls. data, figures and report take none; notebooks takes names of notebooks.
# Finished work on disk is skipped everywhere, so an interrupted script is simply started again.

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

: "${N:=50000}" "${SEED:=0}" "${CIRCUIT_N:=300}" "${REPORT_TO:=wandb}" "${RATIOS:=0 0.1 0.2 0.4 1}"
if [[ "$SEED" == 0 ]]; then
  : "${RUN:=default}" "${DATA_DIR:=data}"
else
  : "${RUN:=seed_$SEED}" "${DATA_DIR:=outputs/data/seed_$SEED}"
fi
DATA="$DATA_DIR/entities_$N"
RUN_FOLDER="outputs/train/$MODEL/$RUN"
FORGET_FOLDER="outputs/forget/$MODEL"
if [[ "$RUN" != default ]]; then FORGET_FOLDER="$FORGET_FOLDER/$RUN"; fi
: "${CHECKPOINTS:=$RUN_FOLDER/checkpoints}"

launch() { # program arguments...: in one process, or in one per GPU of every machine (scripts/slurm sets MACHINES)
  local devices processes kind=(--multi_gpu) place=()
  devices="$(python -c 'import torch; print(torch.cuda.device_count())')"
  if ((devices == 0)); then devices=1; fi # without a GPU, one process on each machine
  processes=$((devices * ${MACHINES:-1}))
  if ((processes <= 1)); then
    python "$@"
    return
  fi
  if [[ -n "${ACCELERATE_CONFIG:-}" ]]; then kind=(--config_file "$ACCELERATE_CONFIG"); fi # FSDP, for example
  if ((${MACHINES:-1} > 1)); then
    place=(--num_machines "$MACHINES" --machine_rank "$MACHINE_RANK" --main_process_ip "$MAIN_ADDRESS"
      --main_process_port "${MAIN_PORT:-29500}")
  fi
  python -m accelerate.commands.launch "${kind[@]}" ${place[@]+"${place[@]}"} --num_processes "$processes" "$@"
}

data() { # program of data/ without .py, further arguments...
  python "data/$1.py" --N "$N" --seed "$SEED" --data_dir "$DATA_DIR" "${@:2}"
}

generate_corpus() { # people, biographies, queries
  [[ -e "$DATA/test.jsonl" ]] && return
  echo "== Generating the biographies of $N people in $DATA"
  data datapoint_generation
  data text_data_generation
  data query_data_generation
}

last_checkpoint() { # run's folder: prints its newest checkpoint
  local newest
  newest="$(cd "$1/checkpoints" 2>/dev/null && ls -d checkpoint-* | sort -t- -k2 -n | tail -n 1)" || true
  if [[ -z "$newest" ]]; then
    echo "error: $1 has no checkpoints; run train.sh first" >&2
    return 1
  fi
  echo "$1/checkpoints/$newest"
}

generate_circuit_data() { # pairs for this model's tokenizer, which each of its checkpoints has
  [[ -e "$DATA/circuit_$CIRCUIT_N/$MODEL/major.jsonl" ]] && return
  echo "== Generating circuit prompts for $MODEL in $DATA/circuit_$CIRCUIT_N"
  data circuits_data_generation --circuit_n "$CIRCUIT_N" --model "$MODEL" \
    --model_name_or_path "${MODEL_PATH:-$CHECKPOINTS/checkpoint-0}"
}

# The paper's optimizer, the same for all models.
OPTIMIZER=(--optim adamw_torch --weight_decay 0.1 --adam_beta1 0.9 --adam_beta2 0.95 --adam_epsilon 1e-6
  --lr_scheduler_type constant)

train() { # arguments for train.py...: a run with a checkpoint and an evaluation each epoch
  launch train.py --model "$MODEL" --do_train --do_eval --seed "$SEED" \
    --train_file "$DATA/train.jsonl" --validation_file "$DATA/validation.jsonl" --run "$RUN" \
    "${OPTIMIZER[@]}" --save_strategy epoch --eval_strategy epoch --logging_steps 10 \
    --run_name "$MODEL/$RUN" --report_to "$REPORT_TO" "$@"
}

share_out() { # program arguments...: one GPU per process as above; without a GPU, PROCESSES processes of one thread each
  # A model as small as nano keeps one core busy, not two; the same files come from any number of processes.
  if [[ -z "${PROCESSES:-}" || "$(python -c 'import torch; print(torch.cuda.device_count())')" != 0 ]]; then
    launch "$@"
  elif ((PROCESSES == 1)); then
    python "$@" --threads 1
  else
    # (accelerate launch --cpu would start one process only.)
    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" "$@" --threads 1
  fi
}

predict() { # arguments for predict.py...
  share_out predict.py --model_name_or_path "$CHECKPOINTS" --input_file "$DATA/test.jsonl" "$@"
}

discover() { # arguments for circuit_discovery.py...
  generate_circuit_data
  share_out circuit_discovery.py --model "$MODEL" --model_path "$CHECKPOINTS" --circuit_n "$CIRCUIT_N" \
    --data_file "$DATA/circuit_$CIRCUIT_N/$MODEL/{task}.jsonl" "$@"
}

evaluate() { # arguments for circuit_eval.py...
  share_out circuit_eval.py --model "$MODEL" --model_path "$CHECKPOINTS" --circuit_n "$CIRCUIT_N" \
    --eval_data_file "$DATA/circuit_$CIRCUIT_N/$MODEL/{task}.jsonl" --test_data_file "$DATA/test.jsonl" "$@"
}

forget() { # arguments for train.py...: at every replay ratio, continue the finished run on new people, once each
  local start ratio
  start="$(last_checkpoint "$RUN_FOLDER")"
  [[ -e "$DATA/replay.jsonl" ]] || data forget_data_generation
  for ratio in $RATIOS; do
    echo "== Training on with replay ratio $ratio, from $start"
    launch train.py --model "$MODEL" --model_name_or_path "$start" --do_train --do_eval --seed "$SEED" \
      --train_file "$DATA/forget_new.jsonl" --validation_file "$DATA/validation.jsonl" \
      --replay_file "$DATA/replay.jsonl" --replay_ratio "$ratio" "${OPTIMIZER[@]}" --learning_rate 1e-4 \
      --save_schedule exponential --eval_on_start --eval_strategy steps --eval_steps 5 --logging_steps 5 \
      --output_dir "$FORGET_FOLDER/replay_$ratio" --run_name "$MODEL/replay_$ratio" --report_to "$REPORT_TO" "$@"
  done
}

follow_old_facts() { # attribution batch, topn, bands: what the drifting checkpoints of every ratio know, and their circuits
  local start ratio bands=("${@:3}")
  local circuits=(--batch_size "$1" --topn "$2" --format json.gz)
  circuits+=(--source_frequency "${bands[@]}" --target_frequency "${bands[@]}")
  start="$(last_checkpoint "$RUN_FOLDER")"
  for ratio in $RATIOS; do
    echo "== Old facts and their circuits with replay ratio $ratio"
    CHECKPOINTS="$FORGET_FOLDER/replay_$ratio/checkpoints"
    predict
    discover --batch_size "$1" --format json.gz --frequency "${bands[@]}"
    evaluate "${circuits[@]}"
    evaluate "${circuits[@]}" --circuit_from "$start"
  done
}

move_circuits() { # arguments for circuit_eval.py...: circuits of the ends of the run and of both sides of its break, everywhere
  local -a sources
  read -ra sources -d '' < <(python -m knowledge_circuits.analysis.transferred_circuits "$RUN_FOLDER") || true
  evaluate --circuit_from "${sources[@]}" "$@"
}

notebook() { # name of a notebook in analysis/, run's folder: executes it on the run; its figures go beside the run
  # A progress bar in an executed notebook would stay in it as a line of text.
  TQDM_DISABLE=1 RUN="$2" python -m jupyter nbconvert --to notebook --execute --log-level ERROR --output-dir "$2/notebooks" \
    --ExecutePreprocessor.timeout=-1 "analysis/$1.ipynb" 2> >(grep -v 'Kernel is running over TCP' >&2)
}

figures() { # names of notebooks...: executes them, or all that draw a run
  local -a names=("$@")
  local place
  (($#)) || read -ra names -d '' < <(cd analysis && ls ./*.ipynb | sed 's/^..//; s/.ipynb$//' | grep -v forgetting) || true
  for place in "${!names[@]}"; do
    echo "-- analysis/${names[place]}.ipynb ($((place + 1)) of ${#names[@]})"
    notebook "${names[place]}" "$RUN_FOLDER"
  done
}

report() { # one HTML page, and a table of what was learned
  python report.py --run "$RUN_FOLDER"
  python -m knowledge_circuits.analysis.summary "$RUN_FOLDER"
}
