# Sourced by the settings.sh of every model: the stages that the scripts call.
#
# A model's settings.sh sets MODEL and its hyperparameters, then sources this file. A user may set:
#
#   N            entities of the corpus (50000)
#   SEED         seed of data and training (0)
#   RUN          name of the run (default; seed_<SEED> if SEED is set); the run's folder is outputs/train/<MODEL>/<RUN>
#   MODEL_PATH   weights to start from: a hub name or a folder
#   DATA_DIR     folder of entities_<N> (data; outputs/data/seed_<SEED> if SEED is set)
#   CIRCUIT_N    circuit prompts per group (300)
#   CHECKPOINTS  checkpoints that predict, eap and circuit_eval read (those of the run)
#   RATIOS       replay ratios of forget.sh (0 0.1 0.2 0.4 0.6 1)
#   REPORT_TO    wandb (offline without a key), tensorboard or none
#
# A script passes its own arguments on to one program: train.sh and forget.sh to train.py, predict.sh to predict.py, eap.sh
# to circuit_discovery.py, circuit_eval.sh and transferred_circuits.sh to circuit_eval.py. The other scripts take none, but
# notebooks.sh takes names of notebooks. Paths are relative to the repository's root.
# Finished work on disk is skipped: start an interrupted script again to continue.

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

: "${N:=50000}" "${SEED:=0}" "${CIRCUIT_N:=300}" "${REPORT_TO:=wandb}" "${RATIOS:=0 0.1 0.2 0.4 0.6 1}"
: "${PREDICTION_BATCH:=256}" "${GRAPH_FORMAT:=json.gz}"
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

# The paper's optimizer, the same for all models.
OPTIMIZER=(--optim adamw_torch --weight_decay 0.1 --adam_beta1 0.9 --adam_beta2 0.95 --adam_epsilon 1e-6
  --lr_scheduler_type constant)

# Processes -----------------------------------------------------------------------------------------------------------

# Set GPU_COUNT once, for this script and those that it calls: starting torch takes seconds.
count_gpus() {
  : "${GPU_COUNT:=$(python -c 'import torch; print(torch.cuda.device_count())')}"
  export GPU_COUNT
}

# Run a program in one process, or in one process per GPU on each of MACHINES machines (set by scripts/slurm).
launch() { # program arguments...
  local devices processes kind=(--multi_gpu) network=()
  count_gpus
  devices=$((GPU_COUNT > 0 ? GPU_COUNT : 1))
  processes=$((devices * ${MACHINES:-1}))
  if ((processes <= 1)); then
    python "$@"
    return
  fi
  if [[ -n "${ACCELERATE_CONFIG:-}" ]]; then kind=(--config_file "$ACCELERATE_CONFIG"); fi # for example FSDP
  if ((${MACHINES:-1} > 1)); then
    network=(--num_machines "$MACHINES" --machine_rank "$MACHINE_RANK" --main_process_ip "$MAIN_ADDRESS"
      --main_process_port "${MAIN_PORT:-29500}")
  fi
  python -m accelerate.commands.launch "${kind[@]}" ${network[@]+"${network[@]}"} --num_processes "$processes" "$@"
}

# The same, but without a GPU run PROCESSES processes of one thread each, if PROCESSES is set. A model as small as nano
# does not use two cores in one process. The files do not depend on the number of processes.
launch_sweep() { # program arguments...
  count_gpus
  if [[ -z "${PROCESSES:-}" || "$GPU_COUNT" != 0 ]]; then
    launch "$@"
  elif ((PROCESSES == 1)); then
    python "$@" --threads 1
  else
    # `accelerate launch --cpu` starts one process only.
    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" "$@" --threads 1
  fi
}

# Data ----------------------------------------------------------------------------------------------------------------

# Run a program of data/.
data() { # name without .py, arguments...
  python "data/$1.py" --N "$N" --seed "$SEED" --data_dir "$DATA_DIR" "${@:2}"
}

# Generate people, biographies and queries, unless they are there.
generate_corpus() {
  [[ -e "$DATA/test.jsonl" ]] && return
  echo "== Generating the biographies of $N people in $DATA"
  data datapoint_generation
  data text_data_generation
  data query_data_generation
}

