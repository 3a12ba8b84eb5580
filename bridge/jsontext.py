"""JSON text (RFC 8259), looked at without building values: is it right, how deep, where are its parts.

The decoder checks syntax and escapes of text that it passes over, lone surrogates included, but not its
UTF-8, and it gives up at a depth that depends on Python's stack. What is here does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec import Raw

from bridge.errors import InvalidRequest
from bridge.model import Reason

DEPTH_MAX = 128
"""Levels of arrays and objects in a push's data (RFC 8259 section 9 leaves the limit to us)."""

SPACE = b" \t\n\r"
"""The only characters between tokens that are not one (section 2)."""

BAD_JSON = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What a decoder raises for text that it cannot read."""

PIECES_MAX = 1024
"""Members or elements told apart in text that the decoder cannot read: more than any contract allows."""

TOO_DEEP = f"nested deeper than {DEPTH_MAX} levels"

decode_raw = msgspec.json.Decoder(Raw).decode
decode_any = msgspec.json.Decoder().decode
decode_str = msgspec.json.Decoder(str).decode
encode = msgspec.json.Encoder().encode

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT = rb'(?:[^][{}"]++|' + _STRING + rb")*+"
_LEAF = rb"\[" + _FLAT + rb"\]|\{" + _FLAT + rb"\}"
# Everything up to the next bracket of a container that holds others; the first stops at commas, too.
_BETWEEN_COMMAS = re.compile(rb'(?:[^][{}",]++|' + _STRING + rb"|" + _LEAF + rb")*+", re.DOTALL)
_WITHIN = re.compile(rb'(?:[^][{}"]++|' + _STRING + rb"|" + _LEAF + rb")*+", re.DOTALL)
_BRACKETS = re.compile(rb"[\[{]+|[\]}]+")
_KEY = re.compile(rb"\s*(" + _STRING + rb")\s*:", re.DOTALL)
_HEX = rb"[0-9a-fA-F]"
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB]%b{2}\\u[dD][c-fC-F]%b{2}|(\\u[dD][89a-fA-F]%b{2})|\\." % (_HEX, _HEX, _HEX), re.DOTALL
)
_BYTE = re.compile(r"\(byte (\d+)\)")
_CLOSED_BY = bytes.maketrans(b"[{", b"]}")
_ROUND = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def is_utf8(data: bytes) -> bool:
    """Whether these bytes are UTF-8 (RFC 3629: no surrogates)."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def too_deep(text: bytes) -> bool:
    """Whether valid JSON nests deeper than `DEPTH_MAX`: brackets are removed innermost first, all in C."""
    if len(text) <= 2 * DEPTH_MAX or text.count(b"[") + text.count(b"{") <= DEPTH_MAX:
        return False
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside_strings = b"".join(unescaped.split(b'"')[::2])
    brackets = outside_strings.translate(_ROUND, _NOT_BRACKETS)
    for _ in range(DEPTH_MAX):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def split(text: bytes) -> tuple[list[bytes], bool]:
    """Cut an array or object at its own commas, whatever stands between them and however deep.

    Returns the pieces as far as the brackets make sense, and whether they do to the end. Nothing is said
    about the pieces: they need not be JSON. Gives up after `PIECES_MAX` pieces.
    """
    pieces: list[bytes] = []
    start = at = len(text) - len(text.lstrip(SPACE)) + 1
    stack = bytearray(text[start - 1 : start])
    if bytes(stack) not in (b"[", b"{"):
        return pieces, False
    while len(pieces) <= PIECES_MAX:
        skipped = (_WITHIN if len(stack) > 1 else _BETWEEN_COMMAS).match(text, at)
        at = skipped.end() if skipped else at
        token = _BRACKETS.match(text, at)
        if token is None:
            if text[at : at + 1] != b",":
                # A string without an end, or the end of the text.
                return pieces, False
            pieces.append(text[start:at])
            start = at = at + 1
            continue
        brackets = token[0]
        at += len(brackets)
        if brackets[0] in b"[{":
            stack += brackets
            continue
        closing = brackets[: len(stack)]
        if stack[-len(closing) :][::-1].translate(_CLOSED_BY) != closing:
            return pieces, False
        del stack[-len(closing) :]
        if not stack:
            at += len(closing) - len(brackets)
            last = text[start : at - 1]
            if pieces or last.strip(SPACE):
                pieces.append(last)
            return pieces, not text[at:].strip(SPACE)
    return pieces, False


def members(text: bytes) -> dict[str, bytes]:
    """The members of an object, as far as they can be told apart; empty for anything else.

    Of a key that occurs twice the last one counts. The text may be cut or wrong anywhere, and so may the
    values: this is how the id of a request is found that is otherwise beyond reading.
    """
    found: dict[str, bytes] = {}
    if text.lstrip(SPACE)[:1] != b"{":
        return found
    for piece in split(text)[0]:
        key = _KEY.match(piece)
        if key is None:
            continue
        try:
            found[decode_str(key[1])] = piece[key.end() :].strip(SPACE)
        except BAD_JSON:
            continue
    return found


def check(text: bytes, parts: Mapping[str, bytes], path: str) -> None:
    """Raise InvalidRequest unless this is JSON in UTF-8; names that one of its `parts` which is to blame."""
    problem = _problem(text)
    if problem is None:
        return
    for name, part in parts.items():
        inner = _problem(part)
        if inner is not None:
            raise InvalidRequest(inner[0], f"{path}.{shown(name)}" if path else shown(name), inner[1])
    raise InvalidRequest(problem[0], path, problem[1])


def value(text: bytes, path: str) -> object:
    """The value of text that has been checked; raises InvalidRequest where Python cannot hold it."""
    try:
        return decode_any(text)
    except RecursionError:
        raise InvalidRequest(Reason.INVALID, path, TOO_DEEP) from None
    except msgspec.MsgspecError:
        raise InvalidRequest(Reason.INVALID, path, "a number is out of range") from None


def shown(name: str) -> str:
    """A name that someone else chose: short, and without anything that a terminal or a table would mind."""
    if len(name) > 64:
        name = name[:64] + "..."
    return name if name.isprintable() and name else repr(name)


def _problem(text: bytes) -> tuple[Reason, str] | None:
    """Why this is not JSON in UTF-8, or None."""
    if not text.strip(SPACE):
        return Reason.NOT_JSON, "expected JSON, got nothing"
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return Reason.NOT_JSON, f"not UTF-8 (byte {error.start})"
    try:
        decode_raw(text)
    except RecursionError:
        return Reason.INVALID, TOO_DEEP
    except msgspec.MsgspecError as error:
        return Reason.NOT_JSON, _syntax(text, str(error))
    return None


def _syntax(text: bytes, said: str) -> str:
    """A sentence for a syntax error that the decoder reported as `said`."""
    if text.startswith(b"\xef\xbb\xbf"):
        return "not JSON: it begins with a byte order mark"
    for escape in _ESCAPE.finditer(text):
        if escape[1]:
            return f"a lone surrogate ({escape[1].decode()}) stands for no character"
    at = _BYTE.search(said)
    if at is None:
        return "not JSON: it ends too early"
    if text[int(at[1]) :].lstrip(b"-").startswith((b"NaN", b"Infinity")):
        return f"NaN and Infinity are not JSON (byte {at[1]})"
    return f"not JSON: {said.removeprefix('JSON is malformed: ')}"
