"""Check JSON text (RFC 8259) without building values: its syntax, its depth, its kind.

The decoder checks syntax and escapes of text that it skips, lone surrogates included, but not its UTF-8, and it gives
up at a depth that depends on Python's stack. The functions here do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import msgspec
from msgspec import Raw

from bridge.core.contract.stepping import AT_ONCE, Steps
from bridge.core.errors import InvalidRequest
from bridge.core.model.outcomes import Reason

DEPTH_MAX = 128
"""Levels of arrays and objects in a push's data (RFC 8259 section 9 leaves the limit to us)."""

SPACE = b" \t\n\r"
"""The white space that may stand between tokens (section 2)."""

BAD_JSON = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What a decoder raises for text that it cannot read."""

TOO_DEEP = f"nested deeper than {DEPTH_MAX} levels"

decode_raw = msgspec.json.Decoder(Raw).decode
decode_str = msgspec.json.Decoder(str).decode
encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode

_HEX = rb"[0-9a-fA-F]"
_LONE = re.compile(rb"\\u[dD][89a-fA-F]%b{2}" % _HEX)
# Text without a lone surrogate: the second half of a pair follows the first.
_WELL_ESCAPED = re.compile(
    rb"(?:[^\\]++|\\u[dD][89abAB]%b{2}\\u[dD][c-fC-F]%b{2}|(?!%b)\\.)*+" % (_HEX, _HEX, _LONE.pattern),
    re.DOTALL,
)
_PAIR = len(rb"\ud83d\ude00")
_BYTE = re.compile(r"\(byte (\d+)\)")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_UP_AND_DOWN = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_UP = b"\x01"
_BRACKETS_AT_ONCE = 192
"""In text whose brackets pair, half of them open one: so for most data counting shows that it is shallow."""


class ArrayText(NamedTuple):
    """The text of an array, which may hold very many values."""

    text: bytes


class ObjectText(NamedTuple):
    """The text of an object, which may have very many members."""

    text: bytes


def is_utf8(data: bytes) -> bool:
    """Whether these bytes are UTF-8 (RFC 3629: no surrogates)."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def has_few_brackets(text: bytes) -> bool:
    """Whether this text has too few brackets to be too deep: quick, and true of most data."""
    return len(text) <= 2 * DEPTH_MAX or text.count(b"[") + text.count(b"{") <= DEPTH_MAX


def too_deep(text: bytes) -> Steps[bool]:
    """Whether valid JSON nests deeper than `DEPTH_MAX`; try `has_few_brackets` first."""
    at = depth = in_string = 0
    while at < len(text):
        block = text[at : at + AT_ONCE]
        if (len(block) - len(block.rstrip(b"\\"))) % 2:
            # Not between a backslash and what it escapes.
            block = text[at : at + AT_ONCE + 1]
        at += len(block)
        if b"\\" in block:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = block.split(b'"')
        outside_strings = b"".join(parts[in_string::2])
        in_string ^= (len(parts) - 1) % 2
        brackets = outside_strings.translate(_UP_AND_DOWN, _NOT_BRACKETS)
        for start in range(0, len(brackets), _BRACKETS_AT_ONCE):
            some = brackets[start : start + _BRACKETS_AT_ONCE]
            up = some.count(_UP)
            if depth + up > DEPTH_MAX and (
                _UP * (DEPTH_MAX + 1) in some
                or max(accumulate(memoryview(some).cast("b"), initial=depth)) > DEPTH_MAX
            ):
                return True
            depth += 2 * up - len(some)
        yield
    return False


def is_json(text: bytes | Raw) -> bool:
    """Whether this is JSON in UTF-8 that the decoder can read; if not, `problem` says why."""
    try:
        bytes(text).decode()
        decode_raw(text)
    except BAD_JSON:
        return False
    return True


def check(text: bytes) -> Steps[None]:
    """Raise InvalidRequest unless this is JSON in UTF-8."""
    if is_json(text):
        return
    yield
    wrong = yield from problem(text)
    if wrong is not None:
        raise InvalidRequest(wrong[0], "", wrong[1])


def problem(text: bytes) -> Steps[tuple[Reason, str] | None]:
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
        said = str(error)
    else:
        return None
    yield
    return Reason.NOT_JSON, (yield from _syntax(text, said))


def blame(text: bytes, parts: Mapping[str, bytes | Raw], path: str) -> Steps[None]:
    """Raise InvalidRequest for text that is not JSON, and name the one of its `parts` that is at fault."""
    for name, part in parts.items():
        if is_json(part):
            continue
        yield
        inner = yield from problem(bytes(part))
        if inner is not None:
            raise InvalidRequest(inner[0], f"{path}.{shown(name)}" if path else shown(name), inner[1])
    yield
    wrong = yield from problem(text)
    if wrong is not None:
        raise InvalidRequest(wrong[0], path, wrong[1])


def shallow_value(text: bytes) -> object:
    """The value of checked text. Arrays and objects stay text, as `ArrayText` and `ObjectText`.

    Takes no longer than to skip the text. A number that Python can't hold becomes infinity.
    """
    first = text[:1]
    if first == b"[":
        return ArrayText(text)
    if first == b"{":
        return ObjectText(text)
    try:
        return _decode_any(text)
    except msgspec.MsgspecError:
        return math.inf


def shown(name: str) -> str:
    """A name from outside for display: short, and without characters that a terminal or a table can't show."""
    if len(name) > 64:
        name = name[:64] + "..."
    return name if name.isprintable() and name else repr(name)


def _syntax(text: bytes, said: str) -> Steps[str]:
    """A sentence for a syntax error that the decoder reported as `said`."""
    if text.startswith(b"\xef\xbb\xbf"):
        return "not JSON: it begins with a byte order mark"
    # The decoder does not always report this, nor where.
    lone = yield from _lone_surrogate(text)
    if lone:
        return f"a lone surrogate ({lone}) stands for no character"
    at = _BYTE.search(said)
    if at is None:
        return "not JSON: it ends too early"
    if text[int(at[1]) :].lstrip(b"-").startswith((b"NaN", b"Infinity")):
        return f"NaN and Infinity are not JSON (byte {at[1]})"
    return f"not JSON: {said.removeprefix('JSON is malformed: ')}"


def _lone_surrogate(text: bytes) -> Steps[str]:
    """The first escape of half a character (section 7), or an empty string."""
    at = 0 if b"\\u" in text else len(text)
    while at < len(text):
        stop = min(at + AT_ONCE, len(text))
        if stop < len(text):
            # Not inside an escape.
            last = text.rfind(b"\\", stop - _PAIR, stop)
            stop = stop if last < 0 else last
        well = _WELL_ESCAPED.match(text, at, stop)
        at = well.end() if well else at
        if at + _PAIR <= stop or stop == len(text):
            lone = _LONE.match(text, at)
            return lone[0].decode() if lone else ""
        # Either the end of the block, or the first half of a pair that the block cuts.
        yield
    return ""
