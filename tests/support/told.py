"""Rows of a delivery log that a story is told of."""

from __future__ import annotations

from bridge.adapters.postgres.store import PostgresStore
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Row, RowKey
from tests.support.rows import row

T = 1_800_000_000.0


async def log(dsn: str, *rows: Row) -> None:
    store = PostgresStore(dsn)
    await store.record(rows)
    await store.close()


def to(user: str, outcome: Outcome, reason: Reason, **more: object) -> Row:
    facts: dict[str, object] = {"key": RowKey("", "p1", user), "reason": reason, "finished_at": T + 1.5}
    return row("p1", outcome, **(facts | more))  # type: ignore[arg-type]
