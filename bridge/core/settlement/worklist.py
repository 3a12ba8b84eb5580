"""What must be settled: callers add it here, and the settlement removes it. Only `idle` waits; nothing does I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bridge.core.inflight.flight import Flight
from bridge.core.inflight.held import HeldMessage
from bridge.core.model.rows import Difference, LateProof, Row, RowKey
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import Metrics


class Aside:
    """A flight whose row could not be written with the others."""

    __slots__ = ("again", "at", "flight", "wait")

    def __init__(self, flight: Flight, at: float, wait: float) -> None:
        self.flight = flight
        self.at = at
        """Monotonic seconds of the next try."""
        self.wait = wait
        """Seconds of the wait before that try."""
        self.again = False
        """Whether it became due again since its last try began."""


class Worklist:
    """Whoever decides an outcome adds to it; the settlement owns what is on it from then on."""

    def __init__(self, *, metrics: Metrics, clock: Clock, late_max: int) -> None:
        """`late_max`: late proofs, and differences, that may wait to be noted."""
        self._metrics = metrics
        self._clock = clock
        self._late_max = late_max
        self.flights: dict[RowKey, Flight] = {}
        """Flights whose rows must be written."""
        self.writing: dict[RowKey, Flight] = {}
        """Flights whose rows are being written."""
        self.aside: dict[RowKey, Aside] = {}
        """Flights whose rows could not be written with the others, and are tried alone."""
        self.aside_wake = asyncio.Event()
        self.answers: list[tuple[HeldMessage, Row, int]] = []
        """Repeats, the rows that answer them, and the fingerprints of what they ask for."""
        self.released: list[HeldMessage] = []
        """Messages whose rows were all settled before `release` was called."""
        self.late_proofs: list[LateProof] = []
        self.differences: list[tuple[Difference, Flight | None]] = []
        self.ended: list[Row] = []
        """Rows that the store has ended."""
        self.sweep_due = False
        self.held_until = 0.0
        """Monotonic seconds until which rows wait for the frames of a push to everyone; 0 while none is sent."""
        self.was_held = False
        """Whether rows were held since the writer began its last batch."""
        self.replace_wake = asyncio.Event()
        self.wake = asyncio.Event()
        self.all_done = asyncio.Event()
        self.all_done.set()
        self.unpaid = 0
        """Written rows, and answers, whose receipts and acks are not finished."""

    def due(self, flight: Flight) -> None:
        """This flight's row must be written: it has ended, or it is parked. Idempotent until written."""
        key = flight.key
        aside = self.aside.get(key) if self.aside else None
        if aside is not None:
            # Its next try writes it as it is then. If a try is under way now, `again` has it written once more.
            aside.flight = to_be_written(flight, aside.flight)
            aside.again = True
            return
        if not self.flights:
            self._stir()  # the writer stays awake as long as it leaves any
        self.flights[key] = to_be_written(flight, self.flights.get(key))

    def is_due(self, flight: Flight) -> bool:
        """Whether this flight's row waits to be written, or is being written."""
        key = flight.key
        aside = self.aside.get(key)
        return (
            self.flights.get(key) is flight
            or self.writing.get(key) is flight
            or (aside is not None and aside.flight is flight)
        )

    def answer(self, message: HeldMessage, row: Row, fingerprint: int) -> None:
        """A request came again and has a row: answer it from the row. `message.open` counts it; `fingerprint` is that
        of the repeat."""
        self.answers.append((message, row, fingerprint))
        self._stir()

    def differs(self, key: RowKey, flight: Flight | None = None) -> None:
        """A request came with this id and other content. `flight`: given where the row may not be written yet."""
        self._metrics.repeat_differs()
        self.differences.append((Difference(key, self._clock.time()), flight))
        if len(self.differences) > self._late_max:
            del self.differences[: max(1, self._late_max // 10)]

    def release(self, message: HeldMessage) -> None:
        """Every row of this message is known now; ack it if all of them are settled already."""
        message.open -= 1
        if message.open == 0:
            self.released.append(message)
            self._stir()

    def late(self, proof: LateProof) -> None:
        """Proof came after the outcome was decided: it only fills time columns."""
        self._metrics.proof_late(1)
        self.note_late(proof)

    def note_late(self, proof: LateProof) -> None:
        """Note proof in a row that does not have it."""
        self.late_proofs.append(proof)
        if len(self.late_proofs) > self._late_max:
            del self.late_proofs[: max(1, self._late_max // 10)]

    def ended_by_sweep(self, rows: Sequence[Row]) -> None:
        """The store has ended these rows: tell logs, hooks and metrics. The sweep pays what they owe."""
        self.ended.extend(rows)
        self._stir()

    def hold(self, until: float) -> None:
        """Let rows wait until then (monotonic seconds): the frames of a push to everyone go first. 0: no longer."""
        self.held_until = until

    @contextmanager
    def holding(self, until: float) -> Iterator[None]:
        """As `hold`, to the end of the block at most. Rows that were held before and are not written since are not held
        again: pushes to everyone may follow one another for long."""
        if not self.was_held:
            self.was_held = True
            self.hold(until)
        try:
            yield
        finally:
            self.hold(0.0)

    def sweep(self) -> None:
        """Have the payer pay debts and note late proofs once. Called every second."""
        self.sweep_due = True
        self.replace_wake.set()
        self._stir()

    def _stir(self) -> None:
        self.all_done.clear()
        self.wake.set()

    @property
    def rows_waiting(self) -> int:
        """Rows that wait for the writer or are being written."""
        return len(self.flights) + len(self.writing) + len(self.aside)

    @property
    def set_aside(self) -> int:
        """Rows that could not be written with the others: each is retried alone."""
        return len(self.aside)

    @property
    def answers_waiting(self) -> int:
        """Repeats that wait to be answered."""
        return len(self.answers)

    async def idle(self) -> None:
        """Return when everything that is due is written, paid and acked."""
        await self.all_done.wait()


def to_be_written(flight: Flight, other: Flight | None) -> Flight:
    """Of two flights for one row, the one whose outcome is decided; it gets the messages of both.

    Two sessions had the push one after the other, each with a flight of its own.
    """
    if other is None or other is flight:
        return flight
    kept, left = (other, flight) if other.ended and not flight.ended else (flight, other)
    kept.messages.extend(left.messages)
    left.messages = []
    if left.differing is not None:
        kept.differing = left.differing | (kept.differing or {})
    return kept
