"""`bridge forget`: nothing in the database names the user afterwards, and everything still adds up."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest

from bridge.app.clock import SystemClock
from bridge.cli import main
from bridge.devservers import Servers
from bridge.devservers.postgres import PrivatePostgres
from bridge.operator.forgetting import _FIRST, _ROWS, PAGE, Forgetting, Left, new_name
from bridge.operator.naming import body_names, renamed
from tests.servers.test_kept import all_stored, session
from tests.servers.test_replay import Log, log
from tests.servers.test_revocations import refused
from tests.servers.test_scheduled import scheduled
from tests.support.bridges import (
    bridge,
    counted,
    endings,
    final_rows,
    publish,
    request,
    rows,
    rows_when,
    token,
)
from tests.support.clients import client
from tests.support.queues import ENVELOPE, ready_messages

__all__ = ["log"]

USER, MARK, DEVICE, META = "erika-4711", "the-marker-of-a-payload", "ErikasPhone/1.0", "the-marker-of-meta"
ADDRESS = "127.0.0.77"


def dumped(servers: Servers, dsn: str) -> str:
    """The whole database as SQL."""
    assert isinstance(servers.postgres, PrivatePostgres)
    program = servers.postgres._files.bin / "pg_dump"
    done = subprocess.run([str(program), f"--dbname={dsn}"], capture_output=True, timeout=60, check=True)
    return done.stdout.decode()


def traces(dump: str) -> list[str]:
    """Lines of a dump that say who it was, or what they were sent. A bytea is in hexadecimal there."""
    words = [USER, MARK, DEVICE, META, ADDRESS]
    return [
        line
        for line in dump.splitlines()
        if any(word in line or word.encode().hex() in line.lower() for word in words)
    ]


async def forget(url: str, dsn: str, *words: str, user: str = USER) -> int:
    command = ["forget", user, *words, "--amqp-url", url, "--postgres-dsn", dsn]
    return await asyncio.to_thread(main, command)


async def fill(port: int, url: str, dsn: str) -> None:
    """Leave the user in every place where a bridge writes them down, and somebody else beside them."""
    headers = {"User-Agent": DEVICE}
    data = {"data": {"secret": MARK}, "meta": {"for": META}}
    async with client(
        port, token(USER, subscribe=["news"]), subprotocols=ENVELOPE, headers=headers, source=ADDRESS
    ) as opened:
        await opened.read_json()
        await opened.send_json({"type": "subscribe", "topic": "news", "ref": 1})
        assert (await opened.read_json())["type"] == "ok"
        await publish(url, request(USER, "live", **data), request(USER, "with-ttl", ttl=600, **data))
        assert [(await opened.read_json())["id"] for _ in range(2)] == ["live", "with-ttl"]
        await final_rows(dsn, 2)
    wrong = {"id": "wrong", "to": {"user": USER}, "ttl": "x", "data": MARK}
    await publish(
        url,
        wrong,
        request(USER, "kept", ttl=600, **data),
        request(USER, "later", deliver_at=time.time() + 900, **data),
        request("max", "of-max", ttl=600, data="for max"),
    )
    await rows_when(dsn, lambda found: sum(row["outcome"] == "stored" for row in found) == 2)
    await scheduled(dsn, 1)
    await counted(dsn, "outcome = 'rejected'", 1)
    assert await asyncio.to_thread(main, ["revoke", "--user", USER, "--postgres-dsn", dsn]) == 0


async def test_a_dump_of_the_database_names_nobody_who_was_forgotten_and_the_audit_finds_nothing(
    servers: Servers, vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database) as b:
        await fill(b.ws_port, vhost, database)
        assert len(traces(dumped(servers, database))) > 5
        before = endings(await rows(database))
        assert await forget(vhost, database) == 2, "without --yes it only counts"
        assert endings(await rows(database)) == before
        said = capsys.readouterr()
        assert "nothing changed; --yes does it, and it can't be undone" in said.err
        assert "push.dead: letters that name the user\n           wrong" in said.out

        assert await forget(vhost, database, "--dead", "--yes") == 0
        out = capsys.readouterr().out
        name = re.findall("forgotten-[0-9a-f]{32}", out)[0]
        told = {" ".join(line.split()[1:]).split(":")[0]: line.split()[0] for line in out.splitlines()[1:]}
        assert told == {
            "delivery_log": "1",
            "session": "1",
            "subscription": "1",
            "revocation": "1",
            "ops_action": "1",
            "kept and scheduled pushes recalled": "2",
            "push.dead": "1",
        }
        assert "        4  delivery_log: rows renamed" in out
        assert traces(dumped(servers, database)) == []
        assert await ready_messages(vhost, "push.dead") == 0
        assert endings(await rows(database)) == {
            ("live", name): ("received", "pong"),
            ("with-ttl", name): ("received", "pong"),
            ("kept", name): ("recalled", "withdrawn"),
            ("later", name): ("recalled", "withdrawn"),
            ("wrong", None): ("rejected", "invalid"),
            ("of-max", "max"): ("stored", "no_session"),
        }
        where = ["--amqp-url", vhost, "--postgres-dsn", database]
        assert await asyncio.to_thread(main, ["audit", *where]) == 0
        async with session(b.ws_port, "max") as (other, _):
            assert (await other.read_json())["data"] == "for max"
        assert await forget(vhost, database, "--as", name, "--yes") == 0, "a second run finds nothing"


async def test_who_is_online_is_refused_unless_they_are_to_be_disconnected(
    servers: Servers, vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = token(USER, now=time.time() - 60)
    async with bridge(vhost, database) as b:
        async with client(b.ws_port, old, subprotocols=ENVELOPE) as opened:
            await opened.read_json()
            assert await forget(vhost, database, "--yes") == 1
            assert "the user has 1 open session(s); --disconnect" in capsys.readouterr().err
            assert traces(dumped(servers, database))
            assert await forget(vhost, database, "--yes", "--disconnect") == 0
            assert await opened.ended() == (4403, "revoked")
        assert traces(dumped(servers, database)) == []
    async with bridge(vhost, database) as again:
        # The revocation does not name the user any more; the token was in the ledger, and stays revoked by itself.
        assert (await refused(again.ws_port, old))[:2] == (401, "revoked")


async def test_revocations_can_be_kept(servers: Servers, vhost: str, database: str) -> None:
    unused = token(USER, now=time.time() - 60)
    async with bridge(vhost, database) as b:
        assert await forget(vhost, database, "--yes", "--disconnect", "--keep-revocations") == 0
        assert len(traces(dumped(servers, database))) == 1
        assert (await refused(b.ws_port, unused))[:2] == (401, "revoked")


async def test_what_is_in_flight_is_told_and_left_for_a_second_run_under_the_same_name(
    vhost: str, database: str, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database):
        await publish(vhost, request(USER, "kept", ttl=600, data=MARK))
        await rows_when(database, all_stored(1))
    log("done", USER)
    log("flying", USER, final=False, outcome="pending", reason="awaiting_proof", finished_at=None)
    # Nobody lives who could end the one, or send the receipt of the other.
    assert await forget(vhost, database, "--yes") == 1
    said = capsys.readouterr()
    assert "        2  delivery_log: rows of pushes that are not at rest yet" in said.out
    name = re.findall("--as (forgotten-[0-9a-f]{32})", said.err)[0]
    assert {row["user_id"] for row in await rows(database)} == {USER, name}
    async with bridge(vhost, database):
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute(
                "update delivery_log set outcome = 'unknown', reason = 'no_proof', final = true,"
                " finished_at = now() where outcome = 'pending'"
            )
        assert await forget(vhost, database, "--yes", "--as", name) == 0
    assert {row["user_id"] for row in await rows(database)} == {name}
    assert await forget(vhost, database, "--yes", "--as", "max") == 2


async def test_a_scheduled_push_that_no_bridge_has_published_is_left(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database):
        await publish(vhost, request(USER, "later", deliver_at=time.time() + 900))
        await scheduled(database, 1)
    assert await forget(vhost, database, "--yes") == 1
    assert "        1  scheduled: no bridge has published them yet" in capsys.readouterr().out
    async with bridge(vhost, database):
        await final_rows(database, 1)
        assert await forget(vhost, database, "--yes") == 0
    assert [row["outcome"] for row in await rows(database)] == ["recalled"]


async def test_many_rows_are_changed_page_by_page_and_a_row_of_both_names_gets_another(
    servers: Servers, vhost: str, database: str, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1203):
        log(f"p{number}", USER)
    log("other", "max")
    async with bridge(vhost, database):
        assert await forget(vhost, database, "--yes") == 0
        name = re.findall("forgotten-[0-9a-f]{32}", capsys.readouterr().out)[0]
        assert {row["user_id"] for row in await rows(database)} == {"max", name}
        log("p1", USER)
        assert await forget(vhost, database, "--yes", "--as", name) == 0
    found = await rows(database)
    assert len(found) == 1205
    assert len({row["user_id"] for row in found}) == 3
    assert traces(dumped(servers, database)) == []


def most_rows(plan: dict[str, Any]) -> int:
    """The most rows that a node of a plan has returned at once."""
    own: int = plan["Actual Rows"]
    return max([own, *map(most_rows, plan.get("Plans", ()))])


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_page_reads_the_rows_that_it_changes_and_no_others(
    database: str, log: Log, analyzed: bool
) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        for number in range(5 * PAGE):
            log(f"p{number}", USER)
            log(f"other{number}", f"u{number}")
        if analyzed:
            conn.execute("analyze delivery_log")
    work = Forgetting(database, USER, new_name(), SystemClock(), lambda: None)
    after: Any = _FIRST
    for _ in range(3):
        ((_, _, after),) = await work._ask(_ROWS, in_order=True, after=after)
    ((found,),) = await work._ask("explain (analyze, format json)" + _ROWS, in_order=True, after=after)
    await work.close()
    assert most_rows(found[0]["Plan"]) == PAGE


async def test_a_page_begins_where_the_one_before_has_ended(
    database: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = datetime.now(UTC)
    for number in range(2 * PAGE + 1):
        log(f"p{number}", USER, taken_at=began + timedelta(seconds=number))
    work = Forgetting(database, USER, new_name(), SystemClock(), lambda: None)
    ask, after = work._ask, []

    async def noted(query: LiteralString, *, in_order: bool = False, **more: object) -> Any:
        if query is _ROWS:
            after.append(more["after"])
        return await ask(query, in_order=in_order, **more)

    monkeypatch.setattr(work, "_ask", noted)
    await work.run(keep_revocations=False)
    await work.close()
    lasts = [began + timedelta(seconds=number) for number in (PAGE - 1, 2 * PAGE - 1, 2 * PAGE)]
    assert after == [_FIRST, *lasts, _FIRST]
    assert work.done.rows == 2 * PAGE + 1


async def test_rows_that_were_taken_at_the_same_time_are_all_changed(database: str, log: Log) -> None:
    at_once = datetime.now(UTC)
    for number in range(2 * PAGE + 1):
        log(f"p{number}", USER, taken_at=at_once)
    work = Forgetting(database, USER, new_name(), SystemClock(), lambda: None)
    left = await work.run(keep_revocations=False)
    await work.close()
    assert (left.in_flight, work.done.rows) == (0, 2 * PAGE + 1)


async def test_a_row_that_comes_to_rest_while_newer_ones_are_changed_is_changed_too(
    database: str, log: Log
) -> None:
    log("flying", USER, age=900.0, final=False, outcome="pending", reason="awaiting_proof", finished_at=None)
    for number in range(PAGE + 1):
        log(f"p{number}", USER)

    def ends() -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute(
                "update delivery_log set outcome = 'unknown', reason = 'no_proof', final = true,"
                " finished_at = now() where outcome = 'pending'"
            )

    work = Forgetting(database, USER, new_name(), SystemClock(), ends)
    left = await work.run(keep_revocations=False)
    await work.close()
    assert (left.in_flight, work.done.rows) == (0, PAGE + 2)


async def test_a_run_that_is_interrupted_goes_on_under_the_same_name(database: str, log: Log) -> None:
    for number in range(1203):
        log(f"p{number}", USER)
    name, pages = new_name(), 0

    def interrupt() -> None:
        nonlocal pages
        pages += 1
        if pages == 2:
            raise KeyboardInterrupt

    work = Forgetting(database, USER, name, SystemClock(), interrupt)
    with pytest.raises(KeyboardInterrupt):
        await work.run(keep_revocations=False)
    await work.close()
    half = [row["user_id"] for row in await rows(database)]
    assert (half.count(name), half.count(USER)) == (2 * PAGE, 1203 - 2 * PAGE)
    again = Forgetting(database, USER, name, SystemClock(), lambda: None)
    left = await again.run(keep_revocations=False)
    await again.close()
    assert (left, again.done.rows) == (Left(*[0] * 10), 1203 - 2 * PAGE)
    assert {row["user_id"] for row in await rows(database)} == {name}


async def test_a_row_that_somebody_else_holds_is_not_waited_for(database: str, log: Log) -> None:
    log("p1", USER)
    log("held", USER)
    work = Forgetting(database, USER, new_name(), SystemClock(), lambda: None)
    async with await psycopg.AsyncConnection.connect(database) as holder:
        await holder.execute("select 1 from delivery_log where push_id = 'held' for update")
        left = await work.run(keep_revocations=False)
    await work.close()
    assert (left.in_flight, work.done.rows) == (1, 1)
    assert left.unfinished(kept_revocations=False)


async def test_what_is_shared_or_named_by_a_publisher_is_told_as_out_of_reach(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database):
        to_two = {"id": "both", "to": {"users": [USER, "max"]}, "ttl": 600, "data": MARK * 100}
        later = {"id": "later", "to": {"users": [USER, "max"]}, "data": 1, "deliver_at": time.time() + 900}
        last_value = {"id": "last", "to": {"topic": f"of.{USER}"}, "data": 1, "retain": True}
        await publish(vhost, to_two, request(USER, f"order-of-{USER}"), later, last_value)
        await rows_when(database, lambda found: len(found) == 4)
        await scheduled(database, 1)
        assert await forget(vhost, database, "--yes") == 0
        out = capsys.readouterr().out
        assert "out of reach, and told for you to judge:" in out
        assert "        1  delivery_log: push ids, batch ids or topics that contain the id" in out
        assert "        1  scheduled: messages to others as well that contain the id" in out
        assert "        1  retained: last values whose topic or meta contains the id" in out
        await scheduled(database, 1)
        assert "        1  push_content: data that the user had in common with others" in out
        async with await psycopg.AsyncConnection.connect(database) as conn:
            kept = await (
                await conn.execute("select user_id, (whole(l)).payload from delivery_log l")
            ).fetchall()
        payloads = {user: payload for user, payload in kept if payload is not None}
        assert payloads == {"max": json.dumps(MARK * 100).encode()}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"to":{"user":"u1"}}', True),
        (b'{"to":{"users":["u2","u1"]}}', True),
        (b'{"to":{"user":"u10"},"data":"to u1"}', False),
        (b'{"to":{"user":"\\u00751"}}', True),
        (b'{"to":{"user":"u1"},"data":"cut off', True),
        (b"u1-and-more", False),
        (b"\xff\xfe u1;", True),
    ],
)
def test_a_body_names_a_user_by_a_whole_string_or_word(body: bytes, found: bool) -> None:
    assert body_names("u1", body) is found


def test_what_is_on_record_is_renamed_where_it_is_the_id() -> None:
    target = {"user": "u1", "where": ["user=u1", "push=u1x"], "limit": 1}
    assert renamed(target, "u1", "n") == {"user": "n", "where": ["user=n", "push=u1x"], "limit": 1}
