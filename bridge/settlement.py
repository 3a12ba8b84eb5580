"""From an outcome to its end: row, receipts, dead letters, and only then the ack. In this order, in batches.

Two tasks, so that the next batch of rows is written while the receipts of the last one are confirmed:

    due ──> writer: one compare-and-set per batch ──> payer: receipts, debts, dead letters ──> ack

The row is the truth: what `Store.record` returns, and nothing else, causes receipts and acks. Everything
that touches what a row owes runs in the payer, one batch after the other, so that it cannot race itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from bridge.errors import BridgeError, RowsRefused, SchemaBehind, StoreUnavailable
from bridge.flight import Flight, Message, merged
from bridge.gate import Gate
from bridge.model import LateProof, Outcome, Reason, Receipt, Reply, Row, RowKey
from bridge.ports import (
    Acks,
    Clock,
    Collapse,
    DeadLetters,
    DeliveryLog,
    ErrorHandler,
    Hooks,
    Metrics,
    Receipts,
    Store,
    Written,
)

BATCH_ROWS = 500
"""Rows in one statement: beyond it figures gain little and a redelivery repeats more."""
LINGER = 0.005
"""Seconds to wait for a batch to fill while there is load; no browser waits for the row."""
LINGER_ROWS = 100
"""A batch of at least this many is not waited for, and one smaller than half of it shows a trickle."""
UNTRIED = frozenset(
    (Reason.QUEUE_EXPIRATION, Reason.MAX_AGE, Reason.POISON, Reason.DELIVERY_LIMIT, Reason.GIVEN_UP)
)
"""Why a push ends that nobody was to have any more when it was taken."""
SWEEP_ROWS = 500
"""Debts paid in one step of a sweep."""
RETRY_FIRST, RETRY_MOST = 0.1, 2.0
"""Seconds between tries while the database is away: doubled from the first to the most."""

T = TypeVar("T")


class _Payment(NamedTuple):
    """What the payer does about a batch of rows that are committed."""

    receipts: list[Receipt]
    owed_by_row: set[RowKey]
    """Rows that carry their debt themselves: cleared when paid, left to the sweep when not."""
    notes: dict[RowKey, tuple[Reply, ...]]
    """Debts to be noted in rows that are not final yet."""
    told: list[Row]
    """Transitions to be told to the logs that are not the store."""
    messages: list[Message]
    """One entry for each (message, row) that is settled once the rest of this payment is done."""
    released: list[Message]
    """Messages whose rows were all settled before the last of them was named."""
    sweep: bool = False


class Settlement:
    """Owns every flight from its outcome to the ack of its messages."""

    def __init__(
        self,
        *,
        store: Store,
        logs: Sequence[DeliveryLog],
        receipts: Receipts,
        dead_letters: DeadLetters,
        acks: Acks,
        hooks: Hooks,
        metrics: Metrics,
        errors: ErrorHandler,
        clock: Clock,
        gate: Gate,
        node: str,
        boot: str,
    ) -> None:
        self._store = store
        self._logs = logs
        self._receipts = receipts
        self._dead_letters = dead_letters
        self._acks = acks
        self._hooks = hooks
        self._metrics = metrics
        self._errors = errors
        self._clock = clock
        self._gate = gate
        self._node = node
        self._boot = boot
        self.on_settled: Callable[[Flight, Row], None] | None = None
        """Told of each flight whose final row is committed, before anything else is done about it."""
        self.on_stored: Callable[[Flight, Row], None] | None = None
        """Told of each flight whose row is committed and says `stored`."""
        self.on_superseded: Callable[[Sequence[Row]], None] | None = None
        """Told of stored rows that newer pushes have just ended."""
        self.first_rows = 0
        """Flights whose first row, final or not, is committed; for the audit."""
        self._due: dict[RowKey, Flight] = {}
        self._answers: list[tuple[Message, Row]] = []
        self._released: list[Message] = []
        self._late: list[LateProof] = []
        self._ended: list[Row] = []
        self._unburied: list[Message] = []
        self._wake = asyncio.Event()
        self._payments: asyncio.Queue[_Payment] = asyncio.Queue(maxsize=4)
        self._paying: set[RowKey] = set()
        self._unsure = False
        """The database has failed to answer while the batch was written: any of it may be there already."""
        self._writing: dict[RowKey, Flight] = {}
        self._sweep_due = False
        self._idle = asyncio.Event()
        self._idle.set()

    # --- what others say to it; all synchronous ---

    def due(self, flight: Flight) -> None:
        """This flight's row must be written: it has ended, or it is parked. Idempotent until written."""
        self._due[flight.key] = flight
        self._stir()

    def is_due(self, flight: Flight) -> bool:
        """Whether this flight's row waits to be written, or is being written."""
        return self._due.get(flight.key) is flight or self._writing.get(flight.key) is flight

    def answer(self, message: Message, row: Row) -> None:
        """A request came again whose row is there: answer it from the row. `message.open` counts it."""
        self._answers.append((message, row))
        self._stir()

    def release(self, message: Message) -> None:
        """The caller has named every row of this message; ack it if all of them are settled already."""
        message.open -= 1
        if message.open == 0:
            self._released.append(message)
            self._stir()

    def give_back(self, message: Message) -> None:
        """Handling this message failed: back to the queue. Flights it has begun end without it."""
        if message.token is not None:
            self._acks.requeue([message.token])
            message.token = None
            if message.done is not None:
                message.done.set()

    def late(self, proof: LateProof) -> None:
        """Proof came after the end: it fills a time column only."""
        self._late.append(proof)

    def ended_by_sweep(self, rows: Sequence[Row]) -> None:
        """The store has ended these rows of a dead boot: tell the logs, hooks and metrics; the sweep pays."""
        self._ended.extend(rows)
        self._stir()

    def sweep(self) -> None:
        """Pay debts and note late proofs, once, when the payer gets to it. Called every second."""
        self._sweep_due = True
        self._stir()

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    @property
    def rows_waiting(self) -> int:
        """Rows that wait for the writer or are being written."""
        return len(self._due) + len(self._writing)

    @property
    def payments_waiting(self) -> int:
        """Batches whose receipts wait for the payer."""
        return self._payments.qsize()

    async def idle(self) -> None:
        """Return when all that is due now is written, paid and acked."""
        await self._idle.wait()

    # --- the two tasks ---

    async def run(self) -> None:
        """Run until cancelled. An error that is none of the ordinary ones ends it, and so the service."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write_forever(), name="settlement writer")
            tasks.create_task(self._pay_forever(), name="settlement payer")

    async def _write_forever(self) -> None:
        busy = False
        while True:
            await self._wake.wait()
            if busy and len(self._due) < LINGER_ROWS:
                await self._clock.sleep(LINGER)
            self._wake.clear()
            keys = list(self._due)[:BATCH_ROWS]
            flights = [self._due.pop(key) for key in keys]
            busy = len(flights) >= LINGER_ROWS // 2
            if self._due:
                self._wake.set()
            answers, self._answers = self._answers, []
            ended, self._ended = self._ended, []
            sweep, self._sweep_due = self._sweep_due, False
            # Parked rows owe their receipts already: the sweep must not pay what is being paid here.
            self._paying.update(f.key for f in flights if f.parked)
            self._writing = dict(zip(keys, flights, strict=True))
            started = self._clock.monotonic()
            rows = [f.row(self._node, self._boot) for f in flights]
            self._unsure = False
            written = await self._record(rows)
            await self._supersede([*(w.row for w in written), *(row for _, row in answers)])
            self._writing = {}
            if flights:
                self._metrics.recorded(len(flights), self._clock.monotonic() - started)
            released, self._released = self._released, []
            payment = _Payment([], set(), {}, ended, [], released, sweep)
            for row in ended:
                self._tell(row)
            for flight, row, result in zip(flights, rows, written, strict=True):
                if not result.applied and self._unsure and result.row.ended_by(row):
                    # An earlier try of this very write was committed though its answer was lost.
                    result = Written(result.row, applied=True)
                self._committed(flight, result, payment)
            for message, row in answers:
                self._answered(message, row, payment)
            await self._payments.put(payment)

    async def _record(self, rows: list[Row]) -> list[Written]:
        """Write a batch; halve it where the database refuses its data, until the culprit is alone."""
        if not rows:
            return []
        try:
            return list(await self._persist(lambda: self._store.record(rows)))
        except RowsRefused as refused:
            if len(rows) > 1:
                half = len(rows) // 2
                return await self._record(rows[:half]) + await self._record(rows[half:])
            self._errors.handle(refused, "store.record", {"push_id": rows[0].key.push_id})
            plain = _storable(rows[0], refused)
            if plain == rows[0]:
                raise
            return await self._record([plain])

    async def _supersede(self, rows: Sequence[Row]) -> None:
        """End what these pushes replace: after their own rows are there, and before their messages are acked.

        Rows of pushes that came again are among them: a process may have died in between. What was given up
        before it was tried replaces nothing: it comes late, behind pushes that are newer than it.
        """
        newer = [
            Collapse(row.key.tenant, row.key.user, row.collapse_key, row.position)
            for row in rows
            if row.collapse_key and not _untried(row)
        ]
        if newer and self.on_superseded is not None:
            ended = await self._persist(lambda: self._store.supersede(newer))
            if ended:
                self.on_superseded(ended)

    async def _persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a write of the store until it is done, holding the gate shut while the database is away."""
        wait = RETRY_FIRST
        while True:
            try:
                result = await call()
            except (StoreUnavailable, SchemaBehind) as away:
                self._unsure = True
                self._gate.shut("database", str(away))
                await self._clock.sleep(wait)
                wait = min(wait * 2, RETRY_MOST)
            else:
                self._gate.clear("database")
                return result

    def _committed(self, flight: Flight, written: Written, payment: _Payment) -> None:
        """Take in what the row is now. Synchronous: a copy that joins does so before it or finds the row."""
        row = written.row
        first = not flight.parked
        if first:
            self.first_rows += 1
            flight.parked = True
        messages, flight.messages = flight.messages, []
        if written.applied and (first or row.final):
            self._tell(row)
            payment.told.append(row)
        if not row.final:
            # Parked. The replies of messages that joined while the row was written are not in it yet.
            covered = [m for m in messages if set(m.replies) <= set(row.owed or ())]
            flight.messages = [m for m in messages if m not in covered]
            payment.messages.extend(covered)
            self._paying.discard(row.key)
            if flight.messages:
                self.due(flight)
            if flight.kept is not None:
                if row.reason is not Reason.AWAITING_PROOF and not flight.kept.told:
                    # Not final, and not owed: who wants to know that it is kept may hear of it.
                    flight.kept.told = True
                    payment.receipts.append(Receipt(row, row.owed or ()))
                if self.on_stored is not None:
                    self.on_stored(flight, row)
            return
        flight.end(row.outcome, row.reason, row.finished_at or row.taken_at)
        if self._due.get(row.key) is flight:
            # Named once more while it was written: written again it would be announced again, or not be found.
            del self._due[row.key]
        if self.on_settled is not None:
            self.on_settled(flight, row)
        replies = merged(*(m.replies for m in messages))
        if written.applied:
            payment.receipts.append(Receipt(row, merged(replies, row.owed or ())))
            if row.owed is not None:
                payment.owed_by_row.add(row.key)
                self._paying.add(row.key)
        else:
            # Ended by somebody else: what that row owes is the sweep's.
            self._paying.discard(row.key)
            for _ in messages:
                self._metrics.repeat(row.outcome)
            again = any(m.redelivered for m in messages)
            if replies or again:
                payment.receipts.append(Receipt(row, replies, announce=again))
        payment.messages.extend(messages)

    def _answered(self, message: Message, row: Row, payment: _Payment) -> None:
        self._metrics.repeat(row.outcome)
        if row.final:
            # Redelivered: the receipt may have been lost with the connection, so it is announced again.
            if message.replies or message.redelivered:
                payment.receipts.append(Receipt(row, message.replies, announce=message.redelivered))
        elif message.replies:
            payment.notes[row.key] = merged(payment.notes.get(row.key, ()), message.replies)
        payment.messages.append(message)

    def _tell(self, row: Row) -> None:
        self._metrics.outcome(row)
        self._hooks.on_outcome(row)

    async def _pay_forever(self) -> None:
        while True:
            payment = await self._payments.get()
            if payment.told:
                await self._told(payment.told)
            if payment.receipts:
                await self._send(payment)
            if payment.notes:
                await self._persist(partial(self._store.owe, payment.notes))
            await self._settle_messages(payment)
            if payment.sweep:
                await self._sweep()
            if self._payments.empty() and not (self._due or self._writing or self._wake.is_set()):
                self._idle.set()

    async def _told(self, rows: Sequence[Row]) -> None:
        """Tell the logs; each until it has the rows, since the ack follows."""
        for log in self._logs:
            wait = RETRY_FIRST
            while True:
                try:
                    await log.record(rows)
                except Exception as error:  # a plugged-in log may raise anything, and none may lose a row
                    self._gate.shut("delivery log", repr(error))
                    self._errors.handle(error, "delivery_log.record", {"rows": len(rows)})
                    await self._clock.sleep(wait)
                    wait = min(wait * 2, RETRY_MOST)
                else:
                    self._gate.clear("delivery log")
                    break

    async def _send(self, payment: _Payment) -> bool:
        """Send receipts; what is not confirmed becomes, or stays, a debt of its row. False where that is any."""
        started = self._clock.monotonic()
        unsent = await self._receipts.send(payment.receipts)
        self._metrics.receipts(
            len(payment.receipts) - len(unsent), len(unsent), self._clock.monotonic() - started
        )
        debts: dict[RowKey, tuple[Reply, ...]] = {}
        paid = {r.row.key: r.replies for r in payment.receipts if r.row.key in payment.owed_by_row}
        for receipt in unsent:
            if not receipt.row.final:
                continue
            key = receipt.row.key
            paid.pop(key, None)
            # Messages that joined while the end was being written ask for more than the row owes already.
            if key not in payment.owed_by_row or not set(receipt.replies) <= set(receipt.row.owed or ()):
                debts[key] = merged(debts.get(key, ()), receipt.replies)
        if debts:
            await self._persist(lambda: self._store.owe(debts))
        if paid:
            await self._persist(lambda: self._store.settle(paid))
        self._paying.difference_update(payment.owed_by_row)
        return not unsent

    async def _settle_messages(self, payment: _Payment) -> None:
        done = payment.released
        for message in payment.messages:
            message.open -= 1
            if message.open == 0:
                done.append(message)
        await self._finish(done)

    async def _finish(self, messages: Sequence[Message]) -> None:
        """All rows of these messages are settled: bury their dead letters, ack those that have none left."""
        letters = [letter for m in messages if m.token is not None for letter in m.letters]
        if letters:
            unburied = {id(letter) for letter in await self._dead_letters.bury(letters)}
            for message in messages:
                message.letters = [letter for letter in message.letters if id(letter) in unburied]
            self._unburied.extend(m for m in messages if m.letters and m.token is not None)
        tokens = []
        for message in messages:
            if message.letters:
                # While the broker takes no publishes it waits for its ack; who handles it alone need not.
                if message.done is not None:
                    message.done.set()
                continue
            if message.token is not None:
                tokens.append(message.token)
                message.token = None
            if message.done is not None:
                message.done.set()
        if tokens:
            self._acks.ack(tokens)

    async def _sweep(self) -> None:
        """Pay debts of rows whose messages are acked, and note late proofs. A failure waits for the next."""
        try:
            # Of rows that are written: what is yet to end would not be found.
            late = [p for p in self._late if p.key not in self._due and p.key not in self._writing]
            self._late = [p for p in self._late if p.key in self._due or p.key in self._writing]
            if late:
                try:
                    await self._store.prove_late(late)
                except BridgeError:
                    self._late = late + self._late
                    raise
            if self._receipts.blocked:
                return
            unburied, self._unburied = self._unburied, []
            await self._finish(unburied)
            found = await self._store.owing(SWEEP_ROWS)
            owing = [r for r in found if r.key not in self._paying]
            if not owing:
                return
            payment = _Payment(
                [Receipt(r, r.owed or ()) for r in owing], {r.key for r in owing}, {}, [], [], []
            )
            if await self._send(payment) and len(found) == SWEEP_ROWS:
                # There are more; what has come to be paid meanwhile goes first.
                self.sweep()
        except (StoreUnavailable, SchemaBehind) as away:
            self._gate.shut("database", str(away))


def _untried(row: Row) -> bool:
    """Whether nobody was to have this push any more when it was taken."""
    late = row.outcome is Outcome.EXPIRED and row.sessions == 0
    return late or row.reason in UNTRIED


def _storable(row: Row, refused: RowsRefused) -> Row:
    """The same truth without what a database can refuse; `detail` says that something was left out.

    The data of a kept push are bytes that no database refuses, and what is owed is written so that it is none.
    """
    return msgspec.structs.replace(
        row,
        app_id="",
        meta=b"",
        payload=row.payload if row.expires_at is not None else None,
        ack_within=0.0,
        traceparent="",
        published_at=row.taken_at,
        detail=f"left out what the database refused ({refused.sqlstate})",
    )
