"""Erase the data of pushes that are no longer kept, and the bodies of rejected requests, some days after their end.

The function `erase_data` does it, in pages, each a transaction of its own: whoever is killed in between has lost
nothing, and no writer waits for more than one page.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg

from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.pool import Watchdog, connect, leave

ERASE_LOCK = int.from_bytes(b"bridge\0\6", "big")
"""Advisory lock: one node at a time erases, others skip it."""
ERASE_TIMEOUT = 60.0
"""Seconds for one page."""
PAGE = 500
"""Rows of a page, and things that rows share."""
PAGES = 200
"""Pages of one round, after which others get the connection."""
_ERASE: LiteralString = "select erase_data(clock_timestamp() - make_interval(secs => %s), %s)"


class Erasing:
    """Erases data. Safe to run on several nodes and at any time."""

    def __init__(self, dsn: str, *, application_name: str = "bridge erasing") -> None:
        self._dsn = dsn
        self._application_name = application_name

    async def run_once(self, days: float, *, page: int = PAGE, pages: int = PAGES) -> bool:
        """Erase what is due for at most so many pages; returns whether there may be more.

        Due is the data of a push `days` after its ttl was over, or after its end where it was not delivered, and the
        body of a rejected request so long after that came. Idempotent, and safe to be cancelled.
        Raises StoreUnavailable.
        """
        conn = await connect(self._dsn, self._application_name)
        try:
            async with Watchdog(conn, ERASE_TIMEOUT):
                mine = await (await conn.execute("select pg_try_advisory_lock(%s)", (ERASE_LOCK,))).fetchone()
            if mine is None or not mine[0]:
                return False
            for _ in range(pages):
                async with Watchdog(conn, ERASE_TIMEOUT):
                    erased = await (await conn.execute(_ERASE, (days * 86400.0, page))).fetchone()
                if erased is None or not erased[0]:
                    return False
            return True
        except psycopg.Error as error:
            raise translated(error) from error
        finally:
            # Releases the advisory lock.
            await leave(conn)
