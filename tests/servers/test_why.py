"""`bridge why`: the story of a push from the log, and what it means when there is none."""

from __future__ import annotations

import json
from collections.abc import Sequence

import psycopg
import pytest

from bridge.adapters.postgres.store import PostgresStore
from bridge.cli import main
from bridge.cli import why as command
from bridge.config import CommonSettings
from bridge.core.model.outcomes import Outcome, Proof, Reason
from bridge.core.model.rows import Difference, LateProof, Reply, RowKey
from bridge.operator import lookup
from tests.support.amqp import declare, publish
from tests.support.bridges import bridge, final_rows, request, token
from tests.support.bridges import publish as push
from tests.support.clients import client
from tests.support.queues import ENVELOPE
from tests.support.rows import PUBLISHED_AT, finished_row, write_rows

NOWHERE = "amqp://guest:guest@127.0.0.1:1/"


async def why(
    dsn: str, push_id: str, user: str | None = None, *, url: str = NOWHERE, tenant: str | None = None
) -> int:
    settings = CommonSettings(amqp_url=url, postgres_dsn=dsn, _env_file=None)
    return await command.why(settings, push_id, user, tenant, as_json=False)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def steps(lines: Sequence[str]) -> list[str]:
    """The names of the steps, in order."""
    names = ("published", "taken", "written", "proven", "finished", "late", "repeated", "owed")
    return [words[0] for line in lines if (words := line.split()) and words[0] in names]


