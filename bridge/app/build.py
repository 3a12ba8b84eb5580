"""The composition root: what is chosen by settings, what starts before what, and how it all stops.

Start, outermost first; each part may use those before it, so it is stopped before them:

1. plug-ins, metrics: no I/O, everything else reports to them
2. the store: pushes can't be settled without it, so it is the last to go
3. the publisher: receipts are owed until the very end
4. the core: gate, hub, settlement, delivery, gateway
5. the WebSocket and ops ports: they listen at once and say `not ready` until the gate opens
6. the consumer: nothing is taken before there is somebody to send it to

Stop is a drain and goes the other way: refuse handshakes, stop taking, settle what was taken, close the
consumer's channel (what is left goes back to the queue, oldest first), close sessions spread out, leave. A second
signal ends the settling and the spreading out at once, see `bridge.app.stopping`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from bridge import __version__
from bridge.adapters import loop_watch, plugins
from bridge.adapters.amqp.consume import Consumer
from bridge.adapters.amqp.publish import Publisher
from bridge.adapters.amqp.standing_producer import StandingProducer
from bridge.adapters.amqp.topology import DeclareMode
from bridge.adapters.amqp.turn import Role
from bridge.adapters.memory import MemoryLease, MemoryStore
from bridge.adapters.metrics import Gauges, PrometheusMetrics
from bridge.adapters.postgres.figures import PostgresFigures
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.pool import CONNECTIONS
from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.postgres.upkeep import Upkeep
from bridge.adapters.stdout import JsonLinesLog
from bridge.adapters.tokens import JwtVerifier, make_token
from bridge.adapters.websocket import server as websocket
from bridge.app.standing import Standing, TakingLog
from bridge.app.stopping import Left, stop_signals
from bridge.config import Settings
from bridge.core.contract.requests import Limits
from bridge.core.control import Control, Switch
from bridge.core.delivery.delivery import Delivery, DeliveryLimits
from bridge.core.delivery.remembered import Recollection, Remembered
from bridge.core.errors import (
    BridgeError,
    DatabaseUnsuitable,
    SettingsError,
    StatementFailed,
    StoreUnavailable,
)
from bridge.core.gateway import Gateway
from bridge.core.inflight.flights import Flights
from bridge.core.mailbox.mailbox import Mailbox
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.mailbox.outgoing import Outgoing
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.plugins import DeliveryLog, ErrorHandler, SessionInfo
from bridge.core.ports.store import Lease, Store
from bridge.core.sessions.access import Access
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import SessionLimits
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import SWEEP_ROWS
from bridge.core.settlement.settlement import Settlement
from bridge.core.settlement.worklist import Worklist
from bridge.operator import books, lookup
from bridge.operator.auditor import Auditor, Look
from bridge.ops import server as http
from bridge.ops.context import LookUp, OpsContext
from bridge.ops.outcome_feed import OutcomeFeed
from bridge.ops.surroundings import Surroundings

log = logging.getLogger("bridge")

TICK = 0.1
"""Seconds between looks at deadlines."""
SWEEP_EVERY = 1.0
"""Seconds between sweeps of the rows."""
UPKEEP_EVERY = 3600.0
"""Seconds between looks at the partitions."""
AUDIT_EVERY = 60.0
"""Seconds between two audits."""
LOOK_UP_SECONDS = 5.0
"""Seconds that a statement may take by which the ops port or the audit asks the log."""
START_RETRY = 0.5
"""Seconds between tries while the database is away at the start."""
GC_OBJECTS = 10_000
"""New objects after which the collector looks at the youngest; the interpreter's own 700 costs latency."""
CLOSED_AT_ONCE = 50
"""Sessions that are closed at a stop before others get their turn."""
CLOSE_SPREAD = 2.0
"""Seconds over which sessions are closed at a stop, and over which their return is spread as well."""


