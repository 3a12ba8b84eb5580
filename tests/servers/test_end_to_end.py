"""From a real queue to real WebSockets and a real table: what users of every kind see."""

from __future__ import annotations

import asyncio
import json

import aio_pika
import psycopg
import pytest

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.outbox import Message
from bridge.adapters.amqp.producer import Producer, outcomes
from bridge.adapters.amqp.topology import PUSH
from tests.support.amqp import outbox
from tests.support.bridges import (
    bridge,
    counted,
    endings,
    final_rows,
    get,
    publish,
    request,
    rows,
    rows_when,
    token,
)
from tests.support.clients import client
from tests.support.queues import ENVELOPE, channel, raw_deliveries, ready_messages


async def dead_letters(url: str, count: int) -> list[aio_pika.abc.AbstractIncomingMessage]:
    async with channel(url) as open_channel:
        queue = await open_channel.get_queue("push.dead")
        found: list[aio_pika.abc.AbstractIncomingMessage] = []
        async with asyncio.timeout(10):
            while len(found) < count:
                message = await queue.get(no_ack=True, fail=False)
                if message is not None:
                    found.append(message)
        return found


async def test_a_push_is_on_both_screens_in_sql_and_back_on_amqp(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b:
        async with (
            client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as laptop,
            client(b.ws_port, token("u1")) as phone,
            client(b.ws_port, token("u2")) as stranger,
            Producer.connect(vhost) as producer,
        ):
            assert (await laptop.read_json())["type"] == "welcome"
            body = {"id": "p1", "to": {"user": "u1"}, "event": "hello", "data": {"text": "grüße"}}
            receipts = await producer.request(json.dumps(body).encode(), 10)
            assert await laptop.read_json() == {
                "type": "push", "id": "p1", "event": "hello", "data": {"text": "grüße"},
            }  # fmt: skip
            assert json.loads(await phone.read()) == {"text": "grüße"}
            [receipt] = receipts
            assert (receipt["push_id"], receipt["user_id"]) == ("p1", "u1")
            assert (receipt["outcome"], receipt["reason"], receipt["final"]) == ("received", "pong", True)
            [row] = await final_rows(database, 1)
            assert (row["push_id"], row["user_id"], row["outcome"]) == ("p1", "u1", "received")
            assert row["published_at"] <= row["taken_at"] <= row["written_at"] <= row["proven_at"]
            assert (row["sessions"], row["node"]) == (2, "n1")
            assert row["attempts"] in (1, 2), "the second device may get it after the first has proven it"
            await producer.publish(json.dumps(request("u2", "p2")).encode())
            assert json.loads(await stranger.read()) == {"n": "p2"}, "and nothing of u1's came before it"
    assert await ready_messages(vhost, "push.requests") == 0


async def test_an_ack_frame_is_the_proof_that_acked_asks_for(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as c:
        await c.read()
        await publish(vhost, request("u1", "p1", confirm="acked"))
        push = await c.read_json()
        assert not any(row["final"] for row in await rows(database))
        await c.send_json({"type": "ack", "id": push["id"]})
        assert endings(await final_rows(database, 1)) == {("p1", "u1"): ("acked", "ack_frame")}


async def test_every_outcome_comes_on_the_exchange_by_outcome_and_event(vhost: str, database: str) -> None:
    async with bridge(vhost, database):
        seen: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        listening = asyncio.Event()

        async def tail() -> None:
            stream = outcomes(vhost, "offline.order")
            listening.set()
            async for receipt in stream:
                await seen.put(receipt)

        task = asyncio.create_task(tail())
        await listening.wait()
        try:
            async with asyncio.timeout(15):
                # The queue of the tail is bound some time after it began: push until one comes.
                for i in range(1000):
                    await publish(
                        vhost,
                        request("away", f"other{i}", event="else"),
                        request("away", f"p{i}", event="order"),
                    )
                    if not seen.empty():
                        break
                receipt = await seen.get()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert str(receipt["push_id"]).startswith("p")
        assert (receipt["outcome"], receipt["event"], receipt["final"]) == ("offline", "order", True)


async def test_of_a_batch_the_wrong_elements_are_dead_letters_and_the_others_arrive(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        batch = [
            request("u1", "ok1"),
            {"id": "two", "to": {"user": "u1", "all": True}, "data": 1},
            {"id": "half", "to": {"user": "u"}, "fallback": {"after": 5}, "data": 1},
            request("u1", "ok2"),
        ]
        await publish(vhost, batch)
        assert [json.loads(m)["n"] for m in await c.read_many(2)] == ["ok1", "ok2"]
        found = await final_rows(database, 4)
        assert endings(found) == {
            ("ok1", "u1"): ("received", "pong"),
            ("ok2", "u1"): ("received", "pong"),
            ("two", None): ("rejected", "invalid"),
            ("half", None): ("rejected", "invalid"),
        }
        details = {row["push_id"]: row["detail"] for row in found}
        assert "to" in details["two"]
        assert "fallback.routing_key" in details["half"]
        letters = {m.headers["x-push-id"]: m for m in await dead_letters(vhost, 2)}
        assert json.loads(letters["two"].body) == batch[1]
        assert letters["half"].headers["x-push-reason"] == "invalid"
        assert "fallback.routing_key" in str(letters["half"].headers["x-push-detail"])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"not json", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"[]", "invalid"),
        (b'{"id":"x","to":{"user":"u1"}}', "invalid"),
        (b'{"to":{"user":"u\\u0000"},"data":1}', "invalid"),
        (b'{"to":{"user":"u1"},"data":' + b"[" * 5000 + b"]" * 5000 + b"}", "invalid"),
        (b'{"to":{"user":"u1"},"data":"' + b"x" * 70_000 + b'"}', "too_large"),
        (b'{"to":{"user":"u1"},"data":"' + b"x" * 10_000_000 + b'"}', "too_large"),
    ],
    ids=["text", "bytes", "empty", "no-data", "control", "deep", "large", "10MB"],
)
async def test_whatever_is_malformed_ends_as_one_row_and_one_dead_letter(
    vhost: str, database: str, body: bytes, reason: str
) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        async with Producer.connect(vhost) as producer:
            await producer.publish(body)
            await producer.publish(json.dumps(request("u1", "after")).encode())
        assert json.loads(await c.read()) == {"n": "after"}
        found = await final_rows(database, 2)
        [row] = [r for r in found if r["outcome"] == "rejected"]
        assert (row["user_id"], row["reason"]) == (None, reason)
        assert row["detail"]
        [letter] = await dead_letters(vhost, 1)
        assert letter.headers["x-push-id"] == row["push_id"]