# Generate the circuit prompts for this model's tokenizer, unless they are there.
generate_circuit_data() {
  [[ -e "$DATA/circuit_$CIRCUIT_N/$MODEL/major.jsonl" ]] && return
  echo "== Generating circuit prompts for $MODEL in $DATA/circuit_$CIRCUIT_N"
  data circuits_data_generation --circuit_n "$CIRCUIT_N" --model "$MODEL" \
    --model_name_or_path "${MODEL_PATH:-$CHECKPOINTS/checkpoint-0}"
}

# Training ------------------------------------------------------------------------------------------------------------

# Print the newest checkpoint of a run.
last_checkpoint() { # run's folder
  local newest
  newest="$(cd "$1/checkpoints" 2>/dev/null && ls -d checkpoint-* | sort -t- -k2 -n | tail -n 1)" || true
  if [[ -z "$newest" ]]; then
    echo "error: $1 has no checkpoints; run train.sh first" >&2
    return 1
  fi
  echo "$1/checkpoints/$newest"
}

# Train a run, with a checkpoint and an evaluation after each epoch.
train() { # arguments of train.py...
  launch train.py --model "$MODEL" --do_train --do_eval --seed "$SEED" \
    --train_file "$DATA/train.jsonl" --validation_file "$DATA/validation.jsonl" --run "$RUN" \
    "${OPTIMIZER[@]}" --save_strategy epoch --eval_strategy epoch --logging_steps 10 \
    --run_name "$MODEL/$RUN" --report_to "$REPORT_TO" "$@"
}

# Train with the hyperparameters of settings.sh.
# How long: docs/scaling.md. If memory is short, add --bf16 or --gradient_checkpointing.
# Output: checkpoint-0 and one checkpoint per epoch in <run>/checkpoints, and <run>/evaluations.jsonl.
train_with_settings() { # arguments of train.py...
  train --model_name_or_path "${MODEL_PATH:-$HUB_NAME}" --learning_rate "$LEARNING_RATE" \
    --num_train_epochs "$EPOCHS" --block_size "$BLOCK_SIZE" --per_device_train_batch_size "$DEVICE_BATCH" \
    --sequences_per_step "$SEQUENCES_PER_STEP" "$@"
}

# Queries and circuits ------------------------------------------------------------------------------------------------

# Generate answers to the queries (five per person of test.jsonl, greedy) with every checkpoint.
# Output: prediction.jsonl in each checkpoint.
predict() { # arguments of predict.py...
  launch_sweep predict.py --model_name_or_path "$CHECKPOINTS" --input_file "$DATA/test.jsonl" \
    --batch_size "$PREDICTION_BATCH" "$@"
}

# Find the circuits of the 18 groups (task x type x frequency band) at every checkpoint with EAP-IG.
# Circuit prompts are generated first if they are missing. An empty group is named and skipped.
# Output: <task>_graph.json.gz (or .json) in checkpoint-*/circuit_<n>/type_*/frequency_*/method_EAP-IG.
discover() { # arguments of circuit_discovery.py...
  generate_circuit_data
  launch_sweep circuit_discovery.py --model "$MODEL" --model_path "$CHECKPOINTS" --circuit_n "$CIRCUIT_N" \
    --data_file "$DATA/circuit_$CIRCUIT_N/$MODEL/{task}.jsonl" --method EAP-IG --batch_size "$ATTRIBUTION_BATCH" \
    --format "$GRAPH_FORMAT" "$@"
}

# Evaluate the circuits: faithfulness, and the answers of each circuit alone for the test people of every type and band.
# A circuit has the TOPN edges of largest score; without TOPN a quarter of all edges.
# Output: <task>_graph, <task>_results.json and <task>_prediction.jsonl in topn_<TOPN> beside every graph.
evaluate() { # arguments of circuit_eval.py...
  launch_sweep circuit_eval.py --model "$MODEL" --model_path "$CHECKPOINTS" --circuit_n "$CIRCUIT_N" \
    --eval_data_file "$DATA/circuit_$CIRCUIT_N/$MODEL/{task}.jsonl" --test_data_file "$DATA/test.jsonl" \
    --method EAP-IG --batch_size "${EVALUATION_BATCH:-$ATTRIBUTION_BATCH}" ${TOPN:+--topn "$TOPN"} \
    --format "$GRAPH_FORMAT" "$@"
}

# Evaluate transferred circuits: those of the first and the last checkpoint and of both sides of the break of circuit
# entropy, each in the weights of every checkpoint.
# Output: <task>_from_<step>_results.json beside the results of the checkpoints' own circuits.
transfer_circuits() { # arguments of circuit_eval.py...
  local -a origins
  read -ra origins -d '' < <(python -m knowledge_circuits.analysis origins "$RUN_FOLDER") || true
  evaluate --circuit_from "${origins[@]}" "$@"
}

