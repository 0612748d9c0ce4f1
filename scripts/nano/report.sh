#!/usr/bin/env bash
# Sums up the nano run: the table of what was learned, and one HTML page with findings and figures.
# How long: half a minute. Expect: summary.txt and report.html in outputs/train/nano/default.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

report