class SystemClock:
    """The Clock port on the machine's clocks."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)


class Rows(NamedTuple):
    """What the settings make of the delivery log."""

    store: Store
    lease: Lease
    postgres: PostgresStore | None
    logs: Sequence[DeliveryLog]


class Running:
    """A bridge that serves; `ws_port` and `ops_port` are where it listens."""

    def __init__(
        self, core: Core, ws: websocket.WebSocketServer, ops: http.OpsServer, consumer: Consumer
    ) -> None:
        self._core = core
        self._ws = ws
        self._consumer = consumer
        self.ws_port = ws.port
        self.ops_port = ops.port
        self.gate = core.gate
        self.hurry = asyncio.Event()
        """Set by who can't wait for the rest of a drain."""
        self._stopping_since = 0.0
        self._given_back = self._closed = 0

    async def ready(self) -> None:
        """Return when pushes are taken."""
        await self.gate.opened()

    async def drain(self, seconds: float, *, settle: bool = True) -> None:
        """Stop taking, settle what was taken within `seconds`, give back the rest, close sessions.

        The order is the promise: what is settled is acked before the channel closes, and only what is not
        goes back to the queue; sessions outlive the pushes that are on their way to them. `hurry` ends the waiting.
        """
        core = self._core
        self._stopping_since = core.clock.monotonic()
        deadline = self._stopping_since + seconds
        core.access.draining = True
        self._ws.stop_accepting()
        core.gate.shut("draining", "this process is stopping")
        if settle:
            await self._unless_hurried(self._settle(), seconds)
        self._given_back = self._consumer.held
        await self._consumer.stop_consuming()
        await self._close_sessions(max(1.0, deadline - core.clock.monotonic()))

    async def _settle(self) -> None:
        core = self._core
        await core.delivery.stop()
        while core.delivery.in_flight or core.worklist.rows_waiting:
            await core.clock.sleep(TICK / 2)
        await core.worklist.idle()

    async def _unless_hurried(self, work: Coroutine[Any, Any, None], seconds: float) -> None:
        working = asyncio.create_task(work, name="settling the rest")
        hurrying = asyncio.create_task(self.hurry.wait(), name="hurry")
        try:
            await asyncio.wait((working, hurrying), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, hurrying):
                task.cancel()
            await asyncio.gather(working, hurrying, return_exceptions=True)

    async def _close_sessions(self, seconds: float) -> None:
        """Close every session with 1012, spread out, each told to come back at a moment of its own."""
        core = self._core
        sessions = list(core.hub)
        self._closed = len(sessions)
        spread = min(CLOSE_SPREAD, seconds / 2, len(sessions) / 500)
        began = core.clock.monotonic()
        for index, session in enumerate(sessions):
            retry_after = CloseReason.RESTART.retry_after + random.uniform(0, CLOSE_SPREAD)
            core.delivery.close_session(session, CloseReason.RESTART, retry_after)
            ahead = began + spread * (index + 1) / len(sessions) - core.clock.monotonic()
            if ahead > 0.01 and not self.hurry.is_set():
                await core.clock.sleep(ahead)
            elif index % CLOSED_AT_ONCE == 0:
                await core.clock.sleep(0)

    def left(self) -> Left:
        """What the stop has left behind; once nothing is settled any more."""
        core = self._core
        return Left(
            core.clock.monotonic() - self._stopping_since,
            self._given_back,
            core.delivery.in_flight - core.delivery.account().on_their_way,
            core.flights.resting,
            self._closed,
        )


