"""What the settings make of the delivery log: where rows are written, and how it is read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple

from bridge.adapters import plugins
from bridge.adapters.actions import ActionLog
from bridge.adapters.memory import MemoryLease, MemoryRevocations, MemoryStore
from bridge.adapters.postgres.actions import PostgresActions
from bridge.adapters.postgres.directory import PostgresDirectory
from bridge.adapters.postgres.figures import PostgresFigures
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.retained import PostgresRetained
from bridge.adapters.postgres.revocations import PostgresRevocations
from bridge.adapters.postgres.schedule import PostgresSchedule
from bridge.adapters.postgres.sessions import PostgresSessions
from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.stdout import JsonLinesLog
from bridge.config import Settings
from bridge.core.errors import StoreUnavailable
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import DeliveryLog, ErrorHandler
from bridge.core.ports.revocations import RevocationLog
from bridge.core.ports.store import Lease, Store
from bridge.core.sessions.admission import SessionsOver
from bridge.operator import books, lookup, nodes, people
from bridge.operator.auditor import Look
from bridge.ops.context import LookUp

NODES_COUNT: Final = 1.0
"""Seconds for which an answer to who the nodes are counts: the page asks often."""
NODES_WITHIN: Final = 0.5
"""Seconds in which it must come: `/status` must answer while the database does not."""

log = logging.getLogger("bridge")


class Rows(NamedTuple):
    """The delivery log of a running bridge."""

    store: Store
    lease: Lease
    revocations: RevocationLog
    sessions: PostgresSessions | None
    """The ledger; None without one."""
    schedule: PostgresSchedule | None
    """Where scheduled pushes wait; None without a database, which would lose them."""
    directory: PostgresDirectory | None
    """What the database knows of other nodes; None without a ledger."""
    retained: PostgresRetained | None
    """The last values of topics; None without a ledger."""
    actions: ActionLog | None
    """None if there is no database for the rows of who did what."""
    postgres: PostgresStore | None
    """The store, where it is in Postgres."""
    figures: PostgresFigures | None
    logs: Sequence[DeliveryLog]
    """Further logs, which get each row that the store has committed."""


@asynccontextmanager
async def delivery_log(
    settings: Settings, clock: Clock, boot: str, errors: ErrorHandler
) -> AsyncIterator[Rows]:
    """The delivery log for the length of the block; no connection is opened before it is used."""
    async with AsyncExitStack() as stack:
        logs: list[DeliveryLog] = []
        for name in settings.delivery_log:
            if name == "stdout":
                logs.append(JsonLinesLog())
            elif name != "postgres":
                made = plugins.load_delivery_log(name)
                logs.append(await plugins.enter(stack, made, name, "BRIDGE_DELIVERY_LOG", errors))
        token_seconds = settings.token_days * 86400.0
        if settings.uses_postgres:
            store = PostgresStore(settings.postgres_dsn, application_name=f"bridge {settings.node}")
            stack.push_async_callback(store.close)
            figures = PostgresFigures(settings.postgres_dsn, settings.node)
            stack.push_async_callback(figures.close)
            lease = PostgresLease(settings.postgres_dsn, settings.node, boot)
            # A bridge that ends with an error does not give its name back: what it left behind is to be found first.
            stack.push_async_callback(lease.close)
            revocations = PostgresRevocations(settings.postgres_dsn, settings.node, boot, token_seconds)
            stack.push_async_callback(revocations.close)
            sessions = _sessions(settings, boot)
            stack.push_async_callback(sessions.close)
            schedule = PostgresSchedule(settings.postgres_dsn, settings.node)
            stack.push_async_callback(schedule.close)
            directory = PostgresDirectory(settings.postgres_dsn, settings.node, boot)
            stack.push_async_callback(directory.close)
            retained = PostgresRetained(settings.postgres_dsn, settings.node, schedule.connections)
            stack.push_async_callback(retained.close)
            actions = PostgresActions(settings.postgres_dsn, settings.node)
            stack.push_async_callback(actions.close)
            yield Rows(
                store,
                lease,
                revocations,
                sessions,
                schedule,
                directory,
                retained,
                actions,
                store,
                figures,
                logs,
            )
        else:
            log.warning(
                "no `postgres` in BRIDGE_DELIVERY_LOG: the bridge knows repeats from memory only, so a push may be "
                "delivered and logged again after a restart; it keeps nothing, so it rejects pushes with a ttl; a "
                "restart forgets which tokens were revoked; and there is no ledger of sessions, so nobody can ask who "
                "is or was online"
            )
            memory = MemoryStore(clock)
            claim = MemoryLease(memory, clock, settings.node, boot)
            revoked = MemoryRevocations(clock, settings.node, token_seconds)
            yield Rows(memory, claim, revoked, None, None, None, None, None, None, None, logs)


def _sessions(settings: Settings, boot: str) -> PostgresSessions:
    bounds = settings.admission
    refuse = bounds.over is SessionsOver.REFUSE
    return PostgresSessions(settings.postgres_dsn, settings.node, boot, bounds.of_user, refuse=refuse)


def look_up_of(settings: Settings, seconds: float) -> LookUp | None:
    """How the ops port looks up a push, each statement within so many seconds; None without a log that can be read."""
    if not settings.uses_postgres:
        return None

    async def look_up(push_id: str, user: str | None, tenant: str | None) -> lookup.Found:
        # On a connection of its own: however many people ask, pushes keep theirs.
        return await lookup.look_up(settings.postgres_dsn, push_id, user=user, tenant=tenant, seconds=seconds)

    return look_up


class LoggedPeople:
    """Asks the log of these settings for users, each statement within so many seconds."""

    def __init__(self, dsn: str, seconds: float) -> None:
        self._dsn = dsn
        self._seconds = seconds

    async def look_up(self, user: str) -> people.Person:
        """See `People`."""
        return await people.look_up(self._dsn, user, seconds=self._seconds)

    async def disconnect(self, user: str, session: str | None) -> people.Disconnected:
        """See `People`."""
        return await people.disconnect(self._dsn, user, session)


class LoggedNodes:
    """Asks the log of these settings for the nodes; an answer counts for `NODES_COUNT` seconds."""

    def __init__(self, dsn: str, seconds: float, clock: Clock) -> None:
        self._dsn = dsn
        self._seconds = seconds
        self._clock = clock
        self._found: Sequence[nodes.KnownNode] = ()
        self._until = 0.0
        self._asking = asyncio.Lock()

    async def __call__(self) -> Sequence[nodes.KnownNode]:
        """Raises StoreUnavailable."""
        async with self._asking:
            if self._clock.monotonic() >= self._until:
                try:
                    async with asyncio.timeout(NODES_WITHIN):
                        self._found = await nodes.read(self._dsn, self._seconds)
                except TimeoutError as late:
                    raise StoreUnavailable(f"no answer within {NODES_WITHIN:g} s") from late
                self._until = self._clock.monotonic() + NODES_COUNT
            return self._found


def audit_look_of(settings: Settings, boot: str, seconds: float) -> Look | None:
    """How the auditor reads the log, each statement within so many seconds; None without a log that can be read."""
    if not settings.uses_postgres:
        return None
    return lambda since, until: books.read_stretch(settings.postgres_dsn, boot, since, until, seconds)
