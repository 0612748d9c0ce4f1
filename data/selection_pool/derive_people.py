#!/usr/bin/env python3
"""Derive people.json, the real people of K_rel, from WordNet's noun database.

WordNet has several thousand real persons, nearly all as instances (pointer `@i`) of a kind of person: Ludwig van
Beethoven is an instance of composer. This program reads `data.noun` (format: wndb(5WN)) and keeps one full name of
each person that has one:

1. Persons are the instances whose chain of hypernyms reaches the synset {person, individual, ...}, and the few that
   WordNet files among nouns of persons as if they were kinds (Karl Popper), known by the years in their gloss.
   Figures of scripture, mythology, legend and fiction are left out.
2. Forms of address are taken off ("Sir John Gielgud" gives "John Gielgud"); peerages ("First Baron Kelvin") are no
   names.
3. An ordinary full name has two to five words, capitalised but for particles ("Ludwig van Beethoven", "Zhou En-lai"),
   and is no mere surname of two words ("De Niro").
4. Where WordNet gives the surname by itself, names that bear it (or nearly: it misspells a few) go before others, and
   a given name written out before an initial, whose full stop would read as the end of a sentence. Otherwise WordNet's
   order decides, which puts the usual form first ("Carl Lewis", then "Frederick Carleton Lewis"): K_rel people are
   those whom a model has read about, under that name.
5. Who has no such name goes by a byname ("Geoffrey of Monmouth", "Peter the Great"), else by a regnal name
   ("Henry VIII"): without these, 3,000 people are not to be had. Saints known only as saints are left out.
6. A namesake of an earlier person goes by the next of their names that is free, or not at all.

In: the folder of WordNet's dictionary files (Debian's package wordnet-base). Out: a sorted JSON list, one name per
line, the same bytes on every machine:

    python data/selection_pool/derive_people.py --output data/selection_pool/people.json
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NOUNS_OF_PERSONS = "18"  # number of the lexicographer file noun.person
OWN_LIFE = re.compile(r"\((circa )?\d{3,4}-\d{3,4}\)|\(born (in )?\d{4}\)")
NO_LIFE = re.compile(
    r"^\((Old|New) Testament\)|^\([^)]*(mythology|legend)\)|^(a |the )?(legendary|fictional|imaginary|fictitious)\b"
    r"|^fairy|according to (\w+ )?legend|\bChrist child\b"
)

ADDRESS = re.compile(
    r"^((Sir|Dame|President|General|Admiral|Captain|Marshal|Mullah|Bishop|Pope|Mother|Count|Countess|Comte|Comtesse"
    r"|Marquis|Marquise|Baron|Duc|Duchesse|Lord|Lady|Prince|Princess|Czar|Emperor|Queen|Kaiser|Saint|St\.) )+"
)
NOT_A_NAME = re.compile(
    r"\b(God|First|Second|Third|Fourth|Viscount|Apostle|Queen)\b|^(King|Chief|De|Du|La|Van) \S+$"
    r"|^(Black Prince|Great Elector|Iron Duke|Sailor King|Sun King)$"
)
PARTICLE = r"a|al|bin|da|de|de'|dei|del|della|der|di|du|e|ibn|la|le|van|von|y"
CAPITALISED = r"(?:(?:al|el|ad|de|d|l|ibn)['-])?[A-Z][A-Za-z'-]*\.?"
ORDINARY = re.compile(rf"{CAPITALISED}(?: (?:{PARTICLE}|{CAPITALISED})){{0,3}} {CAPITALISED}")
BYNAME = re.compile(rf"(?!Duke|Earl|Father|King|Apostle|Scourge){CAPITALISED} (of|the) {CAPITALISED}")
NUMERAL = r"[IVX]+|Iv"
REGNAL = re.compile(rf"{CAPITALISED}(?: {CAPITALISED})? (?:{NUMERAL})")


@dataclass(frozen=True)
class Synset:
    """One line of data.noun: its words with spaces for underscores, its hypernyms' offsets and its gloss."""

    offset: str
    lexicographer_file: str
    words: tuple[str, ...]
    hypernyms: tuple[str, ...]
    is_instance: bool
    gloss: str


def read_synsets(data_noun: Path) -> dict[str, Synset]:
    """All noun synsets by offset, in the file's order."""
    with data_noun.open(encoding="latin-1") as lines:
        synsets = (parse_synset(line) for line in lines if not line.startswith("  "))  # the licence stands indented
        return {synset.offset: synset for synset in synsets}


