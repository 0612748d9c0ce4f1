#!/usr/bin/env bash
# Check the project: ruff, import contract, mypy and all tests.
#
#   bash scripts/test.sh              7 to 10 minutes on 2 CPU cores; the first time 2 minutes more to install
#   bash scripts/test.sh --slow       also the SmolLM2 pipeline and the tests that kill programs: about an hour
#   bash scripts/test.sh -k packing   further arguments are passed on to pytest
#   bash scripts/test.sh --cov=knowledge_circuits --cov-fail-under=90   also line coverage; a quarter slower
#
# Output: "All checks passed!", "Success: no issues found", a line of all tests passed, "all checks passed".
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

export HF_HUB_OFFLINE=1 WANDB_MODE=disabled TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
selection=(-m "not slow")
while [[ "${1:-}" == --slow ]]; do
  selection=()
  shift
done

echo "== ruff"
python -m ruff check .
python -m ruff format --check .
echo "== import contract"
lint-imports --no-cache >/dev/null || lint-imports --no-cache
echo "== mypy"
python -m mypy
echo "== pytest"
python -m pytest -q -n auto --durations=10 ${selection[@]+"${selection[@]}"} "$@"
echo "== all checks passed"
