"""Check the fields of a push request v1 one by one, with a sentence for people about a wrong one.

Fields are named by their path in the JSON body (`to.user`), also where they came as headers. A wrong value is never
shown, only its kind: it may be a secret, or a megabyte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from bridge.core.contract.kinds import is_finite
from bridge.core.contract.kinds import kind as kind
from bridge.core.contract.kinds import uuid7 as uuid7
from bridge.core.errors import InvalidRequest
from bridge.core.model.outcomes import CONFIRM, Proof, Reason
from bridge.core.model.pushes import (
    ID_MAX,
    ROUTING_KEY_BYTES,
    Encoding,
    Fallback,
    PushRequest,
    Target,
    Timestamp,
    ToAll,
    ToSession,
    ToTopic,
    ToUser,
    ToUsers,
)

TARGETS: Final = ("user", "users", "session", "topic", "all")
"""The targets, of which `to` has exactly one."""
_TARGET_FIELDS: Final = tuple((word, f"to.{word}") for word in TARGETS)
TO_FIELDS: Final = frozenset((*TARGETS, "except"))
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
        "devices",
        "deliver_at",
        "fallback",
        "retain",
        "tenant",
        "meta",
    )
)
_NAMES: Final = ("to.user", "to.session", "to.topic", "id", "event", "tenant", "collapse_key")
"""Fields that are ids."""
FALLBACK_FIELDS: Final = frozenset(("after", "routing_key"))
"""The members of `fallback`."""
_FALLBACK: Final = ("fallback", "fallback.after", "fallback.routing_key")
DEVICES: Final[Mapping[str, bool]] = {"all": False, "first": True}
"""The words of `devices`: whether the first ack takes the push back from the user's other sessions."""
ACK_WITHIN_MAX: Final = 3600.0
"""Seconds that a push may wait for its ack."""
MILLISECONDS_FROM: Final = 100_000_000_000
"""A time as large as this, the year 5138 in seconds, is meant in milliseconds."""

TOPIC: Final = "words with dots between them, without *, #, { and }"
"""What the name of a topic is, for people."""

Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_MAX)]
"""An id as far as a type can say it: see `is_id`."""
_CONTROL_CHARS = 1024
"""How many characters of a string that is too long are searched for control characters."""

# C0, DEL and C1 (the category Cc of Unicode), and surrogates, which no UTF-8 can hold.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def has_no_controls(text: str) -> bool:
    """Whether this text may be part of an id."""
    return text.isprintable() or not _CONTROL.search(text)


def is_id(text: str) -> bool:
    """Whether this may be an id, user, session, tenant, event or collapse key."""
    return 0 < len(text) <= ID_MAX and has_no_controls(text)


def is_routing_key(key: str) -> bool:
    """Whether a message may be published with this routing key: it is short enough for AMQP, and can be read."""
    # In this order: no more than the characters of a key are encoded, and surrogates can't be.
    return (
        0 < len(key) <= ROUTING_KEY_BYTES and has_no_controls(key) and len(key.encode()) <= ROUTING_KEY_BYTES
    )


_NO_TOPIC = re.compile(r"(?:^|\.)(?:\.|$)|[*#{}]")


def is_topic(name: str) -> bool:
    """Whether this id is the name of a topic: words with dots between them, none with a character of patterns."""
    return not _NO_TOPIC.search(name)


def check_target(values: Mapping[str, object], path: Callable[[str], str]) -> str:
    """The one of `TARGETS` that is given; raises InvalidRequest."""
    given = [word for word, field in _TARGET_FIELDS if field in values]
    if len(given) != 1:
        raise InvalidRequest(
            Reason.INVALID,
            path("to"),
            f"expected one of {', '.join(TARGETS)}, got {' and '.join(given) or 'none'}",
        )
    return given[0]


