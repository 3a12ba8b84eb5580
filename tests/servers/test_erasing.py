"""BRIDGE_PAYLOAD: how long the log has the data of pushes, and that nothing that still needs it misses it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from bridge.adapters.postgres import migrate
from bridge.adapters.postgres.erasing import Erasing
from bridge.adapters.postgres.store import PostgresStore
from bridge.app import build as app
from bridge.cli import main
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Row
from bridge.devservers import Servers
from tests.servers.test_fallbacks import AFTER, fallbacks, next_one, noted
from tests.servers.test_forgetting import MARK, dumped
from tests.servers.test_kept import all_stored, control, pushes, session
from tests.support import roles
from tests.support.bridges import bridge, counted, endings, final_rows, publish, request, rows_when
from tests.support.queries import asked, until_asked
from tests.support.rows import NOON, kept_row, row

DATA = {"data": {"secret": MARK}}
LARGE = b'"' + b"x" * 300 + b'"'
"""Data that rows share."""
HAVE_DATA = "select push_id from delivery_log where payload is not null order by 1"
SHARED = "select payload is not null, extract(epoch from until)::float8 from push_content"


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    made = PostgresStore(database)
    yield made
    await made.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due is erased within a tenth of a second."""
    monkeypatch.setattr(app, "LIMITS", dataclasses.replace(app.LIMITS, erase_every=0.1))


async def erase(database: str, now: float, limit: int = 500) -> int:
    """Erase what nobody has needed since then; returns how much it was."""
    [(erased,)] = await asked(database, "select erase_data(to_timestamp(%s), %s)", now, limit)
    assert isinstance(erased, int)
    return erased


def names(dump: str) -> bool:
    return MARK in dump or MARK.encode().hex() in dump


# --- A whole bridge --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
async def test_a_push_has_its_data_while_it_is_kept_and_a_dump_has_nothing_of_it_afterwards(
    servers: Servers, vhost: str, database: str
) -> None:
    async with bridge(vhost, database, payload="while_kept") as b:
        async with session(b.ws_port, "u1") as (phone, _):
            await publish(
                vhost, request("u1", "short", ttl=2, **DATA), request("u1", "long", ttl=600, **DATA)
            )
            assert await pushes(phone, 2) == ["short", "long"]
        await publish(
            vhost,
            request("u2", "waits", ttl=600, **DATA),
            request("u2", "runs-out", ttl=1, **DATA),
            request("u2", "recalled", ttl=600, **DATA),
            request("u2", "old", ttl=600, collapse_key="k", **DATA),
            request("u2", "new", ttl=600, collapse_key="k", **DATA),
            {"id": "wrong", "to": {"user": "u2"}, "ttl": "x", **DATA},
            request("u2", "", to={"users": [f"u{n}" for n in range(3, 9)]}, ttl=1, data=MARK * 20, id="many"),
        )
        await counted(database, "outcome in ('superseded', 'rejected', 'expired')", 1 + 1 + 1 + 6)
        async with control(vhost) as say:
            assert (await say({"type": "recall", "push_id": "recalled"}))["ended"] == 1
        await until_asked(database, HAVE_DATA, [("long",), ("new",), ("waits",)])
        # Whoever resumes gets what was delivered, as long as its ttl lasts, and who comes late what waits.
        async with session(b.ws_port, "u1", last="short") as (laptop, welcome):
            assert welcome["complete"] is True
            assert (await pushes(laptop, 1)) == ["long"]
        async with session(b.ws_port, "u2") as (late, _):
            frames = [await late.read_json() for _ in range(2)]
            assert [(f["id"], f["data"]) for f in frames] == [("waits", DATA["data"]), ("new", DATA["data"])]
        assert names(dumped(servers, database))
    # An hour or two after the ttl of what rows share.
    assert await erase(database, time.time() + 3 * 3600) == 4
    assert not names(dumped(servers, database))


