"""What analysts get: the columns of view delivery, the counted hours, and the views that are made of them."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
import pytest

from bridge.adapters.postgres import migrate
from bridge.adapters.postgres.migrate import MIGRATIONS
from bridge.adapters.postgres.store import PostgresStore
from bridge.core.model.outcomes import Outcome, Proof, Reason
from tests.support.queries import asked as ask
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
