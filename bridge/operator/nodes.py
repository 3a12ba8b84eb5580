"""Which nodes there are: how old their leases are, what they take, how many sessions they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, LiteralString

import msgspec

from bridge.adapters.postgres.reading import QUERY_TIMEOUT, ask, reading
from bridge.operator.story import printable, span

SHOWN: Final = 1000
"""Nodes that are told, the newest leases first."""


class KnownNode(msgspec.Struct, frozen=True):
    """A row of the table of nodes."""

    node: str
    boot: str
    version: str | None
    """None for programs that do not say it."""
    claimed_at: datetime
    """When this boot took the name."""
    lease_age: float
    """Seconds since it last said that it lives."""
    alive: bool
    """Whether that is less than five seconds ago."""
    sessions: int
    """Open ones, by the ledger."""
    taking: Sequence[int] | None
    """Partitions that it takes; None: it can take none, or does not say it."""


_NODES: LiteralString = """
    select n.name as node, n.boot, n.version, n.claimed_at,
        greatest(0, extract(epoch from clock_timestamp() - n.seen_at))::float8 as lease_age,
        n.seen_at > clock_timestamp() - interval '5 seconds' as alive,
        (select count(*) from session s
         where s.node = n.name and s.boot = n.boot and s.closed_at is null and s.node <> '')::integer as sessions,
        n.taking
    from node n order by n.seen_at desc limit %(limit)s
    """


async def read(dsn: str, seconds: float = QUERY_TIMEOUT) -> Sequence[KnownNode]:
    """All nodes, by name. Raises StoreUnavailable."""
    async with reading(dsn, "bridge nodes", seconds) as conn:
        rows = await ask(conn, _NODES, {"limit": SHOWN}, seconds)
    return sorted((KnownNode(**row) for row in rows), key=lambda one: one.node)


def tell(nodes: Sequence[KnownNode]) -> Iterator[str]:
    """Lines for people."""
    if not nodes:
        yield "no bridge runs with this database"
    for one in nodes:
        lease = (
            f"lease {one.lease_age:.1f} s old" if one.alive else f"DEAD, last seen {span(one.lease_age)} ago"
        )
        taking = "takes nothing" if not one.taking else f"takes partition {', '.join(map(str, one.taking))}"
        version = one.version or "of an older version"
        yield f"{printable(one.node):20} {version:10} {one.sessions:7} sessions  {taking:24} {lease}"
