"""`bridge drain`: a node stops, its sessions move to another one, and what was lost on the way is counted."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from bridge.adapters.postgres.reading import reading
from bridge.cli import drain as command
from bridge.cli import main
from bridge.config import CommonSettings
from bridge.operator.draining import LOST, Observer, Stop
from tests.support.bridges import bridge, endings, final_rows, process, publish, request, token
from tests.support.clients import client
from tests.support.queues import ENVELOPE


def at(dsn: str) -> CommonSettings:
    return CommonSettings(postgres_dsn=dsn, _env_file=None)


class Browser:
    """A client that stays connected: it obeys `retry_after`, and comes back at the next port."""

    def __init__(self, user: str, ports: list[int]) -> None:
        self.user = user
        self.ids: list[str] = []
        self.opened = 0
        self.waited: list[float] = []
        self._ports = ports

    async def run(self) -> None:
        while True:
            path = f"/ws?last={self.ids[-1]}" if self.ids else "/ws"
            port = self._ports[min(self.opened, len(self._ports) - 1)]
            async with client(port, token(self.user), path=path, subprotocols=ENVELOPE) as c:
                wait = 0.0
                while True:
                    frame = json.loads(await c.connection.recv())
                    if frame["type"] == "welcome":
                        self.opened += 1
                    elif frame["type"] == "push":
                        if frame["id"] not in self.ids:
                            self.ids.append(frame["id"])
                    elif frame["type"] == "bye":
                        wait = frame["retry_after"]
                        break
            self.waited.append(wait)
            await asyncio.sleep(wait)


@asynccontextmanager
async def browsers(count: int, *ports: int) -> AsyncIterator[list[Browser]]:
    """So many, each of a user of its own, welcomed at the first port."""
    made = [Browser(f"u{n}", list(ports)) for n in range(count)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one.run()) for one in made]
        async with asyncio.timeout(20):
            while not all(one.opened for one in made):
                await asyncio.sleep(0.02)
        yield made
        for task in tasks:
            task.cancel()


async def test_a_drain_moves_all_sessions_and_loses_nothing(
    vhost: str, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        process(vhost, database, node="leaves", log=tmp_path / "log", drain_rate=20) as p,
        bridge(vhost, database, node="stays") as stays,
        browsers(20, p.ws_port, stays.ws_port) as crowd,
    ):
        draining = asyncio.create_task(command.drain(at(database), "leaves", wait=30), name="drain")
        sent = 0
        while not draining.done():
            await publish(vhost, *(request(one.user, f"{one.user}-{sent}", ttl=60) for one in crowd))
            sent += 1
            await asyncio.wait((draining,), timeout=0.1)
        assert await draining == 0
        assert await p.exited() == 0
        found = endings(await final_rows(database, 20 * sent))
        assert {ending[0] for ending in found.values()} == {"received"}
        assert all(one.ids == [f"{one.user}-{n}" for n in range(sent)] for one in crowd)
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"moved 20 of 20 sessions in \d+ s, 0 pushes lost", said[-1])
    assert said[0].startswith("leaves: 20 sessions open, 0 closed, 0 at another node again, 0 pushes lost")
    logged = p.logged()
    assert "stopping: `bridge drain` asks for it; settling what is under way" in logged
    # A message that comes in between the last one taken and the close of the channel is the next node's.
    left = r"everything that was taken is settled|\d+ messages? back in the queue"
    assert re.search(rf"s: ({left}); 20 sessions closed$", logged[-1]), logged[-1]
    assert [one.opened for one in crowd] == [2] * 20
    assert all(1.0 <= wait <= 1.5 for one in crowd for wait in one.waited)
    with psycopg.connect(database) as conn:
        row = conn.execute("select action, result, target->>'node', facts from ops_action").fetchone()
    assert row is not None
    assert row[:3] == ("drain", "done", "leaves")
    assert row[3] == {
        "ended": True,
        "sessions": 20,
        "moved": 20,
        "lost": 0,
        "on_the_way": 0,
        "seconds": row[3]["seconds"],
    }


async def test_a_push_to_a_user_between_two_nodes_is_told_unless_it_has_a_ttl(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        process(vhost, database, node="leaves") as p,
        bridge(vhost, database, node="stays") as stays,
        client(p.ws_port, token("u1"), subprotocols=ENVELOPE) as c,
    ):
        await c.read_json()
        draining = asyncio.create_task(command.drain(at(database), "leaves", wait=30), name="drain")
        assert await c.ended() == (1012, "restart")
        await publish(vhost, request("u1", "p1"), request("u1", "p2", ttl=60))
        await final_rows(database, 1)
        async with client(stays.ws_port, token("u1"), subprotocols=ENVELOPE) as again:
            assert [(await again.read_json()).get("id") for _ in range(2)] == [None, "p2"]
            assert await draining == 0
    *_, way, last = capsys.readouterr().out.splitlines()
    assert way == "1 push without a ttl came for users between two nodes (offline/no_session)"
    assert re.fullmatch(r"moved 1 of 1 sessions in \d+ s, 0 pushes lost", last)


class Log:
    """Writes sessions and rows as bridges do; times are seconds since the stop began."""

    def __init__(self, conn: psycopg.Connection, began: datetime) -> None:
        self._conn = conn
        self._began = began

    def session(
        self, user: str, boot: str, opened: float, closed: float | None = None, why: str = "restart"
    ) -> None:
        ended = None if closed is None else self._at(closed)
        self._conn.execute(
            "insert into session (session, user_id, node, boot, opened_at, closed_at, close_reason, mode, expires_at)"
            " values (gen_random_uuid(), %s, %s, %s, %s, %s, %s, 'bridge.v1.json', now() + interval '1 hour')",
            (user, boot, f"boot {boot}", self._at(opened), ended, why if ended else None),
        )

    def row(self, user: str, outcome: str, reason: str, taken: float) -> None:
        self._conn.execute(
            "insert into delivery_log (day, push_id, user_id, tenant, outcome, reason, final, confirm, sessions,"
            " attempts, published_at, taken_at, finished_at, node, boot, event, app_id, detail, traceparent)"
            " select day, gen_random_uuid(), %s, '', %s, %s, true, 2, 1, 1, %s, %s, %s, 'b', 'boot b', '', '', '', ''"
            " from log_day",
            (user, outcome, reason, *[self._at(taken)] * 3),
        )

    def _at(self, seconds: float) -> datetime:
        return self._began + timedelta(seconds=seconds)


async def test_what_counts_as_lost_by_a_stop(claimed: str) -> None:
    began = datetime.now(UTC) - timedelta(seconds=60)
    with psycopg.connect(claimed, autocommit=True) as conn:
        log = Log(conn, began)
        for user in ("moved", "away", "elsewhere", "left"):
            log.session(
                user, "b" if user == "elsewhere" else "a", -100, 10, "client" if user == "left" else "restart"
            )
        log.session("moved", "b", 20)
        log.session("moved", "a", -50, 12)
        log.session("open", "a", -100)
        for outcome, reason in LOST:
            log.row("moved", outcome, reason, 5)
            log.row("moved", outcome, reason, -5)
            log.row("elsewhere", outcome, reason, 5)
            log.row("left", outcome, reason, 5)
        log.row("away", "unknown", "connection_lost", 5)
        for taken in (5, 15, 16, 25):
            log.row("moved", "offline", "no_session", taken)
            log.row("away", "offline", "no_session", taken)
        log.row("moved", "received", "pong", 15)
        log.row("moved", "unknown", "no_proof", 15)
    stop = Stop("a", "boot a", began)
    async with reading(claimed, "test") as conn_:
        observer = Observer(conn_, stop)
        progress, losses = await observer.progress(), await observer.losses()
    assert (progress.runs, progress.silent) == (True, False)
    assert (progress.open, progress.closed, progress.cut_off, progress.moved) == (1, 3, 0, 1)
    lost = {(one.outcome, one.reason): one.pushes for one in losses if not one.on_the_way}
    assert lost == dict.fromkeys(LOST, 1) | {("unknown", "connection_lost"): 2}
    assert [one.pushes for one in losses if one.on_the_way] == [2]


@pytest.fixture
def claimed(database: str) -> str:
    """A database in which four nodes have a name: two live, one is stopping, one is dead."""
    with psycopg.connect(database, autocommit=True) as conn:
        for name in ("a", "b", "stops", "dead"):
            conn.execute("select claim_node(%s, %s, null)", (name, f"boot {name}"))
        conn.execute("update node set stopping = boot, stopping_since = now() where name = 'stops'")
        conn.execute("update node set seen_at = now() - interval '12 s' where name = 'dead'")
    return database


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("x", "bridge: there is no node x; alive: a, b, stops"),
        ("dead", "bridge: dead is dead: it was last seen 12 s ago"),
        ("stops", "bridge: stops is stopping already, since 0 s ago"),
    ],
)
def test_a_node_that_can_not_be_asked_is_told_why(
    claimed: str, name: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drain", name, "--postgres-dsn", claimed]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == problem


def test_without_a_name_the_nodes_are_listed(claimed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "--postgres-dsn", claimed]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "bridge drain: which one? Name it:",
        "  a  0 sessions",
        "  b  0 sessions",
        "  stops  0 sessions  (stops already)",
    ]


def test_a_node_that_dies_meanwhile_is_told(claimed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(claimed, autocommit=True) as conn:
        conn.execute("update node set seen_at = now() - interval '4 s' where name = 'a'")
        Log(conn, datetime.now(UTC)).session("u1", "a", -100, 0, "node_died")
    assert main(["drain", "a", "--postgres-dsn", claimed]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "moved 0 of 1 sessions in 0 s, 0 pushes lost"
    assert "a died before it had closed its sessions" in told.err


def test_a_node_that_does_not_hear_of_it_is_told(claimed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "a", "--postgres-dsn", claimed, "--wait", "0"]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "moved 0 of 0 sessions in 0 s, 0 pushes lost"
    assert "a has not ended after 0 s." in told.err
