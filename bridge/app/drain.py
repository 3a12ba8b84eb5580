"""The stop: take no more, settle what was taken, give back the rest, close the sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple

from bridge.adapters.amqp.partitions import TakesRequests
from bridge.adapters.websocket.server import WebSocketServer
from bridge.app.limits import ServiceLimits
from bridge.app.node import Node
from bridge.core.errors import StoreUnavailable
from bridge.core.ports.store import Lease


class Left(NamedTuple):
    """What a stop has left behind; `words` for the log."""

    seconds: float
    given_back: int
    """Messages that were taken and are in their queue again."""
    pending: int
    """Rows that still wait for a proof, which nobody will note."""
    stored: int
    """Kept pushes that were handed to sessions and not proven."""
    sessions: int
    """Sessions that were closed,"""
    in_haste: int = 0
    """and those of them that were closed at the end, all at once."""

    @property
    def words(self) -> str:
        """One sentence."""
        parts = [f"{_counted(self.given_back, 'message')} back in the queue" if self.given_back else ""]
        if self.pending:
            parts.append(
                f"{_counted(self.pending, 'row')} pending: the next start of this node, or another node, ends them as "
                "unknown/node_died"
            )
        if self.stored:
            parts.append(f"{_counted(self.stored, 'push', 'pushes')} kept for when their users come back")
        haste = f", {self.in_haste} of them at once at the end" if self.in_haste else ""
        parts.append(f"{_counted(self.sessions, 'session')} closed{haste}")
        settled = "" if self.given_back or self.pending else "everything that was taken is settled"
        return f"stopped after {self.seconds:.1f} s: {'; '.join(p for p in (settled, *parts) if p)}"


class Drain:
    """Stops a bridge once. When `hurry` is set it no longer waits for anything: see `bridge.app.signals`."""

    def __init__(
        self,
        node: Node,
        ws: WebSocketServer,
        consumer: TakesRequests,
        lease: Lease,
        limits: ServiceLimits,
        hurry: asyncio.Event,
    ) -> None:
        self._node = node
        self._ws = ws
        self._consumer = consumer
        self._lease = lease
        self._limits = limits
        self._hurry = hurry
        self._began = 0.0
        self._given_back = self._in_haste = 0

    async def run(self, seconds: float, *, settle: bool = True) -> None:
        """Stop, and settle for at most `seconds`; with `settle` false, not at all.

        The order is part of the promise. What has no row yet is settled and acked before the channel closes, and only
        the rest goes back to the queue. Then another node takes, and sessions get what it forwards until they are
        closed. Each stays open until the pushes that are on their way to it have ended, while there is time.
        """
        node = self._node
        self._began = node.clock.monotonic()
        deadline = self._began + seconds
        node.access.begin_drain()
        self._ws.stop_accepting()
        node.gate.shut("draining", "this process is stopping")
        if "starting" not in node.gate:
            await self._unless_hurried(self._say(), self._limits.saying_seconds)
        if self._ws.leave_port is not None:
            await self._ws.leave_port()
        if settle:
            await self._unless_hurried(self._settle_taken(), seconds)
        self._given_back = self._consumer.held
        await self._consumer.stop_consuming()
        await self._close_sessions(max(1.0, deadline - node.clock.monotonic()), settle=settle)
        if settle:
            await self._unless_hurried(self._settle(), max(0.0, deadline - node.clock.monotonic()))
        await self._unless_hurried(self._record(), self._limits.recording_seconds)

    def left(self) -> Left:
        """What the stop has left behind. Ask once nothing is settled any more."""
        node = self._node
        return Left(
            node.clock.monotonic() - self._began,
            self._given_back,
            node.core.inflight.busy - node.core.inflight.account().on_their_way,
            node.core.inflight.resting,
            node.core.moving.closed,
            self._in_haste,
        )

    async def _say(self) -> None:
        """Let people know by the database that this process stops."""
        try:
            await self._lease.stopping()
        except StoreUnavailable as down:
            self._node.core.ports.errors.handle(down, "lease.stopping", {})

    async def _settle_taken(self) -> None:
        """Return when every message that was taken is acked: its push has a row, be it one that waits for a proof."""
        node = self._node
        await node.core.intake.stop()
        core = node.core
        while (
            core.inflight.account().on_their_way
            or core.worklist.rows_waiting
            or core.scheduling.later.waiting
        ):
            await node.clock.sleep(self._limits.settling_look)
        await node.core.worklist.idle()

    async def _settle(self) -> None:
        """Return when every push that was taken has ended."""
        node = self._node
        while node.core.inflight.busy or node.core.worklist.rows_waiting:
            await node.clock.sleep(self._limits.settling_look)
        await node.core.worklist.idle()

    async def _record(self) -> None:
        """Write in the ledger that these sessions have closed, tell it, and report to other nodes what was proven."""
        core = self._node.core
        if core.recording is not None:
            try:
                await core.recording.flush()
            except StoreUnavailable as down:
                # Another node, or the next start of this one, ends them.
                core.ports.errors.handle(down, "ledger.note", {"waiting": len(core.ledger)})
            await core.announcing.flush()
        while core.cluster.post.busy:
            await self._node.clock.sleep(self._limits.settling_look)

    async def _unless_hurried(self, work: Coroutine[Any, Any, None], seconds: float) -> None:
        """Run `work` until it is done, for at most `seconds`, or until somebody is in a hurry."""
        working = asyncio.create_task(work, name="settling the rest")
        hurrying = asyncio.create_task(self._hurry.wait(), name="hurry")
        try:
            await asyncio.wait((working, hurrying), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, hurrying):
                task.cancel()
            await asyncio.gather(working, hurrying, return_exceptions=True)

    async def _close_sessions(self, seconds: float, *, settle: bool) -> None:
        """Close every session with 1012, at the rate that is set; those that are left after `seconds`, at once.

        Where there is no other node their clients have nowhere to go before the next start. So all are closed once
        their pushes have ended, and only their return is spread.
        """
        node, moving = self._node, self._node.core.moving
        elsewhere = node.core.cluster.neighbours.any
        if elsewhere:
            moving.everybody(patient=settle)
            await self._unless_hurried(self._moved(), seconds)
        elif settle:
            await self._unless_hurried(self._settle(), seconds)
        for count, _ in enumerate(moving.the_rest(), 1):
            self._in_haste = count if elsewhere else 0
            if count % self._limits.closed_at_once == 0:
                await node.clock.sleep(0)

    async def _moved(self) -> None:
        """Return when no session is left."""
        node, moving = self._node, self._node.core.moving
        while len(moving):
            moving.tick(node.clock.monotonic())
            await node.clock.sleep(self._limits.settling_look)


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
