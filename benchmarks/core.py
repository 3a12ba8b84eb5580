"""What one push costs inside the process, without servers: `python -m benchmarks.core`.

The parts that handle each push are the real ones: the parser of the broker's stream, the whole core, the array
literals for Postgres, the encoder of receipts. Only the sockets, the broker and the database are stood in for, by
objects that answer at once. So the kernel, the driver and the waiting are left out, and the figures hardly depend on
what else the machine does: `make bench-guard` compares two commits by them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from benchmarks import load
from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.frames import Confirm, Delivered, Event, Splitter
from bridge.adapters.amqp.link import LinkState
from bridge.adapters.amqp.outbox import Outbox
from bridge.adapters.amqp.publish import ReceiptPublisher
from bridge.adapters.memory import MemoryRevocations
from bridge.adapters.metrics import PrometheusMetrics
from bridge.adapters.plugins import FanOutHooks, LoggingErrorHandler
from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.websocket.wire import frame_header
from bridge.app.clock import SystemClock
from bridge.app.limits import LIMITS
from bridge.core.assembly import Core
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.gateway import Client, Gateway
from bridge.core.given import CoreLimits, Ports
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.model.sessions import Claims, CloseReason, Grant, Mode
from bridge.core.ports.broker import AckToken, Arrival, Source
from bridge.core.ports.inbound import InboundListener, InboundMessage
from bridge.core.ports.sockets import Frame
from bridge.core.ports.store import IdPage, IdPlace, OthersRows
from bridge.core.sessions.access import Access
from bridge.core.sessions.limits import SessionLimits
from bridge.core.settlement.gate import Gate
from bridge.core.talking.hearing import Hearing
from bridge.core.talking.publishing import Publishing

PREFETCH: Final = 1000
TOKEN_SECONDS: Final = 1e9
READ_BYTES: Final = 64 * 1024
"""What one read of the broker's socket brings at most."""
_DELIVER: Final = encoding.publish_method(1, "push", b"user.u", False)


class _Rows(PostgresStore):
    """The rows: their literals are made, and no database gets them."""

    async def _fetch(self, *asked: Any, **more: Any) -> Any:
        await asyncio.sleep(0)
        return []

    async def ids(self, after: IdPlace | None, limit: int) -> IdPage:
        return IdPage([], None)

    async def last_position(self) -> int:
        return 0

    async def rows_of_others(self, boot: str) -> OthersRows:
        return OthersRows(time.time(), 0)  # type: ignore[arg-type]


class _Tap:
    """Stands for the connection that publishes: confirms each write in the next turn of the loop."""

    frame_max = 131072

    def __init__(self) -> None:
        self.sent = 0
        self.confirm: Callable[[Sequence[Event]], None] | None = None
        self.highest: Callable[[], int] | None = None

    def watch(self, channel: int) -> None:
        pass

    def write(self, frames: bytes) -> bool:
        self.sent += len(frames)
        assert self.confirm is not None
        asyncio.get_running_loop().call_soon(self._confirm)
        return True

    def _confirm(self) -> None:
        assert self.confirm is not None
        assert self.highest is not None
        self.confirm([Confirm(1, self.highest(), True, True)])


def _publisher(clock: SystemClock) -> ReceiptPublisher:
    """A publisher that encodes receipts as ever, and writes them to nobody."""
    publisher = ReceiptPublisher("amqp://127.0.0.1/", clock=clock, errors=LoggingErrorHandler())
    tap = _Tap()
    outbox = Outbox(tap, 1)  # type: ignore[arg-type]
    publisher._outbox = outbox
    publisher._link.state = LinkState.OPEN
    tap.confirm = outbox.happened
    tap.highest = lambda: outbox._next - 1
    return publisher


class _Socket:
    """Stands for one WebSocket: makes the bytes of its frames, and answers a ping when it is asked to."""

    def __init__(self, peers: _Peers) -> None:
        self.client: Client | None = None
        self._peers = peers

    writable = True
    buffered = 0

    def write(self, frames: Sequence[Frame], ping: bytes | None) -> bool:
        parts: list[bytes] = []
        for frame in frames:
            parts.append(frame_header(0x81, len(frame.payload)))
            parts.append(frame.payload)
        if ping is not None:
            parts.append(frame_header(0x89, len(ping)))
            parts.append(ping)
            self._peers.ping(self, ping)
        self._peers.frames += len(frames)
        self._peers.sent += len(b"".join(parts))
        return True

    def close(self, reason: CloseReason) -> None:
        raise AssertionError(reason)

    def abort(self) -> None:
        raise AssertionError("aborted")