class Core:
    """The parts that decide, put together; see `bridge.core.delivery.delivery`."""

    def __init__(
        self,
        settings: Settings,
        rows: Rows,
        consumer: Consumer,
        publisher: Publisher,
        metrics: PrometheusMetrics,
        hooks: plugins.FanOutHooks,
        errors: ErrorHandler,
        clock: SystemClock,
        gate: Gate,
        boot: str,
    ) -> None:
        self.clock = clock
        self.gate = gate
        self.consumer = consumer
        self.hub = Hub()
        self._keeps = keeps = rows.postgres is not None
        max_ttl = settings.retention_days * 86400.0 if keeps else 0.0
        self.wire_limits = Limits(settings.max_data_bytes, max_ttl)
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
            boot=boot,
            patience=settings.confirm_timeout,
            park_after=DeliveryLimits().park_after,
            limits=MailboxLimits(settings.mailbox_pushes, settings.mailbox_bytes),
        )
        self.remembered = Remembered(settings.id_memory_bytes, clock.monotonic())
        self.recollection = Recollection(
            self.remembered, store=rows.store, errors=errors, clock=clock, boot=boot
        )
        self.delivery = Delivery(
            hub=self.hub,
            store=rows.store,
            flights=self.flights,
            worklist=self.worklist,
            outgoing=self.outgoing,
            mailbox=self.mailbox,
            acks=consumer,
            metrics=metrics,
            errors=errors,
            clock=self.clock,
            gate=self.gate,
            remembered=self.remembered,
            recollection=self.recollection,
            limits=DeliveryLimits(
                wire=self.wire_limits,
                confirm_timeout=settings.confirm_timeout,
                max_age=settings.max_age,
                start_grace=settings.start_grace,
                max_attempts=settings.max_attempts,
                total_bytes=settings.total_bytes,
            ),
        )
        self.settlement = Settlement(
            worklist=self.worklist,
            store=rows.store,
            logs=rows.logs,
            receipts=publisher,
            dead_letters=publisher,
            acks=consumer,
            hooks=hooks,
            metrics=metrics,
            errors=errors,
            clock=self.clock,
            gate=self.gate,
            node=settings.node,
            boot=boot,
            on_settled=self.delivery.settled,
            on_stored=self.mailbox.stored,
            on_superseded=self.mailbox.ended_in_store,
        )
        self.control = Control(
            store=rows.store,
            mailbox=self.mailbox,
            acks=consumer,
            answers=publisher,
            errors=errors,
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
            hooks=hooks,
            metrics=metrics,
            clock=self.clock,
        )

    def sessions(self, limit: int) -> list[SessionInfo]:
        """At most so many of the open sessions."""
        return [session.info for _, session in zip(range(limit), self.hub, strict=False)]

    def role(self) -> Role | None:
        """What this node is to the others; None while it is not connected to the broker."""
        return self.consumer.role

    def readiness(self) -> tuple[bool, list[str]]:
        """Whether pushes are taken, and what is in the way."""
        return self.gate.is_open, self.gate.causes

    @property
    def database_up(self) -> bool | None:
        """Whether the database answers and takes rows, as far as is known; None: there is none."""
        return not self.gate.database_down if self._keeps else None

    def public_readiness(self) -> tuple[bool, list[str]]:
        """Whether pushes are taken, and which parts are in the way: what strangers may know of it."""
        return self.gate.is_open, self.gate.names

    def gauges(self, ws: websocket.WebSocketServer) -> Gauges:
        """How much there is of everything now."""
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


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """A bridge for the length of the block; the order of everything is in the module's docstring.

    The block runs once the ports listen, which is before anything is ready. Leaving it drains first. Raises
    SettingsError, NodeNameTaken, DatabaseUnsuitable, and whatever ends one of its tasks: a part that dies takes the
    whole along.
    """
    clock = SystemClock()
    boot = uuid.uuid4().hex
    async with AsyncExitStack() as stack:
        handler = plugins.load_error_handler(settings.error_handler)
        await plugins.enter(stack, handler, settings.error_handler, "BRIDGE_ERROR_HANDLER")
        feed = OutcomeFeed()
        plugged = [
            await plugins.enter(stack, plugins.load_hooks(spec), spec, "BRIDGE_HOOKS", handler)
            for spec in settings.hooks
        ]
        auditor = Auditor(boot, clock, _audit_look(settings, boot))
        hooks = plugins.FanOutHooks([feed, auditor, *plugged], handler)
        errors = plugins.ReportedErrors(handler, hooks)
        metrics = PrometheusMetrics()
        metrics.audit = lambda: (auditor.drift, auditor.audited_at)
        gate = Gate()
        gate.shut("starting", "the database has not answered yet", database=True)
        standing = Standing(gate)

        rows = await _rows(stack, settings, clock, boot, handler)
        declare = DeclareMode(settings.declare)
        publisher = await stack.enter_async_context(
            Publisher(
                settings.amqp_url,
                clock=clock,
                errors=errors,
                outcome_events=settings.outcome_events,
                declare=declare,
                name=f"{settings.node} publisher",
                on_given_up=metrics.events_given_up,
                on_events_refused=standing.events_refused,
            )
        )
        consumer = Consumer(
            settings.amqp_url,
            clock=clock,
            errors=errors,
            prefetch=settings.prefetch,
            declare=declare,
            on_state=standing.linked,
            on_role=standing.became,
            name=f"{settings.node} consumer",
        )
        core = Core(settings, rows, consumer, publisher, metrics, hooks, errors, clock, gate, boot)
        around = Surroundings(consumer, _figures(stack, settings), clock)
        metrics.around = around.families
        ws = await _listen_websocket(stack, settings, core)
        metrics.sampler = lambda: core.gauges(ws)
        producer = await stack.enter_async_context(StandingProducer(settings.amqp_url))
        ops = await stack.enter_async_context(
            http.listen(
                OpsContext(
                    node=settings.node,
                    boot=boot,
                    version=__version__,
                    started_at=clock.time(),
                    ws_port=lambda: ws.port,
                    readiness=core.readiness,
                    role=core.role,
                    gauges=lambda: core.gauges(ws).known(),
                    sessions=core.sessions,
                    metrics_page=metrics.page,
                    publisher=producer,
                    recall=core.mailbox.recall,
                    feed=feed,
                    limits=core.wire_limits,
                    errors=errors,
                    clock=clock,
                    dev_token=_dev_token(settings) if settings.dev else None,
                    look_up=_look_up(settings) if rows.postgres is not None else None,
                ),
                host=settings.ops_host,
                port=settings.ops_port,
                token=settings.ops_token.get_secret_value(),
            )
        )
        await stack.enter_async_context(consumer.taking(Switch(core.delivery, core.control)))

        async with _first_error(), asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(work, name=name)
                for name, work in (
                    ("settlement", core.settlement.run()),
                    ("delivery", core.delivery.run()),
                    ("mailbox", core.mailbox.run()),
                    ("control", core.control.run()),
                    ("ticker", _tick(core)),
                    ("start", _start(core, rows)),
                    ("lease", _hold_lease(core, rows)),
                    ("sweeper", _sweep_log(core, rows, errors)),
                    ("mailbox sweeper", _sweep_mailboxes(core, errors)),
                    ("recollection", _recollect(core)),
                    ("loop watch", loop_watch.watch(metrics.loop_lag)),
                    ("upkeep", _upkeep(settings, core, rows, errors)),
                    ("auditor", _audit(core, auditor, errors)),
                    ("queues", around.watch_queues()),
                    ("figures", _watch_log(core, around)),
                )
            ]
            made = Running(core, ws, ops, consumer)
            stack.callback(lambda: log.info("%s", made.left().words))
            try:
                yield made
            finally:
                # Nothing can be settled any more when what settles is what has failed.
                settle = not any(task.done() for task in tasks[:2])
                await made.drain(settings.drain_timeout, settle=settle)
                for task in tasks:
                    task.cancel()
        await _release(rows.lease, errors)


