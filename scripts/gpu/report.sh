#!/usr/bin/env bash
# Sums up the run: the table of what was learned, and one HTML page with findings and figures.
# Expect: summary.txt and report.html in outputs/train/gpt2-scratch/default.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

report
