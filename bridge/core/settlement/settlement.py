"""From an outcome to its end: row, receipts, dead letters, and only then the ack. In this order, in batches.

Two tasks, so that the next batch of rows is written while the receipts of the last one are confirmed:

    due ──> writer: one compare-and-set per batch ──> payer: receipts, debts, dead letters ──> ack

The row is the truth: what `Store.record` returns, and nothing else, causes receipts and acks. Everything
that touches what a row owes runs in the payer, one batch after the other, so that it cannot race itself.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias

from bridge.core.errors import StatementFailed
from bridge.core.inflight.flight import OWED_MAX, Flight, Message, merged
from bridge.core.model.fingerprint import differ
from bridge.core.model.outcomes import DELIVERED, Outcome, Proof, Reason
from bridge.core.model.rows import Difference, LateProof, Receipt, Reply, Row, RowKey
from bridge.core.ports.broker import Acks, DeadLetters, Receipts
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import DeliveryLog, ErrorHandler, Hooks, Metrics
from bridge.core.ports.store import Collapse, Store, Superseded, Written
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import LOG_RETRY_FIRST, LOG_RETRY_MOST, PARTS, SWEEP_ROWS, Persistence
from bridge.core.settlement.recording import UNTRIED, Recorder
from bridge.core.settlement.worklist import Aside, Worklist, to_be_written

BATCH_ROWS = 500
"""Rows in one statement: beyond it figures gain little and a redelivery repeats more."""
BATCH_BYTES = 1024 * 1024
"""Bytes of data, except lists and meta after which a batch ends; what several rows share counts once."""
BATCH_ANSWERS = 1000
"""Repeats that are answered, and rows ended by sweeps that are told, with one batch."""
LINGER = 0.005
"""Seconds to wait for a batch to fill while there is load; no browser waits for the row."""
LINGER_ROWS = 100
"""A batch of at least this many is not waited for, and one smaller than half of it shows a trickle."""
ASIDE_FIRST, ASIDE_MOST = 0.1, 30.0
"""Seconds until a row that could not be written is tried again: doubled from the first to the most."""
ASIDE_MANY = 1000
"""Rows set aside over which nothing more is taken: that is no single row's fault any more."""
REPLACE_TRIES, REPLACE_WAIT = 3, 0.02
"""How often it is tried at once to end what is replaced, and the seconds in between."""
DAY = 86_400.0


_Place: TypeAlias = tuple[str, str, str]
"""Tenant, user and collapse key."""


class _Payment(NamedTuple):
    """What the payer does about a batch of rows that are committed."""

    receipts: list[Receipt]
    owed_by_row: set[RowKey]
    """Rows that carry their debt themselves: cleared when paid, left to the sweep when not."""
    notes: dict[RowKey, list[tuple[Message, tuple[Reply, ...]]]]
    """By rows that are not final yet, the messages that want to hear of the end, and where."""
    told: list[Row]
    """Transitions to be told to the logs that are not the store."""
    messages: list[tuple[Message, RowKey]]
    """One entry for each message and row that are settled once the rest of this payment is done."""
    released: list[Message]
    """Messages whose rows were all settled before the last of them was named."""
    sweep: bool = False
    rows: int = 0
    """How many it is about; see `Worklist.unpaid`."""


class _Note(NamedTuple):
    """A debt that could not be noted in its row; the message stays unacked until it is."""

    key: RowKey
    replies: tuple[Reply, ...]
    message: Message | None


