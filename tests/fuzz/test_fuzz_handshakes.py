"""Whatever comes as an opening request: it is answered, and nobody comes in without a token that is good."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import socket
import struct
from collections import Counter

import pytest

from bridge.adapters.tokens import JwtVerifier
from bridge.adapters.websocket.listening import listen
from bridge.core.model.revocations import Revocation
from bridge.core.model.sessions import Grant, Handshake, Refusal, Said
from bridge.core.ports.sockets import SessionHandle, Socket
from bridge.core.sessions.access import Access
from tests.support.clients import SECONDS, opening, refusal
from tests.support.house import House, house
from tests.support.random_openings import APP, COOKIE, REVOKED, Asking, asking
from tests.support.random_tokens import NOW, SECRET, good
from tests.support.waiting import until

REQUESTS = 10_000
SEED = 26
REFUSED = {400, 401, 403, 404, 405, 414, 426, 431, 505}
"""The statuses that these requests may be refused with. Nothing here is slow, or too much at once."""
_RESET = struct.pack("ii", 1, 0)


class Door:
    """Fills the SessionHost port: the gateway's, and who came in."""

    def __init__(self, h: House) -> None:
        h.gateway._access = Access(
            JwtVerifier(SECRET, clock=h.clock),
            (APP,),
            revoked=h.core.revoked,
            ledger=h.core.ledger,
            admission=h.core.admission,
            clock=h.clock,
            token_from=("authorization", "subprotocol", "query", "cookie"),
            cookie=COOKIE,
        )
        self._gateway = h.gateway
        self.users: list[str | None] = []

    def handshake(self, request: Handshake) -> Grant | Refusal:
        answer = self._gateway.handshake(request)
        assert isinstance(answer, Grant | Refusal), "there is nothing to wait for"
        return answer

    def refused(self, refusal: Refusal) -> None:
        self._gateway.refused(refusal)

    def said(self, said: Said) -> Refusal | None:
        return self._gateway.said(said)

    def opened(self, grant: Grant, socket: Socket) -> SessionHandle:
        self.users.append(grant.claims.user if grant.claims else None)
        return self._gateway.opened(grant, socket)


def opens(said: bytes) -> bool:
    """Whether this answer opens a session."""
    return said.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 200 ")) and (
        said[9:12] == b"101" or b"text/event-stream" in said
    )


async def answer(port: int, sent: bytes, *, hangs_up: bool) -> bytes:
    """The whole answer to a request, or the head of one that opens a session; the connection ends with it."""
    loop = asyncio.get_running_loop()
    with socket.socket() as peer:
        peer.setblocking(False)
        # Ten thousand connections would else leave as many ports that nobody may use for a minute.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        async with asyncio.timeout(SECONDS):
            await loop.sock_connect(peer, ("127.0.0.1", port))
            await loop.sock_sendall(peer, sent)
            if hangs_up:
                peer.shutdown(socket.SHUT_WR)
            said = b""
            while more := await loop.sock_recv(peer, 65_536):
                said += more
                if opens(said) and b"\r\n\r\n" in said:
                    break
    return said


def made(number: int) -> Asking:
    """The request of this number."""
    return asking(random.Random(f"{SEED} {number}"))


def status_of(made: Asking, said: bytes) -> int:
    """The status of an answer, which must be one of those that are documented, in their form."""
    status = int(said[9:12])
    if status in (101, 200, 204):
        return status
    assert status in REFUSED
    if made.sent.startswith(b"HEAD "):
        assert said.endswith(b"\r\n\r\n")
        assert said.count(b"\r\n\r\n") == 1
    else:
        assert refusal(said)[0] == status
    return status


async def test_of_ten_thousand_requests_each_is_answered_and_only_good_tokens_open_sessions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    ends: Counter[int] = Counter()
    async with house() as h:
        assert h.clock.now == NOW
        await h.core.revoking.revoke(Revocation(token_id=REVOKED))
        door = Door(h)
        async with listen("127.0.0.1", 0, door, readiness=lambda: (True, [])) as server:
            for number in range(REQUESTS):
                one = made(number)
                case = f"made({number}) is {one.sent[:600]!r}"
                before = len(door.users)
                try:
                    said = await answer(server.port, one.sent, hangs_up=one.hangs_up)
                    status = status_of(one, said)
                except Exception as error:
                    raise AssertionError(case) from error
                ends[status] += 1
                entered = door.users[before:]
                assert len(entered) == opens(said), case
                assert set(entered) <= one.may, (case, entered)
                assert opens(said) or not one.must, (case, said)
                pieces = [part for token in one.tokens for part in token.split(".") if len(part) > 8]
                assert not any(part.encode(errors="replace") in said for part in pieces), (case, said)
                assert h.errors.seen == [], case
                assert caplog.records == [], case
            well = good(random.Random(SEED))
            said = await answer(server.port, opening(f"/ws?token={well}"), hangs_up=False)
            assert said.startswith(b"HTTP/1.1 101 ")
            await until(lambda: server.connections == 0)
            assert server.unanswered_bytes == 0
            assert len(h.hub) == 0
    gc.collect()
    assert caplog.records == []
    assert min(ends[status] for status in {101, 200, 204, *REFUSED}) >= 10, ends
