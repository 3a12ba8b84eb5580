"""How a bridge stops, how it is hurried, and what its log says of that and of times in which nothing is taken."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
from pathlib import Path

import pytest

from bridge.app.drain import Left
from bridge.app.readiness import STANDBY, TakingLog
from bridge.core.settlement.gate import Gate
from bridge.devservers import Servers
from tests.support.bridges import (
    bridge,
    counted,
    endings,
    final_rows,
    get,
    process,
    publish,
    request,
    rows,
    token,
)
from tests.support.clients import client
from tests.support.queues import ENVELOPE, ready_messages


async def test_a_stop_says_that_all_is_settled(vhost: str, database: str, tmp_path: Path) -> None:
    async with process(vhost, database, log=tmp_path / "log") as p, client(p.ws_port, token("u1")) as c:
        await publish(vhost, request("u1", "p1"))
        assert json.loads(await c.read()) == {"n": "p1"}
        await final_rows(database, 1)
        assert await p.stop() == 0
        said = await p.says("stopped after")
        assert said.endswith("s: everything that was taken is settled; 1 session closed")
        assert "stopping: settling what is under way (signal again to stop at once)" in p.logged()


async def test_a_node_that_stops_hands_over_what_others_forward_until_it_closes_its_sessions(
    vhost: str, database: str, tmp_path: Path
) -> None:
    more = {"drain_rate": 0.01, "drain_timeout": 60}
    async with (
        bridge(vhost, database, node="taker"),
        process(vhost, database, node="holder", log=tmp_path / "log", **more) as p,
        client(p.ws_port, token("u1"), subprotocols=ENVELOPE) as first,
        client(p.ws_port, token("u2"), subprotocols=ENVELOPE) as second,
    ):
        for c in (first, second):
            assert (await c.read_json())["type"] == "welcome"
        p.signal(signal.SIGTERM)
        assert await first.ended() == (1012, "restart")
        await publish(vhost, request("u2", "p1"), request("u2", "p2", ttl=60))
        assert [(await second.read_json())["id"] for _ in range(2)] == ["p1", "p2"]
        found = endings(await final_rows(database, 2))
        assert found == {("p1", "u2"): ("received", "pong"), ("p2", "u2"): ("received", "pong")}
        await second.close()
        assert await p.exited() == 0
        assert (await p.says("stopped after")).endswith("settled; 1 session closed")


async def test_a_lone_node_closes_all_sessions_at_once_and_spreads_their_return(
    vhost: str, database: str, tmp_path: Path
) -> None:
    more = {"drain_rate": 0.1, "drain_timeout": 60}
    async with (
        process(vhost, database, log=tmp_path / "log", **more) as p,
        client(p.ws_port, token("u1"), subprotocols=ENVELOPE) as first,
        client(p.ws_port, token("u2"), subprotocols=ENVELOPE) as second,
    ):
        for c in (first, second):
            assert (await c.read_json())["type"] == "welcome"
        assert await p.stop() == 0
        told = [(await c.read_json())["retry_after"] for c in (first, second)]
        assert 1 <= told[0] <= 11 <= told[1] <= 21
        assert (await p.says("stopped after")).endswith("settled; 2 sessions closed")


async def test_a_node_that_stops_hands_the_taking_over_before_it_closes_its_sessions(
    vhost: str, database: str, tmp_path: Path
) -> None:
    more = {"drain_rate": 0.01, "drain_timeout": 60, "confirm_timeout": 60}
    async with (
        process(vhost, database, node="taker", log=tmp_path / "log", **more) as p,
        bridge(vhost, database, node="next"),
        client(p.ws_port, token("u1"), subprotocols=ENVELOPE) as mute,
        client(p.ws_port, token("u2"), subprotocols=ENVELOPE) as left,
        client(p.ws_port, token("u3"), subprotocols=ENVELOPE) as here,
    ):
        for c in (mute, left, here):
            assert (await c.read_json())["type"] == "welcome"
        mute.freeze()
        await publish(vhost, request("u1", "p1"))
        await counted(database, "outcome = 'pending'", 1)
        p.signal(signal.SIGTERM)
        assert await left.ended() == (1012, "restart")
        await publish(vhost, request("u3", "p2"))
        assert (await here.read_json())["id"] == "p2"
        mute.thaw()
        found = endings(await final_rows(database, 2))
        assert found == {("p1", "u1"): ("received", "pong"), ("p2", "u3"): ("received", "pong")}
        await here.close()
        await mute.close()
        assert await p.exited() == 0


def told(sentence: str) -> dict[str, int]:
    """The numbers in the last line of a stop."""
    found = re.findall(
        r"(\d+) (?:messages? (back)|rows? (pending)|push(?:es)? (kept)|sessions? (closed))", sentence
    )
    return {"".join(words): int(number) for number, *words in found}


async def in_flight(port: int, pushes: int) -> None:
    """Wait until so many are on their way."""
    async with asyncio.timeout(10):
        while f"bridge_in_flight {pushes:.1f}" not in (await get(port, "/metrics"))[1].decode():
            await asyncio.sleep(0.02)


async def test_a_stop_says_that_rows_stay_pending_and_not_that_they_go_back(
    vhost: str, database: str, tmp_path: Path
) -> None:
    more = {"confirm_timeout": 60, "drain_timeout": 1}
    async with process(vhost, database, log=tmp_path / "log", **more) as p:
        async with client(p.ws_port, token("u1")) as c:
            c.freeze()
            await publish(vhost, request("u1", "p1"))
            await counted(database, "outcome = 'pending'", 1)
            assert await p.stop() == 0
        said = told(await p.says("stopped after"))
        pending = sum(row["outcome"] == "pending" for row in await rows(database))
        assert said == {"closed": 1} | ({"pending": pending} if pending else {})


async def test_a_second_signal_ends_the_drain_and_the_log_says_what_went_back(
    vhost: str, database: str, tmp_path: Path
) -> None:
    more = {"confirm_timeout": 60, "drain_timeout": 60}
    async with process(vhost, database, log=tmp_path / "log", **more) as p:
        async with client(p.ws_port, token("u1")) as c:
            c.freeze()
            await publish(vhost, *[request("u1", f"p{n}") for n in range(3)])
            await in_flight(p.ops_port, 3)
            p.signal(signal.SIGTERM)
            await p.says("stopping: settling what is under way (signal again to stop at once)")
            p.signal(signal.SIGINT)
            assert await p.exited() == 130
        said = told(await p.says("stopped after"))
        assert said.get("back", 0) == await ready_messages(vhost, "push.requests")
        pending = sum(row["outcome"] == "pending" for row in await rows(database))
        assert said.get("pending", 0) == pending
        assert said["closed"] == 1
        await p.start()
        await p.ready()
        assert len(endings(await final_rows(database, 3))) == 3


async def test_a_third_signal_kills_whatever_holds_the_process_up(
    vhost: str, database: str, tmp_path: Path
) -> None:
    (tmp_path / "holding_hooks.py").write_text(
        "import time\n\n\nclass Hooks:\n    def on_close(self, session, code, reason):\n        time.sleep(60)\n"
    )
    os_path = {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}
    made = process(vhost, database, log=tmp_path / "log", hooks="holding_hooks:Hooks", variables=os_path)
    async with made as p, client(p.ws_port, token("u1")):
        p.signal(signal.SIGTERM)
        await p.says("stopping: settling")
        p.signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while _catches(p.pid, signal.SIGTERM):
                await asyncio.sleep(0.02)
        p.signal(signal.SIGTERM)
        assert await p.exited() == -signal.SIGTERM


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal, see proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) & 1 << number - 1)


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (
            Left(0.12, 0, 0, 0, 0),
            "stopped after 0.1 s: everything that was taken is settled; 0 sessions closed",
        ),
        (
            Left(10.0, 0, 0, 0, 5000, 1),
            "stopped after 10.0 s: everything that was taken is settled; 5000 sessions closed, 1 of them at once at "
            "the end",
        ),
        (
            Left(10.0, 2, 1, 3, 5),
            "stopped after 10.0 s: 2 messages back in the queue; 1 row pending: the next start of this node, or "
            "another node, ends them as unknown/node_died; 3 pushes kept for when their users come back; "
            "5 sessions closed",
        ),
    ],
)
def test_what_is_left_is_told_in_a_sentence(left: Left, words: str) -> None:
    assert left.words == words


# --- times in which nothing is taken ---------------------------------------------------------------------


async def test_an_outage_of_the_database_is_told_once_and_so_is_its_end(
    own_servers: Servers, tmp_path: Path
) -> None:
    s = own_servers
    async with process(s.amqp_url, s.postgres_dsn, log=tmp_path / "log") as p:
        await asyncio.to_thread(s.postgres.stop, "immediate")
        await p.says("no pushes are taken: ")
        await publish(s.amqp_url, request("u1", "p1"))
        await asyncio.to_thread(s.postgres.start)
        await p.says("pushes are taken again, after ")
        await final_rows(s.postgres_dsn, 1)
        said = [message[:12] for message in p.logged() if "pushes are taken" in message]
        assert said == ["no pushes ar", "pushes are t"]


def test_what_is_over_in_a_second_and_standing_by_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bridge")
    gate = Gate()
    taking = TakingLog(gate)
    for now, cause in enumerate(("", "starting", "", "broker", "", "standby", "standby", "standby", "")):
        for name in gate.names:
            gate.clear(name)
        if cause:
            gate.shut(cause, STANDBY)
        taking.every_second(now)
    assert caplog.messages == []


def test_a_start_that_can_not_begin_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bridge")
    gate = Gate()
    gate.shut("starting", "connection refused")
    taking = TakingLog(gate)
    for now in range(5):
        taking.every_second(now)
    gate.clear("starting")
    taking.every_second(5)
    assert caplog.messages == ["no pushes are taken yet: starting: connection refused"]
