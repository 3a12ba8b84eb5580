"""Which other processes there are. While there are none, no push costs a look at them.

A process knows every other one that may have sessions, by this rule: **a node opens its door once every living node
has acted on the knowledge that it is there.** So who knows of nobody else, and has looked a moment ago, is alone.
Knowledge that is older than `FRESH_FOR` seconds counts for nothing: whoever was stopped for that long may have been
taken for dead, and was not waited for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final

from bridge.core.errors import StoreUnavailable
from bridge.core.model.nodes import Neighbour
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Directory, NodePost
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.sessions.freshness import FRESH_FOR

LOOK_EVERY: Final = 0.5
"""Seconds between two looks."""


class Neighbours:
    """Looks for other processes."""

    def __init__(
        self, directory: Directory | None, post: NodePost | None, *, clock: Clock, errors: ErrorHandler
    ) -> None:
        """`directory`, `post`: None where this process can't have any neighbours."""
        self._directory = directory
        self._post = post
        self._clock = clock
        self._errors = errors
        self._others: dict[str, Neighbour] = {}
        self._known_until: float | None = None
        self._fresh_until = -math.inf if directory is not None else math.inf
        self._began: float | None = None
        """The database's clock when this process had its name, and the others could learn where it listens."""
        self._changed = asyncio.Event()
        self._taking: Sequence[int] | None = None

    @property
    def any(self) -> bool:
        """Whether another process is known."""
        return bool(self._others)

    @property
    def alone(self) -> bool:
        """Whether no other process can have a session now."""
        return not self._others and self.fresh

    @property
    def fresh(self) -> bool:
        """Whether what is known of others is new enough to act on."""
        return self._clock.boottime() < self._fresh_until

    @property
    def others(self) -> Sequence[Neighbour]:
        """The others, as far as is known."""
        return list(self._others.values())

    def of_boot(self, boot: str) -> Neighbour | None:
        """The process with this boot, if it is known."""
        return self._others.get(boot)

    async def look(self) -> None:
        """Look once. Raises StoreUnavailable."""
        if self._directory is None:
            return
        asked = self._clock.boottime()
        queue = "" if self._post is None else self._post.queue
        around = await self._directory.look(queue, self._known_until, self._taking)
        self._others = {one.boot: one for one in around.others}
        self._known_until = around.now
        self._fresh_until = asked + FRESH_FOR
        if self._began is None and (queue or not self._others):
            self._began = around.now

    @property
    def unaware(self) -> Sequence[str]:
        """The names of living nodes that have not yet acted on it that this one is there: until there are none it must
        have no sessions. This node's own name, where it can't be reached by others yet."""
        if self._directory is None:
            return ()
        if self._began is None:
            return ("this node",)
        return [
            one.node
            for one in self._others.values()
            if one.alive and one.known_until is not None and one.known_until < self._began
        ]

    def say(self, taking: Sequence[int] | None) -> None:
        """Which partitions this process takes; None: it takes no part. Others learn it with the next look."""
        if taking != self._taking:
            self._taking = taking
            self._changed.set()

    def look_soon(self) -> None:
        """Something has changed that others should know: look at once."""
        self._changed.set()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except StoreUnavailable as down:
                self._errors.handle(down, "nodes.look", {})
            waiting = asyncio.ensure_future(self._changed.wait())
            sleeping = asyncio.ensure_future(self._clock.sleep(LOOK_EVERY))
            try:
                await asyncio.wait((waiting, sleeping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
                sleeping.cancel()
            self._changed.clear()
