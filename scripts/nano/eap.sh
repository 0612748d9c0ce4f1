#!/usr/bin/env bash
# Finds the circuits of all 18 groups at every checkpoint of the nano run with EAP-IG.
# How long: a minute on 2 CPU cores. Expect: <task>_graph.json with 1,603 edges under
# checkpoint-*/circuit_30/type_*/frequency_*/method_EAP-IG.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

discover --method EAP-IG --batch_size 32 "$@"
