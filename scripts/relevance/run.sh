#!/usr/bin/env bash
# The relevance study: are new facts learned better about people whom the model knew before?
#
# What: all people are invented. In one run the past tells two facts of half of them, in its mirrored run of the other
# half; then both runs teach the same three new facts of everybody, with texts of the past among them (a fifth of all) so
# that the past stays known. 3 seeds x 2 mirrors at 10 texts per person in the past, then the same with 0 and with 3: at 0
# only the replayed texts tell of the known half, which measures what the replay alone does.
# How long: 100 minutes on 2 CPU cores (DOSES=10: 35 minutes). Expect: outputs/studies/relevance with a table per run and
# report.html. Interrupt it and start it again: it goes on where it was.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
for stage in train tables report; do bash "$here/$stage.sh"; done
