"""Streams of events on real servers: what their clients prove, and what rows say where they prove nothing."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import psycopg

from tests.servers.test_revocations import revoke
from tests.support.bridges import bridge, endings, final_rows, publish, request, rows, token
from tests.support.streams import Stream, asked, stream


async def welcomed(opened: Stream) -> Any:
    frame = await opened.frame()
    assert frame["type"] == "welcome"
    return frame


async def test_a_stream_that_proves_nothing_ends_a_push_as_written(vhost: str, database: str) -> None:
    async with (
        bridge(vhost, database, confirm_timeout=1.0) as running,
        stream(running.ws_port, token("u1")) as one,
    ):
        await welcomed(one)
        await publish(
            vhost,
            request("u1", "p 1"),
            request("u1", "p2", confirm="acked"),
            request("u1", "p3", confirm="written"),
        )
        seen = [await one.frame("ping") for _ in range(3)]
        assert [frame["id"] for frame in seen] == ["p 1", "p2", "p3"]
        assert one.last == "p3"
        assert endings(await final_rows(database, 3)) == {
            ("p 1", "u1"): ("written", "no_proof_possible"),
            ("p2", "u1"): ("written", "no_proof_possible"),
            ("p3", "u1"): ("written", "handed_over"),
        }
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
            found = await (await conn.execute("select mode, user_id from session")).fetchall()
        assert found == [("sse", "u1")]


async def test_a_client_that_answers_pings_and_acks_proves_as_a_websocket_does(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as running, stream(running.ws_port, token("u1")) as one:
        await welcomed(one)
        await publish(vhost, request("u1", "p1"))
        assert (await one.frame())["id"] == "p1"
        ping = await one.frame()
        assert await one.say(pong="00000000") == 404
        assert await one.say(pong=ping["payload"], key=one.key + "x") == 404
        assert await one.say(pong=ping["payload"]) == 204
        await publish(vhost, request("u1", "p2", confirm="acked"))
        assert (await one.frame())["id"] == "p2"
        assert await one.say(id="other") == 404
        assert await one.say(id="p2") == 204
        assert endings(await final_rows(database, 2)) == {
            ("p1", "u1"): ("received", "pong"),
            ("p2", "u1"): ("acked", "ack_frame"),
        }


async def test_it_resumes_after_the_last_event_that_it_names_and_the_row_stays_kept(
    vhost: str, database: str
) -> None:
    kept = {"ttl": 60}
    async with bridge(vhost, database, confirm_timeout=0.5) as running:
        async with stream(running.ws_port, token("u1")) as one:
            assert (await welcomed(one))["complete"]
            await publish(vhost, request("u1", "p1", **kept), request("u1", "p2", **kept))
            assert [(await one.frame("ping"))["id"] for _ in range(2)] == ["p1", "p2"]
            while [(row["outcome"], row["reason"]) for row in await rows(database)] != [
                ("stored", "no_proof_possible")
            ] * 2:
                await asyncio.sleep(0.05)
        await publish(vhost, request("u1", "p3", **kept))
        while len(await rows(database)) < 3 or (await rows(database))[-1]["outcome"] != "stored":
            await asyncio.sleep(0.05)
        async with stream(running.ws_port, token("u1"), "Last-Event-ID: p2") as one:
            assert (await welcomed(one))["complete"]
            assert (await one.frame("ping"))["id"] == "p3", "p1 and p2 were seen, it says"
        async with stream(running.ws_port, token("u1")) as one:
            await welcomed(one)
            assert [(await one.frame("ping"))["id"] for _ in range(3)] == ["p1", "p2", "p3"]
            ping = await one.frame("push")
            assert await one.say(pong=ping["payload"]) == 204
            # What went out behind that ping has the next one.
            while (frame := await one.frame())["type"] != "ping":
                pass
            assert await one.say(pong=frame["payload"]) == 204
        assert {row["outcome"] for row in await final_rows(database, 3)} == {"received"}


async def test_a_revocation_ends_it_and_limits_refuse_it(vhost: str, database: str) -> None:
    old = token("u1", now=time.time() - 60)
    async with bridge(vhost, database, max_sessions_per_address=1) as running:
        async with stream(running.ws_port, old) as one:
            await welcomed(one)
            refused = await asked(running.ws_port, "GET", f"/sse?token={token('u1')}")
            assert refused.status == 429
            await refused.leave()
            await revoke(running.ops_port, user="u1", before=int(time.time()))
            bye = await one.frame("heartbeat")
            assert (bye["type"], bye["code"], bye["reason"]) == ("bye", 4403, "revoked")
            assert await one.frame() is None
        again = await asked(running.ws_port, "GET", "/sse", f"Authorization: Bearer {old}")
        assert again.status == 401
        await again.leave()
        nothing = await asked(running.ws_port, "GET", "/sse")
        assert nothing.status == 401
        assert b"in the first message" not in await nothing.body()
        await nothing.leave()


async def test_on_two_nodes_the_owner_hears_that_nothing_can_be_proven_and_acks_come_to_either(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(bridge(vhost, database, node=node, confirm_timeout=1.0))
            for node in ("a", "b")
        ]
        streams = [await stack.enter_async_context(stream(one.ws_port, token("u1"))) for one in nodes]
        for one in streams:
            await welcomed(one)
        await publish(vhost, request("u1", "p1"), request("u1", "p2", confirm="acked"))
        for one in streams:
            assert [(await one.frame("ping"))["id"] for _ in range(2)] == ["p1", "p2"]
        # Each is acked at the node that does not have its session.
        assert await streams[0].say(nodes[1].ws_port, id="p2") == 204
        assert await streams[1].say(nodes[0].ws_port, id="p2") == 204
        assert await streams[0].say(nodes[1].ws_port, key="nobody.s.k", id="p2") == 404
        assert endings(await final_rows(database, 2)) == {
            ("p1", "u1"): ("written", "no_proof_possible"),
            ("p2", "u1"): ("acked", "ack_frame"),
        }


async def test_without_a_ttl_a_connection_that_is_lost_before_the_time_is_over_leaves_it_unknown(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as running:
        async with stream(running.ws_port, token("u1")) as one:
            await welcomed(one)
            await publish(vhost, request("u1", "p1"))
            assert (await one.frame())["id"] == "p1"
        assert endings(await final_rows(database, 1)) == {("p1", "u1"): ("unknown", "connection_lost")}
