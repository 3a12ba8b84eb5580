"""Fallbacks on real servers: what is published when nobody proves a push, once, and by whom."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import psycopg
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.listening import listening
from bridge.adapters.amqp.fallbacks import fallback_id
from bridge.core.model.rows import RowKey
from bridge.devservers import Servers
from tests.servers.test_hello import ROOT, line, started
from tests.servers.test_kept import control
from tests.support.bridges import (
    bridge,
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
from tests.support.broker_settings import memory_alarm
from tests.support.clients import client
from tests.support.queues import ENVELOPE, channel

Events: TypeAlias = "asyncio.Queue[AbstractIncomingMessage]"
AFTER = {"after": 1, "routing_key": "mail"}


@asynccontextmanager
async def fallbacks(url: str, key: str = "#") -> AsyncIterator[Events]:
    """What reaches the exchange push.fallback from now on."""
    seen: Events = asyncio.Queue()
    async with channel(url) as opened:
        await opened.declare_exchange("push.fallback", "topic", durable=True)
        queue = await opened.declare_queue(exclusive=True)
        await queue.bind("push.fallback", key)
        await queue.consume(seen.put, no_ack=True)
        yield seen


async def next_one(events: Events) -> AbstractIncomingMessage:
    async with asyncio.timeout(20):
        return await events.get()


async def noted(database: str, count: int) -> list[dict[str, Any]]:
    """Wait until so many fallbacks are noted; returns all rows."""
    return await rows_when(
        database, lambda found: sum(row["fallback_at"] is not None for row in found) >= count
    )


async def kept_bytes(database: str) -> list[int | None]:
    """How much data each row has."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        query = "select octet_length(payload) from delivery_log order by push_id, user_id"
        return [size for (size,) in await (await conn.execute(query)).fetchall()]


