"""Text as token ids: the start token, label ids, and the positions of the subject's tokens.

A prompt starts with exactly one BOS token; where a tokenizer has none, EOS stands in; having neither is an error. A
label's id is the first token by which `prompt + " " + value` extends `prompt`, which is right for byte-level BPE and
for SentencePiece alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from knowledge_circuits.files import InputError, first_line
from knowledge_circuits.models.loading import adapter_base, require_folder


def load_tokenizer(
    name_or_path: str, trust_remote_code: bool = False, *, revision: str = "main", cache_dir: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the hub; an adapter's folder without one has its base model's.

    Arguments are as for `models.loading.load_model`.

    Raises:
        InputError: no tokenizer is there, or it cannot be read.
    """
    require_folder(name_or_path)
    if Path(name_or_path).is_dir() and not any(
        (Path(name_or_path) / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ):
        base = adapter_base(name_or_path)
        if base is not None:
            return load_tokenizer(base.path, trust_remote_code, revision=base.revision, cache_dir=cache_dir)
        raise InputError(f"{name_or_path}: no tokenizer in this folder (tokenizer.json is missing)")
    try:
        return AutoTokenizer.from_pretrained(
            name_or_path, trust_remote_code=trust_remote_code, revision=revision, cache_dir=cache_dir
        )
    except Exception as error:  # whatever a damaged file makes the library raise
        what = "no tokenizer could be loaded" if Path(name_or_path).is_dir() else "no such folder, nor found on the hub"
        raise InputError(f"{name_or_path}: {what} ({first_line(error)})") from error


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hexadecimal digits that tell tokenizers apart: vocabulary, merges, normalization, start token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(f"{tokenizer.bos_token_id} {tokenizer.eos_token_id} {content}".encode()).hexdigest()[:16]


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that starts every prompt: BOS, or EOS where there is no BOS."""
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise InputError(
        f"the tokenizer {tokenizer.name_or_path!r} has neither a BOS nor an EOS token to start prompts with"
    )


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text without special tokens added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a prompt, opened by exactly one start token."""
    return [start_token_id(tokenizer), *plain_ids(tokenizer, prompt)]


def label_token_id(tokenizer: PreTrainedTokenizerBase, prompt: str, value: str) -> int:
    """Return the first of `value_token_ids`, which see."""
    return value_token_ids(tokenizer, prompt, value)[0]


def value_token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, value: str) -> list[int]:
    """Return the tokens by which `prompt + " " + value` extends `prompt`.

    Raises:
        InputError: the value adds no token.
    """
    return added_ids(prompt, value, plain_ids(tokenizer, prompt), plain_ids(tokenizer, f"{prompt} {value}"))


def added_ids(prompt: str, value: str, before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return the tokens of `prompt + " " + value` (`after`) from the first that is not the prompt's (`before`).

    Raises:
        InputError: the value adds no token.
    """
    for position, token in enumerate(after):
        if position >= len(before) or before[position] != token:
            return list(after[position:])
    raise InputError(f"the value {value!r} adds no token to the prompt {prompt!r}")


def label_text(tokenizer: PreTrainedTokenizerBase, value: str) -> str:
    """Return a label as circuit data shows it: with its leading space, except under SentencePiece (U+2581)."""
    tokens = tokenizer.convert_ids_to_tokens(plain_ids(tokenizer, "a b c"))
    return value if any(token.startswith("\u2581") for token in tokens) else f" {value}"


def subject_positions(tokenizer: PreTrainedTokenizerBase, subject: str, prompt: str) -> list[int]:
    """Positions of the subject's tokens in `encode_prompt(tokenizer, prompt)`; the start token (0) is never among them.

    Args:
        subject: the text with which `prompt` begins.
    """
    count = len(plain_ids(tokenizer, subject))
    total = len(plain_ids(tokenizer, prompt))
    return list(range(1, min(count, total) + 1))