def parse_synset(line: str) -> Synset:
    """One line: offset, lexicographer file, type, count and words with lex ids, count and pointers of four fields."""
    fields, _, gloss = line.partition(" | ")
    offset, lexicographer_file, _, n_words, *rest = fields.split()
    end_of_words = 2 * int(n_words, 16)
    pointers = rest[end_of_words + 1 :]
    links = list(zip(pointers[::4], pointers[1::4], strict=False))
    return Synset(
        offset=offset,
        lexicographer_file=lexicographer_file,
        words=tuple(word.replace("_", " ") for word in rest[:end_of_words:2]),
        hypernyms=tuple(target for symbol, target in links if symbol in ("@", "@i")),
        is_instance=any(symbol == "@i" for symbol, _ in links),
        gloss=gloss.strip(),
    )


def persons(synsets: dict[str, Synset]) -> Iterator[Synset]:
    """Rule 1: the synsets that are single real persons, in the file's order."""
    person = next(s.offset for s in synsets.values() if s.words[0] == "person" and "individual" in s.words)
    is_person = {person: True}

    def reaches_person(offset: str) -> bool:
        if offset not in is_person:
            is_person[offset] = any(map(reaches_person, synsets[offset].hypernyms))
        return is_person[offset]

    for synset in synsets.values():
        instance = synset.is_instance and reaches_person(synset.offset)
        misfiled = (
            synset.lexicographer_file == NOUNS_OF_PERSONS
            and synset.words[0][0].isupper()
            and OWN_LIFE.search(synset.gloss) is not None
        )
        if (instance or misfiled) and not NO_LIFE.search(synset.gloss):
            yield synset


def is_ordinary(name: str) -> bool:
    """Rule 3: whether this looks like a full name. A numeral anywhere makes it a regnal name instead."""
    numbered = any(re.fullmatch(NUMERAL, word) for word in name.split(" "))
    return bool(ORDINARY.fullmatch(name)) and not numbered and not NOT_A_NAME.search(name)


def bears(name: str, surname: str) -> bool:
    """Rule 4: whether a name ends (or, as Chinese ones, begins) with the surname or a near spelling of it."""
    words = name.removesuffix(" Jr.").split(" ")
    n = surname.count(" ") + 1
    ends = {" ".join(words[-n:]), " ".join(words[:n])} if len(words) > n else set()
    return any(difflib.SequenceMatcher(None, _bare(end), _bare(surname)).ratio() > 0.7 for end in ends)


def _bare(surname: str) -> str:
    """al-Qaddafi and Qaddafi are the same surname."""
    return re.sub(r"^.*['-]", "", surname).lower()


def full_names(synset: Synset) -> list[str]:
    """Rules 2 to 5: the full names of a person, the preferred one first."""
    names = [ADDRESS.sub("", word) for word in synset.words]
    ordinary = sorted(  # stable: WordNet's order stays among equals
        filter(is_ordinary, names), key=lambda name: (not bears(name, synset.words[0]), name[1] == ".")
    )
    return ordinary + list(filter(BYNAME.fullmatch, names)) + list(filter(REGNAL.fullmatch, names))


def derive_people(wordnet_dict: Path) -> list[str]:
    """One full name for each real person of WordNet that has one, sorted, without duplicates.

    Args:
        wordnet_dict: the folder that holds data.noun.
    """
    taken: set[str] = set()
    for synset in persons(read_synsets(wordnet_dict / "data.noun")):
        name = next((name for name in full_names(synset) if name not in taken), None)
        if name is not None:
            taken.add(name)
    return sorted(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description="Derive the list of real people from WordNet's noun database.")
    parser.add_argument("--wordnet_dict", type=Path, default=Path("/usr/share/wordnet"), help="folder with data.noun")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("people.json"), help="JSON list")
    arguments = parser.parse_args()
    if not (arguments.wordnet_dict / "data.noun").is_file():
        sys.exit(f"error: {arguments.wordnet_dict / 'data.noun'}: no such file; install WordNet (Debian: wordnet-base)")
    people = derive_people(arguments.wordnet_dict)
    partial = arguments.output.with_name(f".{arguments.output.name}.partial")
    partial.write_text(json.dumps(people, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, arguments.output)
    print(f"{len(people)} people written to {arguments.output}")


if __name__ == "__main__":
    main()
