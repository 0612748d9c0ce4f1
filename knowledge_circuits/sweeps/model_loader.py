"""The models of a sweep: one loaded checkpoint at a time, and what results depend on of it.

The items of one checkpoint follow each other (`processes`), so a `ModelLoader` that keeps the last checkpoint loads
the weights once per checkpoint and process, not once per group.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from knowledge_circuits.engine.architecture import is_parallel, refuse_unsupported
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.graph import layout_of
from knowledge_circuits.engine.weights import checked_map, load_decoder
from knowledge_circuits.files import InputError
from knowledge_circuits.manifest import FOLDER_MANIFEST, FileRecord, is_partial_digest, read_manifest
from knowledge_circuits.models.loading import (
    DTYPES,
    adapter_base,
    delete_download,
    load_configuration,
    weight_files,
    weights_digest,
)
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import Checkpoint
from knowledge_circuits.sweeps.processes import Process, pick_device


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint ready to run: its weights in the engine's form and its tokenizer."""

    checkpoint: Checkpoint
    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase


class ModelLoader:
    """Loads checkpoints and keeps the last one, so that its groups share the loaded weights."""

    def __init__(
        self,
        device: torch.device,
        dtype: str,
        trust_remote_code: bool = False,
        delete_downloads: bool = False,
        device_map: str | Mapping[str, Any] | None = None,
    ) -> None:
        self._delete_downloads = delete_downloads
        self.dtype = DTYPES[dtype]
        self._options: dict[str, Any] = {"device": device, "dtype": self.dtype, "device_map": device_map}
        self._trust_remote_code = trust_remote_code
        self._loaded: LoadedModel | None = None
        self._refused: dict[str, InputError] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def facts(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the checkpoint's `model_facts`."""
        if checkpoint.address not in self._facts:
            self._facts[checkpoint.address] = model_facts(checkpoint, str(self.dtype).removeprefix("torch."))
        return self._facts[checkpoint.address]

    def tokenizer(self, checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
        """Return a checkpoint's tokenizer without loading its weights."""
        return load_tokenizer(checkpoint.path, self._trust_remote_code, revision=checkpoint.revision)

    def n_edges(self, checkpoint: Checkpoint) -> int:
        """Return how many edges a checkpoint's graph has, from its configuration without loading its weights.

        Raises:
            InputError: no configuration, or one of an architecture that the engine does not support.
        """
        base = adapter_base(checkpoint.path)
        path, revision = (base.path, base.revision) if base else (checkpoint.path, checkpoint.revision)
        config = load_configuration(path, self._trust_remote_code, revision)
        refuse_unsupported(config, path)
        text = config.get_text_config()
        return layout_of(text.num_hidden_layers, text.num_attention_heads, is_parallel(text)).n_edges

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        """Return the checkpoint's model; it is loaded unless it was the last one loaded.

        Raises:
            InputError: it cannot be loaded; later calls raise the same without another attempt.
        """
        if checkpoint.address in self._refused:
            raise self._refused[checkpoint.address]
        if self._loaded is None or self._loaded.checkpoint != checkpoint:
            self._loaded = None  # the old weights go before the new ones come
            try:
                tokenizer = self.tokenizer(checkpoint)
                decoder = load_decoder(
                    checkpoint.path,
                    trust_remote_code=self._trust_remote_code,
                    revision=checkpoint.revision,
                    **self._options,
                )
            except InputError as error:
                self._refused[checkpoint.address] = error
                raise
            if self._delete_downloads:  # the weights are in memory now
                delete_download(checkpoint.path, checkpoint.revision)
            self._loaded = LoadedModel(checkpoint, decoder, tokenizer)
        return self._loaded


def model_facts(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """Return what results depend on of a model: its weights, its configuration and tokenizer, and the data type.

    A hub name stands for its weights. Without weights in the folder they are left out, so that results outlive them.

    Raises:
        InputError: the weights, the configuration or the tokenizer are not those that the checkpoint's manifest lists.
    """
    folder = Path(checkpoint.path)
    if not folder.is_dir():
        return {"weights": checkpoint.address, "dtype": dtype}
    digest = hashlib.sha256()
    for name in _MODEL_SETTINGS:
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    if weights := weights_digest(folder):
        _refuse_changed(folder, weights)
    facts = {"model settings": digest.hexdigest()[:16], "dtype": dtype}
    if base := adapter_base(checkpoint.path):
        facts["base model"] = weights_digest(base.path) or base.path
    return {"weights": weights, **facts} if weights else facts


def _refuse_changed(folder: Path, weights: str) -> None:
    """Refuse a checkpoint that is not as it was saved: its settings and weights byte for byte."""
    manifest = read_manifest(folder / FOLDER_MANIFEST)
    if manifest is None:
        return
    listed = {folder / name: record for name, record in manifest.files.items()}
    settings = [path for path in listed if path.name in _MODEL_SETTINGS and path.parent == folder]
    changed = [path for path in settings if not path.is_file() or FileRecord.of(path) != listed[path]]
    files = weight_files(folder)
    changed += [path for path in files if path in listed and path.stat().st_size != listed[path].bytes]
    recorded = manifest.made_from.get("weights", weights)
    if is_partial_digest(recorded):  # an earlier version's; the files' own digests tell
        changed += [path for path in files if path in listed and FileRecord.of(path) != listed[path]]
    elif recorded != weights:
        changed += files[:1]
    if changed:
        raise InputError(
            f"{changed[0]}: not as it was when the checkpoint was saved; restore it, or remove {FOLDER_MANIFEST} if "
            "you changed it on purpose"
        )


#: The files of a model's folder beside the weights that change what it computes.
_MODEL_SETTINGS = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "adapter_config.json"),
)


def loader_from(args: argparse.Namespace, process: Process) -> ModelLoader:
    """Return the loader that the shared flags describe.

    Raises:
        InputError: several processes would delete the download that others still read, or a device is not there.
    """
    refuse_shared_deletion(args, process)
    device = pick_device(args.device, process)
    device_map = args.device_map and checked_map(args.device_map)
    return ModelLoader(device, args.dtype, args.trust_remote_code, args.delete_downloads, device_map)


def refuse_shared_deletion(args: argparse.Namespace, process: Process) -> None:
    if args.delete_downloads and process.count > 1:
        raise InputError("--delete_downloads is for one process; with several, delete the cache afterwards")
