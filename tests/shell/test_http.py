"""The ops port as its clients meet it, on a real socket."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import aiohttp
import msgspec
import pytest

from bridge.addresses import is_loopback
from bridge.core.errors import BrokerUnavailable, SettingsError, StoreUnavailable
from bridge.core.model.outcomes import ENDINGS, Outcome, Reason
from bridge.core.model.pushes import MESSAGE_BYTES_MAX, Recall
from bridge.core.model.rows import Row
from bridge.core.ports.plugins import Hooks, SessionInfo
from bridge.ops import requests as http_requests
from bridge.ops import server as http
from bridge.ops.outcome_feed import BACKLOG_ROWS, Missed, OutcomeFeed
from bridge.ops.routes import outcomes
from bridge.ops.routes.outcomes import SUBSCRIBERS_MAX
from bridge.ops.routes.page import LIBRARY
from bridge.ops.server import OpsServer, listen
from tests.support import bridges
from tests.support.ops import FakeDesk, Nobody, Parts, Running, nothing_known, ops, receipt
from tests.support.rows import timed_row
from tests.support.waiting import until

PUSH = {"id": "p1", "to": {"user": "u1"}, "data": {"hi": 1}}


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
async def running(parts: Parts) -> AsyncIterator[Running]:
    async with ops(parts) as running:
        yield running


# --- probes, metrics, status ---


async def test_livez_answers_whatever_else_is_wrong(running: Running, parts: Parts) -> None:
    parts.causes.append("broker: away")
    async with running.client.get("/livez") as answer:
        assert answer.status == 200


async def test_a_request_target_may_be_a_whole_url(running: Running) -> None:
    for path, wanted in (("/livez", 200), ("/readyz?x=1", 200), ("/nothing", 404)):
        status, _ = await bridges.get(running.server.port, f"{running.url}{path}")
        assert status == wanted


async def test_readyz_turns_503_with_the_causes_and_back(running: Running, parts: Parts) -> None:
    parts.causes += ["broker: away", "database: away"]
    async with running.client.get("/readyz") as answer:
        assert answer.status == 503
        assert await answer.json() == {"ready": False, "causes": ["broker: away", "database: away"]}
    parts.causes.clear()
    async with running.client.get("/readyz") as answer:
        assert answer.status == 200
        assert await answer.json() == {"ready": True, "causes": []}


async def test_metrics_are_in_prometheus_text_format(running: Running, parts: Parts) -> None:
    parts.metrics.handed(3)
    async with running.client.get("/metrics") as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "bridge_handed_frames_total 3.0\n" in await answer.text()


async def test_status_says_who_it_is_how_it_is_and_who_is_there(running: Running, parts: Parts) -> None:
    parts.sessions.append(SessionInfo("s1", "u1", "bridge.v1.json", 1.0))
    parts.causes.append("broker: away")
    async with running.client.get("/status") as answer:
        said = await answer.json()
    assert {
        k: said[k] for k in ("node", "boot", "version", "core", "ws_port", "dev", "ready", "causes", "role")
    } == {
        "node": "n1",
        "boot": "b1",
        "version": "1.2.3",
        "core": "interpreted",
        "ws_port": 8181,
        "dev": True,
        "ready": False,
        "causes": ["broker: away"],
        "role": "active",
    }
    assert said["gauges"]["sessions"] == 1
    assert said["sessions"] == [{"session": "s1", "user": "u1", "mode": "bridge.v1.json", "opened_at": 1.0}]


# --- pushing ---


async def test_a_push_is_published_and_named(running: Running, parts: Parts) -> None:
    async with running.client.post("/v1/push", json=PUSH) as answer:
        assert answer.status == 202
        assert await answer.json() == {"push_ids": ["p1"], "complete": False, "stored": 0, "receipts": []}
    (call,) = parts.publisher.calls
    assert json.loads(call.body) == PUSH
    assert call.headers == {"x-push-published-ms": parts.clock.time() * 1000}
    assert isinstance(call.headers["x-push-published-ms"], int)
    assert call.wait is None


async def test_a_header_that_is_meant_for_amqp_is_named_as_that(running: Running, parts: Parts) -> None:
    headers = {"X-Push-User": "u42"}
    async with running.client.post("/v1/push", json={"data": 1}, headers=headers) as answer:
        assert answer.status == 400
        problem = (await answer.json())["problem"]
    assert problem.startswith(
        "X-Push-User is a header of AMQP messages. Over HTTP the whole request is in the body"
    )
    assert parts.publisher.calls == []


async def test_a_push_without_an_id_is_named_by_the_id_it_goes_out_with(
    running: Running, parts: Parts
) -> None:
    async with running.client.post("/v1/push", json={"to": {"user": "u1"}, "data": 1}) as answer:
        said = await answer.json()
    (call,) = parts.publisher.calls
    assert said["push_ids"] == [call.push_id]


async def test_the_callers_trace_goes_on(running: Running, parts: Parts) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    async with running.client.post("/v1/push", json=PUSH, headers={"traceparent": trace}):
        pass
    assert parts.publisher.calls[0].headers["traceparent"] == trace


async def test_wait_returns_the_receipt(running: Running, parts: Parts) -> None:
    parts.publisher.receipts = [receipt(timed_row())]
    async with running.client.post("/v1/push?wait=2.5", json=PUSH) as answer:
        assert answer.status == 200
        said = await answer.json()
    assert said["complete"] is True
    assert said["receipts"][0]["outcome"] == "received"
    assert parts.publisher.calls[0].wait == 2.5


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (PUSH, 1),
        ({"to": {"users": ["a", "b", "a"]}, "data": 1}, 2),
        ({"to": {"session": "s1"}, "data": 1}, 1),
        ({"to": {"all": True}, "data": 1}, None),
        ([PUSH, {**PUSH, "id": "p2"}, PUSH], 2),
        ([PUSH, {"id": "p2", "to": {}, "data": 1}], 2),
        ([PUSH, {"to": {"all": True}, "data": 1}], None),
    ],
)
async def test_as_many_receipts_are_waited_for_as_there_are_pushes_and_users(
    running: Running, parts: Parts, body: object, expected: int | None
) -> None:
    async with running.client.post("/v1/push?wait=1", json=body):
        pass
    assert parts.publisher.calls[0].expected == expected


async def test_receipts_that_did_not_all_come_in_time_are_not_called_complete(
    running: Running, parts: Parts
) -> None:
    parts.publisher.receipts = [receipt(timed_row(user="a"))]
    body = {"to": {"users": ["a", "b"]}, "data": 1}
    async with running.client.post("/v1/push?wait=1", json=body) as answer:
        assert answer.status == 202
        said = await answer.json()
    assert said["complete"] is False
    assert len(said["receipts"]) == 1


async def test_a_push_that_is_kept_is_counted_and_not_called_complete(running: Running, parts: Parts) -> None:
    kept = timed_row(user="b", outcome=Outcome.STORED, reason=Reason.NO_SESSION)
    parts.publisher.receipts = [receipt(timed_row(user="a")), receipt(kept)]
    body = {"to": {"users": ["a", "b"]}, "data": 1, "ttl": 60}
    async with running.client.post("/v1/push?wait=1", json=body) as answer:
        assert answer.status == 202
        said = await answer.json()
    assert (said["complete"], said["stored"], len(said["receipts"])) == (False, 1, 2)


async def test_a_push_that_was_kept_and_has_ended_is_complete(running: Running, parts: Parts) -> None:
    kept = timed_row(outcome=Outcome.STORED, reason=Reason.AWAITING_PROOF)
    parts.publisher.receipts = [receipt(kept), receipt(timed_row())]
    async with running.client.post("/v1/push?wait=1", json={**PUSH, "ttl": 60}) as answer:
        assert answer.status == 200
        said = await answer.json()
    assert (said["complete"], said["stored"]) == (True, 0)


@pytest.mark.parametrize("query", ["", "?wait=3"])
async def test_a_wrong_push_is_answered_with_its_rejected_receipt_also_without_wait(
    running: Running, parts: Parts, query: str
) -> None:
    parts.publisher.receipts = [
        receipt(
            timed_row(user="", outcome=Outcome.REJECTED, reason=Reason.INVALID, detail="to: expected one")
        )
    ]
    async with running.client.post(f"/v1/push{query}", json={"id": "p1", "to": {}, "data": 1}) as answer:
        assert answer.status == 422
        said = await answer.json()
    assert said["push_ids"] == []
    assert said["receipts"][0]["outcome"] == "rejected"
    assert said["receipts"][0]["detail"] == "to: expected one"


async def test_a_body_that_is_no_json_goes_the_way_of_every_wrong_push(
    running: Running, parts: Parts
) -> None:
    parts.publisher.receipts = [receipt(timed_row(user="", outcome=Outcome.REJECTED, reason=Reason.NOT_JSON))]
    headers = {"Content-Type": "application/json"}
    async with running.client.post("/v1/push", data=b"{", headers=headers) as answer:
        assert answer.status == 422
    assert parts.publisher.calls[0].body == b"{"


@pytest.mark.parametrize("wait", ["0", "-1", "31", "nan", "inf", "soon", ""])
async def test_a_wait_that_is_no_sensible_number_is_refused(
    running: Running, parts: Parts, wait: str
) -> None:
    async with running.client.post(f"/v1/push?wait={wait}", json=PUSH) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"] == "bad_request"
    assert parts.publisher.calls == []


async def test_a_broker_that_is_away_is_503_with_the_cause(running: Running, parts: Parts) -> None:
    parts.publisher.error = BrokerUnavailable("connection refused")
    async with running.client.post("/v1/push", json=PUSH) as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert await answer.json() == {
            "error": "broker",
            "problem": "the broker is unavailable: connection refused",
        }


async def test_a_body_of_one_mebibyte_is_read_and_one_byte_more_is_413(
    running: Running, parts: Parts
) -> None:
    headers = {"Content-Type": "application/json"}
    for size, status in ((MESSAGE_BYTES_MAX, 202), (MESSAGE_BYTES_MAX + 1, 413)):
        body = json.dumps(PUSH).encode().ljust(size)
        async with running.client.post("/v1/push", data=BytesIO(body), headers=headers) as answer:
            assert answer.status == status
    assert len(parts.publisher.calls) == 1


async def test_a_body_without_a_length_is_cut_off_as_well(running: Running, parts: Parts) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MESSAGE_BYTES_MAX // 65536 + 1):
            yield b" " * 65536

    headers = {"Content-Type": "application/json"}
    async with running.client.post("/v1/push", data=endless(), headers=headers) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"] == "too_large"
    assert parts.publisher.calls == []


async def test_a_body_that_does_not_arrive_is_given_up(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_requests, "BODY_SECONDS", 0.05)
    head = "POST /v1/push HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    text = await raw(running.server.port, head + "Content-Length: 9\r\n\r\n{")
    assert text.startswith("HTTP/1.1 408 ")


# --- outcomes ---


async def events(answer: aiohttp.ClientResponse, count: int) -> list[tuple[str, dict[str, object]]]:
    found: list[tuple[str, dict[str, object]]] = []
    name = ""
    async with asyncio.timeout(15):
        async for line in answer.content:
            text = line.decode().rstrip("\n")
            if text.startswith("event: "):
                name = text.removeprefix("event: ")
            elif text.startswith("data: "):
                found.append((name, json.loads(text.removeprefix("data: "))))
                if len(found) == count:
                    return found
    return found


async def test_outcomes_are_streamed_as_they_are_committed(running: Running, parts: Parts) -> None:
    async with running.client.get("/v1/outcomes") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        parts.feed.on_outcome(timed_row(outcome=Outcome.PENDING, reason=Reason.AWAITING_PROOF))
        (first,) = await events(answer, 1)
        parts.feed.on_outcome(timed_row())
        (second,) = await events(answer, 1)
    assert (first[0], first[1]["outcome"], first[1]["final"]) == ("outcome", "pending", False)
    assert (second[0], second[1]["outcome"], second[1]["final"]) == ("outcome", "received", True)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("?user=u2", ["p2", "p3"]),
        ("?push_id=p2", ["p2"]),
        ("?user=u1&push_id=p3", ["p3"]),
        ("?user=a%26b", ["p4"]),
        ("?event=order.%23&topic=room.*", ["p5"]),
        ("?event=order&tenant=shop&outcome=received&reason=pong", ["p5"]),
        ("?party=network", ["p6"]),
    ],
)
async def test_a_reader_gets_only_what_it_asked_for(
    running: Running, parts: Parts, query: str, wanted: list[str]
) -> None:
    async with running.client.get(f"/v1/outcomes{query}") as answer:
        for push_id, user in [("p1", "u1"), ("p2", "u2"), ("p3", "u2"), ("p3", "u1"), ("p4", "a&b")]:
            parts.feed.on_outcome(timed_row(push_id, user))
        one = timed_row("p5", "u5")
        key = one.key._replace(tenant="shop")
        parts.feed.on_outcome(msgspec.structs.replace(one, key=key, event="order", topic="room.7"))
        lost = timed_row("p6", "u6", outcome=Outcome.UNKNOWN, reason=Reason.CONNECTION_LOST)
        parts.feed.on_outcome(lost)
        parts.feed.close()
        got = [said["push_id"] for _, said in await events(answer, 99)]
    assert got == wanted


async def test_a_reader_that_is_gone_is_forgotten(running: Running, parts: Parts) -> None:
    async with running.client.get("/v1/outcomes"):
        assert parts.feed.readers == 1
    await until(lambda: parts.feed.readers == 0)
    parts.feed.on_outcome(timed_row())


async def test_readers_are_limited(running: Running, parts: Parts) -> None:
    with ExitStack() as readers:
        for _ in range(SUBSCRIBERS_MAX):
            readers.enter_context(parts.feed.subscribe())
        async with running.client.get("/v1/outcomes") as answer:
            assert answer.status == 429
    async with running.client.get("/v1/outcomes") as answer:
        assert answer.status == 200


async def test_a_quiet_stream_shows_that_it_is_still_there(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "COMMENT_AFTER", 0.01)
    async with running.client.get("/v1/outcomes") as answer, asyncio.timeout(15):
        async for line in answer.content:
            if line == b": still here\n":
                return
    raise AssertionError("no heartbeat")


async def test_a_reader_that_is_behind_is_told_how_much_it_missed_and_memory_stays_bounded() -> None:
    feed = OutcomeFeed()
    with feed.subscribe() as subscription:
        for i in range(BACKLOG_ROWS + 7):
            feed.on_outcome(timed_row(f"p{i}"))
        batch = await subscription.next()
        assert len(batch) == BACKLOG_ROWS + 1
        assert batch[-1] == Missed(7)
        feed.on_outcome(timed_row("later"))
        assert [r.key.push_id for r in await subscription.next() if isinstance(r, Row)] == ["later"]
    assert outcomes.event(Missed(7)) == b'event: missed\ndata: {"count": 7}\n\n'


def test_the_feed_fills_the_hooks_port() -> None:
    hooks: Hooks = OutcomeFeed()
    session = SessionInfo("s1", "u1", "bridge.bare", 1.0)
    hooks.on_open(session)
    hooks.on_close(session, 1000, "client")
    hooks.on_error(ValueError(), "somewhere")
    hooks.on_outcome(timed_row())


async def test_a_stop_ends_open_streams_at_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STOP_SECONDS", 600.0)
    async with asyncio.timeout(15), aiohttp.ClientSession() as client:
        async with listen(
            parts.context(), host="127.0.0.1", port=0, credentials=parts.credentials()
        ) as server:
            answer = await client.get(f"http://127.0.0.1:{server.port}/v1/outcomes")
        assert await answer.text() == ": outcomes from now on\n\n"


# --- who may ask ---

GUARDED = ["/status", "/metrics", "/v1/outcomes", "/v1/pushes/p1", "/nowhere"]


async def test_with_a_token_everything_but_probes_and_the_page_asks_for_it(parts: Parts) -> None:
    async with ops(parts, token="s3cret") as running:
        for path in GUARDED:
            for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}):
                async with running.client.get(path, headers=headers) as answer:
                    assert answer.status == 401, path
                    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
        async with running.client.post("/v1/push", json=PUSH) as answer:
            assert answer.status == 401
        files = (
            "/",
            "/demo",
            "/console/main.js",
            "/console/uPlot.esm.js",
            "/app.js",
            *LIBRARY,
            "/style.css",
            "/icon.svg",
            "/endings.json",
        )
        for path in ("/livez", "/readyz", *files):
            async with running.client.get(path) as answer:
                assert answer.status == 200, path
        good = {"Authorization": "bearer s3cret", "Host": "ops.example", "Origin": "https://ops.example"}
        async with running.client.get("/status", headers=good) as answer:
            assert answer.status == 200
        async with running.client.post("/v1/push", json=PUSH, headers=good) as answer:
            assert answer.status == 202


async def test_with_a_token_readyz_tells_strangers_only_which_part_is_not_ready(parts: Parts) -> None:
    parts.causes += ["broker: ACCESS_REFUSED - no: such user (403)", "database: gone"]
    async with ops(parts, token="s3cret") as running:
        async with running.client.get("/readyz") as answer:
            assert (answer.status, (await answer.json())["causes"]) == (503, ["broker", "database"])
        known = {"Authorization": "Bearer s3cret"}
        async with running.client.get("/readyz", headers=known) as answer:
            assert (answer.status, (await answer.json())["causes"]) == (503, parts.causes)


async def test_a_token_beyond_ascii_is_refused_not_a_defect(parts: Parts) -> None:
    headers = {"Authorization": "Bearer é"}
    async with (
        ops(parts, token="s3cret") as running,
        running.client.get("/status", headers=headers) as answer,
    ):
        assert answer.status == 401
    assert parts.errors.seen == []


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.1", "example.org"])
async def test_a_host_that_others_can_reach_is_refused_without_a_token(parts: Parts, host: str) -> None:
    with pytest.raises(SettingsError) as caught:
        async with listen(parts.context(), host=host, port=0, credentials=parts.credentials()):
            pass
    assert caught.value.setting == "BRIDGE_OPS_TOKEN"


async def test_a_host_that_others_can_reach_is_served_with_a_token(parts: Parts) -> None:
    async with (
        ops(parts, host="0.0.0.0", token="s3cret") as running,
        running.client.get("/readyz") as answer,
    ):
        assert answer.status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("LOCALHOST:8182", 200),
        ("app.localhost:8182", 200),
        ("[::1]:8182", 200),
        ("127.8.8.8", 200),
        ("evil.example", 403),
        ("evil.example:8182", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.0.2.1:8182", 403),
        ("user@localhost", 403),
        ("[", 403),
        ("", 403),
    ],
)
async def test_without_a_token_only_loopback_names_are_served_against_dns_rebinding(
    running: Running, host: str, status: int
) -> None:
    text = await raw(
        running.server.port, f"GET /status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    assert text.startswith(f"HTTP/1.1 {status} "), text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_without_a_token_other_peoples_pages_cannot_push(
    running: Running, parts: Parts, headers: dict[str, str]
) -> None:
    async with running.client.post("/v1/push", json=PUSH, headers=headers) as answer:
        assert answer.status == 403
        assert (await answer.json())["error"] == "origin"
    assert parts.publisher.calls == []


async def test_our_own_page_can_push(running: Running) -> None:
    headers = {"Origin": running.url, "Sec-Fetch-Site": "same-origin"}
    async with running.client.post("/v1/push", json=PUSH, headers=headers) as answer:
        assert answer.status == 202


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
async def test_what_a_form_can_send_is_not_taken(running: Running, parts: Parts, kind: str) -> None:
    async with running.client.post(
        "/v1/push", data=json.dumps(PUSH).encode(), headers={"Content-Type": kind}
    ) as answer:
        assert answer.status == 415
    assert parts.publisher.calls == []


def test_loopback_names() -> None:
    assert all(map(is_loopback, ("localhost", "a.localhost", "127.0.0.1", "127.1.2.3", "::1", "localhost.")))
    assert not any(map(is_loopback, ("", "localhost.example", "0.0.0.0", "::", "10.0.0.1", "notlocalhost")))


# --- development tokens ---


async def test_a_development_token_is_made_for_the_user(running: Running) -> None:
    async with running.client.post("/v1/dev/token", json={"user": "u1"}) as answer:
        assert await answer.json() == {"token": "token-of.u1.x", "expires_in": 3600}


@pytest.mark.parametrize("body", ["{}", "[]", '{"user": 1}', '{"user": "u1", "admin": true}', "{", ""])
async def test_a_wrong_wish_for_a_token_is_400(running: Running, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    async with running.client.post("/v1/dev/token", data=body, headers=headers) as answer:
        assert answer.status == 400


async def test_outside_of_development_there_are_no_tokens(parts: Parts) -> None:
    parts.dev = False
    async with ops(parts) as running, running.client.post("/v1/dev/token", json={"user": "u1"}) as answer:
        assert answer.status == 404


# --- the page's files, errors ---


async def test_the_page_and_all_it_needs_are_served_from_here(running: Running) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/demo", "text/html"),
        ("/app.js", "text/javascript"),
        *((path, "text/javascript") for path in LIBRARY),
        ("/style.css", "text/css"),
        ("/icon.svg", "image/svg+xml"),
    ):
        async with running.client.get(path) as answer:
            assert answer.status == 200
            assert answer.content_type == kind
            body = await answer.text()
        assert body
        # No request leaves this host: the only addresses in the files are names of things.
        assert "https://" not in body
        assert body.count("http://") == body.count('xmlns="http://www.w3.org/2000/svg"')


async def test_the_page_knows_what_every_ending_means(running: Running) -> None:
    async with running.client.get("/endings.json") as answer:
        assert await answer.json() == {f"{e.outcome}/{e.reason}": e.meaning for e in ENDINGS}


@pytest.mark.parametrize("path", ["/", "/status", "/nowhere", "/v1/push"])
async def test_every_answer_carries_the_security_headers(running: Running, path: str) -> None:
    async with running.client.get(path) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Server"] == "bridge"


async def test_unknown_routes_and_wrong_methods_are_json_too(running: Running) -> None:
    async with running.client.get("/nowhere") as answer:
        assert answer.status == 404
        assert (await answer.json())["error"] == "not_found"
    async with running.client.get("/v1/push") as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "POST"
    async with running.client.get("/../http.py") as answer:
        assert answer.status == 404


def test_the_reference_page_lists_every_route() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "reference" / "ops.md").read_text()
    files = {"/app.js", *LIBRARY, "/style.css", "/icon.svg"}
    parts = Parts(look_up=nothing_known, people=Nobody(), desk=FakeDesk())
    routes = {
        f"{route.method} {route.resource.canonical}"
        for route in OpsServer(parts.context(), parts.credentials()).app().router.routes()
        if route.resource is not None and route.method != "HEAD" and route.resource.canonical not in files
    }
    assert set(re.findall(r"^\| `((?:GET|POST) \S+)` \|", page, re.MULTILINE)) == routes


async def test_a_defect_is_500_and_goes_to_the_error_handler(running: Running, parts: Parts) -> None:
    parts.metrics_error = ZeroDivisionError("a secret detail")
    async with running.client.get("/metrics") as answer:
        assert answer.status == 500
        assert "secret" not in await answer.text()
    assert parts.errors.seen == [(parts.metrics_error, "ops")]
    assert parts.errors.facts == [{"method": "GET", "path": "/metrics"}]


async def test_a_port_that_is_taken_is_named_by_its_setting(running: Running, parts: Parts) -> None:
    with pytest.raises(SettingsError) as caught:
        async with listen(
            parts.context(), host="127.0.0.1", port=running.server.port, credentials=parts.credentials()
        ):
            pass
    assert caught.value.setting == "BRIDGE_OPS_PORT"


async def test_a_stopped_port_is_free_again(parts: Parts) -> None:
    async with ops(parts) as running:
        port = running.server.port
    with socket.create_server(("127.0.0.1", port)):
        pass


async def raw(port: int, request: str) -> str:
    """What the server answers to these very bytes, up to its first blank line."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.encode())
        async with asyncio.timeout(15):
            return (await reader.readuntil(b"\r\n\r\n")).decode()
    finally:
        writer.close()
        await writer.wait_closed()


