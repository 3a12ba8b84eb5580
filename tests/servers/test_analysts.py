"""What analysts get: the columns of view delivery, the counted hours, and the views that are made of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from typing import Any, LiteralString

import psycopg
import pytest

from benchmarks import analytics
from bridge.adapters.postgres import migrate
from bridge.adapters.postgres.counting import Counted, Counting
from bridge.adapters.postgres.migrate import MIGRATIONS
from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.postgres.upkeep import Upkeep
from bridge.app import build as app
from bridge.core.errors import BridgeError, StoreUnavailable
from bridge.core.model.outcomes import Outcome, Proof, Reason
from bridge.core.model.rows import LateProof, RowKey
from tests.conftest import TEMPLATE, Databases
from tests.support.bridges import bridge, publish, request
from tests.support.queries import asked as ask
from tests.support.queries import until_asked
from tests.support.rows import NOON, kept_row, row

# --- Columns ---------------------------------------------------------------------------------------------

ASKED: LiteralString = (
    "select batch_id, batch_position, confirm, ttl, data_bytes, collapse_key, topic, stored_at is not null, party"
    " from delivery order by push_id"
)


@pytest.fixture
async def store(database: str) -> Any:
    made = PostgresStore(database)
    yield made
    await made.close()


async def test_the_view_tells_what_was_asked_for_and_who_is_responsible(
    database: str, store: PostgresStore
) -> None:
    await store.record(
        [
            row("a"),
            kept_row("b", expires_at=NOON - 1 + 0.5, collapse_key="k", data_bytes=7, topic="t", confirm=Proof.ACKED),
            row("c", batch_id="m", batch_position=0, data_bytes=0, confirm=Proof.WRITTEN),
            row("d", user="", outcome=Outcome.REJECTED, reason=Reason.INVALID, proven_at=None, batch_id="m",
                batch_position=1),
            row("e", outcome=Outcome.UNKNOWN, reason=Reason.CONNECTION_LOST, proven_at=None),
        ]
    )  # fmt: skip
    assert await ask(database, ASKED) == [
        (None, None, "received", None, None, None, None, False, None),
        (None, None, "acked", 0.5, 7, "k", "t", True, "peer"),
        ("m", 0, "written", None, 0, None, None, False, None),
        ("m", 1, None, None, None, None, None, False, "publisher"),
        (None, None, "received", None, None, None, None, False, "network"),
    ]


async def test_a_push_is_kept_since_it_was_first_stored_and_keeps_its_batch(
    database: str, store: PostgresStore
) -> None:
    first: LiteralString = (
        "select stored_at, batch_id, batch_position, data_bytes, outcome, party from delivery"
    )
    await store.record([row(outcome=Outcome.PENDING, batch_id="m", batch_position=3, data_bytes=9)])
    assert await ask(database, first) == [(None, "m", 3, 9, "pending", None)]
    await store.record([kept_row(reason=Reason.NO_PROOF)])
    [(stored_at, *kept)] = await ask(database, first)
    assert stored_at is not None
    assert kept == ["m", 3, 9, "stored", "peer"]
    await store.record([kept_row(reason=Reason.NO_SESSION)])
    await store.record([kept_row(outcome=Outcome.ACKED, reason=Reason.ACK_FRAME, finished_at=NOON + 9)])
    assert await ask(database, first) == [(stored_at, "m", 3, 9, "acked", None)]
    [found] = await store.find([row().key])
    assert (found.batch_id, found.batch_position, found.data_bytes) == ("m", 3, 9)


def test_an_empty_text_of_an_earlier_row_is_null(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("""
            insert into delivery_log (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions,
                attempts, published_at, taken_at, node, boot, event, app_id, detail, traceparent, collapse_key)
            select l.day, '', 'p', 'u', 'of a newer bridge', 'odd', true, 0, 1, 1, now(), now(), '', '', '', '',
                '', '', ''
            from log_day l""")
        assert conn.execute(ASKED).fetchall() == [(None, None, None, None, None, None, None, False, None)]


def test_the_columns_are_added_without_writing_a_row_again(empty_database: str) -> None:
    version = next(n for n, m in enumerate(MIGRATIONS) if m.name.endswith("_analysts.sql"))
    migrate.upgrade(empty_database, MIGRATIONS[:version])
    files: LiteralString = (
        "select inhrelid::regclass::text, pg_relation_filenode(inhrelid) from pg_inherits"
        " where inhparent = 'delivery_log'::regclass order by 1"
    )
    with psycopg.connect(empty_database, autocommit=True) as conn:
        before = conn.execute(files).fetchall()
        migrate.upgrade(empty_database)
        assert conn.execute(files).fetchall() == before != []


async def test_a_push_is_found_without_asking_for_its_party(database: str) -> None:
    plan = await ask(database, "explain select push_id, outcome, reason from delivery where push_id = 'p'")
    assert "ending" not in str(plan)


# --- Counted hours ---------------------------------------------------------------------------------------

DAY = datetime.timedelta(days=1)
HOUR = datetime.timedelta(hours=1)
KEYS = "tenant, app_id, event, outcome, reason"
BY_HAND = f"""
    select date_trunc('hour', taken_at, 'UTC'), {KEYS}, party, count(*),
        count(distinct (day, user_id)) filter (where user_id is not null), count(written_at),
        count(proven_at),
        percentile_disc(array[0.5, 0.95, 0.99]) within group (
            order by extract(epoch from taken_at - published_at)::float8),
        percentile_disc(array[0.5, 0.95, 0.99]) within group (order by case when ttl is null
            then extract(epoch from written_at - taken_at)::float8 end),
        percentile_disc(array[0.5, 0.95, 0.99]) within group (order by case when ttl is null or attempts <= 1
            then extract(epoch from proven_at - written_at)::float8 end),
        percentile_disc(array[0.5, 0.95, 0.99]) within group (order by latency_ms / 1000)
    from delivery group by 1, 2, 3, 4, 5, 6, 7 order by 1, 2, 3, 4, 5, 6
    """
COUNTED = f"""
    select hour, {KEYS}, party, pushes, users, handed, proven, array[taking_p50, taking_p95, taking_p99],
        array[writing_p50, writing_p95, writing_p99], array[proving_p50, proving_p95, proving_p99],
        array[proof_p50, proof_p95, proof_p99]
    from delivery_hourly where pushes > 0 order by 1, 2, 3, 4, 5, 6
    """
RANDOM_LOG = """
insert into delivery_log (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
    published_at, taken_at, written_at, proven_at, finished_at, node, boot, event, app_id, detail, traceparent,
    expires_at, position)