async def execute(database: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        await conn.execute(statement.encode())


async def test_it_is_published_for_a_user_who_is_absent_and_not_for_one_who_has_got_it(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as made, fallbacks(vhost) as events:
        async with client(made.ws_port, token("here"), subprotocols=ENVELOPE) as here:
            await here.read_json()
            began = time.time()
            to = {"users": ["here", "away"]}
            await publish(
                vhost,
                request("", "p1", to=to, fallback=AFTER, meta={"lang": "de"}, tenant="shop", event="order"),
                app_id="orders",
            )
            assert (await here.read_json())["id"] == "p1"
            message = await next_one(events)
        assert time.time() - began >= 1
        body = json.loads(message.body)
        published_at = body.pop("published_at")
        assert body == {
            "id": "p1",
            "user": "away",
            "tenant": "shop",
            "event": "order",
            "data": {"n": "p1"},
            "meta": {"lang": "de"},
            "topic": None,
            "outcome": "offline",
            "reason": "no_session",
        }
        assert published_at.endswith("Z")
        assert message.message_id == fallback_id(RowKey("shop", "p1", "away"))
        assert (message.app_id, message.type, message.content_type, message.delivery_mode) == (
            "orders",
            "push.fallback",
            "application/json",
            2,
        )
        assert message.timestamp is not None
        assert message.headers["tenant"] == "shop"
        found = {row["user_id"]: row for row in await noted(database, 1)}
        assert found["here"]["fallback_at"] is None
        assert found["away"]["fallback_due"] is None
        assert found["away"]["outcome"] == "offline"
        assert await kept_bytes(database) == [None, None]
        assert events.empty()


async def test_what_nobody_has_bound_counts_as_published_and_is_told(vhost: str, database: str) -> None:
    async with process(vhost, database) as made:
        await publish(vhost, request("away", "p1", fallback=AFTER))
        await noted(database, 1)
        _, page = await get(made.ops_port, "/metrics")
        counts = [line for line in page.decode().splitlines() if line.startswith("bridge_fallbacks_total")]
        assert counts == [
            'bridge_fallbacks_total{result="published"} 0.0',
            'bridge_fallbacks_total{result="unroutable"} 1.0',
            'bridge_fallbacks_total{result="owed"} 0.0',
        ]


async def test_a_kept_push_stays_in_the_mailbox_and_a_proof_in_time_cancels(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as made, fallbacks(vhost) as events:
        later = {"after": 3600, "routing_key": "mail"}
        await publish(
            vhost,
            request("u1", "p1", ttl=600, fallback=AFTER),
            request("u1", "p2", ttl=600, fallback=later),
        )
        assert json.loads((await next_one(events)).body)["outcome"] == "stored"
        found = await noted(database, 1)
        assert [row["fallback_due"] is None for row in found] == [True, False]
        async with client(made.ws_port, token("u1"), subprotocols=ENVELOPE) as user:
            assert [(await user.read_json()).get("id") for _ in range(3)] == [None, "p1", "p2"]
            ends = endings(await final_rows(database, 2))
        assert set(ends.values()) == {("received", "pong")}
        assert [row["fallback_due"] for row in await rows(database)] == [None, None]
        assert events.empty()


async def test_a_late_proof_and_a_recall_cancel(vhost: str, database: str) -> None:
    later = {"after": 3600, "routing_key": "mail"}
    async with bridge(vhost, database, confirm_timeout=1) as made:
        async with client(made.ws_port, token("u1"), subprotocols=ENVELOPE) as user:
            await user.read_json()
            user.freeze()
            await publish(vhost, request("u1", "p1", fallback=later), request("u2", "p2", fallback=later))
            found = await final_rows(database, 2)
            assert [(row["outcome"], row["fallback_due"] is None) for row in found] == [
                ("unknown", False),
                ("offline", False),
            ]
            assert None not in await kept_bytes(database)
            user.thaw()
            async with asyncio.timeout(20):
                while [row["fallback_due"] is None for row in await rows(database)] != [True, False]:
                    await asyncio.sleep(0.05)
        async with control(vhost) as say:
            await say({"type": "recall", "push_id": "p2"})
        assert [row["fallback_due"] for row in await rows(database)] == [None, None]
        assert await kept_bytes(database) == [None, None]


async def test_a_bridge_that_is_killed_before_it_could_note_it_is_followed_by_the_same_message(
    vhost: str, database: str
) -> None:
    await execute(
        database,
        """
        create function refuse() returns trigger language plpgsql as $$
        begin
            if new.fallback_at is not null then raise exception 'not now'; end if;
            return new;
        end $$;
        create trigger refuse before update on delivery_log for each row execute function refuse();
        """,
    )
    async with fallbacks(vhost) as events:
        async with process(vhost, database, node="a") as killed:
            await publish(vhost, request("away", "p1", fallback=AFTER))
            first = await next_one(events)
            await asyncio.sleep(3)
            assert events.empty(), "it is not published again while its process lives"
            await killed.kill()
        await execute(database, "drop trigger refuse on delivery_log")
        async with bridge(vhost, database, node="b"):
            second = await next_one(events)
            await noted(database, 1)
        assert (first.message_id, first.body) == (second.message_id, second.body)
        assert events.empty()


async def test_two_nodes_publish_each_once(vhost: str, database: str) -> None:
    names = [f"p{i:03}" for i in range(300)]
    async with (
        bridge(vhost, database, node="a"),
        bridge(vhost, database, node="b"),
        fallbacks(vhost) as events,
    ):
        await publish(vhost, *(request("away", name, fallback=AFTER) for name in names))
        await noted(database, len(names))
        got = [json.loads((await next_one(events)).body)["id"] for _ in names]
        assert sorted(got) == names
        assert events.empty()


async def test_what_another_node_has_shown_needs_no_fallback_while_its_ack_is_awaited(
    vhost: str, database: str
) -> None:
    soon = {"after": 5, "routing_key": "mail"}
    async with (
        bridge(vhost, database, node="a") as taker,
        bridge(vhost, database, node="b") as other,
        fallbacks(vhost) as events,
    ):
        await publish(vhost, request("u1", "p1", ttl=600, confirm="acked", ack_within=60, fallback=soon))
        found = await rows_when(database, bool)
        reads = other if found[0]["node"] == "a" else taker
        async with client(reads.ws_port, token("u1"), subprotocols=ENVELOPE) as user:
            assert [(await user.read_json()).get("id") for _ in range(2)] == [None, "p1"]
            found = await rows_when(database, lambda found: found[0]["fallback_due"] is None)
            assert (found[0]["outcome"], found[0]["proven_at"] is None) == ("stored", False)
            assert events.empty()
            await user.send_json({"type": "ack", "id": "p1"})
            assert endings(await final_rows(database, 1)) == {("p1", "u1"): ("acked", "ack_frame")}
        assert events.empty()


async def test_while_the_broker_takes_no_publishes_it_stays_owed(
    vhost: str, database: str, servers: Servers
) -> None:
    async with bridge(vhost, database) as made, fallbacks(vhost) as events:
        await publish(vhost, request("away", "p1", fallback=AFTER))
        await final_rows(database, 1)
        servers.rabbit.evaluate(memory_alarm(True))
        try:
            await asyncio.sleep(4)
            assert [row["fallback_at"] for row in await rows(database)] == [None]
        finally:
            servers.rabbit.evaluate(memory_alarm(False))
        await next_one(events)
        await noted(database, 1)
        assert made.state[0]


class MailServer:
    """Takes mails over SMTP (RFC 5321), one after the other."""

    def __init__(self) -> None:
        self.mails: asyncio.Queue[str] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())
            await writer.drain()

        await say("220 here")
        while line := (await reader.readline()).decode().strip():
            if line.upper() == "DATA":
                await say("354 go on")
                self.mails.put_nowait((await reader.readuntil(b"\r\n.\r\n")).decode())
            await say("221 bye" if line.upper() == "QUIT" else "250 ok")


async def test_the_example_sends_a_mail(vhost: str, database: str) -> None:
    server = MailServer()
    file = ROOT / "examples" / "fallback-email" / "mail.py"
    async with listening(server.serve) as port, bridge(vhost, database):
        variables = {"BRIDGE_AMQP_URL": vhost, "SMTP_SERVER": f"127.0.0.1:{port}"}
        async with started(sys.executable, str(file), **variables) as example:
            assert await line(example) == "waiting for mail.#"
            fallback = {"after": 1, "routing_key": "mail.order"}
            await publish(vhost, request("u42", "p1", event="order.paid", fallback=fallback))
            async with asyncio.timeout(20):
                mail = await server.mails.get()
            assert await line(example) == "sent to u42@example.com"
        async with started(sys.executable, str(file), BRIDGE_AMQP_URL=vhost) as example:
            assert await line(example) == "waiting for mail.#"
            await publish(vhost, request("u42", "p2", event="order.paid", fallback=fallback))
            assert await line(example) == "From: bridge@example.com"
    assert "Subject: You have missed: order.paid" in mail
    assert fallback_id(RowKey("", "p1", "u42")) in mail
    assert '"n": "p1"' in mail
    assert len(file.read_text().splitlines()) <= 60
