"""Kinds of values, in words for people, and ids that the bridge makes."""

from __future__ import annotations

import math
import os
from typing import TypeGuard

from bridge.core.contract.jsontext import ArrayText, ObjectText
from bridge.core.model.pushes import Timestamp


def kind(value: object) -> str:
    """The kind of a wrong value, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return "a string"
        case Timestamp():
            return "a timestamp"
        case float() if not math.isfinite(value):
            return "no finite number"
        case int() | float():
            return "a negative number" if value < 0 else "a number"
        case list() | ArrayText():
            return "a list"
        case dict() | ObjectText():
            return "an object"
        case _:
            return type(value).__name__


def uuid7(at: float) -> str:
    """A UUIDv7 (RFC 9562 section 5.7) for the moment `at`, wall-clock seconds."""
    milliseconds = min(max(int(at * 1000), 0), (1 << 48) - 1)
    bits = milliseconds << 80 | int.from_bytes(os.urandom(10), "big")
    bits = bits & ~(0xF << 76) | 0x7 << 76
    bits = bits & ~(0x3 << 62) | 0x2 << 62
    digits = f"{bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether this is a finite number; an integer may be too large for a float."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, (bool, Timestamp))
    return is_number and -math.inf < value < math.inf  # type: ignore[operator]
