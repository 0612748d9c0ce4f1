# Sourced by reproduce.sh and gpu/run.sh: a pipeline of scripts that goes on where it was interrupted.

run_stages() { # folder of the records, folder of the scripts, stages in order
  # A stage runs unless it is done (knowledge_circuits/stages.py) and no stage before it ran again. Its key stands for the
  # settings, its own script and those of the stages before it. STAGE_FOLDERS: where the stages' files lie.
  local records="$1" folder="$2" stage started again=
  local key="${N:-} ${SEED:-} ${CIRCUIT_N:-} ${DATA_DIR:-} ${TEMPLATES:-} $(cksum <"$folder/settings.sh")"
  mkdir -p "$records"
  for stage in "${@:3}"; do
    key="$(cksum <<<"$key $(cksum <"$folder/$stage.sh")")"
    if [[ -z "$again" ]] && python -m knowledge_circuits.stages check "$records/$stage.json" "$key"; then
      echo "== $stage: done before"
      continue
    fi
    again=yes
    echo "== $stage: $(sed -n '2s/^# //p' "$folder/$stage.sh")"
    started=$SECONDS
    within_time bash "$folder/$stage.sh" || return
    python -m knowledge_circuits.stages finish "$records/$stage.json" "$key" ${STAGE_FOLDERS:-} || return
    echo "== $stage: done in $((SECONDS - started)) s"
  done
}

within_time() { # command...: interrupted with exit status 124 when the shell's SECONDS reach DEADLINE, if that is set
  if [[ -z "${DEADLINE:-}" ]]; then
    "$@"
  else
    # (137: it outlasted the interruption and was killed.)
    timeout --signal=INT --kill-after=20 "$((DEADLINE > SECONDS ? DEADLINE - SECONDS : 1))" "$@" ||
      return $(($? == 137 && SECONDS >= DEADLINE ? 124 : $?))
  fi
}
