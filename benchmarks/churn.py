"""A process whose WebSocket clients come and go all the time, in all the ways in which clients leave."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import uvloop

from benchmarks.clients import SOURCES, Client, Crowd, Tally, serve, source, token
from bridge.core.model.sessions import Mode

AT_ONCE: Final = 50
"""Sessions that open, and that close, together."""
ADDRESSES: Final = 200
"""Source addresses that are used in turn: a port that was just closed is not free for a minute."""
GOODBYE: Final = bytes((0x88, 0x82, 0, 0, 0, 0)) + (1000).to_bytes(2, "big")
"""A close frame with code 1000 (RFC 6455 5.5.1)."""
TALK: Final = bytes((0x81, 0x80 | 34, 0, 0, 0, 0)) + b'{"type":"ack","id":"p","ref":"r1"}'
"""A text frame: in bridge.v1.json an ack of a push that this session never got, which is answered."""


class Count(Tally):
    """Counts frames, and keeps nothing of them."""

    def push(self, client: Client, frame: bytes, now: int) -> None:
        """One data frame came."""
        self.frames += 1


class Visitor(Client):
    """One WebSocket that leaves in one of four ways."""

    __slots__ = ()

    def talk(self) -> None:
        """Say something."""
        if self._transport is not None:
            self._transport.write(TALK)

    def part(self, how: int) -> None:
        """Leave: with a close frame, in the middle of a frame, without a word, or with a reset."""
        if self._transport is None:
            return
        if how % 4 == 0:
            self._transport.write(GOODBYE)
            return
        if how % 4 == 1:
            self._transport.write(TALK[:20])
        if how % 4 == 3:
            self._transport.abort()
        else:
            self._transport.close()


class Churn(Crowd):
    """Sessions that open and close: the n-th is one of user n, modulo the number of users."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        self._count = tally
        self._here: deque[Visitor] = deque()
        self._opened = 0
        self._lost = 0

    async def churn(self, *, port: int, secret: str, count: int, users: int, most: int) -> dict[str, Any]:
        """Open this many sessions; whenever `most` are open, the oldest close first. Returns the counts so far.

        `lost`: sessions that had been closed by the bridge when it was their turn to leave.
        """
        for left in range(count, 0, -AT_ONCE):
            batch = min(AT_ONCE, left)
            while len(self._here) > most - batch:
                visitor = self._here.popleft()
                self._lost += not visitor.open
                visitor.part(self._opened + len(self._here))
            first, self._opened = self._opened, self._opened + batch
            async with asyncio.TaskGroup() as group:
                for number in range(first, first + batch):
                    group.create_task(self._enter(number, users, port, secret))
        open_ = sum(visitor.open for visitor in self._here)
        return {"opened": self._opened, "open": open_, "lost": self._lost, "frames": self._count.frames}

    async def _enter(self, number: int, users: int, port: int, secret: str) -> None:
        loop = asyncio.get_running_loop()
        user = number % users
        mode = (Mode.ENVELOPE, Mode.BARE)[number // users % 2]
        address = source(number % ADDRESSES * SOURCES, port)
        _, visitor = await loop.create_connection(
            lambda: Visitor(user, token(user, secret), self._count, loop.create_future(), mode.value),
            "127.0.0.1",
            port,
            local_addr=(address, 0),
        )
        await visitor.opened
        if number % 5 == 0:
            visitor.talk()
        self._here.append(visitor)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        crowd = Churn(Count())
        runner.run(serve(crowd, {"churn": crowd.churn}))
