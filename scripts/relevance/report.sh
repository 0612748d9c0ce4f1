#!/usr/bin/env bash
# Judges the relevance study and writes its page from the tables in outputs/studies/relevance.
# How long: a minute. Expect: report.html there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

python report.py --study outputs/studies/relevance
