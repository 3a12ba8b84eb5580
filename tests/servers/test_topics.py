"""Topics on real servers: frames, claims, two nodes, and users who have just left."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from typing import Any

import psycopg

from bridge.adapters.postgres.upkeep import Upkeep
from tests.servers.test_kept import control
from tests.servers.test_revocations import command
from tests.support.bridges import (
    bridge,
    endings,
    final_rows,
    get,
    process,
    publish,
    request,
    rows,
    token,
)
from tests.support.clients import Client, client
from tests.support.queues import ENVELOPE


def to(topic: str, push_id: str, **more: object) -> dict[str, object]:
    return {"id": push_id, "to": {"topic": topic}, "data": {"n": 1}, **more}


async def member(stack: AsyncExitStack, port: int, user: str, **claims: Any) -> Client:
    """A client that has its welcome."""
    given = token(user, **claims)
    one = await stack.enter_async_context(client(port, given, subprotocols=ENVELOPE))
    assert (await one.read_json())["type"] == "welcome"
    return one


async def asks(one: Client, word: str, topic: str) -> Any:
    await one.send_json({"type": word, "topic": topic, "ref": topic})
    return await one.read_json()


async def subscriptions(database: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        query = "select topic, user_id, left_at is null from subscription order by 1, 2"
        return await (await conn.execute(query)).fetchall()


async def until_subscribed(database: str, expected: list[tuple[Any, ...]]) -> None:
    async with asyncio.timeout(20):
        while await subscriptions(database) != expected:
            await asyncio.sleep(0.05)


async def test_subscribers_on_two_nodes_get_it_and_have_a_row_each(vhost: str, database: str) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(bridge(vhost, database, node="a"))
        other = await stack.enter_async_context(bridge(vhost, database, node="b"))
        claimed = await member(stack, first.ws_port, "u1", topics=["room.7"])
        asked = await member(stack, other.ws_port, "u2", subscribe=["room.*"])
        stranger = await member(stack, other.ws_port, "u3")
        assert await asks(asked, "subscribe", "room.7") == {"type": "ok", "ref": "room.7"}
        assert (await asks(stranger, "subscribe", "room.7"))["code"] == "forbidden"
        await publish(vhost, to("room.7", "p1"), to("room.8", "p2"))
        for one in (claimed, asked):
            assert await one.read_json() == {
                "type": "push",
                "id": "p1",
                "topic": "room.7",
                "event": "message",
                "data": {"n": 1},
            }
        assert endings(await final_rows(database, 3)) == {
            ("p1", "u1"): ("received", "pong"),
            ("p1", "u2"): ("received", "pong"),
            ("p2", None): ("offline", "nobody"),
        }
        found = {(r["push_id"], r["user_id"]): (r["topic"], r["holder"]) for r in await rows(database)}
        assert found == {
            ("p1", "u1"): ("room.7", "a"),
            ("p1", "u2"): ("room.7", "b"),
            ("p2", None): ("room.8", None),
        }
        _, told = await get(other.ops_port, "/v1/users/u2")
        assert json.loads(told)["sessions"][0]["topics"] == ["room.7"]
        code, said, errors = await command(
            "why", "p1", "u2", BRIDGE_POSTGRES_DSN=database, BRIDGE_AMQP_URL=vhost
        )
        assert code == 0, errors
        assert "to topic room.7" in said
        assert "at node b" in said
        assert await asks(asked, "unsubscribe", "room.7") == {"type": "ok", "ref": "room.7"}
        assert await subscriptions(database) == [("room.7", "u1", True)]


async def test_what_is_kept_waits_for_whoever_has_left_also_after_a_crash(vhost: str, database: str) -> None:
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(bridge(vhost, database, node="b"))
        async with process(vhost, database, node="a") as first:
            await member(stack, first.ws_port, "u1", topics=["t"])
            gone = await member(stack, other.ws_port, "u2", topics=["t"])
            await gone.close()
            first.signal(signal.SIGKILL)
        await until_subscribed(database, [("t", "u1", False), ("t", "u2", False)])
        await publish(vhost, to("t", "p1", ttl=60), to("t", "p2"))
        assert ("p2", None) in endings(await final_rows(database, 1))
        for user in ("u1", "u2"):
            back = await member(stack, other.ws_port, user, subscribe=["t"])
            push = await back.read_json()
            assert (push["id"], push["topic"]) == ("p1", "t")
            assert (await asks(back, "subscribe", "t"))["type"] == "ok"
        assert endings(await final_rows(database, 3))[("p1", "u1")] == ("received", "pong")
        assert await subscriptions(database) == [("t", "u1", True), ("t", "u2", True)]


async def test_upkeep_forgets_who_left_long_ago(vhost: str, database: str) -> None:
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(bridge(vhost, database))
        gone = await member(stack, made.ws_port, "u1", topics=["t"])
        await member(stack, made.ws_port, "u2", topics=["t"])
        await gone.close()
        await until_subscribed(database, [("t", "u1", False), ("t", "u2", True)])
        async with asyncio.timeout(20):  # another upkeep may be under way: this one skips then
            while len(await subscriptions(database)) != 1:
                await Upkeep(database, 0.0).run_once(30)
        assert await subscriptions(database) == [("t", "u2", True)]


async def test_without_a_database_topics_work_as_well(vhost: str, database: str) -> None:
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(bridge(vhost, database, delivery_log="stdout"))
        one = await member(stack, made.ws_port, "u1", subscribe=["#"])
        assert (await asks(one, "subscribe", "t"))["type"] == "ok"
        await publish(vhost, to("t", "p1"))
        assert (await one.read_json())["topic"] == "t"


def test_subscribers_are_looked_up_by_index_whatever_the_statistics_say(database: str) -> None:
    """They were taken, and the plan was made, when nobody was subscribed."""
    asks = "select count(*) from topic_subscribers('hot', '', 'b1', %s, 100000)"
    read = """
        select coalesce(sum(seq_tup_read), 0), sum(seq_tup_read + coalesce(idx_tup_fetch, 0))
        from pg_stat_xact_user_tables where relname in ('subscription', 'session')
        """
    users = 2_000
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("alter table subscription set (autovacuum_enabled = false)")
        conn.execute("alter table session set (autovacuum_enabled = false)")
        conn.execute("analyze subscription, session")
        for _ in range(7):
            conn.execute(asks, (60.0,))
        conn.execute(
            """
            insert into session (session, user_id, node, boot, opened_at, mode, expires_at)
            select 's' || n, 'u' || n, 'n2', 'b2', now(), 'bridge.bare', now() from generate_series(1, %(users)s) n
            """,
            {"users": users},
        )
        conn.execute(
            """
            insert into subscription (topic, user_id, session, left_at)
            select 'hot', 'u' || n, 's' || n, case when n %% 2 = 0 then clock_timestamp() end
            from generate_series(1, %(users)s) n
            """,
            {"users": users},
        )
        for within, found in ((60.0, users), (0.0, users // 2)):
            with conn.transaction():
                assert conn.execute(asks, (within,)).fetchall() == [(found,)]
                [(scanned, rows_read)] = conn.execute(read).fetchall()
            assert scanned == 0
            assert rows_read <= 5 * users, "each is looked up, not compared with all others"


async def test_last_values_come_first_and_are_recalled_expired_and_replaced(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(bridge(vhost, database, node="a"))
        other = await stack.enter_async_context(bridge(vhost, database, node="b"))
        kept = [
            to("t", "p1", retain=True),
            to("t", "p2", retain=True, event="b", ttl=3600),
            to("t", "p3", retain=True),
            to("t", "p4", retain=True, event="c"),
            to("t", "p5", retain=True, event="d", ttl=0.001),
        ]
        await publish(vhost, *kept)
        await final_rows(database, 5)
        asked = await member(stack, other.ws_port, "u1", subscribe=["#"])
        assert (await asks(asked, "subscribe", "t"))["type"] == "ok"
        assert [(await asked.read_json())["id"] for _ in range(3)] == ["p2", "p3", "p4"]
        found = endings(await final_rows(database, 8))
        assert {key: end for key, end in found.items() if key[1] == "u1"} == {
            ("p2", "u1"): ("received", "pong"),
            ("p3", "u1"): ("received", "pong"),
            ("p4", "u1"): ("received", "pong"),
        }
        async with control(vhost) as say:
            await say({"type": "recall", "push_id": "p4"})
        assert await asked.read_json() == {"type": "withdraw", "id": "p4"}
        claimed = await member(stack, first.ws_port, "u2", topics=["t"])
        assert [(await claimed.read_json())["id"] for _ in range(2)] == ["p2", "p3"]
        await publish(vhost, to("t", "p6"))
        assert (await claimed.read_json())["id"] == "p6"


async def test_last_values_are_looked_up_by_index_whatever_the_statistics_say(
    vhost: str, database: str
) -> None:
    """Topics had none when the plan was made."""
    asks = "select count(*) from last_values(%s, %s, %s, 100, 65536)"
    read = """
        select coalesce(sum(seq_tup_read), 0), sum(seq_tup_read + coalesce(idx_tup_fetch, 0))
        from pg_stat_xact_user_tables where relname like 'retained' or relname like 'delivery_log%%'
        """
    params = ([f"t.{n}" for n in range(50)], [f"u{n}" for n in range(50)], [0] * 50)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("alter table retained set (autovacuum_enabled = false)")
        conn.execute("analyze retained")
        for _ in range(7):
            conn.execute(asks, params)
        conn.execute(
            """
            insert into retained (topic, event, position, tenant, push_id, day, published_at, until, confirm, encoding,
                data, ttl, ack_within, first_device, app_id, traceparent, fingerprint)
            select 't.' || n % 1000, 'e' || n, n, '', 'p' || n, log_today(), now(), now() + interval '1 day', 2, 'json',
                '1', 0, 0, false, '', '', 0
            from generate_series(1, 20000) n
            """
        )
        with conn.transaction():
            assert conn.execute(asks, params).fetchall() == [(1000,)]
            [(scanned, rows_read)] = conn.execute(read).fetchall()
        assert scanned == 0
        assert rows_read <= 5 * 1000, "each is looked up, not compared with all others"
    async with bridge(vhost, database) as made, AsyncExitStack() as stack:
        one = await member(stack, made.ws_port, "u1", topics=["t.7"])
        events = [(await one.read_json())["event"] for _ in range(20)]
        assert events == [f"e{n}" for n in range(7, 20_000, 1000)]


async def test_upkeep_drops_last_values_that_are_over(vhost: str, database: str) -> None:
    async with bridge(vhost, database):
        await publish(vhost, to("t", "p1", retain=True, ttl=0.001), to("t", "p2", retain=True, event="b"))
        await final_rows(database, 2)
        async with (
            await psycopg.AsyncConnection.connect(database, autocommit=True) as conn,
            asyncio.timeout(20),
        ):
            while True:
                await Upkeep(database, 0.0).run_once(30)
                left = await (await conn.execute("select push_id from retained")).fetchall()
                if left == [("p2",)]:
                    break


async def test_a_last_value_that_the_database_does_not_take_holds_up_nobody(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(bridge(vhost, database))
        one = await member(stack, made.ws_port, "u1", topics=["t"])
        await publish(vhost, to("t", "p1", retain=True), app_id="a\0b")
        assert (await one.read_json())["id"] == "p1"
        conn = await stack.enter_async_context(await psycopg.AsyncConnection.connect(database))
        held = await (await conn.execute("select push_id, app_id from retained for update")).fetchall()
        assert held == [("p1", "ab")]
        await publish(vhost, to("t", "p2", retain=True), request("u1", "p3"))
        assert [(await one.read_json())["id"] for _ in range(2)] == ["p3", "p2"]
        await final_rows(database, 3)
        await conn.rollback()
        left = await (await conn.execute("select push_id from retained")).fetchall()
        assert left == [("p1",)]
