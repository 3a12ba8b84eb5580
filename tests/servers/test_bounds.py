"""One message, one user, one operator can't stop everybody: ordinary things at their largest, on real servers."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest

from bridge.adapters.amqp.producer import Producer, PushMessage
from bridge.adapters.postgres.store import PostgresStore
from bridge.app import build as app
from bridge.core.inflight.row_of import OWED_MAX
from bridge.core.model.pushes import PushKey, Recall
from bridge.core.ports.store import MailboxAsk
from tests.support.bridges import bridge, counted, publish, token
from tests.support.clients import Client, client
from tests.support.other_sessions import ask, eventually, transaction
from tests.support.rows import EVER, NOON, kept_row, recalled, row, trimmed
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(240)


async def fill(dsn: str, query: str, *params: object) -> None:
    await ask(dsn, query, *params)
    await ask(dsn, "analyze delivery_log")


STORED = """
    insert into delivery_log (
        day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts, published_at, taken_at,
        node, boot, event, app_id, detail, traceparent, payload, owed, position, expires_at, encoding, kept_bytes)
    select d.day, '', {id}, {user}, 'stored', 'no_session', false, 2, 0, 0, now(), now(), 'n0', 'b0', 'chat', '', '',
           '', '"x"', '[]', (extract(epoch from now()) * 1000000)::bigint - 10000000 + g, {expires}, 'json', 3
    from log_day d cross join generate_series(1, {rows}) g
    """


def stored(
    rows: int, *, push_id: str = "'p' || g", user: str = "'u1'", expires: str = "now() + interval '1 h'"
) -> str:
    """SQL that stores so many rows; `g` counts them."""
    return STORED.format(id=push_id, user=user, expires=expires, rows=rows)


class Peer:
    """A client in envelope mode that has read its welcome."""

    def __init__(self, connection: Client, session: str) -> None:
        self.connection = connection
        self.session = session

    async def push(self) -> dict[str, Any]:
        """The next push."""
        while (frame := await self.connection.read_json())["type"] != "push":
            pass
        return dict(frame)


@asynccontextmanager
async def peer(made: app.Running, user: str, last: str = "") -> AsyncIterator[Peer]:
    """Connect, resuming after a push where `last` names one."""
    path = f"/ws?last={last}" if last else "/ws"
    async with client(made.ws_port, token(user), path=path, subprotocols=["bridge.v1.json"]) as connection:
        welcome = await connection.read_json()
        assert welcome["type"] == "welcome"
        yield Peer(connection, welcome["session"])


# --- what a row repeats ----------------------------------------------------------------------------------


async def test_a_message_whose_rows_all_repeat_a_megabyte_is_recorded_and_holds_nobody_up(
    vhost: str, database: str
) -> None:
    users = [f"user-{n}" for n in range(3000)]
    excluded = [uuid.uuid4().hex for _ in range(7500)]
    large = {"id": "large", "to": {"users": users, "except": excluded}, "data": "x" * 65_000, "ttl": 3600}
    async with bridge(vhost, database):
        await publish(vhost, large, {"id": "after", "to": {"user": "u1"}, "data": 1})
        await counted(database, "push_id = 'after' and final", 1)
        await counted(database, "push_id = 'large' and outcome = 'stored'", 3000)
    (size,) = await ask(
        database,
        "select sum(pg_total_relation_size(inhrelid)) from pg_inherits"
        " where inhparent in ('delivery_log'::regclass, 'push_content'::regclass)",
    )
    assert size[0] < 16 << 20, "what they share is there once"
    assert await ask(database, "select count(*) from push_content") == [(1,)]


async def test_a_session_that_is_excepted_by_a_list_of_thousands_gets_nothing_and_others_do(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as made, peer(made, "u1") as first, peer(made, "u2") as second:
        excluded = [uuid.uuid4().hex for _ in range(5000)] + [first.session]
        to = {"users": ["u1", "u2", "u3"], "except": excluded}
        await publish(vhost, {"id": "p1", "to": to, "data": 1, "ttl": 3600})
        assert (await second.push())["id"] == "p1"
        await counted(database, "user_id = 'u1' and outcome = 'stored' and reason = 'excluded'", 1)
        await publish(vhost, {"id": "p2", "to": {"user": "u1"}, "data": 1, "ttl": 3600})
        assert (await first.push())["id"] == "p2"
        async with peer(made, "u1") as again:
            assert (await again.push())["id"] == "p1", "another session of the user was not excepted"


async def test_repeats_of_large_kept_pushes_are_told_from_their_rows_without_their_data(
    vhost: str, database: str
) -> None:
    users = [f"user-{n}" for n in range(4000)]
    large = [{"id": f"p{n}", "to": {"users": users}, "data": "x" * 40_000, "ttl": 3600} for n in range(3)]
    async with bridge(vhost, database):
        await publish(vhost, *large)
        await counted(database, "outcome = 'stored'", 12_000)
        await publish(vhost, *large, {"id": "after", "to": {"user": "u1"}, "data": 1})
        await counted(database, "push_id = 'after' and final", 1)
    assert await ask(
        database, "select count(*), max(attempts) from delivery_log where push_id like 'p%'"
    ) == [(12_000, 0)]


# --- pages -----------------------------------------------------------------------------------------------


async def test_a_start_does_not_read_the_rows_of_a_broadcast_one_by_one(vhost: str, database: str) -> None:
    await fill(database, stored(200_000, push_id="'b' || g % 4", user="'u' || g"))
    async with bridge(vhost, database):
        await publish(
            vhost,
            {"id": "b1", "to": {"user": "u1"}, "data": 1},
            {"id": "new", "to": {"user": "u1"}, "data": 1},
        )
        await counted(database, "push_id = 'new' and final", 1)
    assert await ask(
        database, "select count(*) from delivery_log where push_id = 'b1' and user_id = 'u1'"
    ) == [(1,)]


async def test_ids_are_read_in_pages_and_a_push_of_many_rows_is_one_step(database: str) -> None:
    await fill(database, stored(50_000, push_id="'b' || g % 2", user="'u' || g"))
    store = PostgresStore(database)
    await store.record([row(f"p{n}") for n in range(100)])
    pages, place = 0, None
    found: set[str] = set()
    while True:
        page = await store.ids(place, 1000)
        pages += 1
        found.update(page.ids)
        place = page.next
        if place is None:
            break
    await store.close()
    assert found == {"b0", "b1", *(f"p{n}" for n in range(100))}
    assert pages <= 6, "25,000 rows of one push are not read to get past it"


async def test_a_page_looks_at_so_many_rows_and_goes_on_behind_those_that_nobody_wants(database: str) -> None:
    await fill(database, stored(5000, expires="now() - interval '1 h'"))
    store = PostgresStore(database)
    await store.record([kept_row("wanted", user="u1", position=EVER - 1)])
    after, pages = 0, 0
    while True:
        [page] = await store.mailbox([MailboxAsk("u1", after, EVER)])
        pages += 1
        if not page.more:
            break
        assert page.reached > after
        assert list(page.rows) == []
        after = page.reached
    await store.close()
    assert [r.key.push_id for r in page.rows] == ["wanted"]
    assert pages == 26


async def test_who_resumes_from_far_back_does_not_keep_others_from_their_pushes(
    vhost: str, database: str
) -> None:
    await fill(database, stored(100_000))
    await ask(
        database,
        "update delivery_log set outcome = 'received', reason = 'pong', final = true, proven_at = now(),"
        " finished_at = now() where user_id = 'u1' and position % 10 <> 0",
    )
    async with bridge(vhost, database, mailbox_pushes=1_000_000) as made:
        async with asyncio.TaskGroup() as group:
            stop = asyncio.Event()

            async def resume() -> None:
                async with peer(made, "u1", last="p1") as back:
                    while not stop.is_set():
                        await back.push()

            for _ in range(8):
                group.create_task(resume())
            await publish(vhost, {"id": "q", "to": {"user": "u2"}, "data": 1, "ttl": 3600})
            await counted(database, "push_id = 'q' and outcome = 'stored'", 1)
            async with peer(made, "u2") as other:
                assert (await other.push())["id"] == "q"
            stop.set()


async def test_a_recall_of_a_broadcast_goes_step_by_step_and_ends_all(database: str) -> None:
    await fill(database, stored(20_000, push_id="'b'", user="'u' || g"))
    store = PostgresStore(database)
    written = await recalled(store, Recall(push_id="b"), 500)
    await store.close()
    assert sum(w.applied is True for w in written) == len(written) == 20_000
    assert await ask(database, "select outcome, count(*) from delivery_log group by 1") == [
        ("recalled", 20_000)
    ]


async def test_mailboxes_that_are_far_over_a_lowered_bound_are_trimmed_step_by_step(
    vhost: str, database: str
) -> None:
    await fill(database, stored(40_000, user="'u' || g % 20"))
    async with bridge(vhost, database, mailbox_pushes=100):
        await counted(database, "outcome = 'dropped' and reason = 'mailbox_full'", 38_000)
    left = await ask(
        database, "select user_id, count(*) from delivery_log where outcome = 'stored' group by 1 order by 1"
    )
    assert {count for _, count in left} == {100}


async def test_a_step_of_a_trim_ends_no_more_than_asked(database: str) -> None:
    store = PostgresStore(database)
    await store.record([kept_row(f"p{n}", user=f"u{n % 3}", position=n + 1) for n in range(300)])
    over = await store.overfull(["u0", "u1", "u2", "u3"], 10, 1 << 30)
    assert {user for user, _ in over} == {"u0", "u1", "u2"}
    assert len(await store.trim(over, 7)) == 7
    assert await trimmed(store, ["u0"], 10, 1 << 30)
    await store.close()


# --- debts -----------------------------------------------------------------------------------------------


async def test_repeats_of_a_stored_push_are_answered_and_its_row_owes_no_more_than_so_many(
    vhost: str, database: str
) -> None:
    repeats = 3 * OWED_MAX
    body = json.dumps({"id": "p1", "to": {"user": "u1"}, "data": 1, "ttl": 3600}).encode()
    async with bridge(vhost, database, prefetch=10) as made, await aio_pika.connect(vhost) as connection:
        queue = await (await connection.channel()).declare_queue(exclusive=True)

        async def receipt() -> dict[str, Any]:
            async with asyncio.timeout(60):
                while (message := await queue.get(no_ack=True, fail=False)) is None:
                    await asyncio.sleep(0.01)
            return dict(json.loads(message.body))

        await publish(vhost, {"id": "p1", "to": {"user": "u1"}, "data": 1, "ttl": 3600})
        await counted(database, "outcome = 'stored'", 1)
        async with Producer.connect(vhost) as producer:
            for n in range(repeats):
                await producer.publish_all([PushMessage(body, reply_to=queue.name, correlation_id=f"c{n}")])
        at_once = [await receipt() for _ in range(repeats - OWED_MAX - 10)]
        assert {(r["outcome"], r["final"]) for r in at_once} == {("stored", False)}
        ((owed,),) = await ask(database, "select jsonb_array_length(owed) from delivery_log")
        assert owed <= OWED_MAX + 10, "those that were in hand may come on top"
        async with peer(made, "u1") as present:
            assert (await present.push())["id"] == "p1"
            ends = [await receipt() for _ in range(repeats - len(at_once))]
        assert sum(r["final"] and r["outcome"] == "received" for r in ends) == owed


async def test_a_row_with_very_many_debts_of_before_is_paid_bit_by_bit(vhost: str, database: str) -> None:
    await ask(database, stored(1))
    await ask(
        database,
        "update delivery_log set outcome = 'received', reason = 'pong', final = true, proven_at = now(),"
        " finished_at = now(), owed = (select jsonb_agg(jsonb_build_object('queue', 'nowhere', 'correlation_id',"
        " 'c' || i)) from generate_series(1, 20000) i)",
    )
    async with bridge(vhost, database):
        async with asyncio.timeout(90):
            while await ask(database, "select from delivery_log where owed is not null"):
                await asyncio.sleep(0.1)


# --- operators -------------------------------------------------------------------------------------------


async def test_a_row_that_an_operator_holds_stops_nothing_else_and_ends_when_it_is_let_go(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database, confirm_timeout=60.0) as made, peer(made, "u1") as mute:
        mute.connection.freeze()
        await publish(vhost, {"id": "held", "to": {"user": "u1"}, "data": 1})
        await counted(database, "push_id = 'held' and outcome = 'pending'", 1)
        async with transaction(database) as operator:
            await operator.execute("update delivery_log set detail = detail where push_id = 'held'")
            mute.connection.thaw()
            for n in range(20):
                await publish(vhost, {"id": f"p{n}", "to": {"user": "u2"}, "data": 1})
            await counted(database, "push_id like 'p%' and final", 20, 20.0)
            assert made.gate.is_open
            assert await ask(
                database, "select count(*) from delivery_log where push_id = 'held' and final"
            ) == [(0,)]
        await counted(database, "push_id = 'held' and outcome = 'received'", 1)


async def test_a_replaced_push_that_an_operator_holds_stops_nothing_and_is_replaced_when_it_is_let_go(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as made:
        same = {"ttl": 600, "collapse_key": "k", "data": 1}
        await publish(vhost, {"id": "old", "to": {"user": "u1"}, **same})
        await counted(database, "push_id = 'old' and outcome = 'stored'", 1)
        async with transaction(database) as operator:
            await operator.execute("update delivery_log set detail = detail where push_id = 'old'")
            await publish(vhost, {"id": "new", "to": {"user": "u1"}, **same})
            for n in range(20):
                await publish(vhost, {"id": f"p{n}", "to": {"user": "u2"}, **same, "collapse_key": f"k{n}"})
            await counted(database, "push_id <> 'old' and outcome = 'stored'", 21, 20.0)
            assert made.gate.is_open
            assert await ask(database, "select outcome from delivery_log where push_id = 'old'") == [
                ("stored",)
            ]
        await counted(database, "push_id = 'old' and outcome = 'superseded'", 1)


async def test_debts_in_rows_that_an_operator_holds_keep_nobody_else_waiting_for_an_answer(
    vhost: str, database: str
) -> None:
    def request(push_id: str, correlation_id: str) -> PushMessage:
        body = json.dumps({"id": push_id, "to": {"user": "u1"}, "data": 1, "ttl": 3600}).encode()
        return PushMessage(body, reply_to=queue.name, correlation_id=correlation_id)

    await fill(database, stored(200, push_id="'held' || g"))
    async with bridge(vhost, database) as made, await aio_pika.connect(vhost) as connection:
        queue = await (await connection.channel()).declare_queue(exclusive=True)
        async with Producer.connect(vhost) as producer, transaction(database) as operator:
            await operator.execute("select from delivery_log where push_id like 'held%' for update")
            await producer.publish_all([request(f"held{n}", f"held{n}") for n in range(1, 201)])
            ordinary = [
                PushMessage(
                    b'{"id":"p%d","to":{"user":"u2"},"data":1}' % n,
                    reply_to=queue.name,
                    correlation_id=str(n),
                )
                for n in range(20)
            ]
            await producer.publish_all(ordinary)
            answered: set[str | None] = set()
            async with asyncio.timeout(20):
                while len(answered) < 20:
                    message = await queue.get(no_ack=True, fail=False)
                    if message is None:
                        await asyncio.sleep(0.01)
                    else:
                        answered.add(message.correlation_id)
            assert answered == {str(n) for n in range(20)}
            assert made.gate.is_open
        await eventually(
            database, "select count(*) = 200 from delivery_log where jsonb_array_length(owed) = 1"
        )


async def test_a_day_that_an_operator_locks_holds_the_bridge_up_and_does_not_end_it(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as made:
        [(day,)] = await ask(database, "select to_char(day, 'YYYYMMDD') from log_day")
        async with transaction(database) as operator:
            await operator.execute(f"lock table delivery_log_{day} in access exclusive mode".encode())
            await publish(vhost, {"id": "p1", "to": {"user": "u1"}, "data": 1})
            await until(lambda: not made.gate.is_open, 60.0)
        await counted(database, "push_id = 'p1' and final", 1, 20.0)
        await until(lambda: made.gate.is_open, 20.0)


# --- positions -------------------------------------------------------------------------------------------


async def test_positions_never_go_back_however_many_ordinary_rows_came_since(database: str) -> None:
    store = PostgresStore(database)
    ahead = int((time.time() + 3600) * 1e6)
    await store.record([kept_row("ahead", position=ahead, taken_at=NOON)])
    await store.record([row(f"p{n}", taken_at=NOON + 1 + n / 1000) for n in range(500)])
    await fill(
        database,
        "insert into delivery_log (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,"
        " published_at, taken_at, node, boot, event, app_id, detail, traceparent)"
        " select day, '', 'o' || g, 'u', 'offline', 'no_session', true, 2, 0, 0, now(), now() + g * interval '1 ms',"
        " 'n', 'b', '', '', '', '' from log_day, generate_series(1, 10500) g",
    )
    assert await store.last_position() == ahead
    await store.close()


async def test_the_look_ups_of_a_thousand_rows_and_of_a_push_are_pages(database: str) -> None:
    await fill(database, stored(5000, push_id="'b'", user="'u' || g"))
    store = PostgresStore(database)
    page = await store.find_push(PushKey("", "b"), "", 1000)
    assert len(page.rows) == 1000
    assert page.next_user is not None
    await store.close()
