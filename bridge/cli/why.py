"""`bridge why`: what became of a push."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bridge.adapters.amqp.depths import QueueDepth
from bridge.config import CommonSettings
from bridge.core.errors import BrokerUnavailable
from bridge.operator import story
from bridge.operator.lookup import look_up
from bridge.operator.queues import queue_depths


async def why(
    settings: CommonSettings, push_id: str, user: str | None, tenant: str | None, *, as_json: bool
) -> int:
    """Tell what became of a push; 1 if it is not scheduled, and the log has no row of it (for this user)."""
    found = await look_up(settings.postgres_dsn, push_id, user=user, tenant=tenant)
    if as_json:
        for row in found.rows:
            print(msgspec.json.encode(row).decode())
        for one in found.scheduled:
            print(msgspec.json.encode({"push_id": push_id, "outcome": "scheduled", **one._asdict()}).decode())
    elif found.endings or found.scheduled:
        for line in story.tell(push_id, user, found):
            print(line)
    else:
        for line in story.never_seen(push_id, found, await _waiting(settings)):
            print(line)
    return 0 if found.rows or found.scheduled else 1


async def _waiting(settings: CommonSettings) -> Sequence[QueueDepth] | str:
    try:
        return [d for d in await queue_depths(settings.amqp_url) if d.name != "push.dead"]
    except BrokerUnavailable as error:
        return error.cause
