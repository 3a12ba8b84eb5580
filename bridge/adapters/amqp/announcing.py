"""Make the messages of receipts: the event on push.outcomes, and the properties of every receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final, TypeVar, cast

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.grammar import SHORT_BYTES_MAX
from bridge.adapters.amqp.outbox import Message
from bridge.adapters.amqp.topology import OUTCOMES
from bridge.core.contract.receipts import receipt_bodies
from bridge.core.model.outcomes import Outcome
from bridge.core.model.rows import Row, columns_of
from bridge.core.model.tuples import new_tuple

_SURE_CHARS: Final = SHORT_BYTES_MAX // 4
"""A text with so many characters fits into a short string, whatever they are."""
_AT_ONCE: Final = 500
"""Rows whose events are made together, at most."""

T = TypeVar("T")


def outcome_events(rows: Sequence[Row]) -> Iterator[Message]:
    """What is announced on push.outcomes for these rows, in their order."""
    for at in range(0, len(rows), _AT_ONCE):
        some = rows[at : at + _AT_ONCE]
        c = columns_of(some)
        to: tuple[Outcome, str] | None = None
        routing_key = b""
        for key, outcome, event, traceparent, body in zip(
            c.key, c.outcome, c.event, c.traceparent, receipt_bodies(c), strict=True
        ):
            tenant, push_id, _ = key
            if to is None or outcome is not to[0] or event != to[1]:
                to = outcome, event
                routing_key = outcome_key(outcome, event)
            properties = receipt_properties(push_id, receipt_headers(tenant, traceparent), "")
            yield cast(Message, new_tuple(Message, (OUTCOMES, routing_key, properties, body, "")))


@lru_cache(maxsize=4096)
def outcome_key(outcome: Outcome, event: str) -> bytes:
    """The routing key of a receipt on push.outcomes: `<outcome>.<event>`, cut at 255 bytes as a key must be."""
    return encoding.cut(f"{outcome.value}.{event}")


@lru_cache(maxsize=256)
def _tenant_header(tenant: str) -> bytes:
    return encoding.table({"tenant": tenant})[0]


def receipt_headers(tenant: str, traceparent: str) -> bytes:
    if traceparent:
        given = {"traceparent": traceparent}
        return encoding.table({"tenant": tenant, **given} if tenant else given)[0]
    return _tenant_header(tenant) if tenant else b""


def receipt_properties(push_id: str, headers: bytes, correlation_id: str) -> bytes:
    if not correlation_id and len(push_id) <= _SURE_CHARS:
        before, after = _around_message_id(headers)
        return before + encoding.short_string(push_id) + after
    return encoding.properties(
        content_type="application/json",
        headers=headers,
        correlation_id=correlation_id,
        # The body has the whole id. A cut id could be that of another push, too.
        message_id=push_id if encoding.fits(push_id) else "",
        type="push.outcome",
    )


@lru_cache(maxsize=256)
def _around_message_id(headers: bytes) -> tuple[bytes, bytes]:
    """The properties of a receipt without correlation id: what comes before its message id, and after."""
    whole = encoding.properties(
        content_type="application/json", headers=headers, message_id="?", type="push.outcome"
    )
    before, _, after = whole.rpartition(encoding.short_string("?"))
    return before, after


def one_write(
    things: Sequence[T], at: int, encode: Callable[[T], Sequence[Message]], most_bytes: int
) -> tuple[list[Message], list[int], int]:
    """The messages of the things from `at` on, up to about `most_bytes` of bodies: the messages, for each the place of
    its thing, and the place of the first thing that is left."""
    messages: list[Message] = []
    owners: list[int] = []
    size = 0
    while at < len(things) and size < most_bytes:
        for message in encode(things[at]):
            messages.append(message)
            owners.append(at)
            size += len(message.body)
        at += 1
    return messages, owners, at