select case when n % 97 = 0 then d.day else (t.taken at time zone 'UTC')::date end, (array['', 'shop'])[1 + n % 2],
    'p' || n,
    case when n % 50 = 0 then '' else 'u' || n % 40 end, e.outcome, e.reason, e.final, 2, 1, n % 3,
    t.published, t.taken,
    case when n % 5 <> 0 then t.taken + make_interval(secs => power(random(), 4) * 9) end,
    case when n % 4 <> 0 then t.taken + make_interval(secs => 9 + power(random(), 4) * 90) end,
    case when e.final then t.taken + interval '2 hours' end, 'n1', 'b' || n % 2, (array['a', 'b', ''])[1 + n % 3],
    '', '', '',
    case when n % 7 = 0 or e.outcome = 'stored' then t.taken + interval '5 days' end, n
from generate_series(1, 4000) n
cross join (select l.day from log_day l) d
cross join lateral (select (d.day::timestamp at time zone 'UTC') - interval '3 days'
    + make_interval(secs => (n * 7919) % 300000) as taken) x
cross join lateral (
    select x.taken, x.taken - make_interval(secs => power(random(), 6) * 500) as published) t
cross join lateral (select *, row_number() over (order by outcome, reason) as place from ending offset 0) e
where e.place = 1 + n % (select count(*) from ending)
"""


def log_of_days(dsn: str) -> None:
    """Four thousand rows of every outcome in three and a half days; some are in a later day of the log."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select make_partition(day - i) from log_day, generate_series(1, 3) i")
        conn.execute(RANDOM_LOG.encode())


async def count(dsn: str, *, everything: bool = True) -> int:
    """Count until nothing is left; returns how many hours were."""
    total = 0
    while True:
        done = await Counting(dsn).run_once(everything=everything)
        total += done.hours
        if not done.left:
            return total


def agrees(counted: Sequence[Any], by_hand: Sequence[Any]) -> None:
    """Counts are equal, and latencies not more than 2.5 % off, above a tenth of a millisecond."""
    assert [c[:11] for c in counted] == [h[:11] for h in by_hand]
    for c, h in zip(counted, by_hand, strict=True):
        for about, exact in zip(c[11:], h[11:], strict=True):
            for guess, true in zip(about, exact or (None,) * 3, strict=True):
                if true is None:
                    assert guess is None
                else:
                    assert guess == pytest.approx(max(true, 0.0001), rel=0.026)


