"""Act on rows that are committed. Synchronous: a repeat either joins the flight before, or finds the row after.

The row is the truth: what `Store.record` returns, and nothing else, causes receipts and acks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from bridge.core.inflight.flight import Flight
from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.inflight import InFlight
from bridge.core.inflight.row_of import OWED_MAX
from bridge.core.model.fingerprint import differ
from bridge.core.model.outcomes import DELIVERED, FINAL, Outcome, Proof, Reason
from bridge.core.model.rows import LateProof, Receipt, Row, merged
from bridge.core.ports.plugins import Hooks, Metrics
from bridge.core.ports.store import Written
from bridge.core.settlement.payments import Payment, Payments
from bridge.core.settlement.worklist import Worklist

DAY = 86_400.0
_ACKED: Final = Outcome.ACKED
_RECALLED: Final = Outcome.RECALLED


class Commits:
    """Decides what is owed for each committed row, and which of its messages can be acked."""

    def __init__(
        self,
        worklist: Worklist,
        inflight: InFlight,
        payments: Payments,
        *,
        hooks: Hooks,
        metrics: Metrics,
        on_stored: Callable[[Row, int], None],
        on_delivered: Callable[[Row, Sequence[str], bool], None],
        on_recalled: Callable[[Flight], None],
        on_first_ack: Callable[[Row], None],
        on_written: Callable[[str], None],
    ) -> None:
        """`on_stored` is called with each row that says `stored`, and the bytes of its push; `on_delivered` with each
        row of a kept push that was proven, the processes that were forwarded it, and whether there may be sessions that
        nobody has told of it: it had no row before, or did not reach a process; `on_recalled` with each push whose row
        says that another node has recalled it; `on_first_ack` with each row that says which session was the first
        device to ack; `on_written` with the user of each committed row, once the flight is settled or stored."""
        self._worklist = worklist
        self._inflight = inflight
        self._payments = payments
        self._hooks = hooks
        self._metrics = metrics
        self._on_stored = on_stored
        self._on_delivered = on_delivered
        self._on_recalled = on_recalled
        self._on_first_ack = on_first_ack
        self._on_written = on_written

    def committed(self, flight: Flight, written: Written, payment: Payment) -> None:
        """The row of this flight is committed: put receipts, notes and messages into the payment."""
        row, applied = written
        key, outcome = row.key, row.outcome
        final = FINAL[outcome]
        first = self._inflight.committed(flight)
        messages, flight.messages = flight.messages, []
        if applied and (first or final):
            payment.for_logs.append(row)
        if not final:
            self._parked(flight, row, messages, payment)
            return
        if self._worklist.flights.get(key) is flight:
            # It became due again during the write. A second write would announce it again, or not find it.
            del self._worklist.flights[key]
        taken_back = outcome is _ACKED and row.first_device
        if flight.kept is not None and outcome in DELIVERED and not taken_back:
            self._on_delivered(row, flight.holders, first or flight.came_back)
        recalled = outcome is _RECALLED and flight.outcome is not _RECALLED
        self._inflight.settled(flight, row)
        if recalled:
            self._on_recalled(flight)
        if taken_back and applied:
            self._on_first_ack(row)
        self._on_written(key.user)
        if (
            applied
            and len(messages) == 1
            and row.owed is None
            and flight.differing is None
            and row.fingerprint == flight.fingerprint
        ):
            # Nearly every row: one message waited for it, and it owes nothing else.
            payment.receipts.append(Receipt(row, messages[0].replies))
            payment.messages.append((messages[0], key))
            return
        replies = merged(*(flight.replies_to(m, row.fingerprint) for m in messages))
        if applied:
            payment.receipts.append(Receipt(row, merged(replies, row.owed or ())))
            if row.owed is not None:
                payment.owed_by_row.add(row.key)
                self._payments.being_paid.add(row.key)
        else:
            # Another writer has ended it: the sweep pays what that row owes.
            self._payments.being_paid.discard(row.key)
            for message in messages:
                self._metrics.repeat(row.outcome)
                if differ(flight.fingerprint_of(message), row.fingerprint):
                    self._worklist.differs(row.key)
            again = any(m.redelivered for m in messages)
            if replies or again:
                payment.receipts.append(Receipt(row, replies, announce=again))
            if flight.proof >= Proof.RECEIVED and flight.proven_at and row.outcome not in DELIVERED:
                self._worklist.note_late(LateProof(row.key, flight.proven_at))
        payment.messages.extend((m, row.key) for m in messages)

    def _parked(self, flight: Flight, row: Row, messages: Sequence[HeldMessage], payment: Payment) -> None:
        """Its row is committed and not final: its messages need not wait for the outcome, if the row owes their
        receipts."""
        # The final row may be written days later: this says from which day on the log must look for it. (A day earlier
        # than it was taken, since that was by another clock.) A write with a day does not insert, so it never waits.
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
        self._payments.being_paid.discard(row.key)
        if flight.messages:
            self._worklist.due(flight)
        if flight.kept is not None:
            if row.reason is not Reason.AWAITING_PROOF and not flight.kept.stored_announced:
                # Not final, and not owed: this receipt says that it is kept, and may be lost.
                flight.kept.stored_announced = True
                payment.receipts.append(Receipt(row, row.owed or ()))
            self._inflight.stored(flight)
            self._on_stored(row, flight.kept.size)
            self._on_written(row.key.user)

    def answered(self, message: HeldMessage, row: Row, fingerprint: int, payment: Payment) -> None:
        self._metrics.repeat(row.outcome)
        differs = differ(fingerprint, row.fingerprint)
        if differs:
            self._worklist.differs(row.key)
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

    def tell(self, rows: Sequence[Row]) -> None:
        """Tell metrics and hooks about rows that are committed: those that `committed` has added for the logs."""
        if rows:
            self._metrics.outcomes(rows)
        for row in rows:
            self._hooks.on_outcome(row)
