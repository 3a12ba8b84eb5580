"""A delivery log that keeps the rows in an SQLite file: BRIDGE_DELIVERY_LOG=postgres,sqlite_log:make."""

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from bridge.plugins import DeliveryLog, Row


class SqliteLog:
    """A context manager: opened before the service starts, closed after it has drained."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def __aenter__(self) -> Self:
        self._db = await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    async def record(self, rows: Sequence[Row]) -> None:
        """Durable when it returns, since the ack follows; safe to call again, as happens after a failure."""
        await asyncio.to_thread(self._write, rows)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, check_same_thread=False)
        db.execute(
            "create table if not exists delivery (tenant, push_id, user_id, outcome, reason, finished_at,"
            " primary key (tenant, push_id, user_id))"
        )
        return db

    def _write(self, rows: Sequence[Row]) -> None:
        with self._db:
            self._db.executemany(
                "insert or replace into delivery values (?, ?, ?, ?, ?, ?)",
                [(*row.key, row.outcome.value, row.reason.value, row.finished_at) for row in rows],
            )


def make() -> DeliveryLog:
    """Called once, without arguments: a plug-in reads its own settings."""
    return SqliteLog(os.environ.get("SQLITE_LOG_FILE", "delivery.sqlite"))
