"""`bridge replay`: what matches, what can be published again, and that it is published once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from bridge.adapters.amqp.producer import NotTaken, Producer, PushMessage
from bridge.adapters.amqp.topology import REQUESTS
from bridge.cli import main
from bridge.cli import replay as command
from bridge.config import CommonSettings
from bridge.core.errors import BrokerUnavailable, SettingsError
from bridge.operator import replay as replaying
from bridge.operator.replay import Where, where
from tests.support.amqp import declare
from tests.support.bridges import bridge, endings, final_rows, request, rows, token
from tests.support.bridges import publish as push
from tests.support.clients import client
from tests.support.ports import ManualClock
from tests.support.queues import channel, drained, ready_messages

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
NOWHERE = "amqp://me:s3cr3t@127.0.0.1:1/"

Log = Callable[..., None]


@pytest.fixture
def log(database: str) -> Iterator[Log]:
    """Writes a row as a bridge leaves it for a push with a ttl of an hour that nobody got."""
    with psycopg.connect(database, autocommit=True) as connection:

        def write(push_id: str, user: str = "u1", *, age: float = 60.0, **more: object) -> None:
            taken = datetime.now(UTC) - timedelta(seconds=age)
            columns: dict[str, object] = {
                "push_id": push_id, "user_id": user, "tenant": "", "outcome": "unknown", "reason": "no_proof",
                "final": True, "confirm": 2, "sessions": 1, "attempts": 1, "published_at": taken,
                "taken_at": taken, "finished_at": taken, "expires_at": taken + timedelta(hours=1), "node": "n",
                "boot": "b", "event": "order.paid", "app_id": "billing", "detail": "", "traceparent": "",
                "payload": json.dumps({"n": push_id}).encode(), "encoding": "json", **more,
            }  # fmt: skip
            names = ", ".join(columns)
            marks = ", ".join(["%s"] * len(columns))
            connection.execute(
                f"insert into delivery_log (day, {names}) select day, {marks} from log_day",
                list(columns.values()),
            )

        yield write


def at(url: str, dsn: str) -> CommonSettings:
    return CommonSettings(amqp_url=url, postgres_dsn=dsn, _env_file=None)


async def replay(url: str, dsn: str, *conditions: str, **more: Any) -> int:
    asked = {"mark": "1", "rate": 1000.0, "ttl": None, "dry_run": False, **more}
    return await command.replay(at(url, dsn), conditions or ("since=1h",), **asked)


def counted(capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    """How many rows got which verdict, as it was printed."""
    words = {text: verdict for verdict, text in replaying.VERDICTS.items()}
    lines = [line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    return {words[line[1]]: int(line[0]) for line in lines if len(line) == 2}


async def published(url: str) -> list[tuple[str, str]]:
    """(new id, user) of what waits in push.requests, in its order; takes it."""
    return [
        (str(m.headers["x-push-id"]), str(m.headers["x-push-user"])) for m in await drained(url, REQUESTS)
    ]


# --- which rows are meant --------------------------------------------------------------------------------


def test_conditions_are_read_and_times_may_be_ages() -> None:
    meant = where(
        ["user=a=b", "outcome=unknown", "outcome=offline", "tenant=", "since=2h", "until=2026-11-22T11:30Z"],
        NOW,
    )
    assert meant == Where(
        user=("a=b",),
        outcome=("unknown", "offline"),
        tenant=("",),
        since=NOW - timedelta(hours=2),
        until=NOW - timedelta(minutes=30),
    )
    assert [where([f"since={age}"], NOW).since for age in ("90s", "30m", "30min", "7d")] == [
        NOW - timedelta(seconds=seconds) for seconds in (90, 1800, 1800, 7 * 86400)
    ]
    assert where(["until=2026-11-22T10:00+02:00"], NOW).until == datetime(
        2026, 11, 22, 10, tzinfo=timezone(timedelta(hours=2))
    )


@pytest.mark.parametrize(
    ("conditions", "complaint"),
    [
        (
            ["ann"],
            "key=value expected, not 'ann'; keys: push, user, event, outcome, reason, tenant, since, until",
        ),
        (["usr=ann"], "key=value expected, not 'usr=ann'"),
        (["user="], "user needs a value"),
        (["outcome=lost"], "no outcome 'lost'; there are acked, dropped,"),
        (["reason=bad"], "no reason 'bad'; there are ack_frame,"),
        (["since=yesterday"], "since: a time such as 2026-11-22T18:30 or an age such as 2h expected"),
        (["since=999999999d"], "since: a time such as"),
        (["since=1h", "since=2h"], "since can be given once"),
        (["since=1h", "until=2h"], "since is not before until"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(conditions: list[str], complaint: str) -> None:
    with pytest.raises(SettingsError) as refused:
        where(conditions, NOW)
    assert f"--where: {complaint}" in str(refused.value)


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        (["push=p1", "push=p2"], ["p1", "p2"]),
        (["user=u2"], ["p2"]),
        (["user=u2", "push=p1"], []),
        (["event=chat"], ["p3"]),
        (["outcome=offline", "outcome=dropped"], ["p4"]),
        (["reason=no_session"], ["p4"]),
        (["tenant=shop"], ["p5"]),
        (["tenant=", "event=chat"], ["p3"]),
        (["since=5min"], ["p1", "p2", "p3", "p4", "p5"]),
        (["since=3h", "until=1h"], ["old"]),
    ],
)
async def test_all_keys_must_fit_and_one_value_of_each(
    vhost: str, database: str, log: Log, conditions: list[str], ids: list[str]
) -> None:
    await declare(vhost)
    log("old", age=7200)
    log("p1", age=50)
    log("p2", "u2", age=40)
    log("p3", event="chat", age=30)
    log("p4", outcome="offline", reason="no_session", age=20)
    log("p5", tenant="shop", age=10)
    assert await replay(vhost, database, *conditions) == (0 if ids else 1)
    assert [new for new, _ in await published(vhost)] == [f"{push_id}/replay-1" for push_id in ids]


# --- which of them can be --------------------------------------------------------------------------------


async def test_a_dry_run_counts_what_can_be_and_what_can_not_and_publishes_nothing(
    vhost: str, database: str, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    await declare(vhost)
    log("kept")
    log("twice", "u1")
    log("twice", "u2")
    log("now or never", payload=None, encoding=None, expires_at=None)
    log("still", outcome="stored", reason="no_session", final=False, finished_at=None)
    log("bad", "", outcome="rejected", reason="invalid", encoding=None)
    log("poison", outcome="rejected", reason="poison")
    log("all", "", outcome="offline", reason="nobody")
    log("done")
    log("done/replay-1")
    log("emoji", meta=json.dumps({"🙂" * 64: "long"}))
    assert await replay(vhost, database, dry_run=True) == 1
    told = capsys.readouterr().out
    assert told.startswith("11 rows match\n")
    assert "2  were rejected: their messages are in push.dead, see `bridge dead replay`" in told
    assert await replay(vhost, database, dry_run=True) == 1
    assert counted(capsys) == {
        "again": 3, "not_kept": 1, "open": 1, "rejected": 2, "nobody": 1, "done": 1, "own": 1, "meta": 1,
    }  # fmt: skip
    assert await ready_messages(vhost, REQUESTS) == 0
    assert await replay(vhost, database) == 1
    assert sorted(await published(vhost)) == [
        ("kept/replay-1", "u1"),
        ("twice/replay-1", "u1"),
        ("twice/replay-1", "u2"),
    ]


async def test_nothing_that_matches_is_a_failure_since_a_typing_error_looks_like_it(
    vhost: str, database: str, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await replay(vhost, database, "user=nobody") == 1
    assert capsys.readouterr().out == "no row matches\n"


# --- what is published -----------------------------------------------------------------------------------


async def test_a_replay_is_the_push_again_but_for_id_times_and_collapse_key(
    vhost: str, database: str, log: Log
) -> None:
    await declare(vhost)
    meta = {"campaign": "spring"}
    log(
        "p1", tenant="shop", meta=json.dumps(meta), confirm=3, ack_within=1.5, collapse_key="balance",
        payload=b'{"n": 1e400}',
    )  # fmt: skip
    assert await replay(vhost, database) == 0
    (message,) = await drained(vhost, REQUESTS)
    message.headers.pop("x-delivery-count", None)
    assert message.headers == {
        "x-push-id": "p1/replay-1", "x-push-replay-of": "p1", "x-push-user": "u1", "x-push-event": "order.paid",
        "x-push-confirm": "acked", "x-push-tenant": "shop", "x-push-meta": meta, "x-push-ttl": "3600",
        "x-push-ack-within": "1.5",
    }  # fmt: skip
    assert (message.body, message.content_type, message.app_id) == (
        b'{"n": 1e400}',
        "application/json",
        "billing",
    )
    assert (message.routing_key, message.timestamp) == ("user.u1", None)


@pytest.mark.parametrize(
    ("encoding", "data", "frame"),
    [
        ("json", b'"a string"', "a string"),
        ("text", "123 grüße".encode(), "123 grüße"),
        ("bytes", b"\x00\xff", b"\x00\xff"),
    ],
)
async def test_data_arrives_as_what_it_was(
    vhost: str, database: str, log: Log, encoding: str, data: bytes, frame: str | bytes
) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        log("p1", payload=data, encoding=encoding)
        assert await replay(vhost, database, ttl=0.0) == 0
        assert await c.read() == frame


async def test_of_a_push_to_many_only_those_who_match_get_it_again_and_each_once(
    vhost: str, database: str, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database) as b:
        async with client(b.ws_port, token("u1")) as one, client(b.ws_port, token("u2")) as two:
            async with client(b.ws_port, token("u3")) as three:
                for user in ("u1", "u2"):
                    log("p1", user)
                log("p1", "u3", outcome="received", reason="pong")
                assert await replay(vhost, database, "push=p1", "outcome=unknown", ttl=0.0) == 0
                assert [json.loads(await c.read()) for c in (one, two)] == [{"n": "p1"}] * 2
                found = await final_rows(database, 5)
                assert await replay(vhost, database, "push=p1", "outcome=unknown", ttl=0.0) == 0
                assert capsys.readouterr().out.endswith(
                    "2 rows match\n        2  replayed before: the log has the row of it\n"
                )
                log("p2", "u3")
                assert await replay(vhost, database, "push=p2", ttl=0.0) == 0
                assert json.loads(await three.read()) == {"n": "p2"}
    assert endings(found)["p1/replay-1", "u1"] == ("received", "pong")
    assert ("p1/replay-1", "u3") not in endings(found)


async def test_what_was_published_and_is_not_in_the_log_yet_is_a_repeat_to_the_bridge(
    vhost: str, database: str, log: Log
) -> None:
    await declare(vhost)
    log("p1")
    for _ in range(2):
        assert await replay(vhost, database, "push=p1", ttl=0.0) == 0
    assert await ready_messages(vhost, REQUESTS) == 2
    async with bridge(vhost, database):
        await final_rows(database, 2)
        async with asyncio.timeout(10):
            while await ready_messages(vhost, REQUESTS):
                await asyncio.sleep(0.01)
    assert set(endings(await final_rows(database, 2))) == {("p1", "u1"), ("p1/replay-1", "u1")}


async def test_another_mark_sends_again_and_a_replay_of_a_replay_is_one_of_the_first(
    vhost: str, database: str, log: Log
) -> None:
    await declare(vhost)
    log("p1", outcome="received", reason="pong")
    log("p1/replay-1")
    assert await replay(vhost, database, "outcome=unknown", mark="again") == 0
    assert await published(vhost) == [("p1/replay-again", "u1")]


async def test_an_id_that_leaves_no_room_for_the_mark_is_hashed_the_same_each_time(
    vhost: str, database: str, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    await declare(vhost)
    for last in "ab":
        log("é" * 127 + last)
    assert await replay(vhost, database) == 0
    new = [push_id for push_id, _ in await published(vhost)]
    assert len(set(new)) == 2
    assert all(len(push_id) == 80 and push_id.startswith("sha256-") for push_id in new)
    for push_id in new:
        log(push_id)
    assert await replay(vhost, database) == 0
    assert counted(capsys)["own"] == 2
    assert await replay(vhost, database, mark="2") == 0
    assert {push_id for push_id, _ in await published(vhost)} == {
        p.replace("/replay-1", "/replay-2") for p in new
    }


async def test_users_of_one_push_were_taken_at_one_moment_and_none_is_left_out(
    vhost: str, database: str, log: Log
) -> None:
    await declare(vhost)
    taken = datetime.now(UTC) - timedelta(minutes=1)
    for n in range(7):
        log("p1", f"u{n}", taken_at=taken)
        log("p2", f"u{n}", taken_at=taken)
    assert await replay(vhost, database, rate=10.0) == 0
    wanted = [(f"{push_id}/replay-1", f"u{n}") for push_id in ("p1", "p2") for n in range(7)]
    assert await published(vhost) == wanted


async def test_a_push_whose_ttl_ran_out_is_kept_again_and_arrives(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b:
        await push(vhost, request("u1", "p1", ttl=0.2, confirm="acked", meta={"campaign": "spring"}))
        assert endings(await final_rows(database, 1)) == {("p1", "u1"): ("expired", "ttl")}
        assert await replay(vhost, database, "outcome=expired", ttl=60.0) == 0
        async with asyncio.timeout(10):
            while len(found := await rows(database)) < 2:
                await asyncio.sleep(0.01)
        (again,) = [row for row in found if row["push_id"] == "p1/replay-1"]
        assert (again["outcome"], again["meta"]) == ("stored", {"campaign": "spring"})
        async with client(b.ws_port, token("u1")) as c:
            assert json.loads(await c.read()) == {"n": "p1"}


# --- slowly, and stopped ---------------------------------------------------------------------------------


async def test_it_keeps_to_the_rate_and_to_the_order_of_taking(vhost: str, database: str, log: Log) -> None:
    await declare(vhost)
    for n in range(25):
        log(f"p{n:02}", age=100 - n)
    clock = ManualClock(datetime.now(UTC).timestamp())
    running = asyncio.create_task(replay(vhost, database, rate=50.0, clock=clock))
    ids: list[str] = []
    for page in range(3):
        async with asyncio.timeout(10):
            while not clock._sleepers:
                await asyncio.sleep(0.01)
        ids += [push_id for push_id, _ in await published(vhost)]
        assert len(ids) == min(25, 10 * (page + 1))
        clock.advance(0.15 if page < 2 else 0.05)
        assert clock._sleepers
        clock.advance(0.06)
    assert await running == 0
    assert ids == [f"p{n:02}/replay-1" for n in range(25)]


async def test_an_interrupted_replay_says_how_far_it_came_and_goes_on_when_run_again(
    vhost: str,
    database: str,
    log: Log,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await declare(vhost)
    for n in range(5):
        log(f"p{n}", age=100 - n)
    real = Producer.publish_all
    calls = 0

    async def cut(self: Producer, requests: list[PushMessage]) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise BrokerUnavailable("cut")
        await real(self, requests)

    with monkeypatch.context() as patched:
        patched.setattr(Producer, "publish_all", cut)
        with pytest.raises(BrokerUnavailable, match="cut"):
            await replay(vhost, database, rate=10.0)
    assert capsys.readouterr().err == "stopped after 4 of 5: the same command continues from there\n"
    sent = [push_id for push_id, _ in await published(vhost)]
    for push_id in sent:
        log(push_id)
    assert await replay(vhost, database) == 0
    assert sent + [push_id for push_id, _ in await published(vhost)] == [f"p{n}/replay-1" for n in range(5)]


async def test_a_cancelled_replay_says_how_far_it_came(
    vhost: str, database: str, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    await declare(vhost)
    for n in range(3):
        log(f"p{n}")
    clock = ManualClock(datetime.now(UTC).timestamp())
    running = asyncio.create_task(replay(vhost, database, rate=1.0, clock=clock))
    async with asyncio.timeout(10):
        while not clock._sleepers:
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert "stopped after 1 of 3" in capsys.readouterr().err


async def test_without_a_queue_that_takes_it_nothing_is_replayed(vhost: str, database: str, log: Log) -> None:
    await declare(vhost)
    async with channel(vhost) as open_channel:
        await open_channel.queue_delete(REQUESTS)
    log("p1")
    with pytest.raises(NotTaken):
        await replay(vhost, database)


def test_the_command_exits_as_documented(
    vhost: str, database: str, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str, url: str = vhost, dsn: str = database) -> int:
        return main(["replay", "--amqp-url", url, "--postgres-dsn", dsn, *words])

    asyncio.run(declare(vhost))
    log("p1")
    assert run("--where", "push=p1", "--dry-run") == 0
    assert run("--where", "push=p1", "--rate", "5", "--ttl", "60") == 0
    assert run("--where", "push=p9") == 1
    assert run("--where", "push") == 2
    assert run("--where", "push=p1", "--mark", "a/b") == 2
    for wrong in ([], ["--where", "push=p1", "--rate", "0"]):
        with pytest.raises(SystemExit) as usage:
            run(*wrong)
        assert usage.value.code == 2
    assert run("--where", "push=p1", url=NOWHERE) == 3
    assert run("--where", "push=p1", dsn="postgresql://me:s3cr3t@127.0.0.1:1/x") == 3
    told = capsys.readouterr()
    assert "s3cr3t" not in told.err + told.out
    assert "--mark: 1 to 16 of letters" in told.err
