# Sourced by every script: changes to the repository's root and makes the environment .venv.
#
# The first time, it finds Python 3.11 or newer, makes .venv, and installs requirements.txt and this package (editable) into
# it; this takes about 2 minutes. The checksum of what was installed is written last, so that an interrupted installation is
# repeated and a finished one costs nothing. Variables:
#
#   PYTHON      the interpreter that .venv is made from
#   VENV=none   use the `python` on the PATH and the packages that are installed there (containers, cluster modules)
#
# Afterwards `python` is the one of .venv.

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

install_requirements() { # .venv may be incomplete
  local base
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    base="$(find_python)"
    echo "== Making .venv with $("$base" --version)"
    # Python without ensurepip (Debian's python3 package): install pip with the pip of the base interpreter.
    "$base" -m venv --clear .venv >/dev/null 2>&1 ||
      { "$base" -m venv --clear --without-pip .venv && "$base" -m pip --python .venv/bin/python install -q pip; }
  fi
  echo "== Installing requirements.txt into .venv (once, about 2 minutes)"
  .venv/bin/python -m pip install --disable-pip-version-check --no-input -r requirements.txt |
    awk '/^(Collecting|Processing|Installing)/ { printf "\r\033[K   %s", substr($0, 1, 76); fflush() } END { print "" }'
  .venv/bin/python -m pip install --disable-pip-version-check --no-input -q --no-deps -e .
}

make_environment() {
  local checksum
  checksum="$(cksum requirements.txt constraints.txt pyproject.toml)"
  [[ "$(cat .venv/installed 2>/dev/null)" == "$checksum" ]] && return
  install_requirements
  echo "$checksum" >.venv/installed
}

if [[ "${VENV:-}" != none ]]; then
  # One installation at a time, where the system has flock.
  {
    if command -v flock >/dev/null; then flock 9; fi
    (set -euo pipefail; make_environment) # whatever options the caller has set
  } 9<requirements.txt
  export PATH="$ROOT/.venv/bin:$PATH"
fi
