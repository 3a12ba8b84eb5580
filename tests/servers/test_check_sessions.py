"""`bridge check` asks for as many connections to Postgres at once as `bridge serve` has, and says who refuses them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import conninfo

from bridge.adapters.finding import Finding
from bridge.adapters.postgres import limits as postgres_limits
from bridge.adapters.postgres import rights as postgres_rights
from bridge.adapters.postgres.check import findings
from bridge.adapters.postgres.pool import CONNECTIONS, CONNECTIONS_NEEDED
from tests.support.bridges import final_rows, get, process, publish, request, token
from tests.support.check_command import run_check
from tests.support.clients import client
from tests.support.pooler import pgbouncer

Say = Callable[[str], None]


@pytest.fixture
def app(database: str) -> Iterator[str]:
    """The DSN of a role that has what `bridge db grant` gives, and that limits bind."""
    name = f"app_{conninfo.conninfo_to_dict(database)['dbname']}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"create role {name} login password 'x'".encode())
        postgres_rights.grant(database, name)
        yield conninfo.make_conninfo(database, user=name, password="x")
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (name,))
        admin.execute(f"drop owned by {name} cascade".encode())
        admin.execute(f"drop role {name}".encode())


def execute(database: str, statement: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(statement.encode())


async def failures(dsn: str, node: str = "") -> list[Finding]:
    return [f for f in await findings(dsn, (node,)) if f.level != "ok"]


async def test_several_workers_need_as_many_connections_each(database: str, app: str) -> None:
    role = conninfo.conninfo_to_dict(app)["user"]
    execute(database, f"alter role {role} connection limit {CONNECTIONS_NEEDED}")
    assert await failures(app) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_limits, "CLOSING", 1.0)
        (found,) = [f for f in await findings(app, ("n1-1", "n1-2")) if f.level != "ok"]
    assert f"may open {2 * CONNECTIONS_NEEDED} connections at once, and could have" in found.words


async def refused(dsn: str) -> Finding:
    """The one failure. It tries again for a second: that is enough for sessions that were not closed just before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_limits, "CLOSING", 1.0)
        (found,) = await failures(dsn)
    return found


@pytest.mark.parametrize("limit", [1, 2, CONNECTIONS_NEEDED - 1])
async def test_a_role_with_too_few_connections_is_a_failure_and_the_statement_that_is_named_mends_it(
    database: str, app: str, limit: int
) -> None:
    role = conninfo.conninfo_to_dict(app)["user"]
    execute(database, f"alter role {role} connection limit {limit}")
    found = await refused(app)
    assert (found.level, found.what) == ("fail", "sessions")
    assert f"may open {CONNECTIONS_NEEDED} connections at once, and could have {limit}" in found.words
    mend = f"alter role {role} connection limit {CONNECTIONS_NEEDED};"
    assert f"role {role} may have {limit} at once: {mend}" in found.words
    assert "too many connections for role" in found.words
    execute(database, mend)
    assert await failures(app) == []


async def test_a_database_with_too_few_connections_is_a_failure(database: str, app: str) -> None:
    name = conninfo.conninfo_to_dict(database)["dbname"]
    execute(database, f"alter database {name} connection limit 3")
    found = await refused(app)
    assert f"database {name} may have 3 at once: alter database {name} connection limit" in found.words
    execute(database, found.words.partition("at once: ")[2].partition(" (")[0])
    assert await failures(app) == []


async def test_the_sessions_of_others_are_room_that_is_not_there(database: str, app: str) -> None:
    role = conninfo.conninfo_to_dict(app)["user"]
    execute(database, f"alter role {role} connection limit {CONNECTIONS_NEEDED}")
    with psycopg.connect(app), psycopg.connect(app):
        found = await refused(app)
        assert f"alter role {role} connection limit {CONNECTIONS_NEEDED + 2};" in found.words


async def test_a_full_server_is_named_as_such(
    database: str, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_limits, "CONNECTIONS_NEEDED", 130)
    found = await refused(app)
    assert (
        "the server may have 100 at once, 3 of them reserved: alter system set max_connections = "
        in found.words
    )


async def test_a_role_that_is_let_in_no_more_is_told_by_the_exit_code_and_the_statement(
    vhost: str, database: str, app: str, capsys: pytest.CaptureFixture[str]
) -> None:
    role = conninfo.conninfo_to_dict(app)["user"]
    execute(database, f"alter role {role} connection limit 0")
    assert await asyncio.to_thread(run_check, vhost, app) == 3
    assert f'alter role "{role}" connection limit {CONNECTIONS_NEEDED}; or more' in capsys.readouterr().out
    execute(database, f"alter role {role} connection limit 2")
    assert await asyncio.to_thread(run_check, vhost, app) == 1


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"default_pool_size": 1}, 1),
        ({"default_pool_size": 5}, 5),
        ({"max_db_connections": 4}, 4),
        ({"max_client_conn": 6}, 6),
    ],
)
async def test_a_pooler_with_too_small_a_pool_is_a_failure_within_a_bounded_time(
    database: str, say: Say, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], size: int
) -> None:
    monkeypatch.setattr(postgres_limits, "CALL_TIMEOUT", 3.0)
    with pgbouncer(database, "session", say, **settings) as pooled:
        async with asyncio.timeout(20):
            found = await refused(pooled)
    assert (found.level, found.what) == ("fail", "sessions")
    assert f"and could have {size}" in found.words
    words = "max_client_conn" if "max_client_conn" in settings else "default_pool_size, max_db_connections"
    assert words in found.words


async def test_a_bridge_that_is_busy_has_no_more_connections_than_a_check_asks_for(
    vhost: str, database: str, app: str
) -> None:
    """And it has all that it needs with as many as that, while somebody checks beside it."""
    role = conninfo.conninfo_to_dict(app)["user"]
    execute(database, f"alter role {role} connection limit {CONNECTIONS_NEEDED}")
    async with process(vhost, app) as served:
        users = [f"u{n}" for n in range(200)]
        await publish(vhost, *({**request(user, f"to-{user}"), "ttl": 60} for user in users))
        await final_or_stored(database, 200)
        asking = [get(served.ops_port, f"/v1/pushes/to-u{n}") for n in range(20)]
        answers = await asyncio.gather(*asking, *(seen(served.ws_port, user) for user in users[:50]))
        assert {answer[0] for answer in answers[:20] if isinstance(answer, tuple)} == {200}
        assert await failures(app, "n1") == []
        (other,) = await failures(app, "n2")
        assert "may open" in other.words


async def seen(port: int, user: str) -> None:
    async with client(port, token(user)) as c:
        await c.read()


async def final_or_stored(database: str, count: int) -> None:
    async with asyncio.timeout(30):
        while True:
            with psycopg.connect(database) as conn:
                if conn.execute("select count(*) from delivery").fetchone() == (count,):
                    return
            await asyncio.sleep(0.05)


async def test_every_kind_of_connection_is_in_the_sum(vhost: str, database: str, app: str) -> None:
    async with process(vhost, app) as served:
        await publish(vhost, request("u", "p"))
        await final_rows(database, 1)
        assert (await get(served.ops_port, "/v1/pushes/p"))[0] == 200
        with psycopg.connect(database) as conn:
            query = "select application_name from pg_stat_activity where usename = %s"
            role = conninfo.conninfo_to_dict(app)["user"]
            names = {name for (name,) in conn.execute(query, (role,)).fetchall()}
    known = {"bridge n1", *postgres_limits.PASSING, *(f"bridge n1 {kind}" for kind in CONNECTIONS)}
    assert {"bridge n1", "bridge n1 lease"} <= names <= known
