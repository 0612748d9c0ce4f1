"""The nano model before training: a GPT-2 with random weights, and a tokenizer trained on the corpus.

The tokenizer is a byte-level BPE whose one special token, <|endoftext|>, opens prompts, ends texts and pads. Both are
saved as an ordinary Hugging Face checkpoint folder, and both are functions of the texts, the shape and the seed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from knowledge_circuits.files import InputError
from knowledge_circuits.models.shape import Shape

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, positions: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE tokenizer.

    Args:
        vocabulary_size: tokens, <|endoftext|> and the 256 bytes included; fewer if the texts have no more merges.
        positions: the longest input that the model takes.

    Raises:
        InputError: the vocabulary cannot even hold the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary_size <= len(alphabet):
        raise InputError(f"a vocabulary of {vocabulary_size} tokens is too small; the bytes alone take {len(alphabet)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )


def random_gpt2(tokenizer: PreTrainedTokenizerFast, shape: Shape, seed: int) -> GPT2LMHeadModel:
    """Return a GPT-2 with random weights and no dropout, for this tokenizer's vocabulary and special token.

    The process's own random state stays as it was.
    """
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=shape.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # The same function as gelu_new, in one kernel.
        activation_function="gelu_pytorch_tanh",
        initializer_range=shape.initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def save_checkpoint(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> list[Path]:
    """Write a checkpoint folder and return its files; config.json, which makes it one, takes its name last."""
    folder = Path(folder)
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    partial.mkdir(parents=True)
    try:
        tokenizer.save_pretrained(partial)
        model.save_pretrained(partial)
        files = []
        for path in sorted(partial.iterdir(), key=lambda path: (path.name == "config.json", path.name)):
            os.replace(path, folder / path.name)
            files.append(folder / path.name)
        return files
    finally:
        shutil.rmtree(partial, ignore_errors=True)
