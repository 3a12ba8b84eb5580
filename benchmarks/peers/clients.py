"""A process of clients that speak a peer's protocol; otherwise it is that of benchmarks/clients.py."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import Any

import uvloop

from benchmarks.clients import HANDSHAKES_AT_ONCE, Client, Crowd, Tally, serve, source, token
from benchmarks.load import NUMBER_AT, USER_AT
from benchmarks.peers.dialects import DIALECTS, Dialect


class PeerClient(Client):
    """One WebSocket with a dialect in it. It is open when the dialect is ready."""

    __slots__ = ("_dialect",)

    def __init__(self, user: int, dialect: Dialect, tally: Tally, opened: asyncio.Future[None]) -> None:
        super().__init__(user, "", tally, opened, dialect.subprotocol)
        self._dialect = dialect

    def _target(self) -> bytes:
        return self._dialect.path.encode()

    def _upgraded(self) -> None:
        self._say(self._dialect.hello())
        self._look()

    def _message(self, message: bytes, now: int) -> None:
        read = self._dialect.read(message)
        for push in read.pushes:
            self._tally.push(self, push, now)
        self._say(read.answer)
        if not self.opened.done():
            self._look()

    def _look(self) -> None:
        if self._dialect.ready:
            self.opened.set_result(None)

    def _say(self, message: bytes) -> None:
        if not message or self._transport is None:
            return
        size = len(message)
        # A mask of zeros: a legal frame, and the server unmasks it like any other (RFC 6455 5.2).
        head = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        self._transport.write(bytes((0x80 | self._dialect.opcode,)) + head + b"\0\0\0\0" + message)


class EveryoneTally(Tally):
    """Counts pushes that go to everyone: each client must get each of them, once."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        """For each user the numbers that came, as bits."""
        super().__init__()

    def expect(self, total: int, mine: int, *, users: int = 0, each: int = 1, devices: int = 1) -> None:
        """Begin to count: `total` pushes come, `mine` frames in all."""
        super().expect(total, mine, users=users, each=each, devices=devices)
        self.seen.clear()

    def push(self, client: Client, frame: bytes, now: int) -> None:
        """One data frame came."""
        self.frames += 1
        bit = 1 << int(frame[NUMBER_AT : USER_AT - 1])
        seen = self.seen.get(client.user, 0)
        if seen & bit:
            self.duplicates += 1
            return
        self.seen[client.user] = seen | bit
        self.distinct += 1
        self.last_at = now
        if self.distinct == self._mine:
            self._complete.set()


class PeerCrowd(Crowd):
    """All clients of this process."""

    async def connect_peer(
        self, *, dialect: str, options: dict[str, Any], port: int, first: int, count: int, secret: str
    ) -> dict[str, Any]:
        """Open a session for each of `count` users from `first` on. With a `secret`, each has a token."""
        began = time.monotonic()
        gate = asyncio.Semaphore(HANDSHAKES_AT_ONCE)
        loop = asyncio.get_running_loop()

        async def one(user: int) -> None:
            more = {"token": token(user, secret)} if secret else {}
            made: Dialect = DIALECTS[dialect](user, **options, **more)
            async with gate:
                _, client = await loop.create_connection(
                    lambda: PeerClient(user, made, self._tally, loop.create_future()),
                    "127.0.0.1",
                    port,
                    local_addr=(source(user, port), 0),
                )
                await client.opened
            self._clients.append(client)

        async with asyncio.TaskGroup() as group:
            for user in range(first, first + count):
                group.create_task(one(user), name=f"handshake of {user}")
        gc.collect()
        gc.freeze()
        return {"connected": len(self._clients), "seconds": time.monotonic() - began}

    async def expect_everywhere(self, *, total: int) -> dict[str, Any]:
        """Count from now on: `total` pushes come to every client."""
        if not isinstance(self._tally, EveryoneTally):
            raise TypeError("this process counts pushes to single users")
        self._tally.expect(total, total * len(self._clients))
        return {"expected": total * len(self._clients)}


async def main() -> None:
    """Serve stdin; with the argument `everyone` pushes go to all clients."""
    crowd = PeerCrowd(EveryoneTally() if sys.argv[1:] == ["everyone"] else Tally())
    await serve(crowd, {"connect_peer": crowd.connect_peer, "expect_everywhere": crowd.expect_everywhere})


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