class _Peers:
    """All clients: their pongs come in a later turn of the loop."""

    def __init__(self) -> None:
        self.frames = self.sent = 0
        self._pings: list[tuple[_Socket, bytes]] = []

    def ping(self, socket: _Socket, payload: bytes) -> None:
        if not self._pings:
            asyncio.get_running_loop().call_soon(self._pong)
        self._pings.append((socket, payload))

    def _pong(self) -> None:
        pings, self._pings = self._pings, []
        for socket, payload in pings:
            assert socket.client is not None
            socket.client.pong(payload)


class _Broker:
    """The queue: gives out so many messages at a time as bytes of AMQP, and takes acks."""

    def __init__(self, core: Core, stream: Sequence[bytes]) -> None:
        self._core = core
        self._stream = stream
        self._splitter = Splitter()
        self._splitter.watch(1)
        self._at = self._unacked = 0
        self.acked = 0
        self.blocks = 0
        """Allocated blocks of memory when the most messages were under way."""
        self.done = asyncio.Event()

    def ack(self, tokens: Iterable[AckToken]) -> None:
        self.blocks = max(self.blocks, sys.getallocatedblocks())
        count = sum(1 for _ in tokens)
        self.acked += count
        self._unacked -= count
        if self.acked == len(self._stream):
            self.done.set()
        else:
            asyncio.get_running_loop().call_soon(self.give)

    def requeue(self, tokens: Iterable[AckToken]) -> None:
        raise AssertionError("requeued")

    def widen(self, incarnations: Collection[int] = ()) -> None:
        pass

    def give(self) -> None:
        """Give out what the prefetch allows, one read of the socket after the other."""
        while self._unacked < PREFETCH and self._at < len(self._stream):
            until, size = self._at, 0
            while (
                until < len(self._stream)
                and until - self._at < PREFETCH - self._unacked
                and size < READ_BYTES
            ):
                size += len(self._stream[until])
                until += 1
            events, _ = self._splitter.feed(b"".join(self._stream[self._at : until]))
            self._unacked += until - self._at
            self._at = until
            now = time.time()
            self._core.intake.arrived(
                [
                    Arrival(AckToken(1, e.tag), Source.REQUESTS, e.body, e.body_size, e.properties, now)
                    for e in events
                    if type(e) is Delivered
                ]
            )


class _Anybody:
    """Verifies tokens; nothing asks it."""

    def verify(self, token: str) -> Claims:
        raise AssertionError("asked")


class _NoAnswers:
    async def answer(self, reply: object, body: bytes) -> bool:
        return True


class _NoInbound:
    cause = "nothing is published here"

    def listen(self, listener: InboundListener) -> None: ...

    def publish(self, message: InboundMessage) -> None: ...

    def forget(self, message_id: str) -> None: ...


def deliveries(count: int, users: int, confirm: str, seed: int, run: str) -> list[bytes]:
    """So many messages as the broker delivers them (AMQP 0-9-1 1.8.3.14: basic.deliver), each to a random user."""
    chance = random.Random(seed)
    properties = encoding.properties(content_type="application/json")
    made = []
    for tag in range(1, count + 1):
        user = chance.randrange(users)
        body = load.request(run, tag, user, 0, confirm, 0)
        key = encoding.short_string(f"user.{load.user_id(user)}")
        method = (
            b"\x00\x3c\x00\x3c"
            + encoding.short_string("push.requests")
            + tag.to_bytes(8, "big")
            + b"\x00"
            + encoding.short_string("push")
            + key
        )
        frame = b"\x01\x00\x01" + len(method).to_bytes(4, "big") + method + b"\xce"
        made.append(frame + encoding.content(1, properties, body, 131072))
    return made


class Figures(NamedTuple):
    """What one drain cost."""

    seconds: float
    """Of CPU."""
    held: float
    """Blocks of memory for each push under way."""
    left: int
    """Blocks that stayed allocated at the end."""