async def test_bytes_that_are_no_text_come_back_and_make_no_id(vhost: str, database: str) -> None:
    """Two message ids that differ in such bytes are two, and neither is taken for the other's push."""
    body = b'{"to":{"user":"away"},"data":1}'
    ids = [b"order-\xfe", b"order-\xff"]
    async with bridge(vhost, database), raw_deliveries(vhost, "answers") as answers, outbox(vhost) as box:
        for theirs in ids:
            properties = encoding.properties(
                message_id="order-~", correlation_id="order-~", reply_to="answers"
            )
            sent = Message(PUSH, b"user.away", properties.replace(b"order-~", theirs), body)
            assert not await box.publish([sent], 10)
        receipts = {}
        async with asyncio.timeout(10):
            for _ in ids:
                receipt = await answers.get()
                receipts[encoding.octets(receipt.properties.correlation_id)] = json.loads(receipt.body)
        found = await final_rows(database, 2)
    assert {row["push_id"] for row in found} == {receipts[theirs]["push_id"] for theirs in ids}
    for row in found:
        assert row["push_id"].startswith("sha256-")
        assert row["detail"].startswith("property message_id: ")
        assert row["detail"].endswith("got a byte that is not UTF-8 at position 6")


async def test_payload_only_messages_carry_their_target_in_headers(vhost: str, database: str) -> None:
    async with (
        bridge(vhost, database) as b,
        client(b.ws_port, token("u1")) as bare,
        client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as envelope,
        Producer.connect(vhost) as producer,
    ):
        await envelope.read()
        headers = {"x-push-user": "u1", "x-push-event": "e"}
        await producer.publish(
            b"plain text", headers={**headers, "x-push-id": "t"}, content_type="text/plain"
        )
        await producer.publish(
            b"\x00\xff", headers={**headers, "x-push-id": "b"}, content_type="application/octet-stream"
        )
        assert await bare.read_many(2) == ["plain text", b"\x00\xff"]
        assert await envelope.read_json() == {"type": "push", "id": "t", "event": "e", "data": "plain text"}
        assert await envelope.read_json() == {
            "type": "push", "id": "b", "event": "e", "data": "AP8=", "encoding": "base64",
        }  # fmt: skip
        await final_rows(database, 2)


