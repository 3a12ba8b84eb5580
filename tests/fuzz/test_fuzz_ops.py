"""The ops port against whatever a client may send: requests made from its OpenAPI document, and raw bytes."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.config import (
    CoveragePhaseConfig,
    GenerationConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
)

from bridge.adapters.amqp.fallbacks import FallbacksUnroutable
from bridge.app import reports
from bridge.devservers import Servers
from bridge.ops import requests as http_requests
from bridge.ops.outcome_feed import OutcomeFeed
from bridge.ops.routes import push as http_push
from tests.conftest import TEMPLATE, Databases
from tests.support.bridges import SECONDS
from tests.support.fuzzing import REPORTED, bridge_in_a_thread
from tests.support.schemas import REQUEST

OPENAPI = Path(__file__).parent.parent.parent / "schemas" / "openapi.json"
TOKEN = "an ops token"
DAYS_KEPT = 3650
WAIT_MAX = 0.25
"""Seconds that `?wait=` may ask for here: a push to everyone waits for all of them."""
BODY_SECONDS = 0.5
"""Seconds that a body may take here."""
EXAMPLES = 40
"""Requests that are made up for a route, next to those that the limits of its schemas give."""


def document() -> Any:
    """The document of a port that has a token, with shorter waits."""
    raw = json.loads(OPENAPI.read_text())
    assert raw["security"] == [{"token": []}, {}]
    raw["security"] = [{"token": []}]
    for operations in raw["paths"].values():
        for operation in operations.values():
            if operation.get("security"):
                operation["security"].remove({})
    wait = next(p for p in raw["paths"]["/v1/push"]["post"]["parameters"] if p["name"] == "wait")
    assert wait["schema"]["maximum"] == http_push.WAIT_MAX
    wait["schema"]["maximum"] = WAIT_MAX
    return raw


CONFIG = schemathesis.Config(
    projects=ProjectsConfig(
        default=ProjectConfig(
            generation=GenerationConfig(max_examples=EXAMPLES, deterministic=True),
            phases=PhasesConfig(coverage=CoveragePhaseConfig(generate_duplicate_query_parameters=True)),
        )
    )
)


def api(method: str, path: str) -> schemathesis.schemas.BaseSchema:
    """One route of the document."""
    schema = schemathesis.openapi.from_dict(document(), config=CONFIG).include(method=method, path=path)
    schema.location = OPENAPI.as_uri()  # where its references lead from
    return schema


class EndedFeed(OutcomeFeed):
    """Streams of outcomes that end at once, so that every request has an end."""

    def __init__(self) -> None:
        super().__init__()
        self.close()


@pytest.fixture(scope="module")
def port(servers: Servers, databases: Databases) -> Iterator[int]:
    """The ops port of a bridge with a token, in development."""
    name = f"fuzz_ops_{uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch, databases.fresh(TEMPLATE) as database:
        patch.setattr(http_push, "WAIT_MAX", WAIT_MAX)
        patch.setattr(http_requests, "BODY_SECONDS", BODY_SECONDS)
        patch.setattr(reports, "OutcomeFeed", EndedFeed)
        vhost = servers.rabbit.create_vhost(name)
        try:
            with bridge_in_a_thread(
                vhost, database, ops_token=TOKEN, dev=True, retention_days=DAYS_KEPT
            ) as running:
                yield running.ops_port
        finally:
            servers.rabbit.delete_vhost(name)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client sends, nothing is a defect and nothing is worth a line in the log."""
    caplog.set_level(logging.WARNING)
    REPORTED.seen.clear()
    yield
    # A fallback goes to whoever listens for its key, and here nobody does.
    assert [one for one in REPORTED.seen if not isinstance(one[0], FallbacksUnroutable)] == []
    said = [r.getMessage() for r in caplog.get_records("call")]
    assert [one for one in said if FallbacksUnroutable.__name__ not in one] == []


def anew(body: Any) -> Any:
    """The same body with ids that were never used: a repeat would be answered from the row of the first."""
    if isinstance(body, list):
        return [anew(element) for element in body]
    if (
        isinstance(body, dict)
        and "id" in body
        and REQUEST.is_valid({"to": {"all": True}, "data": 0, "id": body["id"]})
    ):
        return {**body, "id": uuid.uuid4().hex}
    return body


