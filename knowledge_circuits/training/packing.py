"""Documents become blocks of token ids, and nothing of a document is lost.

The documents, each ended by EOS, form one stream of tokens. A block is a window of that stream: it holds whole
documents and is filled with the head of the next one; the next block opens with that document again, from its start.
Only the last block is padded. Attention crosses documents. A document longer than a block goes on in the next block.

    stream   aaaaa. bbb. ccccccc. dd.          block size 8
    blocks   aaaaa.bb | bbb.cccc | ccccccc. | dd.-----

Training learns every token of a block; evaluation counts each token of the stream at most once, where its document is
whole (a block's first token, which nothing predicts, does not count). First-token attribute accuracy asks whether the
model predicts the first token of an attribute's value; that token is located by the tokenizer's character offsets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from knowledge_circuits.corpus.documents import TEXT, Row
from knowledge_circuits.files import InputError, atomic_write
from knowledge_circuits.records import Type, shape
from knowledge_circuits.study import Attribute, KnowledgeType

#: Part of a cache's key: raise it whenever the same documents would be packed otherwise.
PACKING_VERSION = 1

#: How a type stands in `attribute_types`; 0 is a token that opens no attribute.
TYPE_CODES = {kind: code for code, kind in enumerate(KnowledgeType, start=1)}

_CHUNK = 1000


@dataclass(frozen=True)
class TokenStream:
    """Documents as one stream of tokens.

    Attributes:
        ids: token ids, int32 [t].
        starts: where each document begins, and the stream's length at the end, int64 [documents + 1].
        attribute_types: the type's code where a token opens an attribute's value, else 0, uint8 [t].
    """

    ids: np.ndarray
    starts: np.ndarray
    attribute_types: np.ndarray


@dataclass(frozen=True)
class PackedBlocks:
    """Blocks of equal length, n of them, p positions each.

    Attributes:
        input_ids: int32 [n, p]; padding is EOS.
        counted: which tokens are learned (training) or counted (evaluation), bool [n, p].
        attribute_types: see `TokenStream`, uint8 [n, p]; all 0 for training.
    """

    input_ids: np.ndarray
    counted: np.ndarray
    attribute_types: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in vars(self).items()}

    @property
    def block_size(self) -> int:
        return self.input_ids.shape[1]


def token_stream(
    documents: Sequence[Row], tokenizer: PreTrainedTokenizerBase, with_attributes: bool = False
) -> TokenStream:
    """Tokenize documents, each as its tokenizer opens a text and ended by exactly one EOS.

    Raises:
        InputError: the tokenizer has no EOS token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise InputError(f"the tokenizer {tokenizer.name_or_path!r} has no EOS token to end documents with")
    ids_of, types_of = [], []
    with tqdm(total=len(documents), desc="tokenizing", unit=" documents", delay=2) as progress:
        for first in range(0, len(documents), _CHUNK):
            chunk = documents[first : first + _CHUNK]
            encoded = tokenizer(
                [document[TEXT] for document in chunk],
                return_attention_mask=False,
                return_offsets_mapping=with_attributes,
                verbose=False,
            )
            for index, document in enumerate(chunk):
                ids = encoded["input_ids"][index]
                types = np.zeros(len(ids), dtype=np.uint8)
                if with_attributes:
                    opening = attribute_openings(document, encoded["offset_mapping"][index], first + index + 1)
                    types[opening] = TYPE_CODES[KnowledgeType(document["type"])] if opening else 0
                if not ids or ids[-1] != eos:
                    ids, types = [*ids, eos], np.append(types, np.uint8(0))
                ids_of.append(np.array(ids, dtype=np.int32))
                types_of.append(types)
            progress.update(len(chunk))
    starts = np.cumsum([0, *map(len, ids_of)], dtype=np.int64)
    return TokenStream(np.concatenate(ids_of), starts, np.concatenate(types_of))