async def test_the_same_push_many_times_is_one_row_and_one_frame(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        await publish(vhost, *[request("u1", "p1")] * 100)
        await publish(vhost, request("u1", "last"))
        assert [json.loads(m)["n"] for m in await c.read_many(2)] == ["p1", "last"]
        assert set(endings(await final_rows(database, 2))) == {("p1", "u1"), ("last", "u1")}
    assert await ready_messages(vhost, "push.requests") == 0


async def test_other_content_under_a_known_id_is_told_to_its_publisher_in_sql_and_in_the_metrics(
    vhost: str, database: str
) -> None:
    async with (
        bridge(vhost, database) as b,
        client(b.ws_port, token("u1")) as c,
        raw_deliveries(vhost, "answers") as answers,
        Producer.connect(vhost) as producer,
    ):
        told = []
        for number, amount in enumerate((1, 1, 2)):
            body = {"id": "p1", "to": {"user": "u1"}, "data": amount}
            await producer.publish(json.dumps(body).encode(), reply_to="answers", correlation_id=f"c{number}")
            async with asyncio.timeout(10):
                receipt = await answers.get()
            said = json.loads(receipt.body)
            told.append((receipt.properties.correlation_id, said["outcome"], said.get("repeat")))
        assert told == [("c0", "received", None), ("c1", "received", None), ("c2", "received", "differs")]
        assert await c.read() == "1"
        await counted(database, "push_id = 'p1' and differed_at > taken_at and outcome = 'received'", 1)
        _, page = await get(b.ops_port, "/metrics")
        assert b"bridge_repeats_differing_total 1.0" in page


async def test_a_push_that_expired_in_the_queue_gets_its_row(vhost: str, database: str) -> None:
    async with bridge(vhost, database):
        pass
    async with Producer.connect(vhost) as producer:
        await producer.publish(json.dumps(request("u1", "late")).encode(), expiration=0.05)
        await producer.publish(json.dumps(request("u1", "kept")).encode())
    async with asyncio.timeout(10):
        while await ready_messages(vhost, "push.fallen") == 0:
            await asyncio.sleep(0.05)
    async with bridge(vhost, database):
        assert endings(await final_rows(database, 2)) == {
            ("late", "u1"): ("expired", "queue_expiration"),
            ("kept", "u1"): ("offline", "no_session"),
        }
        [letter] = await dead_letters(vhost, 1)
        assert letter.headers["x-push-reason"] == "queue_expiration"
    assert await ready_messages(vhost, "push.fallen") == 0


async def test_order_per_user_is_the_order_of_the_queue(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b:
        async with client(b.ws_port, token("u1")) as one, client(b.ws_port, token("u2")) as two:
            names = [f"p{i:04}" for i in range(2000)]
            await publish(vhost, *[request("u1" if i % 2 else "u2", n) for i, n in enumerate(names)])
            assert [json.loads(m)["n"] for m in await one.read_many(1000)] == names[1::2]
            assert [json.loads(m)["n"] for m in await two.read_many(1000)] == names[0::2]
            assert len(endings(await final_rows(database, 2000))) == 2000


async def test_a_client_that_does_not_read_is_closed_and_costs_the_others_nothing(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database, session_bytes=200_000, session_queue=50, confirm_timeout=3.0) as b:
        async with (
            client(b.ws_port, token("slow"), receive_buffer=4096) as slow,
            client(b.ws_port, token("quick")) as quick,
        ):
            # Once it has read one, it is not being sent what is kept any more: then it would drop others for that.
            await publish(vhost, request("slow", "first"))
            assert json.loads(await slow.read()) == {"n": "first"}
            slow.freeze()
            await publish(
                vhost,
                *[{"id": f"s{i:03}", "to": {"user": "slow"}, "data": "x" * 60_000} for i in range(120)],
                *[request("quick", f"q{i:03}") for i in range(100)],
            )
            assert len(await quick.read_many(100)) == 100
            found = endings(await final_rows(database, 221))
            assert all(found[f"q{i:03}", "quick"] == ("received", "pong") for i in range(100))
            slow_ends = {found[f"s{i:03}", "slow"] for i in range(120)}
            assert ("dropped", "slow_consumer") in slow_ends
            assert slow_ends <= {
                ("dropped", "slow_consumer"),
                ("unknown", "connection_lost"),
                ("unknown", "no_proof"),
                ("offline", "no_session"),
            }, "and none of them claims a delivery"


async def test_a_session_ends_with_its_token(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b:
        async with client(b.ws_port, token("u1", ttl=5), subprotocols=ENVELOPE) as c:
            await c.read()
            bye = await c.read_json()
            if bye == {"type": "refresh"}:  # half a second before its end: between two looks, or not
                bye = await c.read_json()
            assert (bye["type"], bye["code"]) == ("bye", 4401)
            assert (await c.ended())[0] == 4401


async def test_a_proof_that_is_late_is_pending_first_and_unknown_after_the_deadline(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database, confirm_timeout=6) as b:
        async with client(b.ws_port, token("u1")) as c, Producer.connect(vhost) as producer:
            c.freeze()
            receipts = asyncio.create_task(producer.request(json.dumps(request("u1", "p1")).encode(), 10))
            found = await rows_when(database, bool)
            assert (found[0]["outcome"], found[0]["final"]) == ("pending", False)
            [row] = await final_rows(database, 1)
            assert (row["outcome"], row["reason"], row["proven_at"]) == ("unknown", "no_proof", None)
            assert [r["outcome"] for r in await receipts] == ["unknown"]
            c.thaw()
            [row] = await rows_when(database, lambda found: found[0]["proven_at"] is not None)
            assert row["outcome"] == "unknown", "a final row never changes its outcome"


async def test_operators_see_readiness_status_and_metrics(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        await publish(vhost, request("u1", "p1"))
        await c.read()
        await final_rows(database, 1)
        for port in (b.ws_port, b.ops_port):
            assert (await get(port, "/livez"))[0] == 200
            assert (await get(port, "/readyz"))[0] == 200
        status = json.loads((await get(b.ops_port, "/status"))[1])
        assert (status["node"], status["gauges"]["sessions"]) == ("n1", 1)
        page = (await get(b.ops_port, "/metrics"))[1].decode()
        assert 'bridge_outcomes_total{outcome="received",reason="pong"} 1.0' in page
        assert "bridge_sessions 1.0" in page
        assert "u1" not in page


async def test_analysts_read_the_view_with_a_role_of_their_own(vhost: str, database: str) -> None:
    async with bridge(vhost, database):
        await publish(vhost, request("away", "p1"))
        await final_rows(database, 1)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("set role bridge_reader")
        counted = connection.execute("select count(*) from delivery").fetchone()
        assert counted == (1,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("delete from delivery_log")


async def test_a_quiet_session_hears_a_heartbeat_in_the_time_that_its_welcome_says(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as c:
        promised = (await c.read_json())["heartbeat"]
        async with asyncio.timeout(promised + 2):
            assert json.loads(await c.connection.recv()) == {"type": "heartbeat"}