# Forgetting ----------------------------------------------------------------------------------------------------------

# Continue the finished run on N other people, with each replay ratio (the share of training examples that are replaced by
# examples of the run). Checkpoints lie at exponential gaps; old biographies are evaluated every 5 steps. FORGET_DATA: flags
# of data/forget_data_generation.py.
# Output: outputs/forget/<MODEL>/replay_<ratio>.
forget() { # arguments of train.py...
  local start ratio
  start="$(last_checkpoint "$RUN_FOLDER")"
  [[ -e "$DATA/replay.jsonl" ]] || data forget_data_generation ${FORGET_DATA[@]+"${FORGET_DATA[@]}"}
  for ratio in $RATIOS; do
    echo "== Continuing with replay ratio $ratio from $start"
    launch train.py --model "$MODEL" --model_name_or_path "$start" --do_train --do_eval --seed "$SEED" \
      --train_file "$DATA/forget_new.jsonl" --validation_file "$DATA/validation.jsonl" \
      --replay_file "$DATA/replay.jsonl" --replay_ratio "$ratio" "${OPTIMIZER[@]}" \
      --save_schedule exponential --eval_on_start --eval_strategy steps --eval_steps 5 --logging_steps 5 \
      --output_dir "$FORGET_FOLDER/replay_$ratio" --run_name "$MODEL/replay_$ratio" --report_to "$REPORT_TO" "$@"
  done
}

# Evaluate the old facts at every checkpoint of the forgetting experiment: the queries, new circuits of the given bands,
# and the circuits of the run's last checkpoint in the changed weights.
evaluate_old_facts() { # frequency bands...
  local start ratio
  local circuits=(--source_frequency "$@" --target_frequency "$@")
  start="$(last_checkpoint "$RUN_FOLDER")"
  for ratio in $RATIOS; do
    echo "== Old facts and their circuits with replay ratio $ratio"
    CHECKPOINTS="$FORGET_FOLDER/replay_$ratio/checkpoints"
    predict
    discover --frequency "$@"
    evaluate "${circuits[@]}"
    evaluate "${circuits[@]}" --circuit_from "$start"
  done
}

# Run the forgetting experiment with the hyperparameters of settings.sh. How long: for each ratio, one training on N biographies, and
# for each of its checkpoints what docs/scaling.md states. Draw the result with RUN=<folder> in analysis/forgetting.ipynb.
forget_with_settings() { # arguments of train.py...
  forget --learning_rate "$FORGET_LEARNING_RATE" --num_train_epochs "$FORGET_EPOCHS" --block_size "$BLOCK_SIZE" \
    --per_device_train_batch_size "$DEVICE_BATCH" --sequences_per_step "$SEQUENCES_PER_STEP" "$@"
  evaluate_old_facts low medium high
}

# Figures -------------------------------------------------------------------------------------------------------------

# Execute a notebook of analysis/ on a run. The copy goes to <run>/notebooks, its figures to <run>/figures.
notebook() { # name, run's folder
  # A progress bar would stay in the executed notebook as a line of text.
  TQDM_DISABLE=1 RUN="$2" python -m jupyter nbconvert --to notebook --execute --log-level ERROR \
    --output-dir "$2/notebooks" --ExecutePreprocessor.timeout=-1 "analysis/$1.ipynb" \
    2> >(grep -v 'Kernel is running over TCP' >&2)
}

# Execute the named notebooks on the run, or all that draw a run.
figures() { # names...
  local -a names=("$@")
  local index
  (($#)) || read -ra names -d '' < <(cd analysis && ls ./*.ipynb | sed 's/^..//; s/.ipynb$//' | grep -v -e forgetting -e your_own_model -e documents) || true
  for index in "${!names[@]}"; do
    echo "-- analysis/${names[index]}.ipynb ($((index + 1)) of ${#names[@]})"
    notebook "${names[index]}" "$RUN_FOLDER"
  done
}

# Write the run's report.html and, beside it, the table of what was learned, summary.txt.
report() {
  python -m knowledge_circuits.analysis summary "$RUN_FOLDER" >/dev/null &
  local other=$!
  python report.py --run "$RUN_FOLDER"
  wait "$other"
  cat "$RUN_FOLDER/summary.txt"
}
