"""The composition root: what the settings choose, what starts before what, and how all of it stops.

Start, outermost first; each part may use those before it, so it is stopped before them:

1. plug-ins, metrics: no I/O, everything else reports to them
2. the delivery log: pushes can't be settled without it, so it is the last to go
3. the publishers: receipts are owed until the very end; and the client of the connect hook
4. the core: gate, hub, settlement, delivery, gateway
5. the WebSocket and ops ports: they listen at once and say `not ready` until the gate opens; and the link to other
   nodes, whose pushes go to the sessions here
6. the consumer: nothing is taken before there is somebody to send it to
7. the tasks: only they make anything happen

The stop is a drain and goes the other way: refuse handshakes, stop taking, settle what was taken, close the
consumer's channel (the broker puts back what is left, oldest first), close sessions spread out, leave. A second
signal ends the waiting, see `bridge.app.signals`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from bridge import __version__
from bridge.adapters.actions import ActionLog, OnRecord
from bridge.adapters.amqp.consume import Consumer
from bridge.adapters.amqp.inbound import InboundPublisher
from bridge.adapters.amqp.nodes import NodeLink
from bridge.adapters.amqp.partitions import Partitions, TakesRequests
from bridge.adapters.amqp.publish import ReceiptPublisher
from bridge.adapters.amqp.spread import Spread
from bridge.adapters.amqp.standing_producer import StandingProducer
from bridge.adapters.amqp.topology import DeclareMode
from bridge.adapters.amqp.turn import Role
from bridge.adapters.connect_hook import connect_hook
from bridge.adapters.credentials import Credentials
from bridge.adapters.metrics import (
    gauge_families,
    inbound_families,
    key_families,
    partition_families,
    session_event_families,
)
from bridge.adapters.tokens import make_token
from bridge.adapters.websocket import listening
from bridge.adapters.websocket.server import WebSocketServer
from bridge.app.clock import SystemClock
from bridge.app.desk import OperatorsDesk
from bridge.app.drain import Drain
from bridge.app.files import socket_limits
from bridge.app.limits import LIMITS, ServiceLimits
from bridge.app.node import Given, Node
from bridge.app.readiness import BrokerReadiness
from bridge.app.reports import Reports, reporting
from bridge.app.rows import LoggedNodes, LoggedPeople, delivery_log, look_up_of
from bridge.app.signals import StopSignals, stop_signals
from bridge.app.tasks import Workplace, at_work
from bridge.config import Settings
from bridge.core.contract.patterns import EVERYTHING
from bridge.core.control import Switch
from bridge.core.errors import BridgeError, SettingsError
from bridge.core.ports.clock import Clock
from bridge.core.ports.connecting import ConnectHook
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import Lease
from bridge.core.settlement.gate import Gate
from bridge.ops import server as http
from bridge.ops.context import OpsContext
from bridge.ops.core_form import core_form
from bridge.ops.history import History
from bridge.ops.surroundings import Surroundings

__all__ = ["LIMITS", "Running", "SystemClock", "running", "serve"]

SETTLE_MORE = 1.0
"""Seconds that a partition which is handed over has to settle, beside those for a proof."""

log = logging.getLogger("bridge")


class Running:
    """A bridge that serves; `ws_port` and `ops_port` are where it listens."""

    def __init__(
        self,
        node: Node,
        ws: WebSocketServer,
        ops: http.OpsServer,
        consumer: TakesRequests,
        stop_asked: asyncio.Event,
    ) -> None:
        self._node = node
        self._ws = ws
        self._consumer = consumer
        self.ws_port = ws.port
        self.ops_port = ops.port
        self.gate = node.gate
        self.stop_asked = stop_asked
        """Set when somebody has asked for a stop by `bridge drain`; whoever runs the bridge ends the block then."""

    async def ready(self) -> None:
        """Return when pushes are taken."""
        await self.gate.opened()

    @property
    def state(self) -> tuple[bool, bool]:
        """Whether it is ready, and whether it is the node that takes the pushes."""
        return self._node.ready, self._node.role() is Role.ACTIVE


@asynccontextmanager
async def running(
    settings: Settings, *, hurry: asyncio.Event | None = None, ops_path: str = ""
) -> AsyncIterator[Running]:
    """A bridge for the length of the block; the order of everything is in the module's docstring.

    The block runs once the ports listen, which is before anything is ready. Leaving it drains first; from the moment
    that `hurry` is set the drain waits for nothing. `ops_path`: for one of several workers, the unix socket that its
    ops routes are served on; others listen on its WebSocket port, too. Raises SettingsError, NodeNameTaken,
    DatabaseUnsuitable, and the error of any task: a part that fails takes the whole bridge along.
    """
    clock, limits, boot = SystemClock(), LIMITS, uuid.uuid4().hex
    gate = Gate()
    gate.shut("starting", "the database has not answered yet", database=True)
    readiness = BrokerReadiness(gate, shares=settings.uses_postgres)
    async with (
        reporting(settings, clock, limits, boot) as reports,  # 1
        delivery_log(settings, clock, boot, reports.handler) as rows,  # 2
        _publisher(settings, clock, reports, readiness) as publisher,  # 3
        _inbound(settings, clock, reports.errors) as inbound,  # 3
        _hook(settings) as hook,  # 3
    ):
        consumer = _consumer(settings, clock, reports.errors, readiness)
        link = _node_link(settings, clock, reports.errors, boot) if rows.directory is not None else None
        node = Node(
            Given(settings, rows, consumer, publisher, reports, clock, gate, hook, boot, link, inbound)
        )  # 4
        surroundings = Surroundings(consumer, rows.figures, clock)
        async with _listen_websocket(settings, node, shared=bool(ops_path)) as ws:  # 5
            reports.metrics.add_source(surroundings.families)
            reports.metrics.add_source(lambda: gauge_families(node.gauges(ws)))
            told = node.core.announcing
            reports.metrics.add_source(lambda: session_event_families(told.sent, told.dropped))
            heard = node.publishing
            reports.metrics.add_source(lambda: inbound_families(heard.results, heard.waiting))
            reports.metrics.add_source(lambda: partition_families(consumer.taken, node.other_keys))
            if (keys := node.keys) is not None and settings.jwt_jwks_url:
                reports.metrics.add_source(lambda: key_families(keys.fetches, keys.age))
            history = History(
                reports.metrics.totals, lambda: node.gauges(ws).known(), lambda: surroundings.ready, clock
            )
            async with (
                _listen_ops(
                    settings, limits, reports, node, ws, boot, rows.actions, history, ops_path
                ) as ops,  # 5
                _linked(link, node),  # 5
                consumer.taking(Switch(node.core.intake, node.core.control)),  # 6
            ):
                work = Workplace(settings, limits, node, rows, reports, surroundings, history)
                drain = Drain(node, ws, consumer, rows.lease, limits, hurry or asyncio.Event())
                try:
                    async with at_work(work) as can_settle:  # 7
                        try:
                            yield Running(node, ws, ops, consumer, work.stop_asked)
                        finally:
                            await drain.run(settings.drain_timeout, settle=can_settle())
                    await _release(rows.lease, reports.errors)
                finally:
                    log.info("%s", drain.left().words)


# --- 3. The connect hook ---------------------------------------------------------------------------------


@asynccontextmanager
async def _hook(settings: Settings) -> AsyncIterator[ConnectHook | None]:
    url = settings.connect_url.get_secret_value()
    if not url:
        yield None
        return
    async with connect_hook(url, seconds=settings.connect_timeout, at_once=settings.connect_at_once) as hook:
        yield hook


# --- 3. and 6. The broker --------------------------------------------------------------------------------


def _publisher(
    settings: Settings, clock: Clock, reports: Reports, readiness: BrokerReadiness
) -> ReceiptPublisher:
    return ReceiptPublisher(
        settings.amqp_url,
        clock=clock,
        errors=reports.errors,
        outcome_events=settings.outcome_events,
        declare=DeclareMode(settings.declare),
        name=f"{settings.node} publisher",
        on_given_up=reports.metrics.events_given_up,
        on_events_refused=readiness.events_refused,
    )


def _inbound(settings: Settings, clock: Clock, errors: ErrorHandler) -> InboundPublisher:
    declare = DeclareMode(settings.declare)
    return InboundPublisher(settings.amqp_url, settings.node, clock=clock, errors=errors, declare=declare)


def _consumer(
    settings: Settings, clock: Clock, errors: ErrorHandler, readiness: BrokerReadiness
) -> TakesRequests:
    spread = Spread(settings.partitions, DeclareMode(settings.declare))
    name = f"{settings.node} consumer"
    if settings.partitions == 1:
        return Consumer(
            settings.amqp_url,
            clock=clock,
            errors=errors,
            prefetch=settings.prefetch,
            ahead=settings.tenant_share == "fair",
            spread=spread,
            on_state=readiness.linked,
            on_role=readiness.became,
            name=name,
        )
    return Partitions(
        settings.amqp_url,
        spread,
        clock=clock,
        errors=errors,
        prefetch=settings.prefetch,
        ahead=settings.tenant_share == "fair",
        settle_seconds=settings.confirm_timeout + SETTLE_MORE,
        on_state=readiness.linked,
        on_role=readiness.became,
        name=name,
    )


def _node_link(settings: Settings, clock: Clock, errors: ErrorHandler, boot: str) -> NodeLink:
    seconds = settings.confirm_timeout
    return NodeLink(settings.amqp_url, settings.node, boot, seconds=seconds, clock=clock, errors=errors)


@asynccontextmanager
async def _linked(link: NodeLink | None, node: Node) -> AsyncIterator[None]:
    """For the block other nodes can be reached, where there may be any."""
    if link is None:
        yield
        return
    link.listen(node.core.from_nodes)
    async with link:
        yield


# --- 5. The ports ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _listen_websocket(
    settings: Settings, node: Node, *, shared: bool
) -> AsyncIterator[WebSocketServer]:
    async with AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(
                listening.listen(
                    settings.ws_host,
                    settings.ws_port,
                    node.gateway,
                    readiness=node.public_readiness,
                    limits=socket_limits(settings),
                    headers=settings.connect_headers if settings.connect_url else (),
                    asks_at_once=settings.connect_at_once if settings.connect_url else 0,
                    shared=shared,
                    origins=settings.origins,
                )
            )
        except OSError as error:
            problem = f"cannot listen on {settings.ws_host}:{settings.ws_port}: {error.strerror}"
            raise SettingsError("BRIDGE_WS_PORT", problem) from error
        yield server


@asynccontextmanager
async def _listen_ops(
    settings: Settings,
    limits: ServiceLimits,
    reports: Reports,
    node: Node,
    ws: WebSocketServer,
    boot: str,
    actions: ActionLog | None,
    history: History,
    path: str,
) -> AsyncIterator[http.OpsServer]:
    credentials = Credentials(
        settings.ops_credentials,
        settings.ops_token.get_secret_value(),
        clock=node.clock,
        errors=reports.errors,
    )
    async with StandingProducer(settings.amqp_url) as producer:
        context = OpsContext(
            node=settings.node,
            boot=boot,
            version=__version__,
            core=core_form(),
            started_at=node.clock.time(),
            ws_port=lambda: ws.port,
            readiness=node.readiness,
            role=node.role,
            gauges=lambda: node.gauges(ws).known(),
            sessions=node.sessions,
            metrics_page=reports.metrics.page,
            publisher=producer,
            on_record=OnRecord(actions, settings.node),
            recall=node.core.recalls.recall,
            revoke=node.core.revoking.revoke,
            feed=reports.feed,
            limits=node.request_limits,
            errors=reports.errors,
            clock=node.clock,
            history=history.after,
            drift=lambda: (reports.auditor.drift, reports.auditor.audited_at),
            desk=OperatorsDesk(settings.postgres_dsn, settings.amqp_url, limits.look_up_seconds, node.clock)
            if settings.uses_postgres
            else None,
            dev_token=_dev_token(settings) if settings.dev and settings.jwt_secrets else None,
            look_up=look_up_of(settings, limits.look_up_seconds),
            people=LoggedPeople(settings.postgres_dsn, limits.look_up_seconds)
            if settings.uses_postgres
            else None,
            nodes=LoggedNodes(settings.postgres_dsn, limits.look_up_seconds, node.clock)
            if settings.uses_postgres
            else None,
        )
        async with http.listen(
            context, host=settings.ops_host, port=settings.ops_port, credentials=credentials, path=path
        ) as server:
            yield server


def _dev_token(settings: Settings) -> Callable[[str, float], str]:
    secret, algorithm = settings.jwt_secrets[0], settings.jwt_algorithms[0]
    claims: dict[str, Any] = {
        "iss": settings.jwt_issuer or None,
        "aud": settings.jwt_audience or None,
        **EVERYTHING,
    }
    return lambda user, ttl: make_token(secret, user, ttl, algorithm=algorithm, **claims)


# --- The end ---------------------------------------------------------------------------------------------


async def _release(lease: Lease, errors: ErrorHandler) -> None:
    try:
        await lease.release()
    except BridgeError as error:
        # The lease runs out by itself, and the next start of this name does not wait for it.
        errors.handle(error, "lease.release", {})


# --- As a process ----------------------------------------------------------------------------------------


def begin_process() -> None:
    """What a process does once before it serves."""
    form = core_form()
    log.info("the core is %s", form, extra={"core": form})
    # What is imported by now lives as long as the process, so the collector need not look at it again; and with
    # thousands of sessions it need not run after every few hundred objects.
    gc.freeze()
    gc.set_threshold(LIMITS.new_objects, LIMITS.young_looks, LIMITS.old_looks)


async def serve(
    settings: Settings,
    *,
    ready: Callable[[Running], None] | None = None,
    last: Callable[[], None] | None = None,
) -> int:
    """Serve until SIGTERM, SIGINT or `bridge drain`, then drain; returns the exit code, see `bridge.app.signals`.

    `ready` is called once, when pushes are taken; `last` before a third signal kills the process.
    """
    begin_process()
    with stop_signals(last) as signals:
        async with running(settings, hurry=signals.hurried) as bridge:
            log.info(
                "node %s: WebSockets on port %d, ops on port %d",
                settings.node,
                bridge.ws_port,
                bridge.ops_port,
            )
            aside = (
                asyncio.create_task(_announce(bridge, ready), name="announce"),
                asyncio.create_task(_hear(bridge, signals), name="hear of a drain"),
            )
            try:
                await signals.asked.wait()
            finally:
                for task in aside:
                    task.cancel()
                await asyncio.gather(*aside, return_exceptions=True)
        return signals.exit_code


async def _hear(bridge: Running, signals: StopSignals) -> None:
    """Stop when `bridge drain` asks for it. A first signal after that changes nothing: a supervisor may send one."""
    await bridge.stop_asked.wait()
    log.info("stopping: `bridge drain` asks for it; settling what is under way")
    signals.asked.set()


async def _announce(bridge: Running, ready: Callable[[Running], None] | None) -> None:
    await bridge.ready()
    log.info("ready: taking pushes")
    if ready is not None:
        ready(bridge)
