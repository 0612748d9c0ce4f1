#!/usr/bin/env bash
# Train GPT-2 small on the biographies: train_with_settings in ../common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

generate_corpus
train_with_settings "$@"
