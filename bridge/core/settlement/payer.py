"""Pay one batch after the other: other logs, receipts, debts, dead letters, acks. Sweep debts once a second."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.bounds import StatementBounds
from bridge.core.model.rows import Row
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import DeliveryLog, ErrorHandler
from bridge.core.settlement.debts import Debts
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.paying import Paying
from bridge.core.settlement.payments import Debt, Payments
from bridge.core.settlement.persistence import back_off
from bridge.core.settlement.worklist import Worklist


class Payer:
    """The task that pays. All changes to what rows owe run in this task, so that they cannot race."""

    def __init__(
        self,
        worklist: Worklist,
        payments: Payments,
        paying: Paying,
        debts: Debts,
        logs: Sequence[DeliveryLog],
        errors: ErrorHandler,
        clock: Clock,
        gate: Gate,
        bounds: StatementBounds,
    ) -> None:
        self._worklist = worklist
        self._payments = payments
        self._paying = paying
        self._debts = debts
        self._logs = logs
        self._errors = errors
        self._clock = clock
        self._gate = gate
        self._bounds = bounds

    async def run(self) -> None:
        """Pay until cancelled."""
        while True:
            payment = await self._payments.next()
            if payment.for_logs:
                await self._tell_logs(payment.for_logs)
            unnoted: list[Debt] = []
            if payment.receipts:
                _, unnoted = await self._paying.send(payment)
            if payment.notes:
                notes = [Debt(key, to, m) for key, asking in payment.notes.items() for m, to in asking]
                unnoted += await self._paying.note(notes)
                payment.messages.extend((m, key) for key, asking in payment.notes.items() for m, _ in asking)
            await self._paying.settle_messages(payment, unnoted)
            self._worklist.unpaid -= payment.rows
            if payment.sweep:
                self._payments.sweep_waits = False
                await self._debts.sweep()
            if len(self._payments) == 0 and not (
                self._worklist.flights or self._worklist.writing or self._worklist.wake.is_set()
            ):
                self._worklist.all_done.set()

    async def _tell_logs(self, rows: Sequence[Row]) -> None:
        """Give the rows to each log, again until it has recorded them, since the ack follows."""
        for log in self._logs:
            tries = back_off(self._clock, self._bounds)
            while True:
                try:
                    await log.record(rows)
                except Exception as error:  # a plugged-in log may raise anything, and must not lose a row
                    self._gate.shut("delivery log", repr(error))
                    self._errors.handle(error, "delivery_log.record", {"rows": len(rows)})
                    await tries.wait()
                else:
                    self._gate.clear("delivery log")
                    break
