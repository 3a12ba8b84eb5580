"""From an outcome to the ack: row, receipts, dead letters, and only then the ack. In this order, in batches.

Two tasks, so that the next batch of rows is written while the receipts of the last one are confirmed:

    worklist ──> writer: one compare-and-set per batch ──> commits ──> payer: receipts, debts, dead letters ──> ack
                    └──> set aside, tried alone

Read `worklist`, `writer`, `commits`, `payments`, `paying` and `payer` in this order; then `replacing`, for pushes with
a collapse key, `debts`, for what is left over, and `fallbacks`, for what is due long after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bridge.core.bounds import Bounds
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.rows import Row
from bridge.core.ports.broker import Acks, DeadLetters, Fallbacks, Receipts
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import DeliveryLog, ErrorHandler, Hooks, Metrics
from bridge.core.ports.store import Store
from bridge.core.settlement.commits import Commits
from bridge.core.settlement.debts import Debts
from bridge.core.settlement.fallbacks import FallbackSweep
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.payer import Payer
from bridge.core.settlement.paying import Paying
from bridge.core.settlement.payments import Payments
from bridge.core.settlement.persistence import Persistence
from bridge.core.settlement.recording import Recorder
from bridge.core.settlement.replacing import Replacer
from bridge.core.settlement.worklist import Worklist
from bridge.core.settlement.writer import Writer


class SettlementPorts(NamedTuple):
    """What the settlement needs of the world."""

    store: Store
    logs: Sequence[DeliveryLog]
    """The logs other than the store."""
    receipts: Receipts
    dead_letters: DeadLetters
    fallbacks: Fallbacks
    acks: Acks
    hooks: Hooks
    metrics: Metrics
    errors: ErrorHandler
    clock: Clock


class Settlement:
    """Owns every flight from its outcome to the ack of its messages."""

    def __init__(
        self,
        ports: SettlementPorts,
        *,
        worklist: Worklist,
        inflight: InFlight,
        gate: Gate,
        bounds: Bounds,
        node: str,
        boot: str,
        on_stored: Callable[[Row, int], None],
        on_delivered: Callable[[Row, Sequence[str], bool], None],
        on_recalled: Callable[[Flight], None],
        on_first_ack: Callable[[Row], None],
        on_written: Callable[[str], None],
    ) -> None:
        """For the last five see `Commits`."""
        statements = bounds.statements
        rows = Persistence(ports.store, gate, ports.clock, "rows", statements)
        set_aside = Persistence(ports.store, gate, ports.clock, "rows tried again", statements)
        self._payments = Payments(bounds.settlement.batch_rows)
        self._replacer = Replacer(
            ports.store, rows, ports.errors, ports.clock, worklist, inflight, bounds.settlement
        )
        commits = Commits(
            worklist,
            inflight,
            self._payments,
            hooks=ports.hooks,
            metrics=ports.metrics,
            on_stored=on_stored,
            on_delivered=on_delivered,
            on_recalled=on_recalled,
            on_first_ack=on_first_ack,
            on_written=on_written,
        )
        self._writer = Writer(
            worklist,
            self._payments,
            commits,
            self._replacer,
            Recorder(ports.store, rows, ports.errors, statements),
            Recorder(ports.store, set_aside, ports.errors, statements),
            metrics=ports.metrics,
            clock=ports.clock,
            gate=gate,
            node=node,
            boot=boot,
            bounds=bounds.settlement,
        )
        self._payer = _payer(ports, worklist, self._payments, gate, bounds)
        self.fallbacks = _fallbacks(ports, worklist, inflight, gate, bounds, (node, boot))
        """Publishes what is due elsewhere; its `sweep` is called every second."""

    @property
    def payments_waiting(self) -> int:
        """Batches whose receipts wait for the payer."""
        return len(self._payments)

    @property
    def being_paid(self) -> int:
        """Rows whose debt is being paid."""
        return len(self._payments.being_paid)

    async def run(self) -> None:
        """Run until cancelled. An unexpected error ends it, and with it the service."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._writer.run(), name="settlement writer")
            tasks.create_task(self._writer.run_aside(), name="settlement writer of what was set aside")
            tasks.create_task(self._replacer.run(), name="settlement of what was replaced")
            tasks.create_task(self._payer.run(), name="settlement payer")


def _fallbacks(
    ports: SettlementPorts,
    worklist: Worklist,
    inflight: InFlight,
    gate: Gate,
    bounds: Bounds,
    owner: tuple[str, str],
) -> FallbackSweep:
    return FallbackSweep(
        ports.store,
        ports.fallbacks,
        worklist,
        inflight,
        gate,
        ports.metrics,
        ports.errors,
        ports.clock,
        bounds,
        owner,
    )


def _payer(
    ports: SettlementPorts, worklist: Worklist, payments: Payments, gate: Gate, bounds: Bounds
) -> Payer:
    statements = bounds.statements
    persistence = Persistence(ports.store, gate, ports.clock, "debts", statements)
    paying = Paying(
        payments,
        ports.store,
        persistence,
        receipts=ports.receipts,
        dead_letters=ports.dead_letters,
        acks=ports.acks,
        metrics=ports.metrics,
        errors=ports.errors,
        clock=ports.clock,
        rest=bounds.settlement.rest,
    )
    debts = Debts(worklist, payments, paying, ports.store, persistence, ports.errors, ports.clock, statements)
    return Payer(worklist, payments, paying, debts, ports.logs, ports.errors, ports.clock, gate, statements)
