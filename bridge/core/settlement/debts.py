"""Once a second: pay the debts of rows, note late proofs and differing repeats, and retry what failed."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.bounds import StatementBounds
from bridge.core.errors import StatementFailed
from bridge.core.inflight.flight import Flight
from bridge.core.model.rows import Difference, LateProof, Receipt
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import Store
from bridge.core.row_limit import RowLimit
from bridge.core.settlement.paying import Paying
from bridge.core.settlement.payments import Payments, payment_of
from bridge.core.settlement.persistence import Persistence
from bridge.core.settlement.worklist import Worklist


class Debts:
    """Used by the payer only, between two payments."""

    def __init__(
        self,
        worklist: Worklist,
        payments: Payments,
        paying: Paying,
        store: Store,
        persistence: Persistence,
        errors: ErrorHandler,
        clock: Clock,
        bounds: StatementBounds,
    ) -> None:
        self._worklist = worklist
        self._payments = payments
        self._paying = paying
        self._store = store
        self._persistence = persistence
        self._errors = errors
        self._clock = clock
        self._sweep_rows = bounds.sweep_rows
        self._owing = RowLimit(bounds.sweep_rows, bounds.parts)

    async def sweep(self) -> None:
        """Pay debts of rows whose messages are acked, note late proofs and differences, and retry what failed."""
        await self._prove_late()
        await self._note_differences()
        unnoted = self._paying.take_unnoted()
        if unnoted:
            messages = [(n.message, n.key) for n in unnoted if n.message is not None]
            payment = payment_of(messages=messages)
            await self._paying.settle_messages(payment, await self._paying.note(unnoted))
        if self._paying.blocked:
            return
        await self._paying.finish(self._paying.take_unfinished())
        await self._pay_debts()

    async def _prove_late(self) -> None:
        # Only of rows that are written: a row that is not final yet would not be found.
        def unwritten(proof: LateProof) -> bool:
            return (
                proof.key in self._worklist.flights
                or proof.key in self._worklist.writing
                or proof.key in self._worklist.aside
            )

        async def prove(proofs: Sequence[LateProof]) -> Sequence[LateProof]:
            held = await self._store.prove_late(proofs)
            return [proof for proof in proofs if proof.key in held]

        async def failed(proof: LateProof, error: StatementFailed) -> Sequence[LateProof]:
            self._errors.handle(error, "store.prove_late", {"push_id": proof.key.push_id})
            return (proof,)

        late = [p for p in self._worklist.late_proofs if not unwritten(p)]
        self._worklist.late_proofs = [p for p in self._worklist.late_proofs if unwritten(p)]
        for at in range(0, len(late), self._sweep_rows):
            left = await self._persistence.in_parts(late[at : at + self._sweep_rows], prove, failed)
            self._worklist.late_proofs += left

    async def _note_differences(self) -> None:
        def unwritten(flight: Flight | None) -> bool:
            return flight is not None and not flight.parked

        async def note(differences: Sequence[Difference]) -> Sequence[Difference]:
            held = await self._store.differing(differences)
            return [one for one in differences if one.key in held]

        async def failed(one: Difference, error: StatementFailed) -> Sequence[Difference]:
            self._errors.handle(error, "store.differing", {"push_id": one.key.push_id})
            return (one,)

        now = [one for one, flight in self._worklist.differences if not unwritten(flight)]
        self._worklist.differences = [
            (one, flight) for one, flight in self._worklist.differences if unwritten(flight)
        ]
        for at in range(0, len(now), self._sweep_rows):
            left = await self._persistence.in_parts(now[at : at + self._sweep_rows], note, failed)
            self._worklist.differences += [(one, None) for one in left]

    async def _pay_debts(self) -> None:
        limit = self._owing.rows
        try:
            found = await self._persistence.call(lambda: self._store.owing(limit))
        except StatementFailed as failed:
            self._errors.handle(failed, "store.owing", {"rows": limit})
            self._owing.shrink()
            return
        now = self._clock.monotonic()
        resting = {key for key, (until, _) in self._paying.rested.items() if until > now}
        # A row that was not found again within `wait` seconds more was settled by another process.
        self._paying.rested = {
            key: (until, wait) for key, (until, wait) in self._paying.rested.items() if until + wait > now
        }
        owing = [r for r in found if r.key not in self._payments.being_paid and r.key not in resting]
        more = len(found) == limit
        self._owing.grow()
        if not owing:
            return
        receipts = [Receipt(r, r.owed or ()) for r in owing]
        all_sent, unnoted = await self._paying.send(payment_of(receipts, {r.key for r in owing}))
        self._paying.keep_unnoted(unnoted)
        if more and all_sent:
            # There are more; payments that have come meanwhile go first.
            self._worklist.sweep()
