"""The Retained port on Postgres: each method is one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, LiteralString

import msgspec

from bridge.adapters.postgres.pool import CONNECTIONS, Connection, Connections
from bridge.adapters.postgres.rows import numbers, texts
from bridge.core.model.outcomes import Proof
from bridge.core.model.pushes import Encoding, PushKey, PushRequest, ToTopic
from bridge.core.model.retained import FoundValue, LastValue, LastValuesAsk, LastValuesPage

ROWS: Final = 100
"""Last values on one page,"""
BYTES: Final = 64 * 1024
"""and bytes of data after which a page ends."""

_KEEP: LiteralString = """
    insert into retained as r (
        topic, event, position, tenant, push_id, day, published_at, until, confirm, encoding, data, ttl, ack_within,
        first_device, excluded, meta, app_id, traceparent, fingerprint)
    values (
        %s, %s, %s, %s, %s, log_today(), to_timestamp(%s), to_timestamp(%s), %s, %s, %s, %s, %s, %s, %s::jsonb,
        %s::jsonb, %s, %s, %s)
    on conflict (topic, event) do update set
        position = excluded.position, tenant = excluded.tenant, push_id = excluded.push_id,
        day = case when r.push_id = excluded.push_id and r.tenant = excluded.tenant then r.day else excluded.day end,
        published_at = excluded.published_at, until = excluded.until, confirm = excluded.confirm,
        encoding = excluded.encoding, data = excluded.data, ttl = excluded.ttl, ack_within = excluded.ack_within,
        first_device = excluded.first_device, excluded = excluded.excluded, meta = excluded.meta,
        app_id = excluded.app_id, traceparent = excluded.traceparent, fingerprint = excluded.fingerprint
    where r.position < excluded.position
    """
_FIND: LiteralString = """
    select v.ord, (v.value).topic, (v.value).event, (v.value).position, (v.value).tenant, (v.value).push_id,
        extract(epoch from (v.value).published_at)::float8, extract(epoch from (v.value).until)::float8,
        (v.value).confirm, (v.value).encoding, (v.value).data, (v.value).ttl, (v.value).ack_within,
        (v.value).first_device, (v.value).excluded::text, (v.value).meta::text, (v.value).app_id,
        (v.value).traceparent, (v.value).fingerprint, v.known, v.taken_back, v.others
    from last_values(%s, %s, %s, %s, %s) v
    """
_FORGET: LiteralString = (
    'delete from retained where push_id = %s collate "C" and tenant = %s collate "C" returning 1'
)


class PostgresRetained:
    """The last values in Postgres. Opens its connection when it is needed; needs no start. `shared`: use these."""

    def __init__(self, dsn: str, node: str, shared: Connections | None = None) -> None:
        own = f"bridge {node} topics and times", CONNECTIONS["topics and times"]
        self._connections = shared or Connections(dsn, *own)

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._connections.close()

    async def keep(self, value: LastValue) -> None:
        """See the port."""
        request = value.request
        assert isinstance(request.target, ToTopic)
        await self._run(
            _KEEP,
            (
                request.target.topic,
                request.event,
                value.position,
                request.tenant,
                request.id,
                value.published_at,
                value.until,
                int(request.confirm),
                request.encoding.value,
                request.data,
                request.ttl,
                request.ack_within,
                request.first_device,
                msgspec.json.encode(sorted(request.excluded)).decode() if request.excluded else None,
                request.meta.decode() if request.meta else None,
                value.app_id,
                value.traceparent,
                value.fingerprint,
            ),
        )

    async def find(self, asks: Sequence[LastValuesAsk]) -> Sequence[LastValuesPage]:
        """See the port."""
        topics, users, afters = zip(*asks, strict=True)
        params = texts(topics), texts(users), numbers(afters), ROWS, BYTES
        pages: list[list[FoundValue]] = [[] for _ in asks]
        more = [False] * len(asks)
        for place, *record, known, taken_back, others in await self._fetch(_FIND, params):
            pages[place - 1].append(FoundValue(_value(record), known, taken_back))
            more[place - 1] = others > 0
        return [LastValuesPage(page, left) for page, left in zip(pages, more, strict=True)]

    async def forget(self, push: PushKey) -> bool:
        """See the port."""
        return bool(await self._fetch(_FORGET, (push.push_id, push.tenant)))

    async def _run(self, query: LiteralString, params: Sequence[object]) -> None:
        async def work(conn: Connection) -> None:
            await conn.execute(query, params, prepare=True)

        await self._connections.run(work)

    async def _fetch(self, query: LiteralString, params: Sequence[object]) -> list[tuple[Any, ...]]:
        async def work(conn: Connection) -> list[tuple[Any, ...]]:
            cursor = conn.cursor(binary=True)
            await cursor.execute(query, params, prepare=True)
            return await cursor.fetchall()

        return await self._connections.run(work)


def _value(record: Sequence[Any]) -> LastValue:
    (
        topic, event, position, tenant, push_id, published_at, until, confirm, encoding, data, ttl, ack_within,
        first_device, excluded, meta, app_id, traceparent, fingerprint,
    ) = record  # fmt: skip
    request = PushRequest(
        id=push_id,
        target=ToTopic(topic),
        data=data,
        event=event,
        encoding=Encoding(encoding),
        confirm=Proof(confirm),
        excluded=frozenset() if excluded is None else frozenset(msgspec.json.decode(excluded)),
        tenant=tenant,
        meta=b"" if meta is None else meta.encode(),
        ttl=ttl,
        ack_within=ack_within,
        first_device=first_device,
        retain=True,
    )
    return LastValue(request, position, published_at, until, fingerprint, app_id, traceparent)
