"""The roles and users of deploy/: each can do its work and nothing else, and `bridge check` tells what is too much."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Awaitable, Callable, Iterator
from typing import LiteralString

import aio_pika
import aiohttp
import psycopg
import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused
from psycopg import errors as pg
from psycopg import sql

from bridge.adapters.amqp import excess as amqp_excess
from bridge.adapters.amqp.connection import border, channel, opened
from bridge.adapters.amqp.consume import never_called
from bridge.adapters.amqp.topology import INBOUND_ONLY, ONE, DeclareMode
from bridge.adapters.postgres import excess as postgres_excess
from bridge.adapters.postgres import migrate
from bridge.adapters.postgres.counting import Counting
from bridge.adapters.postgres.migrate import MIGRATIONS, Migration
from bridge.adapters.postgres.store import PostgresStore
from bridge.cli import main
from bridge.core.errors import BrokerUnavailable
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import RowKey
from bridge.devservers import Servers
from tests import conftest
from tests.support import roles
from tests.support.bridges import bridge, final_rows, publish, request, token
from tests.support.check_command import run_check
from tests.support.clients import client
from tests.support.roles import DEPLOY
from tests.support.rows import finished_row


@pytest.fixture(scope="module")
def dsns(servers: Servers, databases: conftest.Databases) -> Iterator[roles.Databases]:
    with databases.fresh("template0") as admin, roles.databases(servers, admin) as made:
        yield made


@pytest.fixture(scope="module")
def urls(servers: Servers) -> Iterator[roles.Urls]:
    with conftest._fresh_vhost(servers) as admin, roles.urls(servers, admin) as made:
        yield made


# --- the work --------------------------------------------------------------------------------------------


async def test_a_bridge_serves_with_these_rights_and_an_operator_mends_with_theirs(
    urls: roles.Urls, dsns: roles.Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = ("--amqp-url", urls.operator, "--postgres-dsn", dsns.app)
    async with bridge(urls.bridge, dsns.app, declare="passive") as b, client(b.ws_port, token("u1")) as here:
        await publish(urls.publisher, request("u1", "p1"), {"id": "wrong", "to": {}})
        assert json.loads(await here.read())["n"] == "p1"
        ops = f"http://127.0.0.1:{b.ops_port}"
        async with aiohttp.ClientSession(ops) as http:
            async with http.post("/v1/push?wait=10", json=request("u1", "p2")) as answer:
                assert (await answer.json())["receipts"][0]["outcome"] == "received"
            async with http.post("/v1/revoke", json={"jti": "t1"}) as answer:
                assert answer.status == 200
            for path in ("/v1/pushes/p1", "/v1/pushes?q=u1", "/v1/topics", "/v1/topics/news", "/v1/actions"):
                async with http.get(path) as answer:
                    assert answer.status == 200, path
            async with http.post("/v1/replay", json={"where": ["user=u1"], "mark": "m"}) as answer:
                assert answer.status == 200
            async with http.get("/v1/dead") as answer:
                assert answer.status == 503
                assert "push.dead" in (await answer.json())["problem"]
        await final_rows(dsns.admin, 3)
        for words in (
            ["dead", "list", "--amqp-url", urls.operator],
            ["dead", "replay", "--id", "wrong", *operator],
            ["push", "--user", "u1", "--text", "x", "--amqp-url", urls.operator],
            ["why", "p2", *operator],
            ["forget", "u2", "--yes", "--disconnect", "--dead", *operator],
        ):
            assert await asyncio.to_thread(main, words) == 0, words
        said = capsys.readouterr().out
        assert await asyncio.to_thread(main, ["audit", *operator, "--hours", "1"]) == 0
    assert "1 dead letter: " in said


def test_a_check_with_these_rights_finds_nothing_to_mend(
    urls: roles.Urls, dsns: roles.Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_check(urls.bridge, dsns.app, "--declare", "passive") == 0
    lines = capsys.readouterr().out.splitlines()
    # Who may not declare a queue can't compare it.
    assert [line for line in lines if line[:4] != "ok  " and "may not compare it" not in line] == []
    assert [line.split(" ")[-2:] for line in lines if " excess " in line] == [
        ["other", "vhosts"],
        ["it", "needs"],
    ]


# --- the broker ------------------------------------------------------------------------------------------

Attempt = Callable[[AbstractChannel], Awaitable[object]]
DECLARE: dict[str, Attempt] = {
    "declare a queue": lambda low: low.queue_declare("push.more", durable=True),
    "delete a queue of the topology": lambda low: low.queue_delete("push.requests"),
    "declare an exchange": lambda low: low.exchange_declare("push.more", exchange_type="topic"),
    "bind a queue": lambda low: low.queue_bind("push.requests", "push", "x"),
    "read another queue": lambda low: low.basic_consume("other", never_called),
}
OF_PUBLISHER: dict[str, Attempt] = {
    **DECLARE,
    "read requests": lambda low: low.basic_consume("push.requests", never_called),
    "read dead letters": lambda low: low.basic_consume("push.dead", never_called),
    "have a queue of its own": lambda low: low.queue_declare("", exclusive=True),
}
OF_BRIDGE: dict[str, Attempt] = {
    **DECLARE,
    "read dead letters": lambda low: low.basic_consume("push.dead", never_called),
}
OF_OPERATOR: dict[str, Attempt] = {
    **DECLARE,
    "read requests": lambda low: low.basic_consume("push.requests", never_called),
    "read control messages": lambda low: low.basic_consume("push.control", never_called),
}
WRITE = {
    "publisher": ("push.dead", "push.control", "push.outcomes", "push.inbound", "amq.topic", ""),
    "bridge": ("push.control", "amq.topic"),
    "operator": ("push.dead", "push.control", "push.outcomes", "push.inbound", "amq.topic", ""),
}


@pytest.mark.parametrize(
    ("user", "attempts"), [("publisher", OF_PUBLISHER), ("bridge", OF_BRIDGE), ("operator", OF_OPERATOR)]
)
async def test_no_user_of_the_broker_can_do_more_than_its_work(
    urls: roles.Urls, user: str, attempts: dict[str, Attempt]
) -> None:
    url = getattr(urls, user)
    allowed = []
    async with opened(url, "test", lambda events: None, lambda cause: None) as (connection, _):
        for what, attempt in attempts.items():
            low = await channel(connection, confirms=False)
            try:
                async with border(what, 10):
                    await attempt(low)
            except BrokerUnavailable as error:
                if isinstance(error.__cause__, ChannelAccessRefused):
                    continue
            allowed.append(what)
    async with await aio_pika.connect(url) as own:
        for exchange in WRITE[user]:
            on = await own.channel()
            target = await on.get_exchange(exchange, ensure=False) if exchange else on.default_exchange
            try:
                async with asyncio.timeout(10):
                    await target.publish(aio_pika.Message(b"{}"), "push.requests")
            except ChannelAccessRefused:
                continue
            allowed.append(f"write to {exchange or 'the default exchange'}")
    assert allowed == []


def test_the_topology_that_is_imported_is_the_one_that_a_bridge_declares() -> None:
    said = json.loads((DEPLOY / "rabbitmq" / "topology.json").read_text())
    assert {name: (q["durable"], q["arguments"]) for q in said["queues"] for name in [q["name"]]} == {
        queue.name: (True, dict(queue.arguments)) for queue in ONE.queues
    }
    assert {(e["name"], e["type"], e["durable"]) for e in said["exchanges"]} == {
        (*e, True) for e in (*ONE.exchanges, *INBOUND_ONLY.exchanges)
    }
    assert [(b["destination"], b["source"], b["routing_key"]) for b in said["bindings"]] == list(ONE.bindings)
    assert {thing["vhost"] for things in said.values() for thing in things} == {"@VHOST@"}


def test_the_permissions_that_a_check_names_are_those_of_the_script() -> None:
    script = (DEPLOY / "rabbitmq" / "users.sh").read_text()
    of_bridge = script.partition('user "$bridge"')[2].partition('user "$operator"')[0]
    assert re.findall(r"'\S+'", of_bridge) == amqp_excess.PASSIVE_PERMISSIONS.split(" ")


@pytest.mark.parametrize("mode", DeclareMode)
async def test_a_user_of_the_broker_that_may_do_more_is_told_the_command_that_mends_it(
    servers: Servers, vhost: str, mode: DeclareMode
) -> None:
    (found,) = await amqp_excess.findings(vhost, mode)
    assert found.level == "warn"
    assert "it may configure any queue, write to any exchange, read any queue" in found.words
    assert ("configure push.requests" in found.words) == (mode is DeclareMode.PASSIVE)
    servers.rabbit.ctl(*shlex.split(found.words.partition(": rabbitmqctl ")[2]))
    (found,) = await amqp_excess.findings(vhost, mode)
    assert (found.level, "not seen are its tags" in found.words) == ("ok", True)


# --- the database ----------------------------------------------------------------------------------------

BY_APP: tuple[LiteralString, ...] = (
    "create table more (x int)",
    "create temporary table more (x int)",
    "create schema more",
    "alter table delivery_log add column more text",
    "drop table delivery_log",
    "truncate delivery_log",
    "delete from schema_version",
    "update ending set meaning = ''",
    "create role more",
    "select * from analyst.delivery",
)


def test_the_role_of_a_bridge_changes_no_schema_and_its_owner_does(dsns: roles.Databases) -> None:
    with psycopg.connect(dsns.app, autocommit=True) as conn:
        for statement in BY_APP:
            with pytest.raises((pg.InsufficientPrivilege, pg.UndefinedTable)):
                conn.execute(statement)
        with pytest.raises(pg.InsufficientPrivilege):
            conn.execute(sql.SQL("set role {}").format(sql.Identifier(dsns.names["owner"])))
    later = Migration(9001, "9001_more.sql", "create table of_later (x int)")
    assert migrate.upgrade(dsns.owner, (*MIGRATIONS, later)) == [later.name]


async def tenants(dsn: str, view: LiteralString) -> set[str]:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        query = sql.SQL("select distinct tenant from analyst.{}").format(sql.Identifier(view))
        return {tenant for (tenant,) in await (await conn.execute(query)).fetchall()}


async def two_tenants(dsns: roles.Databases) -> None:
    store = PostgresStore(dsns.app)
    await store.record(
        [
            finished_row("u", Outcome.OFFLINE, Reason.NO_SESSION, key=RowKey(tenant, f"of {tenant}", "u"))
            for tenant in ("shop", "bank")
        ]
    )
    await store.close()
    await Counting(dsns.app).run_once(everything=True)


VIEWS: tuple[LiteralString, ...] = (
    *(
        "delivery",
        "delivery_hourly",
        "delivery_daily",
        "funnel",
        "push_summary",
        "top_reasons",
        "user_timeline",
    ),
    "tenant",
)


async def test_an_analyst_sees_the_tenants_that_it_is_given_and_no_other(dsns: roles.Databases) -> None:
    await two_tenants(dsns)
    for view in VIEWS:
        assert await tenants(dsns.of_shop, view) == {"shop"}, view
        assert await tenants(dsns.of_none, view) == set(), view
    with psycopg.connect(dsns.admin, autocommit=True) as conn:
        # By a group that it is a member of; and a row whose role is gone grants nothing.
        conn.execute("insert into analyst.tenant_of values (%s, 'bank')", (dsns.names["analyst"],))
        assert await tenants(dsns.of_none, "delivery") == {"bank"}
        conn.execute("delete from analyst.tenant_of where tenant = 'bank' and role <> 'nobody'")
    assert await tenants(dsns.of_none, "delivery") == set()


async def test_no_condition_tells_an_analyst_of_another_tenant(dsns: roles.Databases) -> None:
    await two_tenants(dsns)
    told: list[str] = []
    with psycopg.connect(dsns.admin, autocommit=True) as conn:
        conn.execute("create schema if not exists helpers; grant usage on schema helpers to public")
        conn.execute(
            """
            create or replace function helpers.tell(tenant text) returns boolean language plpgsql cost 0.0000001
            as $$ begin raise notice '%', tenant; return true; end $$;
            grant execute on function helpers.tell(text) to public
            """
        )
    with psycopg.connect(dsns.of_shop, autocommit=True) as conn:
        conn.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
        for view in VIEWS:
            query = sql.SQL("select count(*) from analyst.{} where helpers.tell(tenant)").format(
                sql.Identifier(view)
            )
            conn.execute(query)
            divided = sql.SQL("select count(*) from analyst.{} where 1 / (tenant <> 'bank')::integer = 1")
            conn.execute(divided.format(sql.Identifier(view)))
    assert set(told) == {"shop"}


BY_ANALYST: tuple[LiteralString, ...] = (
    "select * from public.delivery_log",
    "select * from public.delivery",
    "select * from public.push_content",
    "select * from public.ops_action",
    "select * from analyst.tenant_of",
    "insert into analyst.tenant_of values (current_user, 'bank')",
    "update analyst.delivery set tenant = 'shop'",
    "create table analyst.more (x int)",
    "create temporary table more (x int)",
    "select public.log_today()",
    "select public.make_partition(current_date)",
)


def test_an_analyst_reaches_neither_tables_nor_functions(dsns: roles.Databases) -> None:
    with psycopg.connect(dsns.of_shop, autocommit=True) as conn:
        for statement in BY_ANALYST:
            with pytest.raises((pg.InsufficientPrivilege, pg.ObjectNotInPrerequisiteState)):
                conn.execute(statement)
        may = conn.execute(
            """
            select p.oid::regprocedure::text from pg_proc p
            where p.pronamespace = 'public'::regnamespace and has_function_privilege(p.oid, 'execute')
            """
        )
        assert may.fetchall() == []
        may = conn.execute(
            """
            select c.relname from pg_class c
            where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v')
              and has_any_column_privilege(c.oid, 'select')
            """
        )
        assert may.fetchall() == []


async def test_each_right_that_is_too_much_is_named_with_the_statement_that_takes_it_away(
    dsns: roles.Databases,
) -> None:
    app = dsns.names["app"]
    assert [f.level for f in await postgres_excess.findings(dsns.app)] == ["ok"]
    with psycopg.connect(dsns.admin, autocommit=True) as conn:
        for statement in (
            f"alter role {app} createdb createrole bypassrls",
            f"grant create on schema public to {app}",
            f"grant temporary on database {conn.info.dbname} to public",
            f"grant create on database {conn.info.dbname} to {app}",
            f"grant truncate on delivery_log to {app}",
            f"grant update on schema_version to {app}",
        ):
            conn.execute(statement.encode())
        found = await postgres_excess.findings(dsns.app)
        assert {f.level for f in found} == {"warn"}
        named = " ".join(f.words for f in found)
        for part in (
            "make roles", "make databases", "pass by row level security", "make tables in schema public",
            "make schemas", "make temporary tables", "truncate delivery_log", "update schema_version",
        ):  # fmt: skip
            assert part in named, part
        assert len(found) == 8
        for finding in found:
            conn.execute(finding.words.rpartition(": ")[2].encode())
    assert [f.level for f in await postgres_excess.findings(dsns.app)] == ["ok"]
    (owns,) = await postgres_excess.findings(dsns.owner)
    assert (owns.level, "it owns the tables" in owns.words) == ("warn", True)


def test_a_superuser_is_a_warning_and_no_failure(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_check(vhost, database) == 0
    said = capsys.readouterr().out
    assert (
        "warn  excess    role bridge has more rights than it needs: it is a superuser: give the bridge"
        in said
    )
