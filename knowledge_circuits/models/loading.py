"""Hugging Face checkpoints: what a folder must hold, loading, adapters, quantized weights, and finite weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from knowledge_circuits.command_line import DTYPE_NAMES
from knowledge_circuits.files import BOUNDS, InputError, first_line, means_folder, read_json, write_json
from knowledge_circuits.manifest import is_partial_digest

#: The data types by the names that flags give them.
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}

#: Files of an adapter's folder: peft's configuration, and the base model's digest.
ADAPTER_CONFIG, BASE_RECORD = "adapter_config.json", "base_model.json"


def find_device(name: str, what: str) -> torch.device:
    """Return a device of this machine.

    Args:
        what: what gives the name, for errors.

    Raises:
        InputError: no such device on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"{what} {name}: no such device; use cpu, cuda or cuda:<number>") from None
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise InputError(f"{what} {name}: this machine or this torch has none; use cpu, cuda or cuda:<number>")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"{what} {name}: this machine or this torch has no CUDA; use cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise InputError(f"{what} {name}: there are only {torch.cuda.device_count()} CUDA devices")
    return device


def require_folder(name_or_path: str) -> None:
    """Raise InputError for a path of a folder that does not exist, which the library would look for on the hub."""
    if means_folder(name_or_path) and not Path(name_or_path).is_dir():
        raise InputError(f"{name_or_path}: no such checkpoint folder")


#: What configurations call their layers and the heads of a layer.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")


def load_configuration(
    path: str, trust_remote_code: bool = False, revision: str = "main", cache_dir: str | None = None
) -> PreTrainedConfig:
    """Load a model's configuration; arguments as for `load_model`, or `path` is a configuration's file.

    Raises:
        InputError: a missing or damaged configuration, one of more layers and heads than `BOUNDS` allow, or one whose
            attention is a kernel of the hub, which is code that would be downloaded and run.
    """
    where = {"revision": revision, "cache_dir": cache_dir}
    try:
        content, _ = PreTrainedConfig.get_config_dict(path, **where)
        for part in (content, content.get("text_config")):
            if isinstance(part, dict):
                layers, heads = (_size(part, names) for names in (_LAYERS, _HEADS))
                BOUNDS.check_shape(path, layers, heads)
        for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            if "/" in str(content.get(key)) and not trust_remote_code:
                raise InputError(
                    f"{path}: {key!r} is {content[key]!r}, code of the hub; it runs only with --trust_remote_code"
                )
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **where)
    except InputError:
        raise
    except Exception as error:  # a damaged folder can make the library raise anything
        raise InputError(f"{path}: its config cannot be read ({first_line(error)})") from error


def _size(config: dict[str, Any], names: Sequence[str]) -> float:
    """Return the largest of a configuration's sizes of these names; 1 where it has none."""
    return max((config[name] for name in names if isinstance(config.get(name), int | float)), default=1)


def weight_files(folder: str | Path) -> list[Path]:
    """Return the files that hold a checkpoint's or an adapter's weights; none where only its results were kept."""
    patterns = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")
    return sorted(path for pattern in patterns for path in Path(folder).glob(pattern))


