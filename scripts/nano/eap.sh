#!/usr/bin/env bash
# Find the circuits of all 18 groups at every checkpoint of the nano run with EAP-IG: discover in ../common.sh.
# How long: a minute on 2 CPU cores. Output: <task>_graph.json with 1,603 edges for each group and checkpoint, and
# <task>_details.safetensors: how stable its circuit is under resampled prompts, and scores by token span.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

discover --stability "$TOPN" --spans "$@"
