"""Control messages: each goes to the handler of its type, a few at a time, and is answered.

A new type is one more handler and its line in `HANDLERS`, once `decode_control` reads it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from bridge.core.bounds import StatementBounds
from bridge.core.contract.control import (
    BadControl,
    control_error,
    control_reply,
    decode_control,
    revoke_reply,
)
from bridge.core.delivery.revoking import Revoking
from bridge.core.errors import ControlRefused, StatementFailed
from bridge.core.mailbox.recalls import Recalls
from bridge.core.model.pushes import Recall
from bridge.core.model.revocations import Revocation
from bridge.core.model.rows import Reply
from bridge.core.ports.broker import Acks, AckToken, Answers, Arrival, Intake, Source
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import Store
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence

AT_ONCE = 4
"""Messages that are carried out at a time, so that a recall of a million rows does not hold up the next one."""
TRY_AGAIN = 5.0
"""Seconds until a message is tried again that failed though the database is up. Others go first."""


class Handler(NamedTuple):
    """How messages of one type are carried out."""

    name: str
    """The `type` of the message."""
    carry_out: Callable[[Control, Any], Awaitable[Callable[[float], bytes]]]
    """Gets what `decode_control` made of the message; returns what encodes the answer, given the milliseconds that it
    took. Safe to run again. Raises StatementFailed where the database fails it though it is up; while the database is
    down it waits."""


class Control:
    """Takes control messages. Each is acked when it was carried out and its answer was published once."""

    def __init__(
        self,
        *,
        store: Store,
        recalls: Recalls,
        revoking: Revoking,
        acks: Acks,
        answers: Answers,
        errors: ErrorHandler,
        clock: Clock,
        gate: Gate,
        node: str,
        bounds: StatementBounds,
    ) -> None:
        self._recalls = recalls
        self._revoking = revoking
        self._acks = acks
        self._answers = answers
        self._errors = errors
        self._clock = clock
        self._gate = gate
        self._persistence = Persistence(store, gate, clock, "control", bounds)
        self._node = node
        self._inbox: deque[Arrival] = deque()
        self._wake = asyncio.Event()

    def arrived(self, batch: Sequence[Arrival]) -> None:
        """Messages of `Source.CONTROL`, in the order of the queue."""
        self._inbox.extend(batch)
        self._wake.set()

    def channel_lost(self, incarnation: int) -> None:
        """Messages of this channel will come again."""
        self._inbox = deque(a for a in self._inbox if a.token.incarnation != incarnation)

    def give_back(self, incarnation: int) -> Sequence[AckToken]:
        """See the port."""
        tokens = [a.token for a in self._inbox if a.token.incarnation == incarnation]
        self.channel_lost(incarnation)
        return tokens

    async def run(self) -> None:
        """Carry out what arrives, until cancelled. Messages that are not acked by then come again."""
        room = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._wake.wait()
                await room.acquire()
                if self._inbox:
                    tasks.create_task(self._handle(self._inbox.popleft(), room), name="control message")
                else:
                    self._wake.clear()
                    room.release()

    async def _handle(self, arrival: Arrival, room: asyncio.Semaphore) -> None:
        try:
            asked = decode_control(arrival.body, arrival.body_size)
            answer: bytes | None
            if isinstance(asked, BadControl):
                answer = self._refuse(asked, arrival)
            else:
                answer = await self._carry_out(asked, arrival)
            if answer is not None:
                await self._finish(arrival, answer)
                return
        finally:
            room.release()
        await self._clock.sleep(TRY_AGAIN)
        self._inbox.append(arrival)
        self._wake.set()

    def _refuse(self, asked: BadControl, arrival: Arrival) -> bytes:
        # Whoever sent it may have asked for no answer, and believes that it was carried out.
        self._errors.handle(ControlRefused(asked.problem), "control", {"bytes": arrival.body_size})
        return control_error(self._node, asked.problem)

    async def _carry_out(self, asked: Recall | Revocation, arrival: Arrival) -> bytes | None:
        """The answer; None where it failed and is to be tried again."""
        handler = HANDLERS[type(asked)]
        started = self._clock.monotonic()
        try:
            reply = await handler.carry_out(self, asked)
        except StatementFailed as failed:
            self._errors.handle(failed, f"control.{handler.name}", {"bytes": arrival.body_size})
            return None
        return reply(round((self._clock.monotonic() - started) * 1000, 3))

    async def _finish(self, arrival: Arrival, answer: bytes) -> None:
        properties = arrival.properties
        if properties.reply_to:
            # Published once. Who misses the answer asks again: every message may be repeated.
            await self._answers.answer(Reply(properties.reply_to, properties.correlation_id), answer)
        self._acks.ack([arrival.token])

    async def _recall(self, recall: Recall) -> Callable[[float], bytes]:
        await self._gate.opened()
        done = await self._persistence.call(lambda: self._recalls.recall(recall))
        return lambda took_ms: control_reply("recall", self._node, done.sessions, took_ms, done.ended)

    async def _revoke(self, revocation: Revocation) -> Callable[[float], bytes]:
        answer = await self._persistence.call(lambda: self._revoking.revoke(revocation))
        return lambda took_ms: revoke_reply(self._node, answer, took_ms)


HANDLERS: Final[Mapping[type, Handler]] = {
    Recall: Handler("recall", Control._recall),
    Revocation: Handler("revoke", Control._revoke),
}
"""By what `decode_control` makes of a message."""


class Switch:
    """Fills the Intake port: hands pushes to one intake and control messages to the other."""

    def __init__(self, pushes: Intake, control: Intake) -> None:
        self._pushes = pushes
        self._control = control

    def arrived(self, batch: Sequence[Arrival]) -> None:
        """See the port."""
        control = [a for a in batch if a.source is Source.CONTROL]
        if not control:
            self._pushes.arrived(batch)
            return
        self._control.arrived(control)
        pushes = [a for a in batch if a.source is not Source.CONTROL]
        if pushes:
            self._pushes.arrived(pushes)

    def channel_lost(self, incarnation: int) -> None:
        """See the port."""
        self._pushes.channel_lost(incarnation)
        self._control.channel_lost(incarnation)

    def give_back(self, incarnation: int) -> Sequence[AckToken]:
        """See the port."""
        return [*self._pushes.give_back(incarnation), *self._control.give_back(incarnation)]
