"""PgBouncer between the bridge and Postgres: in session mode all works; in transaction mode what people ask works, and
`serve` refuses to start. Whatever it is, who gets the server's side of a connection next finds nothing on it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime

import psycopg
import pytest

from bridge.adapters.postgres import migrate
from bridge.adapters.postgres.check import findings
from bridge.adapters.postgres.pooling import transaction_pooled
from bridge.adapters.postgres.store import PostgresStore
from bridge.cli import main
from bridge.core.errors import DatabaseUnsuitable
from bridge.operator import lookup, replay
from bridge.operator.books import read_books
from tests.support.bridges import bridge, final_rows, get, publish, request, token
from tests.support.clients import client
from tests.support.other_sessions import eventually
from tests.support.pooler import pgbouncer
from tests.support.rows import row

SETTINGS = """
    select current_setting('default_transaction_read_only'), current_setting('search_path'),
           current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('jit'),
           current_setting('enable_seqscan'), current_setting('datestyle'), current_setting('client_encoding'),
           (select count(*) from pg_prepared_statements), (select count(*) from pg_locks where locktype = 'advisory')
    """
SERVERS = 10
"""Connections to the server that a pool has at most here."""
Say = Callable[[str], None]


def untouched(pooled: str, direct: str) -> None:
    """Whoever comes next through the pool finds what a new connection has."""
    with psycopg.connect(direct, autocommit=True) as conn:
        wanted = conn.execute(SETTINGS).fetchall()
    for _ in range(SERVERS):  # it may give each statement to another of its servers
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as conn:
            assert conn.execute(SETTINGS).fetchall() == wanted


def filled(pooled: str) -> None:
    """Let the pool open several connections to the server: so many transactions are open at once."""
    with ExitStack() as stack:
        for _ in range(SERVERS // 2):
            conn = stack.enter_context(psycopg.connect(pooled, prepare_threshold=None))
            conn.execute("select 1")


async def everything_people_ask(pooled: str) -> None:
    found = await lookup.look_up(pooled, "p0")
    assert [r.user for r in found.rows] == ["u"]
    books = await read_books(pooled, 1)
    assert books.irregular.orphans == 0
    meant = replay.where(["outcome=received", "until=2200-01-01"], datetime.now(UTC))
    async with replay.selected(pooled, meant, "mark") as selection:
        for _ in range(8):
            assert await selection.count() == {"not_kept": 20}
            assert [page async for page in selection.pages(5)] == []
    assert migrate.status(pooled)[-1].applied_at


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_what_people_ask_works_through_a_pool_and_leaves_nothing_to_its_next_user(
    database: str, say: Say, mode: str
) -> None:
    store = PostgresStore(database)
    await store.record([row(f"p{n}") for n in range(20)])
    await store.close()
    # One server connection, and nobody cleans it up.
    with pgbouncer(database, mode, say, default_pool_size=1, server_reset_query="") as pooled:
        untouched(pooled, database)
        await everything_people_ask(pooled)
        untouched(pooled, database)
        assert await asyncio.to_thread(main, ["why", "p0", "--postgres-dsn", pooled]) == 0
        untouched(pooled, database)


@pytest.mark.parametrize("reset", ["DISCARD ALL", ""])
async def test_a_bridge_runs_whole_through_a_pool_in_session_mode(
    vhost: str, database: str, say: Say, reset: str
) -> None:
    with pgbouncer(database, "session", say, server_reset_query=reset) as pooled:
        for turn in range(2):
            async with bridge(vhost, pooled) as b:
                await publish(
                    vhost, {**request("u", f"kept {turn}"), "ttl": 60}, request("away", f"gone {turn}")
                )
                async with client(b.ws_port, token("u")) as opened:
                    await opened.read()
                    await final_rows(database, 2 * turn + 2)
                status, _ = await get(b.ops_port, f"/v1/pushes/gone%20{turn}")
                assert status == 200
                await eventually(
                    database,
                    "select count(*) >= 4 from pg_inherits where inhparent = 'delivery_log'::regclass",
                )
            untouched(pooled, database)
        assert [f for f in await findings(pooled) if f.level != "ok"] == []


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("transaction", {}),
        ("transaction", {"default_pool_size": 1}),
        ("transaction", {"server_round_robin": 1}),
        ("statement", {}),
    ],
)
async def test_a_bridge_refuses_a_pool_in_transaction_mode_with_one_sentence_and_strands_nothing(
    vhost: str,
    database: str,
    say: Say,
    capfd: pytest.CaptureFixture[str],
    mode: str,
    settings: dict[str, object],
) -> None:
    with pgbouncer(database, mode, say, **settings) as pooled:
        if "server_round_robin" in settings:
            filled(pooled)
        with pytest.raises(DatabaseUnsuitable, match="pooler in transaction mode"):
            async with bridge(vhost, pooled):
                pass
        untouched(pooled, database)
        words = [
            "serve",
            "--postgres-dsn",
            pooled,
            "--amqp-url",
            vhost,
            "--dev",
            "--ws-port",
            "0",
            "--ops-port",
            "0",
        ]
        script = f"import sys; from bridge.cli import main; sys.exit(main({words!r}))"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        async with asyncio.timeout(30):
            told = (await process.communicate())[0].decode()
        assert (process.returncode, "pooler in transaction mode" in told, "Traceback" in told) == (
            1,
            True,
            False,
        )
        if mode == "transaction":
            [finding] = [f for f in await findings(pooled) if f.level != "ok"]
            assert (finding.level, finding.what) == ("fail", "pooler")
        untouched(pooled, database)


async def test_a_pool_that_others_use_at_the_same_time_is_known_for_what_it_is(
    database: str, say: Say
) -> None:
    async def busy(pooled: str) -> None:
        async with await psycopg.AsyncConnection.connect(pooled, autocommit=True) as conn:
            conn.prepare_threshold = None
            while True:
                await conn.execute("select 1")

    for mode in ("session", "transaction"):
        with pgbouncer(database, mode, say) as pooled:
            others = [asyncio.create_task(busy(pooled)) for _ in range(6)]
            for _ in range(10):
                assert await transaction_pooled(pooled, "test") is (mode == "transaction")
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)


async def test_an_upgrade_through_a_pool_leaves_no_lock_behind(empty_database: str, say: Say) -> None:
    with pgbouncer(empty_database, "transaction", say, server_reset_query="") as pooled:
        assert len(migrate.upgrade(pooled)) == migrate.WANTED_VERSION
        assert migrate.upgrade(pooled) == []
        untouched(pooled, empty_database)


@pytest.mark.parametrize("command", ["serve", "check"])
async def test_options_that_a_pooler_does_not_pass_on_are_refused_at_the_start_in_one_sentence(
    vhost: str, database: str, say: Say, command: str
) -> None:
    with pgbouncer(database, "session", say) as pooled:
        dsn = f"{pooled}?options=-c%20geqo%3Doff"
        words = [command, "--postgres-dsn", dsn, "--amqp-url", vhost, "--ws-port", "0", "--ops-port", "0"]
        script = f"import sys; from bridge.cli import main; sys.exit(main({[*words, '--dev']!r}))"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        async with asyncio.timeout(30):
            told = (await process.communicate())[0].decode()
        assert process.returncode == 1, told
        assert told.count("alter role NAME set ...") == 1, told
        assert "Traceback" not in told


async def test_options_are_no_obstacle_where_the_pooler_passes_over_them(
    vhost: str, database: str, say: Say
) -> None:
    with pgbouncer(database, "session", say, ignore_startup_parameters="options") as pooled:
        async with bridge(vhost, f"{pooled}?options=-c%20geqo%3Doff"):
            pass
