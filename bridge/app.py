"""The composition root: what is chosen by settings, what starts before what, and how it all stops.

Start, outermost first; each part may use those before it, so it is stopped before them:

1. plug-ins, metrics: no I/O, everything else reports to them
2. the store: pushes can't be settled without it, so it is the last to go
3. the publisher: receipts are owed until the very end
4. the core: gate, hub, settlement, delivery, gateway
5. the WebSocket and ops ports: they listen at once and say `not ready` until the gate opens
6. the consumer: nothing is taken before there is somebody to send it to

Stop is a drain and goes the other way: refuse handshakes, stop taking, settle what was taken, close the
consumer's channel (what is left goes back to the queue, oldest first), close sessions spread out, leave.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from bridge import __version__, wire
from bridge.access import Access
from bridge.adapters import http, plugins, websocket
from bridge.adapters.amqp import Broker
from bridge.adapters.memory import MemoryLease, MemoryStore
from bridge.adapters.metrics import Gauges, PrometheusMetrics
from bridge.adapters.postgres import PostgresStore
from bridge.adapters.postgres_lease import PostgresLease
from bridge.adapters.postgres_upkeep import Upkeep
from bridge.adapters.producer import Producer
from bridge.adapters.stdout import JsonLinesLog
from bridge.adapters.tokens import JwtVerifier, make_token
from bridge.config import Settings
from bridge.delivery import Delivery, DeliveryLimits
from bridge.errors import BridgeError, SchemaBehind, StoreUnavailable
from bridge.gate import Gate
from bridge.gateway import Gateway
from bridge.hub import Hub
from bridge.model import CloseReason
from bridge.ports import DeliveryLog, ErrorHandler, Lease, SessionInfo, Store
from bridge.recent import CAPACITY
from bridge.session import SessionLimits
from bridge.settlement import Settlement

log = logging.getLogger("bridge")

TICK = 0.1
"""Seconds between looks at deadlines."""
SWEEP_EVERY = 1.0
"""Seconds between sweeps of the rows."""
SWEEP_ROWS = 500
"""Rows of dead boots that one sweep ends."""
UPKEEP_EVERY = 3600.0
"""Seconds between looks at the partitions."""
START_RETRY = 0.5
"""Seconds between tries while the database is away at the start."""
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

    def __init__(self, core: Core, ws: websocket.WebSocketServer, ops: http.OpsServer, broker: Broker) -> None:
        self._core = core
        self._ws = ws
        self._broker = broker
        self.ws_port = ws.port
        self.ops_port = ops.port
        self.gate = core.gate

    async def ready(self) -> None:
        """Return when pushes are taken."""
        await self.gate.opened()

    async def drain(self, timeout: float) -> bool:
        """Stop taking, settle what was taken, close the sessions. True when nothing was left open.

        The order is the promise: what is settled is acked before the channel closes, and only what is not
        goes back to the queue; sessions outlive the pushes that are on their way to them.
        """
        core = self._core
        deadline = core.clock.monotonic() + timeout
        core.access.draining = True
        core.gate.shut("draining", "this process is stopping")
        settled = True
        try:
            async with asyncio.timeout(timeout):
                await core.delivery.stop()
                while core.delivery.in_flight or core.settlement.rows_waiting:
                    await core.clock.sleep(TICK / 2)
                await core.settlement.idle()
        except TimeoutError:
            settled = False
            log.warning("stopping with %d pushes open: they go back to the queue", core.delivery.in_flight)
        await self._broker.stop_consuming()
        await self._close_sessions(max(1.0, deadline - core.clock.monotonic()))
        return settled

    async def _close_sessions(self, seconds: float) -> None:
        """Close every session with 1012, spread out, each told to come back at a moment of its own."""
        core = self._core
        sessions = list(core.hub)
        spread = min(CLOSE_SPREAD, seconds / 2, len(sessions) / 500)
        began = core.clock.monotonic()
        for index, session in enumerate(sessions):
            retry_after = CloseReason.RESTART.retry_after + random.uniform(0, CLOSE_SPREAD)
            core.delivery.close_session(session, CloseReason.RESTART, retry_after)
            ahead = began + spread * (index + 1) / len(sessions) - core.clock.monotonic()
            if ahead > 0.01:
                await core.clock.sleep(ahead)
        await self._ws.wait_sessions_closed(seconds)


class Core:
    """The parts that decide, put together; see `bridge.delivery`."""

    def __init__(
        self,
        settings: Settings,
        rows: Rows,
        broker: Broker,
        metrics: PrometheusMetrics,
        hooks: plugins.FanOutHooks,
        errors: ErrorHandler,
        node: str,
        boot: str,
    ) -> None:
        self.clock = SystemClock()
        self.gate = Gate()
        self.gate.shut("starting", "the database has not answered yet")
        self.hub = Hub()
        self.settlement = Settlement(
            store=rows.store,
            logs=rows.logs,
            receipts=broker,
            dead_letters=broker,
            acks=broker,
            hooks=hooks,
            metrics=metrics,
            errors=errors,
            clock=self.clock,
            gate=self.gate,
            node=node,
            boot=boot,
        )
        self.delivery = Delivery(
            hub=self.hub,
            store=rows.store,
            settlement=self.settlement,
            metrics=metrics,
            errors=errors,
            clock=self.clock,
            gate=self.gate,
            limits=DeliveryLimits(
                max_data_bytes=settings.max_data_bytes,
                confirm_timeout=settings.confirm_timeout,
                max_age=settings.max_age,
                start_grace=settings.start_grace,
                max_attempts=settings.max_attempts,
                total_bytes=settings.total_bytes,
            ),
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

    def readiness(self) -> tuple[bool, list[str]]:
        """Whether pushes are taken, and what is in the way."""
        return self.gate.is_open, self.gate.causes
