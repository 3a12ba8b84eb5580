"""The steps of a payment: send receipts, note debts, publish dead letters, ack."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.errors import StatementFailed
from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.row_of import OWED_MAX
from bridge.core.model.rows import Receipt, Reply, RowKey, merged
from bridge.core.ports.broker import Acks, DeadLetters, Receipts
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler, Metrics
from bridge.core.ports.store import Store
from bridge.core.settlement.payments import Debt, Payment, Payments, in_parts
from bridge.core.settlement.persistence import Persistence


class Paying:
    """Used by the payer only, one call at a time."""

    def __init__(
        self,
        payments: Payments,
        store: Store,
        persistence: Persistence,
        *,
        receipts: Receipts,
        dead_letters: DeadLetters,
        acks: Acks,
        metrics: Metrics,
        errors: ErrorHandler,
        clock: Clock,
        rest: float,
    ) -> None:
        """`rest`: seconds before a row is paid again whose debt was paid but could not be cleared."""
        self._payments = payments
        self._store = store
        self._persistence = persistence
        self._receipts = receipts
        self._dead_letters = dead_letters
        self._acks = acks
        self._metrics = metrics
        self._errors = errors
        self._clock = clock
        self._rest = rest
        self.rested: dict[RowKey, tuple[float, float]] = {}
        """Rows whose debts are paid and could not be cleared: until when (monotonic seconds) they are not paid again,
        and for how many seconds that is."""
        self._unfinished: list[HeldMessage] = []
        """Messages that are settled, except for a dead letter or an answer that the broker has not confirmed."""
        self._unnoted: list[Debt] = []

    def keep_unnoted(self, debts: Sequence[Debt]) -> None:
        """These could not be noted: try again with the next sweep."""
        self._unnoted.extend(debts)

    def take_unnoted(self) -> list[Debt]:
        """The debts that are to be noted once more."""
        unnoted, self._unnoted = self._unnoted, []
        return unnoted

    def take_unfinished(self) -> list[HeldMessage]:
        """The messages that are to be finished once more."""
        unfinished, self._unfinished = self._unfinished, []
        return unfinished

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no publishes."""
        return self._receipts.blocked

    async def send(self, payment: Payment) -> tuple[bool, list[Debt]]:
        """Send receipts; those that are not confirmed become, or stay, debts of their rows. Returns whether all were
        confirmed, and the debts that could not be noted."""
        receipts: Sequence[Receipt] = payment.receipts
        if any(len(receipt.replies) > OWED_MAX for receipt in receipts):
            receipts = [part for receipt in receipts for part in in_parts(receipt, OWED_MAX)]
        started = self._clock.monotonic()
        unsent = {id(receipt) for receipt in await self._receipts.send(receipts)}
        self._metrics.receipts(len(receipts) - len(unsent), len(unsent), self._clock.monotonic() - started)
        paid: dict[RowKey, tuple[Reply, ...]] = {}
        debts: dict[RowKey, tuple[Reply, ...]] = {}
        unannounced: list[RowKey] = []
        if not unsent and len(receipts) == len(payment.receipts):
            if payment.owed_by_row:
                paid = {r.row.key: r.replies for r in receipts if r.row.key in payment.owed_by_row}
                await self._settle(paid)
                self._payments.being_paid.difference_update(payment.owed_by_row)
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
            # Messages that joined while the final row was being written may want replies that the row does not owe.
            if receipt.row.final and not (of_row and set(receipt.replies) <= set(owed or ())):
                debts[key] = merged(debts.get(key, ()), receipt.replies)
        for key in unannounced:
            # If its replies were cleared, the sweep would not find the row, and its outcome would not be announced.
            paid.pop(key, None)
        unnoted: list[Debt] = []
        if debts:
            notes = [Debt(key, debts[key], m) for m, key in payment.messages if key in debts]
            alone = debts.keys() - {note.key for note in notes}
            unnoted = await self.note([*notes, *(Debt(key, debts[key], None) for key in alone)])
        await self._settle(paid)
        self._payments.being_paid.difference_update(payment.owed_by_row)
        return not unsent, unnoted

    async def _settle(self, paid: dict[RowKey, tuple[Reply, ...]]) -> None:
        async def settle(keys: Sequence[RowKey]) -> Sequence[RowKey]:
            return list(await self._store.settle({key: paid[key] for key in keys}))

        async def failed(key: RowKey, error: StatementFailed) -> Sequence[RowKey]:
            self._errors.handle(error, "store.settle", {"push_id": key.push_id})
            return (key,)

        unsettled = await self._persistence.in_parts(list(paid), settle, failed)
        for key in unsettled:
            # The row still owes: it is paid again, less and less often.
            _, before = self.rested.get(key, (0.0, self._rest / 2))
            self.rested[key] = (self._clock.monotonic() + 2 * before, 2 * before)
        if self.rested:
            for key in paid.keys() - set(unsettled):
                self.rested.pop(key, None)

    async def note(self, notes: Sequence[Debt]) -> list[Debt]:
        """Note debts in their rows; returns those that could not be noted."""
        debts: dict[RowKey, tuple[Reply, ...]] = {}
        for note in notes:
            debts[note.key] = (*debts.get(note.key, ()), *note.replies)

        async def owe(keys: Sequence[RowKey]) -> Sequence[RowKey]:
            return list(await self._store.owe({key: merged(debts[key]) for key in keys}))

        async def failed(key: RowKey, error: StatementFailed) -> Sequence[RowKey]:
            self._errors.handle(error, "store.owe", {"push_id": key.push_id})
            return (key,)

        bad = set(await self._persistence.in_parts(list(debts), owe, failed))
        return [note for note in notes if note.key in bad]

    async def settle_messages(self, payment: Payment, unnoted: Sequence[Debt]) -> None:
        """A payment is done, except for debts that could not be noted: count settled rows, and finish messages."""
        waiting = {(id(note.message), note.key) for note in unnoted}
        self.keep_unnoted(unnoted)
        done = payment.released
        for message, key in payment.messages:
            if waiting and (id(message), key) in waiting:
                continue
            message.open -= 1
            if message.open == 0:
                done.append(message)
        await self.finish(done)

    async def finish(self, messages: Sequence[HeldMessage]) -> None:
        """All rows of these messages are settled: publish their dead letters, and the answers that no row owes. Ack
        the messages for which all of that was confirmed."""
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
