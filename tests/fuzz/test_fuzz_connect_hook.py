"""Whatever the connect hook answers: nobody comes in whom it did not name, nothing hangs, the neighbour is served."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st

from benchmarks.listening import listening
from bridge.adapters.connect_hook import ANSWER_BYTES_MAX
from bridge.core.errors import ConnectHookFailed
from bridge.core.sessions import breaker
from tests.support import bridges, fuzzing
from tests.support.clients import opening, raw_client

ANSWERS = 2_200
"""Answers that are made up, `AT_ONCE` of them in one go. Ten thousand go through the core alone."""
AT_ONCE = 20
DAYS = 400

CHARACTERS = st.characters()
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(CHARACTERS, max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(CHARACTERS, max_size=8), inner, max_size=4)
    ),
    max_leaves=4,
)
USERS = st.text(CHARACTERS, max_size=140) | st.integers() | JSON
GOOD_USERS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=128) | st.integers(
    0, 10**20
)
TOPICS = st.none() | st.lists(st.text("ab.*é", min_size=1, max_size=5), max_size=3) | JSON
OFFSETS = st.floats(-1e6, 1e8) | st.sampled_from((0, 60, 3600, 1e10, -1e10, 1e300))
STATUSES = st.sampled_from((200,) * 6 + (201, 204, 206, 301, 302, 400, 401, 403, 404, 418, 429, 500, 503))


HEADERS = st.sampled_from(
    (
        *(
            b"",
            b"",
            b"Content-Type: application/json\r\n",
            b"Content-Type: text/html\r\n",
            b"Content-Type:\r\n",
        ),
        *(b"Content-Type: \xff\r\n", b"Content-Type: application/json; charset=utf-16\r\n"),
        *(b"Content-Encoding: gzip\r\n", b"Content-Encoding: identity\r\n"),
    )
)
CUTS = st.tuples(st.integers(0, 200), st.integers(0, 9), st.binary(max_size=9)) | st.just((0, 0, b"\n "))
"""Where bytes are taken out, how many, and what comes instead; or what JSON may begin with."""
BLANKS = st.sampled_from((0,) * 8 + (60_000, 70_000))


class Made(NamedTuple):
    """An answer."""

    answer: bytes
    allows: str | None
    """The user whom it lets in, if it must."""
    may_allow: str | None
    """The user whom it lets in, if anybody."""
    hangs_up: bool
    """The connection ends with it."""


class Sketch(NamedTuple):
    """What an answer is made from; times are those from now on."""

    status: int
    said: dict[str, Any] | Any
    offset: float | None
    cut: tuple[int, int, bytes] | None
    http: bytes
    header: bytes = b""
    """One more, which a hook may send: the type of its answer is not looked at, a coded one is none."""
    blanks: int = 0
    """After the JSON."""


@st.composite
def sketches(draw: st.DrawFn) -> Sketch:
    """Answers right and wrong, with JSON changed at random, and with HTTP that is none."""
    kind = draw(st.integers(0, 9))
    said: Any
    cut = draw(CUTS) if kind >= 8 else None
    if kind <= 3 or kind == 9:
        said = {"user": draw(GOOD_USERS), "meta": draw(JSON)}
        return Sketch(200, said, draw(st.floats(60, 86_400)), cut, b"", draw(HEADERS), draw(BLANKS))
    if kind == 4:
        said = draw(JSON)
        return Sketch(draw(STATUSES), said, None, None, b"")
    said = draw(st.fixed_dictionaries({}, optional={"user": USERS, "expires_at": JSON, "topics": TOPICS}))
    offset = draw(st.none() | OFFSETS)
    http = draw(st.binary(max_size=60)) if kind == 7 else b""
    return Sketch(draw(STATUSES), said, offset, cut, http)


def is_name(value: object) -> bool:
    """Whether this is the name of a topic."""
    word = r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff.*#{}]+"
    return (
        isinstance(value, str)
        and len(value) <= 128
        and re.fullmatch(rf"{word}(\.{word})*", value) is not None
    )


def allowed_by(body: bytes, now: float) -> str | None:
    """Whom this body lets in, by another reader of JSON."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    topics = said.get("topics") or []
    if said.get("topics") not in (None, []) and not (isinstance(topics, list) and all(map(is_name, topics))):
        return None
    user, at = said.get("user"), said.get("expires_at")
    if isinstance(user, bool) or not isinstance(user, str | int):
        return None
    user = str(user)
    if not 0 < len(user) <= 128 or re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", user):
        return None
    if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
        return None
    return user if now < at <= now + DAYS * 86_400 + 30 else None


