"""Ways in which files go wrong, as hypothesis strategies: damaged bytes, and JSON with values of another kind."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

#: JSON texts that stand where something else is wanted.
ODD_VALUES = (
    *("null", "true", "false", "0", "-1", "1", "2", "0.5", "1e999", "-1e999", "NaN", "Infinity", "9" * 30, "1e30"),
    *('""', '" "', '"x"', '"new"', '"city"', '"\\ud800"', '"\\u0000"', '"{subject}"', '"%s"', '"3"', '"\\n"'),
    *(
        '"Zoë \\u201cQ\\u201d O\'Brien 李 😀"',
        "[]",
        "{}",
        "[1]",
        '[[["x"]]]',
        '{"a": {"b": null}}',
        '"' + "y" * 3_000 + '"',
    ),
)


@st.composite
def damaged_bytes(draw: st.DrawFn, original: bytes) -> bytes:
    """A file of which some bytes were changed, lost, repeated or added."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(1, 40))
        kind = draw(st.sampled_from(["change", "lose", "repeat", "add", "cut", "noise"]))
        if kind == "change" and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif kind == "lose":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[max(0, place - length) : place]
        elif kind == "add":
            data[place:place] = draw(
                st.sampled_from([b'"', b"{", b"}", b"[", b",", b"\n", b"\0", b"\xff", b"\xe2\x82", b"1"])
            )
        elif kind == "cut":
            del data[place:]
        else:
            data[place:place] = draw(st.binary(min_size=1, max_size=20))
    return bytes(data)


@st.composite
def odd_json(draw: st.DrawFn, value: Any) -> str:
    """The JSON text of a value in which one part was replaced, removed, renamed or added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(list(value)))
        kind = draw(st.sampled_from(["inside", "inside", "inside", "remove", "rename", "add"]))
        members = {name: json.dumps(part) for name, part in value.items()}
        if kind == "inside":
            members[key] = draw(odd_json(value[key]))
        elif kind == "add":
            members["something else"] = draw(st.sampled_from(ODD_VALUES))
        else:
            content = members.pop(key)
            if kind == "rename":
                members[key + "s"] = content
        return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in members.items()) + "}"
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(value) - 1))
        parts = [json.dumps(part) for part in value]
        kind = draw(st.sampled_from(["inside", "remove", "repeat"]))
        parts[place : place + 1] = {
            "inside": [draw(odd_json(value[place]))],
            "remove": [],
            "repeat": [parts[place]] * 2,
        }[kind]
        return "[" + ", ".join(parts) + "]"
    return draw(st.sampled_from(ODD_VALUES))


@st.composite
def odd_lines(draw: st.DrawFn, lines: list[str]) -> tuple[str, int]:
    """JSON lines of which one is odd, and its number."""
    place = draw(st.integers(0, len(lines) - 1))
    changed = [*lines[:place], draw(odd_json(json.loads(lines[place]))), *lines[place + 1 :]]
    return "\n".join(changed) + "\n", place + 1