def evaluation_stream(documents: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> TokenStream:
    """Tokenize documents and mark the first token of every attribute that a document tells.

    Documents without an entity's keys (full name, type, an attribute) are plain text: nothing in them is marked.

    Raises:
        InputError: no EOS token, no character offsets, or a value that does not stand in its document's text.
    """
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer {tokenizer.name_or_path!r} gives no character offsets; a fast one is needed")
    return token_stream(documents, tokenizer, with_attributes=True)


def select_documents(stream: TokenStream, wanted: np.ndarray) -> TokenStream:
    """Return the stream of the documents that are `wanted`, bool [documents]."""
    lengths = np.diff(stream.starts)
    tokens = np.repeat(wanted, lengths)
    starts = np.concatenate([[0], np.cumsum(lengths[wanted])]).astype(np.int64)
    return TokenStream(stream.ids[tokens], starts, stream.attribute_types[tokens])


def pack_for_training(stream: TokenStream, block_size: int, padding_id: int) -> PackedBlocks:
    """Cut a stream into blocks of which every token but the padding is learned."""
    positions, inside, _ = _windows(stream.starts, block_size)
    input_ids = np.where(inside, stream.ids[positions], np.int32(padding_id))
    return PackedBlocks(input_ids, inside, np.zeros(input_ids.shape, dtype=np.uint8))


def pack_for_evaluation(stream: TokenStream, block_size: int, padding_id: int) -> PackedBlocks:
    """Cut a stream into blocks in which each token of the stream counts at most once."""
    positions, inside, ends = _windows(stream.starts, block_size)
    counted = inside & (positions < ends)
    types = np.where(counted, stream.attribute_types[positions], np.uint8(0))
    types[:, 0] = 0  # nothing precedes a block's first token, so nothing predicts it
    return PackedBlocks(np.where(inside, stream.ids[positions], np.int32(padding_id)), counted, types)


def _windows(starts: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a stream into n blocks.

    Returns:
        The blocks' positions in the stream, clipped at its end [n, p]; whether they lie inside it [n, p]; where each
        block's whole documents end, so that the next block begins [n, 1].
    """
    if block_size < 2:
        raise InputError(f"--block_size {block_size}: at least 2 tokens are needed")
    total = int(starts[-1])
    begins, ends = [], []
    position = 0
    while position < total:
        limit = position + block_size
        following = int(starts[np.searchsorted(starts, limit, side="right") - 1])
        begins.append(position)
        position = total if limit >= total else following if following > position else limit
        ends.append(position)
    positions = np.array(begins, dtype=np.int64)[:, None] + np.arange(block_size)
    return np.minimum(positions, total - 1), positions < total, np.array(ends, dtype=np.int64)[:, None]


def attribute_openings(document: Row, offsets: Sequence[tuple[int, int]], number: int) -> list[int]:
    """Return the positions of the tokens that open the document's attributes.

    Args:
        document: full_name, type and attributes of an entity, and a text that tells all of these attributes; one
            without those keys tells none.
        offsets: each token's first and end character.
        number: the document's number, for errors.

    Raises:
        InputError: the type is unknown, or a value does not stand in the text.
    """
    values = {attribute: str(document[attribute]) for attribute in Attribute if attribute in document}
    if not values or not {"full_name", "type"} <= document.keys():
        return []
    shape(Type).check(document["type"], f"document {number}, 'type'")
    starts = locate_values(document[TEXT], str(document["full_name"]), values)
    missing = [attribute for attribute in values if attribute not in starts]
    if missing:
        told = ", ".join(f"{attribute} {values[attribute]!r}" for attribute in missing)
        raise InputError(f"document {number} ({document['full_name']}): its text does not tell the {told}")
    ends = np.array([end for _, end in offsets])
    # Special tokens cover no characters; the maximum keeps the ends in order across them.
    return [int(np.searchsorted(np.maximum.accumulate(ends), start, side="right")) for start in starts.values()]


def locate_values(text: str, name: str, values: dict[Attribute, str]) -> dict[Attribute, int]:
    """Return the character at which each attribute's value begins in a biography, of those that stand in it.

    A short value may also stand inside a longer one or inside the person's name ("Austin" in "University of Austin",
    in "Austin Reed"). So occurrences are settled longest first, the ones at word boundaries before the others, and a
    settled stretch of text is not given away twice.

    Args:
        text: the biography, which has each value once and the name any number of times.
    """
    wanted: list[tuple[str, Attribute | None]] = [(name, None), *((value, key) for key, value in values.items())]
    occurrences = []
    for string, key in wanted:
        for start in _occurrences(text, string):
            occurrences.append((not _is_word(text, start, start + len(string)), -len(string), start, key))
    # A name's or a value's own sentence has it at word boundaries; an occurrence inside a word is the last resort.
    taken: list[tuple[int, int]] = []
    starts: dict[Attribute, int] = {}
    for _, negative_length, start, key in sorted(occurrences, key=lambda item: item[:3]):
        end = start - negative_length
        if (key is not None and key in starts) or any(start < other_end and end > other for other, other_end in taken):
            continue
        taken.append((start, end))
        if key is not None:
            starts[key] = start
    return starts


def _occurrences(text: str, string: str) -> Iterator[int]:
    start = text.find(string) if string else -1
    while start >= 0:
        yield start
        start = text.find(string, start + 1)


def _is_word(text: str, start: int, end: int) -> bool:
    """Return whether a stretch of text is not part of a longer word."""
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (before.isalnum() and text[start].isalnum()) and not (after.isalnum() and text[end - 1].isalnum())


def packing_key(documents: Sequence[Row], tokenizer: PreTrainedTokenizerBase, block_size: int, purpose: str) -> str:
    """Return a hash of all that decides the result: the documents, the tokenizer, the block size and this code."""
    digest = hashlib.sha256(f"{PACKING_VERSION} {purpose} {block_size} {tokenizer.eos_token_id}\n".encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    digest.update(vocabulary.encode())
    for document in documents:
        digest.update(b"\n" + json.dumps(document, sort_keys=True, ensure_ascii=True, default=str).encode())
    return digest.hexdigest()[:32]


def write_blocks(path: Path, blocks: PackedBlocks, key: str) -> None:
    """Write packed blocks atomically, with a checksum of their key and content.

    One entry of metadata only: safetensors writes several in an order that changes from file to file.
    """
    with atomic_write(path, "wb") as file:
        file.write(save(vars(blocks), metadata={"checksum": _checksum(key, blocks)}))


def read_blocks(path: Path, key: str) -> PackedBlocks | None:
    """Read packed blocks; None if there are none, or if the file is damaged or of another content."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            blocks = PackedBlocks(*(file.get_tensor(n) for n in ("input_ids", "counted", "attribute_types")))
    except (OSError, SafetensorError):
        return None
    return blocks if metadata.get("checksum") == _checksum(key, blocks) else None


def _checksum(key: str, blocks: PackedBlocks) -> str:
    digest = hashlib.sha256(key.encode())
    for array in vars(blocks).values():
        digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