def make(sketch: Sketch) -> Made:
    """The bytes of an answer, at this moment."""
    said, now = sketch.said, time.time()
    if isinstance(said, dict) and sketch.offset is not None:
        said = {**said, "expires_at": now + sketch.offset}
    body = json.dumps(said).encode() + b" " * sketch.blanks
    if sketch.cut is not None:
        at, gone, more = sketch.cut
        body = body[: at % len(body)] + more + body[at % len(body) + gone :]
    may = allowed_by(body, now) if sketch.status == 200 else None
    if sketch.http:
        # HTTP that is changed at random: the body lets nobody in, so that nobody may come in.
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        at = len(sketch.http) * 7 % len(head)
        return Made(head[:at] + sketch.http + head[at:] + b"{}", None, None, True)
    if len(body) > ANSWER_BYTES_MAX or b"gzip" in sketch.header:
        may = None
    head = b"HTTP/1.1 %d Said\r\n%sContent-Length: %d\r\n\r\n" % (sketch.status, sketch.header, len(body))
    if sketch.status == 204:
        head, body = b"HTTP/1.1 204 Said\r\n\r\n", b""
    must = may if sketch.cut is None and "\\ud" not in json.dumps(said) else None
    return Made(head + body, must, may, False)


@asynccontextmanager
async def answering(answers: dict[str, Made]) -> AsyncIterator[str]:
    """A server that gives the answer that the client's query names; yields its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert found is not None
            asked = json.loads(await reader.readexactly(int(found[1])))
            made = answers[asked["query"]["n"][0]]
            writer.write(made.answer)
            if made.hangs_up:
                return

    async with listening(serve) as port:
        yield f"http://127.0.0.1:{port}/"


async def come(port: int, name: str) -> tuple[int, str]:
    """The status of the answer to a handshake, and the user who got a session."""
    async with raw_client(port) as peer:
        peer.send(opening(f"/ws?n={name}", "Sec-WebSocket-Protocol: bridge.v1.json"))
        status = int((await peer.read_until(b"\r\n\r\n")).split()[1])
        if status != 101:
            return status, ""
        welcome = await peer.read_until(b'"heartbeat":10}')
        user = json.loads(welcome[welcome.index(b'{"type"') :])["user"]
        assert isinstance(user, str)
        return status, user


async def test_nobody_comes_in_whom_the_hook_did_not_name(
    vhost: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FAILURES", 10**9)  # each answer counts
    answers: dict[str, Made] = {}
    seen = {"allowed": 0, "refused": 0, "failed": 0, "changed and allowed": 0}
    fuzzing.REPORTED.seen.clear()
    async with answering(answers) as url:
        # No answer is late here, however busy the machine is.
        more = {
            "connect_url": url,
            "connect_timeout": 8,
            "error_handler": "tests.support.fuzzing:recording_errors",
        }
        async with bridges.bridge(vhost, database, **more) as b, fuzzing.neighbour(b.ws_port, vhost):

            async def check(made: list[Sketch]) -> None:
                answers.clear()
                answers.update({str(n): make(sketch) for n, sketch in enumerate(made)})
                ends = await asyncio.gather(*(come(b.ws_port, name) for name in answers))
                for (status, user), answer, sketch in zip(ends, answers.values(), made, strict=True):
                    if status == 101:
                        assert user == answer.may_allow, (sketch, user)
                        seen["changed and allowed" if sketch.cut else "allowed"] += 1
                    else:
                        assert answer.allows is None, (sketch, status)
                        denies = not sketch.http and sketch.status in (401, 403)
                        assert status == (sketch.status if denies else 503), (sketch, status)
                        seen["refused" if denies else "failed"] += 1

            await fuzzing.for_each(
                st.lists(sketches(), min_size=AT_ONCE, max_size=AT_ONCE), ANSWERS // AT_ONCE, check
            )
    assert min(seen.values()) >= 5, seen
    assert sum(seen.values()) >= ANSWERS
    assert {type(error) for error, _ in fuzzing.REPORTED.seen} == {ConnectHookFailed}