# --- recall ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "recall"),
    [
        ({"push_id": "p1"}, Recall(push_id="p1")),
        ({"push_id": "p1", "tenant": "t"}, Recall(tenant="t", push_id="p1")),
        ({"user": "u", "collapse_key": "k"}, Recall(user="u", collapse_key="k")),
    ],
)
async def test_a_recall_is_carried_out_and_says_what_ended_by_it(
    body: dict[str, str], recall: Recall
) -> None:
    parts = Parts()
    async with ops(parts) as o, o.client.post("/v1/recall", json=body) as answer:
        assert answer.status == 200
        said = await answer.json()
        assert (said["type"], said["node"], said["ended"], said["sessions"]) == ("recall", "n1", 2, 1)
        assert parts.recall.calls == [recall]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"push": "p1"}, "push"),
        ({}, "push_id"),
        ({"push_id": "p1", "user": "u", "collapse_key": "k"}, "push_id"),
        ({"push_id": 1}, "push_id"),
        ({"type": "recall", "push_id": "p1"}, "type"),
        ([], "object"),
    ],
)
async def test_a_recall_that_is_not_clear_is_refused_with_the_field(body: object, names: str) -> None:
    parts = Parts()
    async with ops(parts) as o, o.client.post("/v1/recall", json=body) as answer:
        assert answer.status == 400
        assert names in (await answer.json())["problem"]
        assert parts.recall.calls == []


async def test_a_recall_that_gives_a_field_twice_is_refused_by_its_name() -> None:
    parts = Parts()
    async with ops(parts) as o:
        async with o.client.post(
            "/v1/recall",
            data=b'{"push_id":"p1","push_id":"p2"}',
            headers={"Content-Type": "application/json"},
        ) as answer:
            assert answer.status == 400
            assert (await answer.json())["problem"] == "push_id: given twice"
    assert parts.recall.calls == []


async def test_a_recall_while_the_database_is_away_says_so() -> None:
    parts = Parts()
    parts.recall.error = StoreUnavailable("stopped")
    async with ops(parts) as o, o.client.post("/v1/recall", json={"push_id": "p1"}) as answer:
        assert (answer.status, (await answer.json())["error"]) == (503, "database")