def problems(
    values: Mapping[str, Any],
    path: Callable[[str], str],
    fallback_id: str,
    published_at: float,
    max_ttl: float,
) -> Iterator[InvalidRequest]:
    """All that is wrong with these values, one after the other. `build` stops at the first."""

    # Wrong requests come by the thousand, too: so right values cost no exception and no closure.
    if len([word for word, field in _TARGET_FIELDS if field in values]) != 1:
        yield from raised(check_target, values, path)
    for field in _NAMES:
        if field in values:
            value = values[field]
            if not (isinstance(value, str) and is_id(value)):
                yield from raised(checked_id, value, path(field))
    topic = values.get("to.topic")
    if isinstance(topic, str) and is_id(topic) and not is_topic(topic):
        yield from raised(checked_topic, topic, path("to.topic"))
    if values.get("to.all", True) is not True:
        yield from raised(_check_all, values["to.all"], path("to.all"))
    if fallback_id and "id" not in values and not is_id(fallback_id):
        yield from raised(checked_id, fallback_id, "property message_id")
    confirm = values.get("confirm", "received")
    if confirm not in ("received", "written", "acked"):
        yield from raised(_confirm, confirm, path("confirm"))
    if "ttl" in values:
        yield from raised(_ttl, values["ttl"], path("ttl"), max_ttl)
    if "deliver_at" in values:
        yield from raised(_deliver_at, values["deliver_at"], path("deliver_at"), published_at, max_ttl)
    if "ack_within" in values:
        wanted = Proof.RECEIVED if confirm in ("received", "written") else Proof.ACKED
        yield from raised(_ack_within, values["ack_within"], path("ack_within"), wanted)
    if "devices" in values:
        wanted = Proof.RECEIVED if confirm in ("received", "written") else Proof.ACKED
        yield from raised(_first_device, values["devices"], path("devices"), wanted)
    if "retain" in values:
        yield from raised(_retain, values["retain"], path("retain"), "to.topic" in values, max_ttl)
    if any(field in values for field in _FALLBACK):
        yield from raised(_after, values, path, max_ttl)
        yield from raised(_routing_key, values, path)


def raised(check: Callable[..., object], *arguments: object) -> Sequence[InvalidRequest]:
    """The error that this check raises for these arguments, if any."""
    try:
        check(*arguments)
    except InvalidRequest as error:
        return (error,)
    return ()


def build(
    values: Mapping[str, Any],
    path: Callable[[str], str],
    data: bytes,
    encoding: Encoding,
    fallback_id: str,
    published_at: float,
    max_ttl: float,
) -> PushRequest:
    """Check every value and build the request; raises InvalidRequest.

    `lists.read_lists` has read the lists among `values`. `path` turns a field into the name that people know,
    `fallback_id` is the AMQP `message_id` or its substitute, or empty, and `max_ttl` is that of `terms.Limits`.
    """
    word_of_target = check_target(values, path)
    for field in _NAMES:
        if field in values:
            value = values[field]
            if not (isinstance(value, str) and is_id(value)):
                checked_id(value, path(field))
    target: Target
    match word_of_target:
        case "user":
            target = ToUser(values["to.user"])
        case "session":
            target = ToSession(values["to.session"])
        case "users":
            target = ToUsers(values["to.users"])
        case "topic":
            target = ToTopic(checked_topic(values["to.topic"], path("to.topic")))
        case _:
            _check_all(values["to.all"], path("to.all"))
            target = ToAll()
    push_id = values.get("id") or (fallback_id and checked_id(fallback_id, "property message_id"))
    confirm = _confirm(values.get("confirm", "received"), path("confirm"))
    return PushRequest(
        push_id or uuid7(published_at),
        target,
        data,
        values.get("event", "message"),
        encoding,
        confirm,
        frozenset(values.get("to.except", ())),
        values.get("tenant", ""),
        values.get("meta", b""),
        not push_id,
        _ttl(values["ttl"], path("ttl"), max_ttl) if "ttl" in values else 0.0,
        values.get("collapse_key", ""),
        _ack_within(values["ack_within"], path("ack_within"), confirm) if "ack_within" in values else 0.0,
        "devices" in values and _first_device(values["devices"], path("devices"), confirm),
        "retain" in values
        and _retain(values["retain"], path("retain"), isinstance(target, ToTopic), max_ttl),
        _fallback(values, path, max_ttl),
        _deliver_at(values["deliver_at"], path("deliver_at"), published_at, max_ttl)
        if "deliver_at" in values
        else 0.0,
    )


def checked_id(value: object, path: str) -> str:
    """Return the value if it is usable as an id, else raise InvalidRequest."""
    if isinstance(value, str):
        if is_id(value):
            return value
        got = f"{len(value)} characters"
        control = _CONTROL.search(value, 0, _CONTROL_CHARS)
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


def checked_topic(value: object, path: str) -> str:
    """Return the value if it is the name of a topic, else raise InvalidRequest."""
    name = checked_id(value, path)
    if not is_topic(name):
        raise InvalidRequest(Reason.INVALID, path, f"expected {TOPIC}")
    return name


def _check_all(value: object, path: str) -> None:
    if value is not True:
        raise InvalidRequest(Reason.INVALID, path, f"expected true, got {kind(value)}")


def _confirm(word: object, path: str) -> Proof:
    confirm = CONFIRM.get(word) if isinstance(word, str) else None
    if confirm is None:
        got = "another string" if isinstance(word, str) else kind(word)
        raise InvalidRequest(Reason.INVALID, path, f"expected one of {', '.join(CONFIRM)}, got {got}")
    return confirm


