#!/usr/bin/env bash
# Write the table of what was learned and the HTML report of the nano run.
# How long: half a minute. Output: summary.txt and report.html in outputs/train/nano/default.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

report