@asynccontextmanager
async def _first_error() -> AsyncIterator[None]:
    """Raise what ended a task group as itself where it is one error; the others are its notes."""
    try:
        yield
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            for other in first.exceptions[1:]:
                group.exceptions[0].add_note(f"and then: {other!r}")
            first = first.exceptions[0]
        raise first from group


async def _rows(
    stack: AsyncExitStack, settings: Settings, clock: SystemClock, boot: str, handler: ErrorHandler
) -> Rows:
    logs: list[DeliveryLog] = []
    for name in settings.delivery_log:
        if name == "stdout":
            logs.append(JsonLinesLog())
        elif name != "postgres":
            made = plugins.load_delivery_log(name)
            logs.append(await plugins.enter(stack, made, name, "BRIDGE_DELIVERY_LOG", handler))
    if "postgres" in settings.delivery_log:
        store = PostgresStore(settings.postgres_dsn, application_name=f"bridge {settings.node}")
        stack.push_async_callback(store.close)
        lease = PostgresLease(settings.postgres_dsn, settings.node, boot)
        return Rows(store, lease, store, logs)
    log.warning(
        "no `postgres` in BRIDGE_DELIVERY_LOG: repeats are known from this process's memory only, "
        "so that a push may be delivered and logged again after a restart; nothing can be kept, so that pushes "
        "with a ttl are rejected"
    )
    memory = MemoryStore(clock)
    return Rows(memory, MemoryLease(memory, clock, settings.node, boot), None, logs)


