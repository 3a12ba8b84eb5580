"""The parts that decide, put together: sessions, delivery, mailbox, settlement, control messages, handshakes."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.adapters.amqp.consume import Consumer
from bridge.adapters.amqp.publish import Publisher
from bridge.adapters.amqp.turn import Role
from bridge.adapters.metrics import Gauges
from bridge.adapters.tokens import JwtVerifier
from bridge.adapters.websocket.server import WebSocketServer
from bridge.app.reports import Reports
from bridge.app.rows import Rows
from bridge.config import Settings
from bridge.core.contract.requests import Limits
from bridge.core.control import Control
from bridge.core.delivery.delivery import Delivery, DeliveryLimits
from bridge.core.delivery.remembered import Recollection, Remembered
from bridge.core.gateway import Gateway
from bridge.core.inflight.flights import Flights
from bridge.core.mailbox.mailbox import Mailbox
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.mailbox.outgoing import Outgoing
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import SessionInfo
from bridge.core.sessions.access import Access
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import SessionLimits
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.settlement import Settlement
from bridge.core.settlement.worklist import Worklist


@dataclass(frozen=True)
class Given:
    """What the core is made from."""

    settings: Settings
    rows: Rows
    consumer: Consumer
    publisher: Publisher
    reports: Reports
    clock: Clock
    gate: Gate
    boot: str
    """This start of this process; no other start has the same."""


class Core:
    """The parts that decide. Each is given the others that it uses when it is made."""

    def __init__(self, given: Given) -> None:
        settings = given.settings
        self.clock = given.clock
        self.gate = given.gate
        self.consumer = given.consumer
        self.hub = Hub()
        self._keeps = given.rows.postgres is not None
        max_ttl = settings.retention_days * 86400.0 if self._keeps else 0.0
        self.wire_limits = Limits(settings.max_data_bytes, max_ttl)
        self._make_delivery(given)
        self._make_settlement(given)
        self.control = Control(
            store=given.rows.store,
            mailbox=self.mailbox,
            acks=given.consumer,
            answers=given.publisher,
            errors=given.reports.errors,
            clock=self.clock,
            gate=self.gate,
            node=settings.node,
        )
        self.access = Access(
            JwtVerifier(
                settings.jwt_secret.get_secret_value(),
                clock=self.clock,
                algorithms=settings.jwt_algorithms,
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                dev=settings.dev,
            ),
            settings.origins,
        )
        self.gateway = Gateway(
            access=self.access,
            delivery=self.delivery,
            limits=SessionLimits(settings.session_queue, settings.session_bytes),
            hooks=given.reports.hooks,
            metrics=given.reports.metrics,
            clock=self.clock,
        )

    def _make_delivery(self, given: Given) -> None:
        """Make what decides on each push: delivery, mailbox, and what they share."""
        settings, rows = given.settings, given.rows
        metrics, errors = given.reports.metrics, given.reports.errors
        limits = self._delivery_limits(settings)
        self.flights = Flights()
        self.worklist = Worklist(metrics=metrics, clock=self.clock)
        self.outgoing = Outgoing(hub=self.hub, worklist=self.worklist, metrics=metrics, clock=self.clock)
        self.mailbox = Mailbox(
            store=rows.store,
            hub=self.hub,
            flights=self.flights,
            worklist=self.worklist,
            outgoing=self.outgoing,
            clock=self.clock,
            gate=self.gate,
            errors=errors,
            boot=given.boot,
            patience=settings.confirm_timeout,
            park_after=limits.park_after,
            limits=MailboxLimits(settings.mailbox_pushes, settings.mailbox_bytes),
        )
        self.remembered = Remembered(settings.id_memory_bytes, self.clock.monotonic())
        self.recollection = Recollection(
            self.remembered, store=rows.store, errors=errors, clock=self.clock, boot=given.boot
        )
        self.delivery = Delivery(
            hub=self.hub,
            store=rows.store,
            flights=self.flights,
            worklist=self.worklist,
            outgoing=self.outgoing,
            mailbox=self.mailbox,
            acks=given.consumer,
            metrics=metrics,
            errors=errors,
            clock=self.clock,
            gate=self.gate,
            remembered=self.remembered,
            recollection=self.recollection,
            limits=limits,
        )

    def _make_settlement(self, given: Given) -> None:
        """Make what writes rows, sends receipts and acks messages."""
        self.settlement = Settlement(
            worklist=self.worklist,
            store=given.rows.store,
            logs=given.rows.logs,
            receipts=given.publisher,
            dead_letters=given.publisher,
            acks=given.consumer,
            hooks=given.reports.hooks,
            metrics=given.reports.metrics,
            errors=given.reports.errors,
            clock=self.clock,
            gate=self.gate,
            node=given.settings.node,
            boot=given.boot,
            on_settled=self.delivery.settled,
            on_stored=self.mailbox.stored,
            on_superseded=self.mailbox.ended_in_store,
        )

    def _delivery_limits(self, settings: Settings) -> DeliveryLimits:
        return DeliveryLimits(
            wire=self.wire_limits,
            confirm_timeout=settings.confirm_timeout,
            max_age=settings.max_age,
            start_grace=settings.start_grace,
            max_attempts=settings.max_attempts,
            total_bytes=settings.total_bytes,
        )

    def sessions(self, limit: int) -> list[SessionInfo]:
        """Up to `limit` of the open sessions."""
        return [session.info for _, session in zip(range(limit), self.hub, strict=False)]

    def role(self) -> Role | None:
        """The role of this node among the others; None while it is not connected to the broker."""
        return self.consumer.role

    def readiness(self) -> tuple[bool, list[str]]:
        """Whether pushes are taken, and if not, one sentence for each cause."""
        return self.gate.is_open, self.gate.causes

    @property
    def database_up(self) -> bool | None:
        """Whether the database answers and takes rows, as far as is known; None if the log is not in Postgres."""
        return not self.gate.database_down if self._keeps else None

    def public_readiness(self) -> tuple[bool, list[str]]:
        """Whether pushes are taken, and if not, a word for each cause: what strangers may know."""
        return self.gate.is_open, self.gate.names

    def gauges(self, ws: WebSocketServer) -> Gauges:
        """How much of everything there is now."""
        sessions = list(self.hub)
        return Gauges(
            sessions=len(sessions),
            users=self.hub.users,
            handshakes_in_progress=ws.handshakes_in_progress,
            inbox=self.delivery.inbox,
            in_flight=self.delivery.in_flight,
            parked=self.delivery.parked,
            resting=self.flights.resting,
            replaying=self.mailbox.replaying,
            ids_remembered=self.remembered.added,
            ids_whole=self.remembered.complete,
            rows_set_aside=self.worklist.set_aside,
            unproven=sum(s.unproven for s in sessions),
            queued_frames=sum(s.waiting for s in self.hub.backlogged),
            queued_bytes=self.hub.queued_bytes,
            rows_waiting=self.worklist.rows_waiting,
            receipts_waiting=self.settlement.payments_waiting,
            ready=self.gate.is_open,
            active=None if self.role() is Role.UNKNOWN else self.role() is Role.ACTIVE,
            broker_up=self.role() is not None,
            database_up=self.database_up,
        )
