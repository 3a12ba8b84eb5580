"""What is to be done about pushes: messages on `push.control`, carried out one after the other, and answered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from bridge import wire
from bridge.errors import ControlRefused, SchemaBehind, StoreUnavailable
from bridge.gate import Gate
from bridge.mailbox import Mailbox, Recalled
from bridge.model import Recall, Reply
from bridge.ports import Acks, Answers, Arrival, Clock, ErrorHandler, Intake, Source
from bridge.wire import BadControl

RETRY = 0.5
"""Seconds between tries while the database is away."""


class Control:
    """Takes control messages. Each is acked when it was carried out and its answer was published once."""

    def __init__(
        self,
        *,
        mailbox: Mailbox,
        acks: Acks,
        answers: Answers,
        errors: ErrorHandler,
        clock: Clock,
        gate: Gate,
        node: str,
    ) -> None:
        self._mailbox = mailbox
        self._acks = acks
        self._answers = answers
        self._errors = errors
        self._clock = clock
        self._gate = gate
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
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._inbox:
                await self._handle(self._inbox.popleft())

    async def _handle(self, arrival: Arrival) -> None:
        asked = wire.decode_control(arrival.body, arrival.body_size)
        if isinstance(asked, BadControl):
            # Who said it may not have asked for an answer, and believes that it was done.
            self._errors.handle(ControlRefused(asked.problem), "control", {"bytes": arrival.body_size})
            answer = wire.control_error(self._node, asked.problem)
        else:
            started = self._clock.monotonic()
            done = await self._recall(asked)
            took_ms = round((self._clock.monotonic() - started) * 1000, 3)
            answer = wire.control_reply("recall", self._node, done.sessions, took_ms, done.ended)
        properties = arrival.properties
        if properties.reply_to:
            # Asked once more when it is lost: a recall may be repeated as often as one likes.
            await self._answers.answer(Reply(properties.reply_to, properties.correlation_id), answer)
        self._acks.ack([arrival.token])

    async def _recall(self, recall: Recall) -> Recalled:
        while True:
            await self._gate.opened()
            try:
                return await self._mailbox.recall(recall)
            except (StoreUnavailable, SchemaBehind) as away:
                self._gate.shut("database", str(away))
                await self._clock.sleep(RETRY)


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
