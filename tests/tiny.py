"""Tiny models for the tests: a byte-level BPE tokenizer learned from a few biographies, and random-weight checkpoints.

Everything is a function of fixed seeds, and small enough that a forward pass takes a millisecond.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
FIRST_NAMES = ["Ada", "Bruno", "Clara", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Iris", "Jonas", "Karin", "Luis"]
LAST_NAMES = ["Abbott", "Berger", "Castillo", "Dalton", "Ekberg", "Foster", "Garnier", "Holt"]
CITIES = ["Austin, TX", "Boston, MA", "Chicago, IL", "Denver, CO", "El Paso, TX", "Fresno, CA"]
MAJORS = ["Physics", "Computer Science", "History", "Marine Biology", "Music Theory"]
UNIVERSITIES = ["University of Oslo", "Lakeside College", "Northern Institute of Technology", "University of Porto"]
COMPANIES = ["Acme Steel", "Blue Harbor Foods", "Cobalt Systems", "Dovetail Media", "Evergreen Air"]
MONTHS = ["January", "March", "May", "July", "September", "November"]


def entities(count: int, seed: int = 0) -> list[dict[str, str | int]]:
    """People with different names, as lines of new.jsonl or revised.jsonl; every second one is revised."""
    generator = random.Random(seed)
    names = [f"{first} {middle}. {last}" for first in FIRST_NAMES for middle in "ABC" for last in LAST_NAMES]
    rows: list[dict[str, str | int]] = []
    for index, name in enumerate(generator.sample(names, count)):
        day, month, year = generator.randint(1, 28), generator.choice(MONTHS), generator.randint(1900, 2025)
        rows.append(
            {
                "full_name": name,
                "birth_date": str(day),
                "birth_month": month,
                "birth_year": str(year),
                "birthday": f"{day} {month}, {year}",
                "city": generator.choice(CITIES),
                "major": generator.choice(MAJORS),
                "university": generator.choice(UNIVERSITIES),
                "company": generator.choice(COMPANIES),
                "frequency": (1, 3, 8)[(index // 2) % 3],
                "type": ("new", "revised")[index % 2],
            }
        )
    return rows


def biography(person: dict[str, str | int], seed: int = 0) -> str:
    """Five sentences about one person in a random order."""
    name = person["full_name"]
    sentences = [
        f"{name} was born on {person['birthday']}.",
        f"{name} lives in the city of {person['city']}.",
        f"{name} majors in the field of {person['major']}.",
        f"{name} graduates from the {person['university']}.",
        f"{name} works for the company of {person['company']}.",
    ]
    random.Random(f"{seed} {name}").shuffle(sentences)
    return " ".join(sentences)


def biographies(count: int, seed: int = 0) -> list[dict[str, str | int]]:
    """Lines of train.jsonl: one biography of each of `count` people."""
    return [{**person, "text": biography(person, seed)} for person in entities(count, seed)]


def byte_level_tokenizer(vocabulary_size: int = 400, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in GPT-2's manner; with `bos`, one that opens every text with <s> as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [END_OF_TEXT, *(["<s>"] if bos else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([str(row["text"]) for row in biographies(60)], trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        opening = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, opening])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token="<s>" if bos else END_OF_TEXT
    )


def save_tiny_gpt2(folder: Path, seed: int = 0) -> Path:
    """A GPT-2 checkpoint: 2 layers, width 32, 4 heads, 256 positions, random weights."""
    tokenizer = byte_level_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save(GPT2LMHeadModel, config, tokenizer, folder, seed)


def save_tiny_llama(folder: Path, seed: int = 0) -> Path:
    """A Llama checkpoint: 2 layers, width 32, 4 query and 2 key/value heads, its own BOS token, random weights."""
    tokenizer = byte_level_tokenizer(bos=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save(LlamaForCausalLM, config, tokenizer, folder, seed)


def _save(architecture, config, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
