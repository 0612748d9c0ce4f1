"""The pools, the templates and the list of real people, as they lie in data/."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from knowledge_circuits.corpus.people import read_people
from knowledge_circuits.files import InputError
from knowledge_circuits.study import Attribute

DATA = Path(__file__).parents[1] / "data"
POOL = DATA / "selection_pool"
WORDNET = Path("/usr/share/wordnet")
#: The sizes that the project promises.
LEAST = {
    "first_names": 400,
    "middle_names": 270,
    "last_names": 190,
    "cities": 220,
    "companies": 200,
    "majors": 185,
    "universities": 250,
    "people": 3000,
}


def strings(path: Path) -> list[str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert all(isinstance(item, str) for item in content)
    return content


def templates(attribute: Attribute) -> list[str]:
    return strings(DATA / "templates" / f"{attribute}.json")


@pytest.fixture(scope="module")
def people() -> list[str]:
    return strings(POOL / "people.json")


@pytest.fixture(scope="module")
def derive() -> ModuleType:
    spec = importlib.util.spec_from_file_location("derive_people", POOL / "derive_people.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", LEAST)
def test_a_pool_is_as_large_as_promised_and_says_nothing_twice(name: str) -> None:
    pool = strings(POOL / f"{name}.json")
    assert len(pool) >= LEAST[name]
    assert len({item.casefold() for item in pool}) == len(pool)


@pytest.mark.parametrize("name", LEAST)
def test_a_pools_entries_are_plain_text_that_can_stand_in_a_sentence(name: str) -> None:
    for item in strings(POOL / f"{name}.json"):
        assert item == " ".join(item.split()) != "", item
        assert item.isascii() and not re.search(r"[{}_\"]", item), item
        if name != "people":  # "Oliver Wendell Holmes Jr."
            assert not item.endswith("."), item


@pytest.mark.parametrize("name", ["cities", "companies", "majors"])
def test_the_values_that_are_measured_by_their_first_token_differ_in_their_first_word(name: str) -> None:
    pool = strings(POOL / f"{name}.json")
    first_words = Counter(re.split(r"[ ,]", item)[0] for item in pool)
    assert len(first_words) >= 0.9 * len(pool)
    assert first_words.most_common(1)[0][1] <= 5


def test_cities_are_a_name_and_a_state() -> None:
    cities = strings(POOL / "cities.json")
    assert [city for city in cities if not re.fullmatch(r"[A-Z][A-Za-z .'-]+, [A-Z]{2}", city)] == []
    assert len({city[-2:] for city in cities}) == 50


def test_given_names_are_single_words_and_no_name_is_both_first_and_middle() -> None:
    first, middle = strings(POOL / "first_names.json"), strings(POOL / "middle_names.json")
    assert not set(first) & set(middle)
    assert all(" " not in name for name in first + middle + strings(POOL / "last_names.json"))


@pytest.mark.parametrize("attribute", Attribute)
def test_templates_are_many_different_short_sentences_with_one_subject_and_one_value(attribute: Attribute) -> None:
    sentences = templates(attribute)
    assert len(sentences) >= 48 and len({sentence.casefold() for sentence in sentences}) == len(sentences)
    for sentence in sentences:
        assert sentence.count("{subject}") == sentence.count("{value}") == 1, sentence
        assert sentence.count("{") == sentence.count("}") == 2, sentence
        assert re.match(r"[A-Z{]", sentence) and sentence.endswith(".") and sentence.count(".") == 1, sentence
        assert "{subject}." not in sentence, "a name may end in Jr. with its own full stop"
        assert len(sentence.split()) <= 14, sentence


@pytest.mark.parametrize("attribute", Attribute)
def test_templates_mostly_lead_from_the_subject_to_the_value_as_the_queries_do(attribute: Attribute) -> None:
    sentences = templates(attribute)
    leading = [s for s in sentences if s.startswith("{subject}") and s.endswith("{value}.")]
    assert 0.6 * len(sentences) <= len(leading) < len(sentences)


@pytest.mark.parametrize("attribute", Attribute)
def test_at_most_two_templates_are_the_query_prompt_itself(attribute: Attribute) -> None:
    prompt = attribute.prompt("{subject}") + " {value}"
    assert sum(sentence.startswith(prompt) for sentence in templates(attribute)) <= 2


@pytest.mark.parametrize("attribute", Attribute)
def test_templates_do_not_tell_a_persons_gender(attribute: Attribute) -> None:
    gendered = re.compile(r"\b(he|she|his|her|hers|him|himself|herself|son|daughter|alumnus|alumna)\b", re.IGNORECASE)
    assert [sentence for sentence in templates(attribute) if gendered.search(sentence)] == []


def test_every_university_template_has_the_article_that_the_query_prompt_has() -> None:
    for sentence in templates(Attribute.UNIVERSITY):
        assert re.search(r"\b[Tt]he \{value\}", sentence), sentence


def test_people_carry_no_titles(people: list[str]) -> None:
    titled = re.compile(
        r"^(Sir|Dame|Saint|St\.|Lord|Lady|King|Queen|Prince|President|Baron|Count|the) (?!Camp)|Duke of"
    )
    assert [name for name in people if titled.search(name)] == []
    assert {"John Gielgud", "Isaac Newton", "King Camp Gilette"} <= set(people)


def test_people_have_at_least_two_words_and_are_sorted(people: list[str]) -> None:
    assert all(2 <= len(name.split(" ")) <= 5 for name in people)
    assert people == sorted(people)


def test_people_are_real_and_go_by_the_name_that_is_written_of_them(people: list[str]) -> None:
    assert {"Ludwig van Beethoven", "Carl Lewis", "Zhou En-lai", "Marie Curie", "Karl Popper"} <= set(people)
    invented = {"Sherlock Holmes", "Paul Bunyan", "Ali Baba", "Robin Hood", "Judas Iscariot", "Santa Claus", "Don Juan"}
    assert not invented & set(people)


def test_regnal_names_and_bynames_are_the_exception(people: list[str]) -> None:
    exceptional = [name for name in people if re.search(r" [IVX]+$| (of|the) ", name)]
    assert len(exceptional) < 0.06 * len(people)


DATA_NOUN = """\
  1 the notice stands indented at the head of the file