@pytest.mark.usefixtures("at_once")
async def test_nothing_is_stored_where_nothing_may_be_and_what_must_be_stored_is_rejected(
    servers: Servers, vhost: str, database: str
) -> None:
    async with bridge(vhost, database, payload="none") as b, session(b.ws_port, "u1") as (opened, _):
        await publish(
            vhost,
            request("u1", "live", **DATA),
            request("u1", "ttl", ttl=60, **DATA),
            request("u1", "later", deliver_at=time.time() + 60, **DATA),
            request("u1", "fallback", fallback=AFTER, **DATA),
            request("u1", "last", to={"topic": "t"}, retain=True, **DATA),
        )
        assert await pushes(opened, 1) == ["live"]
        found = await final_rows(database, 5)
        assert {key[0]: how for key, how in endings(found).items()} == {
            "live": ("received", "pong"),
            **dict.fromkeys(["ttl", "later", "fallback", "last"], ("rejected", "unsupported")),
        }
        assert all("BRIDGE_PAYLOAD is none" in row["detail"] for row in found if row["outcome"] == "rejected")
        assert not names(dumped(servers, database))


@pytest.mark.usefixtures("at_once")
async def test_a_fallback_has_the_data_that_it_needs(vhost: str, database: str) -> None:
    async with bridge(vhost, database, payload="while_kept"), fallbacks(vhost) as events:
        await publish(vhost, request("away", "p1", fallback=AFTER, **DATA))
        await counted(database, "outcome = 'offline'", 1)
        assert MARK.encode() in (await next_one(events)).body
        await noted(database, 1)
        await until_asked(database, HAVE_DATA, [])


# --- What is due -----------------------------------------------------------------------------------------


def ended(push_id: str, ttl: float, outcome: Outcome = Outcome.RECEIVED, **more: object) -> Row:
    """A kept push that ended half a second after noon."""
    reason = {Outcome.RECEIVED: Reason.PONG, Outcome.EXPIRED: Reason.TTL}[outcome]
    fields: dict[str, Any] = {
        "outcome": outcome, "reason": reason, "expires_at": NOON + ttl, "finished_at": NOON + 0.5,
        "proven_at": NOON + 0.5 if outcome is Outcome.RECEIVED else None, "owed": None, **more,
    }  # fmt: skip
    return kept_row(push_id, **fields)


async def test_data_is_due_when_its_ttl_is_over_or_when_a_push_that_nobody_got_has_ended(
    database: str, store: PostgresStore
) -> None:
    await store.record(
        [
            ended("brief", 0.1),
            ended("delivered", 100),
            ended("expired", 100, Outcome.EXPIRED),
            kept_row("stored", expires_at=NOON + 100),
            row("rejected", user="", outcome=Outcome.REJECTED, reason=Reason.INVALID, proven_at=None, payload=b"b"),
        ]
    )  # fmt: skip
    assert await erase(database, NOON + 0.4) == 0
    assert await erase(database, NOON + 1) == 3
    assert await asked(database, HAVE_DATA) == [("delivered",), ("stored",)]
    assert await erase(database, NOON + 101) == 1
    assert await asked(database, HAVE_DATA) == [("stored",)], "it has not ended"


async def test_what_rows_share_stays_until_the_last_of_them_needs_it_no_more(
    database: str, store: PostgresStore
) -> None:
    await store.record([ended("p", 10, key=("", "p", user), payload=LARGE) for user in ("u1", "u2")])
    [(there, until)] = await asked(database, SHARED)
    assert there
    assert NOON + 10 + 3600 <= until <= NOON + 10 + 7200
    # Another push with the same data, to the same day of the log, lives longer.
    await store.record([ended("q", 86_400, key=("", "q", user), payload=LARGE) for user in ("u1", "u2")])
    [(there, later)] = await asked(database, SHARED)
    assert later - until == 86_400 - 3600 or later - until == 86_400
    assert await erase(database, until + 1) == 0
    assert await erase(database, later + 1) == 1
    assert await asked(database, SHARED) == [(False, later)]
    # And one that comes after it was erased brings it again.
    await store.record([kept_row("r", user, expires_at=NOON + 10, payload=LARGE) for user in ("u1", "u2")])
    assert await asked(database, SHARED) == [(True, later)]


