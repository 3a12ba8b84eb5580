"""`bridge serve --workers 2`: one port, two nodes, one answer; what becomes of them when one dies, or all restart."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.bridges import (
    Process,
    endings,
    final_rows,
    get,
    process,
    publish,
    request,
    rows,
    rows_when,
    token,
)
from tests.support.clients import Client, client
from tests.support.metrics_page import samples
from tests.support.queues import ENVELOPE


async def status(group: Process) -> dict[str, Any]:
    answered, body = await get(group.ops_port, "/status")
    assert answered == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


async def all_ready(group: Process) -> list[dict[str, Any]]:
    """Wait until both workers are; their states."""
    async with asyncio.timeout(30):
        while True:
            answered, body = await get(group.ops_port, "/status")
            if answered == 200:
                states = [worker["status"] for worker in json.loads(body)["workers"]]
                if all(state is not None and state["ready"] for state in states):
                    return states
            await asyncio.sleep(0.05)


async def on_both(stack: AsyncExitStack, group: Process) -> dict[str, Client]:
    """Sessions by user, some at each worker."""
    found: dict[str, Client] = {}
    async with asyncio.timeout(20):
        while True:
            user = f"u{len(found)}"
            c = await stack.enter_async_context(client(group.ws_port, token(user), subprotocols=ENVELOPE))
            assert json.loads(await c.read())["type"] == "welcome"
            found[user] = c
            if len(found) >= 8 and all(w["gauges"]["sessions"] for w in await all_ready(group)):
                return found


async def test_two_workers_share_port_and_users_and_answer_as_one(
    vhost: str, database: str, tmp_path: Path
) -> None:
    async with process(vhost, database, workers=2, log=tmp_path / "log") as group, AsyncExitStack() as stack:
        await all_ready(group)
        users = await on_both(stack, group)
        ops = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{group.ops_port}"))
        outcomes = await stack.enter_async_context(ops.get("/v1/outcomes"))
        await publish(vhost, *(request(user, f"p-{user}") for user in users))
        for user, c in users.items():
            assert json.loads(await c.read())["id"] == f"p-{user}"
        found = endings(await final_rows(database, len(users)))
        assert found == {(f"p-{user}", user): ("received", "pong") for user in users}
        assert await told(outcomes, len(users)) == {f"p-{user}" for user in users}
        said = await status(group)
        assert (said["node"], said["role"], said["ready"]) == ("n1", "active", True)
        assert [worker["node"] for worker in said["workers"]] == ["n1-1", "n1-2"]
        assert said["gauges"]["sessions"] == len(users) == len(said["sessions"])
        assert said["gauges"]["active"] == 1
        page = samples((await get(group.ops_port, "/metrics"))[1].decode())
        taken = [page[("bridge_taken_messages_total", k)] for k in "12"]
        assert sorted(taken) == [0, len(users)]
        assert sum(page[("bridge_sessions", k)] for k in "12") == len(users)
        assert all(("process_resident_memory_bytes", k) in page for k in "12")
        await cannot_have(group.ws_port, vhost, database, tmp_path / "other")
        pids = [worker["pid"] for worker in said["workers"]]
        await publish(vhost, request("u0", "late", confirm="acked", ack_within=1))
        assert json.loads(await users["u0"].read())["id"] == "late"
        # A service manager sends it to all of its processes. Nobody hurries for that.
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        assert await group.stop() == 0
        assert endings(await rows(database))[("late", "u0")] == ("received", "not_acked")
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["node"] for line in lines} == {"n1", "n1-1", "n1-2"}


async def told(outcomes: aiohttp.ClientResponse, count: int) -> set[str]:
    """The pushes of so many events."""
    found: set[str] = set()
    async with asyncio.timeout(10):
        async for line in outcomes.content:
            if line.startswith(b"data: "):
                found.add(json.loads(line[6:])["push_id"])
                if len(found) == count:
                    break
    return found


async def cannot_have(port: int, vhost: str, database: str, log: Path) -> None:
    """Other workers that are to have this port say so, and end."""
    other = Process(vhost, database, node="n2", workers=2, ws_port=port, log=log, log_format="text")
    await other.start()
    assert await other.exited() == 2
    assert f"BRIDGE_WS_PORT: cannot listen on 127.0.0.1:{port}: Address already in use" in log.read_text()


async def test_a_worker_that_is_killed_comes_back_and_the_others_go_with_the_supervisor(
    vhost: str, database: str, tmp_path: Path
) -> None:
    async with process(vhost, database, workers=2, log=tmp_path / "log") as group, AsyncExitStack() as stack:
        before = await all_ready(group)
        users = await on_both(stack, group)
        workers = (await status(group))["workers"]
        taker = next(w for w in workers if w["status"]["role"] == "active")
        (other,) = (w for w in workers if w is not taker)
        there = {session["user"] for session in other["status"]["sessions"]}
        os.kill(taker["pid"], signal.SIGKILL)
        await group.says(f"worker {taker['worker']} was ended by SIGKILL; it is started again in ")
        await publish(vhost, *(request(user, f"p-{user}", ttl=60) for user in users))
        for user in there:
            assert json.loads(await users[user].read())["id"] == f"p-{user}"
        found = endings(await final_or_stored(database, len(users)))
        assert found.keys() == {(f"p-{user}", user) for user in users}
        assert {user for (_, user), (outcome, _) in found.items() if outcome == "received"} == there
        states = await all_ready(group)
        assert [s["boot"] == b["boot"] for s, b in zip(states, before, strict=True)].count(True) == 1
        page = samples((await get(group.ops_port, "/metrics"))[1].decode())
        restarts = [page[("bridge_worker_restarts_total", str(w["worker"]))] for w in (taker, other)]
        assert restarts == [1, 0]
        pids = [worker["pid"] for worker in (await status(group))["workers"]]
        await group.kill()
        for user in there:
            assert (await users[user].ended())[0] == 1012
        async with asyncio.timeout(10):
            while any(Path(f"/proc/{pid}").exists() for pid in pids):
                await asyncio.sleep(0.02)
        assert sum(line.startswith("stopped after") for line in group.logged()) == 2


async def final_or_stored(database: str, count: int) -> list[dict[str, Any]]:
    """Wait until so many rows are final, or say that they are kept."""
    return await rows_when(
        database, lambda found: sum(row["final"] or row["outcome"] == "stored" for row in found) >= count
    )


class Devoted:
    """A client that comes back at once whenever it is sent away, and resumes; as the browser library does."""

    def __init__(self, port: int, user: str) -> None:
        self._port = port
        self.user = user
        self.got: set[str] = set()
        self.sent_away = 0
        self.there = asyncio.Event()

    async def run(self) -> None:
        last = ""
        while True:
            try:
                path = f"/ws?last={last}" if last else "/ws"
                async with client(self._port, token(self.user), path=path, subprotocols=ENVELOPE) as c:
                    async for text in c.connection:
                        frame = json.loads(text)
                        if frame["type"] == "welcome":
                            self.there.set()
                        elif frame["type"] == "push":
                            last = frame["id"]
                            self.got.add(last)
            except (InvalidStatus, OSError, ConnectionClosed):
                pass
            self.there.clear()
            self.sent_away += 1
            await asyncio.sleep(0.05)


async def test_hup_restarts_one_after_the_other_and_no_push_is_lost(
    vhost: str, database: str, tmp_path: Path
) -> None:
    async with process(vhost, database, workers=2, log=tmp_path / "log") as group:
        before = await all_ready(group)
        clients = [Devoted(group.ws_port, f"u{n}") for n in range(8)]
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(c.run(), name=c.user) for c in clients]
            for c in clients:
                await c.there.wait()
            group.signal(signal.SIGHUP)
            done = asyncio.create_task(group.says("all workers were restarted"), name="restarted")
            ids: list[str] = []
            while not done.done():
                ids.append(f"p{len(ids)}")
                await publish(vhost, *(request(c.user, f"{ids[-1]}-{c.user}", ttl=600) for c in clients))
                # The workers need the processor to start.
                await asyncio.wait((done,), timeout=0.1)
            await done
            async with asyncio.timeout(20):
                for c in clients:
                    while len(c.got) < len(ids):
                        await asyncio.sleep(0.05)
            found = endings(await final_rows(database, len(ids) * len(clients)))
            for task in running:
                task.cancel()
        assert set(found.values()) == {("received", "pong")}
        assert found.keys() == {(f"{name}-{c.user}", c.user) for name in ids for c in clients}
        assert all(c.sent_away for c in clients)
        boots = [(s["boot"], b["boot"]) for s, b in zip(await all_ready(group), before, strict=True)]
        assert all(now != then for now, then in boots)
        assert [w["restarts"] for w in (await status(group))["workers"]] == [0, 0]


async def test_what_keeps_every_worker_from_starting_ends_all_of_them_and_is_told_once(
    vhost: str, database: str, tmp_path: Path
) -> None:
    group = Process(
        vhost, database, workers=2, hooks="nowhere:Hooks", log=tmp_path / "log", log_format="text"
    )
    await group.start()
    assert await group.exited() == 2
    assert (tmp_path / "log").read_text().count("BRIDGE_HOOKS: ") == 1
