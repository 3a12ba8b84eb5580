"""One run: a fresh vhost and database, a bridge, clients, publishers and proxies, until all is at rest."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import LiteralString, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from benchmarks.chaos.bridges import Bridge, BridgeFailed, token
from benchmarks.chaos.broker import (
    ANNOUNCEMENTS,
    GONE,
    Collector,
    Envelope,
    Publisher,
    Requests,
    channel,
    drained,
    waiting,
)
from benchmarks.chaos.checker import Verdict, Waits, check
from benchmarks.chaos.clients import Client, Manner, Witness
from benchmarks.chaos.evidence import Depth, Evidence, Request, Row, RowKey, Tab
from benchmarks.chaos.network import Network, network
from benchmarks.chaos.proxy import Proxy
from bridge.adapters.amqp.topology import CONTROL, FALLEN, requests_queue
from bridge.adapters.postgres import migrate
from bridge.devservers import Servers, ServersUnavailable
from bridge.operator.books import read_books

QUORUM_SETTLES = 1.0
"""Seconds after which a new quorum queue survives a kill of its broker (RabbitMQ 3.10)."""
REST_TIMEOUT = 120.0
"""Seconds after the load in which everything must come to rest; more than any timeout of the parts."""
COME_BACK_EVERY = 20.0
"""Seconds after which clients of two bridges reconnect once more, while they are not at rest."""
REST_FACTOR = 3
"""How many times as long it may take while receipts keep coming, on a machine that is busy."""
STANDSTILL = 10.0
"""Seconds without a receipt after which no progress is expected."""
RECOVERY_TIMEOUT = 90.0
"""Seconds after a fault in which a client must read a push again."""
CONNECTED_TIMEOUT = 90.0
POINT_TIMEOUT = 20.0
"""Seconds in which a process must come to the point where it kills itself."""
WANDERS = 0.15
"""Seconds between two clients that leave, on average."""
AWAY = 3.0
"""Seconds that they are disconnected, at most."""
AUDITED_HOURS = 24
_MARK = re.compile(rb"\bm\w+-\d+\b")


@dataclass(frozen=True)
class Scale:
    """The size of a run."""

    users: int = 150
    """Users with one client or two."""
    absent: int = 15
    """Users that never connect."""
    rate: float = 250.0
    """Messages per second of all publishers together."""
    publishers: int = 2
    before: float = 2.0
    """Seconds of load before the fault."""
    after: float = 4.0
    """Seconds of load after it, once a client reads again."""
    repeats: int = 1
    """The factor for faults that are made several times; 1 in the short run."""


SHORT = Scale(users=40, absent=6, rate=150.0, before=1.0, after=1.0)
FULL = Scale(repeats=5)


class Measure(NamedTuple):
    """How long after a moment a push to a user is proven that was published since then."""

    what: str
    since: float
    """Monotonic seconds."""
    user: str


@dataclass
class Outcome:
    """How a run ended."""

    verdict: Verdict
    times: int = 1
    """How often the fault was made."""
    first_push: float | None = None
    """Seconds from the end of the fault to the first push that a client read."""
    rest: float | None = None
    """Seconds from the end of fault and load to rest."""
    proven: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What was measured to the seconds after which a push was proven again, for each time."""


