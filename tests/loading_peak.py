"""Print the most anonymous memory that loading each checkpoint takes and its weights' bytes; `test_loading` runs it.

    python tests/loading_peak.py <dtype> <folder> ...

Pages of the checkpoint's own file are not counted: the system drops them when memory is needed.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import families
import torch

from benchmarks.measuring import AnonymousPeak
from knowledge_circuits.engine.weights import decoder_from_model, load_decoder
from knowledge_circuits.models.loading import DTYPES


def main() -> None:
    dtype, *folders = sys.argv[1:]
    decoder_from_model(families.random_model(families.FAMILIES["gpt2"]()))  # everything is imported
    # A process each: what one leaves behind is not the memory of the next.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        measured = pool.starmap(measure, [(folder, DTYPES[dtype]) for folder in folders], chunksize=1)
    print(json.dumps(measured))


def measure(folder: str, dtype: torch.dtype) -> dict[str, int]:
    with AnonymousPeak() as peak:
        decoder = load_decoder(folder, dtype)
    return {"peak": peak.added, "weights": sum(tensor.nbytes for _, tensor in decoder.tensors())}


if __name__ == "__main__":
    main()
