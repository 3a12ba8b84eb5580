"""Each operation of the ops port's OpenAPI document, asked with credentials of one scope; who did what, on record."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest

from bridge.adapters.credentials import Scope
from bridge.adapters.postgres.upkeep import Upkeep
from bridge.app import build as app
from bridge.cli import main
from bridge.devservers import Servers
from tests.contract.test_openapi import OPERATIONS
from tests.servers.test_dead_letters import bury
from tests.support.bridges import bridge, final_rows, publish, request, rows
from tests.support.queues import ready_messages

SECRETS = {scope: secrets.token_urlsafe(32) for scope in Scope}
ALLOWS = {Scope.READ: {"read"}, Scope.PUSH: {"push"}, Scope.ADMIN: {"read", "push", "admin"}}
BODIES: dict[str, dict[str, object]] = {
    "/v1/push": {"id": "walked", "to": {"user": "u1"}, "data": 1, "ttl": 60},
    "/v1/recall": {"push_id": "kept"},
    "/v1/revoke": {"user": "u1", "before": 1_700_000_000},
    "/v1/dev/token": {"user": "u1"},
    "/v1/users/{id}/disconnect": {},
    "/v1/dead/replay": {"ids": ["no-such-letter"]},
    "/v1/dead/purge": {"ids": ["no-such-letter"]},
    "/v1/replay": {"where": ["push=no-such-push"], "mark": "walked"},
}
"""What each POST is asked. `kept` is a push that waits for its user, and each would change something."""


def scope_of(operation: dict[str, Any]) -> str | None:
    """The scope that the document names; None where nobody needs a credential."""
    if operation.get("security") == []:
        return None
    (needed, none) = operation["security"]
    assert none == {}
    (scope,) = needed["token"]
    return str(scope)


@asynccontextmanager
async def guarded(vhost: str, database: str, folder: Path) -> AsyncIterator[app.Running]:
    """A bridge whose ops port has a credential of each scope."""
    folder.mkdir()
    for scope, secret in SECRETS.items():
        (folder / f"may-{scope}").write_text(f"{scope} {secret}\n")
    async with bridge(vhost, database, ops_credentials=str(folder), dev=True) as running:
        yield running


async def ask(port: int, method: str, path: str, scope: Scope) -> tuple[int, dict[str, Any]]:
    """The answer to a valid request of this operation; of a stream only its head."""
    url = f"http://127.0.0.1:{port}{path.replace('{id}', 'kept').replace('{file}', 'main.js')}"
    headers = {"Authorization": f"Bearer {SECRETS[scope]}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.request(method, url, json=BODIES[path] if method == "POST" else None) as answer,
    ):
        said = await answer.json() if answer.status == 403 else {}
        return answer.status, said


def state(database: str) -> list[str]:
    """Every row of the tables that an operation may change, but for leases and what goes with time."""
    tables = ("delivery_log", "push_content", "revocation", "revocation_mark", "session", "ops_action")
    with psycopg.connect(database) as conn:
        return [
            str(row)
            for table in tables
            for row in conn.execute(f"select t::text from {table} t order by 1".encode()).fetchall()
        ]


def actions(database: str) -> list[tuple[Any, ...]]:
    """What is on record: actor, action, target, result and facts, in order."""
    with psycopg.connect(database) as conn:
        query = "select actor, action, target, result, facts from ops_action order by begun_at"
        return conn.execute(query).fetchall()


async def test_no_operation_does_more_than_the_scope_that_the_document_names(
    vhost: str, database: str, tmp_path: Path
) -> None:
    assert {path for method, path in OPERATIONS if method == "POST"} == set(BODIES)
    assert {scope_of(op) for (method, _), op in OPERATIONS.items() if method == "GET"} == {None, "read"}
    assert {scope_of(op) for (method, _), op in OPERATIONS.items() if method == "POST"} == {"push", "admin"}
    async with guarded(vhost, database, tmp_path / "ops") as b:
        await publish(vhost, request("u1", "kept", ttl=3600))
        async with asyncio.timeout(20):
            while [row["outcome"] for row in await rows(database)] != ["stored"]:
                await asyncio.sleep(0.02)
        for scope in Scope:
            before = state(database)
            for (method, path), operation in OPERATIONS.items():
                needed = scope_of(operation)
                status, said = await ask(b.ops_port, method, path, scope)
                if needed is None or needed in ALLOWS[scope]:
                    assert status in (200, 202), (method, path, scope)
                    assert str(status) in operation["responses"]
                else:
                    assert (status, said["error"], said["scope"]) == (403, "scope", needed), (path, scope)
            if scope is Scope.READ:
                # What it published would be ahead of this, in the queue and in the log.
                await publish(vhost, request("nobody", "barrier"))
                await final_rows(database, 1)
                assert [line for line in state(database) if "barrier" not in line] == before
                assert await ready_messages(vhost, "push.requests") == 0
        found = {row["push_id"]: (row["outcome"], row["app_id"]) for row in await rows(database)}
    assert found == {
        "kept": ("recalled", ""),
        "barrier": ("offline", ""),
        "walked": ("stored", "may-push"),
    }
    assert [(actor, action, result) for actor, action, _, result, _ in actions(database)] == [
        ("may-admin", "recall", "done"),
        ("may-admin", "revoke", "done"),
        ("may-admin", "disconnect", "done"),
        ("may-admin", "dead replay", "done"),
        ("may-admin", "dead purge", "done"),
        ("may-admin", "replay", "done"),
    ]


async def test_an_action_that_can_have_no_row_is_refused_and_not_done(
    vhost: str, database: str, tmp_path: Path
) -> None:
    async with guarded(vhost, database, tmp_path / "ops") as b:
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute("alter table ops_action rename to ops_action_away")
            assert (await ask(b.ops_port, "POST", "/v1/revoke", Scope.ADMIN))[0] == 503
            assert conn.execute("select count(*) from revocation").fetchone() == (0,)
            assert (await ask(b.ops_port, "POST", "/v1/push", Scope.PUSH))[0] == 202
            conn.execute("alter table ops_action_away rename to ops_action")
        assert (await ask(b.ops_port, "POST", "/v1/revoke", Scope.ADMIN))[0] == 200
    ((actor, action, target, result, facts),) = actions(database)
    assert (actor, action, result) == ("may-admin", "revoke", "done")
    assert (target, facts["nodes"]) == (BODIES["/v1/revoke"], ["n1"])


def test_a_command_that_changes_something_has_a_row_with_the_user_of_the_machine(
    servers: Servers, vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(bury(vhost, ("p1", "invalid"), ("p2", "poison")))
    where = ("--amqp-url", vhost, "--postgres-dsn", database)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            """
            insert into delivery_log (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions,
                attempts, published_at, taken_at, finished_at, expires_at, node, boot, event, app_id, detail,
                traceparent, payload, encoding)
            select day, '', 'p1', 'u1', 'unknown', 'no_proof', true, 2, 1, 1, now(), now(), now(),
                now() + interval '1 hour', 'n', 'b', 'message', '', '', '', '1', 'json' from log_day
            """
        )
    assert main(["revoke", "--jti", "t1", "--postgres-dsn", database]) == 0
    assert main(["replay", *where, "--where", "push=p1", "--dry-run"]) == 0
    assert main(["replay", *where, "--where", "push=p1"]) == 0
    assert main(["dead", "replay", *where, "--id", "p1", "--dry-run"]) == 0
    assert main(["dead", "replay", *where, "--id", "p1"]) == 0
    assert main(["dead", "purge", *where, "--all"]) == 2
    assert main(["dead", "purge", *where, "--all", "--yes"]) == 0
    who = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    assert actions(database) == [
        (who, "revoke", {"jti": "t1"}, "done", {"sessions": 0, "nodes": [], "silent": [], "gone": []}),
        (
            who,
            "replay",
            {"where": ["push=p1"], "mark": "1", "ttl": None},
            "done",
            {"wanted": 1, "replayed": 1},
        ),
        (
            who,
            "dead replay",
            {"ids": ["p1"], "limit": 1000, "new_ids": False},
            "done",
            {"replayed": 1, "kept": 0, "looked_at": 2},
        ),
        (who, "dead purge", {"limit": 1000}, "done", {"deleted": 1, "looked_at": 1}),
    ]
    with psycopg.connect(database) as conn:
        assert conn.execute("select distinct node from ops_action").fetchall() == [(socket.gethostname(),)]
    assert re.search(rf'"message": "revoke by {re.escape(who)}: done"', capsys.readouterr().err)


def test_letters_are_deleted_without_a_database_only_if_that_is_asked_for(
    vhost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(bury(vhost, ("p1", "invalid")))
    purge = ["dead", "purge", "--all", "--yes", "--amqp-url", vhost]
    purge += ["--postgres-dsn", "postgresql://127.0.0.1:1/none"]
    assert main(purge) == 3
    assert "nothing was done, since its row can't be written" in capsys.readouterr().err
    assert asyncio.run(ready_messages(vhost, "push.dead")) == 1
    assert main([*purge, "--unrecorded"]) == 0
    said = capsys.readouterr()
    assert said.out == "1 deleted, 0 kept\n"
    line = json.loads(said.err.splitlines()[-1])
    assert (line["action"], line["result"], line["deleted"]) == ("dead purge", "done", 1)


async def test_old_actions_are_dropped_with_the_rows_of_their_day(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        for days in (1, 29, 31, 400):
            conn.execute(
                "insert into ops_action (id, begun_at, actor, action, target, node)"
                " values (gen_random_uuid(), now() - %s * interval '1 day', 'a', 'recall', '{}', 'n')",
                (days,),
            )
        done = await Upkeep(database).run_once(30)
        assert done.trouble == []
        left = conn.execute(
            "select round((extract(epoch from now() - begun_at) / 86400)::numeric) from ops_action"
        )
        assert sorted(int(days) for (days,) in left) == [1, 29]
