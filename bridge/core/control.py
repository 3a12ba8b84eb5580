"""What is to be done about pushes: messages on `push.control`, carried out a few at a time, and answered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from bridge.core.contract.control import BadControl, control_error, control_reply, decode_control
from bridge.core.errors import ControlRefused, StatementFailed
from bridge.core.mailbox.recalls import Recalled, Recalls
from bridge.core.model.pushes import Recall
from bridge.core.model.rows import Reply
from bridge.core.ports.broker import Acks, Answers, Arrival, Intake, Source
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import Store
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence

AT_ONCE = 4
"""Messages that are carried out at a time: a recall of a million rows does not hold up the next one."""
RETRY = 5.0
"""Seconds until that is tried again which failed though the database is there; others go first."""


class Control:
    """Takes control messages. Each is acked when it was carried out and its answer was published once."""

    def __init__(
        self,
        *,
        store: Store,
        recalls: Recalls,
        acks: Acks,
        answers: Answers,
        errors: ErrorHandler,
        clock: Clock,
        gate: Gate,
        node: str,
    ) -> None:
        self._recalls = recalls
        self._acks = acks
        self._answers = answers
        self._errors = errors
        self._clock = clock
        self._gate = gate
        self._persistence = Persistence(store, gate, clock, "control")
        self._node = node
        self._inbox: deque[Arrival] = deque()
        self._wake = asyncio.Event()

    def arrived(self, batch: Sequence[Arrival]) -> None:
        """Messages of `Source.CONTROL`, in the order of the queue."""
        self._inbox.extend(batch)
        self._wake.set()

    def channel_lost(self, incarnation: int) -> None:
        """Messages of this channel will come again."""
        self._inbox = deque(a for a in self._inbox if a.token.incarnation > incarnation)

    async def run(self) -> None:
        """Carry out what arrives, until cancelled; what is unacked then comes again."""
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
            await self._carry_out(arrival)
            return
        except StatementFailed as failed:
            self._errors.handle(failed, "control.recall", {"bytes": arrival.body_size})
        finally:
            room.release()
        await self._clock.sleep(RETRY)
        self._inbox.append(arrival)
        self._wake.set()

    async def _carry_out(self, arrival: Arrival) -> None:
        asked = decode_control(arrival.body, arrival.body_size)
        if isinstance(asked, BadControl):
            # Who said it may not have asked for an answer, and believes that it was done.
            self._errors.handle(ControlRefused(asked.problem), "control", {"bytes": arrival.body_size})
            answer = control_error(self._node, asked.problem)
        else:
            started = self._clock.monotonic()
            done = await self._recall(asked)
            took_ms = round((self._clock.monotonic() - started) * 1000, 3)
            answer = control_reply("recall", self._node, done.sessions, took_ms, done.ended)
        properties = arrival.properties
        if properties.reply_to:
            # Asked once more when it is lost: a recall may be repeated as often as one likes.
            await self._answers.answer(Reply(properties.reply_to, properties.correlation_id), answer)
        self._acks.ack([arrival.token])

    async def _recall(self, recall: Recall) -> Recalled:
        await self._gate.opened()
        return await self._persistence.call(lambda: self._recalls.recall(recall))


class Switch:
    """Fills the Intake port: pushes to one side, control messages to the other."""

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