00000010 03 n 03 person 0 individual 0 someone 0 000 | a human being
00000020 18 n 01 actor 0 001 @ 00000010 n 0000 | a performer
00000030 18 n 03 Gielgud 0 Sir_John_Gielgud 0 Arthur_John_Gielgud 0 001 @i 00000020 n 0000 | English actor (1904-2000)
00000040 18 n 02 Gielgud 0 John_Gielgud 0 001 @i 00000020 n 0000 | a namesake
00000050 18 n 02 Bond 0 James_Bond 0 001 @i 00000020 n 0000 | fictional agent in novels
00000060 15 n 01 New_York 0 001 @i 00000070 n 0000 | a city
00000070 15 n 01 city 0 000 | a place
00000080 18 n 02 Ethelred 0 Ethelred_II 0 001 @i 00000010 n 0000 | a king
00000090 18 n 02 Popper 0 Karl_Popper 0 001 @ 00000020 n 0000 | British philosopher (1902-1994)
00000100 18 n 02 Kelvin 0 First_Baron_Kelvin 0 001 @i 00000010 n 0000 | a physicist
"""


def test_a_person_is_an_instance_below_person_and_each_gets_one_name_of_their_own(
    derive: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "data.noun").write_text(DATA_NOUN, encoding="latin-1")
    assert derive.derive_people(tmp_path) == ["Ethelred II", "John Gielgud", "Karl Popper"]


def test_a_missing_wordnet_is_one_clear_sentence_and_leaves_no_file(tmp_path: Path) -> None:
    output = tmp_path / "people.json"
    command = [sys.executable, str(POOL / "derive_people.py"), "--wordnet_dict", str(tmp_path), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and not output.exists()
    assert "data.noun" in done.stderr and "wordnet-base" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not (WORDNET / "data.noun").is_file(), reason="WordNet (Debian's wordnet-base) is not installed")
def test_the_program_makes_people_json_again_byte_for_byte(tmp_path: Path) -> None:
    output = tmp_path / "people.json"
    command = [sys.executable, str(POOL / "derive_people.py"), "--wordnet_dict", str(WORDNET), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    assert output.read_bytes() == (POOL / "people.json").read_bytes()


def test_wordnets_notice_goes_with_the_names() -> None:
    notice = (POOL / "WORDNET_LICENSE.txt").read_text(encoding="utf-8")
    assert "Princeton University" in notice and "Permission to use, copy, modify and distribute" in notice


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("id,name\n1,Ada Lovelace\n2,Al\0an Turing\n", "NUL bytes"),
        ("id,name,article\n1,Ada Lovelace,x\n2,Alan Tur", "line 3: fewer fields .* was the file cut"),
        ('id,name\n1,"Ada Lovel', "not valid CSV"),
    ],
)
def test_a_damaged_list_of_people_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "people.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"people.csv.*{reason}"):
        read_people(path)
