"""Cut JSON text into its parts, whatever they are and however many.

Where the decoder would make too many objects at once, or can't read the text, the text is cut at its brackets and
commas alone. The generators that do so yield None between pieces of work.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Mapping
from typing import TypeAlias

import msgspec
from msgspec import Raw

from bridge.core.contract.jsontext import BAD_JSON, SPACE, decode_str
from bridge.core.contract.stepping import AT_ONCE, PARTS_AT_ONCE, Steps

PIECES_MAX = 1024
"""Members or elements that are told apart in text that the decoder can't read: more than any contract allows."""

decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
decode_elements = msgspec.json.Decoder(list[Raw]).decode

_WINDOW = 16 * 1024
"""Bytes that one call of a regular expression scans: tens of nanoseconds each."""
_TURN_COSTS = 64
"""One turn of a loop below takes as long as scanning so many bytes."""

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT = rb'(?:[^][{}"]++|' + _STRING + rb")*+"
_LEAF = rb"\[" + _FLAT + rb"\]|\{" + _FLAT + rb"\}"
# All up to the next bracket of a container that has others in it; the first one also stops at commas.
_BETWEEN_COMMAS = re.compile(rb'(?:[^][{}",]++|' + _STRING + rb"|" + _LEAF + rb")*+", re.DOTALL)
_WITHIN = re.compile(rb'(?:[^][{}"]++|' + _STRING + rb"|" + _LEAF + rb")*+", re.DOTALL)
_BRACKETS = re.compile(rb"[\[{]+|[\]}]+")
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_KEY = re.compile(rb"[ \t\n\r]*+(" + _STRING + rb")[ \t\n\r]*+:", re.DOTALL)
_CLOSED_BY = bytes.maketrans(b"[{", b"]}")

Pieces: TypeAlias = Generator[bytes | None, None, bool]


def is_small(text: bytes, separator: bytes) -> bool:
    """Whether the decoder may cut this text at once; `separator` stands between two parts."""
    return len(text) <= AT_ONCE or text.count(separator) <= PARTS_AT_ONCE


def pieces(text: bytes, most: int = sys.maxsize) -> Pieces:
    """Cut an array or object at its own commas, whatever stands between them and however deep.

    Yields the pieces as long as the brackets match, and returns whether they match to the end. The pieces need not be
    JSON. Gives up where there are more than `most`.
    """
    start = at = len(text) - len(text.lstrip(SPACE)) + 1
    if text[start - 1 : start] not in (b"[", b"{"):
        return False
    opened = bytearray(text[start - 1 : start])
    count = 0
    rest = AT_ONCE
    passed = _BETWEEN_COMMAS
    while True:
        rest -= _TURN_COSTS
        if rest < 0:
            rest = AT_ONCE
            yield None
        stop = at + _WINDOW
        found = passed.match(text, at, stop)
        if found:
            rest -= found.end() - at
            at = found.end()
        token = text[at : at + 1]
        if token == b"," and len(opened) == 1:
            yield text[start:at]
            count += 1
            if count > most:
                return False
            start = at = at + 1
        elif token == b'"':
            # A string that the window cuts, or that has no end.
            at = yield from _past_string(text, at + 1)
            if at < 0:
                return False
        elif found := _BRACKETS.match(text, at, stop):
            brackets = found[0]
            at = found.end()
            rest -= len(brackets)
            if token in b"[{":
                opened += brackets
                passed = _WITHIN
                continue
            closing = brackets[: len(opened)]
            if opened[-len(closing) :][::-1].translate(_CLOSED_BY) != closing:
                return False
            del opened[-len(closing) :]
            if not opened:
                at -= len(brackets) - len(closing)
                last = text[start : at - 1]
                if count or last.strip(SPACE):
                    yield last
                return not text[at:].strip(SPACE)
            if len(opened) == 1:
                passed = _BETWEEN_COMMAS
        elif at < stop:
            return False


def all_pieces(text: bytes) -> Steps[tuple[list[bytes], bool]]:
    """All pieces, and whether the brackets match to the end; gives up after `PIECES_MAX`."""
    found: list[bytes] = []
    cut = pieces(text, PIECES_MAX)
    while True:
        try:
            piece = next(cut)
        except StopIteration as end:
            return found, end.value
        if piece is None:
            yield
        else:
            found.append(piece.strip(SPACE))


def elements(text: bytes) -> Generator[bytes | None, None, None]:
    """The elements of valid JSON that is an array."""
    if is_small(text, b","):
        try:
            cut = decode_elements(text)
        except RecursionError:
            pass
        else:
            yield None
            for element in cut:
                yield bytes(element)
            return
    for piece in pieces(text):
        yield piece and piece.strip(SPACE)


def members(text: bytes, most: int = sys.maxsize) -> Generator[tuple[str, bytes] | None, None, None]:
    """The members of an object, as far as they can be told apart; none for other values.

    A key that occurs twice is yielded twice. Text and values may be cut or wrong anywhere: so the id is found of a
    request that can't be read otherwise.
    """
    if text[:1] != b"{" and text.lstrip(SPACE)[:1] != b"{":
        return
    for piece in pieces(text, most):
        if piece is None:
            yield None
            continue
        key = _KEY.match(piece, 0, _WINDOW)
        if key is None:
            name, value = yield from _long_key(piece)
        else:
            name, value = key[1], piece[key.end() :]
        try:
            member = decode_str(name), value.strip(SPACE)
        except BAD_JSON:
            continue
        yield member


def last_members(text: bytes) -> Steps[Mapping[str, bytes]]:
    """As `members`, but the last value of a repeated key counts; gives up after `PIECES_MAX`."""
    found: dict[str, bytes] = {}
    for member in members(text, PIECES_MAX):
        if member is None:
            yield
        else:
            found[member[0]] = member[1]
    return found


def _long_key(piece: bytes) -> Steps[tuple[bytes, bytes]]:
    """The key and the value of a member of any size; both empty where it is no member."""
    piece = piece.lstrip(SPACE)
    if piece[:1] == b'"':
        after = yield from _past_string(piece, 1)
        rest = piece[after:].lstrip(SPACE) if after > 0 else b""
        if rest[:1] == b":":
            return piece[:after], rest[1:]
    return b"", b""


def _past_string(text: bytes, at: int) -> Steps[int]:
    """The place after the closing quote of the string that `at` is in; -1 where it has no end."""
    while True:
        for _ in range(AT_ONCE // _WINDOW):
            inside = _IN_STRING.match(text, at, at + _WINDOW)
            at = inside.end() if inside else at
            found = text[at : at + 1]
            if found == b'"':
                return at + 1
            if at + (found == b"\\") >= len(text):
                return -1
        yield