async def right(dsn: str) -> None:
    """The counted hours say what a plain count of the view says, and the days what the hours say."""
    agrees(await ask(dsn, COUNTED), await ask(dsn, BY_HAND))
    of_hours = (
        f"select (hour at time zone 'UTC')::date, {KEYS}, party,"
        " sum(pushes)::bigint, sum(handed)::bigint, sum(proven)::bigint"
        " from delivery_hourly where pushes > 0 group by 1, 2, 3, 4, 5, 6, 7 order by 1, 2, 3, 4, 5, 6"
    )
    of_days = (
        f"select day, {KEYS}, party, pushes, handed, proven from delivery_daily where pushes > 0"
        " order by 1, 2, 3, 4, 5, 6"
    )
    assert await ask(dsn, of_days) == await ask(dsn, of_hours)


async def test_the_counts_of_each_hour_are_those_of_the_log(database: str) -> None:
    log_of_days(database)
    assert await count(database) > 80
    await right(database)
    assert await count(database) == 0


async def test_ends_that_come_days_later_are_counted_in_their_hour(
    database: str, store: PostgresStore
) -> None:
    log_of_days(database)
    await count(database)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        await conn.execute(
            "update delivery_log set outcome = 'received', reason = 'pong', final = true, proven_at = now()"
            " where push_id in (select push_id from delivery_log where outcome = 'stored' order by taken_at limit 40)"
        )
        await conn.execute("delete from delivery_log where push_id in ('p12', 'p3000')")
    late = (
        await ask(
            database, "select tenant, push_id, user_id from delivery_log where final order by 2 limit 3"
        )
    )[2]
    await store.prove_late([LateProof(RowKey(*late), NOON)])
    assert 3 <= await count(database, everything=False) <= 43
    await right(database)


async def test_a_stored_push_that_is_received_four_days_later_moves_within_its_hour(
    database: str, store: PostgresStore
) -> None:
    await store.record([kept_row(taken_at=NOON, published_at=NOON)])
    await count(database)
    await ask(database, "select roll_day(day + 4) from log_day")
    await store.record([row("today")])
    await store.record([kept_row(outcome=Outcome.RECEIVED, reason=Reason.PONG, proven_at=NOON + 4 * 86400)])
    assert await count(database, everything=False) == 2
    await right(database)
    assert await ask(database, "select distinct outcome from delivery_hourly where pushes > 0") == [
        ("received",)
    ]


