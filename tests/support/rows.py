"""Rows and dead letters for tests that only care about a field or two of them."""

from __future__ import annotations

from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Properties
from bridge.core.model.rows import DeadLetter, Row, RowKey


def row(
    push_id: str = "p1", outcome: Outcome = Outcome.RECEIVED, event: str = "order.paid", **more: object
) -> Row:
    made: dict[str, object] = {
        "key": RowKey("", push_id, "u1"),
        "outcome": outcome,
        "reason": Reason.PONG,
        "node": "n",
        "boot": "b",
        "published_at": 1_800_000_000.0,
        "taken_at": 1_800_000_000.5,
        "event": event,
    }
    return Row(**(made | more))  # type: ignore[arg-type]


def letter(push_id: str = "p1", **more: object) -> DeadLetter:
    made: dict[str, object] = {
        "push_id": push_id,
        "reason": Reason.INVALID,
        "detail": "to.user: expected a string",
        "body": b'{"to":{"user":1}}',
        "properties": Properties(message_id="m1", headers={"x-own": "kept"}),
    }
    return DeadLetter(**(made | more))  # type: ignore[arg-type]