async def test_a_push_that_arrived_is_told_step_by_step(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as c:
        await c.read()
        await push(vhost, request("u1", "p1", event="order.paid"), app_id="billing")
        await final_rows(database, 1)
    assert await why(database, "p1", url=vhost) == 0
    lines = told(capsys)
    assert lines[0] == "push p1 for u1: received"
    assert lines[1] == "  the peer answered a ping sent after the push"
    assert steps(lines) == ["published", "taken", "written", "proven", "finished", "owed"]
    text = "\n".join(lines)
    assert "by billing, event order.paid" in text
    assert "from the queue by node n1, boot " in text
    assert "handed over once, to one session" in text
    assert "owed       nothing" in text


async def test_times_are_told_as_spans_from_step_to_step(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await write_rows(
        database,
        finished_row(
            "u1", Outcome.UNKNOWN, Reason.CONNECTION_LOST,
            written_at=PUBLISHED_AT + 0.75, sessions=2, attempts=3, finished_at=PUBLISHED_AT + 4.25,
        ),
    )  # fmt: skip
    assert await why(database, "p1") == 0
    lines = told(capsys)
    assert lines[:2] == ["push p1 for u1: unknown", "  handed over; the connection ended before proof"]
    spans = {words[0]: " ".join(words[3:5]) for words in map(str.split, lines) if len(words) > 4}
    assert spans["taken"] == "+500.0 ms"
    assert spans["written"] == "+250.0 ms"
    assert spans["finished"] == "+3.50 s"
    text = "\n".join(lines)
    assert "handed over 3 times, to 2 sessions" in text
    assert "proven     never: nothing came back from the peer; wanted was received" in text


async def test_what_never_reached_a_socket_says_so(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    await write_rows(database, finished_row("u1", Outcome.OFFLINE, Reason.NO_SESSION))
    assert await why(database, "p1", "u1") == 0
    lines = told(capsys)
    assert "  the user had no session (or the session was not here)" in lines
    assert "  written    never: it was handed to no socket" in lines
    assert steps(lines) == ["published", "taken", "written", "finished", "owed"]


async def test_a_rejected_push_is_found_by_whoever_asks_for_its_user(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database):
        await push(vhost, {"id": "bad", "to": {"user": 7}, "data": 1})
        await final_rows(database, 1)
    for user in (None, "u7"):
        assert await why(database, "bad", user) == 0
        text = "\n".join(told(capsys))
        assert "push bad for nobody (no user was known): rejected" in text
        assert "`detail` names it: to.user: expected a string" in text
        assert "bridge dead show bad" in text


async def test_what_is_owed_and_to_whom_is_told(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    owed = (Reply("billing\x1b.replies", "c1"), Reply("audit"))
    await write_rows(database, finished_row("u1", Outcome.OFFLINE, Reason.NO_SESSION, owed=owed))
    assert await why(database, "p1") == 0
    assert [line for line in told(capsys) if "owed" in line] == [
        "  owed       the event on push.outcomes",
        "  owed       a receipt to queue billing\\x1b.replies (correlation id c1)",
        "  owed       a receipt to queue audit",
    ]


@pytest.mark.parametrize("alive", [True, False])
async def test_a_push_that_has_not_ended_says_who_will_end_it(
    database: str, capsys: pytest.CaptureFixture[str], alive: bool
) -> None:
    pending = finished_row(
        "u1", Outcome.PENDING, Reason.AWAITING_PROOF,
        written_at=PUBLISHED_AT, finished_at=None, owed=(), node="n", boot="b", confirm=Proof.ACKED,
    )  # fmt: skip
    await write_rows(database, pending)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select claim_node('n', %s, null)", ("b" if alive else "another",))
    assert await why(database, "p1") == 0
    text = "\n".join(told(capsys))
    assert "finished   not yet, for " in text
    assert ("node n lives and waits for the proof, acked" in text) is alive
    assert ("its process is dead: the next sweep of any node ends it" in text) is not alive
    assert "the event on push.outcomes, once it has ended" in text


KEPT: dict[str, object] = {
    "expires_at": PUBLISHED_AT + 3600,
    "payload": b'{"n": 1}',
    "position": 1,
    "collapse_key": "balance",
}


async def test_a_kept_push_says_until_when_and_what_it_waits_for(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await write_rows(
        database, finished_row("u1", Outcome.STORED, Reason.NO_SESSION, finished_at=None, owed=(), **KEPT)
    )
    assert await why(database, "p1") == 0
    text = "\n".join(told(capsys))
    assert "push p1 for u1: stored\n  kept: the user had no session" in text
    assert "kept       for 1 h, until 2027-01-1" in text
    assert ", collapse key balance" in text
    assert (
        ": it goes out when the user opens a session or proves what was sent, and ends with its ttl" in text
    )
    assert "data       8 bytes (json) in delivery_log.payload" in text
    assert "bridge replay" not in text
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("update delivery_log set expires_at = now() - interval '1 second'")
    assert await why(database, "p1") == 0
    assert "its ttl is over, the next sweep of any node ends it as expired/ttl" in "\n".join(told(capsys))


@pytest.mark.parametrize(
    ("outcome", "reason", "sentence"),
    [
        (Outcome.EXPIRED, Reason.TTL, "its ttl ran out before it was proven"),
        (
            Outcome.SUPERSEDED,
            Reason.COLLAPSED,
            "a newer push with its collapse_key came before this one was proven",
        ),
        (Outcome.RECALLED, Reason.WITHDRAWN, "withdrawn by a recall before it was proven"),
        (
            Outcome.DROPPED,
            Reason.MAILBOX_FULL,
            "the user's mailbox was over its limit, and this was the oldest push in it",
        ),
    ],
)
async def test_a_kept_push_that_ended_says_why_and_how_to_send_it_again(
    database: str, capsys: pytest.CaptureFixture[str], outcome: Outcome, reason: Reason, sentence: str
) -> None:
    await write_rows(database, finished_row("u1", outcome, reason, **KEPT))
    assert await why(database, "p1") == 0
    lines = told(capsys)
    assert lines[:2] == [f"push p1 for u1: {outcome}", f"  {sentence}"]
    assert steps(lines) == ["published", "taken", "written", "finished", "owed"]
    assert "to send it again: bridge replay --where push=p1" in lines[-1]


async def test_proof_that_came_after_the_end_is_told_last(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await write_rows(
        database, finished_row("u1", Outcome.UNKNOWN, Reason.NO_PROOF, written_at=PUBLISHED_AT + 0.6)
    )
    store = PostgresStore(database)
    await store.prove_late([LateProof(RowKey("", "p1", "u1"), PUBLISHED_AT + 9)])
    await store.close()
    assert await why(database, "p1") == 0
    lines = told(capsys)
    assert steps(lines) == ["published", "taken", "written", "finished", "late", "owed"]
    assert any("after the end: the outcome stays" in line for line in lines)


async def test_a_repeat_with_other_content_is_a_warning(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await write_rows(
        database,
        *(
            finished_row(f"u{n}", Outcome.RECEIVED, Reason.PONG, proven_at=PUBLISHED_AT + 0.6)
            for n in range(30)
        ),
    )
    store = PostgresStore(database)
    await store.differing([Difference(RowKey("", "p1", "u1"), PUBLISHED_AT + 9)])
    await store.close()
    assert await why(database, "p1", "u1") == 0
    lines = told(capsys)
    assert steps(lines)[-2:] == ["repeated", "owed"]
    assert any("WARNING: with other content, which was sent to nobody" in line for line in lines)
    assert await why(database, "p1") == 0
    assert [line.split()[0] for line in told(capsys) if "repeated with other content" in line] == ["u1"]


async def test_of_many_users_the_ends_are_counted_and_those_not_reached_come_first(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there = [
        finished_row(f"a{i:02}", Outcome.RECEIVED, Reason.PONG, proven_at=PUBLISHED_AT + 0.6)
        for i in range(30)
    ]
    await write_rows(database, *there, finished_row("z", Outcome.OFFLINE, Reason.NO_SESSION))
    assert await why(database, "p1") == 0
    lines = told(capsys)
    assert lines[0] == "push p1: 31 users"
    assert " ".join(lines[1].split()) == "30 received/pong: the peer answered a ping sent after the push"
    users = [line.split()[0] for line in lines[4:24]]
    assert users[:2] == ["z", "a00"]
    assert "... and 11 more" in lines
    assert await why(database, "p1", "a07") == 0
    assert told(capsys)[0] == "push p1 for a07: received"


async def test_a_user_it_was_not_addressed_to_is_told_apart_from_a_push_nobody_knows(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await write_rows(
        database, finished_row("u1", Outcome.RECEIVED, Reason.PONG, proven_at=PUBLISHED_AT + 0.6)
    )
    assert await why(database, "p1", "U1") == 1
    text = "\n".join(told(capsys))
    assert "push p1 has no row for U1, but for others:" in text
    assert "It was not addressed to that user" in text


async def test_an_id_that_two_tenants_use_is_told_for_each_or_for_one(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for tenant in ("bank", "shop"):
        await write_rows(
            database, finished_row("u1", Outcome.OFFLINE, Reason.NO_SESSION, key=RowKey(tenant, "p1", "u1"))
        )
    assert await why(database, "p1") == 0
    heads = [line for line in told(capsys) if line.startswith("push ")]
    assert heads == [f"push p1 of tenant {tenant} for u1: offline" for tenant in ("bank", "shop")]
    assert await why(database, "p1", tenant="shop") == 0
    assert "bank" not in "\n".join(told(capsys))


async def test_a_push_nobody_knows_may_wait_in_a_queue_that_nobody_takes_from(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await declare(vhost)
    await publish(vhost, [b"{}", b"{}"])
    assert await why(database, "p9", url=vhost) == 1
    text = "\n".join(told(capsys))
    assert "push p9 is not in the delivery log" in text
    assert "It may wait in push.requests: 2 messages are there, and no bridge takes from it." in text
    assert "older than the log, which begins on 20" in text
    assert "It never came" in text


async def test_without_a_broker_the_log_is_asked_all_the_same(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await why(database, "p9", url=NOWHERE) == 1
    assert "the broker could not be asked" in "\n".join(told(capsys))
    assert await why(database, "p9", url=vhost) == 1
    assert "There is no queue push.requests" in "\n".join(told(capsys))


def test_the_command_prints_json_and_exits_as_documented(
    database: str, empty_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            """
            insert into delivery_log (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions,
                attempts, published_at, taken_at, finished_at, node, boot, event, app_id, detail, traceparent)
            select day, '', 'p1', 'u1', 'offline', 'no_session', true, 2, 0, 0, now(), now(), now(), 'n', 'b', '',
                '', '', '' from log_day
            """
        )
    words = ["why", "--amqp-url", NOWHERE, "--postgres-dsn", database, "--json"]
    assert main([*words, "p1", "u1"]) == 0
    only = json.loads(capsys.readouterr().out)
    assert (only["push_id"], only["user"], only["outcome"], only["final"]) == ("p1", "u1", "offline", True)
    assert main([*words, "p2"]) == 1
    assert capsys.readouterr().out == ""
    assert main(["why", "p1", "--postgres-dsn", empty_database]) == 1
    assert "run `bridge db upgrade`" in capsys.readouterr().err
    assert main(["why", "p1", "--postgres-dsn", "postgresql://me:s3cr3t@127.0.0.1:1/x"]) == 3
    assert "s3cr3t" not in capsys.readouterr().err


async def test_who_had_the_sessions_is_told_where_another_node_took_the_push(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        bridge(vhost, database, node="taker"),
        bridge(vhost, database, node="holder") as holder,
        client(holder.ws_port, token("u1"), subprotocols=ENVELOPE) as c,
    ):
        session = json.loads(await c.read())["session"]
        await push(vhost, request("u1", "p1"))
        await final_rows(database, 1)
        found = await lookup.look_up(database, "p1")
        assert [(one.session, one.node) for one in found.rows[0].held] == [(session, "holder")]
        assert await why(database, "p1", url=vhost) == 0
    text = "\n".join(told(capsys))
    assert "from the queue by node taker, boot " in text
    assert f"held       by holder (session {session})" in text