def _figures(stack: AsyncExitStack, settings: Settings) -> PostgresFigures | None:
    if not settings.uses_postgres:
        return None
    figures = PostgresFigures(settings.postgres_dsn, settings.node)
    stack.push_async_callback(figures.close)
    return figures


async def _listen_websocket(
    stack: AsyncExitStack, settings: Settings, core: Core
) -> websocket.WebSocketServer:
    try:
        return await stack.enter_async_context(
            websocket.listen(
                settings.ws_host, settings.ws_port, core.gateway, readiness=core.public_readiness
            )
        )
    except OSError as error:
        problem = f"cannot listen on {settings.ws_host}:{settings.ws_port}: {error.strerror}"
        raise SettingsError("BRIDGE_WS_PORT", problem) from error


def _dev_token(settings: Settings) -> Callable[[str, float], str]:
    secret, algorithm = settings.jwt_secret.get_secret_value(), settings.jwt_algorithms[0]
    claims: dict[str, Any] = {
        name: value for name, value in (("iss", settings.jwt_issuer), ("aud", settings.jwt_audience)) if value
    }
    return lambda user, ttl: make_token(secret, user, ttl, algorithm=algorithm, **claims)


def _look_up(settings: Settings) -> LookUp:
    # Each has a connection of its own: however many ask, pushes must not go without.
    free = asyncio.Semaphore(CONNECTIONS["look-ups"])

    async def look_up(push_id: str, user: str | None, tenant: str | None) -> lookup.Found:
        async with free:
            return await lookup.look_up(
                settings.postgres_dsn, push_id, user=user, tenant=tenant, seconds=LOOK_UP_SECONDS
            )

    return look_up


async def _start(core: Core, rows: Rows) -> None:
    """Claim the node's name, go on above the highest position, see that a row can be written; until then the gate is
    shut."""
    while True:
        try:
            await rows.lease.claim()
            # A log that takes no row could not say how a push ended: nothing is sent before it does.
            await rows.store.try_writing()
            core.mailbox.begin(await rows.store.last_position())
        except DatabaseUnsuitable:
            # No waiting mends it: the start is refused.
            raise
        except StoreUnavailable as away:
            core.gate.shut("starting", str(away), database=True)
            await core.clock.sleep(START_RETRY)
        else:
            break
    core.delivery.begin_grace()
    core.gate.clear("starting")


async def _tick(core: Core) -> None:
    second = core.clock.monotonic()
    taking = TakingLog(core.gate)
    while True:
        core.delivery.tick()
        now = core.clock.monotonic()
        if now - second >= 1.0:
            second = now
            core.delivery.every_second()
            taking.every_second(now)
        await core.clock.sleep(TICK)


async def _hold_lease(core: Core, rows: Rows) -> None:
    """Every second: show that this boot lives. Decides whether the database is down while nothing is pushed.

    Nothing else is done here: a lease that is not renewed in time is a dead node to all others.
    """
    while True:
        await core.clock.sleep(SWEEP_EVERY)
        if "starting" in core.gate:
            continue
        try:
            await rows.lease.renew(core.delivery.account())
        except StoreUnavailable as away:
            core.gate.shut("database", str(away), database=True)
        else:
            core.gate.clear("database")


