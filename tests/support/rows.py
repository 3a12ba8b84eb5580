"""Rows of the delivery log and dead letters for tests, and what a test asks a store in one go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from bridge.adapters.postgres.store import PostgresStore
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Properties, Recall
from bridge.core.model.rows import DeadLetter, Row, RowKey
from bridge.core.ports.store import (
    RecallPlace,
    Store,
    Written,
)

NOON = 1_800_014_400.0
"""A taken_at with no fraction: what Postgres keeps is what it was given."""
LATER = 4_000_000_000.0
"""A ttl that ends after every clock of the tests."""
PUBLISHED_AT = 1_800_000_000.0
"""When the push of a `finished_row` or a `timed_row` was published."""
EVER = 2**62
"""A position above all."""


def row(push_id: str = "p", user: str = "u", outcome: Outcome = Outcome.RECEIVED, **fields: object) -> Row:
    """A row as the core writes it: `pending`, or ended."""
    pending = outcome is Outcome.PENDING
    made: dict[str, object] = {
        "key": RowKey("", push_id, user),
        "outcome": outcome,
        "reason": Reason.AWAITING_PROOF if pending else Reason.PONG,
        "node": "n1",
        "boot": "b1",
        "published_at": NOON - 1,
        "taken_at": NOON,
        "event": "order.paid",
        "app_id": "shop",
        "written_at": NOON + 0.25,
        "proven_at": None if pending else NOON + 0.5,
        "finished_at": None if pending else NOON + 0.5,
        "sessions": 1,
        "attempts": 1,
        "owed": () if pending else None,
    }
    return Row(**(made | fields))  # type: ignore[arg-type]


_BARE: dict[str, object] = {"app_id": "", "sessions": 0, "attempts": 0, "owed": None}


def finished_row(user: str, outcome: Outcome, reason: Reason, **fields: object) -> Row:
    """A row of push p1 that was finished a second after it was taken, and says nothing of what happened between."""
    made: dict[str, object] = {
        "published_at": PUBLISHED_AT,
        "taken_at": PUBLISHED_AT + 0.5,
        "written_at": None,
        "proven_at": None,
        "finished_at": PUBLISHED_AT + 1.5,
        "reason": reason,
        **_BARE,
    }
    return row("p1", user, outcome, **(made | fields))


def timed_row(
    push_id: str = "p1",
    user: str = "u1",
    outcome: Outcome = Outcome.RECEIVED,
    reason: Reason = Reason.PONG,
    **fields: object,
) -> Row:
    """A row that was taken a millisecond after its push was published, and proven three later."""
    at = PUBLISHED_AT
    proven, pending = outcome in (Outcome.RECEIVED, Outcome.ACKED), outcome is Outcome.PENDING
    made: dict[str, object] = {
        "reason": reason,
        "published_at": at,
        "taken_at": at + 0.001,
        "written_at": at + 0.002 if proven or pending else None,
        "proven_at": at + 0.004 if proven else None,
        "finished_at": None if pending else at + 0.004,
        "event": "message",
        **_BARE,
    }
    return row(push_id, user, outcome, **(made | fields))


def kept_row(push_id: str = "p", user: str = "u", position: int = 1, **fields: object) -> Row:
    """A row of a push with a ttl: `stored`, or as it ended."""
    made: dict[str, object] = {
        "outcome": Outcome.STORED,
        "reason": Reason.NO_SESSION,
        "written_at": None,
        "proven_at": None,
        "finished_at": None,
        "owed": (),
        "payload": b'{"n": 1}',
        "expires_at": LATER,
        "position": position,
    }
    return row(push_id, user, **(made | fields))  # type: ignore[arg-type]


def letter(push_id: str = "p1", **more: object) -> DeadLetter:
    """A dead letter of a request that names no user."""
    made: dict[str, object] = {
        "push_id": push_id,
        "reason": Reason.INVALID,
        "detail": "to.user: expected a string",
        "body": b'{"to":{"user":1}}',
        "properties": Properties(message_id="m1", headers={"x-own": "kept"}),
    }
    return DeadLetter(**(made | more))  # type: ignore[arg-type]


def undated(written: Row) -> Row:
    """A row but for its day, which the store decides."""
    return msgspec.structs.replace(written, day=None)


def ids(rows: Iterable[Row]) -> list[str]:
    """The push ids of these rows."""
    return [r.key.push_id for r in rows]


def light(found: Row) -> Row:
    """A row as a store returns it: its data and its except list stay where they are."""
    return msgspec.structs.replace(found, payload=None, excluded=frozenset())


async def write_rows(dsn: str, *rows: Row) -> None:
    """Write these rows into the log of this database."""
    store = PostgresStore(dsn)
    await store.record(rows)
    await store.close()


async def trimmed(store: Store, users: Sequence[str], pushes: int, payload_bytes: int) -> list[Row]:
    """What a mailbox loses that is measured against these bounds."""
    return list(await store.trim(await store.overfull(users, pushes, payload_bytes), 100))


async def recalled(store: Store, recall: Recall, limit: int = 100) -> list[Written]:
    """All that a recall does, step by step."""
    written: list[Written] = []
    place: RecallPlace | None = RecallPlace()
    while place is not None:
        page = await store.recall(recall, place, limit)
        written += page.written
        place = page.next
    return written
