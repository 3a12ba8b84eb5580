"""The fields of a push request v1, checked one by one, with a sentence for people about the first wrong one.

Fields are named by their path in the JSON body (`to.user`), also where they came as headers. Wrong values
are never shown, only what they are: they may be secrets, or a megabyte.
"""

from __future__ import annotations

import math
import os
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Final, TypeGuard

from bridge.errors import InvalidRequest
from bridge.jsontext import shown
from bridge.model import (
    CONFIRM,
    ID_MAX,
    META_KEY_CHARS,
    META_KEYS_MAX,
    META_VALUE_CHARS,
    USERS_MAX,
    Encoding,
    Proof,
    PushRequest,
    Reason,
    Target,
    ToAll,
    ToSession,
    ToUser,
    ToUsers,
)

TARGETS: Final = ("user", "users", "session", "all")
"""What `to` holds exactly one of."""
TO_FIELDS: Final = frozenset((*TARGETS, "topic", "except"))
FIELDS: Final = frozenset(
    (
        "id",
        "to",
        "event",
        "data",
        "ttl",
        "confirm",
        "ack_within",
        "collapse_key",
        "fallback",
        "tenant",
        "meta",
    )
)
LATER: Final[Mapping[str, str]] = {
    "to.topic": "topics",
    "fallback": "a fallback to another channel",
}
"""Fields of the contract whose feature this version does not have."""
ACK_WITHIN_MAX: Final = 3600.0
"""Seconds that a push may wait for its ack."""

# C0, DEL and C1 (the category Cc of Unicode), and surrogates, which no UTF-8 can hold.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Postgres' jsonb takes no U+0000.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def has_no_controls(text: str) -> bool:
    """Whether this text may be part of an id."""
    return text.isprintable() or not _CONTROL.search(text)


def is_id(text: str) -> bool:
    """Whether this may be an id, user, session, tenant, event or collapse key."""
    return 0 < len(text) <= ID_MAX and has_no_controls(text)


def build(
    values: Mapping[str, object],
    path: Callable[[str], str],
    data: bytes,
    encoding: Encoding,
    meta: bytes,
    fallback_id: str,
    taken_at: float,
    max_ttl: float,
) -> PushRequest:
    """Check every value and build the request; raises InvalidRequest.

    `path` turns a field into what people know it as, `meta` is the JSON of the value of that name,
    `fallback_id` the AMQP `message_id` or what stands for it, or empty, and `max_ttl` that of
    `decoding.Limits`.
    """
    for field, feature in LATER.items():
        if field in values:
            raise InvalidRequest(Reason.UNSUPPORTED, path(field), f"this version does not have {feature}")
    given = [name for name in TARGETS if f"to.{name}" in values]
    if len(given) != 1:
        raise InvalidRequest(
            Reason.INVALID,
            path("to"),
            f"expected one of {', '.join(TARGETS)}, got {' and '.join(given) or 'none'}",
        )
    target = _target(given[0], values[f"to.{given[0]}"], path(f"to.{given[0]}"))
    excluded: frozenset[str] = frozenset()
    if "to.except" in values:
        excluded = frozenset(_ids(values["to.except"], path("to.except"), at_least=0))
    push_id = ""
    if "id" in values:
        push_id = checked_id(values["id"], path("id"))
    elif fallback_id:
        push_id = checked_id(fallback_id, "property message_id")
    event = checked_id(values["event"], path("event")) if "event" in values else "message"
    tenant = checked_id(values["tenant"], path("tenant")) if "tenant" in values else ""
    word = values.get("confirm", "received")
    confirm = CONFIRM.get(word) if isinstance(word, str) else None
    if confirm is None:
        got = "another string" if isinstance(word, str) else kind(word)
        raise InvalidRequest(
            Reason.INVALID, path("confirm"), f"expected one of {', '.join(CONFIRM)}, got {got}"
        )
    if "meta" in values:
        check_meta(values["meta"], path("meta"))
    ttl = _ttl(values["ttl"], path("ttl"), max_ttl) if "ttl" in values else 0.0
    collapse_key = ""
    if "collapse_key" in values:
        collapse_key = checked_id(values["collapse_key"], path("collapse_key"))
    ack_within = 0.0
    if "ack_within" in values:
        ack_within = _ack_within(values["ack_within"], path("ack_within"), confirm)
    return PushRequest(
        push_id or uuid7(taken_at),
        target,
        data,
        event,
        encoding,
        confirm,
        excluded,
        tenant,
        meta,
        not push_id,
        ttl,
        collapse_key,
        ack_within,
    )


