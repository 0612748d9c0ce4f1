# Sourced by every script of the documents study: which model learns what, and how.
#
# SmolLM2-135M-Instruct learns an invented encyclopedia of 9 entities: 6 of one article each, 3 of three. It trains at 100
# to 150 tokens a second on 2 CPU cores, so the corpus is small: 15 articles of about 130 tokens. 3 further entities are
# asked about and never told of. Every strategy has the same documents, questions, epochs and batches, but replay never
# reads the articles that it replaces, and LoRA has a learning rate of its own, since adapters of few weights learn at a
# higher one. Any of these may be set from outside:
#
#   MODEL, MODEL_PATH    the model's name in paths, and its weights
#   LOW, HIGH, HIGH_DOCUMENTS, UNMENTIONED   entities with one article, with several, how many these have, with none
#   STRATEGIES           which ones are trained
#   SEEDS                of the training; the documents are those of DATA_SEED
#   SKILL_EXAMPLES       sums and reasoning questions of a probe, so many of each
#   INSTRUCT             --instruct: questions under the chat template; empty for a model without one

: "${MODEL:=SmolLM2-135M-documents}" "${MODEL_PATH:=models/SmolLM2-135M}" "${INSTRUCT=--instruct}"
: "${LOW:=6}" "${HIGH:=3}" "${HIGH_DOCUMENTS:=3}" "${UNMENTIONED:=3}" "${DATA_SEED:=0}"
: "${STRATEGIES:=full lora adaptive annotated kl_start kl_previous replay}" "${SEEDS:=0}"
: "${EPOCHS:=4}" "${LEARNING_RATE:=5e-4}" "${LORA_LEARNING_RATE:=2e-3}" "${BLOCK_SIZE:=128}" "${DEVICE_BATCH:=2}"
: "${ANSWER_TOKENS:=30}" "${SKILL_EXAMPLES:=20}" "${CIRCUIT_N:=20}" "${REPORT_TO:=none}" "${THREADS:=}"
: "${DATA_DIR:=outputs/data/documents}"
DATA="$DATA_DIR/documents_$((LOW + HIGH))"
STUDY="outputs/train/$MODEL"
if [[ -n "$THREADS" ]]; then export OMP_NUM_THREADS="$THREADS"; fi
export TOKENIZERS_PARALLELISM=false

# The flags of a strategy.
strategy_flags() { # name
  case "$1" in
    full) ;;
    lora) echo "--lora_rank 8 --learning_rate $LORA_LEARNING_RATE" ;;
    adaptive) echo "--adaptive_exposure" ;;
    annotated) echo "--annotate_entities" ;;
    kl_start) echo "--kl_start 0.5" ;;
    kl_previous) echo "--kl_previous 0.5" ;;
    replay) echo "--replay_file $DATA/replay --replay_ratio 0.3" ;;
    *)
      echo "error: no strategy $1; there are full, lora, adaptive, annotated, kl_start, kl_previous and replay" >&2
      return 1
      ;;
  esac
}

# The folder of a run.
run_of() { # strategy, seed
  if [[ "$2" == 0 ]]; then echo "$STUDY/$1"; else echo "$STUDY/$1-seed_$2"; fi
}
