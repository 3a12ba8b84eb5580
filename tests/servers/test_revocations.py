"""Revocations on real servers: whoever is revoked is closed on every node, and stays out after a restart."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from websockets.exceptions import InvalidStatus

from bridge.adapters.postgres.revocations import PostgresRevocations
from bridge.core.ports.revocations import RevocationPage
from tests.servers.test_kept import control, session
from tests.support.bridges import Process, bridge, endings, final_rows, get, process, publish, request, token
from tests.support.clients import Client, client, problem, raw_client
from tests.support.proxies import AmqpProxy
from tests.support.queries import until_asked
from tests.support.queues import ENVELOPE


async def revoke(port: int, **asked: object) -> Any:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"http://127.0.0.1:{port}/v1/revoke", json=asked) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def command(*words: str, **environment: str) -> tuple[int, str, str]:
    """`bridge` with these words, in a process of its own: its exit code, what it printed, and its errors."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"import sys; from bridge.cli import main; sys.exit(main({words!r}))",
        env={**inherited, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, errors = await child.communicate()
    assert child.returncode is not None
    return child.returncode, out.decode(), errors.decode()


async def refused(port: int, given: str) -> tuple[int, str, str]:
    with pytest.raises(InvalidStatus) as caught:
        async with client(port, given):
            pass
    response = caught.value.response
    return response.status_code, *problem(response.body)


async def test_a_logout_reaches_the_open_socket_and_its_token_opens_nothing_any_more(
    vhost: str, database: str
) -> None:
    old = token("u1", now=time.time() - 60)
    async with bridge(vhost, database) as b:
        async with client(b.ws_port, old) as here, session(b.ws_port, "u2") as (other, _):
            answer = await revoke(b.ops_port, user="u1", before=int(time.time()))
            assert (answer["sessions"], answer["nodes"], answer["silent"]) == (1, ["n1"], [])
            assert (answer["type"], answer["node"]) == ("revoke", "n1")
            assert await here.ended() == (4403, "revoked")
            assert await refused(b.ws_port, old) == (401, "revoked", "The token was refused: revoked.")
            await publish(vhost, request("u1", "p1"), request("u2", "p2"))
            assert (await other.read_json())["id"] == "p2"
        found = endings(await final_rows(database, 2))
        assert found == {("p1", "u1"): ("offline", "no_session"), ("p2", "u2"): ("received", "pong")}
        async with client(b.ws_port, token("u1")):
            pass
    async with bridge(vhost, database) as again:
        assert await refused(again.ws_port, old) == (401, "revoked", "The token was refused: revoked.")


async def refreshed(here: Client, given: str) -> str:
    """Give an open session this token; its id."""
    welcome = await here.read_json()
    await here.send_json({"type": "refresh", "token": given, "ref": 1})
    assert (await here.read_json())["type"] == "ok"
    return str(welcome["session"])


@pytest.mark.parametrize("known", [True, False], ids=["in the ledger", "a moment ago"])
async def test_a_session_that_has_closed_still_names_its_tokens(
    vhost: str, database: str, known: bool
) -> None:
    first, second = token("u1", jti="t1"), token("u1", 7200, jti="t2")
    async with bridge(vhost, database) as b:
        async with client(b.ws_port, first, subprotocols=ENVELOPE) as here:
            closed = await refreshed(here, second)
        if known:
            await until_asked(database, "select jti from session where closed_at is not null", [("t2",)])
        async with (
            client(b.ws_port, first, subprotocols=ENVELOPE) as one,
            client(b.ws_port, second, subprotocols=ENVELOPE) as two,
        ):
            for back in (one, two):
                assert (await back.read_json())["type"] == "welcome"
            assert (await revoke(b.ops_port, session=closed))["sessions"] == 2
            for back in (one, two):
                assert (await back.read_json())["reason"] == "revoked"
        for given in (first, second):
            assert (await refused(b.ws_port, given))[0] == 401


async def test_a_control_message_revokes_and_what_is_wrong_with_one_is_said(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as b, control(vhost) as say:
        async with client(b.ws_port, token("u1", jti="t1")) as here:
            answer = await say({"type": "revoke", "jti": "t1"})
            assert (answer["type"], answer["sessions"], answer["silent"]) == ("revoke", 1, [])
            assert await here.ended() == (4403, "revoked")
        async with session(b.ws_port, "u2") as (there, welcome):
            assert (await say({"type": "revoke", "session": welcome["session"]}))["sessions"] == 1
            assert await there.read_json() == {
                "type": "bye",
                "code": 4403,
                "reason": "revoked",
                "retry_after": 0,
            }
        wrong = await say({"type": "revoke", "user": "u1", "before": time.time() * 1000})
        assert wrong["problem"] == "before: expected unix seconds: it looks like milliseconds"


@asynccontextmanager
async def standby(vhost: str, database: str, **more: Any) -> AsyncIterator[Process]:
    second = Process(vhost, database, node="n2", **more)
    await second.start()
    try:
        assert await second.ready() == []
        yield second
    finally:
        await second.kill()


async def test_every_node_closes_what_it_has_and_one_that_is_stopped_is_named_and_catches_up(
    vhost: str, database: str
) -> None:
    async with process(vhost, database) as first, standby(vhost, database) as second:
        async with client(first.ws_port, token("u1")) as one, client(second.ws_port, token("u1")) as two:
            answer = await revoke(first.ops_port, user="u1", before=time.time() + 60)
            assert (answer["sessions"], answer["nodes"], answer["silent"]) == (2, ["n1", "n2"], [])
            assert answer["took_ms"] < 1000
            assert [await c.ended() for c in (one, two)] == [(4403, "revoked")] * 2
        async with client(second.ws_port, token("u2", jti="t2"), subprotocols=ENVELOPE) as late:
            assert (await late.read_json())["type"] == "welcome"
            second.signal(signal.SIGSTOP)
            answer = await revoke(first.ops_port, jti="t2")
            assert (answer["sessions"], answer["nodes"], answer["silent"]) == (0, ["n1"], ["n2"])
            second.signal(signal.SIGCONT)
            assert await late.ended() == (4403, "revoked")


@pytest.mark.parametrize("asked", [0, 1], ids=["its own node", "another node"])
async def test_all_tokens_of_a_session_are_refused_everywhere_once_the_answer_says_so(
    vhost: str, database: str, asked: int
) -> None:
    given = token("u1", jti="t1")
    async with (
        process(vhost, database) as first,
        standby(vhost, database) as second,
        client(first.ws_port, given, subprotocols=ENVELOPE) as one,
        client(second.ws_port, given, subprotocols=ENVELOPE) as two,
    ):
        assert (await two.read_json())["type"] == "welcome"
        session_id = await refreshed(one, token("u1", 7200, jti="t2"))
        answer = await revoke((first, second)[asked].ops_port, session=session_id)
        assert (await refused(second.ws_port, given))[0] == 401
        assert (answer["sessions"], answer["nodes"], answer["silent"]) == (2, ["n1", "n2"], [])
        assert [(await here.read_json())["reason"] for here in (one, two)] == ["revoked"] * 2


async def queued(node: Process) -> float:
    """The frames that wait for a socket."""
    _, page = await get(node.ops_port, "/metrics")
    return float(page.partition(b"\nbridge_queued_frames ")[2].split()[0])


async def test_a_node_that_is_cut_off_falls_silent_and_is_named(
    vhost: str, database: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with (
        AmqpProxy(database) as link,
        process(vhost, link.url, log=log) as cut_off,
        standby(vhost, database) as other,
        raw_client(cut_off.ws_port, receive_buffer=4096) as slow,
        client(cut_off.ws_port, token("u2"), subprotocols=ENVELOPE) as well,
    ):
        assert (await well.read_json())["type"] == "welcome"
        await slow.upgrade(f"/ws?token={token('u1', jti='t1')}")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        # More than the kernels of both sides take: so much waits that they can't take that, too, a moment later.
        large, pushes = "x" * 50_000, 0
        while await queued(cut_off) < 10:
            pushes += 1
            await publish(vhost, request("u1", f"p{pushes}", data=large), request("u2", f"q{pushes}"))
            assert (await well.read_json())["id"] == f"q{pushes}"
        link.freeze()
        assert (await revoke(other.ops_port, jti="t1"))["silent"] == ["n1"]
        assert (await cut_off.says("no revocation could be read")).endswith("holds bytes: 1")
        # It is not alive any more, as far as others can see: its lease is over.
        async with asyncio.timeout(20):
            while (answer := await revoke(other.ops_port, jti="t1"))["silent"]:
                await asyncio.sleep(0.1)
        assert (answer["nodes"], answer["gone"]) == (["n2"], ["n1"])
        # What its socket held was thrown away, and so was what its kernel held.
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            await slow.read_all()
        link.reset()
        link.thaw()
        assert await cut_off.says("revocations are read again")
        assert await refused(cut_off.ws_port, token("u1", jti="t1")) == (
            401,
            "revoked",
            "The token was refused: revoked.",
        )


async def test_a_node_that_is_killed_between_commit_and_close_refuses_the_token_when_it_is_back(
    vhost: str, database: str
) -> None:
    async with process(vhost, database) as first:
        given = token("u1", jti="t1")
        async with client(first.ws_port, given):
            first.signal(signal.SIGSTOP)  # nothing is closed from now on
            async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
                await conn.execute("select revoke_tokens(null, null, 't1', null)")
            await first.kill()
        async with bridge(vhost, database, node="n2") as b:
            assert await refused(b.ws_port, given) == (401, "revoked", "The token was refused: revoked.")


async def test_the_command_revokes_without_a_broker_and_says_what_came_of_it(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as here:
        code, said, _ = await command(
            "revoke", "--user", "u1", BRIDGE_POSTGRES_DSN=database, BRIDGE_AMQP_URL="amqp://127.0.0.1:1/"
        )
        assert code == 0
        assert said.startswith("revoked; sessions closed: 1; confirmed by n1 in ")
        assert await here.ended() == (4403, "revoked")
        code, said, _ = await command("revoke", "--jti", "t9", "--json", BRIDGE_POSTGRES_DSN=database)
        assert (code, json.loads(said)["sessions"]) == (0, 0)
        code, _, told = await command("revoke", "--jti", "t9", "--before", "5", BRIDGE_POSTGRES_DSN=database)
        assert (code, "--before: goes with --user" in told) == (2, True)


async def test_a_node_that_reads_for_long_at_its_start_claims_its_name_afterwards(
    vhost: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    after, names = PostgresRevocations.after, list[int]()

    async def watched(log: PostgresRevocations, mark: int, limit: int) -> RevocationPage:
        if not names:
            async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
                found = await (await conn.execute("select count(*)::integer from node")).fetchone()
                assert found is not None
                names.extend(found)
        return await after(log, mark, limit)

    monkeypatch.setattr(PostgresRevocations, "after", watched)
    async with bridge(vhost, database) as b:
        assert (await revoke(b.ops_port, jti="t1"))["nodes"] == ["n1"]
    assert names == [0], (
        "nobody renews a name during the start: after five seconds it would be dead to all others"
    )


async def test_without_a_database_revocations_last_until_a_restart(vhost: str, database: str) -> None:
    given = token("u1", jti="t1")
    async with bridge(vhost, database, delivery_log="stdout") as b:
        async with client(b.ws_port, given) as here:
            assert (await revoke(b.ops_port, jti="t1"))["sessions"] == 1
            assert await here.ended() == (4403, "revoked")
        assert (await refused(b.ws_port, given))[0] == 401


async def test_a_revocation_is_kept_for_the_longest_token_that_any_live_node_accepts(
    vhost: str, database: str
) -> None:
    async with (
        process(vhost, database, token_days=20) as first,
        standby(vhost, database),
        client(first.ws_port, token("u1", jti="t1")),
    ):
        await revoke(first.ops_port, jti="t1")
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
            query = "select extract(day from kept_until - revoked_at)::integer from revocation"
            assert await (await conn.execute(query)).fetchall() == [(400,)], "the other node has the default"


async def test_whoever_locks_what_nodes_confirm_does_not_stop_pushes(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1", jti="t1")) as here:
        async with await psycopg.AsyncConnection.connect(database) as conn:
            await conn.execute("select * from revocation_reader for update")
            answer = await revoke(b.ops_port, jti="t1")
            assert (answer["nodes"], answer["silent"]) == ([], ["n1"])
            assert await here.ended() == (4403, "revoked")
            await publish(vhost, request("u1", "p1"))
            assert endings(await final_rows(database, 1)) == {("p1", "u1"): ("offline", "no_session")}
        assert (await revoke(b.ops_port, jti="t1"))["nodes"] == ["n1"]
