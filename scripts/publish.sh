#!/usr/bin/env bash
# Publish a run on the hub: its graphs and results as a data set, its last checkpoint as a model, each with a card.
#
#   bash scripts/publish.sh outputs/train/nano/default --name user/nano-knowledge --license mit
#
# How long: as long as the upload. Without a token (HF_TOKEN) nothing is sent; the cards are written and the files are
# listed. Output: the cards in <run>/publish; with a token two private repositories, <name> and <name>-circuits.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

python -m knowledge_circuits.report "$@"
