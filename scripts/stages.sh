# Sourced by reproduce.sh and gpu/run.sh: a pipeline of scripts that goes on where it was interrupted.

run_stages() { # place of the stamps, folder of the scripts, stages in order
  # A stage runs unless it has ended well before, and neither it nor a stage before it nor a setting has changed since.
  local stamps="$1" folder="$2" stage started
  local key="${N:-} ${SEED:-} ${CIRCUIT_N:-} ${DATA_DIR:-} ${TEMPLATES:-} $(cksum <"$folder/settings.sh")"
  mkdir -p "$stamps"
  for stage in "${@:3}"; do
    key="$(cksum <<<"$key $(cksum <"$folder/$stage.sh")")"
    if [[ "$(cat "$stamps/$stage" 2>/dev/null)" == "$key" ]]; then
      echo "== $stage: done before"
      continue
    fi
    echo "== $stage: $(sed -n '2s/^# //p' "$folder/$stage.sh")"
    started=$SECONDS
    within_time bash "$folder/$stage.sh" || return
    echo "$key" >"$stamps/$stage"
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
