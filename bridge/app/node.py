"""This node: the core on its adapters, with the bounds that the settings give, and what others may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bridge.adapters.amqp.partitions import TakesRequests
from bridge.adapters.amqp.publish import ReceiptPublisher
from bridge.adapters.amqp.turn import Role
from bridge.adapters.gauges import Gauges
from bridge.adapters.jwks import KeyedVerifier, KeyRing
from bridge.adapters.tokens import JwtVerifier
from bridge.adapters.websocket.server import WebSocketServer
from bridge.addresses import is_loopback_origin
from bridge.app.reports import Reports
from bridge.app.rows import Rows
from bridge.config import Settings
from bridge.core import assembly
from bridge.core.cluster.sharing import Sharing
from bridge.core.contract.requests import Limits
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.gateway import Gateway
from bridge.core.given import CoreLimits, Ports
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.ports.clock import Clock
from bridge.core.ports.connecting import ConnectHook
from bridge.core.ports.inbound import Inbound
from bridge.core.ports.nodes import NodePost
from bridge.core.ports.plugins import SessionInfo, TokenVerifier
from bridge.core.sessions.access import Access
from bridge.core.sessions.connecting import HookLimits
from bridge.core.sessions.limits import SessionLimits
from bridge.core.settlement.gate import Gate
from bridge.core.talking.hearing import Hearing
from bridge.core.talking.publishing import Publishing


@dataclass(frozen=True)
class Given:
    """What a node is made from."""

    settings: Settings
    rows: Rows
    consumer: TakesRequests
    publisher: ReceiptPublisher
    reports: Reports
    clock: Clock
    gate: Gate
    hook: ConnectHook | None
    """None: there is no business system to ask who clients are."""
    boot: str
    """This start of this process; no other start has the same."""
    post: NodePost | None
    """None: there can't be other nodes."""
    inbound: Inbound


class Node:
    """The parts that decide, who may come in, and how the node is doing."""

    def __init__(self, given: Given) -> None:
        settings = given.settings
        self.clock = given.clock
        self.gate = given.gate
        self.consumer = given.consumer
        self._keeps = given.rows.postgres is not None
        may_store = self._keeps and settings.payload != "none"
        max_ttl = settings.retention_days * 86400.0 if may_store else 0.0
        self.request_limits = Limits(settings.max_data_bytes, max_ttl)
        self.core = _core(given, self.request_limits)
        self.sharing = Sharing(settings.partitions, settings.node, self.core.cluster.neighbours, self.clock)
        self.keys = _key_ring(given)
        self.access = Access(
            _verifier(given, self.keys),
            settings.origins,
            revoked=self.core.revoked,
            ledger=self.core.ledger,
            admission=self.core.admission,
            clock=self.clock,
            token_from=settings.token_from,
            cookie=settings.token_cookie,
            connecting=self.core.connecting,
        )
        self.publishing = Publishing(given.inbound, self.core.freshness, self.core.pages, self.clock)
        self.gateway = Gateway(
            access=self.access,
            presence=self.core.presence,
            proofs=self.core.proofs,
            saying=self.core.saying,
            hearing=Hearing(
                access=self.access,
                presence=self.core.presence,
                proofs=self.core.proofs,
                publishing=self.publishing,
                subscriptions=self.core.subscriptions,
                clock=self.clock,
            ),
            limits=SessionLimits(settings.session_queue, settings.session_bytes),
            hooks=given.reports.hooks,
            metrics=given.reports.metrics,
            clock=self.clock,
        )

    def sessions(self, limit: int) -> list[SessionInfo]:
        """At most so many of the open sessions."""
        return [session.info for _, session in zip(range(limit), self.core.hub, strict=False)]

    def role(self) -> Role | None:
        """The role of this node among the others; None while it is not connected to the broker."""
        return self.consumer.role

    @property
    def other_keys(self) -> int | None:
        """Requests so far whose routing key was not their user's; None where keys do not matter."""
        keys = self.core.reader.keys
        return keys.others if keys else None

    @property
    def keys_missing(self) -> str:
        """Why tokens that are signed with a private key can't be checked yet, for people; empty if they can. Pushes are
        taken all the same: open sessions, and those with a secret, get theirs."""
        return self.keys.missing if self.keys else ""

    @property
    def ready(self) -> bool:
        """Whether pushes are taken, and sessions are opened."""
        return self.gate.is_open and not self.keys_missing

    def readiness(self) -> tuple[bool, list[str]]:
        """Whether it is ready, and if not, one sentence for each cause."""
        missing = self.keys_missing
        return self.ready, [*self.gate.causes, *([f"keys: {missing}"] if missing else [])]

    @property
    def database_up(self) -> bool | None:
        """Whether the database answers and takes rows, as far as is known; None if the log is not in Postgres."""
        return not self.gate.database_down if self._keeps else None

    def public_readiness(self) -> tuple[bool, list[str]]:
        """Whether it is ready, and if not, a word for each cause: what strangers may know."""
        return self.ready, [*self.gate.names, *(["keys"] if self.keys_missing else [])]

    def gauges(self, ws: WebSocketServer) -> Gauges:
        """How much there is of everything now."""
        sessions = list(self.core.hub)
        connecting = self.core.connecting
        return Gauges(
            sessions=len(sessions),
            users=self.core.hub.users,
            handshakes_in_progress=ws.handshakes_in_progress,
            strangers=self.gateway.strangers.waiting,
            inbox=self.core.intake.waiting,
            tenants_waiting=self.core.intake.tenants_waiting,
            in_flight=self.core.inflight.busy,
            parked=self.core.inflight.parked,
            resting=self.core.inflight.resting,
            replaying=self.core.pages.replaying,
            ids_remembered=self.core.remembered.added,
            ids_whole=self.core.remembered.complete,
            revocations=len(self.core.revoked),
            ledger_waiting=len(self.core.ledger),
            neighbours=len(self.core.cluster.neighbours.others),
            forwards=len(self.core.cluster.forwards),
            subscriptions=self.core.hub.topics.count,
            letters_waiting=self.core.cluster.post.waiting,
            rows_set_aside=self.core.worklist.set_aside,
            unproven=sum(s.unproven for s in sessions),
            queued_frames=sum(s.waiting for s in self.core.hub.backlogged),
            queued_bytes=self.core.hub.queued_bytes,
            rows_waiting=self.core.worklist.rows_waiting,
            receipts_waiting=self.core.settlement.payments_waiting,
            ready=self.ready,
            active=None if self.role() is Role.UNKNOWN else self.role() is Role.ACTIVE,
            broker_up=self.role() is not None,
            database_up=self.database_up,
            connect_hook_in_flight=connecting.places.taken if connecting else None,
            connect_hook_breaker_open=connecting.open if connecting else None,
        )


