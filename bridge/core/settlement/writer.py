"""Write rows, with one compare-and-set for each batch. Rows that fail are set aside, and tried alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from bridge.core.bounds import SettlementBounds
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.row_of import carried_by, is_for_crowd, is_light, row_of
from bridge.core.model.rows import Row
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import Metrics
from bridge.core.settlement.commits import Commits
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.payments import Payments, payment_of
from bridge.core.settlement.recording import Recorder
from bridge.core.settlement.replacing import Replacer
from bridge.core.settlement.worklist import Aside, Worklist, to_be_written


class Writer:
    """Removes what is due from the worklist, writes it, and leaves the rest of the settlement to the payer."""

    def __init__(
        self,
        worklist: Worklist,
        payments: Payments,
        commits: Commits,
        replacer: Replacer,
        recorder: Recorder,
        recorder_aside: Recorder,
        *,
        metrics: Metrics,
        clock: Clock,
        gate: Gate,
        node: str,
        boot: str,
        bounds: SettlementBounds,
    ) -> None:
        self._worklist = worklist
        self._payments = payments
        self._commits = commits
        self._replacer = replacer
        self._recorder = recorder
        self._recorder_aside = recorder_aside
        self._metrics = metrics
        self._clock = clock
        self._gate = gate
        self._node = node
        self._boot = boot
        self._batch_rows = bounds.batch_rows
        self._batch_of_crowd, self._many_rows = bounds.batch_of_crowd, bounds.many_rows
        self._batch_bytes = bounds.batch_bytes
        self._batch_answers = bounds.batch_answers
        self._linger = bounds.linger
        self._linger_rows = bounds.linger_rows
        self._frames_look = bounds.frames_look
        self._aside_first = bounds.aside_first
        self._aside_most = bounds.aside_most
        self._aside_many = bounds.aside_many

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            await self._worklist.wake.wait()
            while self._clock.monotonic() < self._worklist.held_until:
                await self._clock.sleep(self._frames_look)
            if self._linger and len(self._worklist.flights) < self._linger_rows:
                await self._clock.sleep(self._linger)
            self._worklist.wake.clear()
            self._worklist.was_held = False
            flights = self._next_batch()
            answers = self._worklist.answers[: self._batch_answers]
            del self._worklist.answers[: self._batch_answers]
            ended = self._worklist.ended[: self._batch_answers]
            del self._worklist.ended[: self._batch_answers]
            if self._worklist.flights or self._worklist.answers or self._worklist.ended:
                self._worklist.wake.set()
            # One waiting sweep is enough, however long the payer takes.
            sweep = self._worklist.sweep_due and not self._payments.sweep_waits
            self._payments.sweep_waits |= sweep
            self._worklist.sweep_due = False
            # These rows owe their receipts already, or will: from here on the payer pays them, not the sweep.
            self._payments.being_paid.update(f.key for f in flights if f.parked or not f.messages)
            self._worklist.writing = {f.key: f for f in flights}
            started = self._clock.monotonic()
            rows = len(flights) + len(answers) + len(ended)
            self._worklist.unpaid += rows
            payment = payment_of(for_logs=ended, sweep=sweep, rows=rows)
            written = await self._recorder.record(self._rows(flights))
            await self._replacer.supersede(
                [*(w.row for w in written if w is not None), *(row for _, row, _ in answers)]
            )
            self._worklist.writing = {}
            if flights:
                self._metrics.recorded(len(flights), self._clock.monotonic() - started)
            released, self._worklist.released = self._worklist.released, []
            payment.released.extend(released)
            for flight, result in zip(flights, written, strict=True):
                if result is None:
                    self._set_aside(flight)
                else:
                    self._commits.committed(flight, result, payment)
            for message, row, fingerprint in answers:
                self._commits.answered(message, row, fingerprint, payment)
            self._commits.tell(payment.for_logs)
            self._payments.put(payment)

    def _next_batch(self) -> list[Flight]:
        """Remove the next flights from the worklist, bounded in rows and in bytes."""
        flights: list[Flight] = []
        size = 0
        carried: set[int] = set()
        many = len(self._worklist.flights) > self._many_rows
        of_crowd = 0
        for flight in itertools.islice(self._worklist.flights.values(), self._batch_rows):
            if many and is_for_crowd(flight):
                of_crowd += 1
                if of_crowd > self._batch_of_crowd:
                    break
            if is_light(flight):
                flights.append(flight)
                continue
            before = size
            for part, part_bytes in carried_by(flight):
                # The flights of one request hold the same objects, which are written once.
                if id(part) not in carried:
                    carried.add(id(part))
                    size += part_bytes
            if flights and size > self._batch_bytes and size > before:
                break
            flights.append(flight)
        for flight in flights:
            del self._worklist.flights[flight.key]
        return flights

    def _rows(self, flights: Sequence[Flight]) -> list[Row]:
        return [row_of(flight, self._node, self._boot) for flight in flights]

    def _set_aside(self, flight: Flight) -> None:
        """Retry its row later: it can't be written now, and the others must not wait for it."""
        key = flight.key
        flight = to_be_written(flight, self._worklist.flights.pop(key, None))
        aside = self._worklist.aside.get(key)
        wait = self._aside_first if aside is None else min(aside.wait * 2, self._aside_most)
        self._worklist.aside[key] = Aside(flight, self._clock.monotonic() + wait, wait)
        if len(self._worklist.aside) > self._aside_many:
            self._gate.shut(
                "rows set aside", f"{len(self._worklist.aside)} rows can't be written; see the log of errors"
            )
        self._worklist.aside_wake.set()

    async def run_aside(self) -> None:
        """Write the rows that were set aside, one after the other, each when its time has come."""
        while True:
            if not self._worklist.aside:
                self._worklist.aside_wake.clear()
                await self._worklist.aside_wake.wait()
            key = min(self._worklist.aside, key=lambda k: self._worklist.aside[k].at)
            aside = self._worklist.aside[key]
            await self._clock.sleep(aside.at - self._clock.monotonic())
            aside.again = False
            [written] = await self._recorder_aside.record(self._rows([aside.flight]), tried=True)
            if written is None:
                self._set_aside(aside.flight)
                continue
            del self._worklist.aside[key]
            if len(self._worklist.aside) <= self._aside_many // 2:
                self._gate.clear("rows set aside")
            if aside.again:
                # Before `committed`: it must not treat the flight as finished.
                self._worklist.due(aside.flight)
            self._worklist.unpaid += 1
            payment = payment_of(rows=1)
            self._commits.committed(aside.flight, written, payment)
            self._commits.tell(payment.for_logs)
            self._payments.put(payment)
