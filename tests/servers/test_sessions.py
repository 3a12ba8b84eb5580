"""The ledger on real servers: who was connected, from when to when, and how each session ended."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping
from typing import Any, LiteralString, cast

import aiohttp
import psycopg
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from bridge.adapters.postgres import directory
from bridge.adapters.postgres.upkeep import Upkeep
from bridge.operator import people
from tests.servers.test_kept import session
from tests.servers.test_revocations import command, standby
from tests.support.bridges import bridge, final_rows, get, process, publish, request, token
from tests.support.clients import client, problem
from tests.support.queries import asked, until_asked
from tests.support.queues import ENVELOPE, listening


async def read(events: asyncio.Queue[Mapping[str, object]]) -> Any:
    """The next event."""
    async with asyncio.timeout(20):
        return json.loads(cast(bytes, (await events.get())["body"]))


async def turned_away(port: int) -> Response:
    """The answer to a handshake. The first may get past the door before anything is known."""
    async with asyncio.timeout(20):
        while True:
            try:
                async with client(port, token("u2")) as late:
                    assert await late.ended() == (1013, "try_later")
            except InvalidStatus as refused:
                return refused.response


async def test_a_session_is_online_and_then_in_the_history_and_others_are_told(
    vhost: str, database: str
) -> None:
    given = {"User-Agent": "Mozilla/5.0 (X11)"}
    async with bridge(vhost, database) as made, listening(vhost, "push.sessions") as events:
        path = "/ws?token=" + token("user/7 ä", jti="t1")
        async with client(made.ws_port, "", path=path, subprotocols=ENVELOPE, headers=given) as here:
            welcome = await here.read_json()
            assert await asked(
                database, "select user_id, session, node, mode, user_agent from who_is_online"
            ) == [("user/7 ä", welcome["session"], "n1", "bridge.v1.json", "Mozilla/5.0 (X11)")]
            opened = await read(events)
            await here.close()
        assert {name: opened[name] for name in ("type", "session", "user", "node", "mode", "address")} == {
            "type": "opened",
            "session": welcome["session"],
            "user": "user/7 ä",
            "node": "n1",
            "mode": "bridge.v1.json",
            "address": "127.0.0.1",
        }
        told = await events.get()
        closed = json.loads(cast(bytes, told["body"]))
        assert (told["routing_key"], closed["type"], closed["code"], closed["reason"]) == (
            "closed",
            "closed",
            1000,
            "client",
        )
        assert await asked(
            database,
            "select close_code, close_reason, closed_at > opened_at, seconds > 0 from session_history",
        ) == [(1000, "client", True, True)]
        assert await asked(database, "select * from who_is_online") == []
        _, page = await get(made.ops_port, "/metrics")
        assert b'bridge_session_events_total{result="sent"} 2.0' in page
        assert b"bridge_ledger_waiting 0.0" in page


async def test_operators_see_a_user_and_can_disconnect_them_on_every_node(vhost: str, database: str) -> None:
    async with process(vhost, database) as first, standby(vhost, database) as second:
        url = f"http://127.0.0.1:{first.ops_port}/v1/users/u%2F1"
        async with (
            session(first.ws_port, "u/1") as (one, _),
            session(second.ws_port, "u/1") as (two, welcome),
            session(first.ws_port, "u2") as (other, _),
            aiohttp.ClientSession() as http,
        ):
            await publish(vhost, request("u/1", "p1"), request("u9", "p2", ttl=60))
            await final_rows(database, 1)
            async with http.get(url) as answer:
                person = await answer.json()
            assert (person["online"], [s["node"] for s in person["sessions"]]) == (True, ["n1", "n2"])
            assert [(p["push_id"], p["outcome"]) for p in person["pushes"]] == [("p1", "received")]
            async with http.post(f"{url}/disconnect", json={"session": welcome["session"]}) as answer:
                assert (answer.status, await answer.json()) == (
                    200,
                    {"user": "u/1", "sessions": 1, "nodes": ["n2"], "silent": []},
                )
            assert await two.ended() == (1001, "disconnected")
            second.signal(signal.SIGSTOP)
            async with http.post(f"{url}/disconnect", json={}) as answer:
                assert (await answer.json())["nodes"] == ["n1"]
            second.signal(signal.SIGCONT)
            await one.read_many(1)
            assert json.loads(str(await one.read()))["reason"] == "disconnected"
            async with http.post(f"{url}/disconnect", json={"sesion": "x"}) as answer:
                assert (answer.status, "sesion" in await answer.text()) == (400, True)
            await other.send("{}")
            assert (await other.read_json())["type"] == "error"
        code, out, errors = await command("who", "u/1", BRIDGE_POSTGRES_DSN=database)
        assert (code, errors) == (0, "")
        assert out.startswith("u/1 is offline\n  closed ")
        assert out.count("disconnected 1001  on n") == 2
        assert "received  pong" in out
        code, out, _ = await command("who", "u9", BRIDGE_POSTGRES_DSN=database)
        assert (code, "kept       1 push(es)" in out) == (0, True)
        code, out, _ = await command("who", "nobody", BRIDGE_POSTGRES_DSN=database)
        assert (code, out.splitlines()[0]) == (
            1,
            "nobody: neither the ledger nor the log has anything of them",
        )


async def test_what_a_killed_process_had_is_closed_and_told_by_another_or_by_its_next_start(
    vhost: str, database: str
) -> None:
    ends = (
        "select user_id, close_code, close_reason from session_history where closed_at is not null order by 1"
    )
    async with process(vhost, database) as first:
        async with listening(vhost, "push.sessions", key="closed") as events:
            async with session(first.ws_port, "u1"), session(first.ws_port, "u2"):
                await first.kill()
            async with process(vhost, database, node="n2"):
                # By the time of its last renewal, which was before it was noticed.
                await until_asked(database, ends, [("u1", None, "node_died"), ("u2", None, "node_died")])
            told = [await read(events) for _ in range(2)]
            assert {(one["user"], one["node"], one["reason"], one["code"]) for one in told} == {
                ("u1", "n1", "node_died", None),
                ("u2", "n1", "node_died", None),
            }
        await first.start()
        await first.ready()
        async with session(first.ws_port, "u3"):
            await first.kill()
        await first.start()
        await until_asked(database, ends, lambda rows: ("u3", None, "node_died") in rows)


async def test_a_clean_stop_leaves_no_session_open(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as made:
        held = [client(made.ws_port, token(f"u{n}")) for n in range(20)]
        for one in held:
            await one.__aenter__()
        await until_asked(database, "select count(*) from who_is_online", [(20,)])
    for one in held:
        await one.__aexit__(None, None, None)
    assert await asked(database, "select close_reason, close_code, count(*) from session group by 1, 2") == [
        ("restart", 1012, 20)
    ]


async def test_a_database_that_takes_no_entry_keeps_newcomers_out_and_nobody_else(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as made, session(made.ws_port, "u1") as (here, _):
        await asked(database, "alter table session rename to away")
        answer = await turned_away(made.ws_port)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert problem(answer.body)[0] == "ledger"
        await publish(vhost, request("u1", "p1"))
        assert (await here.read_json())["id"] == "p1"
        await asked(database, "alter table away rename to session")
        await until_asked(database, "select count(*) > 0 from who_is_online", [(True,)])
        async with asyncio.timeout(20):
            while True:
                try:
                    async with session(made.ws_port, "u3"):
                        break
                except InvalidStatus:
                    await asyncio.sleep(0.05)


async def test_a_new_token_is_in_the_ledger(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as made, session(made.ws_port, "u1") as (here, _):
        await here.send_json({"type": "refresh", "token": token("u1", 7200, jti="t2")})
        assert (await here.read_json())["type"] == "ok"
        await until_asked(database, "select jti from session", [("t2",)])


async def test_closed_sessions_leave_with_the_log_and_open_ones_stay(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as made, session(made.ws_port, "u1"):
        async with session(made.ws_port, "u2"):
            pass
        await until_asked(database, "select count(*) from session where closed_at is not null", [(1,)])
        await asked(
            database,
            "update session set opened_at = opened_at - interval '40 days', closed_at = closed_at - interval '31 days'",
        )
        # Another upkeep may be under way, at the bridge's start: this one skips then.
        async with asyncio.timeout(20):
            while await asked(database, "select user_id from session") != [("u1",)]:
                await Upkeep(database).run_once(30)


async def test_a_process_that_was_taken_for_dead_and_wakes_up_lets_its_sessions_come_anew(
    vhost: str, database: str
) -> None:
    ends = "select close_reason from session_history"
    async with (
        process(vhost, database) as first,
        standby(vhost, database),
        client(first.ws_port, token("u1")) as here,
    ):
        await until_asked(database, "select user_id from who_is_online", [("u1",)])
        first.signal(signal.SIGSTOP)
        await until_asked(database, ends, [("node_died",)])
        first.signal(signal.SIGCONT)
        assert (await here.ended())[0] == 1006
        await until_asked(database, ends, [("vanished",)])


def test_statements_of_one_user_read_only_that_users_rows_whatever_the_statistics_say(database: str) -> None:
    """They were taken when hardly any session was open."""
    filled = """
        insert into session (session, user_id, node, boot, opened_at, closed_at, mode, expires_at)
        select %(kind)s || n, 'u' || n, 'n1', 'b1', now(), %(closed)s::timestamptz, 'bridge.bare', now()
        from generate_series(1, %(count)s) n
        """
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("alter table session set (autovacuum_enabled = false)")
        conn.execute("select claim_node('n1', 'b1', null)")
        conn.execute(filled, {"kind": "old", "closed": "2026-01-01", "count": 20_000})
        conn.execute("analyze session")
        conn.execute(filled, {"kind": "open", "closed": None, "count": 3_000})
        asked: list[tuple[str, LiteralString | str, dict[str, object]]] = [
            ("unwant", "select * from unwant_sessions(%(user)s, null, 'disconnected')", {"user": "u7"}),
            (
                "unwant one",
                "select * from unwant_sessions(null, %(name)s, 'disconnected')",
                {"name": "open8"},
            ),
            ("live", people._LIVE, {"user": "u7", "limit": 10}),
            ("ended", people._ENDED, {"user": "u7", "limit": 10}),
            (
                "holders",
                directory._HOLDERS.replace("%s", "%(users)s", 1).replace("%s", "'b2'"),
                {"users": ["u7"]},
            ),
        ]
        for name, query, given in asked:
            with conn.transaction():
                assert conn.execute(query.encode(), given).fetchall(), name
                found = conn.execute(
                    "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'session'"
                ).fetchone()
                assert found is not None
                assert found[0] < 20, name