def soon(body: Any) -> Any:
    """The same, but for no time that is further ahead than rows are kept: the document can't say when that is."""
    for one in body if isinstance(body, list) else [body]:
        at = one.get("deliver_at") if isinstance(one, dict) else None
        if isinstance(at, int | float) and not isinstance(at, bool) and at > time.time():
            one["deliver_at"] = time.time() + at % DAYS_KEPT
    return body


def partly_right(body: Any) -> bool:
    """Whether this is a batch of which some elements are right."""
    return isinstance(body, list) and any(map(REQUEST.is_valid, body))


def partly_sent(query: Any) -> bool:
    """Whether there is a parameter of which nothing is sent, an empty list or object: what is left may be right."""
    return isinstance(query, dict) and any(value in ([], {}) for value in query.values())


BEYOND_THE_DOCUMENT = ("/v1/pushes", "/v1/replay")
"""Routes with a text of which the document can't say all: where a page ends, and which rows are meant."""


def answers_as_the_document_says(case: schemathesis.Case[Any], port: int) -> None:
    case.body = soon(anew(case.body))
    answer = case.call(
        f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=SECONDS
    )
    # Of a batch that is right in part that part is taken; the receipts tell of the rest.
    right = partly_right(case.body) or partly_sent(case.query)
    unfit: list[Any] = [checks.CHECKS.get_one("negative_data_rejection")] if right else []
    if case.path in BEYOND_THE_DOCUMENT and answer.status_code == 400:
        unfit.append(checks.CHECKS.get_one("positive_data_acceptance"))
    case.validate_response(answer, excluded_checks=unfit)


# A test for each route, by name: what parametrize() makes of several has one node id, of which xdist runs the first.
for _path, _methods in document()["paths"].items():
    for _method in _methods:
        _name = f"test_{_method}_{re.sub(r'[^a-z0-9]+', '_', _path).strip('_') or 'page'}"
        globals()[f"{_name}_answers_as_the_document_says"] = api(_method, _path).parametrize()(
            answers_as_the_document_says
        )


# --- what no client library would send ---

HEAD = (
    "POST /v1/push HTTP/1.1\r\nHost: x\r\n"
    f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
).encode()
PUSH = b'{"to":{"user":"u1"},"data":1}'
SIZED = b"Content-Length: %d\r\n" % len(PUSH)
TOKEN_HEAD = HEAD.replace(b"/v1/push", b"/v1/dev/token")


