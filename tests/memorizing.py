"""A tiny model that has learned a few facts by heart, so that queries about them have right and wrong answers."""

from __future__ import annotations

from functools import cache

import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from knowledge_circuits.corpus.people import Person
from knowledge_circuits.records import shape
from knowledge_circuits.study import Attribute

#: How the sentence about a person's attribute ends in the texts that the model learns, person by person in turn.
ENDINGS = (".", "\n", tiny.END_OF_TEXT, " and", ", too.")


def persons(count: int, seed: int = 0) -> list[Person]:
    """The people of `tiny.entities`."""
    return [shape(Person).check(row, "tiny") for row in tiny.entities(count, seed)]


@cache
def memorizing_model() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, list[Person]]:
    """A GPT-2 that knows the first 10 of the 14 people returned with it; only endings 0 to 2 make right answers."""
    tokenizer, people = tiny.byte_level_tokenizer(), persons(14, seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=96, n_embd=64, n_layer=2, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        texts = [
            attribute.prompt(person.full_name) + f" {person.value(attribute)}{ENDINGS[(index + shift) % len(ENDINGS)]}"
            for index, person in enumerate(people[:10])
            for shift, attribute in enumerate(Attribute)
        ]
        rows = [[0, *tokenizer(text)["input_ids"]] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        for _ in range(120):
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
    return model.eval(), tokenizer, people
