#!/usr/bin/env bash
# Evaluates the top 8,000 edges of every circuit: faithfulness, and what each circuit alone answers.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

evaluate --method EAP-IG --batch_size 256 --topn 8000 --format json.gz "$@"
