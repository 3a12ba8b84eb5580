"""What people did by hand: the rows of table `ops_action`, the newest first. It only reads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, LiteralString

import msgspec

from bridge.adapters.postgres.reading import QUERY_TIMEOUT, ask, reading

PAGE: Final = 100
"""Actions of a page."""


class Act(msgspec.Struct, frozen=True):
    """An action."""

    begun_at: datetime
    ended_at: datetime | None
    actor: str
    """Who: the name of a credential, `local`, or `cli:` and the user of the machine."""
    action: str
    target: Any
    """To whom or what, as it was asked for."""
    result: str
    """`begun`, `done` or `failed`."""
    facts: Any
    """What came of it."""
    node: str


class Acts(msgspec.Struct, frozen=True):
    """A page of them."""

    actions: Sequence[Act]
    more: bool
    """Whether there are older ones."""
    asked_at: datetime


_ACTS: LiteralString = """
    select begun_at, ended_at, actor, action, target, result, facts, node from ops_action
    where %(before)s::timestamptz is null or begun_at < %(before)s
    order by begun_at desc limit %(limit)s
    """


async def read(dsn: str, before: datetime | None = None, *, seconds: float = QUERY_TIMEOUT) -> Acts:
    """Those that were begun before this moment. Raises StoreUnavailable."""
    async with reading(dsn, "bridge console", seconds) as conn:
        found = await ask(conn, _ACTS, {"before": before, "limit": PAGE + 1}, seconds)
        (frame,) = await ask(conn, "select clock_timestamp() as now", {}, seconds)
    return Acts([Act(**row) for row in found[:PAGE]], len(found) > PAGE, frame["now"])