async def test_who_is_killed_in_the_middle_leaves_counts_as_they_were_and_the_next_one_counts(
    database: str,
) -> None:
    log_of_days(database)
    await count(database)
    before = await ask(database, COUNTED)
    await ask(
        database,
        "update delivery_log set outcome = 'unknown', reason = 'node_died', final = true where not final",
    )
    async with await psycopg.AsyncConnection.connect(database) as conn:
        due = await (await conn.execute("select at_day, at_hour from hours_to_count(false)")).fetchall()
        for day, hour in due[: len(due) // 2]:
            await conn.execute("select count_hour(%s, %s)", (day, hour))
        # Its process is gone, and its connection with it.
        await conn.rollback()
    assert await ask(database, COUNTED) == before
    assert await count(database, everything=False) == len(due)
    await right(database)


async def test_what_is_written_while_an_hour_is_counted_is_counted_after_it(
    database: str, store: PostgresStore
) -> None:
    await store.record([row("a"), row("b", outcome=Outcome.PENDING)])
    async with await psycopg.AsyncConnection.connect(database) as conn:
        # One writer has not committed when the hour is counted, another commits meanwhile.
        await conn.execute(
            "update delivery_log set sessions = 7, outcome = 'acked', reason = 'ack_frame' where push_id = 'a'"
        )
        await count(database)
        await conn.commit()
    async with await psycopg.AsyncConnection.connect(database) as conn:
        await conn.execute(
            "select count_hour(day, date_trunc('hour', taken_at, 'UTC')) from delivery_log limit 1"
        )
        await store.record([row("c"), row("b")])
        await conn.commit()
    assert await count(database, everything=False) == 1
    await right(database)


async def test_a_running_bridge_counts_what_it_takes(
    database: str, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LIMITS", dataclasses.replace(app.LIMITS, count_every=0.1, count_rest=0.0))
    async with bridge(vhost, database), bridge(vhost, database, node="n2"):
        kept = {"ttl": 60, "collapse_key": "k"}
        await publish(
            vhost, request("u1", "p1"), [request("u2", "p2", **kept), request("u3", "p3")], {"to": 1}
        )
        counts: LiteralString = (
            "select outcome, party, sum(pushes)::int from delivery_hourly where pushes > 0"
            " group by 1, 2 order by 1, 2"
        )
        ended = [("offline", "peer", 2), ("rejected", "publisher", 1), ("stored", "peer", 1)]
        await until_asked(database, counts, ended)
        await publish(vhost, request("u2", "p4", **kept))
        await until_asked(database, counts, [*ended, ("superseded", "publisher", 1)])
    await right(database)


async def test_two_nodes_that_count_at_once_count_once(database: str) -> None:
    log_of_days(database)

    async def one(conn: psycopg.AsyncConnection[Any]) -> None:
        for day, hour in await (
            await conn.execute("select at_day, at_hour from hours_to_count(true)")
        ).fetchall():
            await conn.execute("select count_hour(%s, %s)", (day, hour))

    async with (
        await psycopg.AsyncConnection.connect(database, autocommit=True) as first,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as second,
    ):
        await asyncio.gather(one(first), one(second), *(Counting(database).run_once() for _ in range(3)))
    await count(database)
    await right(database)


async def test_the_counts_of_a_day_stay_when_its_rows_are_dropped_or_detached(
    database: str, store: PostgresStore
) -> None:
    log_of_days(database)
    await count(database)
    before = await ask(database, COUNTED)
    await ask(database, "update delivery_log set final = true, owed = null, fallback_due = null, outcome = 'offline',"
                        " reason = 'no_session' where not final")  # fmt: skip
    await count(database)
    before = await ask(database, COUNTED)
    await ask(database, "update log_day set since = day - 1, kept_since = day - 1")
    # Marks of a day that is gone are forgotten without counting its hours as empty.
    await ask(
        database, "insert into changed_hour select day, date_trunc('hour', taken_at, 'UTC') from delivery_log"
    )
    done = await Upkeep(database).run_once(2)
    assert len(done.dropped) == 1
    await count(database)
    assert await ask(database, COUNTED) == before
    assert await ask(database, "select count(*) from changed_hour") == [(0,)]


async def test_an_hour_without_pushes_is_a_row_of_zeros_and_an_hour_not_counted_is_none(
    database: str, store: PostgresStore
) -> None:
    [(now,)] = await ask(database, "select date_trunc('hour', now(), 'UTC')")
    await store.record(
        [row("a", taken_at=(now - 5 * HOUR).timestamp()), row("b", taken_at=(now - 3 * HOUR).timestamp())]
    )
    assert await ask(database, "select * from delivery_hourly") == []
    await count(database)
    hours = await ask(
        database,
        "select hour, tenant, pushes, users, handed, proof_p50 is null from delivery_hourly order by 1",
    )
    assert hours[:5] == [
        (now - 5 * HOUR, "", 1, 1, 1, False),
        (now - 4 * HOUR, None, 0, 0, 0, True),
        (now - 3 * HOUR, "", 1, 1, 1, False),
        (now - 2 * HOUR, None, 0, 0, 0, True),
        (now - 1 * HOUR, None, 0, 0, 0, True),
    ]
    # Nobody counts any more: what comes is not said to be nothing.
    await ask(database, "update counting set through = through - interval '2 hours'")
    assert (
        len(await ask(database, "select from delivery_hourly where hour > now() - interval '3 hours'")) <= 2
    )


async def test_an_hour_is_one_hour_where_clocks_change(database: str, store: PostgresStore) -> None:
    # In Berlin the clock goes back at 01:00 UTC on 2026-10-25, and forward at 01:00 UTC on 2027-03-28.
    times = [datetime.datetime(2026, 10, 25, h, 30, tzinfo=datetime.UTC) for h in range(4)]
    times += [datetime.datetime(2027, 3, 28, h, 30, tzinfo=datetime.UTC) for h in range(4)]
    await store.record(
        [row(f"p{n}", taken_at=at.timestamp(), published_at=at.timestamp()) for n, at in enumerate(times)]
    )
    await count(database)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        await conn.execute("set timezone to 'Europe/Berlin'")
        hours = await (
            await conn.execute("select hour, pushes from delivery_hourly where pushes > 0 order by 1")
        ).fetchall()
        assert [h.astimezone(datetime.UTC) for h, _ in hours] == [t.replace(minute=0) for t in times]
        days = await (
            await conn.execute("select day, pushes from delivery_daily where pushes > 0 order by 1")
        ).fetchall()
    assert days == [(times[0].date(), 4), (times[-1].date(), 4)]


async def test_a_day_that_was_attached_again_is_counted_where_nobody_has(database: str) -> None:
    log_of_days(database)
    await ask(database, "delete from tally where day = (select min(day) from tally)")
    await count(database)
    await right(database)
    assert await count(database) == 0


async def test_an_hour_that_is_locked_does_not_keep_others_from_being_counted(
    database: str, store: PostgresStore
) -> None:
    await store.record([row("a")])
    await ask(database, "select roll_day(day + 1) from log_day")
    await store.record([row("b", taken_at=NOON + 3600)])
    async with await psycopg.AsyncConnection.connect(database) as conn:
        [(name,)] = await (
            await conn.execute("select 'delivery_log_' || to_char(day, 'YYYYMMDD') from log_day")
        ).fetchall()
        await conn.execute(f"lock table {name} in access exclusive mode".encode())
        with pytest.raises(StoreUnavailable):
            await count(database, everything=False)
    hours: LiteralString = "select hour from delivery_hourly where pushes > 0"
    assert await ask(database, hours) == [(datetime.datetime.fromtimestamp(NOON, datetime.UTC),)]
    assert await count(database) == 1


async def test_a_row_with_an_infinite_time_keeps_no_other_hour_from_being_counted(
    database: str, store: PostgresStore
) -> None:
    await store.record([row("a"), row("b", taken_at=NOON + 3600)])
    await ask(database, "update delivery_log set published_at = 'infinity' where push_id = 'b'")
    # Until Postgres 16 the time to such a row is refused; from 17 on it is infinite, too.
    with contextlib.suppress(psycopg.Error, BridgeError):
        await count(database, everything=False)
    hours: LiteralString = "select hour from delivery_hourly where pushes > 0"
    assert (datetime.datetime.fromtimestamp(NOON, datetime.UTC),) in await ask(database, hours)


async def test_a_day_that_was_detached_is_not_looked_at_again(database: str, store: PostgresStore) -> None:
    await store.record([row("a")])
    await ask(database, "select roll_day(day + 1) from log_day")
    [(name,)] = await ask(database, "select 'delivery_log_' || to_char(day - 1, 'YYYYMMDD') from log_day")
    await ask(database, f"alter table delivery_log detach partition {name}")
    await ask(
        database, "create table delivery_log_20269999 partition of delivery_log for values in ('2001-01-01')"
    )
    assert await Counting(database).run_once(everything=True) == Counted(0, 0)


async def test_counts_are_kept_for_400_days(database: str, store: PostgresStore) -> None:
    await store.record([row("a", taken_at=NOON - 3 * 400 * 86400)])
    await count(database)
    for table in ("delivery_count", "hour_count", "counted_hour"):
        assert await ask(database, f"select count(*) from {table}") == [(0,)]


# --- The views that are made of them ---------------------------------------------------------------------


async def test_the_funnel_the_reasons_and_the_summary_say_how_far_pushes_came(
    database: str, store: PostgresStore
) -> None:
    await store.record(
        [
            row(
                "p",
                f"u{n}",
                proven_at=NOON + n,
                finished_at=NOON + n,
                outcome=Outcome.ACKED,
                reason=Reason.ACK_FRAME,
            )
            for n in range(1, 10)
        ]
        + [row("p", "u0", outcome=Outcome.OFFLINE, reason=Reason.NO_SESSION, written_at=None, proven_at=None)]
        + [
            kept_row("k", "u0"),
            row("late", "u99", outcome=Outcome.UNKNOWN, reason=Reason.NO_PROOF, proven_at=None),
        ]
        + [row("r", "", outcome=Outcome.REJECTED, reason=Reason.INVALID, written_at=None, proven_at=None)]
    )
    await count(database)
    funnel: LiteralString = (
        "select sum(pushes)::int, sum(accepted)::int, sum(handed)::int, sum(proven)::int, sum(acked)::int,"
        " sum(waiting)::int from funnel where day = '2027-01-15'"
    )
    assert await ask(database, funnel) == [(13, 12, 10, 9, 9, 1)]
    reasons = await ask(
        database, "select reason, party, pushes, share from top_reasons where day = '2027-01-15' order by 1"
    )
    assert reasons == [
        ("invalid", "publisher", 1, 1 / 3),
        ("no_proof", "peer", 1, 1 / 3),
        ("no_session", "peer", 1, 1 / 3),
    ]
    summary: LiteralString = (
        "select final, users, delivered, failed, waiting, handed, proven, acked, seconds_50, seconds_90, seconds_99"
        " from push_summary where push_id = "
    )
    # Nine of ten have proven it, each a second after the one before; it was published a second before the first.
    assert await ask(database, summary + "'p'") == [(True, 10, 9, 1, 0, 9, 9, 9, 6.0, 10.0, None)]
    assert await ask(database, summary + "'k'") == [(False, 1, 0, 0, 1, 0, 0, 0, None, None, None)]
    unreached: LiteralString = (
        "select user_id, pushes, waiting, last_outcome, last_reason from unreached_users"
        " where day = (select day from log_day) order by 1"
    )
    assert [u for u, *_ in await ask(database, unreached)] == ["u0", "u99"]
    await store.prove_late([LateProof(row("late", "u99").key, NOON + 99)])
    [(user, pushes, waiting, *_)] = await ask(database, unreached)
    assert (user, pushes, waiting) == ("u0", 2, 1)


@pytest.mark.parametrize(
    ("query", "pages"),
    [
        ("select * from push_summary where push_id = 'p77'", 100),
        ("select * from push_summary where push_id = 'p77' and tenant = ''", 100),
        ("select * from unreached_users where user_id = 'u7'", 700),
        ("select * from user_timeline where user_id = 'u7'", 700),
        ("select batch_id, party, ttl from delivery where push_id = 'p77'", 100),
        ("select * from delivery_hourly where hour >= now() - interval '12 hours'", 700),
        ("select day, sum(pushes) from delivery_daily group by 1", 700),
        ("select * from funnel where day = current_date - 1", 700),
        ("select * from top_reasons where day = current_date - 1 order by pushes desc limit 5", 700),
    ],
)
async def test_no_view_reads_the_whole_log_for_one_push_one_user_or_one_day(
    grown: str, query: str, pages: int
) -> None:
    async with await psycopg.AsyncConnection.connect(grown, autocommit=True) as conn:
        explained = await conn.execute(f"explain (analyze, buffers, format json) {query}".encode())
        [[[plan]]] = await explained.fetchall()
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < pages, query
    read = [n for n in nodes(plan["Plan"]) if n.get("Actual Loops") and n["Node Type"] == "Seq Scan"]
    assert [n for n in read if "delivery_log" in n["Relation Name"]] == []


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.fixture(scope="module")
def grown(databases: Databases) -> Iterator[str]:
    """Four thousand rows, and forty thousand more, counted; for tests that only read."""
    with databases.fresh(TEMPLATE) as dsn:
        asyncio.run(grow(dsn))
        yield dsn


async def grow(dsn: str) -> None:
    log_of_days(dsn)
    more: LiteralString = (
        "insert into delivery_log (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,"
        " published_at, taken_at, node, boot, event, app_id, detail, traceparent)"
        " select day, tenant, push_id || '-' || n, user_id || '-' || n, outcome, reason, final, confirm, sessions,"
        " attempts, published_at, taken_at, node, boot, event, app_id, '', ''"
        " from delivery_log, generate_series(1, 10) n"
    )
    await ask(dsn, more)
    await count(dsn)
    await ask(dsn, "analyze")


QUESTIONS = list(analytics.questions(analytics.PAGE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("question", QUESTIONS, ids=[q.title for q in QUESTIONS])
async def test_every_question_of_the_page_has_an_answer(asked_log: str, question: analytics.Question) -> None:
    with psycopg.connect(asked_log, autocommit=True) as conn:
        assert analytics.ask(conn, question).rows > 0


@pytest.fixture(scope="module")
def asked_log(databases: Databases) -> Iterator[str]:
    """The log of the benchmark, small."""
    with databases.fresh("template0") as dsn:
        migrate.upgrade(dsn)
        with psycopg.connect(dsn, autocommit=True) as conn:
            analytics.fill(conn, 20_000)
            conn.execute(
                "update delivery_log set push_id = 'p4711', user_id = 'u42' where push_id = 'p19990'"
            )
            conn.execute(
                "update delivery_log set outcome = 'unknown', reason = 'node_died' where event = 'event.7'"
            )
        asyncio.run(analytics.count(dsn))
        yield dsn


def test_the_page_has_ten_questions() -> None:
    assert [int(q.title.partition(".")[0]) for q in QUESTIONS] == list(range(1, 11))
