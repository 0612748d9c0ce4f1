#!/usr/bin/env bash
# The depth study: do circuits change in two phases, and in deep layers first?
#
# What: 5 seeds of a model of 12 layers with 4 heads each, at a constant learning rate, 16 epochs of a past and 16 of
# continual pre-training with checkpoints twice an epoch at first; then the circuits of all groups at every checkpoint,
# with the noise of the prompts, circuits of people who are never taught, and random circuits beside them.
# How long: two hours on 2 CPU cores. Expect: outputs/studies/depth with a table per run and report.html.
# Interrupt it and start it again: it goes on where it was.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
for stage in train measure report; do bash "$here/$stage.sh"; done
