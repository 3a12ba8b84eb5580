"""What the metrics say of queues, log and servers, and that they say nothing where nobody knows."""

from __future__ import annotations

import asyncio
import platform
import re
import time

import aio_pika
import psycopg
import pytest

from bridge import __version__
from bridge.adapters.amqp.topology import CONTROL, DEAD, FALLEN, REQUESTS
from bridge.adapters.postgres import figures as postgres_figures
from bridge.adapters.postgres.figures import PostgresFigures
from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.postgres.upkeep import DAYS_AHEAD
from bridge.app.build import Running
from bridge.devservers import Servers
from bridge.ops import surroundings
from bridge.ops.core_form import core_form
from tests.support.amqp import RecordingIntake, consumer, declare
from tests.support.bridges import bridge, counted, final_rows, get, publish, request, token
from tests.support.clients import client
from tests.support.metrics_page import samples
from tests.support.rows import kept_row

Page = dict[tuple[str, ...], float]


async def page(running: Running) -> Page:
    return samples((await get(running.ops_port, "/metrics"))[1].decode())


async def page_with(running: Running, name: tuple[str, ...], value: float | None) -> Page:
    """Wait for a page on which a series has this value, or on which it is not."""
    async with asyncio.timeout(20):
        while (found := await page(running)).get(name) != value:
            await asyncio.sleep(0.02)
    return found


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUEUES_EVERY", "LOG_EVERY", "AGAIN"):
        monkeypatch.setattr(surroundings, name, 0.05)


async def test_queues_dead_letters_kept_pushes_partitions_and_what_runs_are_on_the_page(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as running:
        await publish(vhost, {"nonsense": 1}, request("u1", "p1", ttl=600), request("u2", "p2", ttl=600))
        await counted(database, "outcome = 'stored'", 2)
        found = await page_with(running, ("bridge_stored_rows",), 2)
        assert 0 <= found["bridge_stored_oldest_seconds",] < 60
        await page_with(running, ("bridge_partitions_ahead",), DAYS_AHEAD)
        found = await page_with(running, ("bridge_dead_letters",), 1)
        assert {q: found["bridge_queue_ready", q] for q in (REQUESTS, FALLEN, CONTROL, DEAD)} == {
            **dict.fromkeys((REQUESTS, FALLEN, CONTROL), 0),
            DEAD: 1,
        }
        assert next(n for n in found if n[0] == "bridge_build_info")[1:] == (
            core_form(),
            platform.python_version(),
            __version__,
        )
        assert found["bridge_broker_up",] == found["bridge_database_up",] == found["bridge_active",] == 1


async def test_a_count_that_stops_says_so(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PostgresStore(database)
    await store.record([kept_row(f"p{n}") for n in range(5)])
    await store.close()
    for most, wanted in ((6, (5, 0)), (5, (5, 0)), (4, (4, 1)), (1, (1, 1))):
        query = postgres_figures._STORED.replace(f"{postgres_figures.STORED_MAX}", str(most))
        with monkeypatch.context() as patched:
            patched.setattr(postgres_figures, "_STORED", query)
            figures = PostgresFigures(database, "n1")
            found = await figures.read()
            await figures.close()
        assert (found.stored, found.days_over) == wanted


async def test_messages_in_hand_are_counted_by_queue(vhost: str) -> None:
    await declare(vhost)
    intake = RecordingIntake()
    taker = consumer(vhost)
    async with taker.taking(intake):
        async with await aio_pika.connect(vhost) as connection, connection.channel() as publishing:
            for queue in (REQUESTS, REQUESTS, FALLEN, CONTROL):
                await publishing.default_exchange.publish(aio_pika.Message(b"{}"), queue)
        await intake.has(4)
        assert taker.unacked == {REQUESTS: 2, FALLEN: 1, CONTROL: 1}
        taker.ack(intake.tokens)
        assert taker.unacked == {REQUESTS: 0, FALLEN: 0, CONTROL: 0}
        await taker.stop_consuming()


async def test_what_waits_behind_the_prefetch_is_ready_and_the_rest_is_unacked(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database, prefetch=2, confirm_timeout=60) as running:
        async with client(running.ws_port, token("u1")) as c:
            await publish(vhost, request("u1", "first"))
            await c.read()
            await final_rows(database, 1)
            running.gate.shut("test", "held")
            await publish(vhost, *[request("u1", f"p{n}") for n in range(5)])
            await page_with(running, ("bridge_queue_ready", REQUESTS), 3)
            found = await page_with(running, ("bridge_queue_unacked", REQUESTS), 2)
            assert found["bridge_active",] == 1
            running.gate.clear("test")
            await page_with(running, ("bridge_queue_ready", REQUESTS), 0)


async def test_what_is_not_known_is_not_on_the_page(own_servers: Servers) -> None:
    s = own_servers
    async with bridge(s.amqp_url, s.postgres_dsn) as running:
        await page_with(running, ("bridge_partitions_ahead",), DAYS_AHEAD)
        await asyncio.to_thread(s.postgres.stop, "immediate")
        found = await page_with(running, ("bridge_partitions_ahead",), None)
        assert not [name for name in found if name[0].startswith("bridge_stored")]
        await page_with(running, ("bridge_database_up",), 0)
        await asyncio.sleep(1.0)  # RabbitMQ 3.10 may lose a queue's leader that is younger
        await asyncio.to_thread(s.rabbit.kill)
        found = await page_with(running, ("bridge_dead_letters",), None)
        assert not [name for name in found if name[0] == "bridge_queue_ready"]
        found = await page_with(running, ("bridge_broker_up",), 0)
        assert found["bridge_active",] == 0
        await asyncio.to_thread(s.postgres.start)
        await asyncio.to_thread(s.rabbit.start)
        async with asyncio.timeout(40):
            await running.gate.opened()
        found = await page_with(running, ("bridge_database_up",), 1)
        await page_with(running, ("bridge_broker_up",), 1)


async def test_kept_pushes_are_counted_by_a_small_index_and_up_to_a_bound(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            """
            insert into delivery_log (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions,
                                      attempts, node, boot, event, app_id, detail, traceparent, published_at, taken_at,
                                      finished_at, expires_at, payload, encoding, position)
            select log_today(), '', 'p' || n, 'u', case when n % 10 = 0 then 'stored' else 'received' end,
                   case when n % 10 = 0 then 'offline' else 'pong' end, n % 10 <> 0, 2, 0, 0, 'n', 'b', '', '', '', '',
                   now(), now() - make_interval(secs => n), case when n % 10 <> 0 then now() end,
                   now() + interval '1 day', '1', 'json', n
            from generate_series(1, 5000) n
            """
        )
        conn.execute("analyze delivery_log")
        figures = PostgresFigures(database, "n1")
        try:
            found = await figures.read()
            assert found.stored == 500
            assert found.oldest_taken_at == pytest.approx(time.time() - 5000, abs=10)
            conn.execute("set enable_seqscan = off")  # as the figures do
            plan = "\n".join(str(line) for (line,) in conn.execute("explain " + postgres_figures._STORED))
            assert re.search(r"Index.* Scan using delivery_log_\d+_expires_at_idx", plan), plan
            assert "Seq Scan on delivery_log" not in plan
            monkeypatch.setattr(postgres_figures, "_STORED", postgres_figures._STORED.replace("10000", "100"))
            assert (await figures.read()).stored == 100
        finally:
            await figures.close()
