"""`bridge audit`: quiet when all adds up, and each kind of drift is found."""

from __future__ import annotations

import time
from typing import LiteralString

import psycopg
import pytest

from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.postgres.upkeep import Upkeep
from bridge.cli import audit as command
from bridge.cli import main
from bridge.config import CommonSettings
from bridge.core.model.outcomes import ENDINGS, Outcome, Reason
from bridge.core.model.rows import RowKey
from bridge.core.ports.store import Account
from tests.support.amqp import declare, publish
from tests.support.bridges import bridge, final_rows, request, token
from tests.support.bridges import publish as push
from tests.support.clients import client
from tests.support.other_sessions import eventually
from tests.support.queues import channel
from tests.support.rows import row


def at(url: str, dsn: str) -> CommonSettings:
    return CommonSettings(amqp_url=url, postgres_dsn=dsn, _env_file=None)


async def audit(url: str, dsn: str) -> int:
    return await command.audit(at(url, dsn), 24)


def drift(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was found: the thing, and the words."""
    lines = capsys.readouterr().out.splitlines()
    found = [line.removeprefix("DRIFT").strip() for line in lines if line.startswith("DRIFT")]
    return {line[:14].strip(): line[14:].strip() for line in found}


@pytest.fixture
async def house(vhost: str, database: str) -> tuple[str, str]:
    """A broker and a database as a bridge leaves them: topology and partitions are there."""
    await declare(vhost)
    await Upkeep(database).run_once(30)
    return vhost, database


async def log(dsn: str, outcome: Outcome, reason: Reason, age: float, **more: object) -> None:
    taken = time.time() - age
    facts: dict[str, object] = {
        "key": RowKey("", f"p-{outcome}-{age}", "u1"),
        "reason": reason,
        "published_at": taken,
        "taken_at": taken,
        "written_at": taken,
        "proven_at": None,
        "finished_at": taken + 0.1,
        "node": "n",
        "boot": "b",
    }
    store = PostgresStore(dsn)
    await store.record([row("p", outcome=outcome, **(facts | more))])  # type: ignore[arg-type]
    await store.close()


async def log_pending(dsn: str, age: float) -> None:
    await log(dsn, Outcome.PENDING, Reason.AWAITING_PROOF, age, finished_at=None, owed=())


def change(dsn: str, statement: LiteralString) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


async def test_after_ordinary_traffic_all_adds_up(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        await push(vhost, request("u1", "p1"), request("away", "p2"), {"id": "bad", "data": 1})
        await c.read()
        await final_rows(database, 3)
        # Three days ahead, which the bridge makes while it works already.
        await eventually(
            database, "select count(*) >= 4 from pg_inherits where inhparent = 'delivery_log'::regclass"
        )
        assert await audit(vhost, database) == 0
    lines = capsys.readouterr().out.splitlines()
    names = lines[0].split()
    hour = dict(zip(names, lines[1].replace(" ", "T", 1).split(), strict=True))
    assert {name: hour[name] for name in names[1:]} == {
        "taken": "3", "rows": "3", "delivered": "1", "offline": "1", "expired": "0", "superseded": "0", "recalled": "0",
        "dropped": "0", "unknown": "0", "rejected": "1", "pending": "0", "stored": "0", "owing": "0", "wrong": "0",
    }  # fmt: skip
    assert all(line.startswith("ok ") for line in lines[3:])
    assert any(
        line.split()[1:] == ["push.requests", "0", "ready,", "bridges", "take", "from", "it"]
        for line in lines
    )


async def test_a_row_that_is_gone_is_drift_and_so_is_one_that_nobody_wrote(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for age in (1, 2, 3):
        await log(house[1], Outcome.OFFLINE, Reason.NO_SESSION, age)
    assert await audit(*house) == 0
    change(house[1], "delete from delivery_log where push_id = 'p-offline-2'")
    assert await audit(*house) == 1
    assert drift(capsys) == {"log": "1 of the rows that were written in these hours are gone"}
    change(house[1], "delete from delivery_log")
    assert await audit(*house) == 1
    assert drift(capsys) == {"log": "3 of the rows that were written in these hours are gone"}
    change(house[1], "delete from tally")
    await log(house[1], Outcome.OFFLINE, Reason.NO_SESSION, 1)
    change(house[1], "delete from tally")
    assert await audit(*house) == 1
    assert drift(capsys)["log"].endswith("1 exist but were never written")


async def test_a_push_that_a_living_process_has_lost_is_drift(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    lease = PostgresLease(house[1], "n", "b")
    await lease.claim()
    await lease.renew(Account(10, 8, 2, ()))
    assert await audit(*house) == 0
    await lease.renew(Account(11, 8, 2, ()))
    assert await audit(*house) == 1
    assert drift(capsys) == {"taken": "11 pushes by n since its start: 8 with a row, 2 on their way"}
    await lease.release()


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_push_that_was_lost_stays_drift_when_its_process_has_ended(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str], how: str
) -> None:
    lost, sound = PostgresLease(house[1], "n", "b1"), PostgresLease(house[1], "m", "b2")
    for lease, on_their_way in ((lost, 2), (sound, 3)):
        await lease.claim()
        await lease.renew(Account(11, 8, on_their_way, ()))
    if how == "stopped":
        await lost.release()
        await sound.release()
    else:
        change(house[1], "update node set seen_at = seen_at - interval '1 minute'")
    following = [PostgresLease(house[1], name, f"next of {name}") for name in "nm"]
    for lease in following:
        await lease.claim()
    assert await audit(*house) == 1
    found = drift(capsys)["taken"]
    assert found.startswith("11 pushes by n since its start until it ended at ")
    assert found.endswith(": 8 with a row, 2 on their way")
    change(house[1], "update past_boot set seen_at = seen_at - interval '40 days'")
    await Upkeep(house[1]).run_once(30)
    with psycopg.connect(house[1]) as connection:
        assert connection.execute("select count(*) from past_boot").fetchone() == (0,)
    for lease in (lost, sound, *following):
        await lease.release()


async def test_what_retention_has_dropped_is_not_missed(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    await log(house[1], Outcome.OFFLINE, Reason.NO_SESSION, 1)
    for days in ("9", "12"):  # the day before is known for one day more
        change(house[1], f"select roll_day(log_today() + {days})")
    assert (await Upkeep(house[1]).run_once(1)).dropped
    await audit(*house)
    assert "log" not in drift(capsys)
    with psycopg.connect(house[1]) as connection:
        assert connection.execute("select count(*) from tally").fetchone() == (0,)


async def test_an_empty_house_adds_up(house: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert await audit(*house) == 0
    assert "(no push was taken)" in capsys.readouterr().out


async def test_rows_that_a_dead_process_left_are_drift_once_a_sweep_should_have_ended_them(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    await log_pending(house[1], 2)
    assert await audit(*house) == 0
    await log_pending(house[1], 30)
    assert await audit(*house) == 1
    found = drift(capsys)
    assert list(found) == ["dead nodes"]
    assert found["dead nodes"].startswith("1 rows pending")
    assert found["dead nodes"].endswith("nodes alive: none")


@pytest.mark.parametrize(
    ("life", "orphan"),
    [
        ("'b', now() - interval '1 hour', now()", False),
        ("'b', now() - interval '1 hour', now() - interval '7 seconds'", False),
        ("'b', now() - interval '1 hour', now() - interval '30 seconds'", True),
        ("'another', now() - interval '2 seconds', now()", False),
        ("'another', now() - interval '1 hour', now()", True),
    ],
    ids=["alive", "just dead", "long dead", "just replaced", "long replaced"],
)
async def test_a_process_is_dead_by_its_lease_and_by_who_has_its_name(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str], life: LiteralString, orphan: bool
) -> None:
    await log_pending(house[1], 300)
    change(
        house[1],
        "insert into node (name, boot, claimed_at, seen_at, steady_since)"
        f" select 'n', l.*, now() from (values ({life})) as l",
    )
    assert await audit(*house) == int(orphan)
    assert ("dead nodes" in drift(capsys)) is orphan


async def test_a_row_that_its_living_process_has_forgotten_is_drift(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    await log_pending(house[1], 7300)
    change(house[1], "select claim_node('n', 'b', null)")
    assert await audit(*house) == 1
    assert list(drift(capsys)) == ["stuck rows"]


async def log_kept(dsn: str, age: float, ttl: float, **more: object) -> None:
    facts = {"finished_at": None, "written_at": None, "payload": b"1", "position": 1}
    ends = time.time() - age + ttl
    await log(dsn, Outcome.STORED, Reason.NO_SESSION, age, **(facts | {"expires_at": ends} | more))


async def test_what_is_kept_counts_as_such_and_waits_for_its_user_not_for_a_process(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    await log_kept(house[1], 2000, 3600)
    assert await audit(*house) == 0
    names, hour, *_ = capsys.readouterr().out.splitlines()
    counts = dict(zip(names.split()[1:], hour.split()[2:], strict=True))
    assert (counts["rows"], counts["stored"], counts["pending"], counts["wrong"]) == ("1", "1", "0", "0")


async def test_a_kept_push_that_outlives_its_ttl_by_a_minute_is_drift(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    await log_kept(house[1], 100, 70)
    assert await audit(*house) == 0
    await log_kept(house[1], 300, 200)
    assert await audit(*house) == 1
    assert drift(capsys) == {"kept": "1 rows stored though their ttl ended over 60 s ago"}


async def test_every_end_is_counted_in_a_column(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = set()
    for number, ending in enumerate(ENDINGS):
        facts: dict[str, object] = {"proven_at": time.time(), "expires_at": time.time() + 60, "payload": b"1"}
        if not ending.final:
            facts["finished_at"] = None
        await log(house[1], ending.outcome, ending.reason, number / 100, **facts)
        seen.add(ending.outcome)
    assert len(seen) == len(Outcome)
    await audit(*house)
    names, *hours = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    kinds = names.split()[3:-2]
    given, *counted = [
        sum(map(int, column)) for column in zip(*(hour.split()[2:] for hour in hours), strict=True)
    ]
    assert given == counted[0]
    assert counted[0] == len(ENDINGS) == sum(counted[1 : 1 + len(kinds)])
    assert counted[-1] == 0, "none contradicts itself"


async def test_a_receipt_that_is_owed_for_over_a_minute_is_drift(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    await log(house[1], Outcome.OFFLINE, Reason.NO_SESSION, 30, owed=())
    assert await audit(*house) == 0
    await log(house[1], Outcome.OFFLINE, Reason.NO_SESSION, 90, owed=())
    assert await audit(*house) == 1
    assert drift(capsys) == {"receipts": "1 rows owe one for over 60 s"}


@pytest.mark.parametrize(
    "lie",
    [
        "update delivery_log set outcome = 'received', reason = 'pong'",
        "update delivery_log set outcome = 'written', reason = 'handed_over', written_at = null",
        "update delivery_log set finished_at = null",
        "update delivery_log set reason = 'pong'",
        "update delivery_log set outcome = 'pending', reason = 'awaiting_proof'",
        "update delivery_log set outcome = 'stored', final = false, finished_at = null",
    ],
    ids=["unproven", "not written", "no end", "no such ending", "pending and final", "kept without data"],
)
async def test_a_row_that_contradicts_itself_is_drift(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str], lie: LiteralString
) -> None:
    await log(house[1], Outcome.OFFLINE, Reason.NO_SESSION, 5)
    assert await audit(*house) == 0
    change(house[1], lie)
    assert await audit(*house) == 1
    assert drift(capsys)["rows"].startswith("1 contradict themselves")


async def test_a_day_ahead_without_a_partition_is_drift(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await declare(vhost)
    change(database, "select roll_day()")  # the template may be of yesterday
    change(database, "select make_partition(log_today() + 2)")
    assert await audit(vhost, database) == 1
    assert drift(capsys)["partitions"].count("-") == 2, "one day is named: tomorrow"
    change(database, "select make_partition(log_today() + 1)")
    assert await audit(vhost, database) == 0


async def test_messages_that_nobody_takes_and_queues_that_are_missing_are_drift(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    await publish(house[0], [b"{}", b"{}", b"{}"])
    assert await audit(*house) == 1
    assert drift(capsys) == {"push.requests": "3 ready, nobody takes them"}
    async with channel(house[0]) as open_channel:
        await open_channel.queue_delete("push.requests")
        await open_channel.queue_delete("push.dead")
    assert await audit(*house) == 1
    assert drift(capsys) == {
        "push.requests": "the queue is missing",
        "push.dead": "the queue is missing",
    }


async def test_only_the_hours_that_were_asked_for_are_counted(
    house: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for hours in (0, 2, 50):
        await log(house[1], Outcome.OFFLINE, Reason.NO_SESSION, hours * 3600)
    for asked, shown in ((1, 1), (3, 2), (100, 3), (10**12, 3)):
        assert await command.audit(at(*house), asked) == 0
        hours_shown = capsys.readouterr().out.partition("\n\n")[0].splitlines()[1:]
        assert len(hours_shown) == shown


def test_without_broker_or_database_it_exits_with_3(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = "127.0.0.1:1"
    away = f"amqp://me:s3cr3t@{nowhere}/"
    assert main(["audit", "--amqp-url", away, "--postgres-dsn", database]) == 3
    dsn = f"postgresql://me:s3cr3t@{nowhere}/x"
    assert main(["audit", "--amqp-url", vhost, "--postgres-dsn", dsn]) == 3
    told = capsys.readouterr()
    assert "s3cr3t" not in told.err + told.out
