"""Does a message name a user? Looks into bodies and headers of every form that a publisher may send."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bridge.operator.dead_letters import Letter


def body_names(user: str, body: bytes) -> bool:
    """Whether this body has the user id as a whole JSON string, or, where it is no JSON, as a whole word.

    A body that was cut is no JSON. An id with an escape in it is not found there.
    """
    try:
        return value_names(user, json.loads(body))
    except (ValueError, RecursionError):
        word = re.escape(user.encode("utf-8", "surrogateescape"))
        return re.search(rb"(?<![\w.-])%b(?![\w-])" % word, body) is not None


def value_names(user: str, value: object) -> bool:
    """Whether the user id is among the strings and keys of a JSON value."""
    match value:
        case str():
            return value == user
        case Mapping():
            return any(key == user or value_names(user, inner) for key, inner in value.items())
        case list():
            return any(value_names(user, inner) for inner in value)
        case _:
            return False


def letter_names(user: str, letter: Letter) -> bool:
    """Whether a dead letter names the user, in a header or in its body."""
    return any(_header_names(user, value) for value in letter.headers.values()) or body_names(
        user, letter.body
    )


def _header_names(user: str, value: object) -> bool:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return value_names(user, value)
    if value == user or user in (part.strip() for part in value.split(",")):
        return True
    return value[:1] in "[{" and body_names(user, value.encode("utf-8", "surrogatepass"))


def renamed(value: Any, user: str, name: str) -> Any:
    """A JSON value with another name for the user: in strings and keys that are the id, or `user=` and the id."""
    match value:
        case str():
            if value == user:
                return name
            return f"user={name}" if value == f"user={user}" else value
        case Mapping():
            return {renamed(key, user, name): renamed(inner, user, name) for key, inner in value.items()}
        case list():
            return [renamed(inner, user, name) for inner in value]
        case _:
            return value
