#!/usr/bin/env bash
# Make the environment of benchmarks/peers.py:
#   bash benchmarks/peers.sh ENVIRONMENT FOLDER
# FOLDER has the sources of the peers, cloned by you: EAP-IG (hannamw/EAP-IG) and auto-circuit (UFO-101/auto-circuit).
# They are used where they lie. PYTHON names the interpreter (python3).
set -euo pipefail
[[ $# -eq 2 ]] || { sed -n '2,5p' "$0" | cut -c3-; exit 2; }
environment=$1
sources=$(cd "$2" && pwd)
for file in EAP-IG/src/eap/attribute.py auto-circuit/auto_circuit/prune.py; do
    [[ -f $sources/$file ]] || { echo "$sources/$file is missing: clone the peers' sources there" >&2; exit 1; }
done
"${PYTHON:-python3}" -m venv "$environment"
# numpy below 2 is TransformerLens 2's; pandas and pyarrow are the last that take it (pandas by the version of Python).
"$environment/bin/pip" install torch==2.13.0 transformer-lens==2.18.0 'numpy<2' 'pandas<2.3' pyarrow==20.0.0 \
    matplotlib einops attrs ordered-set plotly kaleido==0.2.1 blobfile word2word tracr-pypi vscode-tqdm
site=$("$environment/bin/python" -c 'import site; print(site.getsitepackages()[0])')
printf '%s\n' "$sources/EAP-IG/src" "$sources/auto-circuit" >"$site/peers.pth"
"$environment/bin/python" -c 'import eap.attribute, auto_circuit.prune' && echo "the peers' environment is ready: $environment"