class Stage:
    """What faults act on. Everything random is drawn from `rng`, which is seeded."""

    def __init__(self, servers: Servers, url: str, dsn: str, rng: random.Random, scale: Scale, logs: Path):
        self.servers = servers
        self.name = urlsplit(url).path.removeprefix("/")
        """The name of the vhost and of the database."""
        self.url = url
        """The vhost, not through the proxy."""
        self.dsn = dsn
        """The database, not through the proxy."""
        self.rng = rng
        self.scale = scale
        self.logs = logs
        self.evidence = Evidence()
        self.witness = Witness()
        self.evidence.shown = self.witness.shown
        self.clients: list[Client] = []
        self.bridges: list[Bridge] = []
        self.publishers: list[Publisher] = []
        self.requests: list[Requests] = []
        self.collector = Collector(url, self.evidence)
        self.amqp = Proxy(*_address(url))
        self.postgres = Proxy(*_address(dsn))
        self.websocket = Proxy("127.0.0.1", 0)
        self.hold = asyncio.Event()
        """Publishing goes on while it is set."""
        self.hold.set()
        self.pace = 1.0
        """The factor for the rate of the load."""
        self.ended_at: float | None = None
        self.come_back_at_last: list[Client] = []
        """Clients that reconnect when the load is over, since their bridge did not get the pushes meanwhile."""
        self.measures: list[Measure] = []
        self.amqp_proxied = self.postgres_proxied = False
        self.networked = False
        """Whether each bridge is on a network of its own."""
        self.networks: dict[str, Network] = {}
        """By the node."""
        self.networking = AsyncExitStack()
        """Ends the networks."""
        self.settings: Mapping[str, object] = {}
        """Those of every bridge that differ from the defaults."""

    @property
    def bridge(self) -> Bridge:
        """The bridge that takes, if there is one."""
        return self.bridges[0]

    # --- what faults use ---

    async def dies(self) -> bool:
        """Wait until the bridge has killed itself; False when it never came to its point."""
        try:
            await self.bridge.exited(POINT_TIMEOUT)
        except BridgeFailed:
            return False
        return True

    async def starts_again(self) -> None:
        """Start the bridge that has died, or has not reached its point; recovery counts from now."""
        await self.bridge.kill()
        await self.bridge.start()
        self.now_healed()
        await self.bridge.ready()
        await self.sleep_some(0.2, 0.8)

    @property
    def partitions(self) -> int:
        """Of the requests."""
        return int(str(self.settings.get("partitions", 1)))

    @property
    def queues(self) -> Sequence[str]:
        """The queues that bridges take from."""
        return (*map(requests_queue, range(self.partitions)), FALLEN, CONTROL)

    async def start_bridge(self, node: str = "n1", **settings: object) -> Bridge:
        """Start one, ready."""
        settings = {**self.settings, **settings}
        broker, postgres = _address(self.url), _address(self.dsn)
        if self.amqp_proxied:
            broker = ("127.0.0.1", self.amqp.port)
        if self.postgres_proxied:
            postgres = ("127.0.0.1", self.postgres.port)
        own = None
        if self.networked:
            own = self.networks[node] = await self.networking.enter_async_context(network(broker, postgres))
            broker, postgres = own.amqp, own.database
        made = Bridge(
            node, _at(self.url, broker), _at(self.dsn, postgres), self.logs / f"{node}.log", **settings
        )
        if own is not None:
            made.within = own.within
            for port in (made.ws_port, made.ops_port):
                await self.networking.enter_async_context(own.door(port))
        self.bridges.append(made)
        await made.start()
        await made.ready()
        return made

    async def add_client(self, user: str, manner: Manner, port: Callable[[], int] | None = None) -> Client:
        """One more client, connected."""
        client = self.new_client(user, manner, port)
        client.start()
        await self.connected([client])
        return client

    def new_client(self, user: str, manner: Manner, port: Callable[[], int] | None = None) -> Client:
        """One more client, not started."""
        client = Client(
            len(self.clients),
            user,
            token(user),
            port or (lambda: self.bridge.ws_port),
            manner,
            self.witness,
            random.Random(self.rng.random()),
        )
        self.clients.append(client)
        return client

    async def connected(self, clients: Sequence[Client]) -> None:
        """Wait until all of these are connected at the same time. Raises TimeoutError."""
        deadline = time.monotonic() + CONNECTED_TIMEOUT
        while not all(c.open for c in clients):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{sum(not c.open for c in clients)} of {len(clients)} clients did not connect"
                )
            await asyncio.sleep(0.02)

    def now_healed(self) -> None:
        """The fault ends here: recovery counts from now."""
        self.ended_at = time.monotonic()
        self.witness.begin()

    async def a_push_is_read(self) -> None:
        """Wait until any client has read a push since `now_healed`. Raises TimeoutError, and BridgeFailed
        if no bridge is left that could send one."""
        deadline = time.monotonic() + RECOVERY_TIMEOUT
        while self.witness.first_read is None:
            if not any(bridge.alive for bridge in self.bridges):
                raise BridgeFailed(f"{self.bridge.node} ended by itself; see {self.bridge.log}")
            if time.monotonic() > deadline:
                raise TimeoutError
            await asyncio.sleep(0.005)

    async def load(self, seconds: float) -> None:
        """Let the load continue for this long."""
        await asyncio.sleep(seconds)

    async def sleep_some(self, least: float, most: float) -> None:
        """Wait for a random time, set by the seed."""
        await asyncio.sleep(self.rng.uniform(least, most))

    async def publish_now(self, envelopes: Sequence[Envelope]) -> None:
        """Publish these beside the load, once, with confirms."""
        async with channel(self.url) as c:
            exchange = await c.get_exchange("push", ensure=False)

            async def one(envelope: Envelope) -> None:
                for request in envelope.requests:
                    request.publishing()
                await exchange.publish(envelope.message(), "chaos", timeout=30)
                for request in envelope.requests:
                    request.confirmed_now()

            for at in range(0, len(envelopes), 100):
                await asyncio.gather(*[one(e) for e in envelopes[at : at + 100]])

    async def execute(self, statement: LiteralString, *parameters: object) -> list[tuple[object, ...]]:
        """Run a statement, not through the proxy."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            cursor = await connection.execute(statement, parameters or None)
            return await cursor.fetchall() if cursor.description else []

    async def ctl(self, *arguments: str) -> str:
        """rabbitmqctl."""
        return await asyncio.to_thread(self.servers.rabbit.ctl, *arguments)

    async def block_publishers(self) -> None:
        """Raise the broker's memory alarm."""
        await self.ctl("set_vm_memory_high_watermark", "0.0000001")

    async def unblock_publishers(self) -> None:
        """End it: the limit is what `bridge.devservers` has set."""
        await self.ctl("set_vm_memory_high_watermark", "absolute", "1GB")

    def session_of_somebody(self, rng: random.Random) -> tuple[str, str] | None:
        """(session, user) of a client, present or past."""
        known = [c for c in self.clients[: self.scale.users] if c.sessions]
        if not known:
            return None
        client = rng.choice(known)
        return rng.choice(client.sessions[-2:]), client.user

    # --- the course of a run ---

    async def populate(self) -> None:
        """Clients of every kind, connected."""
        users = [f"u{i}" for i in range(self.scale.users)]
        manners = [Manner.READS, Manner.ACKS, Manner.ACKS_SOME, Manner.BARE]
        for user in users:
            self.new_client(user, self.rng.choices(manners, [50, 30, 10, 10])[0])
        for user in self.rng.sample(users, len(users) // 5):
            self.new_client(user, self.rng.choice(manners[:2]))
        for client in self.clients:
            client.tab.resumes = client.manner is not Manner.BARE and self.rng.random() < 0.5
            client.start()
        await self.connected(self.clients)

    async def wander(self) -> None:
        """Let clients disconnect, one after the other, and reconnect later, until cancelled: then all reconnect."""
        rng = random.Random(self.rng.random())
        loop = asyncio.get_running_loop()
        restless = [c for c in self.clients if c.stays]
        try:
            while restless:
                await asyncio.sleep(rng.expovariate(1 / WANDERS))
                client = rng.choice(restless)
                client.go_away()
                loop.call_later(rng.uniform(0.2, AWAY), client.come_back)
        finally:
            for client in restless:
                client.come_back()

    def publish(self) -> Sequence[Awaitable[None]]:
        """The publishers' work, at the scale's rate."""
        users = [f"u{i}" for i in range(self.scale.users)]
        absent = [f"away{i}" for i in range(self.scale.absent)]
        work = []
        for i in range(self.scale.publishers):
            rng = random.Random(self.rng.random())
            requests = Requests(self.evidence, rng, users, absent, self.session_of_somebody, str(i))
            self.requests.append(requests)
            mean = self.scale.publishers / self.scale.rate

            def pace(rng: random.Random = rng, mean: float = mean) -> float:
                return rng.expovariate(1 / mean) / self.pace

            publisher = Publisher(self.url, requests.next, pace, keyed=self.partitions > 1)
            self.publishers.append(publisher)
            work.append(publisher.run())
        return work

    async def rest(self) -> None:
        """Wait until nothing is left to do, or the time is over: then the checker reports what is left."""
        began = time.monotonic()
        quiet_since = None
        arrived = -1
        progress = began
        came_back = -math.inf
        restless = "not looked yet"
        while self._patient(began, progress):
            if restless and self.come_back_at_last and time.monotonic() - came_back > COME_BACK_EVERY:
                # A push that one bridge stores after a session has opened at the other waits for the next session.
                came_back = time.monotonic()
                for client in self.come_back_at_last:
                    client.drop()
            restless = await self._restless()
            if not restless and not all(c.open for c in self.clients if c.stays):
                restless = "clients are not connected"
            if arrived != self.collector.arrived:
                progress = time.monotonic()
            if not restless and arrived != self.collector.arrived:
                restless = f"receipts keep coming, {self.collector.arrived} so far"
                restless += f", {await waiting(self.url, ANNOUNCEMENTS)} wait"
            arrived = self.collector.arrived
            if restless:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > 1.0:
                return
            await asyncio.sleep(0.3)
        self.evidence.troubles.append(f"not at rest after {time.monotonic() - began:.0f} s: {restless}")

    def _patient(self, began: float, progress: float) -> bool:
        """Whether to wait on: for a while, and for longer while there is progress."""
        now = time.monotonic()
        if now - began < REST_TIMEOUT:
            return True
        return now - progress < STANDSTILL and now - began < REST_TIMEOUT * REST_FACTOR

    async def _restless(self) -> str:
        """What is still in progress; empty at rest."""
        try:
            for queue in self.queues:
                if count := await waiting(self.url, queue):
                    return f"{count} messages in {queue}"
            ((pending, owing),) = await self.execute(
                "select count(*) filter (where outcome = 'pending'),"
                " count(*) filter (where final and owed is not null)"
                " from delivery_log where not final or owed is not null"
            )
            if pending or owing:
                return f"{pending} rows are pending, {owing} owe receipts"
            if stored := await self._stored_and_not_waiting():
                return f"{stored} pushes are stored, and their users are connected"
            if not await self._all_confirmed_have_rows():
                return "there are requests without rows"
            ((due,),) = await self.execute("select count(*) from delivery_log where fallback_due <= now()")
            if due:
                return f"{due} fallbacks are due"
            ((ghosts,),) = await self.execute(
                "select count(*) from session where closed_at is null and session not in"
                " (select session from who_is_online)"
            )
            if ghosts:
                return f"{ghosts} sessions of dead processes are open in the ledger"
        except (psycopg.Error, *GONE) as error:
            return repr(error)
        return ""

    async def _stored_and_not_waiting(self) -> int:
        stored = await self.execute(
            "select tenant, push_id, user_id, expires_at <= now() from delivery_log where outcome = 'stored'"
        )
        waits = Waits(self.tabs())
        by_id = {(r.tenant, r.push_id): r for r in self.evidence.requests.values()}
        return sum(
            bool(lapsed)
            or (str(tenant), str(push_id)) not in by_id
            or not waits.rightly(by_id[str(tenant), str(push_id)], str(user))
            for tenant, push_id, user, lapsed in stored
        )

    def proven(self) -> dict[str, list[float]]:
        """The measures; one without an end is a trouble."""
        made: dict[str, list[float]] = defaultdict(list)
        for measure, ends in self._ends_of_measures():
            if ends:
                made[measure.what].append(min(ends) - measure.since)
            else:
                what = f"{measure.what}: no push to {measure.user} was proven any more"
                self.evidence.troubles.append(what)
        return made

    @property
    def all_proven(self) -> bool:
        """Whether every measure has its end so far."""
        return all(ends for _, ends in self._ends_of_measures())

    def _ends_of_measures(self) -> Iterator[tuple[Measure, list[float]]]:
        sent: dict[str, list[Request]] = defaultdict(list)
        for request in self.evidence.requests.values():
            if len(request.users) == 1:
                sent[min(request.users)].append(request)
        for measure in self.measures:
            proofs = [
                self._proven_at(request, measure.user)
                for request in sent[measure.user]
                if request.first_published >= measure.since
            ]
            yield measure, [at for at in proofs if at is not None]

    def _proven_at(self, request: Request, user: str) -> float | None:
        key = RowKey(request.tenant, request.push_id, user)
        told = self.evidence.announced.get(key, ())
        return self.evidence.ended.get(key) if any(r.outcome in ("received", "acked") for r in told) else None

    def tabs(self) -> list[Tab]:
        """The evidence of the clients that stay until the end."""
        return [client.tab for client in self.clients if client.stays]

    async def _all_confirmed_have_rows(self) -> bool:
        known = {(t, p) for t, p in await self.execute("select distinct tenant, push_id from delivery_log")}
        return all(
            (r.tenant, r.push_id) in known
            for r in self.evidence.requests.values()
            if r.confirmed and r.push_id and not r.excused
        )

    async def gather_evidence(self) -> None:
        """Read what the servers hold, after the bridges have stopped."""
        self.evidence.rows = await self._rows()
        self.evidence.tabs = self.tabs()
        self.evidence.shaken += self.amqp.ended
        for bridge in self.bridges:
            self.evidence.shaken += bridge.turns
        for queue in self.queues:
            self.evidence.queues[queue] = Depth(await waiting(self.url, queue), 0)
        letters = await drained(self.url, "push.dead")
        self.evidence.dead = Counter(mark.decode() for m in letters for mark in _MARK.findall(m.body))
        if self.witness.strangers:
            self.evidence.troubles += self.witness.strangers[:5]
        self.evidence.troubles += await self._audited()
        self.evidence.troubles += await self._misrecorded()

    async def _misrecorded(self) -> list[str]:
        """Welcomed sessions that the ledger has not, and those that it has open though every bridge has stopped."""
        recorded = {str(s): str(u) for s, u in await self.execute("select session, user_id from session")}
        welcomed = {session: client.user for client in self.clients for session in client.sessions}
        wrong = [s for s, user in welcomed.items() if recorded.get(s) != user]
        ((open_,),) = await self.execute("select count(*) from session where closed_at is null")
        return [
            *(
                [f"{len(wrong)} of {len(welcomed)} welcomed sessions are not in the ledger: {wrong[:3]}"]
                if wrong
                else []
            ),
            *([f"{open_} sessions are open in the ledger, and no bridge runs"] if open_ else []),
        ]

    async def _audited(self) -> list[str]:
        """The errors that the bridge's own audit of the log finds. If it finds none, that proves nothing."""
        hours = (await read_books(self.dsn, AUDITED_HOURS)).hours
        wrong = [
            f"audit: {hour.rows} rows of {hour.taken} at {hour.hour}"
            for hour in hours
            if hour.rows != hour.taken
        ]
        # Publishers of a run always repeat a request unchanged.
        ((differing,),) = await self.execute(
            "select count(*) from delivery_log where differed_at is not null"
        )
        if differing:
            wrong.append(f"{differing} rows record a repeat with other content, and there was none")
        return wrong + [f"audit: {h.wrong} rows contradict themselves at {h.hour}" for h in hours if h.wrong]

    async def _rows(self) -> list[Row]:
        found = await self.execute(
            "select tenant, push_id, nullif(user_id, ''), outcome, reason, final, owed is not null,"
            " meta::text, payload, detail, node, attempts, coalesce(expires_at <= now(), false),"
            " fallback_at is not null, coalesce(fallback_due < now() - interval '5 s', false),"
            # Where the bridge's clock was set back meanwhile, its times can't be compared with the database's.
            " coalesce(proven_at < published_at + make_interval(secs => fallback_key::float8)"
            " and late_at is null and proven_at > fallback_at - interval '25 s', false),"
            " coalesce(position, 0) from delivery_log"
        )
        rows = []
        for (
            tenant,
            push_id,
            user,
            outcome,
            reason,
            final,
            owed,
            meta,
            payload,
            detail,
            node,
            attempts,
            lapsed,
            fell_back,
            overdue,
            early,
            position,
        ) in found:
            kept = str(meta or "").encode() + b" " + (bytes(payload) if payload else b"")  # type: ignore[call-overload]
            marks = frozenset(m.decode() for m in _MARK.findall(kept))
            key = RowKey(str(tenant), str(push_id), None if user is None else str(user))
            rows.append(
                Row(
                    key,
                    str(outcome),
                    str(reason),
                    bool(final),
                    bool(owed),
                    marks,
                    str(detail),
                    str(node),
                    int(str(attempts)),
                    bool(lapsed),
                    bool(fell_back),
                    bool(overdue),
                    bool(early),
                    int(str(position)),
                )
            )
        return rows

    async def stop_bridges(self) -> None:
        """SIGTERM to each: it must drain and exit with 0."""
        for bridge in self.bridges:
            if not bridge.alive:
                code = bridge.ended_by_itself
                self.evidence.troubles.append(f"{bridge.node} ended by itself with {code}; see {bridge.log}")
                continue
            code = await bridge.stop()
            if code != 0:
                self.evidence.troubles.append(
                    f"{bridge.node} exited with {code} at SIGTERM; see {bridge.log}"
                )


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0


def _at(url: str, address: tuple[str, int]) -> str:
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}{at}{address[0]}:{address[1]}"))


