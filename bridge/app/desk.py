"""What the console asks of log and queues that no other route does: fills the port Desk of the ops port."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Final

from bridge.core.ports.clock import Clock
from bridge.operator import dead_letters, letters, record, search
from bridge.operator import replay as replaying
from bridge.operator.replay import Where
from bridge.operator.topics import Topic, Topics, read_topic, read_topics

REPLAY_RATE: Final = 200.0
"""Pushes a second that a replay of the console publishes."""


class OperatorsDesk:
    """Asks the servers of these settings, each statement within so many seconds."""

    def __init__(self, dsn: str, amqp_url: str, seconds: float, clock: Clock) -> None:
        self._dsn = dsn
        self._amqp_url = amqp_url
        self._seconds = seconds
        self._clock = clock
        self._one_holds = asyncio.Lock()

    async def search(self, field: str, text: str, after: search.Place | None) -> search.Page:
        """See `Desk`."""
        return await search.search(self._dsn, field, text, after, seconds=self._seconds)

    async def topics(self) -> Topics:
        """See `Desk`."""
        return await read_topics(self._dsn, seconds=self._seconds)

    async def topic(self, name: str) -> Topic:
        """See `Desk`."""
        return await read_topic(self._dsn, name, seconds=self._seconds)

    async def actions(self, before: datetime | None) -> record.Acts:
        """See `Desk`."""
        return await record.read(self._dsn, before, seconds=self._seconds)

    async def dead(self) -> letters.Shown:
        """See `Desk`."""
        async with self._one_holds:
            return await letters.shown(self._amqp_url)

    async def dead_replay(self, ids: Sequence[str], *, new_ids: bool, dry_run: bool) -> dead_letters.Replayed:
        """See `Desk`."""
        async with self._one_holds:
            return await dead_letters.replay(
                self._amqp_url,
                letters.chooser(ids, ()),
                limit=letters.LETTERS_SHOWN,
                now=self._clock.time(),
                new_ids=new_ids,
                dry_run=dry_run,
            )

    async def dead_purge(self, ids: Sequence[str], *, dry_run: bool) -> dead_letters.Purge:
        """See `Desk`."""
        async with self._one_holds:
            return await dead_letters.purge(
                self._amqp_url, letters.chooser(ids, ()), limit=letters.LETTERS_SHOWN, dry_run=dry_run
            )

    async def replay_count(self, chosen: Where, mark: str) -> Mapping[str, int]:
        """See `Desk`."""
        async with replaying.selected(self._dsn, chosen, mark, self._seconds) as selection:
            return await selection.count()

    async def replay(self, chosen: Where, mark: str, ttl: float | None) -> int:
        """See `Desk`."""
        done = 0
        async with replaying.selected(self._dsn, chosen, mark, self._seconds) as selection:
            pages = replaying.publish(selection, self._amqp_url, rate=REPLAY_RATE, ttl=ttl, clock=self._clock)
            async with aclosing(pages) as progress:
                async for confirmed in progress:
                    done = confirmed
        return done
