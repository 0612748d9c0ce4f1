#!/usr/bin/env bash
# Judges the depth study and writes its page from the tables in outputs/studies/depth.
# How long: a minute. Expect: report.html there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

python report.py --study outputs/studies/depth