async def drain(count: int, users: int, confirm: str, runs: int, window: int) -> list[Figures]:
    """Drain `count` pushes `runs` times on one core. `window`: see `DeliveryLimits.tenant_window`."""
    clock = SystemClock()
    publisher = _publisher(clock)
    store = _Rows("postgresql://127.0.0.1/nothing")
    errors = LoggingErrorHandler()
    hooks, metrics, gate = FanOutHooks([], errors), PrometheusMetrics(process=False), Gate()
    holder: list[_Broker] = []

    class Acks:
        def ack(self, tokens: Iterable[AckToken]) -> None:
            holder[-1].ack(tokens)

        def requeue(self, tokens: Iterable[AckToken]) -> None:
            holder[-1].requeue(tokens)

        def widen(self, incarnations: Collection[int] = ()) -> None:
            pass

    core = Core(
        Ports(
            store=store,
            revocations=MemoryRevocations(clock, "bench", TOKEN_SECONDS),
            logs=(),
            acks=Acks(),
            receipts=publisher,
            dead_letters=publisher,
            fallbacks=publisher,
            answers=_NoAnswers(),
            hooks=hooks,
            metrics=metrics,
            errors=errors,
            clock=clock,
        ),
        CoreLimits(
            DeliveryLimits(start_grace=0.0, tenant_window=window), MailboxLimits(), 1 << 22, TOKEN_SECONDS
        ),
        gate=gate,
        node="bench",
        boot="b1",
    )
    core.recollection.began(1)
    core.remembered.complete = core.revoked.read = True
    ids = iter(range(1, users + 1))
    access = Access(
        _Anybody(), (), revoked=core.revoked, ledger=core.ledger, admission=core.admission, clock=clock
    )
    gateway = Gateway(
        saying=core.saying,
        access=access,
        presence=core.presence,
        proofs=core.proofs,
        hearing=Hearing(
            access=access,
            presence=core.presence,
            proofs=core.proofs,
            publishing=Publishing(_NoInbound(), core.freshness, core.pages, clock),
            subscriptions=core.subscriptions,
            clock=clock,
        ),
        limits=SessionLimits(256, 1 << 20),
        hooks=hooks,
        metrics=metrics,
        clock=clock,
        new_session_id=lambda: f"s{next(ids)}",
    )
    core.begin(0)
    tasks = [asyncio.create_task(part.run()) for part in (core.settlement, core.intake, core.pages)]
    peers = _Peers()
    for number in range(users):
        socket = _Socket(peers)
        claims = Claims(load.user_id(number), time.time() + 1e6)
        opened = gateway.opened(Grant(claims, Mode.BARE, "", None), socket)
        assert isinstance(opened, Client)
        socket.client = opened
    while core.pages.replaying and not any(task.done() for task in tasks):
        core.tick()
        await asyncio.sleep(0.001)
    figures: list[Figures] = []
    for run in range(runs):
        holder.append(_Broker(core, deliveries(count, users, confirm, run, f"r{run:05}")))
        gc.collect()
        blocks = sys.getallocatedblocks()
        before = time.process_time()
        holder[-1].give()
        while not holder[-1].done.is_set():
            for task in tasks:
                if task.done():
                    await task
            core.tick()
            try:
                await asyncio.wait_for(holder[-1].done.wait(), LIMITS.tick)
            except TimeoutError:
                continue
        spent = time.process_time() - before
        gc.collect()
        held = (holder[-1].blocks - blocks) / PREFETCH
        figures.append(Figures(spent, held, sys.getallocatedblocks() - blocks))
    assert peers.frames == count * runs, (peers.frames, count * runs)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print one JSON object.

    By proof: microseconds of CPU for each push (the median of the drains, and the lowest), blocks of memory for each
    push under way, and blocks that stayed allocated at the end of a drain.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core", description=__doc__.splitlines()[0])
    parser.add_argument("--pushes", type=int, default=20_000, help="of one drain [20000]")
    parser.add_argument("--sessions", type=int, default=1_000, help="one user each [1000]")
    parser.add_argument("--runs", type=int, default=5, help="drains, of which the median counts [5]")
    parser.add_argument("--confirm", choices=("written", "received"), action="append")
    parser.add_argument("--tenant-share", choices=("off", "fair"), default="off", help="[off]")
    chosen = parser.parse_args(arguments)
    window = PREFETCH if chosen.tenant_share == "fair" else 0
    gc.freeze()
    gc.set_threshold(LIMITS.new_objects)
    found: dict[str, object] = {"core": Path(str(sys.modules["bridge.core.assembly"].__file__)).suffix}
    for confirm in chosen.confirm or ("written", "received"):
        figures = asyncio.run(drain(chosen.pushes, chosen.sessions, confirm, chosen.runs + 1, window))[1:]
        found[confirm] = {
            "us": round(median(one.seconds for one in figures) / chosen.pushes * 1e6, 2),
            "lowest": round(min(one.seconds for one in figures) / chosen.pushes * 1e6, 2),
            "blocks_held": round(median(one.held for one in figures), 1),
            "blocks_left": median(one.left for one in figures),
        }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