def checked_id(value: object, path: str) -> str:
    """The value where it is usable as an id; raises InvalidRequest."""
    if isinstance(value, str):
        if is_id(value):
            return value
        got = f"{len(value)} characters"
        control = _CONTROL.search(value)
        if control:
            # In a property of AMQP a lone surrogate stands for such a byte; JSON with one was refused before.
            bad = "a byte that is not UTF-8" if control[0] >= "\ud800" else f"U+{ord(control[0]):04X}"
            got = f"{bad} at position {control.start()}"
    else:
        got = kind(value)
    raise InvalidRequest(
        Reason.INVALID,
        path,
        f"expected a string of 1 to {ID_MAX} characters without control characters, got {got}",
    )


def check_meta(value: object, path: str) -> None:
    """Raise InvalidRequest unless this is an object of at most 16 short strings."""
    if not isinstance(value, dict):
        raise InvalidRequest(Reason.INVALID, path, f"expected an object, got {kind(value)}")
    if len(value) > META_KEYS_MAX:
        raise InvalidRequest(Reason.INVALID, path, f"expected at most {META_KEYS_MAX} keys, got {len(value)}")
    for key, text in value.items():
        if not isinstance(key, str) or len(key) > META_KEY_CHARS or _UNSTORABLE.search(key):
            raise InvalidRequest(
                Reason.INVALID,
                f"{path}.{shown(str(key))}",
                f"expected a key of at most {META_KEY_CHARS} characters, none of them U+0000",
            )
        if not isinstance(text, str) or len(text) > META_VALUE_CHARS or _UNSTORABLE.search(text):
            got = f"{len(text)} characters" if isinstance(text, str) else kind(text)
            raise InvalidRequest(
                Reason.INVALID,
                f"{path}.{shown(key)}",
                f"expected a string of at most {META_VALUE_CHARS} characters, none of them U+0000, got {got}",
            )


def kind(value: object) -> str:
    """What a wrong value is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return "a string"
        case float() if not math.isfinite(value):
            return "no finite number"
        case int() | float():
            return "a negative number" if value < 0 else "a number"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return type(value).__name__


def uuid7(at: float) -> str:
    """A UUIDv7 (RFC 9562 section 5.7) for the moment `at`, wall-clock seconds."""
    milliseconds = min(max(int(at * 1000), 0), (1 << 48) - 1)
    bits = milliseconds << 80 | int.from_bytes(os.urandom(10), "big")
    bits = bits & ~(0xF << 76) | 0x7 << 76
    bits = bits & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=bits))


def _target(name: str, value: object, path: str) -> Target:
    if name == "user":
        return ToUser(checked_id(value, path))
    if name == "session":
        return ToSession(checked_id(value, path))
    if name == "users":
        return ToUsers(_ids(value, path, at_least=1))
    if value is not True:
        raise InvalidRequest(Reason.INVALID, path, f"expected true, got {kind(value)}")
    return ToAll()


def _ids(value: object, path: str, at_least: int) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidRequest(Reason.INVALID, path, f"expected a list of strings, got {kind(value)}")
    if len(value) < at_least:
        raise InvalidRequest(Reason.INVALID, path, "expected at least one, got an empty list")
    ids = tuple(dict.fromkeys(checked_id(item, f"{path}[{index}]") for index, item in enumerate(value)))
    if len(ids) > USERS_MAX:
        raise InvalidRequest(Reason.TOO_MANY, path, f"expected at most {USERS_MAX}, got {len(ids)}")
    return ids


def _ttl(value: object, path: str, max_ttl: float) -> float:
    if not _is_finite(value) or value < 0:
        raise InvalidRequest(Reason.INVALID, path, f"expected seconds, 0 or more, got {kind(value)}")
    if value > 0 >= max_ttl:
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            path,
            "this bridge keeps no pushes, since BRIDGE_DELIVERY_LOG names no database to keep them in:"
            " leave ttl out, or say 0",
        )
    if value > max_ttl:
        raise InvalidRequest(
            Reason.INVALID, path, f"expected at most {max_ttl:.15g} seconds (BRIDGE_RETENTION_DAYS), got more"
        )
    return float(value)


def _ack_within(value: object, path: str, confirm: Proof) -> float:
    if not _is_finite(value) or not 0 < value <= ACK_WITHIN_MAX:
        raise InvalidRequest(
            Reason.INVALID,
            path,
            f"expected seconds, more than 0 and at most {ACK_WITHIN_MAX:g}, got {kind(value)}",
        )
    if confirm is not Proof.ACKED:
        raise InvalidRequest(
            Reason.INVALID, path, "expected only beside confirm acked: nothing else waits for an ack"
        )
    return float(value)


def _is_finite(value: object) -> TypeGuard[int | float]:
    """Whether this is a number that a clock could count; an integer may be too large for a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf
