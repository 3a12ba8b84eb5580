"""The routing key of a push request, `user.<id>`: requests with the same one stay in order, also over partitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from bridge.core.contract.jsontext import BAD_JSON

KEY_BYTES_MAX: Final = 255
"""Of a routing key (AMQP 0-9-1, shortstr)."""
NOBODYS: Final = b"bridge.producer"
"""For what is not for one user only."""


class _To(msgspec.Struct):
    user: object = None


class _Request(msgspec.Struct):
    to: _To | None = None


_REQUESTS: Final = msgspec.json.Decoder(_Request | list[_Request])


def key_of(user: str) -> bytes:
    """The routing key for a push to a user: as much of it as there is room for."""
    return f"user.{user}".encode("utf-8", "surrogateescape")[:KEY_BYTES_MAX]


def key_of_request(body: bytes, headers: Mapping[str, object]) -> bytes:
    """The routing key for a message: of its user, if it is for one. A body that can't be read is nobody's."""
    named = headers.get("x-push-user")
    if isinstance(named, str):
        return key_of(named)
    try:
        read = _REQUESTS.decode(body)
    except BAD_JSON:
        return NOBODYS
    requests = read if isinstance(read, list) else [read]
    users = {one.to.user if one.to is not None and isinstance(one.to.user, str) else "" for one in requests}
    return key_of(users.pop()) if len(users) == 1 and "" not in users else NOBODYS
