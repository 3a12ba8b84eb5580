"""`GET /v1/pushes/{id}`: the story that `bridge why` tells, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from yarl import URL

from bridge.cli import why as command
from bridge.config import CommonSettings
from bridge.core.errors import SchemaBehind, StoreUnavailable
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Reply, RowKey
from bridge.operator import lookup
from bridge.operator.lookup import Found
from bridge.ops.routes.why import LOOK_UPS_AT_ONCE
from tests.support.bridges import bridge, final_rows, get
from tests.support.bridges import publish as push
from tests.support.bridges import request as push_request
from tests.support.ops import Parts, Running, ops
from tests.support.rows import PUBLISHED_AT, finished_row, write_rows


@pytest.fixture
def parts(database: str) -> Parts:
    async def look_up(push_id: str, user: str | None, tenant: str | None) -> Found:
        return await lookup.look_up(database, push_id, user=user, tenant=tenant)

    return Parts(look_up=look_up)


@pytest.fixture
async def running(parts: Parts) -> AsyncIterator[Running]:
    async with ops(parts) as running:
        yield running


async def test_the_story_goes_from_published_to_end_with_times_and_reasons(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b:
        await push(vhost, push_request("away", "batch/0"))
        await final_rows(database, 1)
        status, body = await get(b.ops_port, "/v1/pushes/batch/0?user=away")
    answer = json.loads(body)
    (row,) = answer["rows"]
    assert (status, answer["push_id"], row["user"]) == (200, "batch/0", "away")
    assert (row["outcome"], row["reason"], row["final"]) == ("offline", "no_session", True)
    assert row["meaning"] == "the user had no session (or the session was not here)"
    assert row["confirm"] == "received"
    assert [(step["step"], step["at"] is None) for step in row["steps"]] == [
        ("published", False),
        ("taken", False),
        ("written", True),
        ("finished", False),
    ]
    assert row["steps"][-1]["at"] == row["finished_at"]
    assert [(e["outcome"], e["users"]) for e in answer["endings"]] == [("offline", 1)]
    assert answer["log_since"] <= answer["asked_at"]


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        ("text/plain", True),
        ("text/plain;q=0.9, */*", True),
        ("text/html, text/*", True),
        ("application/json, text/plain", False),
        ("*/*", False),
        ("image/png", False),
    ],
)
async def test_whoever_prefers_text_gets_what_the_command_prints(
    running: Running, database: str, accept: str, text: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    await write_rows(database, finished_row("u1", Outcome.OFFLINE, Reason.NO_SESSION))
    async with running.client.get("/v1/pushes/p1", headers={"Accept": accept}) as answer:
        assert answer.status == 200
        assert answer.content_type == ("text/plain" if text else "application/json")
        said = await answer.text()
    if text:
        where = CommonSettings(amqp_url="amqp://127.0.0.1:1/", postgres_dsn=database, _env_file=None)
        await command.why(where, "p1", None, None, as_json=False)
        assert said == capsys.readouterr().out


async def test_user_and_tenant_choose_and_an_id_may_be_anything(running: Running, database: str) -> None:
    odd = "a/b?c#ü %2F"
    for tenant, user in (("shop", "u1"), ("shop", "u2"), ("bank", "u1")):
        await write_rows(
            database, finished_row(user, Outcome.OFFLINE, Reason.NO_SESSION, key=RowKey(tenant, odd, user))
        )
    path = f"/v1/pushes/{quote(odd, safe='')}"
    for query, found in (("", 3), ("?user=u1", 2), ("?tenant=shop", 2), ("?user=u1&tenant=bank", 1)):
        async with running.client.get(http_url(path + query)) as answer:
            assert answer.status == 200, query
            assert len((await answer.json())["rows"]) == found


async def test_what_is_owed_to_bytes_that_are_no_text_is_shown(
    running: Running, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await write_rows(
        database, finished_row("u1", Outcome.OFFLINE, Reason.NO_SESSION, owed=(Reply("q\udcff", "c\udcfe"),))
    )
    async with running.client.get("/v1/pushes/p1", headers={"Accept": "text/plain"}) as answer:
        assert "a receipt to queue q\\xff (correlation id c\\xfe)" in await answer.text()
    async with running.client.get("/v1/pushes/p1") as answer:
        said = (await answer.json())["rows"][0]["owed"]
    assert said == [{"queue": "q\\xff", "correlation_id": "c\\xfe"}]
    settings = CommonSettings(amqp_url="amqp://127.0.0.1:1/", postgres_dsn=database, _env_file=None)
    assert await command.why(settings, "p1", None, None, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["owed"] == said


async def test_of_many_users_twenty_are_told_about_and_all_are_counted(
    running: Running, database: str
) -> None:
    there = [
        finished_row(f"a{i:02}", Outcome.RECEIVED, Reason.PONG, proven_at=PUBLISHED_AT + 0.6)
        for i in range(30)
    ]
    await write_rows(database, *there)
    async with running.client.get("/v1/pushes/p1") as answer:
        told = await answer.json()
    assert (len(told["rows"]), told["endings"][0]["users"]) == (20, 30)


async def test_what_the_log_does_not_know_is_404_and_says_what_it_does_know(
    running: Running, database: str
) -> None:
    async with running.client.get("/v1/pushes/p9") as answer:
        assert answer.status == 404
        told = await answer.json()
    assert (told["error"], told["problem"]) == ("unknown", "The delivery log has no row of this push.")
    await write_rows(database, finished_row("u1", Outcome.OFFLINE, Reason.NO_SESSION))
    async with running.client.get("/v1/pushes/p1?user=u2") as answer:
        assert answer.status == 404
        told = await answer.json()
    assert told["problem"] == "The delivery log has no row for this user, but for others."
    assert [e["outcome"] for e in told["endings"]] == ["offline"]
    for path, words in (
        ("/v1/pushes/p9", "is not in the delivery log"),
        ("/v1/pushes/p1?user=u2", "for others"),
    ):
        async with running.client.get(path, headers={"Accept": "text/plain"}) as answer:
            assert answer.status == 404
            assert words in await answer.text()


@pytest.mark.parametrize("error", [StoreUnavailable("connection refused"), SchemaBehind(3, 4)])
async def test_without_its_database_it_is_503_and_no_defect(error: Exception) -> None:
    async def away(push_id: str, user: str | None, tenant: str | None) -> Found:
        raise error

    parts = Parts(look_up=away)
    async with ops(parts) as running, running.client.get("/v1/pushes/p1") as answer:
        assert answer.status == 503
        assert (await answer.json())["error"] == "database"
        assert answer.headers["Retry-After"] == "1"
    assert not parts.errors.seen


async def test_a_broken_id_is_the_askers_mistake(running: Running, parts: Parts) -> None:
    for path in ("/v1/pushes/a%00b", "/v1/pushes/p1?user=%00"):
        async with running.client.get(http_url(path)) as answer:
            assert answer.status == 400
    for path in ("/v1/pushes/%ff", "/v1/pushes/p1?user=%ff", "/v1/pushes/%ed%a0%80"):
        async with running.client.get(http_url(path)) as answer:
            assert answer.status in (400, 404)
    assert not parts.errors.seen


async def test_only_a_few_ask_the_database_at_once() -> None:
    asking = 0
    most = 0
    go = asyncio.Event()

    async def slow(push_id: str, user: str | None, tenant: str | None) -> Found:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await go.wait()
        asking -= 1
        raise StoreUnavailable("away")

    async def ask(running: Running) -> int:
        async with running.client.get("/v1/pushes/p1") as answer:
            return answer.status

    async with ops(Parts(look_up=slow)) as running:
        asked = [asyncio.create_task(ask(running)) for _ in range(10)]
        async with asyncio.timeout(10):
            while most < LOOK_UPS_AT_ONCE:
                await asyncio.sleep(0.01)
        go.set()
        assert await asyncio.gather(*asked) == [503] * 10
    assert most == LOOK_UPS_AT_ONCE


async def test_without_a_log_that_can_be_asked_there_is_no_such_route() -> None:
    async with ops(Parts()) as running, running.client.get("/v1/pushes/p1") as answer:
        assert answer.status == 404
        assert (await answer.json())["error"] == "not_found"


def http_url(path: str) -> URL:
    """The path exactly as it is: the client would tidy it up."""
    return URL(path, encoded=True)
