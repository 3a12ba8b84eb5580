"""JSON text looked at in pieces: cutting it anywhere into blocks changes nothing of what is said about it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from bridge.core.contract import jsonparts, jsontext
from bridge.core.contract.jsontext import ArrayText, ObjectText
from bridge.core.contract.stepping import finish
from bridge.core.errors import InvalidRequest
from tests.support.random_requests import DICE, Dice

SETTINGS = settings(max_examples=1000, deadline=None, database=None)
BLOCKS = st.sampled_from((24, 25, 31, 64))
"""Bytes: twice a pair of escapes, or more."""
TEXTS = (
    "",
    "a",
    '"',
    "\\",
    '\\"',
    "[{",
    "]}",
    ",",
    ":",
    "é",
    "🎉",
    "\n",
    "\x00",
    '",[',
    "\\\\" * 9,
    "x" * 70,
    "/u",
)


@contextmanager
def blocks(size: int) -> Iterator[None]:
    """Everything is looked at in blocks of so many bytes."""
    with (
        patch.object(jsontext, "AT_ONCE", size),
        patch.object(jsonparts, "AT_ONCE", size),
        patch.object(jsonparts, "PARTS_AT_ONCE", 0),
        patch.object(jsonparts, "_WINDOW", size),
    ):
        yield


def anything(dice: Dice, depth: int = 5) -> Any:
    """Any value, most of it brackets and strings."""
    kind = dice.roll(6) if depth else 0
    if kind < 2:
        return dice.pick((*TEXTS, 0, -1.5e300, None, True))
    if kind < 4:
        return [anything(dice, depth - 1) for _ in range(dice.roll(4))]
    return {dice.pick(TEXTS): anything(dice, depth - 1) for _ in range(dice.roll(4))}


def text_of(dice: Dice, value: object) -> bytes:
    spaces = {"indent": 1} if dice.roll(2) else {"separators": (",", ":")}
    return json.dumps(value, ensure_ascii=bool(dice.roll(2)), **spaces).encode()


def levels(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0


@SETTINGS
@given(DICE, BLOCKS)
def test_how_deep_a_text_is_does_not_depend_on_where_it_is_cut(dice: Dice, size: int) -> None:
    value = anything(dice)
    text = text_of(dice, value)
    note(repr(text))
    for most in range(6):
        with patch.object(jsontext, "DEPTH_MAX", most), patch.object(jsontext, "_BRACKETS_AT_ONCE", 3):
            with blocks(size):
                assert finish(jsontext.too_deep(text)) == (levels(value) > most)


@SETTINGS
@given(DICE, BLOCKS)
def test_the_elements_of_an_array_do_not_depend_on_where_it_is_cut(dice: Dice, size: int) -> None:
    value = [anything(dice) for _ in range(dice.roll(6))]
    text = text_of(dice, value)
    note(repr(text))
    with blocks(size):
        cut = [json.loads(element) for element in jsonparts.elements(text) if element is not None]
        pieces, whole = finish(jsonparts.all_pieces(b" %b\n" % text))
    assert cut == value
    assert [json.loads(piece) for piece in pieces] == value
    assert whole


@SETTINGS
@given(DICE, BLOCKS)
def test_the_members_of_an_object_do_not_depend_on_where_it_is_cut(dice: Dice, size: int) -> None:
    def space() -> str:
        return " " * int(dice.pick((0, 1, 70)))

    pairs = [(dice.pick(TEXTS), anything(dice, 3)) for _ in range(dice.roll(6))]
    members = [f"{space()}{json.dumps(name)}{space()}:{space()}{json.dumps(value)}" for name, value in pairs]
    text = f" {{{','.join(members)}}}".encode()
    note(repr(text))
    with blocks(size):
        found = [(m[0], json.loads(m[1])) for m in jsonparts.members(text) if m is not None]
        last = finish(jsonparts.last_members(text))
    assert found == pairs
    assert {name: json.loads(value) for name, value in last.items()} == dict(pairs)


@SETTINGS
@given(DICE, BLOCKS, st.binary(max_size=20))
def test_what_is_said_of_broken_text_does_not_depend_on_where_it_is_cut(
    dice: Dice, size: int, noise: bytes
) -> None:
    text = dice.damaged() if dice.roll(2) else dice.pick((b"[", b"{", b"")) + dice.words() + noise
    note(repr(text))

    def said() -> object:
        return (
            finish(jsonparts.all_pieces(text)),
            [member for member in jsonparts.members(text) if member is not None],
            finish(jsontext.problem(text)),
        )

    at_once = said()
    with blocks(size):
        assert said() == at_once


ESCAPES = (
    b"\\ud83d",
    b"\\ude00",
    b"\\ud83d\\ude00",
    b"\\uD800",
    b"\\u00e9",
    b"\\ud8",
    b"\\u",
    b"\\",
    b"\\\\",
    b"x" * 9,
)
HEX = rb"[0-9a-fA-F]"
ESCAPE = re.compile(
    rb"\\u[dD][89abAB]%b{2}\\u[dD][c-fC-F]%b{2}|(\\u[dD][89a-fA-F]%b{2})|\\." % (HEX, HEX, HEX), re.DOTALL
)


@SETTINGS
@given(st.lists(st.sampled_from(ESCAPES), max_size=30), BLOCKS)
def test_the_first_half_character_is_found_wherever_it_is(parts: list[bytes], size: int) -> None:
    text = b"".join(parts)
    note(repr(text))
    first = next((escape[1].decode() for escape in ESCAPE.finditer(text) if escape[1]), "")
    with blocks(size):
        assert finish(jsontext._lone_surrogate(text)) == first


def test_no_more_pieces_are_cut_than_any_contract_allows() -> None:
    pieces, whole = finish(jsonparts.all_pieces(b"[%b1]" % (b"1," * 5000)))
    assert (len(pieces), whole) == (jsonparts.PIECES_MAX + 1, False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1", 1),
        (b'"\\u00e9"', "é"),
        (b"null", None),
        (b"[1,2]", ArrayText(b"[1,2]")),
        (b'{"a":1}', ObjectText(b'{"a":1}')),
        (b"1e999", float("inf")),
        (b"1" * 5000, float("inf")),
    ],
)
def test_what_may_be_large_stays_text(text: bytes, value: object) -> None:
    assert jsontext.shallow_value(text) == value


def test_the_part_that_is_to_blame_is_named() -> None:
    text = b'{"a":1,"b":NaN}'
    parts = finish(jsonparts.last_members(text))
    with pytest.raises(InvalidRequest, match=r"^at\.b: NaN and Infinity are not JSON \(byte 0\)$"):
        finish(jsontext.blame(text, parts, "at"))
    with pytest.raises(InvalidRequest, match=r"^at: not JSON"):
        finish(jsontext.blame(b'{"a":1}]', {"a": b"1"}, "at"))