_STORES_NOTHING = (
    "since it stores no data: BRIDGE_DELIVERY_LOG is without postgres, or BRIDGE_PAYLOAD is none"
)
_KEEPS_NOTHING = f"this bridge keeps no pushes, {_STORES_NOTHING}"


def _retain(value: object, path: str, to_topic: bool, max_ttl: float) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(Reason.INVALID, path, f"expected true or false, got {kind(value)}")
    if value and not to_topic:
        raise InvalidRequest(
            Reason.INVALID, path, "expected true only beside to.topic: only topics have last values"
        )
    if value and max_ttl <= 0:
        raise InvalidRequest(Reason.UNSUPPORTED, path, f"{_KEEPS_NOTHING}; leave retain out")
    return value


def _ttl(value: object, path: str, max_ttl: float) -> float:
    if not is_finite(value) or value < 0:
        raise InvalidRequest(Reason.INVALID, path, f"expected seconds, 0 or more, got {kind(value)}")
    if value > 0 >= max_ttl:
        raise InvalidRequest(Reason.UNSUPPORTED, path, f"{_KEEPS_NOTHING}; leave ttl out, or say 0")
    if value > max_ttl:
        raise InvalidRequest(
            Reason.INVALID, path, f"expected at most {max_ttl:.15g} seconds (BRIDGE_RETENTION_DAYS), got more"
        )
    return float(value)


def _fallback(values: Mapping[str, Any], path: Callable[[str], str], max_ttl: float) -> Fallback | None:
    if not any(field in values for field in _FALLBACK):
        return None
    return Fallback(_after(values, path, max_ttl), _routing_key(values, path))


def _after(values: Mapping[str, Any], path: Callable[[str], str], max_ttl: float) -> float:
    value, where = _needed(values, "fallback.after", path)
    if max_ttl <= 0:
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            where,
            f"this bridge has no fallbacks, {_STORES_NOTHING}",
        )
    if not is_finite(value) or not 0 < value <= max_ttl:
        raise InvalidRequest(
            Reason.INVALID,
            where,
            f"expected seconds, more than 0 and at most {max_ttl:.15g} (BRIDGE_RETENTION_DAYS), got {kind(value)}",
        )
    return float(value)


def _routing_key(values: Mapping[str, Any], path: Callable[[str], str]) -> str:
    value, where = _needed(values, "fallback.routing_key", path)
    if isinstance(value, str) and is_routing_key(value):
        return value
    raise InvalidRequest(
        Reason.INVALID,
        where,
        f"expected a string of 1 to {ROUTING_KEY_BYTES} bytes without control characters, got "
        + ("another string" if isinstance(value, str) else kind(value)),
    )


def _needed(values: Mapping[str, Any], field: str, path: Callable[[str], str]) -> tuple[object, str]:
    if field not in values:
        raise InvalidRequest(Reason.INVALID, path(field), "this field is required")
    return values[field], path(field)


def _deliver_at(value: object, path: str, published_at: float, max_ttl: float) -> float:
    """The bound counts from the publication, so that a message which comes again is judged alike. `published_at` 0:
    that is not known, and no time is too far ahead."""
    if isinstance(value, Timestamp):  # AMQP 0-9-1 4.2.5.4: in seconds
        value = int(value)
    if not is_finite(value) or value <= 0:
        raise InvalidRequest(Reason.INVALID, path, f"expected seconds since 1970, got {kind(value)}")
    if max_ttl <= 0:
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            path,
            f"this bridge schedules no pushes, {_STORES_NOTHING}; leave deliver_at out",
        )
    if published_at and value > published_at + max_ttl:
        hint = ": these look like milliseconds" if value >= MILLISECONDS_FROM else ""
        raise InvalidRequest(
            Reason.INVALID,
            path,
            f"expected a time at most {max_ttl:.15g} seconds after its publication (BRIDGE_RETENTION_DAYS),"
            f" got a later one{hint}",
        )
    return float(value)


def _ack_within(value: object, path: str, confirm: Proof) -> float:
    if not is_finite(value) or not 0 < value <= ACK_WITHIN_MAX:
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


def _first_device(word: object, path: str, confirm: Proof) -> bool:
    first = DEVICES.get(word) if isinstance(word, str) else None
    if first is None:
        got = "another string" if isinstance(word, str) else kind(word)
        raise InvalidRequest(Reason.INVALID, path, f"expected one of {', '.join(DEVICES)}, got {got}")
    if first and confirm is not Proof.ACKED:
        raise InvalidRequest(
            Reason.INVALID, path, "expected first only beside confirm acked: nothing else waits for an ack"
        )
    return first
