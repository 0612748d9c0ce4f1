"""The files that hold a checkpoint's weights, and what tells one set of weights from another."""

from __future__ import annotations

import hashlib
from pathlib import Path


def weight_files(folder: str | Path) -> list[Path]:
    """The files that hold a checkpoint's weights; none where only its results were kept."""
    return sorted([*Path(folder).glob("*.safetensors"), *Path(folder).glob("pytorch_model*.bin")])


def weights_digest(folder: str | Path, stretches: int = 16, length: int = 1 << 16) -> str | None:
    """Tells checkpoints' weights apart without reading gigabytes: sizes and some stretches of every weight file.

    A step of training changes every stretch.

    Returns:
        16 hexadecimal digits; None where there are no weights (a hub name, for example).
    """
    files = weight_files(folder)
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            for start in sorted({max(size - length, 0) * part // (stretches - 1) for part in range(stretches)}):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()[:16]
