#!/usr/bin/env bash
# Write the table of what was learned and the HTML report of the run.
# Output: summary.txt and report.html in outputs/train/gpt2-scratch/default.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

report