async def _sweep_log(core: Core, rows: Rows, errors: ErrorHandler) -> None:
    """Every second: a new day, rows of dead boots, debts."""
    limit = SWEEP_ROWS
    while True:
        await core.clock.sleep(SWEEP_EVERY)
        if "starting" in core.gate or "database" in core.gate:
            continue
        core.worklist.sweep()
        try:
            if rows.postgres is not None:
                await rows.postgres.roll_day()
            ended = await rows.lease.end_dead(limit)
        except StatementFailed as failed:
            limit = max(1, limit // 2)
            errors.handle(failed, "sweep", {"rows": limit})
        except StoreUnavailable as away:
            # The lease decides whether the database is down.
            errors.handle(away, "sweep", {})
        else:
            limit = SWEEP_ROWS
            if ended:
                core.worklist.ended_by_sweep(ended)


async def _sweep_mailboxes(core: Core, errors: ErrorHandler) -> None:
    """Every second: end kept pushes whose time is over, and what is over the bounds of a mailbox."""
    while True:
        await core.clock.sleep(SWEEP_EVERY)
        if "starting" not in core.gate and "database" not in core.gate:
            try:
                await core.mailbox.sweep()
            except StoreUnavailable as away:
                errors.handle(away, "mailbox.sweep", {})


async def _recollect(core: Core) -> None:
    """Fill the memory of ids once the log can be read."""
    while "starting" in core.gate:
        await core.clock.sleep(START_RETRY)
    await core.recollection.run()


async def _watch_log(core: Core, around: Surroundings) -> None:
    """Figures of the log for the metrics, once it is known that it may be asked."""
    while "starting" in core.gate:
        await core.clock.sleep(START_RETRY)
    await around.watch_log()


async def _upkeep(settings: Settings, core: Core, rows: Rows, errors: ErrorHandler) -> None:
    """Partitions ahead of time, and away after their retention; at the start and every hour."""
    if rows.postgres is None:
        return
    while "starting" in core.gate:
        await core.clock.sleep(START_RETRY)
    upkeep = Upkeep(settings.postgres_dsn)
    while True:
        try:
            done = await upkeep.run_once(settings.retention_days)
        except BridgeError as error:
            # Mostly the database is away. Whatever else it is: pushes need none of this today.
            errors.handle(error, "upkeep", {})
            await core.clock.sleep(START_RETRY * 10)
            continue
        for trouble in done.trouble:
            errors.handle(trouble, "upkeep", {})
        if done.made or done.dropped:
            log.info("partitions made: %s, dropped: %s", done.made, done.dropped)
        await core.clock.sleep(UPKEEP_EVERY)


def _audit_look(settings: Settings, boot: str) -> Look | None:
    if "postgres" not in settings.delivery_log:
        return None
    return lambda since, until: books.read_stretch(settings.postgres_dsn, boot, since, until, LOOK_UP_SECONDS)


async def _audit(core: Core, auditor: Auditor, errors: ErrorHandler) -> None:
    """Every minute: does what was taken add up with what was written. On a connection of its own."""
    while True:
        await core.clock.sleep(AUDIT_EVERY)
        try:
            await auditor.run(core.delivery.account(), gate_open=core.gate.is_open)
        except BridgeError as error:
            # Mostly the database is away, or there is something in the log that it should not hold.
            errors.handle(error, "audit", {})


async def _release(lease: Lease, errors: ErrorHandler) -> None:
    try:
        await lease.release()
    except BridgeError as error:
        # The lease runs out by itself, and the next start of this name does not wait for it.
        errors.handle(error, "lease.release", {})


async def serve(
    settings: Settings,
    *,
    ready: Callable[[Running], None] | None = None,
    last: Callable[[], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; returns the exit code, see `stopping`.

    `ready` is called once, when pushes are taken; `last` before a third signal kills the process.
    """
    # What is imported by now lives as long as the process; the collector need not look at it again and again,
    # and at thousands of sessions not after every few hundred objects.
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)
    with stop_signals(last) as signals:
        async with running(settings) as bridge:
            log.info(
                "node %s: WebSockets on port %d, ops on port %d",
                settings.node,
                bridge.ws_port,
                bridge.ops_port,
            )
            bridge.hurry = signals.hurried
            announce = asyncio.create_task(_announce(bridge, ready), name="announce")
            try:
                await signals.asked.wait()
            finally:
                announce.cancel()
                await asyncio.gather(announce, return_exceptions=True)
        return signals.exit_code


async def _announce(bridge: Running, ready: Callable[[Running], None] | None) -> None:
    await bridge.ready()
    log.info("ready: taking pushes")
    if ready is not None:
        ready(bridge)
