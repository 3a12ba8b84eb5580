"""Streams of events on real servers: what their clients prove, and what rows say where they prove nothing."""

from __future__ import annotations

from typing import Any

import psycopg

from bridge.core.model.sessions import CloseReason
from tests.servers.test_revocations import command
from tests.support.bridges import bridge, endings, final_rows, publish, request, rows, token
from tests.support.streams import Stream, asked, stream
from tests.support.waiting import until


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
