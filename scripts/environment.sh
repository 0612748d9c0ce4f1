# Sourced by every script: moves to the repository's root and makes its environment in .venv.
#
# What: finds Python 3.11 or newer, makes .venv, installs requirements.txt into it (once; about 2 minutes). A stamp in
# .venv holds the checksum of requirements.txt and is written last, so an interrupted installation is taken up again and a
# finished one costs nothing. Set PYTHON to choose the interpreter that .venv is made from, or VENV=none to use the
# `python` on your PATH with what is installed there (a container's, a cluster's module, a machine without a network).
# Afterwards: `python` is .venv's, paths are relative to the repository's root.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"

find_python() { # prints a Python that is new enough
  local candidate
  for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer was found; install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
  return 1
}

install_requirements() { # into .venv, which may be half made
  local base
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    base="$(find_python)"
    echo "== Making .venv with $("$base" --version)"
    # Where Python comes without ensurepip (Debian's python3 alone), its own pip fills the environment.
    "$base" -m venv --clear .venv >/dev/null 2>&1 ||
      { "$base" -m venv --clear --without-pip .venv && "$base" -m pip --python .venv/bin/python install -q pip; }
  fi
  echo "== Installing requirements.txt into .venv (once, about 2 minutes)"
  .venv/bin/python -m pip install --disable-pip-version-check --no-input -r requirements.txt |
    awk '/^(Collecting|Processing|Installing)/ { printf "\r\033[K   %s", substr($0, 1, 76); fflush() } END { print "" }'
}

make_environment() {
  local key
  key="$(cksum <requirements.txt)"
  [[ "$(cat .venv/requirements.installed 2>/dev/null)" == "$key" ]] && return
  install_requirements
  echo "$key" >.venv/requirements.installed
}

if [[ "${VENV:-}" != none ]]; then
  # One installation at a time, where the system has flock.
  {
    if command -v flock >/dev/null; then flock 9; fi
    (set -euo pipefail; make_environment) # whatever the caller has set, a failed installation gets no stamp
  } 9<requirements.txt
  export PATH="$ROOT/.venv/bin:$PATH"
fi
