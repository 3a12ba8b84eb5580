"""What is kept of a rejected request, and the id of its row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec
from msgspec import Raw

from bridge.core.contract.fields import is_id
from bridge.core.contract.jsontext import BAD_JSON, decode_str
from bridge.core.contract.stepping import PARTS_AT_ONCE, Steps
from bridge.core.ports.broker import Arrival

# What a broker adds, removes or changes when it redelivers or dead-letters a message. It also removes the property
# `expiration`.
BROKER_HEADERS = (
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
    "x-acquired-count",
    "x-opt-",
)
ROUTING_HEADERS = frozenset(("CC", "BCC"))

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_CANNOT_ENCODE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


class LastResort:
    """Ids for rejected requests of one message that have no usable id: the same at each redelivery.

    A hash of the bytes, their place and the message's properties, without what changes at a redelivery.
    """

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self._common: hashlib._Hash | None = None

    def id(self, body: bytes, index: int | None, fallback_id: str) -> Steps[str]:
        """The fallback id where it is usable, else one for these bytes at this place in the message."""
        if is_id(fallback_id):
            return fallback_id
        if self._common is None:
            self._common = yield from self._hash_of_message()
        digest = self._common.copy()
        digest.update(b"%b:" % str(index).encode())
        digest.update(body)
        return f"sha256-{digest.hexdigest()}"

    def _hash_of_message(self) -> Steps[hashlib._Hash]:
        p = self._arrival.properties
        headers: dict[str, object] = {}
        for count, (name, value) in enumerate(p.headers.items(), 1):
            if not name.startswith(BROKER_HEADERS) and name not in ROUTING_HEADERS:
                headers[name] = value
            if count % PARTS_AT_ONCE == 0:
                yield
        facts: tuple[object, ...] = (
            self._arrival.body_size,
            p.message_id,
            p.correlation_id,
            p.reply_to,
            p.app_id,
            p.user_id,
            p.content_type,
            p.content_encoding,
            p.timestamp,
        )
        yield
        digest = hashlib.sha256(repr(facts).encode())
        try:
            digest.update(_encode(headers))
        except _CANNOT_ENCODE:
            digest.update(_encode(sorted((repr(name), _headline(headers[name])) for name in headers)))
        return digest


def strings(members: Mapping[str, bytes | Raw]) -> dict[str, object]:
    """The values that a rejected request keeps, as far as they can be read."""
    found: dict[str, object] = {}
    for name in ("id", "tenant", "event"):
        if name in members:
            try:
                found[name] = decode_str(members[name])
            except BAD_JSON:
                pass
    return found


def usable(values: Mapping[str, object], name: str) -> str:
    """The value or header of this name if it is usable as an id, else an empty string."""
    value = values.get(name)
    return value if isinstance(value, str) and is_id(value) else ""


def _headline(value: object) -> str:
    """A header's value as text, the same each time, also where no encoder takes it."""
    try:
        return repr(value)
    except (RecursionError, ValueError):
        return type(value).__name__