async def test_nothing_that_rows_share_is_erased_while_a_fallback_could_not_be_published(
    database: str, store: PostgresStore
) -> None:
    many = [
        row("p", user, outcome=Outcome.OFFLINE, reason=Reason.NO_SESSION, proven_at=None, payload=LARGE,
            fallback_due=NOON + 5, fallback_key="mail")
        for user in ("u1", "u2")
    ]  # fmt: skip
    await store.record(many)
    for due in ("- interval '2 hours'", "+ interval '5 seconds'"):  # the broker is away; it is tried again
        await asked(database, f"update delivery_log set fallback_due = now() {due}")
        assert await erase(database, NOON + 86_400) == 0
    await asked(database, "update delivery_log set fallback_due = null where user_id = 'u1'")
    assert await erase(database, NOON + 86_400) == 0
    await asked(database, "update delivery_log set fallback_due = null")
    assert await erase(database, NOON + 86_400) == 1


async def test_a_round_goes_on_page_by_page_and_leaves_what_somebody_holds(
    database: str, store: PostgresStore
) -> None:
    now = time.time()
    await store.record(
        [ended(f"p{n}", now - NOON - 60, finished_at=now - 60, taken_at=now - 61) for n in range(7)]
    )
    erasing = Erasing(database)
    assert await erasing.run_once(1.0) is False
    assert len(await asked(database, HAVE_DATA)) == 7, "a day has not passed"
    assert await erasing.run_once(0.0, page=2, pages=2) is True
    assert len(await asked(database, HAVE_DATA)) == 3
    assert await erasing.run_once(0.0, page=2) is False
    assert await asked(database, HAVE_DATA) == []
    # No count depends on data, so nothing is counted again.
    assert await asked(database, "select * from changed_hour") == []


async def test_who_erases_waits_for_nobody(database: str, store: PostgresStore) -> None:
    await store.record([ended("held", 0.1), ended("free", 0.1)])
    async with await psycopg.AsyncConnection.connect(database) as holder:
        await holder.execute("select from delivery_log where push_id = 'held' for update")
        async with asyncio.timeout(20):
            assert await erase(database, NOON + 1) == 1
        assert await asked(database, HAVE_DATA) == [("held",)]


# --- What people are told --------------------------------------------------------------------------------


async def test_a_push_whose_data_is_erased_can_not_be_replayed_and_says_so(
    vhost: str, database: str, store: PostgresStore, capsys: pytest.CaptureFixture[str]
) -> None:
    await store.record([ended("p", 0.1, key=("", "p", user), payload=LARGE) for user in ("u1", "u2")])
    await store.record([ended("alone", 0.1)])
    assert await erase(database, NOON + 86_400) == 2
    await asked(database, "update delivery_log set taken_at = now() - interval '1 hour'")
    command = ["replay", "--where", "push=p", "--where", "push=alone", "--dry-run"]
    servers = ["--amqp-url", vhost, "--postgres-dsn", database]
    await asyncio.to_thread(main, [*command, *servers])
    assert "3  can't be: their data is not kept" in capsys.readouterr().out


async def test_why_tells_where_the_body_is_that_the_log_does_not_have(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database, payload="while_kept"):
        await publish(vhost, {"id": "wrong", "to": {"user": "u1"}, "ttl": "x", **DATA})
        await final_rows(database, 1)
        assert await rows_when(database, all_stored(0))
    await asyncio.to_thread(main, ["why", "wrong", "--amqp-url", vhost, "--postgres-dsn", database])
    out = capsys.readouterr().out
    assert "not kept; the message, if it was not replayed or purged: bridge dead show wrong" in out


# --- Rights ----------------------------------------------------------------------------------------------


async def test_a_role_that_was_granted_before_the_upgrade_writes_and_erases_after_it(
    servers: Servers, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = migrate.upgrade
    earlier = migrate.MIGRATIONS[:28]
    monkeypatch.setattr(migrate, "upgrade", lambda dsn: upgrade(dsn, earlier))
    with roles.databases(servers, empty_database) as made:
        monkeypatch.undo()
        migrate.upgrade(made.owner)
        bridges = PostgresStore(made.app)
        try:
            await bridges.record(
                [ended("p", 0.1, key=("", "p", user), payload=LARGE) for user in ("u1", "u2")]
            )
            assert await erase(made.app, NOON + 86_400) == 1
        finally:
            await bridges.close()
