#!/usr/bin/env bash
# Finds the circuits of all 18 groups (task x type x frequency band) at every checkpoint of a GPT-2 small run with EAP-IG.
# Generates the circuit prompts first if they are missing. How long: docs/scaling.md has the estimate.
# Expect: <task>_graph.json.gz with 32,491 edges under checkpoint-*/circuit_300/type_*/frequency_*/method_EAP-IG.
set -euo pipefail
MODEL=gpt2
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

discover --method EAP-IG --batch_size 64 --format json.gz "$@"