def weights_digest(folder: str | Path) -> str | None:
    """Return a digest of the names, the sizes and all bytes of a checkpoint's weight files.

    500 MB in memory take 0.2 s on 2 cores. A process reads a file again only when its size or times have changed.

    Returns:
        32 hexadecimal digits; None where there are no weights (a hub name, for example).
    """
    files = weight_files(folder)
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} ".encode())
        digest.update(_file_digest(path.absolute(), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return digest.hexdigest()[:32]


#: Bytes of a weight file that one thread reads and hashes at a time.
_BLOCK = 1 << 22


@cache
def _file_digest(path: Path, size: int, modified: int, changed: int) -> bytes:
    """Return the SHA-256 digest of the digests of a file's blocks; the times only tell versions of it apart."""

    def block_digest(start: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(_BLOCK)).digest()

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as threads:
        return hashlib.sha256(b"".join(threads.map(block_digest, range(0, size, _BLOCK)))).digest()


def load_model(
    path: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    revision: str = "main",
    cache_dir: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode and check that all of it is there.

    Args:
        path: a checkpoint folder or hub name.
        trust_remote_code: whether code in the model's folder may run.
        revision: a hub model's branch, tag or commit.
        cache_dir: where downloads are kept; None is the hub's own cache.

    Raises:
        InputError: no weights, damaged weights, weights of another architecture, or weights that are not finite.
    """
    config = read_config(path, trust_remote_code, revision, cache_dir)
    model = read_checkpoint(path, config, dtype, trust_remote_code, revision, cache_dir)
    check_weights(model, path)
    return model.to(device).eval()


def read_config(
    path: str, trust_remote_code: bool = False, revision: str = "main", cache_dir: str | None = None
) -> PreTrainedConfig:
    """Read a checkpoint's configuration; arguments as for `load_model`.

    An adapter's folder has its base model's configuration.

    Raises:
        InputError: no such folder, no weights in it, or a configuration that `load_configuration` refuses.
    """
    base = adapter_base(path)
    if base is not None:
        try:
            return read_config(base.path, trust_remote_code, base.revision, cache_dir)
        except InputError as error:
            raise InputError(f"{path}: its base model, which {ADAPTER_CONFIG} names: {error}") from None
    require_folder(path)
    if Path(path).is_dir():
        if not Path(path, "config.json").exists():
            raise InputError(f"{path}: not a checkpoint folder (config.json is missing)")
        if not weight_files(path):
            raise InputError(f"{path}: a checkpoint folder without weights (no .safetensors or .bin file)")
    return load_configuration(path, trust_remote_code, revision, cache_dir)


def read_checkpoint(
    path: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    revision: str = "main",
    cache_dir: str | None = None,
) -> PreTrainedModel:
    """Read a checkpoint's weights on the CPU; weights of this data type in a safetensors file stay in the file.

    Quantized weights are dequantized to the data type, which is said. The weights of an adapter's folder are those of
    its base model with the adapter merged.

    Args:
        config: what `read_config` gives; the other arguments are those of `load_model`.

    Raises:
        InputError: damaged weights, weights of another architecture, an adapter that does not fit, or a quantization
            that cannot be undone here.
    """
    base = adapter_base(path)
    if base is not None:
        model = read_checkpoint(base.path, config, dtype, trust_remote_code, base.revision, cache_dir)
        return merge_adapter(model, path)
    quantization = getattr(config, "quantization_config", None)
    if isinstance(quantization, dict) and quantization.get("quant_method") in _DEQUANTIZED_WHILE_READ:
        config.quantization_config = {**quantization, "dequantize": True}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            revision=revision,
            cache_dir=cache_dir,
            output_loading_info=True,
        )
        if getattr(model, "hf_quantizer", None) is not None:
            model = model.dequantize(dtype)
        if quantization is not None:
            model = model.to(dtype)
            print(f"{path}: its quantized weights are dequantized to {str(dtype).removeprefix('torch.')}")
    except NotImplementedError as error:
        raise InputError(
            f"{path}: quantized weights that the library cannot dequantize ({first_line(error)}); use a checkpoint in"
            " bfloat16 or float32"
        ) from error
    except Exception as error:  # whatever a damaged file or a missing package makes the library raise
        raise InputError(
            f"{path}: the model could not be loaded ({type(error).__name__}: {first_line(error)})"
        ) from error
    missing = sorted(str(key) for name in ("missing_keys", "mismatched_keys") for key in info.get(name, ()))
    if missing:
        raise InputError(f"{path}: the weights lack {missing[0]!r} ({len(missing)} tensors in all)")
    return model


#: Quantizations that the library undoes while it reads the weights; others are undone afterwards.
_DEQUANTIZED_WHILE_READ = ("compressed-tensors", "fp8", "metal", "mxfp4", "mxfp8")


@dataclass(frozen=True)
class BaseModel:
    """The model that an adapter was trained on: a folder or hub name, and the hub model's revision."""

    path: str
    revision: str


def adapter_base(path: str) -> BaseModel | None:
    """Return the base model that an adapter's folder (LoRA, for example) names; None for any other path.

    Raises:
        InputError: an adapter's folder that names none.
    """
    file = Path(path) / ADAPTER_CONFIG
    if not file.is_file() or Path(path, "config.json").exists():
        return None
    base = _named_base(path)
    if base is None:
        raise InputError(f"{file}: base_model_name_or_path names no model")
    return base


def _named_base(adapter: str) -> BaseModel | None:
    """Return the base model that an adapter's configuration names."""
    settings = read_json(Path(adapter, ADAPTER_CONFIG))
    name = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(name, str) or not name:
        return None
    beside = Path(adapter, name)
    return BaseModel(str(beside) if beside.is_dir() else name, settings.get("revision") or "main")


def record_base(adapter: Path, base: str | None) -> None:
    """Write the digest of an adapter's base model beside the adapter, where the base model is a folder."""
    digest = _folder_digest(base)
    if digest is not None:
        write_json(adapter / BASE_RECORD, {"base_model": base, "weights": digest})


def check_base(adapter: str, base: str) -> None:
    """Refuse a base model that an adapter was not trained on, as far as weights can tell.

    Training here writes the digest of the base model's weights beside the adapter. Of other adapters only the base
    model's name is known: its folder is compared where it is there, and otherwise another name is said in one line.

    Args:
        adapter: an adapter's folder.
        base: the folder or hub name of the model that it is merged into; empty if unknown.
    """
    named, record = _named_base(adapter), Path(adapter, BASE_RECORD)
    recorded = read_json(record) if record.is_file() else {}
    trained_on = recorded.get("weights") if isinstance(recorded, dict) else None
    if is_partial_digest(trained_on):  # an earlier version's, which cannot be compared
        trained_on = None
    if trained_on is None and named is not None:
        trained_on = _folder_digest(named.path)
    digest = _folder_digest(base)
    if digest and trained_on and digest != trained_on:
        remedy = f"remove {record}" if recorded else f"name {base} in its {ADAPTER_CONFIG}"
        raise InputError(
            f"{adapter}: trained on a base model with other weights than {base}; give the model that it was trained "
            f"on, or {remedy} if that is the same one in another form"
        )
    if named is not None and base and named.path != base and not (digest and trained_on):
        print(f"{adapter}: its base model is {named.path}; whether {base} is the same one cannot be told")


def _folder_digest(base: str | None) -> str | None:
    return weights_digest(base) if base and Path(base).is_dir() else None


def delete_download(name: str, revision: str, cache_dir: str | None = None) -> int:
    """Delete a hub model's revision from the cache, and return the bytes that this frees; 0 if it is not there.

    Files that other revisions share stay. A local folder is never touched.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    if means_folder(name) or Path(name).is_dir():
        return 0
    try:
        cache = scan_cache_dir(cache_dir)
    except CacheNotFound:
        return 0
    hashes = [
        cached.commit_hash
        for repository in cache.repos
        if repository.repo_id == name and repository.repo_type == "model"
        for cached in repository.revisions
        if revision in cached.refs or revision == cached.commit_hash
    ]
    if not hashes:
        return 0
    plan = cache.delete_revisions(*hashes)
    plan.execute()
    return int(plan.expected_freed_size)


def merge_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """Merge an adapter of peft (LoRA, for example) into a model's weights.

    Merging writes into the weights of the adapted modules. An embedding and a head that share theirs get a copy each
    if either is adapted, so that it changes only the one. The merged model's logits are compared with those before.

    Args:
        model: the adapter's base model; its weights are changed.
        adapter: the folder that `PeftModel.save_pretrained` wrote.

    Raises:
        InputError: peft is not installed, the folder holds no adapter, it was made for a model of another shape or,
            where that is known (`check_base`), of other weights, or the merged model predicts otherwise.
    """
    try:
        import peft
    except ImportError:
        raise InputError(f"{adapter}: an adapter needs the package peft (pip install peft)") from None
    if not Path(adapter, ADAPTER_CONFIG).exists():
        raise InputError(f"{adapter}: not an adapter's folder ({ADAPTER_CONFIG} is missing)")
    try:
        stored = peft.load_peft_weights(adapter, device="cpu")
        adapted = peft.PeftModel.from_pretrained(model, adapter)
        expected = peft.get_peft_model_state_dict(adapted)
    except Exception as error:  # whatever other sizes or a damaged file make the library raise
        raise InputError(
            f"{adapter}: the adapter does not fit this model ({type(error).__name__}: {first_line(error)}); was it"
            " trained on another one?"
        ) from error
    unmatched = sorted(set(stored).symmetric_difference(expected))
    if unmatched:
        raise InputError(
            f"{adapter}: the adapter does not fit this model ({len(unmatched)} weights without a counterpart, such as"
            f" {unmatched[0]!r}); was it trained on another one?"
        )
    check_base(adapter, model.name_or_path)
    try:
        expected_logits = _probe_logits(adapted)
        _untie_adapted(model)
        merged: PreTrainedModel = adapted.merge_and_unload()
    except Exception as error:  # a kind of adapter that has no merged form
        raise InputError(f"{adapter}: this kind of adapter cannot be merged ({first_line(error)})") from error
    difference = relative_difference(_probe_logits(merged), expected_logits)
    if not difference <= TOLERANCE[merged.dtype]:
        raise InputError(
            f"{adapter}: merging changes what the model predicts (logits by {difference:.1e}, relative), so this kind "
            "of adapter cannot be merged; was it trained with another version of peft?"
        )
    return merged


#: Largest accepted difference of the logits of one model in two forms, relative to the largest logit. Hugging Face
#: computes rotary cos and sin in float32 even for a float64 model.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def relative_difference(logits: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two models' logits, relative to the largest logit (of at least 1)."""
    return (logits - expected).abs().max().item() / max(1.0, expected.abs().max().item())


@torch.no_grad()
def _probe_logits(model: Any) -> Tensor:
    """Return the logits of a few random tokens."""
    config = model.config.get_text_config()
    shape = 2, min(9, context_length(config) or 9)
    ids = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    logits: Tensor = model.eval()(input_ids=ids).logits
    return logits


def shared_modules(model: PreTrainedModel) -> list[tuple[str, str]]:
    """Return the names of the modules that share their weights, such as the head and the embedding, pair by pair."""
    pairs = model.all_tied_weights_keys.items()
    return [(one.rpartition(".")[0], other.rpartition(".")[0]) for one, other in pairs]


def _untie_adapted(model: PreTrainedModel) -> None:
    """Give a module with an adapter, and the one that shares its weights, a copy each."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for pair in shared_modules(model):
        modules = [model.get_submodule(name) for name in pair]
        layers: list[Any] = [module.get_base_layer() for module in modules if isinstance(module, BaseTunerLayer)]
        if layers:
            layers[0].weight = torch.nn.Parameter(layers[0].weight.detach().clone(), requires_grad=False)
            model.config.tie_word_embeddings = False


def context_length(config: PreTrainedConfig) -> int | None:
    """Return the longest input, in tokens, that a model of this configuration takes; None where it says nothing."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def check_weights(model: torch.nn.Module, when: str) -> None:
    """Refuse weights that are not finite numbers, naming the first such parameter."""
    for name, parameter in model.named_parameters():
        weight = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # a sharded model's own part
        if not weight.is_meta and not bool(torch.isfinite(weight).all()):
            raise InputError(f"{when}: the weight {name!r} has values that are not finite numbers")


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Silence the library's progress bar of each model that is loaded, which would fill a notebook."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