def said(port: int, *parts: bytes, until: bytes = b"\r\n\r\n") -> bytes:
    """Send each part once what came before it was answered; the last answer, up to `until` or the end."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        for part in parts:
            connection.sendall(part)
            answer = b""
            while until not in answer and (more := connection.recv(65_536)):
                answer += more
    return answer


STRANGE = {
    "bytes": (b"\x00\xff\x16\x03\r\n\r\n", 400),
    "another protocol": (b"SSH-2.0-x\r\n\r\n", 400),
    "a version that is none": (b"GET / HTTP/9.9\r\n\r\n", 400),
    "a header without a colon": (b"GET / HTTP/1.1\r\nHost\r\n\r\n", 400),
    "a header that never ends": (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, 400),
    "too many headers": (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 10_000 + b"\r\n", 400),
    "an address that is none": (b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a length that is none": (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    "two lengths": (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "length and chunks": (HEAD + SIZED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a chunk that is none": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a proxy's request": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 401),
    "a path out of here": (
        HEAD.replace(b"POST /v1/push", b"GET /v1/../../%2e%2e/etc/passwd%00") + b"\r\n",
        404,
    ),
    "a body that says it is gzip": (HEAD + b"Content-Encoding: gzip\r\n" + SIZED + b"\r\n" + PUSH, 415),
    "a body that says it is br": (HEAD + b"Content-Encoding: br\r\n" + SIZED + b"\r\n" + PUSH, 415),
    "a header that is not UTF-8": (HEAD + b"traceparent: \xff\xfe\r\n" + SIZED + b"\r\n" + PUSH, 202),
    "an expectation that is none": (HEAD + b"Expect: nonsense\r\n" + SIZED + b"\r\n" + PUSH, 417),
    "a body over a MiB": (HEAD + b"Content-Length: 1048577\r\n\r\n", 413),
    "a user that is not UTF-8": (TOKEN_HEAD + b"Content-Length: 12\r\n\r\n" + b'{"user":"\xff"}', 400),
    "a user of a lone surrogate": (TOKEN_HEAD + b"Content-Length: 17\r\n\r\n" + b'{"user":"\\ud800"}', 400),
    "a user with a control": (TOKEN_HEAD + b"Content-Length: 17\r\n\r\n" + b'{"user":"\\u0007"}', 400),
    "a user twice in the query": (
        HEAD.replace(b"POST /v1/push", b"GET /v1/outcomes?user=a&user=b") + b"\r\n",
        400,
    ),
    "a misspelt parameter": (HEAD.replace(b"/v1/push", b"/v1/push?wiat=1") + SIZED + b"\r\n" + PUSH, 400),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_request_of_no_client_library_is_refused_with_a_reason(name: str, port: int) -> None:
    sent, status = STRANGE[name]
    assert said(port, sent).split(b" ", 2)[1] == b"%d" % status


@pytest.mark.parametrize("rest", [b"", b"zz\r\n", b"3\r\nabcdef\r\n", b"ffffffffffffffffff\r\n"])
def test_a_body_that_goes_wrong_while_it_is_read_is_refused_in_time(rest: bytes, port: int) -> None:
    head = HEAD + b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    # aiohttp does not tell the reader of a body that its chunks have gone wrong: it is the time that ends it.
    assert said(port, head, b"2\r\nab\r\n" + rest).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(port: int) -> None:
    head = HEAD + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
    for end in (socket.SHUT_WR, socket.SHUT_RDWR):
        with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
            connection.sendall(head)
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            connection.sendall(b"[")
            connection.shutdown(end)
    assert_alive(port)


SOUND = [
    HEAD + SIZED + b"\r\n" + PUSH,
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n1d\r\n" + PUSH + b"\r\n0\r\n\r\n",
    TOKEN_HEAD + b"Content-Length: 14\r\n\r\n" + b'{"user":"u1"} ',
    HEAD.replace(b"POST /v1/push", b"GET /v1/outcomes?user=a&push_id=b") + b"\r\n",
    HEAD.replace(b"POST /v1/push", b"GET /status") + b"\r\n",
]


@st.composite
def mutilated(draw: st.DrawFn) -> bytes:
    """Requests, one behind the other, with pieces cut out, put in, and doubled."""
    data = b"".join(draw(st.lists(st.sampled_from(SOUND), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.integers(0, 8))
        more = draw(st.one_of(st.binary(max_size=8), st.just(data[at : at + 20]), st.just(b"\r\n")))
        data = data[:at] + more + data[at + gone :]
    return data


@settings(
    max_examples=300,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.one_of(mutilated(), st.binary(max_size=500)))
def test_no_bytes_are_a_defect_and_no_connection_hangs(port: int, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        answers = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65_536):
                answers += more
        except ConnectionError:
            pass  # what was unread when it hung up
    assert b" 500 Internal" not in answers


def test_the_least_seconds_of_the_contract_are_no_poison(port: int) -> None:
    # More than 0, and less than a 32-bit float can say: a column of those refused the row, and with it the bridge.
    body = b'{"to":{"user":"u1"},"data":1,"confirm":"acked","ttl":5e-324,"ack_within":5e-324}'
    head = HEAD.replace(b"/v1/push", b"/v1/push?wait=0.2") + b"Content-Length: %d\r\n\r\n" % len(body)
    assert said(port, head + body, until=b"}\n").partition(b" ")[2][:3] in (b"200", b"202")
    assert_alive(port)


def test_after_all_that_it_is_alive(port: int) -> None:
    assert_alive(port)
    [first, *_] = json.loads(said(port, SOUND[0], until=b"}\n").partition(b"\r\n\r\n")[2])["push_ids"]
    assert first


def assert_alive(port: int) -> None:
    assert said(port, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200 ")
