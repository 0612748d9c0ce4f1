#!/usr/bin/env bash
# Finds the circuits of the groups (task x type x frequency band) at every checkpoint of the SmolLM2 run with EAP-IG.
# Generates at most 10 circuit prompts per group first if they are missing; a group without any is named and skipped.
# How long: docs/results.md has the times that we saw. Expect: <task>_graph.json.gz with 123,211 edges
# under checkpoint-*/circuit_10/type_*/frequency_*/method_EAP-IG.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

discover --method EAP-IG --batch_size 8 --format json.gz "$@"
