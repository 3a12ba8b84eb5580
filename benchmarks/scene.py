"""One bridge under load, and what can be measured on it; a measurement whose counts do not agree is not used.

A scene is a fresh vhost, a fresh database, one bridge process, its clients and a publisher, all of them
processes of their own. A drain is measured like this: the bridge is frozen (SIGSTOP), the backlog is
published until all of it is in the queue, and the clock runs from the moment in which the bridge continues until
every client has its frames, every row is in Postgres, and the queue holds nothing, neither ready nor
unacked. So the publisher does not run meanwhile, and both bridges begin in the same state.
"""

from __future__ import annotations

import http.client
import itertools
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from benchmarks.load import ORDINARY, Shape
from benchmarks.ports import reserved_port
from benchmarks.processes import (
    BenchmarkFailed,
    Child,
    busy_seconds,
    cpu_seconds,
    running,
    wait_until,
)
from bridge.adapters.postgres import migrate
from bridge.devservers import Servers

START_TIMEOUT: Final = 30.0
SLOWEST_OPENING: Final = 50
"""Sessions a second: if fewer open, the measurement is given up."""
DRAIN_TIMEOUT: Final = 180.0
"""Seconds after which a drain is given up."""
END_TIMEOUT: Final = 30.0
"""Seconds that rows and acks may take after the last frame, BRIDGE_CONFIRM_TIMEOUT included."""
LOOK_EVERY: Final = 0.01
"""Seconds between checks of the queue, once all frames have come."""
QUEUE: Final = "push.requests"

NO_SERVERS: Final = ("clients", "publisher", "others", "stolen")
"""Whose CPU time is not that of a server."""

_numbers = itertools.count(1)


class Contestant(NamedTuple):
    """A bridge, and the proof that requests ask for."""

    name: str
    command: tuple[str, ...]
    confirm: str
    table: str
    """The table in which it writes a row per push and user."""
    says_ready: bool
    """Whether it prints a line when it consumes; otherwise /readyz is asked."""
    environment: Mapping[str, str] = {}
    subprotocol: str = ""
    """The subprotocol that its clients offer; if empty, none."""
    topic: str = ""
    """The topic that its clients are subscribed to, and to which pushes to everyone go instead; empty: none."""


NAIVE: Final = Contestant("naive", (sys.executable, "-m", "benchmarks.naive"), "written", "naive_log", True)
_SERVE: Final = (str(Path(sys.executable).with_name("bridge")), "serve")
WRITTEN: Final = Contestant("bridge, written", _SERVE, "written", "delivery", False)
RECEIVED: Final = Contestant("bridge, received", _SERVE, "received", "delivery", False)
TO_TOPIC: Final = WRITTEN._replace(name="bridge, written, to a topic", topic="news.now")


class Drain(NamedTuple):
    """How a backlog was drained."""

    pushes: int
    seconds: float
    """Until all frames, rows and acks were complete."""
    frames_seconds: float
    """Until the last frame was at its client."""
    publish_seconds: float
    """How long publishing took before, while the bridge was frozen."""
    cpu: Mapping[str, float]
    """Cores that each kept busy meanwhile: bridge, rabbitmq, postgres, clients, publisher; `others` is what
    else ran on the machine (the kernel's own work for the network included), `stolen` what its host took."""
    disordered: int
    """Frames that came after a later one for the same user."""

    @property
    def rate(self) -> float:
        """Pushes per second, end to end."""
        return self.pushes / self.seconds

    @property
    def cpu_each(self) -> float:
        """Microseconds of the bridge's CPU time for each push."""
        return self.cpu["bridge"] * 1e6 / self.rate


class Flood(NamedTuple):
    """How pushes were delivered while they were published at full speed."""

    pushes: int
    seconds: float
    """From just before the first was published until every client had its frames; of a bridge, rows and acks too."""
    frames_seconds: float
    """Until every client had its frames."""
    publish_seconds: float
    """How long publishing took, with the confirms."""
    cpu: Mapping[str, float]
    """Cores that each kept busy meanwhile, as in `Drain`; the servers of a peer have their own names."""

    @property
    def rate(self) -> float:
        """Pushes per second, end to end."""
        return self.pushes / self.seconds

    @property
    def servers_each(self) -> float:
        """Microseconds of CPU time that all servers together used for each push."""
        return sum(used for name, used in self.cpu.items() if name not in NO_SERVERS) * 1e6 / self.rate