class Settlement:
    """Owns every flight from its outcome to the ack of its messages."""

    def __init__(
        self,
        *,
        worklist: Worklist,
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
        on_settled: Callable[[Flight, Row], None],
        on_stored: Callable[[Flight, Row], None],
        on_superseded: Callable[[Sequence[Row]], None],
    ) -> None:
        """`on_settled` is told of each flight whose final row is committed, before anything else is done about it;
        `on_stored` of each whose row is committed and says `stored`; `on_superseded` of stored rows that newer pushes
        have just ended."""
        self._work = worklist
        self._store = store
        self._writing_persistence = Persistence(store, gate, clock, "rows")
        self._recorder = Recorder(store, self._writing_persistence, errors)
        self._paying_persistence = Persistence(store, gate, clock, "debts")
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
        self._on_settled = on_settled
        self._on_stored = on_stored
        self._on_superseded = on_superseded
        self._unreplaced: dict[_Place, Collapse] = {}
        """Of pushes whose older ones could not be ended the newest, by tenant, user and key."""
        self._rested: dict[RowKey, tuple[float, float]] = {}
        """Rows whose debts are paid and could not be settled: until when (monotonic) they are not paid again, and for
        how many seconds that is."""
        self._unfinished: list[Message] = []
        """Settled, but for a dead letter or an answer that the broker has not confirmed."""
        self._unnoted: list[_Note] = []
        self._sweep_rows = SWEEP_ROWS
        # Without a bound of its own: a row is never to wait for a broker that is silent. `Worklist.unpaid` is bounded.
        self._payments: asyncio.Queue[_Payment] = asyncio.Queue()
        self._sweeps = False
        """A sweep is among the payments."""
        self._paying: set[RowKey] = set()

    @property
    def payments_waiting(self) -> int:
        """Batches whose receipts wait for the payer."""
        return self._payments.qsize()

    # --- the tasks ---

    async def run(self) -> None:
        """Run until cancelled. An error that is none of the ordinary ones ends it, and so the service."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write_forever(), name="settlement writer")
            tasks.create_task(self._write_aside_forever(), name="settlement writer of what was set aside")
            tasks.create_task(self._replace_later_forever(), name="settlement of what was replaced")
            tasks.create_task(self._pay_forever(), name="settlement payer")

    async def _write_forever(self) -> None:
        busy = False
        while True:
            await self._work.wake.wait()
            if busy and len(self._work.flights) < LINGER_ROWS:
                await self._clock.sleep(LINGER)
            self._work.wake.clear()
            flights = self._next_batch()
            busy = len(flights) >= LINGER_ROWS // 2
            answers = self._work.answers[:BATCH_ANSWERS]
            del self._work.answers[:BATCH_ANSWERS]
            ended = self._work.ended[:BATCH_ANSWERS]
            del self._work.ended[:BATCH_ANSWERS]
            if self._work.flights or self._work.answers or self._work.ended:
                self._work.wake.set()
            # One that waits for its turn is enough, however long the payer takes.
            sweep = self._work.sweep_due and not self._sweeps
            self._sweeps |= sweep
            self._work.sweep_due = False
            # Parked rows owe their receipts already: the sweep must not pay what is being paid here.
            self._paying.update(f.key for f in flights if f.parked)
            self._work.writing = {f.key: f for f in flights}
            started = self._clock.monotonic()
            rows = len(flights) + len(answers) + len(ended)
            self._work.unpaid += rows
            payment = _Payment([], set(), {}, ended, [], [], sweep, rows)
            written = await self._record(flights, self._recorder, self._writing_persistence)
            await self._supersede(
                [*(w.row for w in written if w is not None), *(row for _, row, _ in answers)]
            )
            self._work.writing = {}
            if flights:
                self._metrics.recorded(len(flights), self._clock.monotonic() - started)
            released, self._work.released = self._work.released, []
            payment.released.extend(released)
            for row in ended:
                self._tell(row)
            for flight, result in zip(flights, written, strict=True):
                if result is None:
                    self._set_aside(flight)
                else:
                    self._committed(flight, result, payment)
            for message, row, fingerprint in answers:
                self._answered(message, row, fingerprint, payment)
            self._payments.put_nowait(payment)

    def _next_batch(self) -> list[Flight]:
        """The flights that are written next, bounded in rows and in what they carry."""
        flights: list[Flight] = []
        size = 0
        carried: set[int] = set()
        for flight in itertools.islice(self._work.flights.values(), BATCH_ROWS):
            if flight.light:
                flights.append(flight)
                continue
            before = size
            for part, part_bytes in flight.carries():
                # The flights of one request hold the same objects, which are written once.
                if id(part) not in carried:
                    carried.add(id(part))
                    size += part_bytes
            if flights and size > BATCH_BYTES and size > before:
                break
            flights.append(flight)
        for flight in flights:
            del self._work.flights[flight.key]
        return flights

    async def _record(
        self, flights: Sequence[Flight], recorder: Recorder, persistence: Persistence, *, tried: bool = False
    ) -> list[Written | None]:
        rows = [f.row(self._node, self._boot) for f in flights]
        persistence.unsure = tried
        written = await recorder.record(rows)
        if persistence.unsure:
            # An earlier try of this very write may have been committed though its answer was lost.
            written = [
                Written(w.row, applied=True) if w is not None and not w.applied and w.row.ended_by(row) else w
                for row, w in zip(rows, written, strict=True)
            ]
        return written

    def _set_aside(self, flight: Flight) -> None:
        """Its row can't be written now, and the others must not wait for it."""
        key = flight.key
        flight = to_be_written(flight, self._work.flights.pop(key, None))
        aside = self._work.aside.get(key)
        wait = ASIDE_FIRST if aside is None else min(aside.wait * 2, ASIDE_MOST)
        self._work.aside[key] = Aside(flight, self._clock.monotonic() + wait, wait)
        if len(self._work.aside) > ASIDE_MANY:
            self._gate.shut(
                "rows set aside", f"{len(self._work.aside)} rows can't be written; see the log of errors"
            )
        self._work.aside_wake.set()

    async def _write_aside_forever(self) -> None:
        """Write what was set aside, one row after the other, each when its time has come."""
        persistence = Persistence(self._store, self._gate, self._clock, "rows tried again")
        recorder = Recorder(self._store, persistence, self._errors)
        while True:
            if not self._work.aside:
                self._work.aside_wake.clear()
                await self._work.aside_wake.wait()
            key = min(self._work.aside, key=lambda k: self._work.aside[k].at)
            aside = self._work.aside[key]
            await self._clock.sleep(aside.at - self._clock.monotonic())
            aside.again = False
            [written] = await self._record([aside.flight], recorder, persistence, tried=True)
            if written is None:
                self._set_aside(aside.flight)
                continue
            del self._work.aside[key]
            if len(self._work.aside) <= ASIDE_MANY // 2:
                self._gate.clear("rows set aside")
            if aside.again:
                # Before others hear of the row: it must not pass for one whose flight is over.
                self._work.due(aside.flight)
            self._work.unpaid += 1
            payment = _Payment([], set(), {}, [], [], [], rows=1)
            self._committed(aside.flight, written, payment)
            self._payments.put_nowait(payment)

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
        highest: dict[_Place, Collapse] = {}
        for one in newer:
            place = _place(one)
            later = self._unreplaced.get(place)
            if later is not None:
                # It waits for what could not be ended; it is not waited for here.
                self._unreplaced[place] = max(later, one, key=lambda c: c.position)
            elif place not in highest or highest[place].position < one.position:
                highest[place] = one
        every = list(highest.values())
        for at in range(0, len(every), BATCH_ROWS):
            await self._replace(every[at : at + BATCH_ROWS])

    async def _replace(self, newer: Sequence[Collapse]) -> None:
        """End what is older. What somebody else holds, or what fails, is left for later."""

        async def some(part: Sequence[Collapse]) -> Sequence[Superseded]:
            return [await self._store.supersede(part, BATCH_ROWS)]

        async def failed(one: Collapse, error: StatementFailed) -> Sequence[Superseded]:
            self._errors.handle(error, "store.supersede", {"collapse_key": one.collapse_key})
            self._unreplaced[_place(one)] = one
            return ()

        for attempt in range(REPLACE_TRIES):
            if attempt:
                # Mostly it is this process that holds it, for a moment.
                await self._clock.sleep(REPLACE_WAIT)
            more = True
            while newer and more:
                steps = await self._writing_persistence.in_parts(newer, some, failed)
                ended = [row for step in steps for row in step.ended]
                held = {
                    (row.key.tenant, row.key.user, row.collapse_key) for step in steps for row in step.held
                }
                if ended:
                    self._on_superseded(ended)
                newer = [one for one in newer if _place(one) not in self._unreplaced]
                more = bool(ended)
            newer = [one for one in newer if _place(one) in held] if newer else []
            if not newer:
                return
        self._unreplaced.update((_place(one), one) for one in newer)

    async def _replace_later_forever(self) -> None:
        """Try again, each second, to end what newer pushes have replaced."""
        while True:
            await self._work.replace_wake.wait()
            self._work.replace_wake.clear()
            later, self._unreplaced = self._unreplaced, {}
            if later:
                await self._replace(list(later.values()))

    def _committed(self, flight: Flight, written: Written, payment: _Payment) -> None:
        """Take in what the row is now. Synchronous: a copy that joins does so before it or finds the row."""
        row = written.row
        first = not flight.parked
        if first:
            self._work.first_rows += 1
            flight.parked = True
        messages, flight.messages = flight.messages, []
        if written.applied and (first or row.final):
            self._tell(row)
            payment.told.append(row)
        if not row.final:
            self._parked(flight, row, messages, payment)
            return
        flight.end(row.outcome, row.reason, row.finished_at or row.taken_at)
        if self._work.flights.get(row.key) is flight:
            # Named once more while it was written: written again it would be announced again, or not be found.
            del self._work.flights[row.key]
        self._on_settled(flight, row)
        replies = merged(*(flight.replies_to(m, row.fingerprint) for m in messages))
        if written.applied:
            payment.receipts.append(Receipt(row, merged(replies, row.owed or ())))
            if row.owed is not None:
                payment.owed_by_row.add(row.key)
                self._paying.add(row.key)
        else:
            # Ended by somebody else: what that row owes is the sweep's.
            self._paying.discard(row.key)
            for message in messages:
                self._metrics.repeat(row.outcome)
                if differ(flight.fingerprint_of(message), row.fingerprint):
                    self._work.differs(row.key)
            again = any(m.redelivered for m in messages)
            if replies or again:
                payment.receipts.append(Receipt(row, replies, announce=again))
            if flight.proof >= Proof.RECEIVED and flight.proven_at and row.outcome not in DELIVERED:
                self._work.late(LateProof(row.key, flight.proven_at))
        payment.messages.extend((m, row.key) for m in messages)

    def _parked(self, flight: Flight, row: Row, messages: Sequence[Message], payment: _Payment) -> None:
        """Its row is there and not final: its messages need not wait for the end, if the row owes their receipts."""
        # It may be days before its end is written: from where on the log must look for it. (A day earlier than it
        # was taken, since that was by another clock.) A write that says so does not insert, and so waits for nobody.
        flight.day = row.day or flight.day or datetime.fromtimestamp(row.taken_at - DAY, UTC).date()
        owed = set(row.owed or ())
        flight.owes = len(owed)
        for message in messages:
            replies = flight.replies_to(message)
            if owed.issuperset(replies):
                payment.messages.append((message, row.key))
            elif flight.owes >= OWED_MAX:
                message.answers.append(Receipt(row, replies, announce=False))
                payment.messages.append((message, row.key))
            else:
                # It joined while the row was written.
                flight.messages.append(message)
        self._paying.discard(row.key)
        if flight.messages:
            self._work.due(flight)
        if flight.kept is not None:
            if row.reason is not Reason.AWAITING_PROOF and not flight.kept.told:
                # Not final, and not owed: who wants to know that it is kept may hear of it.
                flight.kept.told = True
                payment.receipts.append(Receipt(row, row.owed or ()))
            self._on_stored(flight, row)

    def _answered(self, message: Message, row: Row, fingerprint: int, payment: _Payment) -> None:
        self._metrics.repeat(row.outcome)
        differs = differ(fingerprint, row.fingerprint)
        if differs:
            self._work.differs(row.key)
        replies = message.replies_where(differs)
        owed = row.owed or ()
        if row.final:
            # Redelivered: the receipt may have been lost with the connection, so it is announced again.
            if replies or message.redelivered:
                payment.receipts.append(Receipt(row, replies, announce=message.redelivered))
        elif any(reply not in owed for reply in replies):
            noting = payment.notes.setdefault(row.key, [])
            if len(owed) + len(noting) < OWED_MAX:
                noting.append((message, replies))
                return
            message.answers.append(Receipt(row, replies, announce=False))
        payment.messages.append((message, row.key))

    def _tell(self, row: Row) -> None:
        self._metrics.outcome(row)
        self._hooks.on_outcome(row)

    # --- paying ---

    async def _pay_forever(self) -> None:
        while True:
            payment = await self._payments.get()
            if payment.told:
                await self._told(payment.told)
            unnoted: list[_Note] = []
            if payment.receipts:
                _, unnoted = await self._send(payment)
            if payment.notes:
                notes = [_Note(key, to, m) for key, asking in payment.notes.items() for m, to in asking]
                unnoted += await self._note(notes)
                payment.messages.extend((m, key) for key, asking in payment.notes.items() for m, _ in asking)
            await self._settle_messages(payment, unnoted)
            self._work.unpaid -= payment.rows
            if payment.sweep:
                self._sweeps = False
                await self._sweep()
            if self._payments.empty() and not (
                self._work.flights or self._work.writing or self._work.wake.is_set()
            ):
                self._work.all_done.set()

    async def _told(self, rows: Sequence[Row]) -> None:
        """Tell the logs; each until it has the rows, since the ack follows."""
        for log in self._logs:
            wait = LOG_RETRY_FIRST
            while True:
                try:
                    await log.record(rows)
                except Exception as error:  # a plugged-in log may raise anything, and none may lose a row
                    self._gate.shut("delivery log", repr(error))
                    self._errors.handle(error, "delivery_log.record", {"rows": len(rows)})
                    await self._clock.sleep(wait)
                    wait = min(wait * 2, LOG_RETRY_MOST)
                else:
                    self._gate.clear("delivery log")
                    break

    async def _send(self, payment: _Payment) -> tuple[bool, list[_Note]]:
        """Send receipts; what is not confirmed becomes, or stays, a debt of its row. Returns whether all was confirmed,
        and the debts that could not be noted."""
        receipts: Sequence[Receipt] = payment.receipts
        if any(len(receipt.replies) > OWED_MAX for receipt in receipts):
            receipts = [part for receipt in receipts for part in _parts(receipt)]
        started = self._clock.monotonic()
        unsent = {id(receipt) for receipt in await self._receipts.send(receipts)}
        self._metrics.receipts(len(receipts) - len(unsent), len(unsent), self._clock.monotonic() - started)
        paid: dict[RowKey, tuple[Reply, ...]] = {}
        debts: dict[RowKey, tuple[Reply, ...]] = {}
        unannounced: list[RowKey] = []
        if not unsent and len(receipts) == len(payment.receipts):
            paid = {r.row.key: r.replies for r in receipts if r.row.key in payment.owed_by_row}
            await self._settle(paid)
            self._paying.difference_update(payment.owed_by_row)
            return True, []
        for receipt in receipts:
            key, owed = receipt.row.key, receipt.row.owed
            of_row = key in payment.owed_by_row
            if id(receipt) not in unsent:
                if of_row:
                    paid[key] = (*paid.get(key, ()), *receipt.replies)
                continue
            if of_row and receipt.announce:
                unannounced.append(key)
            # Messages that joined while the end was being written ask for more than the row owes already.
            if receipt.row.final and not (of_row and set(receipt.replies) <= set(owed or ())):
                debts[key] = merged(debts.get(key, ()), receipt.replies)
        for key in unannounced:
            # To take some replies off would leave nobody who announces it.
            paid.pop(key, None)
        unnoted: list[_Note] = []
        if debts:
            notes = [_Note(key, debts[key], m) for m, key in payment.messages if key in debts]
            alone = debts.keys() - {note.key for note in notes}
            unnoted = await self._note([*notes, *(_Note(key, debts[key], None) for key in alone)])
        await self._settle(paid)
        self._paying.difference_update(payment.owed_by_row)
        return not unsent, unnoted

    async def _settle(self, paid: dict[RowKey, tuple[Reply, ...]]) -> None:
        async def settle(keys: Sequence[RowKey]) -> Sequence[RowKey]:
            return list(await self._store.settle({key: paid[key] for key in keys}))

        async def failed(key: RowKey, error: StatementFailed) -> Sequence[RowKey]:
            self._errors.handle(error, "store.settle", {"push_id": key.push_id})
            return (key,)

        unsettled = await self._paying_persistence.in_parts(list(paid), settle, failed)
        for key in unsettled:
            # Paid again later, ever less often: the row still says that it owes.
            _, before = self._rested.get(key, (0.0, ASIDE_MOST / 2))
            self._rested[key] = (self._clock.monotonic() + 2 * before, 2 * before)
        if self._rested:
            for key in paid.keys() - set(unsettled):
                self._rested.pop(key, None)

    async def _note(self, notes: Sequence[_Note]) -> list[_Note]:
        """Note debts in their rows; returns those that could not be noted."""
        debts: dict[RowKey, tuple[Reply, ...]] = {}
        for note in notes:
            debts[note.key] = (*debts.get(note.key, ()), *note.replies)

        async def owe(keys: Sequence[RowKey]) -> Sequence[RowKey]:
            return list(await self._store.owe({key: merged(debts[key]) for key in keys}))

        async def failed(key: RowKey, error: StatementFailed) -> Sequence[RowKey]:
            self._errors.handle(error, "store.owe", {"push_id": key.push_id})
            return (key,)

        bad = set(await self._paying_persistence.in_parts(list(debts), owe, failed))
        return [note for note in notes if note.key in bad]

    async def _settle_messages(self, payment: _Payment, unnoted: Sequence[_Note]) -> None:
        waiting = {(id(note.message), note.key) for note in unnoted}
        self._unnoted.extend(unnoted)
        done = payment.released
        for message, key in payment.messages:
            if waiting and (id(message), key) in waiting:
                continue
            message.open -= 1
            if message.open == 0:
                done.append(message)
        await self._finish(done)

    async def _finish(self, messages: Sequence[Message]) -> None:
        """All rows of these messages are settled: answer who is not told of the end, bury their dead letters, ack
        those for which that was confirmed."""
        held = [m for m in messages if m.token is not None]
        letters = [letter for m in held for letter in m.letters]
        answers = [answer for m in held for answer in m.answers]
        open_ = {id(thing) for thing in await self._dead_letters.bury(letters)} if letters else set()
        if answers:
            open_.update(id(thing) for thing in await self._receipts.send(answers))
        tokens = []
        for message in messages:
            if message.letters or message.answers:
                message.letters = [letter for letter in message.letters if id(letter) in open_]
                message.answers = [answer for answer in message.answers if id(answer) in open_]
            if (message.letters or message.answers) and message.token is not None:
                # While the broker takes no publishes it waits for its ack; who handles it alone need not.
                self._unfinished.append(message)
            elif message.token is not None:
                tokens.append(message.token)
                message.token = None
            if message.done is not None:
                message.done.set()
        if tokens:
            self._acks.ack(tokens)

    # --- once a second ---

    async def _sweep(self) -> None:
        """Pay debts of rows whose messages are acked, note late proofs, and try again what could not be done."""
        await self._prove_late()
        await self._note_differences()
        unnoted, self._unnoted = self._unnoted, []
        if unnoted:
            messages = [(n.message, n.key) for n in unnoted if n.message is not None]
            payment = _Payment([], set(), {}, [], messages, [])
            await self._settle_messages(payment, await self._note(unnoted))
        if self._receipts.blocked:
            return
        unfinished, self._unfinished = self._unfinished, []
        await self._finish(unfinished)
        await self._pay_debts()

    async def _prove_late(self) -> None:
        # Of rows that are written: what is yet to end would not be found.
        def unwritten(proof: LateProof) -> bool:
            return (
                proof.key in self._work.flights
                or proof.key in self._work.writing
                or proof.key in self._work.aside
            )

        async def prove(proofs: Sequence[LateProof]) -> Sequence[LateProof]:
            held = await self._store.prove_late(proofs)
            return [proof for proof in proofs if proof.key in held]

        async def failed(proof: LateProof, error: StatementFailed) -> Sequence[LateProof]:
            self._errors.handle(error, "store.prove_late", {"push_id": proof.key.push_id})
            return (proof,)

        late = [p for p in self._work.late_proofs if not unwritten(p)]
        self._work.late_proofs = [p for p in self._work.late_proofs if unwritten(p)]
        for at in range(0, len(late), SWEEP_ROWS):
            self._work.late_proofs += await self._paying_persistence.in_parts(
                late[at : at + SWEEP_ROWS], prove, failed
            )

    async def _note_differences(self) -> None:
        def unwritten(flight: Flight | None) -> bool:
            return flight is not None and not flight.parked

        async def note(differences: Sequence[Difference]) -> Sequence[Difference]:
            held = await self._store.differing(differences)
            return [one for one in differences if one.key in held]

        async def failed(one: Difference, error: StatementFailed) -> Sequence[Difference]:
            self._errors.handle(error, "store.differing", {"push_id": one.key.push_id})
            return (one,)

        now = [one for one, flight in self._work.differences if not unwritten(flight)]
        self._work.differences = [
            (one, flight) for one, flight in self._work.differences if unwritten(flight)
        ]
        for at in range(0, len(now), SWEEP_ROWS):
            left = await self._paying_persistence.in_parts(now[at : at + SWEEP_ROWS], note, failed)
            self._work.differences += [(one, None) for one in left]

    async def _pay_debts(self) -> None:
        try:
            found = await self._paying_persistence.call(lambda: self._store.owing(self._sweep_rows))
        except StatementFailed as failed:
            self._errors.handle(failed, "store.owing", {"rows": self._sweep_rows})
            self._sweep_rows = max(1, self._sweep_rows // PARTS)
            return
        now = self._clock.monotonic()
        resting = {key for key, (until, _) in self._rested.items() if until > now}
        # What was not found again within as long has been settled by others.
        self._rested = {
            key: (until, wait) for key, (until, wait) in self._rested.items() if until + wait > now
        }
        owing = [r for r in found if r.key not in self._paying and r.key not in resting]
        more = len(found) == self._sweep_rows
        self._sweep_rows = min(SWEEP_ROWS, self._sweep_rows * 2)
        if not owing:
            return
        receipts = [Receipt(r, r.owed or ()) for r in owing]
        all_sent, unnoted = await self._send(_Payment(receipts, {r.key for r in owing}, {}, [], [], []))
        self._unnoted.extend(unnoted)
        if more and all_sent:
            # There are more; what has come to be paid meanwhile goes first.
            self._work.sweep()


def _parts(receipt: Receipt) -> Sequence[Receipt]:
    """A receipt for very many replies as several, each small enough to be confirmed in time."""
    replies = receipt.replies
    if len(replies) <= OWED_MAX:
        return (receipt,)
    return [
        Receipt(receipt.row, replies[at : at + OWED_MAX], announce=receipt.announce and at == 0)
        for at in range(0, len(replies), OWED_MAX)
    ]


def _place(one: Collapse) -> _Place:
    return one.tenant, one.user, one.collapse_key


def _untried(row: Row) -> bool:
    """Whether nobody was to have this push any more when it was taken."""
    late = row.outcome is Outcome.EXPIRED and row.sessions == 0
    return late or row.reason in UNTRIED