Act = Callable[[Stage], Awaitable[int]]
"""Makes a fault, under load; returns how often it was made."""


@asynccontextmanager
async def _fresh(servers: Servers, name: str) -> AsyncIterator[tuple[str, str]]:
    """A vhost and a database with the schema; both are removed afterwards."""
    url = await asyncio.to_thread(servers.rabbit.create_vhost, name)
    await asyncio.to_thread(_admin, servers.postgres_dsn, "create database {}", name)
    dsn = urlunsplit(urlsplit(servers.postgres_dsn)._replace(path=f"/{name}"))
    await asyncio.to_thread(migrate.upgrade, dsn)
    try:
        yield url, dsn
    finally:
        await asyncio.to_thread(_mend, servers)
        await asyncio.to_thread(servers.rabbit.delete_vhost, name)
        await asyncio.to_thread(_admin, servers.postgres_dsn, "drop database {} with (force)", name)


def _admin(dsn: str, statement: LiteralString, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL(statement).format(sql.Identifier(name)))


def _mend(servers: Servers) -> None:
    for server in (servers.rabbit, servers.postgres):
        try:
            server.resume()
        except ServersUnavailable:
            pass  # it is down
        server.start()
        server.resume()


async def play(
    servers: Servers,
    name: str,
    act: Act,
    *,
    seed: str,
    scale: Scale,
    logs: Path,
    proxied: Sequence[str] = (),
    networked: bool = False,
    settings: Mapping[str, object] | None = None,
    populated: bool = True,
) -> Outcome:
    """Make one run: load, the fault under load, more load, rest, and the checker's verdict."""
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        url, dsn = await stack.enter_async_context(_fresh(servers, name))
        stage = Stage(servers, url, dsn, rng, scale, logs)
        stage.amqp_proxied, stage.postgres_proxied = "amqp" in proxied, "postgres" in proxied
        stage.networked = networked
        await stack.enter_async_context(stage.networking)
        for proxy in (stage.amqp, stage.postgres):
            await stack.enter_async_context(proxy.listening())
        stack.push_async_callback(_leave, stage)
        stage.settings = settings or {}
        await stage.start_bridge("n1")
        stage.websocket = await stack.enter_async_context(
            Proxy("127.0.0.1", stage.bridge.ws_port).listening()
        )
        if populated:
            await stage.populate()
        await stage.collector.declare()
        await asyncio.sleep(QUORUM_SETTLES)
        collecting = asyncio.create_task(stage.collector.run(), name="collector")
        stack.push_async_callback(_cancelled, collecting)
        publishing = [asyncio.ensure_future(w) for w in stage.publish()]
        for task in publishing:
            stack.push_async_callback(_cancelled, task)
        wandering = asyncio.create_task(stage.wander(), name="clients that come and go")
        stack.push_async_callback(_cancelled, wandering)
        await stage.load(scale.before)
        outcome = Outcome(Verdict())
        outcome.times = await act(stage)
        if stage.ended_at is None:
            stage.now_healed()
        try:
            await stage.a_push_is_read()
            assert stage.ended_at is not None
            assert stage.witness.first_read is not None
            outcome.first_push = stage.witness.first_read - stage.ended_at
            await stage.load(scale.after)
        except TimeoutError:
            why = [f"{b.node}: {await b.status()}" for b in stage.bridges]
            stage.evidence.troubles.append(f"no push was read in {RECOVERY_TIMEOUT:g} s after it: {why}")
        for publisher in stage.publishers:
            publisher.stop()
        try:
            async with asyncio.timeout(RECOVERY_TIMEOUT):
                await asyncio.gather(*publishing)
        except TimeoutError:
            stage.evidence.troubles.append("the broker did not confirm everything to the publishers")
        await _cancelled(wandering)
        began = time.monotonic()
        await stage.rest()
        outcome.rest = time.monotonic() - began
        await stage.stop_bridges()
        await asyncio.sleep(0.5)
        await stage.gather_evidence()
        await _cancelled(collecting)
        outcome.proven = stage.proven()
        outcome.verdict = check(stage.evidence)
        return outcome


async def _cancelled(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _leave(stage: Stage) -> None:
    for bridge in stage.bridges:
        if bridge.alive:
            await bridge.kill()
    for client in stage.clients:
        await client.stop()