class Latency(NamedTuple):
    """Milliseconds from just before a push was published until its client had read it."""

    pushes: int
    rate: float
    p50: float
    p99: float
    most: float
    cpu: Mapping[str, float]
    proof: tuple[float, float] = (0.0, 0.0)
    """p50 and p99 until the bridge had the proof; 0 where none was asked for."""


class Openings(NamedTuple):
    """How long sessions, one after the other, waited for the first push that was kept for their user, in ms."""

    each: int
    """Pushes that were kept for each of them."""
    from_connect: list[float]
    """From the first packet of the connection, so the handshake is included."""
    from_answer: list[float]
    """From the answer to the handshake."""


class Sum(NamedTuple):
    """The counts of all client processes together."""

    frames: int
    distinct: int
    duplicates: int
    strays: int
    disordered: int


class Scene:
    """A bridge with its clients and its publisher."""

    def __init__(
        self,
        contestant: Contestant,
        servers: Servers,
        vhost: str,
        urls: tuple[str, str],
        bridge: Child,
        publisher: Child,
        crowds: Sequence[Child],
        port: int,
        ops_port: int,
        secret: str,
        environment: Mapping[str, str],
        devices: int = 1,
    ) -> None:
        self.contestant = contestant
        self.environment = environment
        """The settings of the bridge."""
        self.bridge = bridge
        self.crowds = crowds
        self.sessions = 0
        """Users with sessions; each has one on every device."""
        self.devices = devices
        self._servers = servers
        self._vhost = vhost
        self._url, self.dsn = urls
        self._users: list[range] = [range(0) for _ in crowds]
        """For each client process, the users whose sessions it opens."""
        self._publisher = publisher
        self._port = port
        self._ports: Sequence[int] = [port] * len(crowds)
        self._ops_port = ops_port
        self.neighbours: Sequence[Child] = ()
        """The other bridges at its broker and database."""
        self.ops_ports: Sequence[int] = (ops_port,)
        """Where the metrics of all nodes are."""
        self._secret = secret
        self._watched = {
            "bridge": [bridge.pid],
            "rabbitmq": [servers.rabbit.pid],
            "postgres": [servers.postgres.pid],
            "clients": [crowd.pid for crowd in crowds],
            "publisher": [publisher.pid],
        }

    @property
    def port(self) -> int:
        """Where its WebSockets are."""
        return self._port

    @property
    def ports(self) -> Sequence[int]:
        """Where the sessions of each client process are."""
        return self._ports

    def watch_neighbours(self, bridges: Sequence[Child], ops_ports: Sequence[int]) -> None:
        """Count what these bridges use as `neighbours`; their metrics are at `ops_ports`."""
        self.neighbours = bridges
        self.ops_ports = (self._ops_port, *ops_ports)
        self._watched["neighbours"] = [bridge.pid for bridge in bridges]

    def connect(self, counts: Sequence[int], *, ports: Sequence[int] = ()) -> float:
        """Open sessions in each client process, one user each; returns the seconds it took. `ports`: of the bridges at
        which those of each process are from now on, where that is another one."""
        self._ports = ports or self._ports
        began = time.monotonic()
        for place, (crowd, count) in enumerate(zip(self.crowds, counts, strict=True)):
            self._users[place] = range(self.sessions, self.sessions + count)
            self.sessions += count
            self._open(crowd)
        return time.monotonic() - began

    def _open(self, crowd: Child) -> None:
        """Open the sessions of one client process that has none."""
        users = self._users[self.crowds.index(crowd)]
        answer = crowd.ask(
            "connect",
            within=START_TIMEOUT + len(users) * self.devices / SLOWEST_OPENING,
            port=self._ports[self.crowds.index(crowd)],
            secret=self._secret,
            first=users.start,
            count=len(users),
            subprotocol=self.contestant.subprotocol,
            devices=self.devices,
            topic=self.contestant.topic,
        )
        if answer["connected"] != len(users) * self.devices:
            raise BenchmarkFailed(f"{answer['connected']} of {len(users) * self.devices} sessions are open")

    def arrive(self, crowd: Child, *, count: int, at_once: int, tokens: Sequence[str] = ()) -> None:
        """Let so many new users arrive, and leave again; the process must be benchmarks.arrivals, and answers then.

        `tokens`: those that they come with, in turn; empty ones for the connect hook, and none where each has its own.
        """
        crowd.tell(
            "storm",
            port=self._port,
            secret=self._secret,
            first=self.sessions,
            count=count,
            at_once=at_once,
            tokens=tokens,
        )

    def _leave(self, crowds: Sequence[Child]) -> None:
        """Close the sessions of these client processes, and wait until the bridge knows."""
        for crowd in crowds:
            crowd.ask("leave")
        left = sum(
            len(users) for crowd, users in zip(self.crowds, self._users, strict=True) if crowd not in crowds
        )
        wait_until(
            lambda: _open_sessions(self._ops_port) == left * self.devices,
            seconds=END_TIMEOUT,
            every=LOOK_EVERY,
            what=f"the bridge has {left} sessions",
        )

    # --- throughput ---

    def metric(self, name: str) -> float:
        """The present value of a metric without labels. Raises BenchmarkFailed."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ops_port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
        finally:
            connection.close()
        for line in page.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise BenchmarkFailed(f"the bridge has no metric {name}")

    def drain(
        self,
        count: int,
        *,
        only: Sequence[Child] = (),
        frozen: Sequence[Child] = (),
        away: Sequence[Child] = (),
        stopped: Sequence[Child] = (),
        ttl: int = 0,
        shape: Shape = ORDINARY,
        just_before: Callable[[], None] = lambda: None,
    ) -> Drain:
        """Drain a backlog of `count` pushes, each to one user; verified.

        With a `shape` that names several users, so many pushes come in one request.

        With `only`, the clock stops when these client processes have all their frames, and `pushes` counts
        theirs. Those in `frozen` are stopped meanwhile (SIGSTOP), and only the others count. Rows,
        acks and the frozen clients' frames are verified in any case, afterwards.

        The sessions of those in `away` are closed meanwhile: a push for them is done when it is kept (for
        `ttl` seconds) and its message acked. Then they connect, and get what was kept for them.

        Other bridges in `stopped` are stopped from just before the clock starts until it stops.

        `just_before` is called when the backlog is in the queue, just before the clock starts.
        """
        seed, run = self._begin(count)
        requests, rest = divmod(count, shape.each)
        if rest:
            raise BenchmarkFailed(f"{count} pushes can't be divided among requests with {shape.each} users")
        counted = only or [crowd for crowd in self.crowds if crowd not in (*frozen, *away)]
        pushes = kept = 0
        for crowd in self.crowds:
            answer = crowd.ask(
                "expect",
                seed=seed,
                total=requests,
                users=self.sessions,
                each=shape.each,
                devices=self.devices,
            )
            pushes += answer["expected"] if crowd in (*counted, *away) else 0
            kept += answer["expected"] if crowd in away else 0
        if away:
            self._leave(away)
        for crowd in frozen:
            crowd.freeze()
        self.bridge.freeze()
        published = self._publish(requests, seed, run, ttl, shape)
        just_before()
        before = self.cpu()
        for crowd in counted:
            crowd.tell("complete", seconds=DRAIN_TIMEOUT)
        for bridge in stopped:
            bridge.freeze()
        began = time.monotonic_ns()
        self.bridge.thaw()
        told = [crowd.answer(DRAIN_TIMEOUT + 5, needs=self.bridge) for crowd in counted]
        if not all(t["complete"] for t in told):
            raise BenchmarkFailed(f"{run}: of {pushes} frames came in {DRAIN_TIMEOUT:g} s: {told}")
        ended = frames_at = max(t["last_at"] for t in told)
        if len(counted) + len(away) == len(self.crowds):
            ended = self._await_the_end(run, count, kept)
        cpu = self._cpu_since(before, (time.monotonic_ns() - began) / 1e9)
        for one in (*frozen, *stopped):
            one.thaw()
        for crowd in away:
            self._open(crowd)
        self._await_the_end(run, count)
        counts = self._verify(run, count, some_unproven=bool(frozen or stopped))
        return Drain(
            pushes=pushes // self.devices,
            seconds=(ended - began) / 1e9,
            frames_seconds=(frames_at - began) / 1e9,
            publish_seconds=published,
            cpu=cpu,
            disordered=counts.disordered,
        )

    def _publish(self, count: int, seed: int, run: str, ttl: int, shape: Shape) -> float:
        answer = self._publisher.ask("backlog", **self._order(count, seed, run), ttl=ttl, shape=shape)
        lying = self._queued()
        if not answer["confirmed"] == lying == count:
            raise BenchmarkFailed(f"{run}: {answer['confirmed']} of {count} confirmed, {lying} in the queue")
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            # Write now what an earlier run left to be written, so that it is not written during this one.
            conn.execute("checkpoint")
        return float(answer["seconds"])

    def _order(self, count: int, seed: int, run: str) -> dict[str, Any]:
        """What the publisher is told: where to publish, and what."""
        return {
            "url": self._url,
            "run": run,
            "confirm": self.contestant.confirm,
            "seed": seed,
            "count": count,
            "users": self.sessions,
        }

    def flood(self, count: int) -> Flood:
        """Publish pushes at full speed while the bridge works; verified."""
        seed, run = self._begin(count)
        for crowd in self.crowds:
            crowd.ask("expect", seed=seed, total=count, users=self.sessions)
        return self._flood(run, count, "backlog", self._order(count, seed, run))

    def everyone(self, pushes: int = 1) -> Flood:
        """Publish so many pushes to everyone, each of which makes a frame and a row for each session; verified.

        The client processes must be those of benchmarks/peers that count such pushes.
        """
        _, run = self._begin(1)
        for crowd in self.crowds:
            crowd.ask("expect_everywhere", total=pushes)
        order = {"confirm": self.contestant.confirm, "topic": self.contestant.topic, "count": pushes}
        return self._flood(run, self.sessions * pushes, "everyone", {"url": self._url, "run": run, **order})

    def _flood(self, run: str, frames: int, do: str, order: Mapping[str, Any]) -> Flood:
        before = self.cpu()
        for crowd in self.crowds:
            crowd.tell("complete", seconds=DRAIN_TIMEOUT)
        began = time.monotonic_ns()
        self._publisher.tell(do, **order)
        told = [crowd.answer(DRAIN_TIMEOUT + 5, needs=self.bridge) for crowd in self.crowds]
        published = self._publisher.answer(DRAIN_TIMEOUT)
        if not all(t["complete"] for t in told):
            raise BenchmarkFailed(f"{run}: of {frames} frames came in {DRAIN_TIMEOUT:g} s: {told}")
        frames_at = max(t["last_at"] for t in told)
        ended = max(self._await_the_end(run, frames), frames_at)
        cpu = self._cpu_since(before, (ended - began) / 1e9)
        self._verify(run, frames, some_unproven=False)
        return Flood(
            pushes=frames,
            seconds=(ended - began) / 1e9,
            frames_seconds=(frames_at - began) / 1e9,
            publish_seconds=published["seconds"],
            cpu=cpu,
        )

    # --- latency ---

    def latency(
        self, count: int, rate: float, *, only: Sequence[Child] = (), stopped: Sequence[Child] = ()
    ) -> Latency:
        """Publish pushes at a steady rate, and measure how old they are when they arrive; verified. With `only`, those
        of these client processes count. Other bridges in `stopped` are stopped while it publishes."""
        seed, run = self._begin(count)
        for crowd in self.crowds:
            crowd.ask("expect", seed=seed, total=count, users=self.sessions)
        for bridge in stopped:
            bridge.freeze()
        before, began = self.cpu(), time.monotonic()
        published = self._publisher.ask(
            "steady", **self._order(count, seed, run), rate=rate, within=count / rate * 3 + 30
        )
        cpu = self._cpu_since(before, time.monotonic() - began)
        for bridge in stopped:
            bridge.thaw()
        for crowd in self.crowds:
            if not crowd.ask("complete", seconds=END_TIMEOUT)["complete"]:
                raise BenchmarkFailed(f"{run}: not all frames came")
        self._await_the_end(run, count)
        self._verify(run, count, some_unproven=bool(stopped))
        all_ns = [ns for crowd in only or self.crowds for ns in crowd.ask("report")["latencies"]]
        p50, p99 = percentiles(all_ns, 50, 99)
        most = max(all_ns) / 1e6
        proof = (0.0, 0.0)
        if self.contestant.confirm == RECEIVED.confirm:
            proof = self._until_proof(run, published["began"], rate)
        return Latency(count, count / published["seconds"], p50 / 1e6, p99 / 1e6, most, cpu, proof)

    def _until_proof(self, run: str, began: float, rate: float) -> tuple[float, float]:
        """p50 and p99 of the milliseconds from when each push was to be published until its proof, by its row."""
        offset = time.time() - time.monotonic()
        query = """
            select extract(epoch from proven_at)::float8, right(push_id, 8)::int
            from delivery where starts_with(push_id, %s) and proven_at is not null
            """
        with psycopg.connect(self.dsn) as conn:
            found = conn.execute(query, (run,)).fetchall()
        p50, p99 = percentiles([(proven - offset - began - n / rate) * 1e3 for proven, n in found], 50, 99)
        return p50, p99

    # --- mailboxes ---

    def open_kept(self, crowd: Child, *, run: str, first: int, count: int, each: int, total: int) -> Openings:
        """Open a session for each of `count` users from `first` on, and close them again; verified.

        `each` pushes of `run` are kept for each of them, out of `total`.
        """
        told = crowd.ask(
            "open_kept",
            within=count * END_TIMEOUT,
            port=self._port,
            secret=self._secret,
            first=first,
            count=count,
            each=each,
            total=total,
            seconds=END_TIMEOUT / 2,
        )
        wanted = count * each
        if told["distinct"] != wanted or told["duplicates"] or told["strays"] or told["disordered"]:
            raise BenchmarkFailed(f"{run}: {wanted} pushes were kept, the clients say {told}")
        self._await_the_end(run, total, total - wanted)
        if self.outcomes(run).keys() != {self.contestant.confirm}:
            raise BenchmarkFailed(f"{run}: {wanted} pushes were kept, the rows are {self.outcomes(run)}")
        self._leave([crowd])
        return Openings(each, told["from_connect"], told["from_answer"])

    # --- a soak ---

    def stir(
        self, *, sessions: int, users: int, most: int, pushes: int, absent: int, confirm: str, ttl: int
    ) -> dict[str, int]:
        """Publish pushes while sessions of these users come and go, and wait until the queue is empty.

        At most `most` sessions are open at once. Some pushes are for `absent` more users, who never come. The client
        process must be benchmarks.churn; returns its counts.
        """
        number = next(_numbers)
        order = self._order(pushes, number, f"run{os.getpid():08d}x{number:06d}")
        self._publisher.tell("backlog", **order | {"confirm": confirm, "users": users + absent, "ttl": ttl})
        (crowd,) = self.crowds
        crowd.tell("churn", port=self._port, secret=self._secret, count=sessions, users=users, most=most)
        told = crowd.answer(DRAIN_TIMEOUT, needs=self.bridge)
        self._publisher.answer(DRAIN_TIMEOUT, needs=self.bridge)
        wait_until(
            lambda: self._queued() == 0, seconds=DRAIN_TIMEOUT, every=LOOK_EVERY, what="the queue is empty"
        )
        return told

    def all_outcomes(self) -> dict[str, int]:
        """All rows by outcome."""
        with psycopg.connect(self.dsn) as conn:
            return dict(conn.execute("select outcome, count(*) from delivery group by outcome").fetchall())

    def replay(self, crowd: Child, *, run: str, first: int, users: int, each: int) -> Drain:
        """Open a session for each of `users` users from `first` on, as fast as they come; verified.

        `each` pushes of `run` are kept for each of them, and no others. Where nothing is kept, the figures are those of
        the openings.
        """
        total = users * each
        crowd.ask("expect_kept", total=total)
        before = self.cpu()
        began = time.monotonic_ns()
        opened = crowd.ask(
            "connect",
            within=START_TIMEOUT + users / SLOWEST_OPENING,
            port=self._port,
            secret=self._secret,
            first=first,
            count=users,
        )
        ended = time.monotonic_ns()
        told = crowd.ask("complete", within=DRAIN_TIMEOUT + 5, seconds=DRAIN_TIMEOUT)
        frames_at = max(told["last_at"], ended)
        if total:
            ended = self._await_the_end(run, total)
        cpu = self._cpu_since(before, (ended - began) / 1e9)
        wanted = {self.contestant.confirm: total} if total else {}
        if opened["connected"] != users or told["distinct"] != total or told["duplicates"] or told["strays"]:
            raise BenchmarkFailed(
                f"{run}: {total} pushes were kept for {users} users, the clients say {told}"
            )
        if self.outcomes(run) != wanted or self.outcomes(run, final=False):
            raise BenchmarkFailed(f"{run}: {total} pushes were kept, the rows are {self.outcomes(run)}")
        self._leave([crowd])
        return Drain(total or users, (ended - began) / 1e9, (frames_at - began) / 1e9, 0.0, cpu, 0)

    # --- counts ---

    def _begin(self, count: int) -> tuple[int, str]:
        number = next(_numbers)
        if count >= 10**8 or not self.sessions:
            raise BenchmarkFailed(f"{count} pushes to {self.sessions} sessions can't be measured")
        return number, f"run{os.getpid():08d}x{number:06d}"

    def _verify(self, run: str, count: int, *, some_unproven: bool) -> Sum:
        """Check: as many rows as pushes, each with the outcome asked for, and every frame once at its user."""
        expected = {self.contestant.confirm}
        if some_unproven:
            expected.add("unknown")
        rows = self.outcomes(run)
        if sum(rows.values()) != count or not set(rows) <= expected:
            raise BenchmarkFailed(f"{run}: {count} pushes were published, the rows are {rows}")
        for crowd in self.crowds:
            if not crowd.ask("complete", seconds=END_TIMEOUT)["complete"]:
                raise BenchmarkFailed(f"{run}: not all frames came")
        counts = [crowd.ask("report") for crowd in self.crowds]
        total = Sum(**{name: sum(c[name] for c in counts) for name in Sum._fields})
        if total.distinct != count * self.devices or total.duplicates or total.strays:
            raise BenchmarkFailed(f"{run}: {count} pushes were published, the clients say {total}")
        return total

    def outcomes(self, run: str, *, final: bool = True) -> dict[str, int]:
        """Rows by outcome, the final ones or the others, of the pushes whose id starts like that."""
        query = sql.SQL(
            "select outcome, count(*) from {} where starts_with(push_id, %s) and final = %s group by outcome"
        )
        with psycopg.connect(self.dsn) as conn:
            found = conn.execute(query.format(sql.Identifier(self.contestant.table)), (run, final)).fetchall()
        return dict(found)

    def _queued(self) -> int:
        """Messages in the queue, ready and unacked together, from its leader at this moment.

        RabbitMQ's own figures for a quorum queue are refreshed every few seconds only.
        """
        return int(
            self._servers.rabbit.evaluate(
                f"""(fun() ->
                    Name = rabbit_misc:r(<<"{self._vhost}">>, queue, <<"{QUEUE}">>),
                    {{ok, Queue}} = rabbit_amqqueue:lookup(Name),
                    {{ok, {{_, Total}}, _}} =
                        ra:leader_query(amqqueue:get_pid(Queue), fun rabbit_fifo:query_messages_total/1),
                    Total
                end)()."""
            )
        )

    def _await_the_end(self, run: str, count: int, kept: int = 0) -> int:
        """Wait until nothing is left in the queue, neither ready nor unacked, and every row is final.

        Of `count` rows `kept` are stored instead, for absent users.

        Returns when that was (monotonic ns). Rows come before acks; but a push whose proof takes long is
        acked while its row still says `pending`, so that the rows may be the later of the two.
        """
        ended = 0

        def acked() -> bool:
            nonlocal ended
            ended = time.monotonic_ns()
            return self._queued() == 0

        def rows_are_final() -> bool:
            # A push that awaits its proof may be stored as well: it becomes final soon, and the wait ends only then.
            return sum(self.outcomes(run).values()) == count - kept and (
                not kept or self.outcomes(run, final=False) == {"stored": kept}
            )

        wait_until(acked, seconds=END_TIMEOUT, every=LOOK_EVERY, what=f"{run}: the queue is empty")
        if not rows_are_final():
            wait_until(
                rows_are_final,
                seconds=END_TIMEOUT,
                every=LOOK_EVERY,
                what=f"{run}: {count - kept} rows are final, {kept} stored",
            )
            ended = time.monotonic_ns()
        return ended

    # --- processes ---

    def cpu(self) -> dict[str, float]:
        """CPU seconds of each by now, named as in `Drain`."""
        used = {name: sum(map(cpu_seconds, pids)) for name, pids in self._watched.items()}
        busy, stolen = busy_seconds()
        return used | {"others": busy - sum(used.values()), "stolen": stolen}

    def _cpu_since(self, before: Mapping[str, float], seconds: float) -> dict[str, float]:
        return {name: (used - before[name]) / seconds for name, used in self.cpu().items()}


@contextmanager
def scene(
    servers: Servers,
    contestant: Contestant,
    *,
    directory: Path,
    sessions: Sequence[int],
    wrap: Callable[[Sequence[str]], Sequence[str]] = lambda command: command,
    prepare: Callable[[str], None] = lambda dsn: None,
    clients: Sequence[str] = ("benchmarks.clients",),
    devices: int = 1,
) -> Iterator[Scene]:
    """A bridge that is ready, with a client process for each number of `sessions`, all connected.

    Each user has one session, or so many as they have `devices`.

    `wrap` may put something around the contestant's command, such as a profiler; `prepare` is called with the address
    of its database before it starts. `clients` are the module of the client processes and its arguments.
    """
    name = f"bench_{os.getpid()}_{next(_numbers)}"
    port, ops_port, secret = reserved_port(), reserved_port(), secrets.token_urlsafe(48)
    with ExitStack() as stack:
        url = stack.enter_context(vhost(servers, name))
        dsn = stack.enter_context(_database(servers, name))
        if contestant.table == "delivery":
            migrate.upgrade(dsn)
        prepare(dsn)
        environment = {
            "BRIDGE_AMQP_URL": url,
            "BRIDGE_POSTGRES_DSN": dsn,
            "BRIDGE_NODE": "bench",
            "BRIDGE_WS_HOST": "127.0.0.1",
            "BRIDGE_WS_PORT": str(port),
            "BRIDGE_OPS_PORT": str(ops_port),
            "BRIDGE_JWT_SECRET": secret,
            **contestant.environment,
        }

        def child(title: str, command: Sequence[str], **more: str) -> Child:
            return stack.enter_context(running(title, command, directory=directory, environment=more))

        bridge = child("bridge", wrap(contestant.command), **environment)
        if contestant.says_ready:
            if bridge.line(START_TIMEOUT) != b"ready":
                raise BenchmarkFailed(f"{contestant.name} did not become ready, see {bridge.log}")
        else:
            wait_until(
                lambda: is_ready(bridge, port),
                seconds=START_TIMEOUT,
                every=0.05,
                what=f"{contestant.name} is ready",
            )
        publisher = child("publisher", (sys.executable, "-m", "benchmarks.publisher"))
        crowds = [
            child(f"clients {number}", (sys.executable, "-m", *clients)) for number, _ in enumerate(sessions)
        ]
        made = Scene(
            contestant,
            servers,
            name,
            (url, dsn),
            bridge,
            publisher,
            crowds,
            port,
            ops_port,
            secret,
            environment,
            devices,
        )
        if any(sessions):
            made.connect(sessions)
        yield made


@contextmanager
def vhost(servers: Servers, name: str) -> Iterator[str]:
    """A vhost for the length of the block; its url."""
    try:
        yield servers.rabbit.create_vhost(name)
    finally:
        servers.rabbit.delete_vhost(name)


@contextmanager
def _database(servers: Servers, name: str) -> Iterator[str]:
    with psycopg.connect(servers.postgres_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield urlunsplit(urlsplit(servers.postgres_dsn)._replace(path=f"/{name}"))
        finally:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def is_ready(bridge: Child, port: int) -> bool:
    """Whether its `/readyz` says so."""
    bridge.check_alive()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _open_sessions(ops_port: int) -> int:
    """The number of sessions in the bridge's own figures."""
    connection = http.client.HTTPConnection("127.0.0.1", ops_port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    finally:
        connection.close()
    # One for each worker, where there are several.
    found = re.findall(r"^bridge_sessions(?:\{[^}]*\})? ([0-9.e+]+)$", page, re.MULTILINE)
    if not found:
        raise BenchmarkFailed("the bridge's metrics have no number of sessions")
    return int(sum(map(float, found)))


def percentiles(values: Sequence[float], *wanted: int) -> list[float]:
    """The percentiles that are asked for."""
    cuts = quantiles(values, n=100, method="inclusive")
    return [cuts[percent - 1] for percent in wanted]


def postgres_facts(dsn: str) -> dict[str, Any]:
    """The settings of Postgres that decide how much a commit costs."""
    with psycopg.connect(dsn) as conn:
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
        return {name: conn.execute(f"show {name}").fetchone()[0] for name in names}  # type: ignore[index]