def _key_ring(given: Given) -> KeyRing | None:
    settings = given.settings
    if not settings.jwt_keys and not settings.jwt_jwks_url:
        return None
    return KeyRing(settings.jwt_keys, settings.jwt_jwks_url, clock=given.clock, errors=given.reports.errors)


def _verifier(given: Given, keys: KeyRing | None) -> TokenVerifier | None:
    settings = given.settings
    if not settings.jwt_secrets and keys is None:
        return None  # the settings allow it where there is a connect hook
    verifier = JwtVerifier(
        *settings.jwt_secrets,
        clock=given.clock,
        algorithms=settings.jwt_algorithms,
        keys=keys.keys if keys else None,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        dev=settings.dev,
    )
    return KeyedVerifier(verifier, keys) if keys else verifier


def _may_use_cookies(settings: Settings) -> Callable[[str], bool]:
    listed, dev = frozenset(settings.origins), settings.dev
    return lambda origin: origin in listed or (dev and is_loopback_origin(origin))


def _core(given: Given, request_limits: Limits) -> assembly.Core:
    settings, reports = given.settings, given.reports
    ports = Ports(
        store=given.rows.store,
        revocations=given.rows.revocations,
        sessions=given.rows.sessions,
        session_events=given.publisher if settings.session_events and given.rows.sessions else None,
        logs=given.rows.logs,
        acks=given.consumer,
        receipts=given.publisher,
        dead_letters=given.publisher,
        fallbacks=given.publisher,
        answers=given.publisher,
        hooks=reports.hooks,
        metrics=reports.metrics,
        errors=reports.errors,
        clock=given.clock,
        hook=given.hook,
        directory=given.rows.directory,
        post=given.post,
        retained=given.rows.retained,
        schedule=given.rows.schedule,
        releases=given.publisher,
    )
    limits = CoreLimits(
        delivery=DeliveryLimits(
            requests=request_limits,
            confirm_timeout=settings.confirm_timeout,
            max_age=settings.max_age,
            start_grace=settings.start_grace,
            max_attempts=settings.max_attempts,
            total_bytes=settings.total_bytes,
            partitions=settings.partitions,
            tenant_window=settings.prefetch * settings.partitions if settings.tenant_share == "fair" else 0,
            drain_rate=settings.drain_rate,
            keep_bodies=settings.payload not in ("none", "while_kept"),
            session_lifetime=settings.session_lifetime,
            topic_linger=settings.topic_linger,
        ),
        mailbox=MailboxLimits(settings.mailbox_pushes, settings.mailbox_bytes),
        id_memory_bytes=settings.id_memory_bytes,
        token_seconds=settings.token_days * 86400.0,
        admission=settings.admission,
        hook=HookLimits(
            settings.connect_at_once,
            frozenset(settings.connect_headers),
            _may_use_cookies(settings),
        ),
    )
    return assembly.Core(ports, limits, gate=given.gate, node=settings.node, boot=given.boot)
