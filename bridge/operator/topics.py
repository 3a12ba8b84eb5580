"""Which topics there are: how many are subscribed, and which last values are kept. It only reads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, LiteralString

import msgspec

from bridge.adapters.postgres.reading import QUERY_TIMEOUT, ask, reading

TOPICS_SHOWN: Final = 500
"""Topics of a list, those with most subscribed sessions first."""
VALUES_SHOWN: Final = 100
"""Last values that are told of a topic, the newest first."""
TEXT_CHARS: Final = 2_000
"""Characters of the data of a last value that are told."""


class KnownTopic(msgspec.Struct, frozen=True):
    """A topic that has a subscription or a last value."""

    topic: str
    sessions: int
    """Open sessions that are subscribed."""
    users: int
    """Their users."""
    values: int
    """Last values that are kept."""


class KeptValue(msgspec.Struct, frozen=True):
    """The last value of a topic and an event."""

    event: str
    push_id: str
    tenant: str
    app_id: str
    published_at: datetime
    until: datetime
    encoding: str
    size: int
    """Bytes of its data."""
    text: str | None
    """The beginning of its data; None for bytes."""


class Topic(msgspec.Struct, frozen=True):
    """One topic."""

    topic: str
    sessions: int
    users: int
    values: Sequence[KeptValue]
    asked_at: datetime


class Topics(msgspec.Struct, frozen=True):
    """The list."""

    topics: Sequence[KnownTopic]
    more: bool
    """Whether there are others."""
    asked_at: datetime


# A session is open if it has not closed and its process lives, as in the view who_is_online.
_OPEN: LiteralString = """
    select u.topic, u.user_id from subscription u
    join session s on s.session = u.session and s.closed_at is null
    join node n on n.name = s.node and n.boot = s.boot and n.seen_at > clock_timestamp() - interval '5 seconds'
    where u.left_at is null
    """
_TOPICS: LiteralString = f"""
    with open as ({_OPEN}),
    subscribed as (select topic, count(*) as sessions, count(distinct user_id) as users from open group by topic),
    kept as (select topic, count(*) as values from retained where until > clock_timestamp() group by topic)
    select coalesce(s.topic, k.topic) as topic, coalesce(s.sessions, 0) as sessions, coalesce(s.users, 0) as users,
           coalesce(k.values, 0) as values
    from subscribed s full join kept k on k.topic = s.topic
    order by coalesce(s.sessions, 0) desc, coalesce(s.topic, k.topic) limit %(limit)s
    """
_TOPIC: LiteralString = f"""
    select clock_timestamp() as now, count(*) as sessions, count(distinct o.user_id) as users
    from ({_OPEN} and u.topic = %(topic)s) o
    """
_VALUES: LiteralString = """
    select event, push_id, tenant, app_id, published_at, until, encoding, octet_length(data) as size,
           case when encoding <> 'bytes' then left(convert_from(data, 'UTF8'), %(chars)s) end as text
    from retained where topic = %(topic)s and until > clock_timestamp() order by position desc limit %(limit)s
    """


async def read_topics(dsn: str, *, seconds: float = QUERY_TIMEOUT) -> Topics:
    """The list; each statement may take `seconds`. Raises StoreUnavailable."""
    async with reading(dsn, "bridge console", seconds) as conn:
        found = await ask(conn, _TOPICS, {"limit": TOPICS_SHOWN + 1}, seconds)
        (frame,) = await ask(conn, "select clock_timestamp() as now", {}, seconds)
    return Topics(
        [KnownTopic(**row) for row in found[:TOPICS_SHOWN]], len(found) > TOPICS_SHOWN, frame["now"]
    )


async def read_topic(dsn: str, topic: str, *, seconds: float = QUERY_TIMEOUT) -> Topic:
    """One topic, with nobody subscribed and no value if nobody knows it. Raises StoreUnavailable."""
    params = {"topic": topic, "limit": VALUES_SHOWN, "chars": TEXT_CHARS}
    async with reading(dsn, "bridge console", seconds) as conn:
        (count,) = await ask(conn, _TOPIC, params, seconds)
        values = [KeptValue(**row) for row in await ask(conn, _VALUES, params, seconds)]
    return Topic(topic, count["sessions"], count["users"], values, count["now"])
