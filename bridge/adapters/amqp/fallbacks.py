"""Make the messages for push.fallback."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.announcing import receipt_headers
from bridge.adapters.amqp.outbox import Message
from bridge.adapters.amqp.topology import FALLBACK
from bridge.core.contract.fallbacks import fallback_body
from bridge.core.errors import BridgeError
from bridge.core.model.rows import DueFallback, RowKey

_ID_BYTES: Final = 16


class FallbacksUnroutable(BridgeError):
    """No queue is bound to push.fallback for the routing keys of some fallbacks: they are published, and nobody has got
    them."""

    def __init__(self, count: int, routing_key: str) -> None:
        self.count = count
        self.routing_key = routing_key
        super().__init__(
            f"{count} fallback(s) reached no queue: none is bound to {FALLBACK} for routing key {routing_key!r}"
            + (" and others" if count > 1 else "")
        )


def fallback_id(key: RowKey) -> str:
    """The message id of the fallback of a row: always the same, however often it is published."""
    named = hashlib.sha256(msgspec.json.encode(key))
    return f"fallback-{named.hexdigest()[: 2 * _ID_BYTES]}"


def fallback_message(fallback: DueFallback, now: float) -> Message:
    """The message of a fallback that is published now (wall-clock seconds)."""
    row = fallback.row
    message_id = fallback_id(row.key)
    properties = encoding.properties(
        content_type="application/json",
        headers=receipt_headers(row.key.tenant, row.traceparent),
        message_id=message_id,
        timestamp=int(now),
        type="push.fallback",
        app_id=row.app_id,
    )
    body = fallback_body(row)
    return Message(FALLBACK, encoding.cut(fallback.routing_key), properties, body, message_id)
